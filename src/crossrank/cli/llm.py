"""Options that name a reranker made of a large language model, and the reranker they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from crossrank.cli.output import messages
from crossrank.cli.usage import refuse

if TYPE_CHECKING:
    from crossrank.models.llm import LanguageModel
    from crossrank.models.reranker import Reranker

__all__ = [
    "BaseURLOption",
    "LLMBudgetOption",
    "LLMChoice",
    "LLMModelOption",
    "LLMOption",
    "LLMTemplateOption",
    "Method",
    "Template",
    "chosen_llm",
    "open_llm",
]

_PANEL = "Rerankers made of a large language model"
_OF_OTHER_RERANKERS = (
    "reranker",
    "label",
    "exit_layer",
    "finish",
    "long_query",
    "long_documents",
    "precision",
    "threads",
    "backend",
    "device",
)


class Method(str, Enum):
    """What a language model is asked."""

    pointwise = "pointwise"
    query_likelihood = "query-likelihood"
    pairwise = "pairwise"
    listwise = "listwise"
    setwise = "setwise"


class Template(str, Enum):
    """How a pointwise model is asked."""

    yes_no = "yes-no"
    qwen3_reranker = "qwen3-reranker"
    bge_reranker_v2_gemma = "bge-reranker-v2-gemma"


LLMOption = Annotated[
    Method | None,
    typer.Option(
        "--llm",
        help="Rerank by a language model (--llm-model): listwise orders 20 documents by one answer; setwise "
        "and pairwise sort out the best 10 by choices among 4 or 2; pointwise asks yes or no about each.",
        rich_help_panel=_PANEL,
    ),
]
LLMModelOption = Annotated[
    str | None,
    typer.Option(
        help="The model's name at --base-url; without that, a folder or hub name, opened by transformers.",
        rich_help_panel=_PANEL,
    ),
]
BaseURLOption = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server, such as http://localhost:8000/v1. Its key is read from the "
        "environment variable OPENAI_API_KEY, if it needs one.",
        rich_help_panel=_PANEL,
    ),
]
LLMTemplateOption = Annotated[
    Template,
    typer.Option(
        help="Of --llm pointwise: what a model was trained for; yes-no is for any chat model.",
        rich_help_panel=_PANEL,
    ),
]
LLMBudgetOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Most tokens that --base-url may be asked for: no call is made that could go over it.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class LLMChoice:
    """The language model that a command was told to use."""

    method: Method
    model: str
    base_url: str | None
    template: Template
    budget: int | None
    revision: str | None


def chosen_llm(
    ctx: typer.Context,
    *,
    llm: Method | None,
    llm_model: str | None,
    base_url: str | None,
    llm_template: Template,
    llm_budget: int | None,
    revision: str | None,
) -> LLMChoice | None:
    """Return what the options say, None without --llm; end the command where one would do nothing."""
    if llm is None:
        refuse(ctx, "llm_model", "base_url", "llm_template", "llm_budget", because="there is no --llm")
        return None
    if llm_model is None:
        raise typer.BadParameter("--llm needs a model: name it with --llm-model")
    refuse(ctx, *_OF_OTHER_RERANKERS, because="--llm is the reranker")
    if llm is not Method.pointwise:
        refuse(ctx, "llm_template", because="only --llm pointwise has templates")
    if base_url is None:
        refuse(ctx, "llm_budget", because="a model on this machine costs nothing (--base-url)")
    else:
        refuse(ctx, "revision", because="the server has one version of its model (--base-url)")
        if llm is Method.query_likelihood:
            raise typer.BadParameter(
                "--llm query-likelihood needs a model on this machine, without --base-url"
            )
        if llm_template is not Template.yes_no:
            raise typer.BadParameter(f"--llm-template {llm_template.value} needs a model on this machine")
    return LLMChoice(llm, llm_model, base_url, llm_template, llm_budget, revision)


@contextmanager
def open_llm(choice: LLMChoice) -> Iterator[Reranker]:
    """Open the reranker; at the end, say on standard error what its model was asked for, and close it."""
    from crossrank.models.llm import CausalLM, Endpoint

    if choice.base_url is None:
        local = CausalLM(choice.model, revision=choice.revision)
        yield _reranker(choice, local)
        return
    with Endpoint(choice.model, base_url=choice.base_url, max_total_tokens=choice.budget) as endpoint:
        try:
            yield _reranker(choice, endpoint)
        finally:
            messages().print(f"{endpoint.name}: {endpoint.usage}", markup=False, style="dim")


def _reranker(choice: LLMChoice, model: LanguageModel) -> Reranker:
    from crossrank.models.llm import (
        CausalLM,
        ListwiseLLM,
        PairwiseLLM,
        PointwiseLLM,
        QueryLikelihood,
        SetwiseLLM,
    )

    if choice.method is Method.pointwise:
        return PointwiseLLM(model, template=choice.template.value)
    if choice.method is Method.query_likelihood and isinstance(model, CausalLM):
        return QueryLikelihood(model)
    if choice.method is Method.pairwise:
        return PairwiseLLM(model)
    return ListwiseLLM(model) if choice.method is Method.listwise else SetwiseLLM(model)
