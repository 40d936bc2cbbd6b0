"""Configs as text: those that come with clipkit, and a small one."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.config import Config
from clipkit.config.file import parse_config
from clipkit.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALL = """\
data:
  dataset: a.lance
model:
  image: {kind: timm, name: resnet10t}
  text: {kind: transformers, architecture: {layers: 2}}
"""


def parse(text: str, *sets: str, beside: Path | None = None) -> Config:
    return parse_config(text, source="x.yaml", sets=sets, beside=beside)


def problems(text: str, *sets: str, beside: Path | None = None) -> list[str]:
    """What is wrong with a config, a line each."""
    with pytest.raises(ConfigError) as caught:
        parse(text, *sets, beside=beside)
    assert caught.value.hint
    return [line.strip() for line in caught.value.message.splitlines()[1:]]
