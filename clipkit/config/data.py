"""`data`: the rows to train on, and how they become batches."""

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
    """The image resized to a square of `image_size`, in training and validation alike."""


class RandomResizedCrop(Section):
    kind: Literal["random_resized_crop"] = "random_resized_crop"
    """A random part of the image, resized to a square of `image_size`."""
    scale: tuple[Positive, Positive] = (0.6, 1.0)
    """Smallest and largest share of the image's area that a crop covers."""
    ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Smallest and largest ratio of a crop's width to its height."""
    flip: bool = False
    """Mirror half of the images. Leave it off if captions mention left and right."""
    color_jitter: Fraction = 0.0
    """Strength of random brightness, contrast and saturation; 0 is off."""
    random_erasing: Fraction = 0.0
    """Share of the images in which a random rectangle is blanked; 0 is off."""

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
    """The short side resized to `resize`, then a random square of `image_size` cropped."""
    resize: Count
    """Length in pixels of the short side before cropping."""
    flip: bool = False
    """Mirror half of the images. Leave it off if captions mention left and right."""
    color_jitter: Fraction = 0.0
    """Strength of random brightness, contrast and saturation; 0 is off."""
    random_erasing: Fraction = 0.0
    """Share of the images in which a random rectangle is blanked; 0 is off."""


Augment = Annotated[NoAugment | RandomResizedCrop | RandomCrop, Field(discriminator="kind")]


class BlockShuffle(Section):
    block: Count
    """Rows in a block: a block is read in one go, and blocks are shuffled (for object stores)."""


Shuffle = Annotated[Annotated[bool, Tag("plain")] | Annotated[BlockShuffle, Tag("section")], Discriminator(is_section)]


class Source(Section):
    dataset: str
    """Path or URI of the Lance dataset."""
    weight: Positive = 1.0
    """How often rows of this dataset are drawn, relative to the weights of the others."""
    train: str | None = None
    """SQL filter for this dataset's training rows; default: `data.train`."""


class HardNegatives(Section):
    column: str
    """An embedding column; rows with similar embeddings share a batch."""
    group_size: Count = 4
    """Rows in a group of similar rows; a batch holds whole groups."""


class Features(Section):
    """Stored encoder outputs to train on instead of images or captions."""

    image: str | None = None
    """Column of fixed-size vectors to use as the image encoder's output."""
    text: str | None = None
    """Column of fixed-size vectors to use as the text encoder's output."""


class DataConfig(Section):
    dataset: str | None = None
    """Path or URI of the Lance dataset."""
    sources: tuple[Source, ...] = ()
    """Several datasets mixed by weight, instead of `dataset`."""
    train: str | None = None
    """SQL filter for the training rows; default: every row."""
    validation: str | None = None
    """SQL filter for the validation rows; default: no validation."""
    limit: Count | None = None
    """Train on only the first N rows that match the filter."""
    image_id_column: str = "image_id"
    """Column with the name of each image, unique."""
    image_column: str = "image"
    """Column of encoded images."""
    captions_column: str = "captions"
    """Column of captions: a string or a list of strings per row."""
    image_size: Count = 224
    """Width and height in pixels of the images that the encoder gets."""
    mean: tuple[Number, Number, Number] | None = None
    """Mean of the pixel values (0..1) for normalisation; default: the image encoder's own."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of the pixel values; set it together with `mean`."""
    resize: Literal["squash", "crop", "pad"] | None = None
    """How an image becomes a square: squashed, cropped at the centre, or padded. Default: as the model expects,
    otherwise squash."""
    interpolation: Literal["fast", "bilinear", "bicubic"] | None = None
    """`bilinear` and `bicubic` give Pillow's pixels, which published models were trained on; `fast` takes a fraction of
    the time. Default: as the model expects, otherwise fast."""
    caption: Literal["random", "longest", "first", "each"] = "random"
    """Which of an image's captions a sample uses; `each` makes one sample per caption."""
    augment: Augment = NoAugment()
    """Augmentation of training images; validation only resizes, and with `random_crop` crops the centre."""
    max_tokens: Count = 32
    """Longer captions are truncated, and their share is reported."""
    padding: Literal["longest", "max"] = "longest"
    """Pad captions to the longest of the batch (rounded up to 8), or to `max_tokens`."""
    shuffle: Shuffle = True
    """Reshuffle each epoch, row by row or block by block; false keeps the stored order."""
    group_by: str | None = None
    """Column whose equal values put rows into the same batch."""
    hard_negatives: HardNegatives | None = None
    """Fill batches with images that are hard to tell apart (hard negatives)."""
    drop_last: bool = True
    """Drop the last batch of an epoch if it is smaller than the others."""
    features: Features = Features()
    """Train on stored encoder outputs instead of running frozen encoders."""
    cache: Count | None = None
    """Train on decoded pixels cached in the dataset at this size; the cache is built if missing (`clipkit cache`)."""
    keep_images_mb: CountOrZero = 225
    """Keep the encoded images in memory if all of them fit into this many megabytes."""
    decode: Literal["scaled", "full"] = "scaled"
    """`scaled` decodes a JPEG at a half, a quarter or an eighth of its size if that is large enough; `full` decodes at
    full size and shrinks by averaging, which is slower and closest to Pillow's pixels."""
    workers: CountOrZero | None = None
    """Number of decoding threads; default: one per usable core."""
    prefetch: Count = 4
    """Number of batches to prepare ahead of the current step."""
    bad_rows: Literal["replace", "stop"] = "replace"
    """What happens when a row has no caption or its image cannot be decoded: use another row, or stop the run."""
    stall_timeout_s: Positive = 120.0
    """Seconds without a batch after which the log names the stage that is stuck."""

    @model_validator(mode="after")
    def _fits_together(self) -> DataConfig:
        problems = []
        if bool(self.dataset) == bool(self.sources):
            problems.append(("dataset", "set either `dataset` or `sources`"))
        if (self.mean is None) != (self.std is None):
            problems.append(("mean" if self.std is None else "std", "set `mean` and `std` together"))
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
            problems.append((grouped, f"cannot be combined with {given}: both decide which samples share a batch"))
        if problems:
            raise Conflicts(problems)
        return self
