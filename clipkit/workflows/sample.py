"""A sample corpus: rendered scenes of two or three shapes, in the format of Kaggle's Flickr8k.

Half of the test images are twins of the other half: the captions have the same words, but two colours or two places
are swapped. A model that reads captions as bags of words is right for 50 % of the twins. The same seed and version
give the same bytes: choices come from `random.Random(str).random()`, which is stable across Python versions, and
shapes are polygons with integer corners.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw

from clipkit.errors import DataError

SIZES = {"small": 0.085, "large": 0.145}  # radius, as a share of the picture's side
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 50),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
# Corners in thousandths of the radius, from the centre; None is a disc, or a ring.
KINDS: dict[str, Sequence[tuple[int, int]] | None] = {
    "circle": None,
    "ring": None,
    "square": ((-886, -886), (886, -886), (886, 886), (-886, 886)),
    "triangle": ((0, -1000), (1000, 850), (-1000, 850)),
    "cross": (
        *((-330, -1000), (330, -1000), (330, -330), (1000, -330), (1000, 330), (330, 330)),
        *((330, 1000), (-330, 1000), (-330, 330), (-1000, 330), (-1000, -330), (-330, -330)),
    ),
    "star": (
        *((0, -1050), (247, -340), (999, -324), (399, 130), (617, 849)),
        *((0, 420), (-617, 849), (-399, 130), (-999, -324), (-247, -340)),
    ),
}
# The words for a row (from left to right) and a column (from top to bottom).
DIRECTIONS = {
    "row": {
        "before": "left of",
        "after": "right of",
        "order": "from left to right",
        "first": "on the left",
        "last": "on the right",
        "farther": "farther right",
    },
    "column": {
        "before": "above",
        "after": "below",
        "order": "from top to bottom",
        "first": "at the top",
        "last": "at the bottom",
        "farther": "farther down",
    },
}
# {a}, {b}, {c} are the shapes in order. Each is named once in a caption: a shape named twice would give away twins
# whose places are swapped.
TEMPLATES = {
    2: (
        "{a} is {before} {b}.",
        "{b} is {after} {a}.",
        "There is {a} {before} {b}.",
        "{b} can be seen {after} {a}.",
        "{order}: {a}, {b}.",
        "{a} {first} and {b} {last}.",
        "{b} {last}, {a} {first}.",
    ),
    3: (
        "{a} is {before} {b}, and {farther} is {c}.",
        "{c} is {after} {b}, which is {after} {a}.",
        "There is {a} {before} {b}, which is {before} {c}.",
        "{b} is between {a} {first} and {c} {last}.",
        "{order}: {a}, {b}, {c}.",
        "{a} {first}, {b} in the middle and {c} {last}.",
        "{c} {last}, {b} in the middle, {a} {first}.",
    ),
}
CAPTIONS_PER_IMAGE = 5
MAX_TEST_IMAGES = 500
SIDE_PX = 128
OVERSAMPLING = 4
TWIN_KINDS = ("colors", "places")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    size: str
    color: str
    kind: str

    def __str__(self) -> str:
        return f"a {self.size} {self.color} {self.kind}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Shapes in a row from left to right, or in a column from top to bottom; colours and kinds all differ."""

    axis: str
    shapes: tuple[Shape, ...]

    @property
    def words(self) -> tuple[object, ...]:
        """The scene as a bag of words; scenes with the same bag differ only in word order."""
        sizes = sorted(shape.size for shape in self.shapes)
        colors = sorted(shape.color for shape in self.shapes)
        kinds = sorted(shape.kind for shape in self.shapes)
        return (self.axis, *sizes, *colors, *kinds)


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the corpus."""

    name: str
    split: str
    scene: Scene
    scene_number: int
    captions: tuple[str, ...]
    twin_of: str = ""
    twin_kind: str = ""


def write_shapes(
    folder: Path, *, num_images: int = 3000, seed: int = 0, advance: Callable[[], object] = lambda: None
) -> list[Picture]:
    """Write the corpus into a new or empty folder; `advance` is called after each image."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"`{folder}` exists and is not empty", "name another folder, or remove that one")
    pictures = compose(num_images, seed=seed)
    (folder / "Images").mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        image = draw(picture.scene, random.Random(f"{seed} {picture.name}"))
        image.save(folder / "Images" / picture.name, quality=90, subsampling=0)
        advance()
    for split in ("train", "test"):
        names = [picture.name for picture in pictures if picture.split == split]
        (folder / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in names), newline="\n")
    _write_csv(
        folder / "attributes.csv",
        ("image", "twin_of", "twin_kind", "scene"),
        ((p.name, p.twin_of, p.twin_kind, p.scene_number) for p in pictures),
    )
    _write_csv(
        folder / "captions.txt",
        ("image", "caption"),
        ((p.name, text) for p in pictures for text in p.captions),
    )
    return pictures


