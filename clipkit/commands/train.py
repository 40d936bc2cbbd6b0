"""`clipkit train`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit import console
from clipkit.signals import exit_on_signals

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    app.command("train")(train)


def train(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="The training config, a YAML file.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the config: `a.b=c`.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN|auto", help="Resume a run; auto: the newest of the config's name, or a new one."),
    ] = None,
    rerun: Annotated[
        str | None, typer.Option(metavar="RUN", help="Repeat a run from its start, in a new folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and train one step; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train a model from a config, into a run folder."""
    exit_on_signals()  # until the first step
    from clipkit.train.session import open_session

    if not _is_main():
        logging.getLogger("clipkit").setLevel(logging.ERROR)  # only rank 0 logs
    trains_here = not dry_run and _is_main()
    session = open_session(config, sets or (), resume=resume, rerun=rerun, hold=trains_here)  # before heavy imports
    if trains_here:
        session.check_free()

    from clipkit.hardware import let_threads_sleep

    let_threads_sleep()
    from clipkit.types import no_progress
    from clipkit.workflows import train as workflow

    if dry_run:
        result = workflow.dry_run(session)
        if _is_main():
            console.print_json(result) if as_json else _print_groups(result)
        return
    with (
        closing(Bar(session.folder.name, session.step, hidden=not _is_main())) as progress,
        console.progress_bar("encoding", "captions") if _is_main() else nullcontext(no_progress) as preparing,
    ):
        summary = workflow.train(session, progress=progress, preparing=preparing)
    if not _is_main():
        raise typer.Exit(summary["exit_code"])
    console.print_json(summary) if as_json else _print_summary(summary)
    if summary["exit_code"]:
        console.say(f"stopped at step {summary['step']}; resume with: clipkit train --resume {summary['run']}")
    raise typer.Exit(summary["exit_code"])


def _is_main() -> bool:
    """Whether this process has rank 0; it is also needed after training, when there is no process group."""
    return os.environ.get("RANK", "0") == "0"


def _print_groups(result: dict[str, Any]) -> None:
    rows = [
        (name, f"{group['params']:,}", f"{group['trained']:,}", f"{group['lr']:g}", f"{group['weight_decay']:g}")
        for name, group in result["groups"].items()
    ]
    console.print_result(console.format_table(("group", "parameters", "trained", "lr", "weight decay"), rows))
    console.print_result(
        f"\n{result['samples']:,} samples, {result['steps_per_epoch']:,} steps an epoch; the loss of the first batch "
        f"is {result['loss']:.4f}"
    )


def _print_summary(summary: dict[str, Any]) -> None:
    loss = "" if summary["loss"] is None else f", last loss {summary['loss']:.4f}"
    lines = [
        f"{summary['reason']}: {summary['step']:,} steps ({summary['epochs']:g} epochs) in {summary['wall_s']:.0f} s"
        f"{loss}, {summary['samples_per_s']:.0f} samples/s, {summary['wait_share']:.1%} waiting for data"
    ]
    if summary["shown"]:
        lines.append(f"last evaluation: {_numbers(summary['shown'])}")
    best = summary["best"]
    if best["step"] is not None:
        lines.append(f"best: {best['metric']} {best['value']:.4f} at step {best['step']:,}")
    lines.append(f"run folder: {summary['run']}")
    if not summary["exit_code"]:
        lines.append(f"next: clipkit eval {summary['run']} {summary['dataset']}")
    console.print_result("\n".join(lines))


class Bar:
    """A tqdm bar with the loss, the learning rates, the speed and the share of time spent waiting for data."""

    def __init__(self, name: str, step: int, *, hidden: bool) -> None:
        """A `hidden` one, for ranks other than 0, draws nothing."""
        self._name = name
        self._start = step
        self._hidden = hidden
        self._bar: tqdm[Any] | None = None  # drawn with the first step

    def update(self, step: int, total: int | None, fields: Mapping[str, Any]) -> None:
        if self._hidden:
            return
        if self._bar is None:
            from tqdm import tqdm

            interval_s = 0.5 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(
                desc=self._name, initial=self._start, unit="step", mininterval=interval_s, dynamic_ncols=True
            )
        self._bar.total = total
        rates = " ".join(f"{name.removesuffix('_encoder')} {rate:.1e}" for name, rate in fields["lr"].items())
        self._bar.set_postfix_str(
            f"loss {fields['loss']:.4f}, lr {rates}, {fields['samples_per_s']:.0f} samples/s, "
            f"wait {fields['wait_share']:.0%}",
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    def evaluated(self, step: int, label: str, shown: Mapping[str, float]) -> None:
        log.info("step %d, %s: %s", step, label, _numbers(shown))  # on ranks other than 0 the level is higher

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _numbers(shown: Mapping[str, float]) -> str:
    """`text to image: recall@1 0.100, recall@5 0.300; image to text: …`."""
    grouped: dict[str, list[str]] = {}
    for path, value in shown.items():
        group, _, name = path.rpartition("/")
        grouped.setdefault(group.replace("_", " "), []).append(f"{name} {value:.3f}")
    return "; ".join((f"{group}: " if group else "") + ", ".join(parts) for group, parts in grouped.items())
