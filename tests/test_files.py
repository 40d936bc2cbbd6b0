"""Files are written whole, or are as they were before."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipkit.files import write_whole


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process can have more than a megabyte, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_whole(path, "before")
    with pytest.raises(OSError, match="File too large") as caught:
        write_whole(path, "x" * (2 << 20))
    assert caught.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
    assert path.read_text() == "before"
