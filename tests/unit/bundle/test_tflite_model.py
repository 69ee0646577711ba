"""TensorFlow Lite files at the door: whole, and all tensors inside."""

import contextlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import PackageError
from edge_agent.bundle.tflite_model import check_model


def model(fields=8, **places):
    """A Model table with so many fields, absent but those of `places` (f0=...)."""
    vtable = struct.pack("<HH", 4 + 2 * fields, 4)
    vtable += b"".join(struct.pack("<H", places.get(f"f{number}", 0)) for number in range(fields))
    head = struct.pack("<I", 8 + len(vtable)) + b"TFL3"
    return head + vtable + struct.pack("<i", len(vtable)) + b"\0" * 16


def check(content):
    check_model(io.BytesIO(content), len(content), "model.tflite")


def test_a_table_of_known_fields_passes():
    check(model(f2=4))
    check(model(fields=3, f1=4))
    check(model(fields=12))


@pytest.mark.parametrize("field", ["f8", "f9", "f10"])
def test_a_model_whose_tensors_lie_in_another_file_is_refused(field):
    with pytest.raises(PackageError, match="other files that hold its tensors"):
        check(model(fields=12, **{field: 4}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"\x08\0\0\0ONNX" + b"\0" * 20, "not TFL3"),
        (b"\xff\xff\xff\x7fTFL3" + b"\0" * 20, "leads to byte 2147483647 of 28"),
        (b"\x08\0\0\0TFL3\x40\0\0\0" + b"\0" * 20, "leads to byte -56"),
    ],
)
def test_a_damaged_head_is_refused(content, reason):
    with pytest.raises(PackageError, match=reason):
        check(content)


@given(st.binary(max_size=64))
def test_no_bytes_lead_to_another_error(tail):
    with contextlib.suppress(PackageError):
        check(b"\x08\0\0\0TFL3" + tail)
