"""YAML and `--set a.b=c` to a `Config`, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipkit.config import Config
from clipkit.config.document import AFTER_THE_FILE, Document, apply_set, read_document
from clipkit.config.packaged import find_config
from clipkit.config.plugins import Plugin, load_plugins, reopen_plugins
from clipkit.config.problems import check
from clipkit.errors import ConfigError


def load_config(path: str | Path, sets: Sequence[str] = ()) -> Config:
    """Read a config file and import its plugins; raises ConfigError that names every problem."""
    path = find_config(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read: {error}", "a config is a YAML file in UTF-8") from error
    return parse_config(text, source=str(path), sets=sets, beside=path.parent)


def load_run_config(
    path: Path, sets: Sequence[str] = (), *, recorded: Sequence[Mapping[str, str]], run_folder: Path
) -> Config:
    """Read the config of a run or a checkpoint, with the plugins that were `recorded` in it (see `reopen_plugins`)."""
    plugins = reopen_plugins(recorded, run_folder=run_folder)
    return parse_config(path.read_text(encoding="utf-8"), source=str(path), sets=sets, plugins=plugins)


def parse_config(
    text: str,
    *,
    source: str,
    sets: Sequence[str] = (),
    beside: Path | None = None,
    plugins: Sequence[Plugin] | None = None,
) -> Config:
    """Make a Config of YAML text; `source` is what errors call it.

    Its plugins are looked for in the folder `beside`, then among what is installed. For the config of a run, `plugins`
    are those that `reopen_plugins` has imported: then the text may name no others, and only `sets` may.
    """
    document = read_document(text, source=source)
    hint = "`clipkit config` lists every key and kind; those of a plugin need its module in `plugins`"
    if document.values or not document.problems:
        for number, assignment in enumerate(sets):
            apply_set(document, assignment, number=number)
        try:
            _import_plugins(document, beside, plugins)
        except ConfigError as error:  # without its plugins, what the config says of them would be wrong too
            document.report(("plugins",), error.message)
            hint = error.hint
        else:
            config = check(document)
            if config is not None and not document.problems:
                return config
    problems = sorted(document.problems)
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ConfigError(f"`{source}` has {count}\n" + "\n".join(f"  {problem}" for problem in problems), hint)


def _import_plugins(document: Document, beside: Path | None, reopened: Sequence[Plugin] | None) -> None:
    names = document.values.get("plugins") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError("must be a list of module names", "write `plugins: [my_module]`")
    new = [name for name in names if name not in {plugin.name for plugin in reopened or ()}]
    is_from_file = document.origin(("plugins",)).line < AFTER_THE_FILE
    if new and reopened is not None and is_from_file:
        raise ConfigError(f"the run has no record of the plugin `{new[0]}`", "resume the run with `--config FILE`")
    load_plugins(new, beside=beside)


def dump_config(config: Config) -> str:
    """The config as YAML, with every default written out."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists of plain values on one line."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    plain = not any(isinstance(value, dict | list) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _represent_list)
