"""FP32 and INT8 of one case stand in one line of the table of adapters."""

from __future__ import annotations

from bench.adapters import FormatLine, TimedRow, by_format


def row(name: str, reference: str, cpu: float) -> TimedRow:
    return TimedRow(name, reference, 1.0, 9.0, cpu, 9.0, "<= 1.10")


def test_formats_of_one_case_are_columns_and_what_has_one_format_has_one_column() -> None:
    found = by_format(
        [
            row("fp32: graph without bank", "fp32: graph without bank", 1.0),
            row("fp32 r=8 attention: 8 adapters", "fp32 r=8 attention: one adapter", 1.04),
            row("attach r=8 on attention", "attach r=8 on attention", 1.0),
            row("load merged fp32", "attach r=8 on attention", 185.0),
            row("int8 r=8 attention: 8 adapters", "int8 r=8 attention: one adapter", 1.05),
            row("load merged int8", "attach r=8 on attention", 76.0),
            row("int8 r=8 attention: base alone", "int8: graph without bank", 1.12),
        ]
    )
    assert found == [
        FormatLine("r=8 attention: 8 adapters", "r=8 attention: one adapter", "1.04", "1.05", "<= 1.10"),
        FormatLine("load merged", "attach r=8 on attention", "185.00", "76.00", "<= 1.10"),
        FormatLine("r=8 attention: base alone", "graph without bank", "", "1.12", "<= 1.10"),
    ]
