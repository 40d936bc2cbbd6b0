"""From a step to its batch, in stages that threads or processes can work on: read, decode, finish."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from clipkit.config import DataConfig, NoAugment
from clipkit.data.augment import NUM_UNIFORMS
from clipkit.data.device import a_gpu_is_in_use
from clipkit.data.inputs.pixels import Images, Source, choose_images
from clipkit.data.order import base as order
from clipkit.data.order.base import WHOLE, Draw, Order, Permutation, Share
from clipkit.data.random import key, uniforms
from clipkit.data.samples import Corpus, Texts
from clipkit.errors import DataError
from clipkit.images.header import BadImage
from clipkit.types import Batch, Tokenizer, Tokens

log = logging.getLogger(__name__)

AUGMENT_PURPOSE, STAND_IN_PURPOSE = 2, 3
MAX_STAND_INS = 256
T = TypeVar("T")


class Clock:
    """Seconds spent a stage, added up over threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """The seconds so far; from here it counts anew."""
        with self._lock:
            seconds, self.seconds = self.seconds, {}
        return seconds

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - started)

    def __reduce__(self) -> tuple[type[Clock], tuple[()]]:
        return Clock, ()  # every process has its own


@dataclass(slots=True)
class Work:
    """A batch in the making."""

    step: int
    epoch: int
    draw: Draw
    rows: np.ndarray
    texts: Texts
    sources: Sequence[Source] = ()
    uniforms: list[list[float]] | None = None
    images: torch.Tensor | None = None
    pixels: np.ndarray | None = None  # the same memory as `images`
    tokens: Tokens | None = None
    image_features: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    failed: dict[int, str] = field(default_factory=dict)  # position to reason
    num_replaced: int = 0
    whole: Draw | None = None  # what all ranks have of the batch

    def __len__(self) -> int:
        return len(self.rows)


