"""`load` picks the class from what a folder says, and refuses what does not say."""

import json
import shutil
from pathlib import Path

import pytest

import crossrank
from crossrank.errors import CheckpointError, CheckpointNotFoundError, InputError
from crossrank.models import load as loading
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.load import KINDS, kind_of, load
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.rank_t5 import RankT5

GOLDEN = Path(__file__).parent.parent / "golden"
GOLDEN_T5 = Path(__file__).parent.parent / "golden_t5"
SBERT = GOLDEN / "sbert_cross_encoder"


@pytest.fixture
def copy(tmp_path):
    def make(source, name="model", declaration=None, **changes):
        folder = tmp_path / name
        shutil.copytree(source, folder)
        if declaration is not None:
            (folder / "crossrank.json").write_text(json.dumps(declaration), encoding="utf-8")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        return folder

    return make


@pytest.mark.parametrize(
    ("folder", "model_class"),
    [
        (GOLDEN / "bert", CrossEncoder),
        (GOLDEN / "deberta_v3", CrossEncoder),
        (GOLDEN / "modernbert", CrossEncoder),
        (SBERT, CrossEncoder),
        (GOLDEN / "sbert_modular_cross_encoder", CrossEncoder),
        (GOLDEN / "sbert_bi_encoder", BiEncoder),
        (GOLDEN_T5 / "t5_encoder", RankT5),
        ("crossrank-mini", CrossEncoder),
        ("crossrank-embed", BiEncoder),
    ],
    ids=str,
)
def test_the_folder_says_what_it_is(folder, model_class):
    assert type(load(folder)) is model_class
    assert type(load(str(folder), threads=1)) is model_class


@pytest.mark.parametrize(
    ("kind", "model_class"), [("mono_t5", MonoT5), ("rank_t5", RankT5), ("duo_t5", DuoT5)]
)
def test_a_t5_is_what_its_folder_declares(copy, kind, model_class):
    model = load(copy(GOLDEN_T5 / "t5", declaration={"kind": kind}), threads=1)
    assert type(model) is model_class
    assert len(model.rank("what is the water", ["the cat", "the river"])) == 2


def test_a_t5_that_does_not_say_is_refused(copy):
    # Nor does a name that looks like one of a kind.
    for name in ("plain", "monot5-base-msmarco"):
        with pytest.raises(CheckpointError, match="open it with MonoT5, RankT5 or DuoT5"):
            load(copy(GOLDEN_T5 / "t5", name=name))


def test_published_t5s_are_known_by_their_full_names():
    folder = GOLDEN_T5 / "t5"
    assert kind_of(folder, "castorini/monot5-base-msmarco") == "mono_t5"
    assert kind_of(folder, "castorini/duot5-base-msmarco") == "duo_t5"
    assert kind_of(folder, "Soyoung97/RankT5-base") == "rank_t5"
    with pytest.raises(CheckpointError):
        kind_of(folder, "somebody/monot5-base-msmarco")


@pytest.mark.parametrize(
    ("stated", "kind"),
    [
        ({"model_type": "MultiVectorEncoder"}, "late_interaction"),
        ({"model_type": "ColBERT"}, "late_interaction"),
        ({"query_prefix": "[Q] ", "document_prefix": "[D] "}, "late_interaction"),
        ({"model_type": "CrossEncoder"}, "cross_encoder"),
        ({"model_type": "SentenceTransformer"}, "bi_encoder"),
        ({}, "bi_encoder"),  # older folders name no type, but have a Pooling module
    ],
)
def test_sentence_transformers_folders_say_their_type(copy, stated, kind):
    folder = copy(GOLDEN / "sbert_bi_encoder")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(stated), encoding="utf-8")
    assert kind_of(folder) == kind


def test_colberts_own_folders_are_late_interaction(copy):
    assert kind_of(copy(GOLDEN / "bert", architectures=["HF_ColBERT"])) == "late_interaction"


def test_other_models_of_sentence_transformers_are_refused(copy):
    folder = copy(GOLDEN / "sbert_bi_encoder")
    path = folder / "config_sentence_transformers.json"
    path.write_text('{"model_type": "SparseEncoder"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a SparseEncoder, which cannot be opened here"):
        load(folder)


@pytest.mark.parametrize("classes", [["BertModel"], ["BertForMaskedLM"], [], ["GPT2LMHeadModel"]])
def test_no_head_is_made_up(copy, classes):
    with pytest.raises(CheckpointError, match="does not say what it is"):
        load(copy(GOLDEN / "bert", architectures=classes))


def test_a_kind_that_is_none_is_an_error(copy):
    with pytest.raises(CheckpointError, match="of the kind 'mono_t6'; there are cross_encoder, bi_encoder"):
        load(copy(GOLDEN_T5 / "t5", declaration={"kind": "mono_t6"}))


def test_a_damaged_declaration_is_an_error(copy):
    folder = copy(GOLDEN_T5 / "t5")
    (folder / "crossrank.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"crossrank\.json is damaged"):
        load(folder)


def test_options_are_those_of_the_class():
    assert load(GOLDEN / "camembert", label="entailment").rank("a", ["b"])[0].index == 0
    with pytest.raises(InputError, match="is a BiEncoder, which has no option label; it takes"):
        load("crossrank-embed", label="x")


def test_there_must_be_such_a_model():
    with pytest.raises(CheckpointNotFoundError):
        load("/no/such/folder")


def test_every_kind_has_its_class():
    import importlib

    for place, name in KINDS.values():
        if importlib.util.find_spec(place) is not None:
            assert getattr(importlib.import_module(place), name).__name__ == name


def test_it_is_public():
    assert crossrank.load is loading.load
