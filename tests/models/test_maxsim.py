"""Blocked MaxSim against the formula written out, and what codecs keep of vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import CheckpointError, InputError
from crossrank.models.maxsim import TokenVectors, maxsim
from crossrank.models.token_codec import Float16Codec, Int8Codec, ResidualCodec, TokenCodec


def unit_vectors(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def written_out(queries: list[np.ndarray], documents: list[np.ndarray]) -> np.ndarray:
    """The formula, in float64, one product at a time."""
    scores = np.zeros((len(documents), len(queries)))
    for row, document in enumerate(documents):
        for column, query in enumerate(queries):
            for token in query.astype(np.float64) if len(document) else ():
                scores[row, column] += max(float(token @ other) for other in document.astype(np.float64))
    return scores


@settings(max_examples=60, deadline=None)
@given(
    query_lengths=st.lists(st.integers(1, 5), max_size=4),
    document_lengths=st.lists(st.integers(0, 9), max_size=12),
    dimensions=st.sampled_from([1, 3, 8]),
    block_tokens=st.integers(1, 30),
)
def test_blocks_give_what_the_formula_gives(
    query_lengths: list[int], document_lengths: list[int], dimensions: int, block_tokens: int
) -> None:
    queries = [unit_vectors(n, dimensions, seed) for seed, n in enumerate(query_lengths)]
    documents = [unit_vectors(n, dimensions, 100 + seed) for seed, n in enumerate(document_lengths)]
    scores = maxsim(queries, TokenVectors.of(documents, dimensions), block_tokens=block_tokens)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, written_out(queries, documents), atol=1e-5)


@pytest.mark.parametrize("codec", [Float16Codec(), Int8Codec()])
@pytest.mark.parametrize("block_tokens", [1, 7, 4096])
def test_encoded_vectors_are_compared_as_they_decode(codec: TokenCodec, block_tokens: int) -> None:
    queries, documents = [unit_vectors(4, 16)], [unit_vectors(n, 16, n) for n in (3, 0, 12, 1)]
    kept = [codec.encode(each) for each in documents]
    scores = maxsim(
        queries,
        TokenVectors.of(kept, codec.bytes_per_token(16)),
        decode=codec.decode,
        block_tokens=block_tokens,
    )
    np.testing.assert_allclose(scores, written_out(queries, [codec.decode(c) for c in kept]), atol=1e-5)
    np.testing.assert_allclose(scores, written_out(queries, documents), atol=0.05)


def test_no_more_than_a_block_is_decoded_at_a_time() -> None:
    sizes: list[int] = []

    def decode(rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        return rows.astype(np.float32)

    documents = TokenVectors.of([unit_vectors(n, 4, n) for n in (5, 5, 5, 30, 5, 5)], 4)
    maxsim([unit_vectors(2, 4)], documents, decode=decode, block_tokens=12)
    assert sizes == [10, 5, 30, 10]


def test_vectors_of_different_models_are_refused() -> None:
    documents = TokenVectors.of([unit_vectors(3, 4)], 4)
    with pytest.raises(InputError, match="5 dimensions, document vectors 4"):
        maxsim([unit_vectors(2, 5)], documents)
    with pytest.raises(InputError, match="at least one token"):
        maxsim([np.zeros((0, 4), np.float32)], documents)


def test_taking_texts_keeps_their_vectors() -> None:
    texts = [unit_vectors(n, 4, n) for n in (2, 0, 5)]
    taken = TokenVectors.of(texts, 4).take(np.array([2, 1, 2]))
    for got, want in zip(taken.split(), [texts[2], texts[1], texts[2]], strict=True):
        np.testing.assert_array_equal(got, want)


def test_float16_and_int8_keep_each_token_within_their_step() -> None:
    vectors = unit_vectors(200, 64) * np.logspace(-3, 3, 200, dtype=np.float32)[:, None]
    vectors[7] = 0
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    for codec, step in ((Float16Codec(), 2.0**-11), (Int8Codec(), 0.51 / 127 * 1.002)):
        codes = codec.encode(vectors)
        assert codes.shape == (200, codec.bytes_per_token(64))
        assert codes.dtype == np.uint8
        assert (np.abs(codec.decode(codes) - vectors) <= step * largest + 1e-6).all()


def test_residuals_come_back_closer_with_more_bits() -> None:
    rng = np.random.default_rng(0)
    topics = unit_vectors(20, 32)
    vectors = topics[rng.integers(20, size=4000)] + 0.1 * rng.normal(size=(4000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = []
    for bits in (1, 2, 4):
        codec = ResidualCodec.train(vectors[:3000], bits=bits)
        codes = codec.encode(vectors[3000:])
        assert codes.shape == (1000, 2 + 32 * bits // 8)
        decoded = codec.decode(codes)
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)
        cosines.append(float((decoded * vectors[3000:]).sum(axis=1).mean()))
    assert cosines == sorted(cosines)
    assert cosines[0] > 0.9
    assert cosines[2] > 0.99


def test_a_residual_is_the_nearest_centroid_and_its_own_bits() -> None:
    codec = ResidualCodec(np.eye(4, 8, dtype=np.float32), np.array([0.0]), np.array([-0.5, 0.5]))
    vector = np.zeros((1, 8), np.float32)
    vector[0, [2, 3, 7]] = [0.9, 0.1, -0.2]
    codes = codec.encode(vector)
    assert codes.tolist() == [[2, 0, 0b00001000]]  # bit 3 alone is above the border
    wanted = np.where(np.arange(8) == 3, 0.5, -0.5) + np.eye(4, 8)[2]
    np.testing.assert_allclose(codec.decode(codes)[0], wanted / np.linalg.norm(wanted), rtol=1e-6)


def test_a_codec_comes_back_from_its_file(tmp_path: Path) -> None:
    codec = ResidualCodec.train(unit_vectors(500, 8), bits=2, num_centroids=16)
    codec.save(tmp_path / "codec.safetensors")
    again = ResidualCodec.load(tmp_path / "codec.safetensors")
    assert again.fingerprint == codec.fingerprint
    vectors = unit_vectors(50, 8, 1)
    np.testing.assert_array_equal(again.encode(vectors), codec.encode(vectors))
    assert (
        ResidualCodec.train(unit_vectors(500, 8), bits=2, num_centroids=16).fingerprint == codec.fingerprint
    )
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        ResidualCodec.load(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "1, 2 or 4"),
        ({"num_centroids": 501}, "501 centroids"),
        ({"bits": 1, "num_centroids": 4}, "do not fill bytes"),
    ],
)
def test_training_refuses_what_cannot_be(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResidualCodec.train(unit_vectors(500, 12), **options)
