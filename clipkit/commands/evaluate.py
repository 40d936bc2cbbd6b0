"""`clipkit eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipkit import console

PICTURE_ENDINGS = (".png", ".jpg")


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one of its checkpoints.")],
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The Lance dataset to measure on.")],
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The split to measure on; default: the run's validation rows, or the only split."
        ),
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="Measure only on the rows that match this SQL filter.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(metavar="best|last|STEP", help="Which checkpoint of the run.")] = "best",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the images found for five of the captions.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a run on a dataset with its evaluators."""
    if picture is not None and picture.suffix.lower() not in PICTURE_ENDINGS:
        raise typer.BadParameter(f"`{picture}` must end in {' or '.join(PICTURE_ENDINGS)}", param_hint="--picture")
    from clipkit.workflows.evaluate import evaluate as measure

    with console.progress_bar("encoding", "items") as progress:
        report, text = measure(
            run,
            dataset,
            split=split,
            where=where,
            checkpoint=checkpoint,
            device=device,
            picture=picture,
            progress=progress,
        )
    if as_json:
        console.print_json(report)
    else:
        for part in text:
            console.print_result(part if isinstance(part, str) else console.format_table(part.header, part.rows))
    if picture is not None:
        console.say(f"the images found for five captions: {picture}")
