"""The sample corpus: its format, its twins, and that captions say what the picture shows."""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.errors import DataError
from clipkit.workflows.sample import (
    COLORS,
    DIRECTIONS,
    KINDS,
    SIZES,
    Picture,
    Scene,
    Shape,
    compose,
    draw,
    write_shapes,
)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return compose(3000, seed=0)


@pytest.fixture(scope="module")
def by_name(pictures: list[Picture]) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures}


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+", text.lower()))


def read_caption(caption: str) -> Scene:
    """Understand a caption, by rules of its own."""
    text = caption.lower()
    shapes = [Shape(*found) for found in re.findall(r"a (\w+) (\w+) (\w+)", text) if found[0] in SIZES]
    axis = "row" if re.search(r"\b(left|right)\b", text) else "column"
    if " between " in text:
        middle, first, last = shapes
        shapes = [first, middle, last]
    backwards = (
        re.search(r"(right of|below|under)\b", text) if not re.search(r"(left of|above|over)\b", text) else None
    ) or re.match(r"a \w+ \w+ \w+ (on the right|at the bottom)", text)
    return Scene(axis, tuple(reversed(shapes) if backwards else shapes))


class TestFormat:
    def test_files_are_those_of_kaggles_flickr8k(self, shapes_dir: Path) -> None:
        names = sorted(path.name for path in shapes_dir.iterdir())
        assert names == [
            "Flickr_8k.testImages.txt",
            "Flickr_8k.trainImages.txt",
            "Images",
            "attributes.csv",
            "captions.txt",
        ]
        with (shapes_dir / "captions.txt").open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["image", "caption"]
        assert len(rows) == 1 + 240 * 5
        assert any("," in caption for _, caption in rows[1:])
        images = {path.name for path in (shapes_dir / "Images").iterdir()}
        assert images == {name for name, _ in rows[1:]}
        train = (shapes_dir / "Flickr_8k.trainImages.txt").read_text().split()
        test = (shapes_dir / "Flickr_8k.testImages.txt").read_text().split()
        assert (len(train), len(test)) == (200, 40)
        assert set(train) | set(test) == images

    def test_attributes_name_an_images_twin(self, shapes_dir: Path) -> None:
        with (shapes_dir / "attributes.csv").open(newline="") as file:
            rows = {row["image"]: row for row in csv.DictReader(file)}
        assert len(rows) == 240
        twins = [row for row in rows.values() if row["twin_of"]]
        assert twins
        for row in twins:
            original = rows[row["twin_of"]]
            assert original["twin_of"] == ""
            assert original["scene"] == row["scene"]
            assert row["twin_kind"] in ("colors", "places")

    def test_same_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        def digest(folder: Path) -> str:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            content = b"".join(path.name.encode() + path.read_bytes() for path in files)
            return hashlib.sha256(content).hexdigest()

        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            write_shapes(tmp_path / name, num_images=24, seed=seed)
        assert digest(tmp_path / "a") == digest(tmp_path / "b")
        assert digest(tmp_path / "a") != digest(tmp_path / "c")

    def test_the_choices_are_those_of_this_version(self, pictures: list[Picture]) -> None:
        text = "\n".join(f"{picture.name} {picture.captions}" for picture in pictures)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7983211f1e64771d"

    def test_a_folder_with_something_in_it_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "note.txt").write_text("mine")
        with pytest.raises(DataError, match="not empty"):
            write_shapes(tmp_path, num_images=12)

    @pytest.mark.parametrize(("num_images", "num_test"), [(12, 2), (100, 16), (3000, 500), (6000, 500)])
    def test_sizes_of_the_splits(self, num_images: int, num_test: int) -> None:
        splits = Counter(picture.split for picture in compose(num_images, seed=3))
        assert splits == {"test": num_test, "train": num_images - num_test}


