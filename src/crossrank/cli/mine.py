"""`crossrank mine`: a judged collection to negatives to train with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crossrank.cli.inputs import STDIN
from crossrank.cli.loading import (
    DEFAULT_BI_ENCODER,
    Backend,
    BackendOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    LongDocuments,
    LongDocumentsOption,
    LongQuery,
    LongQueryOption,
    Precision,
    ThreadsOption,
    Where,
    open_bi_encoder,
    open_index,
    open_reranker,
)
from crossrank.cli.mining_report import print_report
from crossrank.cli.output import emit_json, resumable
from crossrank.cli.usage import refuse
from crossrank.cli.wording import in_options
from crossrank.errors import InputError

if TYPE_CHECKING:
    from crossrank.models.bi_encoder import BiEncoder
    from crossrank.retrieval.retriever import Retriever
    from crossrank.store.lance import Index
    from crossrank.training.sources import Source
    from crossrank.types import Document

__all__ = ["in_memory", "mine"]

_RETRIEVERS: tuple[Literal["bm25", "dense", "hybrid"], ...] = ("bm25", "dense", "hybrid")
_RANDOM = "random"


class SamplingName(str, Enum):
    """In which order the hits of the window are tried."""

    top = "top"
    random = "random"
    spread = "spread"


_SOURCE = re.compile(
    r"(?P<from>.+?):(?P<count>\d+)(:(?P<first>\d+)-(?P<last>\d+)"
    rf"(:(?P<order>{'|'.join(each.value for each in SamplingName)}))?)?"
)


class PositiveScoreName(str, Enum):
    """Which of several positives' scores margins are measured from."""

    min = "min"
    max = "max"
    mean = "mean"


class FormName(str, Enum):
    """What a row of the file is."""

    lists = "lists"
    pairs = "pairs"
    triplets = "triplets"


@dataclass(frozen=True)
class _Stated:
    """A source as `--source` states it: a name above or a run file, a count, and what of a window."""

    first_stage: str
    count: int
    window: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_vectors(self) -> bool:
        return self.first_stage in ("dense", "hybrid")

    @property
    def is_run(self) -> bool:
        return self.first_stage not in (*_RETRIEVERS, _RANDOM)


