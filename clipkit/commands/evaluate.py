"""`clipkit eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from clipkit import console

PICTURE_ENDINGS = (".png", ".jpg")
DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint of one.")],
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The Lance dataset to measure on.")],
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="A split of it; the run's validation rows, or the only split, when left out."
        ),
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Rows of it: SQL over the columns.")] = None,
    checkpoint: Annotated[str, typer.Option(metavar="best|last|STEP", help="Which checkpoint of the run.")] = "best",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw what is found for five of the captions.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a run's retrieval on a dataset, both ways."""
    if picture is not None and picture.suffix.lower() not in PICTURE_ENDINGS:
        raise typer.BadParameter(f"`{picture}` must end in {' or '.join(PICTURE_ENDINGS)}", param_hint="--picture")
    from tqdm import tqdm

    from clipkit.workflows import evaluate as workflow

    with tqdm(desc="encoding", unit=" items", leave=False, disable=None) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = workflow.evaluate(
            run,
            dataset,
            split=split,
            where=where,
            checkpoint=checkpoint,
            device=device,
            picture=picture,
            progress=advance,
        )
    if as_json:
        console.print_json(report)
    else:
        _print_report(report)
    if picture is not None:
        console.say(f"five captions and the images found for each: {picture}")


def _print_report(report: Mapping[str, Any]) -> None:
    rows = f"split `{report['split']}`" if report["split"] else f"rows `{report['where'] or 'all'}`"
    console.print_result(
        f"run {report['run']}, step {report['step']}, on {report['dataset']} (version {report['dataset_version']}), "
        f"{rows}: {report['num_images']:,} images, {report['num_captions']:,} captions\n"
    )
    lines = [[label, *_cells(report[key])] for key, label in DIRECTIONS.items()]
    originals = report.get("without_twins")
    if originals and originals["num_images"] < report["num_images"]:
        lines += [[f"{label}, without twins", *_cells(originals[key])] for key, label in DIRECTIONS.items()]
    header = ["", "recall@1", "recall@5", "recall@10", "median rank", "mean rank"]
    console.print_result(console.format_table(header, lines))
    for kind, twins in report.get("twins", {}).items():
        console.print_result(
            f"twins by {kind}: {twins['accuracy']:.1%} of captions pick their own image ({twins['num_pairs']:,} pairs)"
        )
    console.print_result(f"\n{report['protocol']}")


def _cells(direction: Mapping[str, float]) -> list[str]:
    recalls = [f"{direction[f'recall@{k}']:.3f}" for k in (1, 5, 10)]
    return [*recalls, f"{direction['median_rank']:g}", f"{direction['mean_rank']:.1f}"]
