"""Real GGUF models of a few layers for tests; the writer is the bench's."""

from bench.random_gguf import (
    ALPHA,
    BASE_ID,
    BOS,
    END,
    EOS,
    SMOLLM2_135M,
    TEMPLATE,
    TINY,
    TURN,
    Lora,
    Shape,
    write_adapter,
    write_model,
)

__all__ = [
    "ALPHA",
    "BASE_ID",
    "BOS",
    "END",
    "EOS",
    "SMOLLM2_135M",
    "TEMPLATE",
    "TINY",
    "TURN",
    "Lora",
    "Shape",
    "write_adapter",
    "write_model",
]
