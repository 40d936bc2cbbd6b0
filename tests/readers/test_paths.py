from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.readers.paths import BadPath, Root, image_name
from clipkit.types import Url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "o.jpg").write_bytes(b"x")
    (tmp_path / "corpus" / "sub").mkdir(parents=True)
    (tmp_path / "corpus" / "sub" / "a.jpg").write_bytes(b"x")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "corpus" / "link.jpg").symlink_to(tmp_path / "outside" / "o.jpg")
    (tmp_path / "corpus" / "inner.jpg").symlink_to("sub/a.jpg")
    return tmp_path / "corpus"


@pytest.mark.parametrize("name", ["sub/a.jpg", "gone.jpg", "sub/../inner.jpg", "inner.jpg", "./sub/a.jpg"])
def test_inside(folder: Path, name: str) -> None:
    assert Root(folder).resolve(name) == folder / name
    assert Root(folder).resolve(str(folder / "sub/a.jpg")) == folder / "sub/a.jpg"


@pytest.mark.parametrize(
    "name",
    ["../outside/o.jpg", "sub/../../outside/o.jpg", "/etc/hostname", "link.jpg", "linked/o.jpg", "..", "../corpus-2/x"],
)
def test_outside(folder: Path, name: str) -> None:
    with pytest.raises(BadPath, match="--allow-outside"):
        Root(folder).resolve(name)
    assert Root(folder, allow_outside=True).resolve(name) == folder / name


@pytest.mark.parametrize("name", ["", "a\0.jpg", "s3://bucket/a.jpg", "file:///etc/hostname", "file://[x"])
def test_no_name(folder: Path, name: str) -> None:
    with pytest.raises(BadPath):
        Root(folder).locate(name)


def test_addresses(folder: Path) -> None:
    root = Root(folder)
    assert root.locate("https://example.org/a.jpg?x=1") == Url("https://example.org/a.jpg?x=1")
    assert root.locate((folder / "sub" / "a.jpg").as_uri()) == folder / "sub" / "a.jpg"
    assert root.locate("sub/a.jpg") == folder / "sub" / "a.jpg"


def test_a_corpus_that_is_a_link_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    assert Root(tmp_path / "alias").resolve("sub/a.jpg").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("./images/0.jpg", "images/0.jpg"),
        ("images//0.jpg ", "images/0.jpg"),
        ("a/./0.jpg", "a/0.jpg"),
        ("images\\train\\0.jpg", "images/train/0.jpg"),
        ("C:\\data\\0.jpg", "C:/data/0.jpg"),
        ("0.jpg#3", "0.jpg"),
        ("0.jpg.1#3", "0.jpg.1"),
        ("\ufeff0.jpg", "0.jpg"),
        ("number #2", "number #2"),
        ("http://example.org//a.jpg", "http://example.org//a.jpg"),
    ],
)
def test_one_form_of_a_name(written: str, name: str) -> None:
    assert image_name(written) == name
