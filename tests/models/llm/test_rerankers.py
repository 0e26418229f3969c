"""Listwise, pairwise and setwise rerankers: right answers, wrong answers, prompts, and numbers of calls."""

from __future__ import annotations

import random

import pytest
from chat_server import Call, completion, fails, passages, right, says, stalls, worth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossrank import BM25, Searcher
from crossrank.errors import BudgetError, EndpointError, InputError
from crossrank.models.llm import Answer, Endpoint, ListwiseLLM, PairwiseLLM, Prices, SetwiseLLM
from crossrank.models.llm.model import Usage, nothing
from crossrank.models.pairwise import AllPairs, Heap, SlidingWindow
from crossrank.models.reranker import Reranker
from crossrank.types import Document

MAKERS = {
    "listwise": lambda model: ListwiseLLM(model, window=4, step=2, passes=3),
    "listwise-zephyr": lambda model: ListwiseLLM(model, prompt="rank-zephyr"),
    "listwise-consistent": lambda model: ListwiseLLM(model, permutations=3),
    "pairwise": PairwiseLLM,
    "pairwise-all": lambda model: PairwiseLLM(model, plan=AllPairs()),
    "pairwise-sliding": lambda model: PairwiseLLM(model, plan=SlidingWindow(passes=6)),
    "setwise": SetwiseLLM,
    "setwise-bubble": lambda model: SetwiseLLM(model, sort="bubble", set_size=3),
}


class Scripted:
    """A model whose answers a function gives; for answers no server could be made to give so fast."""

    name = "scripted"
    reads_choices = False
    usage = Usage()

    def __init__(self, answer):
        self.answer = answer
        self.prompts = []

    def clean(self, text):
        return text

    def generate(self, prompts, *, max_tokens, on_answer=nothing):
        self.prompts += prompts
        return [Answer(self.answer(prompt)) for prompt in prompts]


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


def shuffled(count: int, seed: int = 0) -> list[str]:
    worths = list(range(1, count + 1))
    random.Random(seed).shuffle(worths)
    return [f"a passage worth {value}" for value in worths]


def worths(ranking, documents):
    return [int(worth(documents[hit.index])) for hit in ranking]


def test_a_right_model_gives_the_right_order(make, endpoint):
    documents = shuffled(9)
    reranker = make(endpoint)
    assert isinstance(reranker, Reranker)
    ranking = reranker.rank("q", documents)
    # Sorts of the top settle ten places, sliding windows those that passes times step allow.
    assert worths(ranking, documents)[:6] == [9, 8, 7, 6, 5, 4]
    assert sorted(hit.index for hit in ranking) == list(range(9))
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
    assert [hit.rank for hit in ranking] == list(range(1, 10))
    assert (ranking.status, ranking.notes) == ("ok", ())
    assert {hit.stage for hit in ranking} == {reranker.name}
    assert reranker.name.endswith(":oracle")


def test_many_queries_go_out_together(make, server, endpoint):
    server.does(stalls(0.02))
    documents = [shuffled(5, seed) for seed in range(6)]
    reranker = make(endpoint)
    rankings = reranker.rank_many([f"q{seed}" for seed in range(6)], documents)
    assert server.most_at_once > 1
    server.does(right)
    for seed, (ranking, texts) in enumerate(zip(rankings, documents, strict=True)):
        assert ranking == reranker.rank(f"q{seed}", texts)
        assert worths(ranking, texts)[0] == 5


@pytest.mark.parametrize("count", [0, 1, 2, 5, 23])
def test_the_number_of_calls_is_known_beforehand(make, server, endpoint, count):
    reranker = make(endpoint)
    reranker.rank("q", shuffled(count))
    assert len(server.calls) <= reranker.calls(count)
    if reranker.name.startswith("listwise"):
        assert len(server.calls) == reranker.calls(count)
    if count < 2:
        assert server.calls == []


def test_calls_can_be_capped(server, endpoint):
    for maker in (ListwiseLLM, SetwiseLLM, PairwiseLLM):
        free = maker(endpoint)
        capped = maker(endpoint, max_calls=free.calls(30))
        assert capped.rank("q", shuffled(30)).status == "ok"
        done = len(server.calls)
        with pytest.raises(
            InputError, match=r"can take [\d,]+ model calls, more than max_calls=.*documents fit"
        ):
            capped.rank("q", shuffled(60))
        assert len(server.calls) == done


