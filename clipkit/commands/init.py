"""`clipkit init`: a config for a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from clipkit import console


def register(app: typer.Typer) -> None:
    app.command()(init)


def init(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Path or URI of the Lance dataset.")],
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from published weights, which `train` downloads once.")
    ] = False,
) -> None:
    """Print a config that fits a dataset and this machine."""
    from clipkit.workflows.init import propose_config

    console.print_result(propose_config(dataset, pretrained=pretrained).rstrip())
    console.say("next: clipkit train --config run.yaml, with this config in run.yaml")
