"""`kill -9` at any moment: the same command with --resume ends at the dataset that was never interrupted."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import numbered_jpeg

NUM_ROWS = 100_000
NUM_KILLS = 30
KILLS_A_RUN = 5


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 rows, of which every 997th is no image."""
    path = tmp_path_factory.mktemp("kill") / "corpus.parquet"
    images = [b"no image" if number % 997 == 0 else numbered_jpeg(number) for number in range(NUM_ROWS)]
    ids = [f"{number:06d}" for number in range(NUM_ROWS)]
    captions = [f"caption of {number}" for number in range(NUM_ROWS)]
    pq.write_table(pa.table({"id": ids, "image": images, "caption": captions}), path, row_group_size=10_000)
    return path


def start(table: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "clipkit", "ingest", str(table), str(out), "--resume", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(table: Path, out: Path) -> None:
    process = start(table, out)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def wait_for_a_shard(out: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not any((out / "_ingest").glob("shard-*.json")):
        time.sleep(0.01)


def rows_of(out: Path) -> pa.Table:
    return lance.dataset(str(out)).to_table().combine_chunks()


def test_killed_ingests_end_as_if_nothing_had_happened(table: Path, tmp_path: Path) -> None:
    chance = random.Random(20_26)
    whole = tmp_path / "whole" / "out.lance"
    whole.parent.mkdir()
    started = time.monotonic()
    finish(table, whole)
    duration_s = time.monotonic() - started
    expected = rows_of(whole)
    assert len(expected) == NUM_ROWS - len(range(0, NUM_ROWS, 997))
    rejected = (whole.parent / "rejected.jsonl").read_text().splitlines()

    num_resumed = 0
    for run in range(NUM_KILLS // KILLS_A_RUN):
        out = tmp_path / f"run{run}" / "out.lance"
        out.parent.mkdir()
        for kill in range(KILLS_A_RUN):
            process = start(table, out)
            if kill % 2:  # on a busy machine hardly any time drawn at random falls between two shards
                wait_for_a_shard(out, process)
            time.sleep(chance.uniform(0.1, 1.0) * (duration_s / 10 if kill % 2 else duration_s))
            process.kill()
            process.communicate()
            num_resumed += any((out / "_ingest").glob("shard-*.json"))
        finish(table, out)
        assert rows_of(out).equals(expected)
        assert len((out.parent / "rejected.jsonl").read_text().splitlines()) == len(rejected)
        assert not (out / "_ingest").exists()
        assert lance.dataset(str(out)).version == 1
        num_files = sum(len(fragment.data_files()) for fragment in lance.dataset(str(out)).get_fragments())
        assert num_files == len(list((out / "data").iterdir())), "files of a killed shard were left behind"
    assert num_resumed >= NUM_KILLS // 5, "hardly a kill fell between two shards"
