"""Options that say which model to use and how, and the models they give."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from crossrank.errors import InputError, UnknownOptionError
from crossrank.models.hub import DEFAULT_MODELS

if TYPE_CHECKING:
    from crossrank.depths import Depth
    from crossrank.models.bi_encoder import BiEncoder
    from crossrank.models.late_interaction import LateInteraction
    from crossrank.store.filters import Filter
    from crossrank.store.lance import Index

__all__ = [
    "DEFAULT_BI_ENCODER",
    "DEFAULT_RERANKER",
    "Backend",
    "BackendOption",
    "DeviceOption",
    "ExitLayerOption",
    "JsonOption",
    "LabelOption",
    "LongDocuments",
    "LongDocumentsOption",
    "LongQuery",
    "LongQueryOption",
    "MarginOption",
    "MinProbabilityOption",
    "Precision",
    "PrecisionOption",
    "RerankerOption",
    "RevisionOption",
    "ThenOption",
    "ThreadsOption",
    "Where",
    "depth_up_to",
    "open_bi_encoder",
    "open_index",
    "open_late_interaction",
    "open_next",
    "open_reranker",
]

DEFAULT_RERANKER = DEFAULT_MODELS["cross-encoder"]
DEFAULT_NEXT_DEPTH = 15  # after crossrank-tiny, crossrank-mini loses nothing by it: docs/less-work.md
DEFAULT_MOST = 100  # that a margin lets go on
MARGIN_FROM = 10  # the rank that a margin is measured from
DEFAULT_BI_ENCODER = DEFAULT_MODELS["bi-encoder"]


class Backend(str, Enum):
    """What runs a model: see `crossrank.runtime.backends`."""

    auto = "auto"
    onnx = "onnx"
    torch = "torch"


class Where(NamedTuple):
    """Where a command's models run: its --backend and --device."""

    backend: Backend = Backend.auto
    device: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As options of a model; kinds that cannot choose have neither."""
        chosen = {"backend": self.backend.value, "device": self.device}
        return {name: value for name, value in chosen.items() if value not in ("auto", None)}


class Precision(str, Enum):
    """How the numbers of a model are held."""

    auto = "auto"
    float32 = "float32"
    int8 = "int8"
    bf16 = "bf16"


class LongQuery(str, Enum):
    """What to do with a query longer than its share of the model's window."""

    error = "error"
    truncate = "truncate"


class LongDocuments(str, Enum):
    """What to do with a document longer than its share: see `crossrank.runtime.windows`."""

    truncate = "truncate"
    max = "max"
    first = "first"
    mean_top_k = "mean_top_k"


BackendOption = Annotated[
    Backend, typer.Option(help="onnx: on the CPU; torch: on GPUs; auto takes torch where it can use a GPU.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Of torch: cpu, cuda, cuda:1, mps; default: the first GPU, else the CPU.")
]
ExitLayerOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Score with the model's head after this layer, without the layers behind it; 0 compares words.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
LabelOption = Annotated[
    str | None, typer.Option(help="Of a reranker with several labels: the one to rank by.")
]
LongDocumentsOption = Annotated[
    LongDocuments, typer.Option(help="How the reranker reads long documents: their beginning, or windows.")
]
LongQueryOption = Annotated[
    LongQuery, typer.Option(help="What the reranker does with a query that is too long for it.")
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help=f"Let only those go on to the next reranker that score at most so much less than number "
        f"{MARGIN_FROM} does by the one before; DEPTH ({DEFAULT_MOST}, if none is given) is then the most.",
    ),
]
MinProbabilityOption = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Leave out hits of less calibrated probability, and say how many."),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        help="auto takes int8 where it has passed its parity gate, bf16 on a GPU, and before both what "
        "`crossrank tune` found."
    ),
]
RerankerOption = Annotated[
    str, typer.Option("--reranker", "-r", help="A built-in model, a folder, or a hub name.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Commit, tag or branch of a model from the hub.")]


