"""`clipkit ingest`: sources of images and captions into a Lance dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipkit import console

if TYPE_CHECKING:
    from clipkit.workflows.ingest import MaxRejected, Summary


NUM_NAMES = 5  # of files and folders that the summary lists


def register(app: typer.Typer) -> None:
    app.command()(ingest)


def ingest(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE… OUT", help="What to read (one or several), and the dataset to write."),
    ],
    # what OUT holds already
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the rows of OUT in a new version.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add the ids that OUT does not have.")] = False,
    upsert: Annotated[bool, typer.Option("--upsert", help="Add new ids and replace those that OUT has.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue where this command was interrupted.")] = False,
    retry: Annotated[
        Path | None,
        typer.Option(metavar="REJECTED.jsonl", help="Retry only these rows; SOURCE may be left out."),
    ] = None,
    # how to read
    format: Annotated[
        str | None, typer.Option(metavar="NAME", help="The sources' format; detected when left out.")
    ] = None,
    image_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", exists=True, file_okay=False, help="Where the images are.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column with the image: path, bytes, base64 or URL.")
    ] = None,
    caption_column: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column with captions; may be repeated.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the image's id.")] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A further column to keep; may be repeated, or '*' for all."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="The columns of a table without a header line, such as image,caption."),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(metavar="NAME", help="The encoding of text files, such as latin-1; usually UTF-8.")
    ] = None,
    class_template: Annotated[
        str, typer.Option(metavar="TEXT", help="The caption of an image of a class.")
    ] = "a photo of a {}",
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Allow paths that lead out of the corpus's folder.")
    ] = False,
    # splits
    split: Annotated[str | None, typer.Option(metavar="NAME", help="The split of every row.")] = None,
    split_file: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A split's list of images; may be repeated.")
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="The share that a hash of the id puts into `dev`.")
    ] = 0.0,
    test_fraction: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="The share that a hash of the id puts into `test`.")
    ] = 0.0,
    # images
    resize: Annotated[
        int | None, typer.Option(metavar="PX", min=1, help="Shrink images to this size, in pixels; smaller ones stay.")
    ] = None,
    resize_mode: Annotated[
        Literal["shorter", "longer", "squash", "crop"], typer.Option(help="Which side --resize means.")
    ] = "shorter",
    quality: Annotated[int, typer.Option(metavar="1-100", min=1, max=100, help="JPEG quality of resized images.")] = 90,
    min_size: Annotated[int, typer.Option(metavar="PX", min=0, help="Reject images with a shorter side.")] = 0,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Reject larger images, without decoding them.")
    ] = 200_000_000,
    verify: Annotated[bool, typer.Option("--verify", help="Decode every image.")] = False,
    image_storage: Annotated[
        Literal["auto", "binary", "blob"], typer.Option(help="How Lance stores images; auto chooses by their size.")
    ] = "auto",
    # images by URL
    fetch_concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="URLs fetched at a time.")] = 32,
    fetch_per_host: Annotated[int, typer.Option(metavar="N", min=1, help="URLs fetched of one host at a time.")] = 8,
    fetch_timeout: Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds for one response.")] = 30.0,
    fetch_attempts: Annotated[int, typer.Option(metavar="N", min=1, help="Attempts at one URL.")] = 4,
    fetch_max_mb: Annotated[float, typer.Option(metavar="MB", min=0.001, help="Reject larger responses.")] = 100.0,
    # what is rejected
    dedupe: Annotated[
        Literal["exact"] | None, typer.Option(help="Drop images whose bytes are stored under another id.")
    ] = None,
    on_duplicate: Annotated[
        Literal["error", "first", "merge-captions"], typer.Option(help="What to do with an id that occurs twice.")
    ] = "error",
    max_rejected: Annotated[
        str | None, typer.Option(metavar="N|N%", help="Stop once more rows than this are rejected.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if a row was rejected.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Read images and captions into a Lance dataset. Rows that cannot be used are listed in `rejected.jsonl`."""
    from clipkit.errors import RejectedRows
    from clipkit.images.prepare import ImageOptions
    from clipkit.readers import ReadOptions
    from clipkit.readers.fetch import FetchOptions
    from clipkit.workflows.ingest import IngestOptions, ingest

    *sources, out = paths
    if not sources and retry is None:
        raise typer.BadParameter("name at least one source, and the dataset to write after it")
    if overwrite + append + upsert > 1:
        raise typer.BadParameter("use only one of --overwrite, --append and --upsert")
    if val_fraction + test_fraction > 1:
        raise typer.BadParameter("--val-fraction and --test-fraction add up to more than 1")
    options = IngestOptions(
        read=ReadOptions(
            format=format,
            image_dir=image_dir and image_dir.absolute(),
            allow_outside=allow_outside,
            image_column=image_column,
            caption_columns=tuple(caption_column or ()),
            id_column=id_column,
            keep=tuple(keep or ()),
            columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
            encoding=encoding,
            class_template=class_template,
            split=split,
            split_files=dict(_split_file(text) for text in split_file or ()),
            val_fraction=val_fraction,
            test_fraction=test_fraction,
        ),
        image=ImageOptions(resize, resize_mode, quality, min_size, max_pixels, verify),
        fetch=FetchOptions(
            max_concurrent=fetch_concurrency,
            max_per_host=fetch_per_host,
            timeout_s=fetch_timeout,
            num_attempts=fetch_attempts,
            max_bytes=round(fetch_max_mb * 1_000_000),
        ),
        mode="overwrite" if overwrite else "append" if append else "upsert" if upsert else "create",
        resume=resume,
        storage=image_storage,
        drop_repeats=dedupe == "exact",
        on_duplicate=on_duplicate,
        max_rejected=_max_rejected(max_rejected),
        retry=retry,
    )
    with _Bar() as bar:
        summary = ingest(sources, out, options, progress=bar)
    _print_summary(summary, as_json=as_json)
    if strict and summary.rejected:
        raise RejectedRows(f"{summary.rejected} rows were rejected (--strict)", f"`{summary.rejected_file}` lists them")


