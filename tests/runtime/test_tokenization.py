"""Tokenising apart and joining gives what the library gives for the pair, for every family's tokenizer."""

import itertools
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as LibraryTokenizer

from crossrank.checks import check_texts
from crossrank.errors import CheckpointError, InputError
from crossrank.runtime import tokenization
from crossrank.runtime.segments import segments
from crossrank.runtime.tokenization import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Retrieval finds candidates; reranking puts the best 10 of 100 on top.",
    "naïve café, 東京 and São Paulo  in   3.5 km",
] * 5
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("ab é  \t\n\0[SEP]</s>")))


def train(tokenizer, trainer):
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = LibraryTokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train(
        tokenizer,
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer, {"pad_token_id": 0, "type_vocab_size": 2}, {"pad_token": "[PAD]"}


def byte_bpe(special, normalizer=None):
    tokenizer = LibraryTokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    return train(tokenizer, trainer)


def roberta():
    tokenizer = byte_bpe(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer, {"pad_token_id": 1, "type_vocab_size": 1}, {"pad_token": {"content": "<pad>"}}


def modernbert():
    tokenizer = byte_bpe(["[PAD]", "[UNK]", "[CLS]", "[SEP]"], normalizers.NFC())
    tokenizer.add_tokens([AddedToken("  ", normalized=True), AddedToken("   ", normalized=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    return tokenizer, {"pad_token_id": 0}, names


def unigram(special, pre_tokenizer):
    tokenizer = LibraryTokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    return train(tokenizer, trainer)


def xlm_roberta():
    splitting = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer = unigram(["<s>", "<pad>", "</s>", "<unk>"], splitting)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer, {"pad_token_id": 1, "type_vocab_size": 1}, {}


def deberta():
    tokenizer = unigram(["[PAD]", "[CLS]", "[SEP]", "<unk>"], pre_tokenizers.Metaspace())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer, {"pad_token_id": 0, "type_vocab_size": 0}, {}


FAMILIES = {family.__name__: family() for family in (bert, roberta, modernbert, xlm_roberta, deberta)}


def checkpoint(folder, library, config, tokenizer_config, lowercase=False):
    """The parts of a checkpoint that a tokenizer reads."""
    library = LibraryTokenizer.from_str(library.to_str())
    library.enable_truncation(16)  # as published files often have; to be ignored
    library.enable_padding(length=16)
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    return SimpleNamespace(
        tokenizer_file=folder / "tokenizer.json",
        config=config,
        tokenizer_config=tokenizer_config,
        uses_token_types="token_type_ids" in tokenizer_config.get("model_input_names", ["token_type_ids"]),
        lowercase=lowercase,
    )


@pytest.fixture(params=FAMILIES, scope="module")
def family(request, tmp_path_factory):
    library, config, tokenizer_config = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, library, Tokenizer(checkpoint(folder, library, config, tokenizer_config))


@given(query=TEXT, document=TEXT)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_joined_equals_the_librarys_joint_encoding(family, query, document):
    name, library, tokenizer = family
    expected = library.encode(query, document)
    query_tokens, document_tokens = tokenizer.encode([query, document])
    ids, types = tokenizer.join(query_tokens, document_tokens)
    assert ids.tolist() == expected.ids
    assert types.tolist() == (expected.type_ids if name == "bert" else [0] * len(ids))
    assert len(ids) == tokenizer.pair_length(len(query_tokens.ids), len(document_tokens.ids))
    single, _ = tokenizer.wrap(document_tokens)
    assert single.tolist() == library.encode(document).ids
    assert len(single) == len(document_tokens.ids) + tokenizer.num_single_special_tokens


def test_rows_of_a_batch_are_the_joined_pairs_padded(family):
    _, _, tokenizer = family
    tokens = tokenizer.encode([*CORPUS[:3], ""])
    pairs = [(one.ids, two.ids) for one in tokens for two in tokens]
    length = max(tokenizer.pair_length(len(one), len(two)) for one, two in pairs) + 3
    inputs = tokenizer.pair_inputs(pairs, length)
    assert {array.dtype for array in inputs} == {np.dtype(np.int64)}
    assert {array.shape for array in inputs} == {(16, length)}
    for row, (one, two) in enumerate((one, two) for one in tokens for two in tokens):
        ids, types = tokenizer.join(one, two)
        assert inputs.input_ids[row].tolist() == ids.tolist() + [tokenizer.pad_id] * (length - len(ids))
        assert inputs.token_type_ids[row].tolist() == types.tolist() + [0] * (length - len(ids))
        assert inputs.attention_mask[row].tolist() == [1] * len(ids) + [0] * (length - len(ids))
    singles = tokenizer.single_inputs([one.ids for one in tokens], length)
    assert (
        singles.input_ids[0, : singles.attention_mask[0].sum()].tolist()
        == tokenizer.wrap(tokens[0])[0].tolist()
    )


@given(
    parts=st.lists(
        st.one_of(TEXT, st.sampled_from(["fox ", " dog", "x  y", " [SEP] a", "it's"])), max_size=30
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_segments_have_the_tokens_of_the_whole(family, parts):
    _, library, tokenizer = family
    assert tokenizer._can_split
    text = "".join(parts) + " the fox"
    pieces = list(segments(text, size=10))
    assert [start for start, _ in pieces[1:]] == [end for _, end in pieces[:-1]]
    assert (pieces[0][0], pieces[-1][1]) == (0, len(text))
    whole = library.encode(text, add_special_tokens=False)
    cut = [library.encode(text[start:end], add_special_tokens=False).ids for start, end in pieces]
    assert list(itertools.chain(*cut)) == whole.ids


def test_long_texts_exactly_and_with_offsets(family, monkeypatch):
    _, library, tokenizer = family
    text = " ".join(CORPUS) * 400  # 0.8 MB: several segments and chunks
    monkeypatch.setattr(tokenization, "_BLOCK_CHARACTERS", 250_000)
    short, long, empty = tokenizer.encode(["fox", text, ""], offsets=True)
    expected = library.encode(text, add_special_tokens=False)
    assert long.ids.tolist() == expected.ids
    assert short.ids.tolist() == library.encode("fox", add_special_tokens=False).ids
    assert (empty.ids.shape, empty.offsets.shape) == ((0,), (0, 2))
    # A word-start mark has no character of its own; at a segment's start it may borrow its neighbour's.
    assert np.abs(long.offsets - np.array(expected.offsets)).max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Metaspace(split=False)),
        lambda tokenizer: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Split(Regex("o w"), "isolated")),
        lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.Replace("n f", "nf")),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("brown fox")]),
        lambda tokenizer: tokenizer.add_tokens([AddedToken("fox", lstrip=True)]),
    ],
)
def test_tokenizers_that_reach_over_spaces_get_whole_texts(tmp_path, change):
    library, config, tokenizer_config = bert()
    change(library)
    tokenizer = Tokenizer(checkpoint(tmp_path, library, config, tokenizer_config))
    assert not tokenizer._can_split
    text = "brown fox " * 30_000
    assert tokenizer.encode([text])[0].ids.tolist() == library.encode(text, add_special_tokens=False).ids


