"""`crossrank rerank` orders texts for a query; `crossrank score` scores pairs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from crossrank.abstention import probable_ranking
from crossrank.cli.inputs import (
    STDIN,
    RerankRequest,
    at_place,
    name_of,
    read_documents,
    read_pairs,
    read_requests,
)
from crossrank.cli.llm import (
    BaseURLOption,
    LLMBudgetOption,
    LLMCostOption,
    LLMModelOption,
    LLMOption,
    LLMPricesOption,
    LLMTemplateOption,
    Template,
    chosen_llm,
    open_llm,
)
from crossrank.cli.loading import (
    DEFAULT_RERANKER,
    Backend,
    BackendOption,
    DeviceOption,
    ExitLayerOption,
    JsonOption,
    LabelOption,
    LongDocuments,
    LongDocumentsOption,
    LongQuery,
    LongQueryOption,
    MarginOption,
    MinProbabilityOption,
    Precision,
    PrecisionOption,
    RerankerOption,
    RevisionOption,
    ThenOption,
    ThreadsOption,
    Where,
    depth_up_to,
    open_next,
    open_reranker,
)
from crossrank.cli.output import (
    console,
    emit_json,
    emit_text,
    messages,
    print_ranking,
)
from crossrank.cli.usage import refuse
from crossrank.errors import InputError, QueryTooLongError
from crossrank.types import Document, Pair, Ranking

if TYPE_CHECKING:
    from crossrank.depths import Depth
    from crossrank.models.cross_encoder import CrossEncoder
    from crossrank.models.reranker import Reranker

__all__ = ["rerank", "score"]

Row = TypeVar("Row")

REQUESTS_AT_ONCE = 64
"""Requests whose pairs share batches."""
PAIRS_AT_ONCE = 4096


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Cut a stream into lists of at most `size` rows."""
    stream = iter(rows)
    while chunk := list(islice(stream, size)):
        yield chunk


def rerank(
    ctx: typer.Context,
    query: Annotated[str | None, typer.Argument(help="Leave it out to read JSON requests.")] = None,
    documents: Annotated[list[str] | None, typer.Argument(help="Texts; none: lines of --input.")] = None,
    *,
    input: Annotated[  # the option's name
        Path, typer.Option("--input", "-i", help="Read from this file instead of standard input.")
    ] = STDIN,
    reranker: RerankerOption = DEFAULT_RERANKER,
    then: ThenOption = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", min=1, help="How many to keep.")] = None,
    min_probability: MinProbabilityOption = None,
    label: LabelOption = None,
    exit_layer: ExitLayerOption = None,
    finish: Annotated[
        int | None,
        typer.Option(min=1, help="With --exit-layer: how many of the best go on to the last layer."),
    ] = None,
    margin: MarginOption = None,
    long_query: LongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    llm: LLMOption = None,
    llm_model: LLMModelOption = None,
    base_url: BaseURLOption = None,
    llm_template: LLMTemplateOption = Template.yes_no,
    llm_budget: LLMBudgetOption = None,
    llm_prices: LLMPricesOption = None,
    llm_max_cost: LLMCostOption = None,
    json: JsonOption = False,
) -> None:
    """Put the texts that answer a query best on top.

    Without a query, each line of input is a request: `{"query": ..., "documents": [...]}`, a document a text
    or `{"text": ..., "title": ..., "id": ...}`.

    Example: `crossrank rerank "who wrote Hamlet" "A hamlet is a village." "Hamlet is by Shakespeare."`

    Example: `crossrank rerank -r crossrank-tiny --then crossrank-mini:15 "who wrote Hamlet" < passages.txt`

    Example: `crossrank rerank --llm listwise --llm-model qwen3-8b --base-url http://localhost:8000/v1
    "who wrote Hamlet" < passages.txt`
    """
    if query is not None and not query.strip():
        raise typer.BadParameter("the query is empty")
    language_model = chosen_llm(
        ctx,
        llm=llm,
        llm_model=llm_model,
        base_url=base_url,
        llm_template=llm_template,
        llm_budget=llm_budget,
        llm_prices=llm_prices,
        llm_max_cost=llm_max_cost,
        revision=revision,
    )
    if documents:
        refuse(ctx, "input", because="the documents are given after the query")
    elif input == STDIN and sys.stdin.isatty():
        raise typer.BadParameter("give a query and documents, or lines on standard input")
    if exit_layer is None:
        refuse(ctx, "finish", because="all documents go through all layers (--exit-layer)")
    if not then and finish is None:
        refuse(ctx, "margin", because="nothing goes on to another stage (--then, --finish)")
    requests: Iterable[RerankRequest]
    if query is None:
        requests = read_requests(input)
    elif documents:
        given = [Document(str(position), text) for position, text in enumerate(documents)]
        requests = [RerankRequest(query, given)]
    else:
        requests = [RerankRequest(query, list(read_documents(input, unique=True)))]

    opened: AbstractContextManager[Reranker] = (
        open_llm(language_model)
        if language_model is not None
        else nullcontext(
            open_reranker(
                reranker,
                precision=precision,
                threads=threads,
                revision=revision,
                label=label,
                exit_layer=exit_layer if finish is None else None,
                long_query=long_query,
                long_documents=long_documents,
                where=_in_parts(backend, device) if finish is not None else Where(backend, device),
            )
        )
    )
    with opened as model:
        if exit_layer is not None and finish is not None:
            model = _finishing(model, exit_layer, depth_up_to(finish, margin))  # noqa: PLW2901
        later = open_next(
            then,
            margin=margin,
            precision=precision,
            threads=threads,
            long_query=long_query,
            long_documents=long_documents,
            where=Where(backend, device),
        )
        if later:
            from crossrank.composition.cascade import Cascade

            model = Cascade(model, later, name=f"{model.name}, then {', '.join(then or ())}")  # noqa: PLW2901
        if min_probability is not None and getattr(model, "calibration", None) is None:
            why = getattr(model, "why_uncalibrated", f"{model.name} has none")
            raise InputError(f"--min-probability needs probabilities, and {why}")
        depth = top_k if min_probability is None else None  # so that what is left out is counted among all
        for chunk in chunks(requests, REQUESTS_AT_ONCE):
            try:
                rankings = model.rank_many(
                    [request.query for request in chunk], [request.documents for request in chunk], depth
                )
            except QueryTooLongError:
                _name_long_query(model, chunk, input)
                raise
            for request, ranking in zip(chunk, rankings, strict=True):
                if min_probability is not None:
                    ranking = probable_ranking(ranking, min_probability, top_k)  # noqa: PLW2901
                _print(replace(ranking, query_id=request.query_id), as_json=json)


