"""`clipkit bench`: the speed of the loader against decoding alone, and of the training step with and without it."""

from __future__ import annotations

import contextlib
import itertools
import math
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
import torch

from clipkit.config import DataConfig
from clipkit.data.device import prefetch_to_device
from clipkit.data.inputs import Input, Pixels, Tokens
from clipkit.data.loader import Loader, build_loader
from clipkit.data.training_rows import TrainingRows
from clipkit.hardware import usable_cores
from clipkit.images.decode import JpegDecoder, choose_divisor, decode, decode_with_opencv, fastest_decoder
from clipkit.images.header import BadImage, parse_header
from clipkit.images.resize import resize_fast
from clipkit.tasks import TaskContext, build_task
from clipkit.train.process import process_group
from clipkit.train.session import Session
from clipkit.types import Batch, ImageSpec, Progress, Tokenizer, no_progress
from clipkit.workflows.train import build_training

SEED = 0
ROUNDS = 5
LOADER_ROUNDS = 15  # many short turns, so that other load on the machine affects both measurements alike
CEILING_BYTES, CEILING_IMAGES = 64_000_000, 4096  # kept in memory
ROUND_S = 5.0  # after which a round of steps ends early


@dataclass(frozen=True, slots=True)
class LoaderReport:
    images_per_s: float
    ceiling_images_per_s: float | None
    """Of decoding (or reading the pixel cache) and resizing the same images in memory; None without images."""
    ratio: float | None
    first_batch_s: float
    peak_rss_mb: float
    stages_ms: dict[str, float]
    """Time per batch in each stage, summed over threads; `wait` is how long an idle consumer waits."""
    batch_size: int
    workers: int
    decoder: str
    advice: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StepReport:
    samples_per_s: float
    synthetic_samples_per_s: float
    ratio: float
    batch_size: int
    device: str


def inputs_of_training(session: Session) -> Sequence[Input]:
    """The inputs of the config's task."""
    config = session.config
    return build_task(TaskContext(config, TrainingRows(config.data))).inputs()


def plain_inputs(config: DataConfig, tokenizer: Tokenizer | None) -> Sequence[Input]:
    """Pixels and, with a tokenizer, tokens of a dataset without a config."""
    inputs: list[Input] = [Pixels(config, ImageSpec(config.image_size), seed=SEED)]
    return [*inputs, Tokens(tokenizer, column=config.captions_column)] if tokenizer is not None else inputs


def bench_loader(
    config: DataConfig, inputs: Sequence[Input], *, batch_size: int, seconds: float, progress: Progress = no_progress
) -> LoaderReport:
    """Measure the loader and its ceiling in turns, for about `seconds` each, and report medians."""
    started = time.perf_counter()
    loader = build_loader(config, inputs, batch_size=batch_size, seed=SEED)
    pixels = next((input_ for input_ in inputs if isinstance(input_, Pixels)), None)
    with closing(loader):
        with closing(loader.iterate()) as batches:
            next(batches)
            first_batch_s = time.perf_counter() - started
        _loader_speed(loader, seconds / ROUNDS)  # fills what is kept in memory
        peak_rss_mb = _peak_rss_mb()  # before the images of the ceiling are loaded
        ceiling = None if pixels is None else _make_ceiling(loader, pixels, config)
        speeds, ceilings = [], []
        for number in range(LOADER_ROUNDS):
            speeds.append(_loader_speed(loader, seconds / LOADER_ROUNDS))
            if ceiling is not None:
                ceilings.append(ceiling(seconds / LOADER_ROUNDS))
            progress(number + 1, LOADER_ROUNDS)
        stats = loader.stats()
    images_per_s = statistics.median(speeds)
    ceiling_per_s = statistics.median(ceilings) if ceilings else None
    stages_ms = {stage: round(1000 * spent_s / stats.num_batches, 3) for stage, spent_s in stats.stages_s.items()}
    return LoaderReport(
        images_per_s=round(images_per_s, 1),
        ceiling_images_per_s=round(ceiling_per_s, 1) if ceiling_per_s else None,
        ratio=round(images_per_s / ceiling_per_s, 3) if ceiling_per_s else None,
        first_batch_s=round(first_batch_s, 3),
        peak_rss_mb=round(peak_rss_mb, 1),
        stages_ms=stages_ms,
        batch_size=batch_size,
        workers=usable_cores() if config.workers is None else config.workers,
        decoder=_decoder_name(config),
        advice=_advise(config, stages_ms, stats.image_mb_per_epoch, images_per_s, ceiling_per_s),
    )


def bench_step(session: Session, *, num_steps: int, progress: Progress = no_progress) -> StepReport:
    """Samples per second of a config's training step, in rounds of at most `num_steps` steps and about `ROUND_S`."""
    with process_group(session.config.train) as device:
        training = build_training(session, device)
        training.engine.prepare(progress)

        def train_step(batch: Batch, index: int) -> object:
            return training.engine.train_step(batch, step=index)

        synthetic_s, real_s = [], []
        with closing(training.loader) as loader, closing(loader.iterate()) as on_host:
            batches = prefetch_to_device(on_host, device)
            batch = next(batches)
            for index in range(2):  # warm-up: kernels are chosen, memory is allocated
                train_step(batch, index)
            for number in range(ROUNDS):
                synthetic_s.append(time_steps(lambda: batch, train_step, device, num_steps))
                progress(2 * number + 1, 2 * ROUNDS)
                time_steps(lambda: next(batches), train_step, device, loader.prefetch)  # loaded during the steps before
                real_s.append(time_steps(lambda: next(batches), train_step, device, num_steps))
                progress(2 * number + 2, 2 * ROUNDS)
    size = len(batch)
    synthetic, real = statistics.median(synthetic_s), statistics.median(real_s)
    return StepReport(
        samples_per_s=round(size / real, 1),
        synthetic_samples_per_s=round(size / synthetic, 1),
        ratio=round(synthetic / real, 3),
        batch_size=size,
        device=str(device),
    )


