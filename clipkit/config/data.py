"""`data`: which rows are trained on, and how they become batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from clipkit.config.fields import (
    Conflicts,
    Count,
    CountOrZero,
    Fraction,
    Number,
    Positive,
    Section,
    is_section,
)


class NoAugment(Section):
    kind: Literal["none"] = "none"
    """The image resized to a square of `image_size`, in training as in validation."""


class RandomResizedCrop(Section):
    kind: Literal["random_resized_crop"] = "random_resized_crop"
    """A random part of the image, resized to a square of `image_size`."""
    scale: tuple[Positive, Positive] = (0.6, 1.0)
    """The share of the image's area that a crop covers, from and to."""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Width to height of a crop, from and to."""
    flip: bool = False
    """Mirror half of the images. Leave it off where captions speak of left and right."""
    color_jitter: Fraction = 0.0
    """Strength of random brightness, contrast and saturation; 0 is off."""
    random_erasing: Fraction = 0.0
    """The share of images that get a random rectangle blanked; 0 is off."""

    @model_validator(mode="after")
    def _ordered(self) -> RandomResizedCrop:
        problems = []
        if not self.scale[0] <= self.scale[1] <= 1:
            problems.append(("scale", "must be [from, to] with 0 < from <= to <= 1"))
        if self.ratio[0] > self.ratio[1]:
            problems.append(("ratio", "must be [from, to] with from <= to"))
        if problems:
            raise Conflicts(problems)
        return self


class RandomCrop(Section):
    kind: Literal["random_crop"] = "random_crop"
    """The image resized by its short side, then a random square of `image_size` cut out of it."""
    resize: Count
    """The short side in pixels before the square is cut out."""
    flip: bool = False
    """Mirror half of the images. Leave it off where captions speak of left and right."""
    color_jitter: Fraction = 0.0
    """Strength of random brightness, contrast and saturation; 0 is off."""
    random_erasing: Fraction = 0.0
    """The share of images that get a random rectangle blanked; 0 is off."""


Augment = Annotated[NoAugment | RandomResizedCrop | RandomCrop, Field(discriminator="kind")]


class BlockShuffle(Section):
    block: Count
    """Rows in a block: neighbours are read together and blocks are mixed (for object stores)."""


Shuffle = Annotated[Annotated[bool, Tag("plain")] | Annotated[BlockShuffle, Tag("section")], Discriminator(is_section)]


class Source(Section):
    dataset: str
    """Path or URI of the Lance dataset."""
    weight: Positive = 1.0
    """How often rows of this dataset are drawn, in proportion to the others' weights."""
    train: str | None = None
    """SQL over this dataset's columns; `data.train` when left out."""


class HardNegatives(Section):
    column: str
    """An embedding column; rows whose embeddings are near each other share a batch."""
    group_size: Count = 4
    """Rows in a group; a batch is made of whole groups."""


class Features(Section):
    """Stored encoder outputs that are trained on in place of images or captions."""

    image: str | None = None
    """A column of fixed-size vectors that stands for the image encoder's output."""
    text: str | None = None
    """A column of fixed-size vectors that stands for the text encoder's output."""


class DataConfig(Section):
    dataset: str | None = None
    """Path or URI of the Lance dataset."""
    sources: tuple[Source, ...] = ()
    """Several datasets, mixed by weight, in place of `dataset`."""
    train: str | None = None
    """SQL over the columns that chooses the training rows; every row when left out."""
    validation: str | None = None
    """SQL that chooses the validation rows; no validation when left out."""
    limit: Count | None = None
    """Use only the first so many rows that the training filter chose."""
    image_id_column: str = "image_id"
    """The column of the images' own names."""
    image_column: str = "image"
    """The column of the encoded images."""
    captions_column: str = "captions"
    """The column of captions: text, or a list of texts."""
    image_size: Count = 224
    """Width and height in pixels that the image encoder gets."""
    mean: tuple[Number, Number, Number] | None = None
    """Mean of the pixel values (0..1) to normalise with; the image encoder's own when left out."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of the pixel values; goes with `mean`."""
    resize: Literal["squash", "crop", "pad"] | None = None
    """How an image becomes a square: squashed, its middle cut out, or padded. The model's own way, or squash, when
    left out."""
    interpolation: Literal["fast", "bilinear", "bicubic"] | None = None
    """`bilinear` and `bicubic` give Pillow's pixels, which published models were trained on; `fast` takes a fraction of
    the time. The model's own, or fast, when left out."""
    caption: Literal["random", "longest", "first", "each"] = "random"
    """Which caption of an image a sample takes; `each` makes a sample of every caption."""
    augment: Augment = NoAugment()
    """What training does to an image; validation resizes, and with `random_crop` takes the square in the middle."""
    max_tokens: Count = 32
    """Longer captions are cut; their share is reported."""
    padding: Literal["longest", "max"] = "longest"
    """Pad captions to the longest of the batch (rounded up to 8), or to `max_tokens`."""
    shuffle: Shuffle = True
    """A new order each epoch, over all rows or block by block; false keeps the stored order."""
    group_by: str | None = None
    """A column: rows that share a value there are kept in one batch."""
    hard_negatives: HardNegatives | None = None
    """Fill batches with images that are hard to tell apart."""
    drop_last: bool = True
    """Leave out an epoch's last batch where it is smaller than the others."""
    features: Features = Features()
    """Train on stored encoder outputs, for encoders that stay frozen."""
    cache: Count | None = None
    """Train from decoded pixels, cached in the dataset at this size; made when missing (`clipkit cache`)."""
    keep_images_mb: CountOrZero = 225
    """Keep the encoded images in memory where all of them take at most so many megabytes."""
    decode: Literal["scaled", "full"] = "scaled"
    """`scaled` decodes a JPEG at a half, quarter or eighth where that is still as large as what is needed; `full` comes
    closest to Pillow's pixels, and is slower: it decodes all of it, and averages whatever shrinks."""
    workers: CountOrZero | None = None
    """How many threads decode; one for each usable core when left out."""
    prefetch: Count = 4
    """Batches that are made ready ahead of the step."""
    bad_rows: Literal["replace", "stop"] = "replace"
    """A row whose image cannot be decoded, or without a caption: another takes its place, or the run stops."""
    stall_timeout_s: Positive = 120.0
    """Seconds without a batch after which the log says which stage has not moved."""

    @model_validator(mode="after")
    def _fits_together(self) -> DataConfig:
        problems = []
        if bool(self.dataset) == bool(self.sources):
            problems.append(("dataset", "give either `dataset` or `sources`"))
        if (self.mean is None) != (self.std is None):
            problems.append(("mean" if self.std is None else "std", "`mean` and `std` go together"))
        if isinstance(self.augment, RandomCrop) and self.augment.resize < self.image_size:
            problems.append(("augment.resize", f"must be at least `image_size`, {self.image_size}"))
        grouped = "group_by" if self.group_by else "hard_negatives"
        others = {
            "`hard_negatives`": self.group_by and self.hard_negatives,
            "`shuffle: {block: …}`": isinstance(self.shuffle, BlockShuffle),
            "`caption: each`": self.caption == "each",
        }
        given = " and ".join(other for other, is_given in others.items() if is_given)
        if given and (self.group_by or self.hard_negatives):
            problems.append((grouped, f"which samples share a batch is also decided by {given}; give one of them"))
        if problems:
            raise Conflicts(problems)
        return self
