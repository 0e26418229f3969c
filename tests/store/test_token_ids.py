"""Token ids in an index: scores have the same bits with and without, and ids in doubt are not used."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from crossrank.composition.cascade import Cascade
from crossrank.errors import CheckpointNotFoundError, InputError
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.stored_ids import stored_ids
from crossrank.pipeline import Searcher
from crossrank.runtime.tokenization import Tokenizer, Tokens
from crossrank.store.lance import Index
from crossrank.store.schema import Row
from crossrank.store.token_ids import TokenIdWriter
from crossrank.types import Document, Ranking

pytest.importorskip("lancedb")

TESTS = Path(__file__).parents[1]
MINI = "crossrank-mini"
WORDS = ("the", "red", "fox", "runs", "over", "blue", "whale", "swims", "in", "sea", "quick", "dog")
QUERIES = ("the red fox", "[SEP] whale 🦊", "quick </s> sea")
TEXT = st.one_of(
    st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab é  \t\n\0🦊\u200d")),
        max_size=30,
    ),
    st.lists(
        st.sampled_from(
            [*WORDS, "[SEP]", "</s>", "[CLS]", "<s>", "<mask>", "naïve", "東京", "👩\u200d👩\u200d👧"]
        )
    ).map(" ".join),
    st.sampled_from(
        ["the red fox runs " * 60, "x" * 300, "", " ", "[SEP]", "the[SEP]fox", " the", "\0", "🦊" * 40]
    ),
)


def byte_bpe() -> Library:
    """RoBERTa's kind: spaces belong to the word that follows."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return library


def unigram() -> Library:
    """XLM-RoBERTa's kind: pieces of words with a mark before the first."""
    library = Library(models.Unigram())
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return library


def folder_of(path: Path, golden: str, library: Library) -> Path:
    """A model of random weights with another tokenizer, and embeddings for it."""
    shutil.copytree(TESTS / "golden" / golden, path)
    library.save(str(path / "tokenizer.json"))
    weights = dict(load_file(path / "model.safetensors"))
    (name,) = (each for each in weights if each.endswith("word_embeddings.weight"))
    shape = (library.get_vocab_size(), weights[name].shape[1])
    weights[name] = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    save_file(weights, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "vocab_size": shape[0]}))
    return path


def _on_torch(folder: Path) -> CrossEncoder:
    for name in ("torch", "transformers"):
        pytest.importorskip(name)
    return CrossEncoder(folder, backend="torch", device="cpu", threads=1)


OPENERS: dict[str, Callable[[Path], tuple[str | Path, CrossEncoder]]] = {
    "built-in": lambda _: (MINI, CrossEncoder(threads=1, max_length=64)),
    "windows": lambda _: (MINI, CrossEncoder(threads=1, max_length=32, long_documents="max")),
    "bert": lambda _: (TESTS / "golden/bert", CrossEncoder(TESTS / "golden/bert", threads=1)),
    "byte bpe": lambda path: (
        folder := folder_of(path, "roberta", byte_bpe()),
        CrossEncoder(folder, threads=1),
    ),
    "unigram": lambda path: (
        folder := folder_of(path, "xlm_roberta", unigram()),
        CrossEncoder(folder, threads=1),
    ),
    "torch": lambda _: (TESTS / "golden/bert", _on_torch(TESTS / "golden/bert")),
    "t5": lambda _: (TESTS / "golden_t5/t5", MonoT5(TESTS / "golden_t5/t5", family="t5", threads=1)),
}


