"""`clipkit bench loader` and `clipkit bench step`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit import console

if TYPE_CHECKING:
    from clipkit.config import DataConfig
    from clipkit.types import Tokenizer

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="A YAML file or a packaged config.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config: `a.b=c`.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    bench = typer.Typer(help="Measure the loader and the training step.", no_args_is_help=True)
    bench.command("loader")(loader)
    bench.command("step")(step)
    app.add_typer(bench, name="bench")


def loader(
    config: ConfigOption = None,
    dataset: Annotated[
        str | None, typer.Option(help="A Lance dataset instead of a config: plain resizing, no augmentation.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="With --dataset: the size of the images delivered.")] = 224,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per batch; the config's or 64 by default.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --dataset, also tokenize: a model or folder with a tokenizer.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure the loader, and the ceiling.")] = 5.0,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Images per second that the loader delivers, compared with decoding alone."""
    if (config is None) == (dataset is None):
        raise typer.BadParameter("give either --config or --dataset")
    from clipkit.workflows.bench import bench_loader, inputs_of_training, plain_inputs

    if config is not None:
        from clipkit.train.session import open_session

        session = open_session(config, sets or [])
        data, size = session.config.data, session.config.train.batch_size
        inputs = inputs_of_training(session)
    else:
        from clipkit.config import DataConfig

        if sets:
            raise typer.BadParameter("--set changes a config: give one with --config")
        data, size = DataConfig(dataset=str(dataset), image_size=image_size), 64
        inputs = plain_inputs(data, _load_tokenizer(data, tokenizer))
    with console.progress_bar("measuring", "rounds") as progress:
        report = bench_loader(data, inputs, batch_size=batch_size or size, seconds=seconds, progress=progress)
    if as_json:
        console.print_json(asdict(report))
        return
    console.print_result(_loader_text(asdict(report)))


def step(
    config: ConfigOption = None,
    sets: SetOption = None,
    num_steps: Annotated[
        int, typer.Option("--steps", min=1, help="At most this many steps in each of the rounds.")
    ] = 10,
    as_json: JsonOption = False,
) -> None:
    """Samples per second of the training step, on real data and on one repeated batch."""
    if config is None:
        raise typer.BadParameter("give a config with --config")
    from clipkit.train.session import open_session

    session = open_session(config, sets or [])

    from clipkit.hardware import let_threads_sleep

    let_threads_sleep()
    from clipkit.workflows.bench import bench_step

    with console.progress_bar("measuring", "rounds") as progress:
        report = bench_step(session, num_steps=num_steps, progress=progress)
    if as_json:
        console.print_json(asdict(report))
        return
    console.print_result(
        f"{report.samples_per_s:,.0f} samples per second with real data, {report.synthetic_samples_per_s:,.0f} without "
        f"loading: {report.ratio:.0%} (batch {report.batch_size}, {report.device})"
    )


def _load_tokenizer(data: DataConfig, name: str | None) -> Tokenizer | None:
    if name is None:
        return None
    from clipkit.data.tokenizer import load_tokenizer

    return load_tokenizer(name, max_tokens=data.max_tokens, padding=data.padding)


def _loader_text(report: dict[str, Any]) -> str:
    lines = [f"{report['images_per_s']:,.0f} images per second in batches of {report['batch_size']}"]
    if report["ratio"] is not None:
        lines.append(
            f"{report['ratio']:.0%} of the {report['ceiling_images_per_s']:,.0f} of decoding and resizing alone "
            f"({report['decoder']}, {report['workers']} threads)"
        )
    lines.append(f"first batch after {report['first_batch_s']:.2f} s; at most {report['peak_rss_mb']:,.0f} MB resident")
    table = console.format_table(["stage", "ms per batch"], [(k, f"{v:.2f}") for k, v in report["stages_ms"].items()])
    return "\n".join([*lines, "", table, *(f"\n{advice}" for advice in report["advice"])])
