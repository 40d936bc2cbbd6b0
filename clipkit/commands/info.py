"""`clipkit info`: what a dataset holds, and which images occur in two of its splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit import console

if TYPE_CHECKING:
    from clipkit.workflows.info import Images, Info, Spread
    from clipkit.workflows.leaks import Leaks

NUM_SHOWN = 10


def register(app: typer.Typer) -> None:
    app.command()(info)


def info(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Path or URI of the Lance dataset.")],
    version: Annotated[
        str | None, typer.Option(metavar="VERSION", help="A version number or tag; the newest by default.")
    ] = None,
    leaks: Annotated[
        bool, typer.Option("--leaks", help="Look for images that occur in two splits, identical or similar.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show what a dataset holds and where it came from."""
    from clipkit.workflows.info import describe

    found = describe(dataset, version=version)
    leaked = _find_leaks(dataset, version) if leaks else None
    if as_json:
        console.print_json({**found.as_json(), **({"leaks": leaked.as_json()} if leaked else {})})
        return
    console.print_result("\n\n".join(_sections(found)))
    if leaked:
        console.print_result("\n" + _leaks(leaked))


def _find_leaks(dataset: str, version: str | None) -> Leaks:
    from clipkit.workflows.leaks import find_leaks

    with console.progress_bar("comparing", "images") as progress:
        return find_leaks(dataset, version=version, progress=progress)


def _sections(found: Info) -> list[str]:
    splits = ", ".join(f"{name} {rows}" for name, rows in found.splits.items()) or "none"
    if found.num_without_split and found.splits:
        splits += f", no split {found.num_without_split}"
    images = found.images
    spreads: list[tuple[str, Spread | None]] = [
        ("captions per image", found.captions_per_image),
        ("words per caption", found.caption_words),
        ("characters per caption", found.caption_chars),
    ]
    if images is not None:
        spreads += [
            ("image width, px", images.width),
            ("image height, px", images.height),
            ("image bytes, sampled", images.bytes),
        ]
    head = [
        f"{found.dataset}, version {found.version}: {found.rows} rows, {found.captions} captions, "
        f"{console.format_bytes(found.total_bytes)}",
        f"splits: {splits}",
        _images(images),
        f"files: {found.num_fragments} fragments, storage version {found.storage_version}"
        + (f", indices {', '.join(found.indices)}" if found.indices else ""),
    ]
    numbers = [
        (name, *(f"{value:g}" for value in (s.min, s.median, s.mean, s.max))) for name, s in spreads if s is not None
    ]
    versions = [(v.version, v.created, v.rows, ", ".join(v.tags)) for v in found.versions[-NUM_SHOWN:]]
    return [
        "\n".join(head),
        console.format_table(("column", "type"), [(column.name, column.type) for column in found.columns]),
        console.format_table(("", "min", "median", "mean", "max"), numbers),
        console.format_table(("version", "created", "rows", "tags"), versions),
        "\n".join(["where it came from:", *map(_origin, found.provenance or [{}])]),
        *([f"how to read an image with Lance alone:\n{images.how_to_read}"] if images is not None else []),
    ]


def _images(images: Images | None) -> str:
    if images is None:
        return "images: none"
    formats = ", ".join(f"{name} {number}" for name, number in images.formats.items())
    rotated = f"; {images.num_rotated} rotated by EXIF when read" if images.num_rotated else ""
    return f"images: {images.storage} column; formats of {images.num_sampled} of them: {formats or 'none'}{rotated}"


def _origin(provenance: Any) -> str:
    if not provenance:
        return "  not recorded"
    sources = ", ".join(provenance.get("sources", []))
    formats = ", ".join(provenance.get("formats", []))
    lines = [
        f"  {provenance.get('created', '')}  {sources} ({formats}): {provenance.get('rows')} rows, "
        f"{provenance.get('rejected')} rejected, by clipkit {provenance.get('clipkit')}"
    ]
    for report in provenance.get("reports", []):
        parts = {"files": report["files"], "images from": report["image_folders"], "not read": report["passed_over"]}
        lines += [f"    {title} {', '.join(names)}" for title, names in parts.items() if names]
    return "\n".join(lines)


def _leaks(leaks: Leaks) -> str:
    lines = [f"leaks: {len(leaks.exact)} images occur in two splits, {len(leaks.near)} more pairs look alike"]
    for members in leaks.exact[:NUM_SHOWN]:
        lines.append("  same   " + " = ".join(f"{member.image_id} ({member.split})" for member in members))
    for near in leaks.near[:NUM_SHOWN]:
        pair = " ~ ".join(f"{member.image_id} ({member.split})" for member in near.images)
        lines.append(f"  alike  {pair}, {near.distance} of 64 bits apart")
    if max(len(leaks.exact), len(leaks.near)) > NUM_SHOWN:
        lines.append("  … `--json` lists all of them")
    if leaks.num_unreadable:
        lines.append(f"  {leaks.num_unreadable} images cannot be decoded and were not compared")
    return "\n".join(lines)
