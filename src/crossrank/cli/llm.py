"""Options that name a reranker made of a large language model, and the reranker they give."""

from __future__ import annotations

import math
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
    "LLMCostOption",
    "LLMModelOption",
    "LLMOption",
    "LLMPricesOption",
    "LLMTemplateOption",
    "Method",
    "Template",
    "chosen_llm",
    "open_llm",
]

_PANEL = "Rerankers made of a large language model"
_OF_OTHER_RERANKERS = (
    "reranker",
    "then",
    "label",
    "exit_layer",
    "finish",
    "margin",
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
LLMPricesOption = Annotated[
    str | None,
    typer.Option(
        metavar="READ,WRITTEN",
        help="What --base-url asks for a million tokens read and written, such as 0.15,0.60: what was used "
        "is told in money, too.",
        rich_help_panel=_PANEL,
    ),
]
LLMCostOption = Annotated[
    float | None,
    typer.Option(
        "--llm-max-cost",
        min=0,
        help="Most money that --base-url may be asked for, by --llm-prices: no call is made that could go "
        "over it.",
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
    prices: tuple[float, float] | None
    max_cost: float | None
    revision: str | None


def chosen_llm(
    ctx: typer.Context,
    *,
    llm: Method | None,
    llm_model: str | None,
    base_url: str | None,
    llm_template: Template,
    llm_budget: int | None,
    llm_prices: str | None,
    llm_max_cost: float | None,
    revision: str | None,
) -> LLMChoice | None:
    """Return what the options say, None without --llm; end the command where one would do nothing."""
    of_servers = ("llm_budget", "llm_prices", "llm_max_cost")
    if llm is None:
        refuse(ctx, "llm_model", "base_url", "llm_template", *of_servers, because="there is no --llm")
        return None
    if llm_model is None:
        raise typer.BadParameter("--llm needs a model: name it with --llm-model")
    refuse(ctx, *_OF_OTHER_RERANKERS, because="--llm is the reranker")
    if llm is not Method.pointwise:
        refuse(ctx, "llm_template", because="only --llm pointwise has templates")
    if base_url is None:
        refuse(ctx, *of_servers, because="a model on this machine costs nothing (--base-url)")
    else:
        refuse(ctx, "revision", because="the server has one version of its model (--base-url)")
        if llm is Method.query_likelihood:
            raise typer.BadParameter(
                "--llm query-likelihood needs a model on this machine, without --base-url"
            )
        if llm_template is not Template.yes_no:
            raise typer.BadParameter(f"--llm-template {llm_template.value} needs a model on this machine")
    if llm_max_cost is not None and llm_prices is None:
        raise typer.BadParameter("--llm-max-cost needs prices to count with: --llm-prices")
    prices = None if llm_prices is None else _prices(llm_prices)
    return LLMChoice(llm, llm_model, base_url, llm_template, llm_budget, prices, llm_max_cost, revision)


def _prices(text: str) -> tuple[float, float]:
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError:
        read = written = -1.0
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise typer.BadParameter(f"--llm-prices must be two prices, such as 0.15,0.60, not {text!r}")
    return read, written


@contextmanager
def open_llm(choice: LLMChoice) -> Iterator[Reranker]:
    """Open the reranker; at the end, say on standard error what its model was asked for, and close it."""
    from crossrank.models.llm import CausalLM, Endpoint, Prices

    if choice.base_url is None:
        local = CausalLM(choice.model, revision=choice.revision)
        yield _reranker(choice, local)
        return
    with Endpoint(
        choice.model,
        base_url=choice.base_url,
        prices=None if choice.prices is None else Prices(*choice.prices),
        max_total_tokens=choice.budget,
        max_cost=choice.max_cost,
    ) as endpoint:
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
