"""Local causal models: exact log-probabilities, whatever stands beside a prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crossrank.errors import CheckpointError, CheckpointNotFoundError, InputError, MissingExtraError
from crossrank.models.llm import CausalLM, Message, Prompt
from crossrank.models.llm.local import Tail

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = [
    "the old river",
    "a cat and a dog " * 9,
    "blue",
    "the water of the river is blue " * 30,
    "the old river",
]


def chat(text: str, **options: str) -> Prompt:
    return Prompt((Message("system", "Judge."), Message("user", text)), **options)


def plain_logits(local: CausalLM, ids: list[int]):
    """By transformers alone: one row, no cache, no padding."""
    with torch.inference_mode():
        return local._model(torch.tensor([ids])).logits[0].float()


def test_choices_are_exact_log_probabilities(local):
    prompts = [chat(text) for text in TEXTS]
    found = local.choose(prompts, ("yes", "no"))
    assert found.shape == (len(TEXTS), 2)
    for prompt, row in zip(prompts, found, strict=True):
        known = plain_logits(local, local.prompt_ids(prompt))[-1].log_softmax(-1)
        for choice, value in zip(("yes", "no"), row, strict=True):
            forms = {choice, choice.upper(), choice.capitalize()}
            spellings = [
                local.tokenizer(s + f, add_special_tokens=False)["input_ids"]
                for f in forms
                for s in ("", " ")
            ]
            single = sorted({ids[0] for ids in spellings if len(ids) == 1})
            assert value == pytest.approx(
                math.log(sum(known[token].exp().item() for token in single)), abs=1e-5
            )


@pytest.mark.parametrize("budget", [1, 300, 100_000])
@pytest.mark.parametrize("share_prefix", [True, False])
def test_numbers_do_not_depend_on_what_stands_beside(local, budget, share_prefix):
    rows = [local.prompt_ids(chat(text)) for text in TEXTS]
    other = CausalLM(local._model, tokenizer=local.tokenizer, token_budget=budget, share_prefix=share_prefix)
    found = dict(other.tails([Tail(row, 3) for row in rows]))
    assert sorted(found) == list(range(len(rows)))
    for number, row in enumerate(rows):
        expected = plain_logits(local, row)[-3:]
        assert torch.allclose(found[number], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], found[4])  # equal rows, equal bits


def test_what_all_rows_begin_with_is_read_once(tiny):
    local = tiny("qwen")
    rows = [Tail(local.prompt_ids(chat("the river " * 40 + text))) for text in TEXTS[:3]]
    before = local.usage.prompt_tokens
    list(local.tails(rows))
    read = local.usage.prompt_tokens - before
    assert read < sum(len(row.ids) for row in rows) * 0.6


def test_a_row_that_begins_another_keeps_what_is_read_of_it(tiny):
    local = tiny("qwen")
    long = local.encode("the water of the river is blue " * 8)
    rows = [Tail(long, 5), Tail(long[:40], 7), Tail(long[:41], 1)]
    for number, logits in local.tails(rows):
        expected = plain_logits(local, rows[number].ids)[-rows[number].num_read :]
        assert torch.allclose(logits, expected, atol=1e-5, rtol=1e-5)


def test_answers_are_those_of_generate_one_by_one(local):
    prompts = [chat(text) for text in TEXTS]
    answers = local.generate(prompts, max_tokens=12)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([local.prompt_ids(prompt)])
        with torch.inference_mode():
            written = local._model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert answer.text == local.tokenizer.decode(written, skip_special_tokens=True)
        assert answer.ended == ("stop" if local.tokenizer.eos_token_id in written.tolist() else "length")


def test_a_prompt_is_written_by_the_chat_template(tiny):
    local = tiny("qwen")
    prompt = Prompt((Message("system", "s"), Message("user", "the river")), answer_start="Passage")
    text = (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nthe river<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\nPassage"
    )
    assert local.prompt_ids(prompt) == local.tokenizer(text)["input_ids"]


def test_a_system_turn_goes_to_the_user_where_a_template_takes_none(tiny):
    local = tiny("gemma")
    text = "<bos><start_of_turn>user\nJudge.\n\nthe river<end_of_turn>\n<start_of_turn>model\n"
    assert local.prompt_ids(chat("the river")) == local.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_model_without_a_chat_template_reads_the_texts(tiny):
    local = tiny("llama")
    assert (
        local.prompt_ids(chat("the river", answer_start="Yes"))
        == local.tokenizer("Judge.\n\nthe river\nYes")["input_ids"]
    )


def test_a_prompt_beyond_the_context_is_an_error_before_any_forward(tiny):
    short = CausalLM(tiny("qwen")._model, tokenizer=tiny("qwen").tokenizer, max_context=40)
    for call in (
        lambda: short.generate([chat("the river " * 40)], max_tokens=1),
        lambda: short.choose([chat("x " * 60)], ("yes", "no")),
    ):
        with pytest.raises(InputError, match="do not fit into the 40"):
            call()
    assert short.usage.calls == 0


def test_choices_of_one_first_token_cannot_be_told_apart(tiny):
    with pytest.raises(InputError, match="tell"):
        tiny("qwen").choose([chat("x")], ("yes", "YES"))
    with pytest.raises(InputError, match="no token for 'supercalifragilistic'"):
        tiny("qwen").choose([chat("x")], ("supercalifragilistic", "no"))


def test_usage_counts_what_was_read_and_written(tiny):
    local = CausalLM(tiny("qwen")._model, tokenizer=tiny("qwen").tokenizer)
    answers = local.generate([chat("the river"), chat("a cat")], max_tokens=4)
    assert local.usage.calls == 2
    lengths = [len(local.prompt_ids(chat(text))) for text in ("the river", "a cat")]
    assert local.usage.prompt_tokens == sum(lengths)
    assert len(answers) <= local.usage.completion_tokens <= 8


# --- opening ------------------------------------------------------------------------------------------------


def saved(folder, tiny, kind="qwen"):
    local = tiny(kind)
    local._model.save_pretrained(folder)
    local.tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_opens_as_the_model_it_was_saved_from(tmp_path, tiny):
    opened = CausalLM(saved(tmp_path / "tiny-qwen", tiny), device="cpu")
    assert opened.name == "tiny-qwen"
    prompts = [chat(text) for text in TEXTS]
    np.testing.assert_allclose(
        opened.choose(prompts, ("yes", "no")), tiny("qwen").choose(prompts, ("yes", "no")), atol=1e-6
    )
    assert opened.prompt_ids(prompts[0]) == tiny("qwen").prompt_ids(prompts[0])


def test_random_weights_are_refused(tmp_path, tiny):
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path / "m", tiny)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights.*lm_head"):
        CausalLM(folder)


def test_what_is_no_causal_model_is_refused(tmp_path):
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no causal language model.*BertForSequenceClassification"):
        CausalLM(tmp_path)


def test_what_is_not_there_is_not_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointNotFoundError):
        CausalLM(tmp_path / "nowhere")
    with pytest.raises(CheckpointNotFoundError):
        CausalLM("nobody/no-such-model")


def test_options_that_cannot_be_used_are_named(tiny, tmp_path):
    model, tokenizer = tiny("qwen")._model, tiny("qwen").tokenizer
    for options, named in [
        ({"token_budget": 0}, "token_budget"),
        ({"max_context": 10**6}, "max_context"),
    ]:
        with pytest.raises(InputError, match=named):
            CausalLM(model, tokenizer=tokenizer, **options)
    with pytest.raises(InputError, match="needs its tokenizer"):
        CausalLM(model)
    with pytest.raises(InputError, match="brings its own"):
        CausalLM(tmp_path, tokenizer=tokenizer)
    with pytest.raises(InputError, match="precision"):
        CausalLM(saved(tmp_path / "m", tiny), precision="int3")


def test_without_torch_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises((MissingExtraError, ImportError), match="torch"):
        CausalLM("x")
