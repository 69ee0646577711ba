"""Memory of a generator: the arithmetic that package, install, load and worker share. Pure.

bytes = weights + cache (2 x layers x kv heads x head size x context x sequences x bytes per value) + work. `fitted` and
`advice` say which context would fit into a number of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from edge_agent.base.limits import ANSWERS_BEYOND, CONTEXT_TOKENS, MIB
from edge_agent.base.units import bytes_text

KV_BYTES: Final = {"f16": 2.0, "q8_0": 34 / 32}
"""Bytes per cached value; q8_0 keeps 32 values and one scale in 34 bytes."""
KV_BLOCK: Final = {"f16": 1, "q8_0": 32}
CONTEXT_STEP = 256
"""llama.cpp pads the context of every sequence to this many cells."""
SMALLEST_CONTEXT = 2 * CONTEXT_STEP
"""A context is never shrunk below this: a shorter one does not hold a conversation."""
PROCESS_BYTES = 60 * MIB
"""A worker's interpreter, numpy and llama.cpp's libraries before any model (PSS)."""
CANDIDATE_BYTES = 12
"""What llama.cpp's samplers hold for each token of the vocabulary and each answer: id, logit and probability."""
GPU_BYTES = 300 * MIB
"""What CUDA takes by itself in a process that uses a GPU; 150 to 300 MB are reported of Jetson Nano and Orin."""
SEQUENCES, KV_TYPE, BATCH = 4, "f16", 256
"""Defaults where neither the operator nor the package sets them."""
CONTEXT_OPTION, SEQUENCES_OPTION, BATCH_OPTION = (0, CONTEXT_TOKENS), (1, 64), (8, 4096)
SIZE_OPTIONS: Final[Mapping[str, tuple[int, int]]] = {
    "context": CONTEXT_OPTION,
    "sequences": SEQUENCES_OPTION,
    "batch": BATCH_OPTION,
}
"""Options of a load that decide how many bytes it takes, with the least and the most that they may be; context 0: as
the package's task says. A figure outside would predict a memory below nothing, or beyond any board."""


def fits_range(name: str, value: object) -> bool:
    """Whether a value is a whole number that the option takes."""
    lowest, highest = SIZE_OPTIONS[name]
    return type(value) is int and lowest <= value <= highest


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A model (or, with `adapter_type`, an adapter) as its file describes it; counts, and bytes for tensors.

    `kv_width` is the sum over the layers of kv heads times head size: what one cell of the cache holds of K, and again
    of V. `file_type` is llama.cpp's number of the predominant format, `context_length` what the model was trained on.
    """

    arch: str
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_width: int
    embedding: int
    feed_forward: int
    vocab: int
    context_length: int
    tensor_bytes: int
    file_type: int | None
    tokenizer: str | None
    chat_template: str | None
    adapter_type: str | None
    adapter_alpha: float | None
    base_id: str | None
    special_token_ids: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Ids of the special tokens that the file names: `bos`, `eos`, `unk`, `pad`."""
    space_prefix: str = "never"
    """Whether the tokenizer puts a space before a text ('never', 'first'), or before each piece ('always')."""
    spares_spaces: bool = False
    """Whether it puts none where there is one already."""
    nfc: bool = False
    """Whether texts are composed (Unicode NFC) before they are split."""
    takes_spaces_before: frozenset[int] = frozenset()
    takes_spaces_behind: frozenset[int] = frozenset()
    """Ids of added tokens that take the spaces before or behind them along."""


class Need(NamedTuple):
    """Bytes by purpose; `arena_bytes` is the work: graph, logits, process."""

    weights_bytes: int
    cache_bytes: int
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class GeneratorOverrides:
    """The operator's settings for generators; None: as the package says. `shrink`: load with a shorter context, or
    fewer sequences, where memory is too small, instead of refusing."""

    context: int | None = None
    sequences: int | None = None
    kv_type: str | None = None
    shrink: bool = False

    def text(self) -> str:
        """The settings as one text, for the state file; empty where nothing is set."""
        found = {"context": self.context, "sequences": self.sequences, "kv_type": self.kv_type}
        words = [f"{name}={value}" for name, value in found.items() if value is not None]
        return " ".join([*words, *(["shrink"] if self.shrink else [])])


@dataclass(frozen=True, slots=True)
class Demand:
    """What a generator is loaded with: tokens of one sequence, sequences, format of the cache, tokens per call."""

    context: int
    sequences: int = SEQUENCES
    kv_type: str = KV_TYPE
    batch: int = BATCH

    def text(self) -> str:
        """For sentences."""
        return f"a context of {self.context} tokens for {self.sequences} sequence{'s' if self.sequences > 1 else ''}"


