"""`clipkit sample`: sample corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipkit import console

app = typer.Typer(help="Make a sample corpus to try clipkit on.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="sample")


@app.callback()
def _sample() -> None:
    pass


@app.command()
def shapes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, new or empty.")],
    num_images: Annotated[
        int, typer.Option(metavar="N", min=12, help="How many images; 500 of them, or a sixth, are test images.")
    ] = 3000,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same bytes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Render scenes of two or three shapes with five captions each, in the format of Kaggle's Flickr8k."""
    from collections import Counter

    from tqdm import tqdm

    from clipkit.workflows.sample import write_shapes

    with tqdm(total=num_images, unit="image", disable=None) as bar:
        pictures = write_shapes(out, num_images=num_images, seed=seed, advance=bar.update)
    splits = dict(Counter(picture.split for picture in pictures))
    if as_json:
        console.print_json(
            {"images": len(pictures), "captions": sum(len(p.captions) for p in pictures), "splits": splits}
        )
    else:
        parts = ", ".join(f"{count} {split}" for split, count in splits.items())
        console.print_result(f"{len(pictures)} images ({parts}) in {out}")
        console.say(f"next: clipkit ingest {out} {out.name}.lance")