def time_steps(
    batch: Callable[[], Batch], train_step: Callable[[Batch, int], object], device: torch.device, num_steps: int
) -> float:
    """Seconds per step, over at most `num_steps` steps and about `ROUND_S` seconds."""
    _wait_for(device)
    started = time.perf_counter()
    for index in range(num_steps):
        train_step(batch(), index)
        if time.perf_counter() - started > ROUND_S:
            break
    _wait_for(device)
    return (time.perf_counter() - started) / (index + 1)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _loader_speed(loader: Loader, seconds: float) -> float:
    """Images per second from the second batch on; each call reads new batches."""
    with closing(loader.iterate(loader.stats().num_batches)) as batches:
        next(batches)
        started, count = time.perf_counter(), 0
        for batch in batches:
            count += len(batch)
            if (spent_s := time.perf_counter() - started) > seconds:
                return count / spent_s
    raise AssertionError("an endless loader ended")


def _make_ceiling(loader: Loader, pixels: Pixels, config: DataConfig) -> Callable[[float], float]:
    """A function that measures images per second of the fastest decoder and a resize alone, on the loader's images."""
    work = ceiling_work(loader, pixels, config)
    size_px, num_threads, exact = config.image_size, usable_cores(), config.decode == "full" and not config.cache
    out = np.empty((num_threads, size_px, size_px, 3), np.uint8)
    cv2.setNumThreads(1)

    def measure(seconds: float) -> float:
        counts = [0] * num_threads
        started = time.perf_counter()

        def run(thread: int) -> None:
            for number in itertools.count(thread, num_threads):
                resize_fast(work[number % len(work)](), out[thread], exact=exact)
                counts[thread] += 1
                if counts[thread] % 16 == 0 and time.perf_counter() - started > seconds:
                    return

        threads = [threading.Thread(target=run, args=(thread,)) for thread in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - started)

    return measure


def ceiling_work(loader: Loader, pixels: Pixels, config: DataConfig) -> list[Callable[[], np.ndarray]]:
    """For each image of the first batches, a function that decodes it; the headers are read here."""
    jpeg = fastest_decoder()
    work: list[Callable[[], np.ndarray]] = []
    num_bytes = 0
    steps = range(loader.steps_per_epoch)
    sources = itertools.chain.from_iterable(pixels.fetch(loader.drawn(step)) for step in steps)
    for source in sources:
        if isinstance(source, np.ndarray):
            work.append(partial(source.reshape, config.cache, config.cache, 3))
            num_bytes += source.nbytes
        elif source is not None:
            with contextlib.suppress(BadImage):
                work.append(_decoding(source, config, jpeg))
                num_bytes += source.nbytes
        if num_bytes > CEILING_BYTES or len(work) == CEILING_IMAGES:
            break
    return work


def _decoding(data: memoryview, config: DataConfig, jpeg: JpegDecoder) -> Callable[[], np.ndarray]:
    """A function that decodes an image, which it has done once."""
    info = parse_header(data)
    divisor = choose_divisor(info.width, info.height, config.image_size) if config.decode == "scaled" else 1
    call = partial(decode, memoryview(bytes(data)), info, divisor=divisor, jpeg=jpeg)
    call()
    return call


def _decoder_name(config: DataConfig) -> str:
    if config.cache:
        return "pixel cache"
    return "opencv" if fastest_decoder() is decode_with_opencv else "simplejpeg"


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _advise(
    config: DataConfig,
    stages_ms: dict[str, float],
    image_mb: float,
    images_per_s: float,
    ceiling_per_s: float | None,
) -> list[str]:
    """How to make this loader faster, by where its time is spent."""
    advice = []
    busy = {stage: spent for stage, spent in stages_ms.items() if stage != "wait"}
    total = sum(busy.values()) or 1.0
    if busy.get("decode", 0.0) > 0.6 * total and config.cache is None:
        advice.append(
            f"decoding takes {busy['decode'] / total:.0%} of the work: `clipkit cache DATASET --size "
            f"{max(256, config.image_size)}` and `data.cache` decode once; `clipkit ingest --resize` shrinks the files"
        )
    if config.cache is None and config.features.image is None and _decoder_name(config) == "opencv":
        advice.append("`pip install 'clipkit-train[fast]'` adds a faster JPEG decoder")
    reading = busy.get("read", 0.0) / total
    if reading > 0.4:
        advice.append(
            f"reading takes {reading:.0%} of the work: put the dataset on a local disk, or read neighbouring rows "
            "together with `data.shuffle: {block: 1024}`"
        )
    if reading > 0.1 and image_mb:
        advice.append(
            f"reading takes {reading:.0%} of the work: if memory allows, keep the images in it with "
            f"`data.keep_images_mb: {math.ceil(1.1 * image_mb)}`"
        )
    if not advice and ceiling_per_s and images_per_s > 0.9 * ceiling_per_s:
        advice.append("the loader is as fast as decoding allows")
    return advice
