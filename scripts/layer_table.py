"""Do a cross-encoder's layers give embeddings one can search with? Retrieval quality layer by layer.

Texts are read alone, the vectors of all their tokens after a layer are averaged, and documents are found by
cosine (Ananthakrishnan et al. 2025, "Can Cross Encoders Produce Useful Sentence Embeddings?",
arXiv:2502.03552).
A bi-encoder over the same texts, cut at the same length, is the line to compare with. All layers come out of
one pass. Prints a table in Markdown, and keeps the figures as JSON.

    python scripts/layer_table.py ../shared/data/scifact ../shared/data/cranfield --cross-encoder my-model
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank import BiEncoder, Collection, evaluate
from crossrank.errors import UnsupportedArchitectureError
from crossrank.markdown import markdown_table
from crossrank.models.hub import resolve
from crossrank.progress import track
from crossrank.runtime.batching import plan
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.encoder import Encoder, LayeredEncoder
from crossrank.runtime.engine import open_engine
from crossrank.runtime.graph import Graph
from crossrank.runtime.tokenization import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import harness

MEASURES = ("nDCG@10", "Recall@100")
DEPTH = 100
Vectors = npt.NDArray[np.float32]


def mean_of_every_layer(graph: Graph, config: Mapping[str, Any], encoder: Encoder) -> str:
    """A head for `open_engine`: (batch, (layers + 1) × hidden), what the first layer reads first."""
    if not isinstance(encoder, LayeredEncoder):
        raise UnsupportedArchitectureError("layers can be looked at in models of the BERT family")
    x = encoder.embeddings()
    means = [encoder.frame.mean(x)]
    for layer in range(encoder.num_layers):
        x = encoder.layers(x, layer, layer + 1)
        means.append(encoder.frame.mean(x))
    return graph.node("Concat", means, axis=1)


def layers_of(model: str, texts: Sequence[str], max_length: int, threads: int | None) -> list[Vectors]:
    """The vectors of each layer, (texts, hidden) each, of length 1."""
    checkpoint = Checkpoint.open(resolve(model, kind="cross-encoder"))
    tokenizer = Tokenizer(checkpoint)
    engine = open_engine(
        checkpoint, output=mean_of_every_layer, precision="float32", threads=threads, identity=" layers"
    )
    room = max_length - tokenizer.num_single_special_tokens
    ids = [tokens.ids[:room] for tokens in tokenizer.encode(texts)]
    lengths = [len(each) + tokenizer.num_single_special_tokens for each in ids]
    batches = plan(lengths, limit=checkpoint.max_positions, parallel=engine.threads)
    found: Vectors | None = None
    with track(len(texts), "Encoding") as tracked:
        inputs = (
            tokenizer.single_inputs([ids[row] for row in batch.rows.tolist()], batch.length)
            for batch in batches
        )
        for batch, output in zip(batches, engine.run_all(inputs), strict=True):
            if found is None:
                found = np.empty((len(texts), output.shape[1]), np.float32)
            found[batch.rows] = output
            tracked.advance(len(batch.rows))
    assert found is not None  # a collection has texts
    assert checkpoint.num_layers is not None  # the graph was written
    layers = np.split(found, checkpoint.num_layers + 1, axis=1)
    return [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in layers]


def measured(
    queries: Mapping[str, Vectors], documents: Vectors, ids: Sequence[str], qrels: Any
) -> dict[str, float]:
    """Measures of the nearest documents by inner product."""
    run = {}
    for query_id, vector in queries.items():
        scores = documents @ vector
        best = np.argsort(-scores, kind="stable")[:DEPTH]
        run[query_id] = {ids[row]: float(scores[row]) for row in best.tolist()}
    return dict(evaluate(run, qrels, list(MEASURES)).means)


def rows_of(folder: Path, args: Any) -> dict[str, dict[str, float]]:
    """One collection's figures: a row for each layer, and the bi-encoder's."""
    collection = Collection.open(folder)
    queries, qrels = collection.queries(args.split), collection.qrels(args.split)
    documents = [document for document in collection.documents() if document.full_text.strip()]
    ids = [document.id for document in documents]
    texts = [document.full_text for document in documents]
    rows: dict[str, dict[str, float]] = {}
    layers = layers_of(args.cross_encoder, [*queries.values(), *texts], args.max_length, args.threads)
    for number, vectors in enumerate(layers):
        of_queries = dict(zip(queries, vectors[: len(queries)], strict=True))
        rows[f"layer {number}"] = measured(of_queries, vectors[len(queries) :], ids, qrels)
    bi_encoder = BiEncoder(args.bi_encoder, max_length=args.max_length, threads=args.threads)
    of_queries = dict(zip(queries, bi_encoder.encode_queries(list(queries.values())), strict=True))
    rows[bi_encoder.name] = measured(of_queries, bi_encoder.encode_documents(texts), ids, qrels)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--split", default="test")
    parser.add_argument("--cross-encoder", default="crossrank-mini", help="of the BERT family")
    parser.add_argument("--bi-encoder", default="crossrank-embed")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/layer_table.json")
    harness.page_option(parser)
    args = parser.parse_args()
    found = {folder.resolve().name: rows_of(folder, args) for folder in args.collections}
    names = list(found)
    columns = [f"{name} {measure}" for name in names for measure in MEASURES]
    rows = [
        [row, *(f"{found[name][row][measure]:.4f}" for name in names for measure in MEASURES)]
        for row in found[names[0]]
    ]
    table = "\n".join(markdown_table(["mean of the tokens after", *columns], rows))
    settings = {"cross_encoder": args.cross_encoder, "bi_encoder": args.bi_encoder}
    record = {"settings": {**settings, "max_length": args.max_length}, "collections": found}
    harness.publish("layer_table", record, table, args)


if __name__ == "__main__":
    main()
