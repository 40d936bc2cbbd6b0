"""A contact sheet of a dataset: images with their captions, as a picture or as a web page."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from clipkit.errors import DataError
from clipkit.evaluators.picture import load_font, wrap_text
from clipkit.images.decode import decode_upright
from clipkit.images.header import BadImage
from clipkit.store import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".html")
THUMBNAIL_PX, GAP_PX, FONT_PX, NUM_LINES = 224, 12, 14, 4
TEXT_PX = NUM_LINES * (FONT_PX + 5)
BACKGROUND, INK, FAINT = "#ffffff", "#222222", "#888888"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1.2em }}
figure {{ margin: 0 }} img {{ width: 224px; height: 224px; object-fit: contain; background: #f4f4f4 }}
figcaption p {{ margin: .3em 0 }} .id {{ color: #888; overflow-wrap: anywhere }}
</style></head><body><h1>{title}</h1><main>
{figures}
</main></body></html>
"""
FIGURE = '<figure><img alt="{alt}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of the sheet; `thumbnail` is (H, W, 3) RGB, and None where the image cannot be decoded."""

    image_id: str
    split: str | None
    captions: Sequence[str]
    thumbnail: np.ndarray | None


def save_sheet(uri: str, out: Path, *, num: int, where: str | None = None, version: int | str | None = None) -> int:
    """Draw images spread evenly over the chosen rows; the file's suffix says how. Gives their number."""
    if out.suffix.lower() not in SUFFIXES:
        raise DataError(f"`{out}` is neither a picture nor a page", f"end its name in {', '.join(SUFFIXES)}")
    dataset = Dataset(uri, version=version)
    rows = dataset.select(where)
    if not len(rows):
        raise DataError(
            f"`{where}` chooses no row of `{uri}`" if where else f"`{uri}` has no rows",
            "`clipkit info` tells its splits and columns",
        )
    entries = _entries(dataset, rows[np.unique(np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(int))])
    title = f"{len(entries)} of {len(rows)} images of {uri}, version {dataset.version}" + (
        f": {where}" if where else ""
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix.lower() == ".html":
            out.write_text(_page(entries, title), encoding="utf-8")
        else:
            _picture(entries, title).save(out)
    except OSError as error:
        raise DataError(
            f"`{out}` cannot be written: {error.strerror or error}", "name another file with --out"
        ) from error
    return len(entries)


def _entries(dataset: Dataset, rows: np.ndarray) -> list[Entry]:
    columns = [dataset.columns.image_id] + (["split"] if "split" in dataset.schema.names else [])
    table = dataset.take(rows, columns)
    splits = table.column("split").to_pylist() if len(columns) == 2 else [None] * len(rows)
    captions = dataset.take_captions(rows)
    thumbnails = map(_thumbnail, dataset.take_images(rows))
    return [Entry(*entry) for entry in zip(table.column(0).to_pylist(), splits, captions, thumbnails, strict=True)]


def _thumbnail(data: memoryview) -> np.ndarray | None:
    try:
        pixels = decode_upright(data, at_least=(THUMBNAIL_PX, THUMBNAIL_PX))
    except BadImage:
        return None
    scale = THUMBNAIL_PX / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))


def _label(entry: Entry) -> str:
    return f"{entry.split}: {entry.image_id}" if entry.split else entry.image_id


def _page(entries: Sequence[Entry], title: str) -> str:
    figures = []
    for entry in entries:
        pixels = np.full((1, 1, 3), 200, np.uint8) if entry.thumbnail is None else entry.thumbnail
        data = base64.b64encode(bytes(cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1])).decode()
        texts = [f'<p class="id">{html.escape(_label(entry))}</p>']
        texts += [f"<p>{html.escape(caption)}</p>" for caption in entry.captions]
        alt = html.escape(entry.captions[0] if entry.captions else entry.image_id, quote=True)
        figures.append(FIGURE.format(alt=alt, data=data, text="".join(texts)))
    return PAGE.format(title=html.escape(title), figures="\n".join(figures))


def _picture(entries: Sequence[Entry], title: str) -> Image.Image:
    font = load_font(FONT_PX)
    num_columns = min(len(entries), max(2, math.ceil(math.sqrt(len(entries) * 1.5))))
    num_rows = math.ceil(len(entries) / num_columns)
    cell_width, cell_height = THUMBNAIL_PX + GAP_PX, THUMBNAIL_PX + TEXT_PX + GAP_PX
    head = FONT_PX + 2 * GAP_PX
    sheet = Image.new("RGB", (GAP_PX + num_columns * cell_width, head + num_rows * cell_height), BACKGROUND)
    canvas = ImageDraw.Draw(sheet)
    canvas.text((GAP_PX, GAP_PX), title, fill=INK, font=font)
    for number, entry in enumerate(entries):
        left, top = GAP_PX + number % num_columns * cell_width, head + number // num_columns * cell_height
        canvas.rectangle((left, top, left + THUMBNAIL_PX - 1, top + THUMBNAIL_PX - 1), fill="#f4f4f4")
        if entry.thumbnail is not None:
            height, width = entry.thumbnail.shape[:2]
            place = left + (THUMBNAIL_PX - width) // 2, top + (THUMBNAIL_PX - height) // 2
            sheet.paste(Image.fromarray(entry.thumbnail), place)
        label = wrap_text(_label(entry), font, width_px=THUMBNAIL_PX, num_lines=1)[0]
        lines = wrap_text(" / ".join(entry.captions), font, width_px=THUMBNAIL_PX, num_lines=NUM_LINES - 1)
        canvas.text((left, top + THUMBNAIL_PX), label, fill=FAINT, font=font)
        canvas.multiline_text((left, top + THUMBNAIL_PX + FONT_PX + 4), "\n".join(lines), fill=INK, font=font)
    return sheet