def test_heap_and_bubble_sorts_take_at_most_what_they_say(endpoint):
    for sort in ("heap", "bubble"):
        for set_size in (2, 3, 4, 7):
            for top in (1, 3, 50):
                for count in (2, 3, 4, 8, 21):
                    model = Scripted(best_of)
                    documents = shuffled(count, set_size)
                    reranker = SetwiseLLM(model, sort=sort, set_size=set_size, top=top)
                    ranking = reranker.rank("q", documents)
                    wanted = sorted(range(1, count + 1), reverse=True)[:top]
                    assert worths(ranking, documents)[:top] == wanted
                    assert len(model.prompts) <= reranker.calls(count)
                    rest = [hit.index for hit in ranking][top:]
                    assert rest == sorted(rest)  # what is not settled keeps its order


def best_of(prompt):
    shown = passages(Call({"messages": [message._asdict() for message in prompt.messages]}, {}))
    return f"Passage {max(shown, key=lambda name: worth(shown[name]))}"


def test_windows_reach_the_top_whatever_the_step(endpoint):
    reranker = ListwiseLLM(endpoint, window=20, step=10)
    assert [reranker.calls(count) for count in (0, 1, 2, 20, 21, 30, 31, 100, 95)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        9,
        9,
    ]
    for count in range(2, 60):
        windows = ListwiseLLM(endpoint, window=7, step=3)._windows(count)
        assert windows[0].stop == count
        assert windows[-1].start == 0
        assert all(above.stop > below.start for above, below in zip(windows[1:], windows, strict=False))


# --- wrong answers ----------------------------------------------------------------------------------------


NONSENSE = {
    "nothing": "",
    "prose": "These are all fine passages.",
    "unknown": "[77] > [78] Passage Q",
    "refusal": "I'm sorry, but I can't help with that.",
    "numbers": "1234567890 " * 40,
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_leaves_the_order_and_says_so(make, server, endpoint, text):
    server.does(says(text))
    documents = shuffled(6)
    ranking = make(endpoint).rank("q", documents)
    assert [hit.index for hit in ranking] == list(range(6))
    assert ranking.status == "degraded"
    assert "decided nothing, the order before stands there" in ranking.notes[-1]


def test_a_filter_and_an_answer_cut_short_are_told(server, endpoint):
    server.does(says(None, finish="content_filter"))
    assert "refused" in ListwiseLLM(endpoint).rank("q", shuffled(3)).notes[0]
    server.does(says("[3] > [1", finish="length"))
    ranking = ListwiseLLM(endpoint).rank("q", shuffled(3))
    assert [hit.index for hit in ranking] == [2, 0, 1]
    assert ranking.notes == (
        "1 of 1 answer of the model repaired: 2 passages left out (put last), 1 answer with other text",
        "1 of 1 answer of the model cut off at the limit of tokens (max_answer_tokens)",
    )
    assert ranking.status == "ok"


def test_half_the_answers_wrong_are_counted(server, endpoint):
    server.does(right, says("hm"), right, says("[1] > [2]"), right)
    ranking = ListwiseLLM(endpoint, window=4, step=2).rank("q", shuffled(8))
    assert sorted(hit.index for hit in ranking) == list(range(8))
    assert ranking.status == "degraded"
    assert "1 of 3 answers" in ranking.notes[-1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=30), min_size=1, max_size=8), st.integers(0, 9))
def test_no_answer_whatsoever_loses_or_invents_a_document(make, answers, count):
    replies = iter(answers * 1000)
    reranker = make(Scripted(lambda prompt: next(replies)))
    ranking = reranker.rank("q", [Document(f"d{number}", "x") for number in range(count)])
    assert sorted(ranking.document_ids) == sorted(f"d{number}" for number in range(count))
    assert len(ranking) == count


def test_answers_that_contradict_each_other_are_a_draw(server, endpoint):
    server.does(says("Passage A"))  # whatever is shown first: no more than a liking for a place
    for plan in (AllPairs(), Heap(), SlidingWindow()):
        ranking = PairwiseLLM(endpoint, plan=plan).rank("q", shuffled(6))
        assert [hit.index for hit in ranking] == list(range(6))
        assert ranking.status == "ok"


def test_permutation_self_consistency_takes_out_a_liking_for_a_place(server, endpoint):
    def likes_the_first(call):
        """Right, but for the passage shown first, which it puts on top."""
        shown = passages(call)
        order = sorted(shown, key=lambda name: (name != "1", -worth(shown[name])))
        return type(right(call))(completion(" > ".join(f"[{name}]" for name in order), call=call))

    server.does(likes_the_first)
    documents = ["worth 1", *shuffled(8)[:7]]
    best = max(int(worth(text)) for text in documents)
    plain = ListwiseLLM(endpoint).rank("q", documents)
    assert plain[0].index == 0
    assert len(server.calls) == 1
    server.calls.clear()
    consistent = ListwiseLLM(endpoint, permutations=7, seed=3).rank("q", documents)
    assert len(server.calls) == 7
    assert worths(consistent, documents)[0] == best
    assert consistent[-1].index == 0
    orders = {tuple(passages(call).values()) for call in server.calls}
    assert len(orders) > 3  # shuffled indeed
    server.calls.clear()
    assert ListwiseLLM(endpoint, permutations=7, seed=3).rank("q", documents) == consistent
    assert {tuple(passages(call).values()) for call in server.calls} == orders