def _next(given: str) -> tuple[str, int | None]:
    """Name and depth that a value of --then states; None where it states no depth."""
    name, colon, depth = given.rpartition(":")
    if not colon:
        return given, None
    if not name or not depth.isascii() or not depth.isdigit() or int(depth) < 1:
        raise typer.BadParameter(
            f"--then takes NAME or NAME:DEPTH, such as {DEFAULT_RERANKER}:15, not {given!r}"
        )
    return name, int(depth)


def _check_next(then: list[str] | None) -> list[str] | None:
    """Refuse a wrong --then before any model is opened."""
    for given in then or ():
        _next(given)
    return then


ThenOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:DEPTH]",
        callback=_check_next,
        help="A reranker for the best DEPTH (15, where none is given) of the one before it; may be given "
        "again for the next.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads for the model; default: the cores this process may use.")
]


def open_reranker(
    name: str,
    *,
    precision: Precision = Precision.auto,
    threads: int | None = None,
    revision: str | None = None,
    label: str | None = None,
    exit_layer: int | None = None,
    long_query: LongQuery = LongQuery.error,
    long_documents: LongDocuments = LongDocuments.truncate,
    scores_pairs: bool = False,
    where: Where = Where(),
) -> Any:
    """Open the reranker called `name`, as what its files say it is.

    Args:
        name: a built-in model, a folder, or a hub name.
        precision: see `PrecisionOption`.
        threads: see `ThreadsOption`.
        revision: see `RevisionOption`.
        label: see `LabelOption`.
        exit_layer: see `ExitLayerOption`.
        long_query: see `LongQueryOption`.
        long_documents: see `LongDocumentsOption`.
        scores_pairs: whether it must give each pair a score, and not only an order.
        where: see `BackendOption` and `DeviceOption`.
    """
    from crossrank.models.hub import resolve
    from crossrank.models.load import kind_of, load

    if kind_of(resolve(name, kind="cross-encoder", revision=revision), name) == "bi_encoder":
        raise InputError(f"{name} is a bi-encoder, which is for a first stage; give a reranker")
    options: dict[str, Any] = {"precision": precision.value, "threads": threads, **where.options}
    # Not every kind has these.
    if long_query is not LongQuery.error:
        options["long_query"] = long_query.value
    if label is not None:
        options["label"] = label
    if exit_layer is not None:
        options["exit_layer"] = exit_layer
    if long_documents is not LongDocuments.truncate:
        options["long_documents"] = long_documents.value
    try:
        model = load(name, revision=revision, **options)
    except UnknownOptionError as error:
        given = ", ".join(f"--{option.replace('_', '-')}" for option in error.options)
        raise typer.BadParameter(f"{given}: {name} is of a kind that has no such setting") from error
    if scores_pairs and not callable(getattr(model, "score", None)):
        raise InputError(
            f"{name} is a {type(model).__name__}, which does not score pairs: it compares documents"
        )
    return model


def open_next(
    then: Sequence[str] | None, *, margin: float | None = None, before: int | None = None, **options: Any
) -> list[tuple[Any, Depth]]:
    """Open the rerankers of `ThenOption`, each with its depth.

    Args:
        then: NAME or NAME:DEPTH each; None for none.
        margin: see `MarginOption`.
        before: how many documents the reranker before the first gets; None: all.
        options: of `open_reranker`.
    """
    opened: list[tuple[Any, Depth]] = []
    for name, stated in map(_next, then or ()):
        depth = stated or (DEFAULT_NEXT_DEPTH if margin is None else DEFAULT_MOST)
        if stated is None and before is not None:
            depth = min(depth, before)
        opened.append((open_reranker(name, **options), depth_up_to(depth, margin)))
        before = depth
    return opened