def _split_file(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise typer.BadParameter(f"`{text}` is not NAME=FILE, such as train=train.txt")
    return name, Path(path).absolute()


def _max_rejected(text: str | None) -> MaxRejected | None:
    from clipkit.workflows.ingest import MaxRejected

    try:
        return None if text is None else MaxRejected.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"`{text}` is neither a number of rows nor a share such as 1%") from error


class _Bar:
    """A progress bar of rows, with megabytes and rejected rows."""

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        self._bar = tqdm(unit=" rows", disable=None)
        self._rejected = 0
        self._num_bytes = 0
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, *, rows: int, rejected: int, num_bytes: int) -> None:
        self._rejected += rejected
        self._num_bytes += num_bytes
        if self._bar.update(rows):  # true when it has redrawn itself
            self._bar.set_postfix_str(f"{self._num_bytes / 1e6:.0f} MB, {self._rejected} rejected", refresh=False)


def _print_summary(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        console.print_json(summary.as_json())
        return
    counts = summary.counts
    if summary.already_finished:
        console.print_result(f"{summary.out} is complete; there is nothing to resume")
    console.print_result(
        f"{counts.rows} rows, {counts.captions} captions, {console.format_bytes(counts.bytes)} of images"
        f" in {summary.seconds:.1f} s -> {summary.out} (version {summary.version}, {summary.total_rows} rows)"
    )
    for source in summary.sources:
        console.print_result(_how_read(source))
    if counts.splits:
        console.print_result("splits: " + ", ".join(f"{name} {rows}" for name, rows in sorted(counts.splits.items())))
    skipped = {
        "already in the dataset": counts.existing,
        "repeated ids": counts.duplicates,
        "repeated images": counts.repeats,
    }
    for reason, number in skipped.items():
        if number:
            console.print_result(f"skipped: {number} ({reason})")
    if summary.without_caption:
        console.print_result(f"left out: {summary.without_caption} images without a caption, in the same folders")
    if summary.rejected:
        console.print_result(f"rejected: {summary.rejected}, listed in {summary.rejected_file}")
        for reason, number in list(summary.reasons.items())[:10]:
            console.print_result(f"  {number:>6}  {reason}")
    if not summary.already_finished:
        console.say(f"next: clipkit info {summary.out}")


def _how_read(source: Mapping[str, Any]) -> str:
    """The reader of a source, the files that it read, the folders of the images, and what it did not read."""
    parts = {"files": source["files"], "images from": source["image_folders"], "not read": source["passed_over"]}
    listed = [f"{title} {_some(names)}" for title, names in parts.items() if names]
    return "; ".join([f"{source['source']}: read as {source['reader']}", *listed])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NAMES]) + (f" and {len(names) - NUM_NAMES} more" if len(names) > NUM_NAMES else "")
