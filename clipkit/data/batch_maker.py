"""From a step to its batch, in stages that several threads share: read, decode, finish."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from clipkit.config import DataConfig
from clipkit.data.device import cuda_is_initialized
from clipkit.data.inputs import DecodedInput, Decoding, Input, Pixels
from clipkit.data.order import base as order
from clipkit.data.order.base import WHOLE, Draw, Order, Permutation, Share
from clipkit.data.random import key
from clipkit.data.samples import DrawnSamples, Samples
from clipkit.errors import DataError
from clipkit.types import Batch

log = logging.getLogger(__name__)

STAND_IN_PURPOSE = 3
MAX_STAND_INS = 256


class Clock:
    """Seconds spent by stage, added up over threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - started)


@dataclass(slots=True)
class UnfinishedBatch:
    """A batch whose samples are being decoded."""

    step: int
    epoch: int
    whole: Draw  # the batch of all ranks
    samples: DrawnSamples
    tensors: dict[str, torch.Tensor]
    decodings: Sequence[tuple[DecodedInput, Decoding]]
    failed: dict[int, str] = field(default_factory=dict)  # place to reason

    def __len__(self) -> int:
        return len(self.samples)


class BatchMaker:
    """Makes the batches of one rank."""

    def __init__(
        self,
        samples: Samples,
        training_order: Order,
        inputs: Sequence[Input],
        config: DataConfig,
        *,
        seed: int | None,
        share: Share = WHOLE,
    ) -> None:
        """Without a seed, as in evaluation, no row is replaced: an image that cannot be decoded is left blank."""
        self.samples = samples
        self.order = training_order
        self.config = config
        self.clock = Clock()
        self.pins_memory = True  # if a GPU is in use
        self._inputs = inputs
        self._replaces = seed is not None
        self._stand_in_seed = int(key(seed or 0, STAND_IN_PURPOSE))
        self._share = share
        self._reported: set[int] = set()
        for input_ in inputs:
            for part in samples.parts:
                input_.check(part.dataset)
            input_.prepare(samples)
            if isinstance(input_, Pixels):
                input_.report_time = self.clock.add

    def read(self, step: int) -> UnfinishedBatch:
        """Read this rank's share of a batch; its images are not decoded yet."""
        whole = order.draw(self.order, step)
        drawn = whole.at(self._share.positions(len(whole)))
        return self._read(step, step // order.steps_per_epoch(self.order), drawn, whole)

    def drawn(self, step: int) -> DrawnSamples:
        """The samples of a step on all ranks."""
        return self.samples.at(order.draw(self.order, step))

    def make(self, drawn: Draw) -> Batch:
        """A batch of exactly these samples, made in the calling thread."""
        batch = self._read(0, 0, drawn, drawn)
        self.decode(batch, 0, len(batch))
        return self.finish(batch)

    def _read(self, step: int, epoch: int, drawn: Draw, whole: Draw) -> UnfinishedBatch:
        pin_memory = self.pins_memory and cuda_is_initialized()
        samples = self.samples.at(drawn)
        with self.clock.time("read"):
            _ = samples.image_ids  # reads the small columns
            failed = self._find_unusable(samples) if self._replaces else {}
            decodings = [
                (input_, input_.start(samples, pin_memory=pin_memory))
                for input_ in self._inputs
                if isinstance(input_, DecodedInput)
            ]
        tensors = {} if failed else self._read_tensors(samples)  # if other rows replace some, it reads them later
        return UnfinishedBatch(step, epoch, whole, samples, tensors, decodings, failed)

    def _read_tensors(self, samples: DrawnSamples) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        for input_ in self._inputs:
            if not isinstance(input_, DecodedInput):
                with self.clock.time(input_.stage):
                    tensors |= input_.read(samples)
        return tensors

    def _find_unusable(self, samples: DrawnSamples) -> dict[int, str]:
        return {place: reason for input_ in self._inputs for place, reason in input_.find_unusable(samples).items()}

    def decode(self, batch: UnfinishedBatch, start: int, stop: int) -> None:
        """Decode some of the batch's samples, and record which fail."""
        for _, decoding in batch.decodings:
            batch.failed |= decoding.decode(start, stop)

    def finish(self, batch: UnfinishedBatch) -> Batch:
        """The batch, once every sample is decoded. Rows that cannot be used are replaced, or raise DataError."""
        samples = batch.samples
        if batch.failed:
            samples = self._replace_failed(batch)
        tensors = dict(batch.tensors)
        for _, decoding in batch.decodings:
            tensors |= decoding.tensors
        return Batch(
            step=batch.step,
            epoch=batch.epoch,
            rows=samples.rows,
            image_ids=samples.image_ids,
            captions=samples.captions if samples.has_captions else [""] * len(samples),
            tensors=tensors,
            num_replaced=len(batch.failed),
        )

    def close(self) -> None:
        self.samples.close()

    def _replace_failed(self, batch: UnfinishedBatch) -> DrawnSamples:
        """Replace rows that cannot be used by other rows, which do not depend on the number of ranks."""
        for place, reason in sorted(batch.failed.items()):
            self._report(batch.samples, place, reason)
        if not self._replaces:
            for place in batch.failed:
                for _, decoding in batch.decodings:
                    decoding.blank(place)
            return batch.samples
        chosen = batch.samples.drawn.samples.copy()
        for place in sorted(batch.failed):
            chosen[place] = self._stand_in(batch, place)
        samples = self.samples.at(Draw(chosen, batch.samples.drawn.epochs))
        batch.tensors = self._read_tensors(samples)
        return samples

    def _report(self, samples: DrawnSamples, place: int, reason: str) -> None:
        row, image_id = int(samples.rows[place]), samples.image_ids[place]
        if self.config.bad_rows == "stop":
            raise DataError(
                f"the image `{image_id}` (row {row}) cannot be used: {reason}",
                "`data.bad_rows: replace` uses another row instead; `clipkit ingest --verify` finds such images",
            )
        if row not in self._reported:
            self._reported.add(row)
            log.warning("the image `%s` (row %d) cannot be used and is replaced: %s", image_id, row, reason)

    def _stand_in(self, batch: UnfinishedBatch, place: int) -> int:
        """The sample that replaces one that cannot be used; it is decoded into its place."""
        failed = batch.samples.drawn.at(np.array([place]))
        for sample in self._stand_ins(failed, batch.whole).tolist():
            other = self.samples.at(Draw(np.array([sample]), failed.epochs))
            if self._find_unusable(other):
                continue
            decodings = [input_.start(other, pin_memory=False) for input_, _ in batch.decodings]
            if any(decoding.decode(0, 1) for decoding in decodings):
                continue
            for (_, decoding), new in zip(batch.decodings, decodings, strict=True):
                decoding.replace(place, new)
            return int(sample)
        raise DataError(
            f"too many rows cannot be used: no other row can replace `{batch.samples.image_ids[place]}` "
            f"({batch.failed[place]})",
            "`clipkit ingest --verify` rejects images that cannot be decoded; `data.train` can exclude rows",
        )

    def _stand_ins(self, failed: Draw, batch: Draw) -> np.ndarray:
        """Samples to try instead of one that failed; rows that are already in the batch come last.

        This rank does not know which stand-ins the others choose, so each place of the batch first tries samples that
        no other place tries.
        """
        num_samples = len(self.samples)
        first = batch.samples[0] + np.flatnonzero(batch.samples == failed.samples)[0]
        own = len(batch) * np.arange(min(num_samples // len(batch), MAX_STAND_INS))
        others = np.arange(min(num_samples, MAX_STAND_INS))
        shuffle = Permutation(num_samples, seed=self._stand_in_seed, epoch=int(batch.epochs[0]))
        tried = shuffle((first + np.concatenate([own, others])) % num_samples)
        is_taken = np.isin(self.samples.rows_of(tried), self.samples.rows_of(batch.samples))
        return np.concatenate([tried[~is_taken], tried[is_taken]])
