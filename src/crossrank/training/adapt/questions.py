"""Questions that an English sentence answers, by a few rules that would rather stay silent than guess.

Only definitions are turned round: "A boundary layer is a thin region of fluid ..." answers "what is a
boundary layer". A subject that points to something outside the sentence ("this", "it", "the results") gives
nothing.
"""

from __future__ import annotations

import re

__all__ = ["question_of"]

_MOST_SUBJECT_WORDS = 6

_DEFINITION = re.compile(
    r"(?P<subject>[^,;:()\"“”]+?)\s+"
    r"(?:(?P<verb>is|are|was|were)\s+"
    r"(?:an?|one of|the (?:name|term|process|study|science|act|ratio|amount))\b"
    r"|(?P<means>refers? to|is defined as|are defined as|is known as|are known as)\s)",
    re.IGNORECASE,
)
# A subject with one of these is about the text itself, or about something said before.
_POINTING = re.compile(
    r"\b(?:it|its|this|that|these|those|there|here|he|she|they|we|i|you|his|her|their|our|my|your|one|ones|who|which|"
    r"what|when|where|how|why|such|same|other|another|former|latter|above|following|if|as|because|since|while|"
    r"although|but|and|or|not|paper|study|article|author|authors|report|section|chapter|figure|table|example|"
    r"result|results|aim|purpose|objective|goal|method|problem|question|reason|first|second|third|each|both|"
    r"all|some|many|most|several|no|none|is|are|was|were|be|been|has|have|had)\b",
    re.IGNORECASE,
)
# Not the beginning of a subject: "in contrast to a gas", "underlying the method", "thus a wall".
_NO_SUBJECT = re.compile(
    r"(?:in|at|on|of|for|to|by|with|from|under|underlying|during|after|before|between|among|thus|hence|however|"
    r"therefore|also|then|now|furthermore|moreover|finally|again|so|only|even|given|included|associated)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)


def question_of(sentence: str) -> str | None:
    """Return the question that a definition answers; None for any other sentence.

    Example:
        >>> question_of("A boundary layer is a thin region of fluid near a wall.")
        'what is a boundary layer'
        >>> question_of("This is a thin region.") is None
        True
    """
    match = _DEFINITION.match(sentence.strip())
    if match is None:
        return None
    subject = " ".join(match["subject"].split())
    words = subject.split()
    if len(words) > _MOST_SUBJECT_WORDS or _POINTING.search(subject) or _NO_SUBJECT.match(subject):
        return None
    if not any(character.isalpha() for character in _ARTICLE.sub("", subject)):
        return None
    if _ARTICLE.match(subject):
        subject = subject[0].lower() + subject[1:]
    if match["means"]:
        verb = match["means"].split()[0].lower()
        if verb in ("refer", "refers"):
            return f"what does {subject} mean" if verb != "refer" else f"what do {subject} mean"
    else:
        verb = match["verb"].lower()
    return f"what {verb} {subject}"
