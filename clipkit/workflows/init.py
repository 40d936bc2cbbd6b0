"""A training config that fits a dataset and this machine, as YAML with comments."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import pyarrow.compute as pc

from clipkit.config.file import parse_config
from clipkit.data.tokenizer import train_tokenizer
from clipkit.errors import DataError
from clipkit.hardware import choose_device, usable_cores
from clipkit.images.header import BadImage, parse_header
from clipkit.store import Dataset, Rows

MAX_CAPTIONS, MAX_IMAGES = 20_000, 200  # that are looked at
TOKEN_LIMIT = 128
VALIDATION_SPLITS = ("dev", "val", "valid", "validation", "test")  # the first that the dataset has
ENGLISH_WORDS = {"the", "with", "and", "of", "is"}
LARGE_VOCABULARIES = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI"}  # scripts with many letters, or without spaces
ENGLISH_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
OTHER_ENCODER = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"

TEMPLATE = """\
# Written by `clipkit init` for {num_rows:,} training images and {machine}.
# `clipkit config` explains every key and its default. The device and the number format are chosen at the start.

run: {{name: {name}, seed: 0}}

data:
  dataset: {dataset}
  train: {train}
  validation: {validation}
  image_size: {image_size}
  augment: {{kind: random_resized_crop, scale: [0.5, 1.0], flip: {flip}, color_jitter: 0.2}}
  max_tokens: {max_tokens}  # {share_cut:.1%} of the captions are longer

{model}
train:
  duration: {epochs}ep  # {steps:,} steps
  batch_size: {batch_size}  # a larger batch has more negatives and needs more memory
  validate_every: {interval}ep
  checkpoint_every: {interval}ep
  keep: 1
"""
NEW_MODEL = """\
# Both encoders are trained from scratch, which takes many images. `clipkit init --pretrained` starts from published
# weights instead. A folder with a pretrained text encoder also helps (`--set model.text.name=FOLDER`): it stays frozen.
model:
  image: {{kind: timm, name: {image_encoder}}}
  text:
    kind: transformers
    architecture: {{vocab_size: {vocab_size}, hidden_size: 256, layers: {layers}, heads: 4, dropout: 0.1}}
    remember: true  # a frozen text encoder encodes each caption only once
  head: {{kind: linear, bias: true}}
  embedding_dim: 256

optim:
  groups:
    image_encoder: {{lr: 1e-3, weight_decay: 0.1}}
    text_encoder: {{lr: 5e-4, weight_decay: 0.1}}
    heads: {{lr: 1e-3, weight_decay: 0.1}}
  schedule: {{kind: cosine, warmup: 5%}}
  freeze: {{text_encoder: pretrained}}
"""
PRETRAINED_MODEL = """\
# Both encoders start from published weights. The text encoder stays frozen, so each caption is encoded only once.
model:
  image: {{kind: timm, name: {image_encoder}, pretrained: true}}
  text: {{kind: transformers, name: {text_encoder}, remember: true}}
  head: {{kind: linear, bias: true}}
  embedding_dim: 256