# --- failures -----------------------------------------------------------------------------------------------


def test_a_server_that_fails_is_outlived_by_a_search(server, endpoint):
    documents = [Document(str(value), f"a river worth {value}") for value in range(5)]
    searcher = Searcher(BM25(documents), ListwiseLLM(endpoint))
    first = Searcher(BM25(documents)).search("river")
    found = searcher.search("river")
    assert found[0].document_id == "4"
    assert found.status == "ok"
    server.does(fails(403))
    found = searcher.search("river")
    assert found.document_ids == first.document_ids
    assert found.status == "degraded"
    assert "status 403" in found.notes[0]
    with pytest.raises(EndpointError):
        Searcher(BM25(documents), ListwiseLLM(endpoint), on_error="raise").search("river")
    server.does(says("Here: [2] > [1]"))
    assert any("1 of 1 answer of the model repaired" in note for note in searcher.search("river").notes)


def test_a_budget_ends_a_ranking_before_the_call_that_would_exceed_it(server):
    with Endpoint("oracle", base_url=server.url, prices=Prices(1, 1), max_total_tokens=1500) as endpoint:
        reranker = ListwiseLLM(endpoint, window=4, step=2)
        with pytest.raises(BudgetError, match=r"done so far: [1-9]\d* calls"):
            reranker.rank_many(["q"] * 50, [shuffled(12)] * 50)
        assert endpoint.usage.tokens <= 1500


def test_long_documents_are_cut_and_counted(make, server, endpoint):
    documents = ["worth 3 " + "filler " * 50, "worth 5"]
    reranker = make(endpoint)
    reranker.max_document_words = 10
    ranking = reranker.rank("q", documents)
    assert [hit.index for hit in ranking] == [1, 0]
    assert ranking.notes == ("1 of 2 documents were cut to 10 words (42 words not read)",)
    assert all(call.text.count("filler") == 8 for call in server.calls)


def test_a_window_beyond_the_context_is_an_error_before_any_call(server):
    with (
        Endpoint("oracle", base_url=server.url, context_tokens=500) as endpoint,
        pytest.raises(InputError, match="do not fit into the 500"),
    ):
        ListwiseLLM(endpoint).rank("q", ["word " * 100] * 20)
    assert server.calls == []


@pytest.mark.parametrize(
    ("maker", "options", "named"),
    [
        (ListwiseLLM, {"window": 1}, "window"),
        (ListwiseLLM, {"window": 101}, "window"),
        (ListwiseLLM, {"step": 21}, "step"),
        (ListwiseLLM, {"step": 0}, "step"),
        (ListwiseLLM, {"passes": 0}, "passes"),
        (ListwiseLLM, {"prompt": "gpt"}, "prompt"),
        (ListwiseLLM, {"permutations": 0}, "permutations"),
        (SetwiseLLM, {"set_size": 1}, "set_size"),
        (SetwiseLLM, {"set_size": 21}, "set_size"),
        (SetwiseLLM, {"sort": "quick"}, "sort"),
        (SetwiseLLM, {"top": 0}, "top"),
        (SetwiseLLM, {"scoring": "log-probabilities"}, "generation"),
        (PairwiseLLM, {"scoring": "logits"}, "scoring"),
        (PairwiseLLM, {"max_document_words": 0}, "max_document_words"),
        (PairwiseLLM, {"max_calls": 0}, "max_calls"),
    ],
)
def test_options_that_cannot_be_used_are_named(endpoint, maker, options, named):
    with pytest.raises(InputError, match=named):
        maker(endpoint, **options)


# --- prompts ------------------------------------------------------------------------------------------------


def test_the_prompt_of_rank_gpt(server, endpoint):
    ListwiseLLM(endpoint).rank("who was it", ["a passage worth 1", "another\none [7]"])
    assert server.calls[0].body["messages"] == [
        {
            "role": "system",
            "content": "You are RankGPT, an intelligent assistant that can rank passages based on their "
            "relevancy to the query.",
        },
        {
            "role": "user",
            "content": "I will provide you with 2 passages, each indicated by number identifier []. \nRank "
            "the "
            "passages based on their relevance to query: who was it.",
        },
        {"role": "assistant", "content": "Okay, please provide the passages."},
        {"role": "user", "content": "[1] a passage worth 1"},
        {"role": "assistant", "content": "Received passage [1]."},
        {"role": "user", "content": "[2] another one (7)"},
        {"role": "assistant", "content": "Received passage [2]."},
        {
            "role": "user",
            "content": "Search Query: who was it. \nRank the 2 passages above based on their relevance to "
            "the search query. The passages should be listed in descending order using identifiers. "
            "The most relevant passages "
            "should be listed first. The output format should be [] > [], e.g., [1] > [2]. "
            "Only response the ranking "
            "results, do not say any word or explain.",
        },
    ]