def depth_up_to(most: int, margin: float | None) -> Depth:
    """How many documents go on: `most`, or fewer by a margin; see `MarginOption`."""
    from crossrank.depths import Margin

    return most if margin is None else Margin(margin, top_k=min(MARGIN_FROM, most), most=most)


def open_late_interaction(
    name: str,
    *,
    precision: Precision = Precision.auto,
    threads: int | None = None,
    revision: str | None = None,
    long_query: LongQuery = LongQuery.error,
    where: Where = Where(),
) -> LateInteraction:
    """Open the late-interaction model called `name`; see `open_bi_encoder`."""
    from crossrank.models.late_interaction import LateInteraction

    return LateInteraction(
        name,
        precision=precision.value,
        threads=threads,
        revision=revision,
        long_query=long_query.value,
        **where.options,
    )


def open_bi_encoder(
    name: str,
    *,
    precision: Precision = Precision.auto,
    threads: int | None = None,
    revision: str | None = None,
    dimensions: int | None = None,
    where: Where = Where(),
) -> BiEncoder:
    """Open the bi-encoder called `name`.

    Args:
        name: a built-in model, a folder, or a hub name.
        precision: see `PrecisionOption`.
        threads: see `ThreadsOption`.
        revision: see `RevisionOption`.
        dimensions: how many to keep.
        where: see `BackendOption` and `DeviceOption`.
    """
    from crossrank.models.bi_encoder import BiEncoder

    return BiEncoder(
        name,
        precision=precision.value,
        threads=threads,
        revision=revision,
        dimensions=dimensions,
        **where.options,
    )


def open_index(
    directory: Path,
    *,
    model: str | None,
    with_vectors: bool,
    precision: Precision = Precision.auto,
    threads: int | None = None,
    revision: str | None = None,
    filter: Filter | None = None,
    late_interaction: LateInteraction | Literal["its own"] | None = None,
    long_query: LongQuery = LongQuery.error,
    where: Where = Where(),
) -> Index:
    """Open an index and, where it has vectors and they are needed, the bi-encoder it was made with.

    Args:
        directory: the index.
        model: where that bi-encoder is, if not under the name the index has for it.
        with_vectors: whether vectors are needed at all: text search alone loads no model.
        precision: of the bi-encoder, where the index does not say it.
        threads: of the bi-encoder.
        revision: of the bi-encoder.
        filter: a condition that must fit the index's fields: an error before a model is loaded.
        late_interaction: the model that its token vectors are to be compared by; "its own" opens the one it
            was made with, if any.
        long_query: what that one does with a query that is too long for it.
        where: see `BackendOption` and `DeviceOption`; models of an index that are in int8 run on the CPU.
    """
    from crossrank.store.lance import Index

    index = Index.open(directory)
    if filter is not None:
        filter.to_sql(index.fields)
    stored = index.model if with_vectors else None
    if late_interaction == "its own":
        late_interaction = None
        if index.tokens is not None:
            made_with = index.tokens.model
            late_interaction = open_late_interaction(
                made_with.name,
                precision=_precision(made_with.precision, precision),
                threads=threads,
                long_query=long_query,
                where=_of_index(where, made_with.precision),
            )
    if stored is None and late_interaction is None:
        return index
    index.close()
    bi_encoder = None
    if stored is not None:
        bi_encoder = open_bi_encoder(
            model or stored.name,
            precision=_precision(stored.precision, precision),
            threads=threads,
            revision=revision,
            dimensions=stored.dimensions,
            where=_of_index(where, stored.precision),
        )
    return Index.open(directory, bi_encoder=bi_encoder, late_interaction=late_interaction)


def _of_index(where: Where, precision: str | None) -> Where:
    """Where a model of an index runs: int8 is on the CPU, whatever is said of the command's other models."""
    return Where() if precision == Precision.int8.value else where


def _precision(stored: str | None, otherwise: Precision) -> Precision:
    return Precision(stored) if stored in Precision.__members__ else otherwise