def _in_parts(backend: Backend, device: str | None) -> Where:
    """Where a model that is run layer by layer runs: by ONNX Runtime, also where there is a GPU."""
    return Where(Backend.onnx if backend is Backend.auto and device is None else backend, device)


def _finishing(model: Reranker, exit_layer: int, finish: Depth) -> Reranker:
    """The model with an early exit, from which the best go on to its last layer."""
    from crossrank.composition.early_exit import EarlyExit
    from crossrank.models.cross_encoder import CrossEncoder

    if not isinstance(model, CrossEncoder):
        raise InputError(f"{model.name} is a {type(model).__name__}, which has no layers to leave early")
    return EarlyExit(model, exit_layer, [(model.num_layers, finish)])


def _name_long_query(model: Reranker, requests: list[RerankRequest], path: Path) -> None:
    """Raise the error of the first query that is too long, with its line where it has one."""
    for request in requests:
        with at_place(f"{name_of(path)}:{request.line}") if request.line is not None else nullcontext():
            model.rank(request.query, [])


def _print(ranking: Ranking, *, as_json: bool) -> None:
    if not as_json:
        console().print(ranking.query, style="bold", markup=False)
    print_ranking(ranking, as_json=as_json, otherwise="nothing to rank")


def score(
    input: Annotated[  # the argument's name
        Path, typer.Argument(help="Pairs: TSV or JSON lines; '-' is standard input.")
    ] = STDIN,
    *,
    reranker: RerankerOption = DEFAULT_RERANKER,
    activate: Annotated[
        bool, typer.Option("--activate", help="Apply the activation the model states to the raw logits.")
    ] = False,
    exit_layer: ExitLayerOption = None,
    long_query: LongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    r"""Score pairs of query and document, in the order they come.

    A line is `query<TAB>document`, `["query", "document"]` or `{"query": ..., "document": ...}`. Prints one
    score a line; several, with tabs between, for a model with several labels.

    Example: `printf 'who wrote Hamlet\tHamlet is by Shakespeare.\n' | crossrank score`
    """
    if input == STDIN and sys.stdin.isatty():
        raise typer.BadParameter("give a file of pairs, or pairs on standard input")
    model = open_reranker(
        reranker,
        precision=precision,
        threads=threads,
        revision=revision,
        exit_layer=exit_layer,
        long_query=long_query,
        long_documents=long_documents,
        scores_pairs=True,
        where=Where(backend, device),
    )
    if activate and model.activation == "identity":
        messages().print(f"{model.name} states no activation: these are its raw logits", markup=False)
    for rows in chunks(read_pairs(input), PAIRS_AT_ONCE):
        pairs = [pair for _, pair in rows]
        try:
            values = model.score(pairs)
        except QueryTooLongError:
            _name_long_pair(model, rows, input)
            raise
        if activate:
            values = model.activate(values)
        for pair, value in zip(pairs, values.tolist(), strict=True):
            if json:
                labelled = dict(zip(model.labels, value, strict=True)) if isinstance(value, list) else value
                emit_json({"query": pair.query, "document": pair.document, "score": labelled})
            else:
                columns = value if isinstance(value, list) else [value]
                emit_text("\t".join(f"{column:.6f}" for column in columns))


def _name_long_pair(model: CrossEncoder, rows: list[tuple[int, Pair]], path: Path) -> None:
    """Raise the error of the first pair whose query is too long, with its line."""
    for line, pair in rows:
        with at_place(f"{name_of(path)}:{line}"):
            model.score([Pair(pair.query, "")])
