"""Rerankers that ask a large language model: pointwise, pairwise, listwise and setwise.

A model is an `Endpoint` (any server that speaks OpenAI's chat completions; extra `llm`) or a `CausalLM` (a
local model; extra `torch`). Each reranker takes either.
"""

from crossrank.models.llm.accounting import Prices
from crossrank.models.llm.endpoint import Endpoint
from crossrank.models.llm.listwise import ListwiseLLM
from crossrank.models.llm.local import CausalLM
from crossrank.models.llm.model import Answer, LanguageModel, Message, Prompt, Usage
from crossrank.models.llm.pairwise import PairwiseLLM
from crossrank.models.llm.pointwise import PointwiseLLM
from crossrank.models.llm.pointwise_templates import BGEGemma, Qwen3Reranker
from crossrank.models.llm.query_likelihood import QueryLikelihood
from crossrank.models.llm.setwise import SetwiseLLM

__all__ = [
    "Answer",
    "BGEGemma",
    "CausalLM",
    "Endpoint",
    "LanguageModel",
    "ListwiseLLM",
    "Message",
    "PairwiseLLM",
    "PointwiseLLM",
    "Prices",
    "Prompt",
    "QueryLikelihood",
    "Qwen3Reranker",
    "SetwiseLLM",
    "Usage",
]
