"""Ctrl-C, SIGTERM, a full disk, a source that vanishes, two ingests at once: nothing is lost, and it is said."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lance
import pytest
from small_corpus import read_rows, rejected_lines, write_corpus

from clipkit.errors import DataError
from clipkit.store import Dataset
from clipkit.store.locks import exclusive
from clipkit.workflows.ingest import IngestOptions, MaxRejected, Summary, ingest

RunCli = Callable[..., subprocess.CompletedProcess[str]]
MakeCorpus = Callable[..., Path]
NUM_IMAGES = 30_000
NOBODY = 65534


@pytest.fixture(scope="module")
def large_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("large") / "corpus", range(NUM_IMAGES))


def start(*args: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "clipkit", "ingest", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "waited for a minute"
        time.sleep(0.005)


def is_writing(out: Path) -> bool:
    return any(path.stat().st_size > 0 for path in (out / "data").glob("*.lance"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_there(large_corpus: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "o.lance"
    process = start(large_corpus, out)
    wait_for(lambda: is_writing(out))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert list((out / "_ingest").glob("shard-*.json"))
    with pytest.raises(DataError, match="is not finished"):
        Dataset(out)
    without_resume = start(large_corpus, out)
    assert "--resume" in without_resume.communicate(timeout=60)[1]
    assert without_resume.returncode == 1
    resumed = start(large_corpus, out, "--resume")
    assert resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert [row["image_id"] for row in read_rows(out)] == [f"{n:06d}.jpg" for n in range(NUM_IMAGES)]


def test_overwrite_starts_over_after_an_interrupt(large_corpus: Path, make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = tmp_path / "o.lance"
    process = start(large_corpus, out)
    wait_for(lambda: is_writing(out))
    process.kill()
    process.communicate()
    ingest([str(make_corpus(range(5)))], str(out), IngestOptions(mode="overwrite"))
    assert lance.dataset(str(out)).count_rows() == 5
    assert len(list((out / "data").iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_disk_that_is_full(make_corpus: MakeCorpus, large_corpus: Path, tmp_path: Path) -> None:
    """Files may not grow beyond a megabyte: the kernel refuses the write, as it does on a full disk."""
    out = tmp_path / "o.lance"
    ingest([str(make_corpus(range(5)))], str(out), IngestOptions())
    command = f"ulimit -f 1000; exec {sys.executable} -m clipkit ingest {large_corpus} {out} --overwrite"
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 1
    assert "error: " in process.stderr
    assert "--resume" in process.stderr
    assert lance.dataset(str(out)).count_rows() == 5
    resumed = start(large_corpus, out, "--overwrite", "--resume")
    resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert lance.dataset(str(out)).count_rows() == NUM_IMAGES


def test_a_source_that_vanishes(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus, out = make_corpus(range(3000)), tmp_path / "o.lance"

    class Unmount:
        def update(self, *, rows: int, rejected: int, num_bytes: int) -> None:
            if corpus.exists():
                corpus.rename(tmp_path / "elsewhere")

    with pytest.raises(DataError, match="vanished") as caught:
        ingest([str(corpus)], str(out), IngestOptions(), progress=Unmount())
    assert "--resume" in caught.value.hint
    (tmp_path / "elsewhere").rename(corpus)
    summary = ingest([str(corpus)], str(out), IngestOptions(resume=True))
    assert (summary.total_rows, summary.rejected) == (3000, 0)
    assert rejected_lines(tmp_path) == []


def test_a_compressed_source_that_is_cut_short(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus(range(10))
    rows = [f"Images/{number % 10:06d}.jpg,{number * 7919} words" for number in range(2000)]
    whole = gzip.compress("\n".join(["path,text", *rows]).encode())
    (corpus / "table.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read any further"):
        ingest([str(corpus / "table.csv.gz")], str(tmp_path / "o.lance"), IngestOptions())
    assert not (tmp_path / "o.lance").exists()


def test_a_source_that_changed_is_not_mixed(large_corpus: Path, tmp_path: Path) -> None:
    out, corpus = tmp_path / "o.lance", tmp_path / "corpus"
    shutil.copytree(large_corpus, corpus, copy_function=os.link)
    process = start(corpus, out)
    wait_for(lambda: is_writing(out))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    lines = (corpus / "captions.txt").read_text().splitlines(keepends=True)
    (corpus / "captions.txt").unlink()
    (corpus / "captions.txt").write_text("".join(lines[:1] + lines[41:]))
    with pytest.raises(DataError, match="has changed"):
        ingest([str(corpus)], str(out), IngestOptions(resume=True))


def test_two_ingests_at_once(large_corpus: Path, make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = tmp_path / "o.lance"
    process = start(large_corpus, out)
    wait_for(lambda: is_writing(out))
    with pytest.raises(DataError, match="another ingest is writing"):
        ingest([str(make_corpus(range(5)))], str(out), IngestOptions(mode="append"))
    assert process.communicate(timeout=120)
    assert process.returncode == 0
    assert lance.dataset(str(out)).count_rows() == NUM_IMAGES


def test_racing_ingests_leave_one_or_both_but_no_row_twice(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    out = tmp_path / "o.lance"
    corpora = [make_corpus(range(first, first + 40), name=f"c{first}") for first in (0, 20, 40)]
    processes = [start(corpus, out, "--append") for corpus in corpora]
    stored: set[str] = set()
    for process, corpus in zip(processes, corpora, strict=True):
        _, errors = process.communicate(timeout=60)
        if process.returncode == 0:
            stored |= {path.name for path in (corpus / "Images").iterdir()}
        else:
            assert "another ingest is writing" in errors
    ids = [row["image_id"] for row in read_rows(out)]
    assert sorted(ids) == sorted(stored)


def test_another_writer_between_plan_and_commit(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    """Somebody who knows nothing of the lock adds one of the ids, or another one."""
    out = tmp_path / "o.lance"
    ingest([str(make_corpus(range(5)))], str(out), IngestOptions())
    template = lance.dataset(str(out)).to_table().slice(0, 1)

    def append_while(image_id: str, numbers: range) -> Summary:
        class Meanwhile:
            done = False

            def update(self, *, rows: int, rejected: int, num_bytes: int) -> None:
                if not self.done:
                    self.done = True
                    row = template.set_column(0, template.schema.field(0), [[image_id]])
                    lance.write_dataset(row, str(out), mode="append")

        more = make_corpus(numbers, name=f"more{numbers.start}")
        return ingest([str(more)], str(out), IngestOptions(mode="append"), progress=Meanwhile())

    assert append_while("theirs", range(5, 8)).total_rows == 9
    with pytest.raises(DataError, match="another writer added"):
        append_while("000009.jpg", range(8, 12))
    ids = [row["image_id"] for row in read_rows(out)]
    assert len(ids) == len(set(ids)) == 10


def test_a_crash_between_commit_and_clean_up(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    """The receipts are still there, and their rows in the dataset: they are not committed again."""
    corpus, out = make_corpus(range(5)), tmp_path / "o.lance"
    ingest([str(corpus)], str(out), IngestOptions())
    more = make_corpus(range(5, 9), name="more")
    (more / "Images" / "000006.jpg").unlink()
    append = IngestOptions(mode="append", resume=True)
    with pytest.raises(DataError, match="--max-rejected"):
        ingest([str(more)], str(out), replace(append, max_rejected=MaxRejected(share=0.001)))
    shutil.copytree(out / "_ingest", tmp_path / "staged")
    assert ingest([str(more)], str(out), append).total_rows == 8
    shutil.copytree(tmp_path / "staged", out / "_ingest")
    assert ingest([str(more)], str(out), append).total_rows == 8
    assert not (out / "_ingest").exists()


def test_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    out = str(tmp_path / "o.lance")
    with exclusive(out), pytest.raises(DataError, match=f"process {os.getpid()}"), exclusive(out):
        pass
    assert not (tmp_path / "o.lance").exists()
    with exclusive(out) as folder:
        (folder / "plan.json").write_text("{}")
    with exclusive(out) as folder:
        assert (folder / "plan.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="no folder can be made in Linux's /proc, not even by root")
def test_a_place_where_no_folder_can_be_made() -> None:
    with pytest.raises(DataError, match="no folder can be created there"), exclusive("/proc/o.lance"):
        pass


@contextmanager
def as_other_user() -> Iterator[None]:
    """Files of mode 700 are closed to this process: root may read everything, so it becomes nobody for a while."""
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(NOBODY)
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_missing_permissions_are_named(make_corpus: MakeCorpus) -> None:
    make_corpus(range(3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        corpus, closed, out = folder / "corpus", folder / "closed", folder / "open" / "o.lance"
        write_corpus(corpus, range(3))
        closed.mkdir(mode=0o000)
        out.parent.mkdir()
        out.parent.chmod(0o777)
        ingest([str(corpus)], str(folder / "o.lance"), IngestOptions())
        with as_other_user(), pytest.raises(DataError, match=f"no permission to write `{closed}/o.lance") as caught:
            ingest([str(corpus)], str(closed / "o.lance"), IngestOptions())
        assert f"`{closed}` belongs to `" in caught.value.hint
        (corpus / "captions.txt").chmod(0o000)
        with (
            as_other_user(),
            pytest.raises(DataError, match=f"no permission to read `{corpus}/captions.txt`") as caught,
        ):
            ingest([str(corpus)], str(out), IngestOptions())
        assert "belongs to" in caught.value.hint
        (corpus / "captions.txt").chmod(0o644)
        (corpus / "Images").chmod(0o000)
        with as_other_user(), pytest.raises(DataError, match=f"no permission to read `{corpus}/Images"):
            ingest([str(corpus)], str(out), IngestOptions())
        (corpus / "Images").chmod(0o755)
        closed.chmod(0o755)
