"""The loader against its peers and the decode ceiling: `python tests/benchmarks/loader.py [--seconds 4]`.

Every contestant gets the same JPEGs from a warm cache, batches of 64 and two workers; they take turns, and the median
counts. Each peer runs in an environment of its own, with the pinned packages of `peers/requirements-*.txt` before
those of this one (so that torch and OpenCV are the same). Prints a Markdown table. FFCV is not among them: its
package is built from source against OpenCV's and libjpeg-turbo's headers, and has not been released since 2023.

The corpora: Flickr8k (`--flickr8k`, 224 px, delivered at 128) and larger photographs (`--photographs`, repeated to
3,000, delivered at 224).
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import lance
import pyarrow as pa

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "data"
PEERS = {"the tutorial's Dataset": "tutorial", "webdataset": "webdataset", "Hugging Face datasets": "datasets"}
SCRIPTS = {"tutorial": "tutorial.py", "webdataset": "webdataset_peer.py", "datasets": "datasets_peer.py"}
NUM_ROUNDS = 5
NUM_PHOTOGRAPHS = 3000
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", pa.large_binary()),
        ("captions", pa.list_(pa.string())),
    ]  # as a tutorial has it
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flickr8k", type=Path, default=SHARED / "flickr8k")
    parser.add_argument("--photographs", type=Path, default=SHARED / "photographs")
    parser.add_argument("--seconds", type=float, default=3.0, help="a contestant's time in a round")
    parser.add_argument("--tokenizer", help="also measure clipkit with this tokenizer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pythons = {peer: make_environment(work / f"env-{peer}", peer) for peer in SCRIPTS}
        corpora = {
            "f8k at 128": (write(work / "f8k.lance", flickr8k(options.flickr8k)), 128),
            "ic at 224": (write(work / "ic.lance", photographs(options.photographs)), 224),
        }
        results = {
            name: compare(work / name.split()[0], dataset, size_px, pythons, options.seconds, options.tokenizer)
            for name, (dataset, size_px) in corpora.items()
        }
    print_table(results)


def make_environment(folder: Path, peer: str) -> Path:
    """A virtual environment with the peer's pinned packages, and this one's behind them."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    requirements = HERE / "peers" / f"requirements-{peer}.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", requirements], check=True)
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(site.strip()) / "behind.pth").write_text(sysconfig.get_path("purelib"))
    return python


def flickr8k(folder: Path) -> Iterator[dict[str, object]]:
    captions: dict[str, list[str]] = defaultdict(list)
    with (folder / "captions.txt").open(encoding="utf-8", newline="") as file:
        for name, *text in list(csv.reader(file))[1:]:
            captions[name].append(",".join(text))
    for name, texts in captions.items():
        yield {"image_id": name, "image": (folder / "Images" / name).read_bytes(), "captions": texts}


def photographs(folder: Path) -> Iterator[dict[str, object]]:
    paths = sorted(folder.glob("*.jpg"))
    for number in range(NUM_PHOTOGRAPHS):
        path = paths[number % len(paths)]
        yield {"image_id": f"{number}-{path.name}", "image": path.read_bytes(), "captions": [f"photograph {number}"]}


def write(path: Path, rows: Iterator[dict[str, object]]) -> Path:
    batches = (pa.RecordBatch.from_pylist([row], schema=SCHEMA) for row in rows)
    lance.write_dataset(pa.RecordBatchReader.from_batches(SCHEMA, batches), str(path), data_storage_version="2.2")
    return path


def compare(
    folder: Path, dataset: Path, size_px: int, pythons: dict[str, Path], seconds: float, tokenizer: str | None
) -> dict[str, tuple[float, float]]:
    """Median images a second and seconds to the first batch, by contestant."""
    for peer, python in pythons.items():
        subprocess.run([python, HERE / "peers" / SCRIPTS[peer], "prepare", dataset, folder / peer], check=True)
    speeds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(NUM_ROUNDS):
        for name, peer in PEERS.items():
            script = [pythons[peer], HERE / "peers" / SCRIPTS[peer], "run", folder / peer, size_px, seconds]
            report = last_json(script)
            speeds[name].append((report["images_per_s"], report["first_batch_s"]))
        for name, extra in {"clipkit": [], "clipkit, tokenized": ["--tokenizer", tokenizer]}.items():
            if extra and tokenizer is None:
                continue
            command = [sys.executable, "-m", "clipkit", "bench", "loader", "--dataset", dataset, "--json"]
            report = last_json([*command, "--image-size", size_px, "--seconds", seconds, *extra])
            speeds[name].append((report["images_per_s"], report["first_batch_s"]))
            if not extra:
                speeds["ceiling: decode and resize alone"].append((report["ceiling_images_per_s"], 0.0))
    return {
        name: (statistics.median(speed for speed, _ in runs), statistics.median(first for _, first in runs))
        for name, runs in speeds.items()
    }


def last_json(command: list[object]) -> dict[str, float]:
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_table(results: dict[str, dict[str, tuple[float, float]]]) -> None:
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, images a second (seconds to the first batch)\n"
    )
    print("| | " + " | ".join(results) + " |")
    print("|---" * (len(results) + 1) + "|")
    for name in next(iter(results.values())):
        cells = [
            f"{speed:,.0f} ({first:.1f})" if first else f"{speed:,.0f}"
            for speed, first in (result[name] for result in results.values())
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