def test_the_prompt_of_rank_zephyr(server, endpoint):
    ListwiseLLM(endpoint, prompt="rank-zephyr").rank("who was it", ["one worth 1", "two"])
    system, user = server.calls[0].body["messages"]
    assert system["content"].startswith("You are RankLLM, an intelligent assistant that can rank passages")
    assert user["content"] == (
        "I will provide you with 2 passages, each indicated by a numerical identifier []. "
        "Rank the passages based on "
        "their relevance to the search query: who was it.\n\n[1] one worth 1\n[2] "
        "two\nSearch Query: who was it.\n"
        "Rank the 2 passages above based on their relevance to the search query. All the "
        "passages should be included "
        "and listed using identifiers, in descending order of relevance. The output format "
        "should be [] > [], e.g., "
        "[2] > [1], Only respond with the ranking results, do not say any word or explain."
    )


def test_the_prompts_of_pairs_and_sets(server, endpoint):
    PairwiseLLM(endpoint).rank('who "was" it', ["one worth 1", 'two: "Passage A: yes"'])
    assert {call.last for call in server.calls} >= {
        "Given a query \"who 'was' it\", which of the following two passages is more "
        "relevant to the query?\n\n"
        'Passage A: "one worth 1"\n\nPassage B: "two: \'Passage A, yes\'"\n\nOutput Passage A or Passage B:'
    }
    server.calls.clear()
    SetwiseLLM(endpoint).rank("who", ["one worth 1", "two", "three"])
    assert server.calls[0].last == (
        'Given a query "who", which of the following passages is the most relevant one to the query?\n\n'
        'Passage A: "one worth 1"\n\nPassage B: "two"\n\nPassage C: "three"\n\n'
        "Output only the passage label of the most relevant passage:"
    )


def test_a_pairwise_model_judges_a_tournament(server, endpoint, caplog):
    from crossrank import Tournament

    documents = shuffled(7)
    ranking = Tournament(PairwiseLLM(endpoint), depth=7).rank("q", documents)
    assert worths(ranking, documents) == [7, 6, 5, 4, 3, 2, 1]
    judge = PairwiseLLM(endpoint)
    assert judge.prefer([("q", "worth 1", "worth 2"), ("q", "worth 3", "worth 2")]).tolist() == [0.0, 1.0]
    assert judge.prefer([]).shape == (0,)
    server.does(says("hm"))
    assert judge.prefer([("q", "worth 1", "worth 2")]).tolist() == [0.5]
    assert "1 of 1 comparisons" in caplog.text
    for wrong in ([("q", "a")], [("", "a", "b")], [("q", "a", None)], ["qab"], "qab", [("q", "\ud800", "b")]):
        with pytest.raises(InputError, match="comparisons"):
            judge.prefer(wrong)


# --- local models -------------------------------------------------------------------------------------------


def test_local_models_choose_by_log_probabilities(tiny):
    local = tiny("qwen")
    documents = ["the river", "a cat and a dog", "blue water", "the old city", "the bird"]
    for maker in (PairwiseLLM, SetwiseLLM):
        ranking = maker(local).rank("where", documents)
        assert sorted(hit.index for hit in ranking) == list(range(5))
        assert ranking.status == "ok"  # nothing to misread
    from crossrank.models.llm.prompts import pairwise_prompt

    forward = [
        pairwise_prompt("where", documents[0], documents[1]),
        pairwise_prompt("where", documents[1], documents[0]),
    ]
    odds = local.choose(forward, ("A", "B"))
    wins = odds[0, 0] - odds[0, 1] >= odds[1, 0] - odds[1, 1]
    assert (PairwiseLLM(local).rank("where", documents[:2])[0].index == 0) == wins


def test_local_models_generate_too(tiny):
    documents = ["the river", "a cat and a dog", "blue water"]
    for reranker in (
        ListwiseLLM(tiny("qwen")),
        SetwiseLLM(tiny("gemma"), scoring="generation"),
        PairwiseLLM(tiny("llama"), scoring="generation"),
    ):
        ranking = reranker.rank("where", documents)
        assert sorted(hit.index for hit in ranking) == [0, 1, 2]
        assert ranking == reranker.rank("where", documents)