class BatchMaker:
    """Makes the batches of one rank. Pickles, for worker processes."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        training_order: Order,
        config: DataConfig,
        *,
        size_px: int,
        tokenizer: Tokenizer | None,
        seed: int | None,
        share: Share = WHOLE,
    ) -> None:
        """Without a seed nothing is augmented or replaced, as validation wants it."""
        self.corpora = corpora
        self.order = training_order
        self.config = config
        self.clock = Clock()
        self._size_px = size_px
        self._tokenizer = tokenizer if config.features.text is None else None
        if self._tokenizer is not None:
            for corpus in corpora:
                corpus.tokenize_ahead(self._tokenizer)
        self._seed = seed
        self.pins_memory = True  # where a GPU is in use
        self._share = share
        self._images: Images | None = choose_images(config, corpora)
        self._first_sample = np.cumsum([0, *map(len, corpora)])
        self._first_row = np.cumsum([0, *(len(corpus.dataset) for corpus in corpora)])
        self._augments = seed is not None and not isinstance(config.augment, NoAugment)
        self._augment_key = key(seed or 0, AUGMENT_PURPOSE)
        self._stand_in_seed = int(key(seed or 0, STAND_IN_PURPOSE))
        self._reported: set[int] = set()

    @property
    def max_pixel_bytes(self) -> int:
        """How many bytes the images of a batch have at most."""
        num_images = self._share.limit(self.order.batch_size) if self._images is not None else 0
        return num_images * self._size_px * self._size_px * 3

    def read(self, step: int) -> Work:
        """Everything of a batch but its pixels: rows, texts, tokens, encoded images or stored features."""
        whole = order.draw(self.order, step)
        drawn = whole.at(self._share.positions(len(whole)))
        work = self._read(step, step // order.steps_per_epoch(self.order), drawn)
        work.whole = whole
        return work

    def sources(self, step: int) -> Sequence[Source]:
        """What the images of a step, on all ranks, are made from; not timed."""
        return self._gather(step, 0, order.draw(self.order, step)).sources

    def make_samples(self, drawn: Draw) -> Batch:
        """A batch of these very samples, by the calling thread."""
        work = self._read(0, 0, drawn)
        self.decode(work, 0, len(work))
        return self.finish(work)

    def _read(self, step: int, epoch: int, drawn: Draw) -> Work:
        with self.clock.time("read"):
            work = self._gather(step, epoch, drawn)
        if self._tokenizer is not None:
            with self.clock.time("tokenize"):
                ids = work.texts.token_ids
                work.tokens = self._tokenizer(work.texts.captions) if ids is None else self._tokenizer.pad(ids)
        if self._images is not None:
            shape = (len(work), self._size_px, self._size_px, 3)
            work.images = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pins_memory and a_gpu_is_in_use())
            work.pixels = work.images.numpy()
        return work

    def decode(self, work: Work, start: int, stop: int) -> None:
        """Pixels of some of the batch's samples; what cannot be decoded is noted."""
        if self._images is None or work.pixels is None:
            return
        started, decode_s = time.perf_counter(), 0.0
        for i in range(start, stop):
            try:
                decode_s += self._images.render(
                    work.sources[i],
                    work.texts.orientations[i],
                    work.uniforms[i] if work.uniforms else None,
                    work.pixels[i],
                )
            except BadImage as error:
                work.failed[i] = error.reason
        self.clock.add("decode", decode_s)
        self.clock.add("transform", time.perf_counter() - started - decode_s)

    def finish(self, work: Work) -> Batch:
        """The batch, once every sample is decoded; rows that failed are replaced, or end the run."""
        if work.failed:
            self._replace_failed(work)
        return Batch(
            step=work.step,
            epoch=work.epoch,
            rows=work.rows,
            image_ids=work.texts.image_ids,
            captions=work.texts.captions,
            images=work.images,
            tokens=work.tokens,
            image_features=work.image_features,
            text_features=work.text_features,
            num_replaced=work.num_replaced,
        )

    def close(self) -> None:
        for corpus in self.corpora:
            corpus.close()

    def _gather(self, step: int, epoch: int, drawn: Draw) -> Work:
        """Read the samples from their datasets and put them together in the order drawn."""
        owners = self._owners_of(drawn.samples)
        parts = []
        for owner in np.unique(owners).tolist() or [0]:  # a rank's share may be empty
            places = np.flatnonzero(owners == owner)
            local = Draw(drawn.samples[places] - self._first_sample[owner], drawn.epochs[places])
            parts.append((places, self._gather_one(owner, step, epoch, local)))
        work = parts[0][1] if len(parts) == 1 else _merge(parts, drawn)
        if self._seed is not None and self.config.features.text is None:
            work.failed = {i: "it has no caption" for i, caption in enumerate(work.texts.captions) if not caption}
        return work

    def _gather_one(self, owner: int, step: int, epoch: int, drawn: Draw) -> Work:
        corpus = self.corpora[owner]
        rows = corpus.rows_of(drawn.samples)
        features = self.config.features
        work = Work(step, epoch, drawn, rows + self._first_row[owner], corpus.texts(drawn.samples, drawn.epochs))
        if self._images is not None:
            work.sources = self._images.fetch(corpus, rows)
            if self._augments:
                numbers = uniforms(self._augment_key, work.rows, drawn.epochs, count=NUM_UNIFORMS)
                work.uniforms = numbers.tolist()
        if features.image is not None:
            work.image_features = torch.from_numpy(corpus.vectors(rows, features.image))
        if features.text is not None:
            work.text_features = torch.from_numpy(corpus.vectors(rows, features.text))
        return work

    def _replace_failed(self, work: Work) -> None:
        """Put other rows in the place of those that cannot be used, the same ones whatever the number of ranks."""
        for place, reason in sorted(work.failed.items()):
            self._report(work, place, reason)
        for place in sorted(work.failed):
            self._stand_in(work, place)
        work.num_replaced = len(work.failed)
        if self._tokenizer is not None:
            work.tokens = self._tokenizer(work.texts.captions)

    def _report(self, work: Work, place: int, reason: str) -> None:
        row, image_id = int(work.rows[place]), work.texts.image_ids[place]
        if self.config.bad_rows == "stop":
            raise DataError(
                f"the image `{image_id}` (row {row}) cannot be used: {reason}",
                "`data.bad_rows: replace` puts another row in its place; `clipkit ingest --verify` finds such images",
            )
        if row not in self._reported:
            self._reported.add(row)
            log.warning("the image `%s` (row %d) cannot be used and is replaced: %s", image_id, row, reason)

    def _stand_in(self, work: Work, place: int) -> None:
        if self._seed is None:
            assert work.pixels is not None
            work.pixels[place] = 0
            return
        failed = work.draw.at(np.array([place]))
        for sample in self._stand_ins(failed, failed if work.whole is None else work.whole).tolist():
            other = self._gather(work.step, work.epoch, Draw(np.array([sample]), failed.epochs))
            if work.pixels is not None:
                other.pixels = np.empty((1, self._size_px, self._size_px, 3), np.uint8)
                self.decode(other, 0, 1)
            if not other.failed:
                _replace(work, place, other)
                return
        raise DataError(
            f"too many rows cannot be used: none was found that could stand in for `{work.texts.image_ids[place]}` "
            f"({work.failed[place]})",
            "`clipkit ingest --verify` turns images away that cannot be decoded; `data.train` can leave rows out",
        )

    def _stand_ins(self, failed: Draw, batch: Draw) -> np.ndarray:
        """Samples to try in the place of one that failed: those of rows that the batch has already last.

        It knows nothing of other stand-ins, which other ranks may choose; but each place of the batch has samples of
        its own to try before any others.
        """
        num_samples = int(self._first_sample[-1])
        first = batch.samples[0] + np.flatnonzero(batch.samples == failed.samples)[0]
        own = len(batch) * np.arange(min(num_samples // len(batch), MAX_STAND_INS))
        others = np.arange(min(num_samples, MAX_STAND_INS))
        shuffle = Permutation(num_samples, seed=self._stand_in_seed, epoch=int(batch.epochs[0]))
        tried = shuffle((first + np.concatenate([own, others])) % num_samples)
        is_taken = np.isin(self._rows_of(tried), self._rows_of(batch.samples))
        return np.concatenate([tried[~is_taken], tried[is_taken]])

    def _owners_of(self, samples: np.ndarray) -> np.ndarray:
        """Which corpus each sample is of."""
        owners: np.ndarray = np.searchsorted(self._first_sample, samples, side="right") - 1
        return owners

    def _rows_of(self, samples: np.ndarray) -> np.ndarray:
        """Rows as a batch numbers them: a dataset's after those of the datasets before it."""
        rows = np.empty_like(samples)
        owners = self._owners_of(samples)
        for owner, corpus in enumerate(self.corpora):
            mine = owners == owner
            rows[mine] = self._first_row[owner] + corpus.rows_of(samples[mine] - self._first_sample[owner])
        return rows


def _replace(work: Work, place: int, other: Work) -> None:
    """Put a batch of one in the place of a sample."""
    work.rows[place] = other.rows[0]
    work.texts.image_ids[place] = other.texts.image_ids[0]
    work.texts.captions[place] = other.texts.captions[0]
    for values, others in (
        (work.pixels, other.pixels),
        (work.image_features, other.image_features),
        (work.text_features, other.text_features),
    ):
        if values is not None and others is not None:
            values[place] = others[0]


def _merge(parts: Sequence[tuple[np.ndarray, Work]], drawn: Draw) -> Work:
    """The samples of several datasets as one batch."""
    places = np.argsort(np.concatenate([place for place, _ in parts])).tolist()
    works = [work for _, work in parts]

    def scatter(values: Sequence[Sequence[T]]) -> list[T]:
        joined = [value for part in values for value in part]
        return [joined[place] for place in places]

    def stack(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present)[places] if present else None

    ids = [work.texts.token_ids for work in works if work.texts.token_ids is not None]
    texts = Texts(
        scatter([work.texts.image_ids for work in works]),
        scatter([work.texts.captions for work in works]),
        scatter(ids) if len(ids) == len(works) else None,
        scatter([work.texts.orientations for work in works]),
    )
    numbers = [work.uniforms for work in works if work.uniforms is not None]
    return Work(
        works[0].step,
        works[0].epoch,
        drawn,
        np.concatenate([work.rows for work in works])[places],
        texts,
        sources=scatter([work.sources for work in works]) if works[0].sources else (),
        uniforms=scatter(numbers) if numbers else None,
        image_features=stack([work.image_features for work in works]),
        text_features=stack([work.text_features for work in works]),
    )
