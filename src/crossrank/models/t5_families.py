"""How published T5 rerankers were trained to answer: the prompt and the tokens, by family and by full name.

Sources: Nogueira et al. 2020 (arXiv:2003.06713); Bonifacio et al. 2021 (mMARCO, arXiv:2108.13897); Piau et
al. 2024 (monoPTT5, arXiv:2406.10806); Pradeep et al. 2021 (duoT5, arXiv:2101.05667); Zhuang et al. 2023
(RankT5, arXiv:2210.10634).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["DUO_PROMPT", "FAMILIES", "MONO_PROMPT", "PUBLISHED", "RANK_PROMPT", "RANK_TOKENS", "Family"]

MONO_PROMPT = "Query: {query} Document: {document} Relevant:"
DUO_PROMPT = "Query: {query} Document0: {document0} Document1: {document1} Relevant:"
RANK_PROMPT = "Query: {query} Document: {document}"
RANK_TOKENS = ("<extra_id_10>", "▁<extra_id_10>")
"""The token whose logit is RankT5's score, as T5's vocabulary spells it, and as mT5's does."""


class Family(NamedTuple):
    """How models of a family say no and yes.

    Attributes:
        tokens: (false, true), as the vocabulary spells them.
        prompt: of MonoT5; None is `MONO_PROMPT`.
    """

    tokens: tuple[str, str]
    prompt: str | None = None


FAMILIES: Mapping[str, Family] = {
    "t5": Family(("▁false", "▁true")),  # Flan-T5 and T5 v1.1, too
    "mt5": Family(("▁no", "▁yes")),
    "mt5-true": Family(("▁", "▁true")),
    "ptt5": Family(("▁não", "▁sim")),
    "monoptt5": Family(("▁Não", "▁Sim"), "Pergunta: {query} Documento: {document} Relevante:"),
}
"""Families by name. A checkpoint that says nothing is read as the one named like its model type."""

_CASTORINI = (
    *("monot5-small-msmarco-10k", "monot5-small-msmarco-100k", "monot5-base-msmarco"),
    *("monot5-base-msmarco-10k", "monot5-large-msmarco", "monot5-large-msmarco-10k"),
    *("monot5-base-med-msmarco", "monot5-3b-med-msmarco", "monot5-3b-msmarco", "monot5-3b-msmarco-10k"),
)
_UNICAMP = {
    "t5": ("InRanker-small", "InRanker-base", "InRanker-3B"),
    "mt5": (
        *("mt5-base-en-msmarco", "mt5-base-en-pt-msmarco-v1", "mt5-base-en-pt-msmarco-v2"),
        *("mt5-base-mmarco-v1", "mt5-base-mmarco-v2"),
    ),
    "mt5-true": ("mt5-3B-mmarco-en-pt", "mt5-13b-mmarco-100k"),
    "ptt5": (
        *("ptt5-base-pt-msmarco-10k-v1", "ptt5-base-pt-msmarco-10k-v2", "ptt5-base-pt-msmarco-100k-v1"),
        *("ptt5-base-pt-msmarco-100k-v2", "ptt5-base-en-pt-msmarco-10k-v1"),
        "ptt5-base-en-pt-msmarco-100k-v2",
    ),
    "monoptt5": ("monoptt5-small", "monoptt5-base", "monoptt5-large", "monoptt5-3b"),
}

PUBLISHED: Mapping[str, tuple[str, str]] = {
    **{f"castorini/{name}": ("mono_t5", "t5") for name in _CASTORINI},
    **{f"unicamp-dl/{name}": ("mono_t5", family) for family, names in _UNICAMP.items() for name in names},
    **{f"castorini/duot5-{size}-msmarco": ("duo_t5", "t5") for size in ("base", "3b")},
    **{f"castorini/duot5-{size}-msmarco-10k": ("duo_t5", "t5") for size in ("base", "3b")},
    **{f"Soyoung97/RankT5-{size}": ("rank_t5", "t5") for size in ("base", "large", "3b")},
}
"""Checkpoints on the hub that say nothing of themselves, by their full names: kind and family."""
