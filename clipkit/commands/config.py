"""`clipkit config`: what a config file can say, and what one says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit import console

if TYPE_CHECKING:
    from clipkit.config.reference import Key


def register(app: typer.Typer) -> None:
    app.command()(config)


def config(
    file: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Print this file in full.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the file; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List every key of a config, or print a config file in full."""
    from dataclasses import asdict

    if file is None:
        if sets:
            raise typer.BadParameter("needs --config FILE", param_hint="--set")
        from clipkit.config.reference import list_keys

        keys = list_keys()
        if as_json:
            console.print_json([asdict(key) for key in keys])
        else:
            console.print_result("\n".join(_entry(key) for key in keys))
        return
    from clipkit.config.file import dump_config, load_config

    resolved = load_config(file, sets or ())
    if as_json:
        console.print_json(resolved.model_dump(mode="json"))
    else:
        console.print_result(dump_config(resolved).rstrip())


def _entry(key: Key) -> str:
    kind = f" (kind: {key.kind})" if key.kind else ""
    default = "required" if key.default is None else f"default {key.default}" if key.default else ""
    return f"{key.path}{kind}: {', '.join(part for part in (key.type, default) if part)}\n    {key.meaning}"
