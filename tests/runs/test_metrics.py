"""`metrics.jsonl` is cut back to the step that a run is resumed at."""

from __future__ import annotations

import json
from pathlib import Path

from clipkit.runs.metrics import METRICS, cut_metrics, read_metrics


def test_lines_after_a_step_and_a_torn_line_are_cut(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 0.1}) for step in range(1, 10)]
    (tmp_path / METRICS).write_text("\n".join(lines) + '\n{"step": 10, "lo')
    assert [line["step"] for line in cut_metrics(tmp_path, 8)] == [9]
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 9))
    assert cut_metrics(tmp_path, 8) == []
    assert (tmp_path / METRICS).read_text().endswith("}\n")
    cut_metrics(tmp_path, 0)
    assert (tmp_path / METRICS).read_text() == ""


def test_a_file_of_many_blocks_is_cut_to_the_byte(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "note": "x" * (step % 97)}) + "\n" for step in range(1, 6001)]
    for step in (5999, 5000, 1, 0):
        (tmp_path / METRICS).write_text("".join(lines))
        assert [line["step"] for line in cut_metrics(tmp_path, step)] == list(range(step + 1, 6001))
        assert (tmp_path / METRICS).read_text() == "".join(lines[:step])
