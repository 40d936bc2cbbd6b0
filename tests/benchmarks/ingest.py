"""Ingest against what else writes images to disk: `python tests/benchmarks/ingest.py [copy] [resize] [memory]`.

Every writer gets the same files from a warm cache, interleaved, and the median of the runs counts; start-up of
Python is left out. Prints Markdown tables; the temporary files (2 GB) go where TMPDIR points.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

NUM_RUNS = 3
CLIPKIT = """
import json, resource, sys
from clipkit.workflows.ingest import IngestOptions, ingest
from clipkit.images.prepare import ImageOptions
resize = int(sys.argv[3]) or None
summary = ingest([sys.argv[1]], sys.argv[2], IngestOptions(image=ImageOptions(resize=resize)))
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({**summary.as_json(), "peak_mb": peak_mb}))
"""


@dataclass(frozen=True)
class Corpus:
    name: str
    folder: Path
    paths: list[Path]


Writer = Callable[[Corpus, Path], float]  # gives seconds


def make_corpus(folder: Path, name: str, *, num_images: int, size: tuple[int, int], quality: int) -> Corpus:
    """Noisy pictures, each of its own bytes, in Kaggle's Flickr8k format."""
    images = folder / name / "Images"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    pixels = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
    encoded = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()
    with open(folder / name / "captions.txt", "w") as captions:
        captions.write("image,caption\n")
        for number in range(num_images):
            comment = f"{number:08d}".encode()
            marker = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (images / f"{number:06d}.jpg").write_bytes(encoded[:2] + marker + encoded[2:])
            captions.writelines(f"{number:06d}.jpg,caption {i} of {number}\n" for i in range(5))
    title = f"{num_images:,} files of {len(encoded) // 1000} KB"
    return Corpus(title, folder / name, sorted(images.iterdir()))


def clipkit(folder: Path, out: Path, *, resize: int = 0) -> dict[str, float]:
    command = [sys.executable, "-c", CLIPKIT, str(folder), str(out), str(resize)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def copy(corpus: Corpus, out: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(corpus.folder), str(out)], check=True)
    return time.perf_counter() - started


def shard_writer(corpus: Corpus, out: Path) -> float:
    from webdataset import ShardWriter

    out.mkdir()
    started = time.perf_counter()
    with ShardWriter(f"{out}/%06d.tar", maxcount=10_000, verbose=0) as writer:
        for path in corpus.paths:
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "json": ["caption"] * 5})
    return time.perf_counter() - started


def mds_writer(corpus: Corpus, out: Path) -> float:
    from streaming import MDSWriter

    columns = {"id": "str", "image": "bytes", "captions": "json"}
    started = time.perf_counter()
    with MDSWriter(out=str(out), columns=columns) as writer:
        for path in corpus.paths:
            writer.write({"id": path.name, "image": path.read_bytes(), "captions": ["caption"] * 5})
    return time.perf_counter() - started


def encode_only(corpus: Corpus, out: Path) -> float:
    """Decoding, resizing and encoding on all cores, from memory, with nothing stored."""
    cv2.setNumThreads(1)
    images = [path.read_bytes() for path in corpus.paths]

    def work(data: bytes) -> int:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        factor = 256 / min(pixels.shape[:2])
        small = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        return len(cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, 90))[1])

    started = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(work, images))
    return time.perf_counter() - started


def compare(corpus: Corpus, folder: Path, writers: dict[str, Writer]) -> dict[str, float]:
    """Median seconds a writer, the runs interleaved."""
    for path in corpus.paths:
        path.read_bytes()
    times: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(NUM_RUNS):
        for name, write in writers.items():
            out = folder / "out"
            times[name].append(write(corpus, out))
            shutil.rmtree(out, ignore_errors=True)
    return {name: statistics.median(values) for name, values in times.items()}


def copying(folder: Path) -> None:
    """Images stored as they are."""
    writers: dict[str, Writer] = {
        "clipkit ingest": lambda corpus, out: clipkit(corpus.folder, out)["seconds"],
        "cp -r": copy,
        "webdataset ShardWriter": shard_writer,
    }
    if importlib.util.find_spec("streaming"):
        writers["mosaicml MDSWriter"] = mds_writer
    print_times(make_corpus(folder, "small", num_images=8000, size=(224, 224), quality=89), folder, writers)
    print_times(make_corpus(folder, "large", num_images=3000, size=(640, 430), quality=94), folder, writers)


def resizing(folder: Path) -> None:
    """Images encoded anew."""
    writers: dict[str, Writer] = {
        "clipkit ingest --resize 256": lambda corpus, out: clipkit(corpus.folder, out, resize=256)["seconds"],
        "decode, resize and encode alone": encode_only,
    }
    print_times(make_corpus(folder, "large", num_images=1500, size=(640, 430), quality=94), folder, writers)


def print_times(corpus: Corpus, folder: Path, writers: dict[str, Writer]) -> None:
    times = compare(corpus, folder, writers)
    own = next(iter(times.values()))
    print(f"\n| {corpus.name} | s | clipkit is |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {seconds:.2f} | {seconds / own:.2f} x as fast |")


def memory(folder: Path) -> None:
    print("\n| rows | peak MB | to the first row, s | all, s |\n|---|---|---|---|")
    for num_images in (10_000, 100_000):
        corpus = make_corpus(folder, f"rows{num_images}", num_images=num_images, size=(160, 120), quality=80)
        print_row(f"{num_images:,}", clipkit(corpus.folder, folder / "out"))
        shutil.rmtree(corpus.folder)
        shutil.rmtree(folder / "out")
    corpus = make_corpus(folder, "lines", num_images=20, size=(64, 64), quality=80)
    with open(corpus.folder / "captions.txt", "w") as captions:
        captions.write("image,caption\n")
        for number in range(200_000):
            os.link(corpus.paths[number % 20], corpus.paths[0].with_name(f"x{number:06d}.jpg"))
            captions.writelines(f"x{number:06d}.jpg,caption {i} of {number}\n" for i in range(5))
    print_row("200,000 with a million captions", clipkit(corpus.folder, folder / "out"))


def print_row(name: str, result: dict[str, float]) -> None:
    print(f"| {name} | {result['peak_mb']:.0f} | {result['first_row_s']:.2f} | {result['seconds']:.1f} |")


def main() -> None:
    parts = {"copy": copying, "resize": resizing, "memory": memory}
    for name in sys.argv[1:] or parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder))


if __name__ == "__main__":
    main()
