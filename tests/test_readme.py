"""The README is short, and what it tells people to type exists."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCED = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
INLINE = re.findall(r"`(clipkit [^`]+)`", README)
COMMANDS = sorted({line.split("#")[0].strip() for line in "\n".join([*FENCED, *INLINE]).splitlines()} - {""})


def test_it_is_read_in_two_minutes() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("clipkit ")])
def test_commands_and_their_options_exist(
    run_cli: Callable[..., subprocess.CompletedProcess[str]], command: str
) -> None:
    words = command.split()[1:]
    names = words[:2] if words[0] in ("bench", "sample") else words[:1]
    done = run_cli(*names, "--help")
    assert done.returncode == 0
    for option in re.findall(r"(--[a-z-]+)", command):
        assert option in done.stdout, option


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert used
    assert used <= targets


def test_every_command_is_in_the_table(run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    listed = run_cli("--help").stdout.partition("Commands:\n")[2].splitlines()
    for name in (line.split()[0] for line in listed):
        assert re.search(rf"^\| `clipkit {name}\b", README, flags=re.MULTILINE), name


def test_every_config_is_in_the_table() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"| `{path.name}` |" in README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
