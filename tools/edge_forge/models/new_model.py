"""Make a new base: a byte-level BPE tokenizer trained on the recipe's text, and a Llama with random weights.

This is the whole code of the `new-base` step, so that only a change here makes a new base.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edge_forge.data.generator_rows import Row
from edge_forge.recipe.generator_recipe import NewModelSection

# As SmolLM2-Instruct's: texts and turns end with <|im_end|>.
BEGIN, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make(folder: Path, rows: Sequence[Row], shape: NewModelSection, context: int, seed: int) -> None:
    """Write the model folder: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    size = _tokenizer(folder, rows, shape.vocabulary)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=-(-size // 32) * 32,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _tokenizer(folder: Path, rows: Sequence[Row], size: int) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # What llama.cpp knows as 'smollm'.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BEGIN, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The words of the template are in no text, and every prompt holds them.
    texts = [*(turn.text for row in rows for turn in row), *["system\n", "user\n", "assistant\n"] * 50]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BEGIN, "eos_token": END, "pad_token": BEGIN,
        "chat_template": TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")
    found: int = tokenizer.get_vocab_size()
    return found