@pytest.fixture(scope="module", params=OPENERS)
def kept(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Index, CrossEncoder]]:
    """A model, and an index that keeps its ids."""
    name, model = OPENERS[request.param](tmp_path_factory.mktemp("model") / "folder")
    path = tmp_path_factory.mktemp("index") / "index"
    with Index.create(path, token_ids_for=name, fields={"year": int}) as index:
        yield index, model


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts that are tokenised from now on."""
    texts: list[str] = []
    encode = Tokenizer.encode

    def noting(self: Tokenizer, given: Sequence[str], *, offsets: bool = False) -> list[Tokens]:
        texts.extend(given)
        return encode(self, given, offsets=offsets)

    monkeypatch.setattr(Tokenizer, "encode", noting)
    return texts


def as_found(index: Index, documents: Sequence[Document]) -> list[Document]:
    """The documents as a search gives them, though no search may find texts without words."""
    columns = index._table.settings.hit_columns()
    rows = index._table.rows_by_id([each.id for each in documents], columns)
    return [index._table.settings.document(rows[each.id]) for each in documents]


def facts(ranking: Ranking) -> list[tuple[object, ...]]:
    return [(hit.document_id, hit.score, hit.truncated_tokens, hit.span) for hit in ranking]


def corpus(count: int = 40) -> list[Document]:
    rng = np.random.default_rng(3)
    return [
        Document(
            f"d{n:02d}", " ".join(rng.choice(WORDS, size=int(rng.integers(3, 25)))), "Fox" if n % 3 else ""
        )
        for n in range(count)
    ]


def filled(path: Path, documents: Sequence[Document], model: str | Path | None = MINI) -> Index:
    index = Index.create(path, token_ids_for=model)
    index.add(documents)
    return index


@given(query=st.sampled_from(QUERIES), texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_scores_are_those_without_bit_for_bit(
    kept: tuple[Index, CrossEncoder], query: str, texts: list[tuple[str, str]]
) -> None:
    index, model = kept
    documents = [Document(f"d{n}", text, title) for n, (title, text) in enumerate(texts)]
    index.upsert(documents, progress=False)
    found = as_found(index, documents)
    assert found == documents
    for document in found:
        assert document.token_ids is not None
        assert document.token_ids.text == document.full_text
        (wanted,) = model._tokenizer.encode([document.full_text])
        assert document.token_ids.ids.tolist() == wanted.ids.tolist()
    assert stored_ids(found, model._tokenizer).keys() == {each.full_text for each in documents}
    assert facts(model.rank(query, found)) == facts(model.rank(query, documents))


def test_a_search_tokenises_the_query_and_tries_few_documents(tmp_path: Path, tokenised: list[str]) -> None:
    model = CrossEncoder(threads=1)
    with filled(tmp_path / "with", corpus()) as index, filled(tmp_path / "without", corpus(), None) as plain:
        tokenised.clear()
        ranking = Searcher(index, model).search("quick fox", top_k=40)
        assert tokenised[0] == "quick fox"
        assert 2 <= len(tokenised) <= 5 < 20 < len(ranking)
        assert facts(ranking) == facts(Searcher(plain, model).search("quick fox", top_k=40))
        assert ranking[0].document == index.get([ranking[0].document_id])[0]


def test_a_cascade_hands_ids_on(tmp_path: Path, tokenised: list[str]) -> None:
    model = CrossEncoder(threads=1)
    with filled(tmp_path / "index", corpus()) as index:
        (hits,) = index.search_text(["fox"], top_k=30)
        documents = [hit.document for hit in hits if hit.document is not None]
        cascade = Cascade(CrossEncoder(exit_layer=0, threads=1), [(model, 10)])
        tokenised.clear()
        ranking = cascade.rank("fox", documents)
        assert len(tokenised) <= 2 * (1 + 4) < len(ranking)


def test_ids_go_with_the_very_text_and_tokenizer(tmp_path: Path, tokenised: list[str]) -> None:
    documents = [Document(each.id, each.text) for each in corpus(6)]
    with filled(tmp_path / "index", documents) as index:
        changed = [replace(each, text=f"another {each.text}") for each in as_found(index, documents)]
    model = CrossEncoder(threads=1)
    tokenised.clear()
    scores = model.rank("fox", changed).scores
    assert set(tokenised) >= {each.text for each in changed}
    assert scores == model.rank("fox", [each.text for each in changed]).scores
    other = CrossEncoder(TESTS / "golden/bert", threads=1)
    with filled(tmp_path / "other", documents) as index:
        found = as_found(index, documents)
        tokenised.clear()
        assert other.rank("fox", found).scores == other.rank("fox", documents).scores
        assert tokenised.count(documents[0].text) == 2


def test_ids_that_turn_out_wrong_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode = TokenIdWriter.encode
    monkeypatch.setattr(
        TokenIdWriter, "encode", lambda self, rows: [each[:2] + each for each in encode(self, rows)]
    )
    model = CrossEncoder(threads=1)
    with filled(tmp_path / "index", corpus()) as index:
        found = as_found(index, corpus())
        with caplog.at_level(logging.WARNING):
            ranking = model.rank("fox", found)
        assert "not what the tokenizer gives" in caplog.text
        assert facts(ranking) == facts(model.rank("fox", corpus()))


def test_a_changed_document_has_other_ids(tmp_path: Path) -> None:
    filled(tmp_path / "index", corpus()).close()
    with Index.open(tmp_path / "index") as index:  # which opens the tokenizer by itself
        new = Document("d01", "whales and [SEP] whales")
        index.upsert([new])
        index.delete(["d02"])
        (found,) = as_found(index, [new])
        assert found.token_ids is not None
        assert found.token_ids.text == new.text
        assert (
            found.token_ids.ids.tolist()
            == Tokenizer.encode(CrossEncoder()._tokenizer, [new.text])[0].ids.tolist()
        )
        assert index.count() == 39
        assert Index.open(tmp_path / "index").add([new]).unchanged == 1


def test_only_hits_of_a_search_carry_ids(tmp_path: Path) -> None:
    with filled(tmp_path / "index", corpus()) as index:
        assert all(hit.document.token_ids is not None for hit in index.search_text(["fox"])[0])
        assert [each.token_ids for each in index.documents()] == [None] * 40


def test_an_index_without_ids_is_as_before(tmp_path: Path) -> None:
    with filled(tmp_path / "index", corpus(), None) as index:
        stored = json.loads(index._table.lance.schema.metadata[b"crossrank"])
        assert stored == {"format_version": 1, "language": "english", "fields": {}, "model": None}
        assert "token_ids" not in index._table.lance.schema.names
        assert index.search_text(["fox"])[0][0].document.token_ids is None
    with filled(tmp_path / "with", corpus()) as index:
        assert json.loads(index._table.lance.schema.metadata[b"crossrank"])["format_version"] == 3
        assert index.info().token_ids.name == MINI


def test_without_its_tokenizer_an_index_takes_documents_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(TESTS / "golden/bert", tmp_path / "model")
    model = CrossEncoder(folder, threads=1)
    filled(tmp_path / "index", corpus(), folder).close()
    new = Document("new", "the quick fox")

    settings_file = folder / "tokenizer.json"
    settings_file.write_text(settings_file.read_text() + "\n")
    with caplog.at_level(logging.WARNING), Index.open(tmp_path / "index") as index:
        index.upsert([new, Document("d01", "a fox")])
        assert "has changed" in caplog.text
    caplog.clear()
    shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING), Index.open(tmp_path / "index") as index:
        index.add([Document("newer", "fox fox")])
        assert "there is no folder" in caplog.text
        documents = [new, Document("d01", "a fox"), Document("newer", "fox fox"), *corpus()[2:]]
        found = as_found(index, documents)
        assert [each.token_ids is None for each in found] == [True] * 3 + [False] * 38
        assert facts(model.rank("the fox", found)) == facts(model.rank("the fox", documents))


def test_ids_of_another_version_of_the_library_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenised: list[str]
) -> None:
    with filled(tmp_path / "index", corpus()) as index:
        found = as_found(index, corpus())
    monkeypatch.setattr("tokenizers.__version__", "0.0.1")
    tokenised.clear()
    CrossEncoder(threads=1).rank("fox", found)
    assert {each.full_text for each in found} <= set(tokenised)


def test_large_ids_are_kept(tmp_path: Path) -> None:
    folder = shutil.copytree(TESTS / "golden/bert", tmp_path / "model")
    library = json.loads((folder / "tokenizer.json").read_text())
    library["model"]["vocab"]["zebra"] = 70_000
    (folder / "tokenizer.json").write_text(json.dumps(library))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 70_001}))
    with filled(tmp_path / "index", [Document("a", "zebra the")], folder) as index:
        (found,) = as_found(index, [Document("a", "zebra the")])
        assert found.token_ids is not None
        assert found.token_ids.ids.tolist() == [70_000, library["model"]["vocab"]["the"]]


def test_rows_of_a_batch_are_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Row] = []
    encode = TokenIdWriter.encode
    monkeypatch.setattr(
        TokenIdWriter, "encode", lambda self, given: rows.extend(given) or encode(self, given)
    )
    opened: list[str | Path] = []
    open_writer = TokenIdWriter.__init__
    monkeypatch.setattr(
        TokenIdWriter, "__init__", lambda self, model: opened.append(model) or open_writer(self, model)
    )
    with filled(tmp_path / "index", corpus()) as index:
        index.add(corpus())
        index.add([Document("new", "fox")])
    assert len(rows) == 41
    assert opened == [MINI]
    with Index.open(tmp_path / "index") as index:
        assert index.search_text(["fox"])[0]
        assert opened == [MINI]
        index.add([Document("newer", "fox")])
        index.add([Document("newest", "fox")])
    assert opened == [MINI] * 2


@pytest.mark.parametrize(
    ("model", "error"), [("no/such/folder/at-all", CheckpointNotFoundError), (7, InputError)]
)
def test_a_model_that_is_none_costs_no_index(
    model: object, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error):
        Index.create(tmp_path / "index", token_ids_for=model)  # type: ignore[arg-type]
    assert not Index.exists(tmp_path / "index")
