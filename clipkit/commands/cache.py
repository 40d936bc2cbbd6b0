"""`clipkit cache`: a column of decoded pixels."""

from __future__ import annotations

from typing import Annotated

import typer

from clipkit import console


def register(app: typer.Typer) -> None:
    app.command()(cache)


def cache(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Path of the Lance dataset.")],
    size: Annotated[
        int, typer.Option(metavar="PX", min=16, max=4096, help="Side of the cached squares, in pixels.")
    ] = 256,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cost and the gain; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Add a column of decoded pixels, for faster training."""
    from tqdm import tqdm

    from clipkit.data.pixel_cache import estimate_cache, make_cache
    from clipkit.store import Dataset

    opened = Dataset(dataset)
    estimate = estimate_cache(opened, side_px=size)
    console.say(
        f"column `{estimate.column}`: {estimate.rows:,} rows to decode, {console.format_bytes(estimate.bytes)} on "
        f"disk, about {estimate.write_s:,.0f} s; reading a crop is up to {estimate.gain:.1f} times as fast as decoding"
    )
    bad: list[str] = []
    if not dry_run and estimate.rows:
        with tqdm(total=estimate.rows, desc="decoding", unit=" images", leave=False) as bar:
            opened, bad = make_cache(opened, side_px=size, advance=bar.update)
    for image_id in bad[:10]:
        console.say(f"cannot be decoded: `{image_id}`")
    if len(bad) > 10:
        console.say(f"… and {len(bad) - 10:,} more")
    if as_json:
        console.print_json(
            {
                "column": estimate.column,
                "rows": estimate.rows - len(bad),
                "bytes": estimate.bytes,
                "gain": round(estimate.gain, 2),
                "undecodable": len(bad),
                "version": opened.version,
                "written": not dry_run and estimate.rows > len(bad),
            }
        )
    elif not dry_run:
        console.print_result(f"`{estimate.column}` is complete; train from it with `data.cache: {size}`")
