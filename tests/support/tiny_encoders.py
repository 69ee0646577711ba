"""Tiny encoders of every supported family on disk (2 layers, width 32, random weights), each with its kind of
tokenizer.

Windows and buckets of positions are shorter than the texts of the tests, so that a mask or a position that is wrong
beyond them shows.
"""

import json
from pathlib import Path

WORDS = [
    "turn",
    "the",
    "lamp",
    "on",
    "off",
    "please",
    "kitchen",
    "light",
    "a",
    "is",
    "it",
    "in",
    "42",
    "degrees",
    "hello",
    "world",
    "heating",
    "down",
    "up",
    "now",
    "and",
    "then",
]
TEXTS = [" ".join(WORDS[place:] + WORDS[:place]) for place in range(len(WORDS))]
POSITIONS = 64
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_ENDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

# Name: kind of tokenizer, class, settings beside the shape.
FAMILIES = {
    "bert": ("wordpiece", "Bert", {"max_position_embeddings": POSITIONS}),
    "roberta": ("bpe", "Roberta", {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, **_ENDS}),
    "xlm-roberta": ("unigram", "XLMRoberta", {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, **_ENDS}),
    "eurobert": ("bpe", "EuroBert", {"max_position_embeddings": POSITIONS, "num_key_value_heads": 2, "mask_token_id": 4,
                          **_ENDS}),
    "distilbert": ("wordpiece", "DistilBert", {"max_position_embeddings": POSITIONS, "dim": 32, "n_layers": 2,
                                               "n_heads": 4, "hidden_dim": 48}),
    "electra": ("wordpiece", "Electra", {"max_position_embeddings": POSITIONS, "embedding_size": 16}),
    "mpnet": ("wordpiece", "MPNet", {"max_position_embeddings": POSITIONS + 2}),
    "modernbert": ("bpe", "ModernBert", {"max_position_embeddings": POSITIONS, "local_attention": 16, "cls_token_id": 0,
                                         "global_attn_every_n_layers": 2, "sep_token_id": 2, **_ENDS}),
    "albert": ("unigram", "Albert", {"max_position_embeddings": POSITIONS, "embedding_size": 16}),
    "deberta-v3": ("unigram", "DebertaV2", {"max_position_embeddings": POSITIONS, "relative_attention": True,
                                            "pos_att_type": ["p2c", "c2p"], "position_buckets": 8,
                                            "share_att_key": True, "norm_rel_ebd": "layer_norm", "pad_token_id": 0,
                                            "position_biased_input": False, "type_vocab_size": 0}),
    "llama": ("bpe", "Llama", {"max_position_embeddings": POSITIONS, "num_key_value_heads": 2, **_ENDS}),
}  # fmt: skip
ENCODERS = tuple(name for name in FAMILIES if name != "llama")


def write(folder: Path, family: str, seed: int = 3, **settings: object) -> Path:
    """Write config.json, model.safetensors and tokenizer.json of a family; `settings` override its configuration."""
    import torch
    import transformers

    torch.set_num_threads(1)  # of a tiny model a second thread only waits
    kind, name, own = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    size = _TOKENIZERS[kind](folder)
    shape = {} if family == "distilbert" else _SHAPE
    config = getattr(transformers, f"{name}Config")(vocab_size=size, **{**shape, **own, **settings})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}Model")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)  # texts of random weights are too much alike otherwise
    model.save_pretrained(folder)
    return folder


def change_config(folder: Path, **settings: object) -> Path:
    """Put settings into a folder's config.json; None removes one."""
    path = folder / "config.json"
    found = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return folder


def _wordpiece(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _saved(tokenizer, folder)


def _bpe(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials, alphabet = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _saved(tokenizer, folder)


def _unigram(folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=specials, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return _saved(tokenizer, folder)


def _saved(tokenizer, folder: Path) -> int:
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


_TOKENIZERS = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}