optim:
  groups:
    image_encoder: {{lr: 3e-4, weight_decay: 0.1}}
    text_encoder: {{lr: 1e-5, weight_decay: 0.1}}
    heads: {{lr: 1e-3, weight_decay: 0.1}}
  schedule: {{kind: cosine, warmup: 5%}}
  freeze: [text_encoder]
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine of this kind trains in reasonable time."""

    name: str
    max_batch: int
    image_size: int
    new_encoder: str
    pretrained_size: int
    pretrained_encoder: str


def this_machine() -> Machine:
    if choose_device().type == "cpu":
        name = f"a CPU with {usable_cores()} usable cores"
        return Machine(name, 256, 80, "resnet10t", 128, "resnet18.a1_in1k")
    return Machine("a GPU", 512, 160, "resnet26t", 224, "resnet50.a1_in1k")


@dataclass(frozen=True, slots=True)
class Language:
    """What the captions ask of the text encoder."""

    is_english: bool
    flip: bool  # whether an image may be mirrored: not where captions mention left and right
    vocab_size: int
    max_tokens: int
    share_cut: float  # of the captions, at `max_tokens`


def propose_config(uri: str, *, pretrained: bool = False) -> str:
    """The text of a valid config for this dataset; with `pretrained` it starts from published weights.

    It is the same for the same dataset and kind of machine. Raises DataError.
    """
    dataset = Dataset(uri)
    train, validation, note = _choose_filters(dataset)
    rows = dataset.select(train)
    if len(rows) < 2:
        raise DataError(f"`{uri}` has {len(rows)} training rows", "training needs at least 2 images")
    machine = this_machine()
    language = _measure_captions(dataset, _spread(rows, MAX_CAPTIONS))
    batch_size = _batch_size(len(rows), machine.max_batch)
    samples, max_epochs = (60_000, 10) if pretrained else (200_000, 30)
    epochs = max(5, min(max_epochs, samples // len(rows)))
    model = (PRETRAINED_MODEL if pretrained else NEW_MODEL).format(
        image_encoder=machine.pretrained_encoder if pretrained else machine.new_encoder,
        text_encoder=ENGLISH_ENCODER if language.is_english else OTHER_ENCODER,
        vocab_size=language.vocab_size,
        layers=2 if len(rows) < 50_000 else 4,
    )
    text = TEMPLATE.format(
        num_rows=len(rows),
        machine=machine.name,
        name=_quoted(re.sub(r"[^A-Za-z0-9._-]", "-", PurePath(uri).stem).lstrip(".") or "run"),
        dataset=_quoted(uri),
        train=_quoted(train),
        validation=_quoted(validation) + note,
        image_size=_image_size(dataset, rows, machine.pretrained_size if pretrained else machine.image_size),
        flip=str(language.flip).lower(),
        max_tokens=language.max_tokens,
        share_cut=language.share_cut,
        model=model,
        epochs=epochs,
        steps=epochs * (len(rows) // batch_size),
        batch_size=batch_size,
        interval=max(1, epochs // 10),
    )
    parse_config(text, source="clipkit init")
    return text


def _quoted(value: str | None) -> str:
    return json.dumps(value, ensure_ascii=False)


def _choose_filters(dataset: Dataset) -> tuple[str | None, str | None, str]:
    """The filters for training and validation, and a comment on the second."""
    splits: set[str | None] = {None}
    if "split" in dataset.schema.names:
        splits = set(pc.unique(dataset.read(["split"])[0]).to_pylist())
    held_out = next((name for name in VALIDATION_SPLITS if name in splits), None)
    if "train" in splits:
        train = "split = 'train'"
    elif held_out and len(splits) > 1:
        train = f"split is null or split != '{held_out}'"
    else:
        return None, None, "  # nothing is set apart; `clipkit ingest` does that with `--val-fraction 0.1`"
    if held_out is None:
        return train, None, "  # no split is set apart for it"
    note = "  # the best checkpoint is chosen by the test images" if held_out == "test" else ""
    return train, f"split = '{held_out}'", note


def _spread(rows: Rows, num: int) -> Rows:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(np.int64))]


def _batch_size(num_rows: int, largest: int) -> int:
    """The power of two that makes 8 or more steps an epoch, where there are enough rows."""
    return min(largest, max(16, 2 ** int(math.log2(num_rows / 8))), num_rows) if num_rows > 8 else num_rows


def _image_size(dataset: Dataset, rows: Rows, wanted: int) -> int:
    """The size wanted, or less where most of the images are smaller; a multiple of 16."""
    sides = []
    for data in dataset.take_images(_spread(rows, MAX_IMAGES)):
        try:
            info = parse_header(data)
        except BadImage:
            continue
        sides.append(min(info.width, info.height))
    return min(wanted, max(32, int(np.median(sides)) // 16 * 16)) if sides else wanted


def _measure_captions(dataset: Dataset, rows: Rows) -> Language:
    """Train a vocabulary on the captions and count their tokens: 99 of 100 captions fit into `max_tokens`."""
    captions = [caption for texts in dataset.take_captions(rows) for caption in texts][:MAX_CAPTIONS]
    if not captions:
        raise DataError(f"the training rows of `{dataset.uri}` have no captions", "`clipkit info` counts the captions")
    letters = Counter(letter for caption in captions for letter in caption.lower() if letter.isalpha())
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[unicodedata.name(letter, "?").split()[0]] += count
    script = max(scripts, key=scripts.__getitem__, default="?")
    words = [set(re.findall(r"\w+", caption.lower())) for caption in captions]
    vocab_size = max(8000 if script in LARGE_VOCABULARIES else 4000, 1000 + 2 * len(letters))
    tokenizer = train_tokenizer(
        captions, vocab_size=vocab_size, lowercase=True, max_tokens=TOKEN_LIMIT, padding="longest"
    )
    lengths = np.array([len(ids) for ids in tokenizer.encode(captions)])
    max_tokens = min(TOKEN_LIMIT, 8 * math.ceil(np.quantile(lengths, 0.99) / 8))
    return Language(
        is_english=script == "LATIN" and bool(np.mean([bool(found & ENGLISH_WORDS) for found in words]) > 0.3),
        flip=bool(np.mean([bool(found & {"left", "right"}) for found in words]) < 0.01),
        vocab_size=vocab_size,
        max_tokens=max_tokens,
        share_cut=float(np.mean(lengths > max_tokens)),
    )
