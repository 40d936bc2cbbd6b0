from __future__ import annotations

from pathlib import Path

import lance
import pyarrow as pa
import pytest
from corpora import make_image
from PIL import Image

from clipkit.errors import DataError
from clipkit.workflows.show import save_sheet


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    count = 30
    images = [
        b"damaged" if number == 3 else make_image(number, width=40 + number, height=30) for number in range(count)
    ]
    captions = [[f"a <b>{number}</b> & đứng", "second"] for number in range(count)]
    columns = {"image_id": [f"n{number}" for number in range(count)], "image": images, "captions": captions}
    lance.write_dataset(pa.table({**columns, "split": ["train", "test"] * 15}), str(tmp_path / "x.lance"))
    return tmp_path / "x.lance"


def test_picture(dataset: Path, tmp_path: Path, run_cli) -> None:
    done = run_cli("show", dataset, "--num", 6, "--out", tmp_path / "new" / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.width > 3 * 224
        assert len(sheet.convert("RGB").getcolors(10**7)) > 1000


def test_page(dataset: Path, tmp_path: Path) -> None:
    assert save_sheet(str(dataset), tmp_path / "sheet.html", num=100, where="split = 'test'") == 15
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<figure>") == 15
    assert "a &lt;b&gt;1&lt;/b&gt; &amp; đứng" in page
    assert "http" not in page  # nothing is loaded from elsewhere


def test_refusals(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a picture nor a web page"):
        save_sheet(str(dataset), tmp_path / "sheet.txt", num=4)
    with pytest.raises(DataError, match="matches no rows"):
        save_sheet(str(dataset), tmp_path / "sheet.png", num=4, where="split = 'none'")
    with pytest.raises(DataError, match="does not work on"):
        save_sheet(str(dataset), tmp_path / "sheet.png", num=4, where="spilt = 'test'")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        save_sheet(str(dataset), tmp_path / "file" / "sheet.png", num=4)
