"""Batches from worker processes: what is reported of them, and that no trouble of theirs is a hang."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from clipkit.config import DataConfig
from clipkit.data.loader import Loader, build_loader
from clipkit.errors import DataError
from clipkit.types import ImageSpec


def loader_of(path: str, *, batch_size: int = 10, **data: Any) -> Loader:
    config = DataConfig(dataset=path, image_size=32, worker_kind="processes", workers=2, **data)
    return build_loader(config, spec=ImageSpec(32), tokenizer=None, batch_size=batch_size, seed=5)


def worker_pids() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid and "clipkit" in child.name]


def test_stages_are_timed_and_closing_ends_the_processes(plain_dataset: str) -> None:
    loader = loader_of(plain_dataset)
    with closing(loader), closing(loader.iterate()) as batches:
        for _ in range(5):
            next(batches)
        assert len(worker_pids()) == 2
    assert not worker_pids()
    assert {"read", "decode", "transform", "wait"} <= loader.stats().stages_s.keys()


def test_a_killed_worker_is_an_error(plain_dataset: str) -> None:
    loader = loader_of(plain_dataset)
    with closing(loader), closing(loader.iterate()) as batches:
        next(batches)
        os.kill(worker_pids()[0], signal.SIGKILL)
        with pytest.raises(DataError, match="was killed by SIGKILL while"):
            list(itertools.islice(batches, 20))
    assert not worker_pids()


def test_a_stall_is_reported_and_survived(plain_dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    loader = loader_of(plain_dataset, stall_timeout_s=0.3)
    with closing(loader), closing(loader.iterate(0, 20)) as batches:
        steps = [next(batches).step]
        stopped = worker_pids()[0]
        os.kill(stopped, signal.SIGSTOP)

        def go_on(record: logging.LogRecord) -> bool:
            os.kill(stopped, signal.SIGCONT)
            return True

        caplog.handler.addFilter(go_on)
        with caplog.at_level(logging.WARNING, logger="clipkit"):
            steps += [batch.step for batch in batches]
        caplog.handler.removeFilter(go_on)
    assert steps == list(range(20))
    assert f"pid {stopped}: " in caplog.text


def test_closing_ends_a_worker_that_is_stopped(plain_dataset: str) -> None:
    loader = loader_of(plain_dataset)
    with closing(loader), closing(loader.iterate()) as batches:
        next(batches)
        os.kill(worker_pids()[0], signal.SIGSTOP)
    assert not worker_pids()


@pytest.fixture(scope="module")
def damaged_dataset(write_dataset: Any, jpeg: Callable[..., bytes]) -> str:
    return str(write_dataset([jpeg(60, 40, seed=i) if i != 7 else b"not an image" for i in range(40)]))


def test_a_bad_row_is_named(damaged_dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="clipkit"):
        loader = loader_of(damaged_dataset)
        with closing(loader), closing(loader.iterate(0, 4)) as batches:
            assert sum(batch.num_replaced for batch in batches) == 1
    assert "`image-7` (row 7)" in caplog.text
    loader = loader_of(damaged_dataset, bad_rows="stop")
    with (
        closing(loader),
        closing(loader.iterate(0, 4)) as batches,
        pytest.raises(DataError, match=r"`image-7` \(row 7\)"),
    ):
        list(batches)


SCRIPT = """
import signal
import sys
from clipkit.config import DataConfig
from clipkit.data.loader import build_loader
from clipkit.types import ImageSpec

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    config = DataConfig(dataset=sys.argv[1], image_size=32, worker_kind="processes", workers=2)
    loader = build_loader(config, spec=ImageSpec(32), tokenizer=None, batch_size=10, seed=5)
    for batch in loader.iterate():
        print(batch.step, flush=True)
"""


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_program(plain_dataset: str, tmp_path: Any, kind: signal.Signals) -> None:
    """Ctrl-C, which reaches the whole group, and the end of the program alone."""
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    program = subprocess.Popen(
        [sys.executable, script, plain_dataset],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    assert [int(program.stdout.readline()) for _ in range(4)] == [0, 1, 2, 3]  # all processes are at work
    if kind == signal.SIGINT:
        os.killpg(program.pid, kind)
    else:
        program.kill()
    _, stderr = program.communicate(timeout=60)  # until the last process lets go of the pipes
    assert program.returncode == -kind
    if kind == signal.SIGINT:
        assert stderr.count("Traceback") == 1, stderr
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(program.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process is left")
