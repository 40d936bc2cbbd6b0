"""`clipkit show`: a contact sheet of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipkit import console

DEFAULT_OUT = Path("sheet.png")


def register(app: typer.Typer) -> None:
    app.command()(show)


def show(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Path or URI of the Lance dataset.")],
    num: Annotated[int, typer.Option(metavar="N", min=1, help="How many images, evenly spread over the rows.")] = 24,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Show only rows that match, such as \"split = 'test'\".")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The file to write: a picture, or a web page (.html).")
    ] = DEFAULT_OUT,
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="A version number or tag; the newest by default.")
    ] = None,
) -> None:
    """Draw a contact sheet of images and captions, PNG or HTML."""
    from clipkit.workflows.show import save_sheet

    shown = save_sheet(dataset, out, num=num, where=where, version=version)
    console.say(f"{shown} images")
    console.print_result(str(out))
