"""`clipkit config`: every key of a config, one file in full, and the packaged configs."""

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
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Print this packaged config: `clipkit config NAME > my.yaml`."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="FILE", help="Print this config with every default written out."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of FILE; repeatable."),
    ] = None,
    as_list: Annotated[bool, typer.Option("--list", help="List the packaged configs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List every key of a config, or print one config."""
    if (name is not None) + (file is not None) + as_list > 1:
        raise typer.BadParameter("give only one of NAME, --config and --list")
    if sets and file is None:
        raise typer.BadParameter("needs --config FILE", param_hint="--set")
    if as_list:
        _print_names(as_json=as_json)
    elif name is not None:
        from clipkit.config.packaged import find_config

        console.print_result(find_config(name).read_text(encoding="utf-8").rstrip())
    elif file is not None:
        _print_file(file, sets or [], as_json=as_json)
    else:
        _print_keys(as_json=as_json)


def _print_names(*, as_json: bool) -> None:
    from clipkit.config.packaged import list_configs

    about = {
        name: path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ") for name, path in list_configs().items()
    }
    if as_json:
        console.print_json(about)
    else:
        console.print_result("\n".join(f"{name}: {text}" for name, text in about.items()))


def _print_file(file: str, sets: list[str], *, as_json: bool) -> None:
    from clipkit.config.file import dump_config, load_config

    resolved = load_config(Path(file), sets)
    if as_json:
        console.print_json(resolved.model_dump(mode="json"))
    else:
        console.print_result(dump_config(resolved).rstrip())


def _print_keys(*, as_json: bool) -> None:
    from dataclasses import asdict

    from clipkit.config.reference import list_keys

    if as_json:
        console.print_json([asdict(key) for key in list_keys()])
    else:
        console.print_result("\n".join(map(_entry, list_keys())))


def _entry(key: Key) -> str:
    kind = f" (kind: {key.kind})" if key.kind else ""
    default = "required" if key.default is None else f"default {key.default}" if key.default else ""
    return f"{key.path}{kind}: {', '.join(part for part in (key.type, default) if part)}\n    {key.meaning}"
