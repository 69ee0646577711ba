"""INT8 encoders on an x86 CPU without VNNI, emulated: products as exact as with it, alone and in a batch.

Without VNNI, ONNX Runtime's fast kernel adds neighbouring products in 16 bits that saturate (docs/decisions/0160).
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from edge_forge.export.onnx.graph import save
from edge_forge.export.onnx.quantize import quantize_per_token
from tests.support import small_graph

QEMU = "qemu-x86_64"
HASWELL = "fpu pni ssse3 fma sse4_1 sse4_2 popcnt avx f16c bmi1 avx2 bmi2"
ROWS = [[place % small_graph.VOCABULARY for place in range(first, 2 * first + 3)] for first in range(1, 8)]
CHILD = """
import json, sys
from edge_agent.backends.api import Limits, SessionJob
from edge_agent.backends.cpu_words import cpu_words
from edge_agent.backends.onnx import OnnxBackend

session = OnnxBackend().load({"model": sys.argv[1]}, {"max_rows": 16, "max_tokens": 24, "threads": 1})
rows = json.loads(sys.argv[2])
for number, given in enumerate([rows, *([row] for row in rows)]):
    session.submit(SessionJob(str(number), None, given, {}))
    found = session.step(Limits(16, 1))[0].outputs["features"].tolist()
    print(json.dumps(found))
print(json.dumps(sorted(cpu_words())))
"""


def features(model, *emulator):
    """Features [rows, width] of ROWS in one batch and one by one, and the CPU's words, from a process of its own."""
    command = [*emulator, sys.executable, "-c", CHILD, str(model), json.dumps(ROWS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stderr
    batch, *alone, words = map(json.loads, ended.stdout.splitlines())
    return np.asarray(batch), np.concatenate(alone), set(words)


def test_int8_is_as_exact_without_vnni_as_with_it(tmp_path):
    if shutil.which(QEMU) is None or os.uname().machine != "x86_64":
        text = f"NO {QEMU} HERE: INT8 on x86 without VNNI was NOT checked; apt-get install qemu-user"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    model = tmp_path / "int8.onnx"
    save(quantize_per_token(small_graph.encoder()), model)
    # Files below the emulator's folder stand before the machine's own.
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"flags\t\t: {HASWELL}\n")
    batch, alone, words = features(model, QEMU, "-cpu", "Haswell", "-L", str(tmp_path))
    assert words == set(HASWELL.split()), "the emulated process reads the emulated CPU's words"
    reference, _ = small_graph.reference(ROWS, None)
    # Quantisation itself; saturated sums are 0.15 off.
    assert np.abs(batch - reference).max() < 0.01
    assert np.abs(batch - alone).max() < 1e-5
    here, _, _ = features(model)
    assert np.abs(batch - here).max() < 1e-5
