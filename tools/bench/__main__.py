"""`python -m bench [NAME ...]`: measures the figures of docs/figures.md. Every figure is a ratio within one run.

adapters   mixed adapters, attaching, INT8 against FP32, inside one process
compression  half the layers, or half the heads and neurons: size and time; training in INT8 beside the INT8 graph
deadlines  goodput, refusals and waiting under up to three times capacity, simulated
generate   tokens per second, first token, streams at once, adapters by turns, switched and merged, memory
grammar    structured answers: masks of 150,000 tokens, memory, decode speed with a schema
rows       answers alone and in hostile company, per number format; INT8 and FP16 against FP32
runtimes   LiteRT beside ONNX Runtime: speed, error of INT8 (needs make litert)
requests   a request over MQTT against the same computation in this process; saturation; idle memory and start
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench import adapters, compression, deadlines, generate, grammar, requests, rows, runtimes

PARTS = {
    "adapters": adapters.main,
    "compression": compression.main,
    "deadlines": deadlines.main,
    "generate": generate.main,
    "grammar": grammar.main,
    "requests": requests.main,
    "rows": rows.main,
    "runtimes": runtimes.main,
}


def main(arguments: Sequence[str]) -> int:
    """Run the named parts, or all."""
    unknown = [name for name in arguments if name not in PARTS]
    if unknown:
        print(f"bench: no part {unknown[0]!r}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    return max(PARTS[name]([]) for name in (arguments or PARTS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
