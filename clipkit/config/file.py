"""YAML and `--set a.b=c` to a `Config`, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clipkit.config import Config
from clipkit.config.document import apply_set, read_document
from clipkit.config.packaged import find_config
from clipkit.config.problems import check
from clipkit.errors import ConfigError


def load_config(path: str | Path, sets: Sequence[str] = ()) -> Config:
    """Read a config file; raises ConfigError that names every problem."""
    path = find_config(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read: {error}", "a config is a YAML file in UTF-8") from error
    return parse_config(text, source=str(path), sets=sets)


def parse_config(text: str, *, source: str, sets: Sequence[str] = ()) -> Config:
    """Make a Config of YAML text; `source` is what errors call it."""
    document = read_document(text, source=source)
    if document.values or not document.problems:
        for number, assignment in enumerate(sets):
            apply_set(document, assignment, number=number)
        config = check(document)
        if config is not None and not document.problems:
            return config
    problems = sorted(document.problems)
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ConfigError(
        f"`{source}` has {count}\n" + "\n".join(f"  {problem}" for problem in problems),
        "`clipkit config` lists every key with its type, default and meaning",
    )


def dump_config(config: Config) -> str:
    """The config as YAML, with every default written out."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Sections as blocks, lists of plain values on one line."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    plain = not any(isinstance(value, dict | list) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _represent_list)
