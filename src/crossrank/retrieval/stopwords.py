"""Stop words by language: short lists of function words that carry no topic.

English is the 33-word list Lucene has used since its first releases. The others were written for
crossrank in the same spirit: articles, the commonest prepositions, conjunctions and pronouns, and
forms of "to be" and "to have"; content words, however frequent, are left out. All words are in the
form `crossrank.retrieval.text` compares them in: NFKC, case-folded (so German "daß" is "dass").
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["STOP_WORDS"]

STOP_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "danish": """
            af alle at blev bliver da de dem den denne der deres det dette dig din dit du efter eller en er
            et for fra han hans har havde hende hendes her hun hvad hvis hvor i ikke ind jeg jer kan man med
            men mig min mit mod ned nogle nu når og også om op os over på selv sig sin sit skal som så til
            ud under var ved vi vil var være
            """,
        "dutch": """
            aan al als bij daar dan dat de der deze die dit door een en er had heb hebben heeft het hier hij
            hoe hun ik in is je kan maar me men met mij mijn naar niet nog nu of om omdat onder ons ook op
            over te tot u uit van voor was wat we wel werd wie wij worden wordt zich zij zijn zo zonder zou
            """,
        "english": """
            a an and are as at be but by for if in into is it no not of on or such that the their then there
            these they this to was will with
            """,
        "finnish": """
            ei eivät emme en et ette he heidän hän hänen ja jo joka jos jotka kanssa ku kuin kun me mikä
            minun minä mitä mutta myös ne niin nyt ole olen oli olivat ollut on ovat se sekä sen sinä sitä
            tai tämä tämän te vaan vai vain että
            """,
        "french": """
            à au aux avec c ce ces cet cette d dans de des du elle elles en est et étaient était être eu il
            ils j je jusqu l la le les leur leurs lorsqu lui m ma mais me mes moi mon n ne nos notre nous on
            ont ou où par pas pour puisqu qu quand que qui quoi s sa sans se ses si son sont sur t ta te tes
            toi ton tu un une vos votre vous y
            """,
        "german": """
            aber als am an auch auf aus bei bin bis da damit dann das dass dein dem den der des dessen die
            dies diese diesem diesen dieser dieses doch du durch ein eine einem einen einer eines er es für
            hat hatte hatten ich ihm ihn ihr ihre im in ist ja jede jedem jeden jeder jedes kann mein mit
            nach nicht noch nun nur ob oder ohne sein seine sich sie sind so über um und uns unter vom von
            vor war waren was wenn wer werden wie wir wird wo wurde wurden zu zum zur
            """,
        "italian": """
            a ad agli ai al alla alle allo anche c che chi ci coi col come con d da dagli dai dal dalla dalle
            dallo degli dei del dell della delle dello di dove e ed era erano gli ha hanno i il in io l la le
            lei lo loro lui ma mi ne negli nei nel nell nella nelle nello noi non o per perché più quale
            quando quella quelle quelli quello questa queste questi questo sono su sua sue sugli sui sul
            sull sulla sulle sullo suo suoi tra tu un una uno vi voi è
            """,
        "norwegian": """
            alle at av ble bli blir da de deg dem den denne der deres det dette din du eller en er et etter
            for fra ha hadde han hans har hennes her hun hva hvis hvor i ikke inn jeg kan man med meg men min
            mot nå når og også om opp oss over på seg selv sin sitt skal som så til under ut var ved vi vil
            være å
            """,
        "portuguese": """
            a ao aos as à às com como da das de dela dele deles do dos e ela elas ele eles em entre era eram
            essa esse esta este eu foi foram há isso isto já lhe mais mas me mesmo meu minha muito na nas não
            nem no nos nós o os ou para pela pelas pelo pelos por qual quando que quem se sem ser seu seus
            sua suas são também te tem um uma você é
            """,
        "russian": """
            а без бы был была были было быть в вам вас весь во вот все всё вы где да для до его ее её если
            есть же за и из или им их к как ко когда кто ли либо мне мы на над не него нее неё нет ни них но
            о об он она они оно от по под при с со так также такой там то тот ты у уже чем что чтобы эта эти
            это этот я
            """,
        "spanish": """
            a al algo ante antes aquel aquella como con contra cual cuando de del desde donde e el él ella
            ellas ellos en entre era eran es esa ese eso esta está están este esto fue fueron ha han hasta
            hay la las le les lo los más me mi mis muy ni no nos o os para pero por porque que qué quien se
            ser si sí sin sobre son su sus también te tu tus un una uno y ya yo
            """,
        "swedish": """
            alla att av bli blir blev de dem den denna deras dess det detta dig din du där efter eller en er
            ett från för ha hade han hans har henne hennes hon honom hur här i icke inte jag kan man med men
            mig min mot ni nu när och också om oss på sig sin sitt ska skall som så till under upp ut var vad
            vi vid vilka vilken är än över
            """,
    }.items()
}
"""Snowball language name -> its stop words. A language that is not here has none."""
