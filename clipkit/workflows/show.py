"""A contact sheet of a dataset: images with their captions, as a picture or as a web page."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clipkit.errors import DataError
from clipkit.evaluators.picture import writing
from clipkit.images.drawing import Lettering, make_thumbnail
from clipkit.store import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".html")
THUMBNAIL_PX, GAP_PX, FONT_PX, LINE_PX, NUM_LINES = 224, 12, 14, 19, 4
CELL_WIDTH, CELL_HEIGHT = THUMBNAIL_PX + GAP_PX, THUMBNAIL_PX + NUM_LINES * LINE_PX + GAP_PX
HEAD_PX = FONT_PX + 2 * GAP_PX
BACKGROUND, FIELD, INK, FAINT = "#ffffff", "#f4f4f4", "#222222", "#888888"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1.2em }}
figure {{ margin: 0 }} img {{ width: 224px; height: 224px; background: #f4f4f4 }}
figcaption p {{ margin: .3em 0 }} .id {{ color: #888; overflow-wrap: anywhere }}
</style></head><body><h1>{title}</h1><main>
{figures}
</main></body></html>
"""
FIGURE = '<figure><img alt="{alt}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of the sheet; the thumbnail is grey where the image cannot be decoded."""

    label: str
    captions: Sequence[str]
    thumbnail: Image.Image


def save_sheet(uri: str, out: Path, *, num: int, where: str | None = None, version: int | str | None = None) -> int:
    """Draw images spread evenly over the chosen rows, and return their number. The file's suffix sets the format."""
    if out.suffix.lower() not in SUFFIXES:
        raise DataError(f"`{out}` is neither a picture nor a web page", f"use one of {', '.join(SUFFIXES)}")
    dataset = Dataset(uri, version=version)
    rows = dataset.select(where)
    if not len(rows):
        what = f"`{where}` matches no rows of `{uri}`" if where else f"`{uri}` has no rows"
        raise DataError(what, "`clipkit info` lists its splits and columns")
    entries = _entries(dataset, rows[np.unique(np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(int))])
    title = f"{len(entries)} of {len(rows)} images of {uri}, version {dataset.version}"
    title += f": {where}" if where else ""
    with writing(out):
        if out.suffix.lower() == ".html":
            out.write_text(_page(entries, title), encoding="utf-8")
        else:
            _picture(entries, title).save(out)
    return len(entries)


def _entries(dataset: Dataset, rows: np.ndarray) -> list[Entry]:
    columns = [dataset.columns.image_id, *(["split"] if "split" in dataset.schema.names else [])]
    labels = [": ".join(filter(None, reversed(row.values()))) for row in dataset.take(rows, columns).to_pylist()]
    broken = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), FAINT)
    thumbnails = (make_thumbnail(data, THUMBNAIL_PX, FIELD) or broken for data in dataset.take_images(rows))
    return [Entry(*entry) for entry in zip(labels, dataset.take_captions(rows), thumbnails, strict=True)]


def _page(entries: Sequence[Entry], title: str) -> str:
    figures = []
    for entry in entries:
        jpeg = io.BytesIO()
        entry.thumbnail.save(jpeg, "JPEG", quality=90)
        texts = [f'<p class="id">{html.escape(entry.label)}</p>']
        texts += [f"<p>{html.escape(caption)}</p>" for caption in entry.captions]
        alt = html.escape(entry.captions[0] if entry.captions else entry.label, quote=True)
        data = base64.b64encode(jpeg.getvalue()).decode()
        figures.append(FIGURE.format(alt=alt, data=data, text="".join(texts)))
    return PAGE.format(title=html.escape(title), figures="\n".join(figures))


def _picture(entries: Sequence[Entry], title: str) -> Image.Image:
    num_columns = min(len(entries), max(2, math.ceil(math.sqrt(len(entries) * 1.5))))
    num_rows = math.ceil(len(entries) / num_columns)
    sheet = Image.new("RGB", (GAP_PX + num_columns * CELL_WIDTH, HEAD_PX + num_rows * CELL_HEIGHT), BACKGROUND)
    text = Lettering(ImageDraw.Draw(sheet), FONT_PX)
    text.draw(GAP_PX, GAP_PX, text.wrap(title, sheet.width - 2 * GAP_PX, 1)[0], INK)
    for number, entry in enumerate(entries):
        left, top = GAP_PX + number % num_columns * CELL_WIDTH, HEAD_PX + number // num_columns * CELL_HEIGHT
        sheet.paste(entry.thumbnail, (left, top))
        top += THUMBNAIL_PX
        text.draw(left, top, text.wrap(entry.label, THUMBNAIL_PX, 1)[0], FAINT)
        for line in text.wrap(" / ".join(entry.captions), THUMBNAIL_PX, NUM_LINES - 1):
            top += LINE_PX
            text.draw(left, top, line, INK)
    return sheet
