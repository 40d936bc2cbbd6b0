"""`clipkit export-corpus`: a dataset as files that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clipkit import console


def register(app: typer.Typer) -> None:
    app.command("export-corpus")(export_corpus)


def export_corpus(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Path or URI of the Lance dataset.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write, new or empty.")],
    format: Annotated[Literal["webdataset", "imagefolder", "coco"], typer.Option(help="The format to write.")],
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Export only the rows that match this SQL filter.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="A version number or tag; the newest by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Export images and captions in a common format."""
    from clipkit.workflows.export_corpus import export_corpus

    with console.progress_bar("exporting", "rows") as progress:
        rows = export_corpus(dataset, out, format=format, where=where, version=version, progress=progress)
    if as_json:
        console.print_json({"rows": rows, "format": format, "out": str(out)})
        return
    console.print_result(f"{rows} rows -> {out} ({format})")
    console.say(f"next: clipkit ingest {out} OUT.lance")