def need(header: GgufHeader, demand: Demand) -> Need:
    """Bytes that a worker will hold.

    weights: all tensors, mapped from the file and touched by every step.
    cache: 2 (K and V) x kv_width x cells x bytes per value, cells = sequences x context padded to 256
    (equal to the KV buffer that llama.cpp's log reports).
    arena: llama.cpp's largest graph, that of a full prompt batch. At its widest point it holds, per token of the batch
    in float32, the residual stream twice and the wider of attention (4 x embedding) and feed-forward (2 x its width);
    then for each of `sequences` and of `ANSWERS_BEYOND` the logits of an output, once in the graph and once in our
    copy, and the candidates of its sampler; and the process itself.
    """
    cells = demand.sequences * padded(demand.context)
    cache = int(2 * header.kv_width * cells * KV_BYTES[demand.kv_type])
    logits = (2 * 4 + CANDIDATE_BYTES) * (demand.sequences + ANSWERS_BEYOND) * header.vocab
    return Need(header.tensor_bytes, cache, _graph_bytes(header, demand) + logits + PROCESS_BYTES)


def gpu_layers(header: GgufHeader) -> int:
    """The layers that a GPU can compute: the blocks, and the output as the last."""
    return header.blocks + 1


def gpu_need(header: GgufHeader, demand: Demand) -> int:
    """Bytes beside `need` where a GPU computes some layers, in memory that GPU and processor share: CUDA itself, and
    the graph a second time. Weights and cache are in the GPU's buffers then and no longer in the process: they move."""
    return GPU_BYTES + _graph_bytes(header, demand)


def _graph_bytes(header: GgufHeader, demand: Demand) -> int:
    widest = max(4 * header.embedding, 2 * header.feed_forward)
    tokens = min(demand.batch, demand.sequences * padded(demand.context))
    return 4 * tokens * (2 * header.embedding + widest)


def padded(context: int) -> int:
    """The cache cells that llama.cpp allocates for a sequence of this context."""
    return -(-context // CONTEXT_STEP) * CONTEXT_STEP


def fitted(header: GgufHeader, demand: Demand, allowed_bytes: float) -> Demand | None:
    """The demand reduced until it fits: context halved, then fewer sequences. None: it never fits."""
    while sum(need(header, demand)) > allowed_bytes:
        smaller = padded(demand.context // 2)
        if SMALLEST_CONTEXT <= smaller < demand.context:
            demand = replace(demand, context=smaller)
        elif demand.sequences > 1:
            demand = replace(demand, sequences=demand.sequences - 1)
        else:
            return None
    return demand


def arithmetic(header: GgufHeader, demand: Demand) -> str:
    """The bytes of the demand as a sum with its factors, for people."""
    found = need(header, demand)
    even = header.blocks * header.kv_heads * header.head_dim == header.kv_width
    width = f"{header.blocks} layers x {header.kv_heads} kv heads x {header.head_dim}" if even else f"{header.kv_width}"
    return (
        f"{demand.text()} takes weights {bytes_text(found.weights_bytes)} + cache {bytes_text(found.cache_bytes)} "
        f"(2 x {width} x {padded(demand.context)} tokens x {demand.sequences} x {KV_BYTES[demand.kv_type]:g} bytes, "
        f"{demand.kv_type}) + work {bytes_text(found.arena_bytes)} = {bytes_text(sum(found))}"
    )


def advice(header: GgufHeader, demand: Demand, allowed_bytes: float) -> str:
    """What would fit into so many bytes, and the settings that choose it, for people."""
    shrinks = fitted(header, demand, allowed_bytes) is not None
    by_itself = "; models.shrink_context = true finds one by itself" if shrinks else ""
    for sequences in dict.fromkeys((demand.sequences, 1)):
        for kv_type in dict.fromkeys(
            (demand.kv_type, *(k for k, block in KV_BLOCK.items() if header.head_dim % block == 0))
        ):
            context = _longest(header, replace(demand, sequences=sequences, kv_type=kv_type), allowed_bytes)
            if context is None:
                continue
            settings = [f"models.context = {context}"]
            settings += [f"models.sequences = {sequences}"] if sequences != demand.sequences else []
            settings += [f'models.kv_type = "{kv_type}"'] if kv_type != demand.kv_type else []
            smaller = replace(demand, context=context, sequences=sequences)
            return f"{smaller.text()} would fit ({', '.join(settings)}){by_itself}"
    return f"no context fits beside its weights: at least {SMALLEST_CONTEXT} tokens are needed"


def _longest(header: GgufHeader, demand: Demand, allowed_bytes: float) -> int | None:
    """The longest context up to the demand's that fits, in steps of the cache; None below the smallest."""
    low, high = SMALLEST_CONTEXT // CONTEXT_STEP, demand.context // CONTEXT_STEP
    if high < low or sum(need(header, replace(demand, context=low * CONTEXT_STEP))) > allowed_bytes:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if sum(need(header, replace(demand, context=middle * CONTEXT_STEP))) <= allowed_bytes:
            low = middle
        else:
            high = middle - 1
    return low * CONTEXT_STEP
