"""A tiny real encoder on disk (BERT, 4 layers of width 32, a word tokenizer) and a task that it can learn."""

from pathlib import Path

ON = ["turn the lamp on", "switch on a light please", "the light on now", "lamp on", "please switch the light on"]
OFF = ["turn the lamp off", "switch off a light please", "the light off now", "lamp off", "please switch the light off"]
ROWS = tuple((text, label) for texts, label in ((ON, "on"), (OFF, "off")) for text in texts)
LABELS = ("off", "on")


class Told:
    """Keeps what a training run reports: (phase, share) pairs in `shares`, entries of its curves in `scores`."""

    def __init__(self) -> None:
        self.shares: list[tuple[str, float]] = []
        self.scores: list[dict[str, float]] = []

    def __call__(self, phase: str, share: float) -> None:
        self.shares.append((phase, share))

    def evaluated(self, scores) -> None:
        self.scores.append(dict(scores))


def write(folder: Path) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of a random small BERT into `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    words = sorted({word for text, _ in ROWS for word in text.split()})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
