"""Tiny random causal language models of every family that is converted, with tokenizers trained on the spot."""

from pathlib import Path

TEXTS = [
    "Turn on the lamp in the kitchen, please.",
    "It's 21.5 degrees; the window is open.\n\nClose it at 10:45?",
    '{"device": "lamp", "state": "on", "level": 100}',
    "naïve café über Straße 北京 don't  two  spaces",
    "I'll we've they're 12345 ... !!!",
]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def byte_level(split: str = "smollm", size: int = 400):
    """A byte-level BPE tokenizer; `split` is 'gpt-2', 'smollm', 'qwen2' or 'llama3'."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    steps = {
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama3": [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
        "qwen2": [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ],
    }[split]
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def pieces(size: int = 420, prepend: bool = False):
    """A BPE tokenizer over pieces with byte fallback, as Gemma's (or, with `prepend`, Llama 2's)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prepend else replace
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS[:3] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return _with_plain_bytes(tokenizer)


def _with_plain_bytes(tokenizer):
    """Byte pieces belong to the vocabulary only; the trainer can add them as special tokens alone."""
    import json

    from tokenizers import Tokenizer

    found = json.loads(tokenizer.to_str())
    found["added_tokens"] = [one for one in found["added_tokens"] if not one["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(found))


def write(folder: Path, family: str = "llama", seed: int = 3, **shape) -> Path:
    """Write a random model of a family with its tokenizer and chat template into `folder`."""
    import json

    import torch
    import transformers

    torch.manual_seed(seed)
    gemma = family.startswith("gemma") or family == "phi3"
    split = {"llama": "smollm", "mistral": "smollm", "olmo2": "gpt-2", "granite": "smollm", "smollm3": "qwen2",
             "qwen2": "qwen2", "qwen3": "qwen2"}.get(family)  # fmt: skip
    tokenizer = pieces(prepend=family == "phi3") if gemma else byte_level(split)
    names = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"), "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"), "gemma": ("GemmaConfig", "GemmaForCausalLM"),
        "mistral": ("MistralConfig", "MistralForCausalLM"),
        "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"), "granite": ("GraniteConfig", "GraniteForCausalLM"),
        "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"), "phi3": ("Phi3Config", "Phi3ForCausalLM"),
        "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"), "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    }[family]  # fmt: skip
    values = {**_SHAPE, "vocab_size": 448, **shape}
    if family in ("qwen3", "gemma", "gemma2", "gemma3"):
        values["head_dim"] = 32
    if family in ("gemma2", "gemma3"):
        values |= {"query_pre_attn_scalar": 32, "sliding_window": 64}
    if family == "granite":
        values |= {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22,
                   "attention_multiplier": 0.0156}  # fmt: skip
    if family == "smollm3":
        values |= {"num_hidden_layers": 5}
    if gemma:
        values |= {"bos_token_id": 2, "eos_token_id": 1}
    config = getattr(transformers, names[0])(**values)
    model = getattr(transformers, names[1])(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases begin as constants: then no test would notice that they are mixed up.
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "embed" not in name:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    words = ("<bos>", "<eos>", "<pad>", "<unk>") if gemma else ("<|endoftext|>", "<|im_end|>", "<|endoftext|>", None)
    options = dict(zip(("bos_token", "eos_token", "pad_token", "unk_token"), words, strict=True))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**options, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE})
    )
    return folder
