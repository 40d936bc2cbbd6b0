"""What a person sees: tables, sizes, errors and logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from clipkit import console


@pytest.fixture
def clipkit_log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("clipkit")
    before = logger.handlers, logger.level, logger.propagate
    console.start_logging()
    yield logger
    logger.handlers, logger.level, logger.propagate = before


def test_a_table_has_its_numbers_to_the_right() -> None:
    table = console.format_table(["", "recall@1", "rank"], [["text to image", "0.5", 12], ["both", "0.25", 3]])
    assert table.splitlines() == [
        "               recall@1  rank",
        "-------------  --------  ----",
        "text to image       0.5    12",
        "both               0.25     3",
    ]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2.5e9, "2.5 GB"), (3e15, "3000.0 TB")]
)
def test_sizes(size: float, text: str) -> None:
    assert console.format_bytes(size) == text


def test_errors_have_the_shape_of_the_house(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error("there is no `x`", "make one")
    console.print_error("without hint")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: there is no `x`\n\nhint: make one\nerror: without hint\n"


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"name": "đứng\nhai", "values": [1, None]})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"name": "đứng\nhai", "values": [1, None]}
    assert "đứng" in line


def test_logs_go_to_stderr_with_their_level(capsys: pytest.CaptureFixture[str], clipkit_log: logging.Logger) -> None:
    clipkit_log.getChild("train").info("step %d", 3)
    clipkit_log.getChild("train").warning("careful")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "step 3\nwarning: careful\n"
