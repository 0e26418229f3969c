"""`crossrank adapt`: a corpus and nothing else to models that know it."""

from __future__ import annotations

import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from crossrank.cli.loading import DEFAULT_BI_ENCODER, DEFAULT_RERANKER, JsonOption, ThreadsOption
from crossrank.cli.output import console, emit_json, messages, resumable
from crossrank.cli.train import quieten, shown
from crossrank.cli.usage import refuse

if TYPE_CHECKING:
    from crossrank.training.adapt.generated import Generator

__all__ = ["adapt"]


def adapt(
    ctx: typer.Context,
    corpus: Annotated[
        Path, typer.Argument(help="Documents: a file or folder that `crossrank index` reads, too.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the models and the report.")],
    reranker: Annotated[
        str,
        typer.Option("--reranker", "-r", help="The reranker to start from: built-in, a folder, a hub name."),
    ] = DEFAULT_RERANKER,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The bi-encoder to start from.")
    ] = DEFAULT_BI_ENCODER,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Updates of each model; default 150, where no budget is given.")
    ] = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Minutes for the whole command: making and filtering queries, encoding, mining, training, "
            "int8 forms, measuring (on --judged, too). What comes before the trainings is timed, what comes "
            "after is reckoned, and they get the rest, at least 10 steps each: a corpus too large for the "
            "budget takes longer, and the report says how long.",
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Where queries come from: title, heading, sentence, keywords, question, generated. "
            "Repeatable; default all."
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="Queries that your own generator made: JSON lines of document_id and query."),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Or your generator itself: a Python function that takes a list of texts and gives a list of "
            "queries for each, such as one around a seq2seq or large language model. Modules of this folder "
            "are found.",
        ),
    ] = None,
    per_document: Annotated[int, typer.Option(min=1, help="Queries made of a document.")] = 2,
    max_queries: Annotated[int, typer.Option(min=1, help="Queries of all documents.")] = 3000,
    round_trip_top: Annotated[
        int, typer.Option(min=1, help="Drop a query whose document is not among so many first hits.")
    ] = 20,
    judged: Annotated[
        Path | None,
        typer.Option(help="BEIR folder with judgements to measure on, too; they decide nothing."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which judgements of it.")] = "test",
    depth: Annotated[int, typer.Option("--depth", "-d", min=1, help="Candidates that are reranked.")] = 50,
    language: Annotated[str, typer.Option(help="Of the documents; none for no stemming.")] = "english",
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 13,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what is in the folder, and forget an interrupted run.")
    ] = False,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Fit bi-encoder and reranker to a corpus, without judgements, and say whether it was worth it.

    Makes queries of the documents, trains with some and measures with others. A new model is kept only where
    it is significantly better; report.md has what was gained and lost. Giving the command again resumes an
    interrupted one.

    Example: `crossrank adapt docs/ --output adapted --budget-minutes 30`

    Example: `crossrank adapt corpus.jsonl -o adapted --steps 300 --judged my-collection`
    """
    from crossrank.errors import require

    for module in ("torch", "sentence_transformers", "accelerate", "datasets", "matplotlib"):
        require(module, "train")
    if steps is not None and budget_minutes is not None:
        raise typer.BadParameter("give one of --steps and --budget-minutes")
    if queries is not None and generator is not None:
        raise typer.BadParameter("give one of --queries and --generator")
    if judged is None:
        refuse(ctx, "split", because="there are no judgements (--judged)")
    own = None if generator is None else _imported(generator)
    quieten()
    from crossrank.store.readers import DocumentReader
    from crossrank.training.adapt.adaptation import adapt as adapt_models
    from crossrank.training.adapt.generated import read_generated
    from crossrank.training.adapt.report import verdict
    from crossrank.training.adapt.settings import AdaptationSettings

    defaults = AdaptationSettings()
    settings = AdaptationSettings(
        reranker=reranker,
        bi_encoder=model,
        sources=tuple(source) if source else defaults.sources,
        per_document=per_document,
        max_queries=max_queries,
        round_trip_top=round_trip_top,
        language=None if language == "none" else language,
        depth=depth,
        steps=steps if steps is not None or budget_minutes is not None else defaults.steps,
        budget_minutes=budget_minutes,
        seed=seed,
    )
    with resumable(replace=replace):
        result = adapt_models(
            list(DocumentReader(corpus)),
            output,
            settings,
            generator=own,
            generated=None if queries is None else read_generated(queries),
            judged=None if judged is None else (judged, split),
            overwrite=replace,
            threads=threads,
            on_stage=lambda words: messages().print(words, markup=False),
            on_training=lambda: shown(settings.measure),
        )
    if json:
        emit_json(result)
        return
    for line in verdict(result.as_dict()):
        console().print(line.replace("**", ""), markup=False)
    messages().print(
        f"search with --model {result.bi_encoder} and --reranker {result.reranker}; figures: {result.report}",
        markup=False,
    )


def _imported(name: str) -> Generator:
    """The function that MODULE:FUNCTION names."""
    sys.path.insert(0, str(Path.cwd()))  # a command's path begins with the folder it is installed in
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise typer.BadParameter(f"--generator {name}: {error}") from error
    if ":" not in name or not callable(found):
        raise typer.BadParameter(f"--generator {name} must name a function, as MODULE:FUNCTION")
    return cast("Generator", found)
