"""Tiny causal language models with random weights, and tokenizers trained on a few sentences."""

from __future__ import annotations

from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n{{ message['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CORPUS = [
    "the water of the old river is blue and the bird is in the city",
    "a cat and a dog are in the mountain where the old bird is",
    "yes no Yes No YES NO true false",
    "Passage A Passage B Passage C Passage D Passage E A B C D E",
    "Given a query which of the following passages is the most relevant one to the query",
    "Query Document Instruct Judge whether the Document meets the requirements relevant",
] * 20
SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}


def byte_level(special: list[str], added: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def fast(tokenizer: Any, **options: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def qwen(seed: int = 0) -> tuple[Any, Any]:
    """Qwen 3: ChatML, thinking marks that are no special tokens, untied embeddings."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = fast(
        byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        **SIZE,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=16384,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).eval(), tokenizer


def gemma(seed: int = 0) -> tuple[Any, Any]:
    """Gemma 2: a first token, no system turn, sliding windows every other layer, soft-capped logits."""
    import torch
    from tokenizers import processors
    from transformers import Gemma2Config, Gemma2ForCausalLM

    trained = byte_level(["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], [])
    trained.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", trained.token_to_id("<bos>"))]
    )
    tokenizer = fast(trained, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=GEMMA)
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        **SIZE,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        query_pre_attn_scalar=8,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Gemma2ForCausalLM(config).eval(), tokenizer


def llama(seed: int = 0) -> tuple[Any, Any]:
    """Llama without a chat template: a base model with a first token."""
    import torch
    from tokenizers import processors
    from transformers import LlamaConfig, LlamaForCausalLM

    trained = byte_level(["<unk>", "<s>", "</s>"], [])
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", trained.token_to_id("<s>"))]
    )
    tokenizer = fast(trained, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **SIZE,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


MAKERS = {"qwen": qwen, "gemma": gemma, "llama": llama}
