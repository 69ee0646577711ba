"""Headers of generators as their files would give them."""

from edge_agent.bundle.gguf_memory import GgufHeader

SMOL = GgufHeader(
    arch="llama",
    blocks=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    kv_width=30 * 3 * 64,
    embedding=576,
    feed_forward=1536,
    vocab=49152,
    context_length=8192,
    tensor_bytes=143_235_000,
    file_type=7,
    tokenizer="gpt2",
    chat_template=None,
    adapter_type=None,
    adapter_alpha=None,
    base_id=None,
)
"""SmolLM2-135M in Q8_0."""