def test_lower_casing_of_the_folder_keeps_spans_in_the_original(tmp_path):
    library, config, tokenizer_config = bert()
    library.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer = Tokenizer(checkpoint(tmp_path, library, config, tokenizer_config, lowercase=True))
    text = "İİ Fox"  # each İ is two characters in lower case
    tokens = tokenizer.encode([text], offsets=True)[0]
    assert tokens.ids.tolist() == library.encode(text.lower(), add_special_tokens=False).ids
    assert text[tokens.offsets[-1][0] : tokens.offsets[-1][1]] in "Fox"
    assert tokens.offsets[-1][1] == len(text)


def test_many_threads_agree(family):
    _, _, tokenizer = family
    expected = [tokens.ids.tolist() for tokens in tokenizer.encode(CORPUS)]
    results = []
    threads = [threading.Thread(target=lambda: results.append(tokenizer.encode(CORPUS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all([tokens.ids.tolist() for tokens in result] == expected for result in results)


@pytest.mark.parametrize("bad", [3, None, b"bytes", ["nested"]])
def test_other_types_are_named(family, bad):
    _, _, tokenizer = family
    with pytest.raises(InputError, match=r"documents\[1\] must be a string"):
        check_texts(["fine", bad], "documents")
    with pytest.raises(InputError, match=r"texts\[1\]"):
        tokenizer.encode(["fine", bad])


def test_lone_surrogates_are_named(family):
    _, _, tokenizer = family
    with pytest.raises(InputError, match=r"queries\[2\] has a lone surrogate \(U\+D83D\) at character 1"):
        check_texts(["fine", "ünï", "a\ud83d"], "queries")
    with pytest.raises(InputError, match=r"texts\[0\] has a lone surrogate"):
        tokenizer.encode(["\udc00"])


def test_the_tokenizer_of_another_family_is_refused(tmp_path):
    library, _, tokenizer_config = roberta()
    with pytest.raises(CheckpointError, match="pad_token_id 0"):
        Tokenizer(checkpoint(tmp_path, library, {"pad_token_id": 0}, tokenizer_config))


@pytest.mark.parametrize("key", ["pad_token", "cls_token", "sep_token", "unk_token", "mask_token"])
def test_special_tokens_that_the_tokenizer_lacks(tmp_path, key):
    library, config, _ = roberta()
    with pytest.raises(
        CheckpointError, match=rf"no token '\[X\]', which tokenizer_config.json names as {key}"
    ):
        Tokenizer(checkpoint(tmp_path, library, config, {key: {"content": "[X]"}}))
    with pytest.raises(CheckpointError, match=rf"tokenizer_config.json: {key} is 5; it must be a token"):
        Tokenizer(checkpoint(tmp_path, library, config, {key: 5}))


def test_a_tokenizer_without_a_pair_template_is_refused(tmp_path):
    library, config, tokenizer_config = bert()
    content = json.loads(library.to_str())
    content["post_processor"] = None
    library = LibraryTokenizer.from_str(json.dumps(content))
    with pytest.raises(CheckpointError, match="no template for pairs"):
        Tokenizer(checkpoint(tmp_path, library, config, tokenizer_config))


def test_a_damaged_tokenizer_file_is_refused(tmp_path):
    library, config, tokenizer_config = bert()
    place = checkpoint(tmp_path, library, config, tokenizer_config)
    place.tokenizer_file.write_text(place.tokenizer_file.read_text()[:500])
    with pytest.raises(CheckpointError, match="cannot be read as a tokenizer"):
        Tokenizer(place)