class TestTwins:
    def test_half_of_the_test_images_are_twins_of_the_other_half(self, pictures: list[Picture]) -> None:
        test = [picture for picture in pictures if picture.split == "test"]
        assert Counter(picture.twin_kind for picture in test) == {"": 250, "colors": 125, "places": 125}
        originals = {picture.twin_of for picture in test if picture.twin_of}
        assert originals == {picture.name for picture in test if not picture.twin_of}

    def test_some_training_images_have_twins(self, pictures: list[Picture]) -> None:
        train = [picture for picture in pictures if picture.split == "train"]
        assert 0.2 < sum(bool(picture.twin_of) for picture in train) / len(train) < 0.5

    def test_twins_differ_in_what_their_kind_says(self, pictures: list[Picture], by_name: dict[str, Picture]) -> None:
        for picture in pictures:
            if not picture.twin_of:
                continue
            other = by_name[picture.twin_of]
            assert picture.split == other.split
            assert picture.scene != other.scene
            pairs = zip(picture.scene.shapes, other.scene.shapes, strict=True)
            changed = [(a, b) for a, b in pairs if a != b]
            assert len(changed) == 2
            (a, other_a), (b, other_b) = changed
            if picture.twin_kind == "places":
                assert (a, b) == (other_b, other_a)
            else:
                assert (a.color, b.color) == (other_b.color, other_a.color)
                assert (a.kind, a.size, b.kind, b.size) == (other_a.kind, other_a.size, other_b.kind, other_b.size)

    def test_a_bag_of_words_is_right_for_half_of_the_twins(
        self, pictures: list[Picture], by_name: dict[str, Picture]
    ) -> None:
        """The best that a bag of words can do: the caption's words against those of each image's captions."""
        right = total = 0
        for twin in pictures:
            if not twin.twin_of:
                continue
            pair = (by_name[twin.twin_of], twin)
            bags = [[words(caption) for caption in picture.captions] for picture in pair]
            for own, other in ((0, 1), (1, 0)):
                for bag in bags[own]:
                    own_score = max((bag & b).total() - (bag - b).total() for b in bags[own])
                    other_score = max((bag & b).total() - (bag - b).total() for b in bags[other])
                    right += 0.5 if own_score == other_score else own_score > other_score
                    total += 1
        assert right / total == 0.5

    def test_no_other_test_scene_has_the_same_words(self, pictures: list[Picture]) -> None:
        scenes = defaultdict(set)
        for picture in pictures:
            if picture.split == "test":
                scenes[picture.scene.words].add(picture.scene_number)
        assert all(len(numbers) == 1 for numbers in scenes.values())
        trained = {picture.scene.words for picture in pictures if picture.split == "train"}
        assert not trained & set(scenes)


class TestCaptions:
    def test_five_differently_worded_captions(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            assert len(set(picture.captions)) == 5
            assert len({re.sub(r"small|large|" + "|".join([*COLORS, *KINDS]), "", c) for c in picture.captions}) == 5

    def test_each_caption_describes_its_scene(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            for caption in picture.captions:
                assert read_caption(caption) == picture.scene, caption

    def test_every_color_kind_and_direction_is_used(self, pictures: list[Picture]) -> None:
        shapes = [shape for picture in pictures for shape in picture.scene.shapes]
        assert {shape.color for shape in shapes} == set(COLORS)
        assert {shape.kind for shape in shapes} == set(KINDS)
        assert {picture.scene.axis for picture in pictures} == set(DIRECTIONS)


class TestPictures:
    def test_shapes_stand_in_order_and_have_their_colors(self) -> None:
        for picture in compose(120, seed=5):
            pixels = np.asarray(draw(picture.scene, random.Random(picture.name)), dtype=np.int64)
            axis = 1 if picture.scene.axis == "row" else 0
            centres = []
            for shape in picture.scene.shapes:
                distance = np.abs(pixels - np.array(COLORS[shape.color])).max(axis=-1)
                places = np.argwhere(distance < 12)
                assert len(places) > 40, (picture.name, shape)
                centres.append(places[:, axis].mean())
            assert centres == sorted(centres)

    def test_images_are_small_jpegs(self, shapes_dir: Path) -> None:
        for path in sorted((shapes_dir / "Images").iterdir())[:20]:
            with Image.open(path) as image:
                assert (image.format, image.size, image.mode) == ("JPEG", (128, 128), "RGB")
