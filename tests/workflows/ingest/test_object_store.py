"""A dataset in an S3-compatible store: Lance speaks to it, with what the environment says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer
from small_corpus import rejected_lines

from clipkit.store import Dataset
from clipkit.store.columns import count_missing, fill_column

MakeCorpus = Callable[..., Path]
OUT = "s3://corpora/folder/o.lance"
OTHER = "s3://corpora/folder/other.lance"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty bucket of a server on loopback, which the environment names."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")  # for Lance in this process; the command sees to it by itself
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    boto3.client("s3").create_bucket(Bucket="corpora")
    yield
    server.stop()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "AWS_ALLOW_HTTP"}


def run(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clipkit", "ingest", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.usefixtures("bucket")
def test_a_dataset_in_a_bucket(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus(range(50))
    (corpus / "Images" / "000007.jpg").write_bytes(b"no")
    done = run(corpus, OUT, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 49
    assert [line["id"] for line in rejected_lines(tmp_path)] == ["000007.jpg"]
    assert run(corpus, OUT, cwd=tmp_path).returncode == 1
    more = make_corpus(range(40, 60), name="more", caption="new")
    assert json.loads(run(more, OUT, "--append", "--json", cwd=tmp_path).stdout)["rows"] == 10
    assert json.loads(run(more, OUT, "--upsert", "--json", cwd=tmp_path).stdout)["total_rows"] == 59
    dataset = Dataset(OUT)
    assert bytes(dataset.take_images([3])[0]) == (corpus / "Images" / "000003.jpg").read_bytes()

    def sizes(current: Dataset, rows: object) -> pa.Array:
        return pa.array([len(image) for image in current.take_images(rows)], pa.int64())

    assert count_missing(fill_column(dataset, pa.field("size", pa.int64()), sizes), "size") == 0


@pytest.mark.usefixtures("bucket")
def test_an_interrupted_ingest_goes_on(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    corpus = make_corpus(range(20_000))
    command = [sys.executable, "-m", "clipkit", "ingest", str(corpus), OTHER]
    process = subprocess.Popen(command, cwd=tmp_path, env=_environment(), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "state").rglob("plan.json")):
        time.sleep(0.005)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "--resume" in errors
    done = run(corpus, OTHER, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert lance.dataset(OTHER).count_rows() == 20_000
    assert not list((tmp_path / "state").rglob("shard-*"))