def mine(
    ctx: typer.Context,
    collection: Annotated[Path, typer.Argument(help="BEIR folder with corpus, queries and judgements.")],
    *,
    to: Annotated[Path, typer.Option("--to", help="The file to write: .jsonl or .parquet.")],
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="FROM:COUNT, negatives a query; FROM is bm25, dense, hybrid, random, or a TREC run file. "
            "FROM:COUNT:11-50 looks at these ranks alone, FROM:COUNT:11-50:random tries them in that order. "
            "Repeatable; default bm25:4."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which judgements of the collection.")] = "train",
    index: Annotated[
        Path | None, typer.Option(help="Search this index of the corpus instead of loading it into memory.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"Bi-encoder of dense and hybrid; default {DEFAULT_BI_ENCODER}, or the index's own.",
        ),
    ] = None,
    model_revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch of a bi-encoder from the hub.")
    ] = None,
    skip_top: Annotated[
        int, typer.Option(min=0, help="First hits that are passed over, where --source states no ranks.")
    ] = 0,
    depth: Annotated[
        int, typer.Option("--depth", "-d", min=1, help="The last rank looked at, where --source states none.")
    ] = 100,
    sampling: Annotated[
        SamplingName, typer.Option(help="Which hits of the window are tried first, likewise.")
    ] = SamplingName.top,
    teacher: Annotated[
        str | None, typer.Option(help="Reranker that scores candidates: built-in, a folder, a hub name.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Refuse candidates that score less.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Refuse candidates that score more.")] = None,
    absolute_margin: Annotated[
        float | None, typer.Option(min=0, help="Refuse candidates less than this below the positive.")
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option(min=0, help="As a share of the positive's score: 0.05 is 5 %.")
    ] = None,
    positive_score: Annotated[
        PositiveScoreName, typer.Option(help="Of several positives: whose score counts.")
    ] = PositiveScoreName.min,
    keep_suspects: Annotated[
        bool, typer.Option("--keep-suspects", help="Keep what the teacher scores as high as the positive.")
    ] = False,
    suspect_from: Annotated[
        float | None,
        typer.Option(
            help="What the teacher scores below this is not refused for being as high as the positive; "
            "margins refuse it all the same."
        ),
    ] = None,
    near_duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Refuse texts that are this much the same; 0 refuses none.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    relevance_level: Annotated[int, typer.Option(min=1, help="The lowest grade that is positive.")] = 1,
    form: Annotated[FormName, typer.Option(help="A row a query, a document, or a triplet.")] = FormName.lists,
    ids_only: Annotated[bool, typer.Option("--ids-only", help="Leave texts out of the file.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the file, and forget an interrupted run.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch of a teacher from the hub.")
    ] = None,
    label: LabelOption = None,
    long_query: LongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: Annotated[Precision, typer.Option(help="The teacher's.")] = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Find hard negatives for judged queries: documents that look relevant and are not judged so.

    Giving the command again resumes an interrupted one. Same seed, same file.

    Example: `crossrank mine data/sample --split test --to negatives.jsonl`

    Example: `crossrank mine my-data --to n.parquet --source dense:4 --source bm25:2 --source random:1`
    """
    from crossrank.evaluation.collections import Collection
    from crossrank.retrieval.from_index import index_retriever
    from crossrank.training.corpus import as_corpus
    from crossrank.training.journal import check_free
    from crossrank.training.negative_files import check_output
    from crossrank.training.negatives import Filters, check_scored
    from crossrank.training.negatives import mine as mine_negatives

    if to == STDIN:
        raise typer.BadParameter("--to -: negatives cannot go to standard output; name a file")
    stated = [_parsed(text) for text in source or ["bm25:4"]]
    if teacher is None:
        refuse(
            ctx,
            *("keep_suspects", "suspect_from", "revision", "label", "long_query", "long_documents"),
            "precision",
            because="there is no teacher (--teacher)",
        )
        if absolute_margin is None and relative_margin is None:
            refuse(ctx, "positive_score", because="there is neither a margin nor a teacher")
    if not any(each.needs_vectors for each in stated):
        refuse(ctx, "model", "model_revision", because="no source is dense or hybrid")
    ranked = [each for each in stated if each.first_stage != _RANDOM]
    if not ranked:
        refuse(ctx, "skip_top", "sampling", because="random documents have no rank")
    if all(each.window for each in ranked):
        # of a random source the depth is how many are drawn to choose from
        refuse(ctx, "skip_top", *(["depth"] * (ranked == stated)), because="every --source states its ranks")
    if all("sampling" in each.window for each in ranked):
        refuse(ctx, "sampling", because="every --source states its order")
    if skip_top >= depth:
        raise typer.BadParameter(f"--skip-top {skip_top} leaves nothing of --depth {depth}")
    check_output(to, form.value)
    check_free(to, overwrite=replace)
    filters = Filters(
        min_score=min_score,
        max_score=max_score,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        positive_score=positive_score.value,
        false_negatives="keep" if keep_suspects else "drop",
        suspect_from=suspect_from,
        near_duplicates=near_duplicates or None,
    )
    if teacher is None:
        try:
            check_scored(filters, [each.first_stage for each in ranked])
        except InputError as error:
            raise typer.BadParameter(in_options(str(error))) from None
    judged = Collection.open(collection)
    qrels = judged.qrels(split)
    queries = judged.queries(split)
    window = {"skip_top": skip_top, "depth": depth, "sampling": sampling.value}
    names = {each.first_stage for each in stated}
    where = Where(backend, device)
    with ExitStack() as opened:
        retrievers: Mapping[str, Retriever]
        documents: list[Document] | Index
        if index is None:
            documents = list(judged.documents())
            retrievers = in_memory(
                names,
                documents,
                lambda: open_bi_encoder(
                    model or DEFAULT_BI_ENCODER, threads=threads, revision=model_revision, where=where
                ),
            )
        else:
            with_vectors = any(each.needs_vectors for each in stated)
            documents = opened.enter_context(
                open_index(
                    index,
                    model=model,
                    with_vectors=with_vectors,
                    threads=threads,
                    revision=model_revision,
                    where=where,
                )
            )
            retrievers = {name: index_retriever(documents, name) for name in _RETRIEVERS if name in names}
        sources = [_source(each, retrievers, queries, window) for each in stated]
        scorer = None
        if teacher is not None:
            scorer = open_reranker(
                teacher,
                precision=precision,
                threads=threads,
                revision=revision,
                label=label,
                long_query=long_query,
                long_documents=long_documents,
                scores_pairs=True,
                where=where,
            )
        with resumable(replace=replace):
            report = mine_negatives(
                queries,
                qrels,
                documents,
                sources,
                to,
                filters=filters,
                teacher=scorer,
                seed=seed,
                relevance_level=relevance_level,
                form=form.value,
                texts=not ids_only,
                overwrite=replace,
            )
        if json:
            emit_json(report)
        else:
            print_report(report, queries, as_corpus(documents))


def _parsed(text: str) -> _Stated:
    forms = "FROM:COUNT, FROM:COUNT:FIRST-LAST or FROM:COUNT:FIRST-LAST:ORDER"
    found = _SOURCE.fullmatch(text)
    count = int(found["count"]) if found else 0
    if not found or count < 1:
        raise typer.BadParameter(
            f"--source {text}: give {forms}, such as bm25:4 or bm25:4:11-50:random, with FROM one of "
            f"{', '.join((*_RETRIEVERS, _RANDOM))}, or a TREC run file"
        )
    window: dict[str, Any] = {}
    if found["last"]:
        first, last = int(found["first"]), int(found["last"])
        if not 1 <= first <= last:
            raise typer.BadParameter(f"--source {text}: ranks {first} to {last} are no window; the best is 1")
        window = {"skip_top": first - 1, "depth": last}
    if found["order"]:
        window["sampling"] = found["order"]
    stated = _Stated(found["from"], count, window)
    if stated.first_stage == _RANDOM and window:
        raise typer.BadParameter(f"--source {text}: random documents have no rank; give random:{count}")
    if stated.is_run and not Path(stated.first_stage).is_file():
        raise typer.BadParameter(
            f"--source {text}: {stated.first_stage!r} is none of {', '.join((*_RETRIEVERS, _RANDOM))}, and "
            "there is no such run file"
        )
    return stated


def in_memory(
    names: set[str], documents: list[Document], open_encoder: Callable[[], BiEncoder]
) -> dict[str, Retriever]:
    """Return the retrievers that are asked for, and those a hybrid is made of, over documents in memory."""
    from crossrank.retrieval.bm25 import BM25
    from crossrank.retrieval.dense import Dense
    from crossrank.retrieval.hybrid import Hybrid

    found: dict[str, Retriever] = {}
    if names & {"bm25", "hybrid"}:
        found["bm25"] = BM25(documents)
    if names & {"dense", "hybrid"}:
        found["dense"] = Dense(documents, open_encoder())
    if "hybrid" in names:
        found["hybrid"] = Hybrid([found["bm25"], found["dense"]])
    return found


def _source(
    stated: _Stated,
    retrievers: Mapping[str, Retriever],
    queries: Mapping[str, str],
    window: Mapping[str, Any],
) -> Source:
    from crossrank.evaluation.trec import read_run
    from crossrank.training.negatives import Source

    name, window = stated.first_stage, {**window, **stated.window}
    if name == _RANDOM:
        return Source("random", stated.count, depth=window["depth"])
    ranks = f" {window['skip_top'] + 1}-{window['depth']}" if stated.window else ""  # a stage may come twice
    if stated.is_run:
        return Source(read_run(name, queries), stated.count, name=Path(name).stem + ranks, **window)
    return Source(retrievers[name], stated.count, name=name + ranks, **window)
