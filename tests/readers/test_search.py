"""Which file a name means, where several may be meant or none is there."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from clipkit.errors import DataError
from clipkit.readers import ReadOptions, SourceReport
from clipkit.readers.paths import BadPath
from clipkit.readers.search import ImageSearch


def search(folder: Path, *names: str, **options: object) -> ImageSearch:
    return ImageSearch(folder, names, ReadOptions(**options), SourceReport())


def make(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")


def test_the_folder_named_like_images_goes_before_others(tmp_path: Path) -> None:
    make(tmp_path, "annotated/0.png", "depth/0.png", "depth/1.png", "Images/0.png", "Images/thumbs/0.png")
    images = search(tmp_path, "0.png", "1.png")
    assert images.resolve("0.png") == tmp_path / "Images/0.png"
    assert images.resolve("1.png") == tmp_path / "1.png"  # missing: another picture of that name is not it
    assert search(tmp_path, "depth/0.png").resolve("depth/0.png") == tmp_path / "depth/0.png"
    make(tmp_path, "0.png")
    assert search(tmp_path, "0.png").resolve("0.png") == tmp_path / "0.png"


def test_the_folder_with_the_name_of_the_table_goes_first(tmp_path: Path) -> None:
    make(tmp_path, "flickr8k/Images/1.jpg", "flickr8k/Images/3.jpg", "more/1.jpg", "more/2.jpg")
    images = ImageSearch(tmp_path, ["1.jpg", "2.jpg"], ReadOptions(), SourceReport(), table=tmp_path / "more.csv")
    assert [images.resolve(name).parent.name for name in ("1.jpg", "2.jpg")] == ["more", "more"]
    assert not images.resolve("3.jpg").exists()


def test_the_split_tells_folders_apart(tmp_path: Path) -> None:
    make(tmp_path, "train2014/1.jpg", "val2014/1.jpg", "train2014/2.jpg", "val2014/3.jpg")
    images = search(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    assert images.resolve("1.jpg", "dev") == tmp_path / "val2014/1.jpg"
    assert images.resolve("1.jpg", "train") == tmp_path / "train2014/1.jpg"
    assert [images.resolve(name).parent.name for name in ("2.jpg", "3.jpg")] == ["train2014", "val2014"]


def test_the_hint_for_two_folders_works(tmp_path: Path) -> None:
    make(tmp_path, "left/1.jpg", "right/1.jpg")
    with pytest.raises(DataError, match=r"`1.jpg` is a file of several folders below .*: `left`, `right`") as caught:
        search(tmp_path, "1.jpg").resolve("1.jpg")
    folder = Path(caught.value.hint.split("'")[1])
    assert search(tmp_path, "1.jpg", image_dir=folder).resolve("1.jpg") == tmp_path / "left/1.jpg"


def test_names_without_an_extension(tmp_path: Path) -> None:
    make(tmp_path, "images/7.jpg", "images/8.v2.png", "images/9.png", "images/9.jpg")
    images = search(tmp_path, "7")
    assert images.resolve("7") == tmp_path / "images/7.jpg"
    assert images.resolve("8.v2") == tmp_path / "images/8.v2.png"
    with pytest.raises(DataError, match=r"`9` may be `9\.\w+`, `9\.\w+` of `images`"):
        images.resolve("9")


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms(tmp_path: Path, written: str, stored: str) -> None:
    names = {form: unicodedata.normalize(form, "Müller/é.jpg") for form in ("NFC", "NFD")}
    make(tmp_path, f"images/{names[stored]}")
    assert search(tmp_path, names[written]).resolve(names[written]).read_bytes() == b"x"


def test_paths_of_another_machine(tmp_path: Path) -> None:
    make(tmp_path, "images/train/0.jpg", "images/train/1.jpg", "images/test/2.jpg")
    images = search(tmp_path, "C:/me/data/images/train/0.jpg")
    assert images.resolve("C:/me/data/images/train/1.jpg") == tmp_path / "images/train/1.jpg"
    assert images.resolve("C:/me/data/images/test/2.jpg") == tmp_path / "images/test/2.jpg"
    with pytest.raises(BadPath, match="absolute, of another machine"):
        images.resolve("/gone/0.jpg")


def test_the_hint_for_images_that_are_not_found_works(tmp_path: Path) -> None:
    make(tmp_path, "corpus/t.csv", "elsewhere/0.jpg")
    with pytest.raises(DataError, match="no folder below") as caught:
        search(tmp_path / "corpus", "images/0.jpg")
    assert "--image-dir" in caught.value.hint
    images = search(tmp_path / "corpus", "images/0.jpg", image_dir=tmp_path / "elsewhere")
    assert images.resolve("images/0.jpg") == tmp_path / "elsewhere/0.jpg"


def test_links_to_folders_are_followed_only_when_allowed(tmp_path: Path) -> None:
    make(tmp_path, "corpus/t.csv", "outside/o.jpg")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="no folder below"):
        search(tmp_path / "corpus", "o.jpg")
    images = search(tmp_path / "corpus", "o.jpg", allow_outside=True)
    assert images.resolve("o.jpg") == tmp_path / "corpus/linked/o.jpg"


def test_what_lies_outside_is_judged_by_itself(tmp_path: Path) -> None:
    make(tmp_path, "corpus/t.csv", "o.jpg")
    for name in ("../o.jpg", str(tmp_path / "o.jpg")):
        with pytest.raises(BadPath, match="--allow-outside"):
            search(tmp_path / "corpus", name).resolve(name)
        allowed = search(tmp_path / "corpus", name, allow_outside=True)
        assert allowed.resolve(name).read_bytes() == b"x"


def test_a_table_in_a_folder_of_its_own(tmp_path: Path) -> None:
    make(tmp_path, "images/0.jpg", "annotations/t.csv")
    images = ImageSearch(
        tmp_path, ["../images/0.jpg"], ReadOptions(), SourceReport(), table=tmp_path / "annotations" / "captions.csv"
    )
    assert images.resolve("../images/0.jpg") == tmp_path / "images/0.jpg"


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "__MACOSX/images/0.jpg", ".cache/0.jpg", "photos/0.jpg", "photos/._0.jpg")
    assert search(tmp_path, "0.jpg").resolve("0.jpg") == tmp_path / "photos/0.jpg"