def compose(num_images: int, *, seed: int) -> list[Picture]:
    """Choose 500 test images (or a sixth, if that is less), all in pairs, and training images, most of them in pairs.

    No training scene, and no second pair of the test images, has the words of a test scene.
    """
    rng = random.Random(f"shapes {seed}")
    num_test = min(MAX_TEST_IMAGES, num_images // 6) // 2 * 2
    pictures: list[Picture] = []
    taken: set[tuple[object, ...]] = set()
    test_pairs = [TWIN_KINDS[i % 2] for i in range(num_test // 2)]
    for number, kind in enumerate(test_pairs):
        pictures += _picture_pair(rng, "test", first=len(pictures), number=number, kind=kind, taken=taken)
        taken.add(pictures[-1].scene.words)
    number = len(test_pairs)
    for kind in _training_kinds(num_images - num_test):
        pictures += _picture_pair(rng, "train", first=len(pictures), number=number, kind=kind, taken=taken)
        number += 1
    return pictures


def describe(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Five captions from different templates, each of which describes the whole scene."""
    templates = _shuffled(rng, TEMPLATES[len(scene.shapes)])[:CAPTIONS_PER_IMAGE]
    shapes = dict(zip("abc", scene.shapes, strict=False))
    texts = [template.format(**shapes, **DIRECTIONS[scene.axis]) for template in templates]
    return tuple(text[0].upper() + text[1:] for text in texts)


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Render a scene; the background, and the size and place of each shape, vary a little."""
    side = SIDE_PX * OVERSAMPLING
    grey = 115 + int(rng.random() * 50)
    image = Image.new("RGB", (side, side), (grey, grey, grey))
    canvas = ImageDraw.Draw(image)
    part = side / len(scene.shapes)
    for i, shape in enumerate(scene.shapes):
        radius = SIZES[shape.size] * side * (0.92 + 0.16 * rng.random())
        room = max(0.0, part / 2 - radius * 1.05)
        along = part * (i + 0.5) + room * (2 * rng.random() - 1)
        across = side * (0.5 + 0.16 * (2 * rng.random() - 1))
        x, y = (along, across) if scene.axis == "row" else (across, along)
        _draw_shape(canvas, shape, round(x), round(y), round(radius))
    return image.reduce(OVERSAMPLING)


def _draw_shape(canvas: ImageDraw.ImageDraw, shape: Shape, x: int, y: int, radius: int) -> None:
    color = COLORS[shape.color]
    corners = KINDS[shape.kind]
    box = (x - radius, y - radius, x + radius, y + radius)
    if corners is not None:
        canvas.polygon([(x + dx * radius // 1000, y + dy * radius // 1000) for dx, dy in corners], fill=color)
    elif shape.kind == "ring":
        canvas.ellipse(box, outline=color, width=radius * 2 // 5)
    else:
        canvas.ellipse(box, fill=color)


def _training_kinds(num_images: int) -> Iterator[str]:
    """Kinds of twins for that many images, four of five in pairs; an empty kind is a scene without a twin."""
    cycle = ("colors", "places", "")
    i = 0
    while num_images > 0:
        kind = cycle[i % len(cycle)] if num_images > 1 else ""
        yield kind
        num_images -= 2 if kind else 1
        i += 1


def _picture_pair(
    rng: random.Random, split: str, *, first: int, number: int, kind: str, taken: set[tuple[object, ...]]
) -> list[Picture]:
    """A picture of a new scene and, unless `kind` is empty, its twin, with captions from the same templates."""
    scene = _random_scene(rng)
    while scene.words in taken:
        scene = _random_scene(rng)
    wording = f"{rng.random()}"
    original = Picture(
        name=f"shapes_{first:06d}.jpg",
        split=split,
        scene=scene,
        scene_number=number,
        captions=describe(scene, random.Random(wording)),
    )
    if not kind:
        return [original]
    twin = _twin(scene, kind, rng)
    captions = describe(twin, random.Random(wording))
    name = f"shapes_{first + 1:06d}.jpg"
    return [
        original,
        replace(original, name=name, scene=twin, captions=captions, twin_of=original.name, twin_kind=kind),
    ]


def _random_scene(rng: random.Random) -> Scene:
    num_shapes = _choose(rng, (2, 3))
    colors, kinds = _shuffled(rng, COLORS), _shuffled(rng, KINDS)
    shapes = tuple(Shape(_choose(rng, tuple(SIZES)), colors[i], kinds[i]) for i in range(num_shapes))
    return Scene(_choose(rng, tuple(DIRECTIONS)), shapes)


def _twin(scene: Scene, kind: str, rng: random.Random) -> Scene:
    """The scene with the colours, or the places, of two of its shapes swapped."""
    i, j = _shuffled(rng, range(len(scene.shapes)))[:2]
    shapes = list(scene.shapes)
    if kind == "colors":
        shapes[i], shapes[j] = (
            replace(shapes[i], color=shapes[j].color),
            replace(shapes[j], color=shapes[i].color),
        )
    else:
        shapes[i], shapes[j] = shapes[j], shapes[i]
    return replace(scene, shapes=tuple(shapes))


def _choose(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _shuffled(rng: random.Random, items: Iterable[T]) -> list[T]:
    return [item for _, item in sorted(((rng.random(), i), item) for i, item in enumerate(items))]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
