"""The command line as a whole: help, exit codes, errors, pipes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit

RunCli = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "numpy", "pyarrow", "lance", "pydantic", "rich", "cv2", "transformers", "timm", "PIL")
ALL_COMMANDS = [
    *("ingest", "info", "show", "export-corpus", "cache", "init", "train", "eval"),
    *("config", "doctor", "bench", "sample"),
]


class TestHelp:
    def test_lists_every_command_with_a_line_that_fits(self, run_cli: RunCli) -> None:
        done = run_cli("--help", env={"COLUMNS": "80"})
        assert done.returncode == 0
        listed = done.stdout.partition("Commands:\n")[2].splitlines()
        assert [line.split()[0] for line in listed] == ALL_COMMANDS
        assert all(len(line.split()) > 3 and not line.endswith("...") for line in listed)

    def test_loads_nothing_heavy(self) -> None:
        code = (
            "import sys\n"
            "from clipkit.cli import app\n"
            "try: app(['--help'])\n"
            "except SystemExit: pass\n"
            f"print('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "loaded:"

    def test_each_command_has_help(self, run_cli: RunCli) -> None:
        for command in ALL_COMMANDS:
            done = run_cli(command, "--help")
            assert done.returncode == 0, command
            assert f"Usage: clipkit {command}" in done.stdout

    def test_version(self, run_cli: RunCli) -> None:
        assert run_cli("--version").stdout == f"clipkit {clipkit.__version__}\n"


class TestErrors:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["nonsense"], "No such command"),
            (["--nonsense"], "No such option"),
            (["sample", "shapes"], "Missing argument"),
            (["sample", "shapes", "out", "--num-images", "many"], "Invalid value"),
            (["sample", "shapes", "out", "--num-images", "3"], "Invalid value"),
            (["config", "--set", "a=b"], "--config"),
            (["config", "shapes", "--list"], "only one of"),
        ],
    )
    def test_wrong_usage_is_2(self, run_cli: RunCli, tmp_path: Path, args: list[str], message: str) -> None:
        done = run_cli(*args, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert "\n\nhint: " in done.stderr

    @pytest.mark.parametrize("command", [["train"], ["bench", "step"]])
    def test_a_config_given_as_an_argument_gets_the_option(self, run_cli: RunCli, command: list[str]) -> None:
        done = run_cli(*command, "run.yaml")
        assert done.returncode == 2
        assert f"`clipkit {' '.join(command)} --config run.yaml`" in done.stderr

    def test_a_reported_error_is_1(self, run_cli: RunCli, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "note.txt").touch()
        done = run_cli("sample", "shapes", tmp_path / "out")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == (
            f"error: `{tmp_path / 'out'}` exists and is not empty\n\nhint: name another folder, or remove that one\n"
        )

    def test_what_the_system_refuses_is_reported_without_traceback(self, run_cli: RunCli, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = run_cli("sample", "shapes", tmp_path / "file" / "out")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: Not a directory: `{tmp_path / 'file' / 'out' / 'Images'}`")
        assert "Traceback" not in done.stderr

    def test_a_traceback_on_request(self, run_cli: RunCli, tmp_path: Path) -> None:
        done = run_cli("config", "--config", tmp_path / "none.yaml", env={"CLIPKIT_DEBUG": "1"})
        assert done.returncode == 1
        assert "Traceback" in done.stderr

    def test_no_command_shows_the_help(self, run_cli: RunCli) -> None:
        done = run_cli()
        assert done.returncode == 2
        assert "Commands:" in done.stdout + done.stderr

    def test_a_config_is_checked_before_anything_heavy_is_imported(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text("foo: 1")
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "clipkit", "train", "--config", path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "x.yaml:1: foo: unknown key" in done.stderr
        imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert imported & {"torch", "numpy", "pyarrow", "lance", "cv2", "transformers", "timm"} == set()

    def test_a_config_with_problems(self, run_cli: RunCli, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text("data: {dataset: a.lance}\nmodle: {}\n")
        done = run_cli("config", "--config", path)
        assert done.returncode == 1
        assert f"{path}:2: modle: unknown key; did you mean `model`?" in done.stderr


class TestCompletion:
    def test_the_script_is_shown_and_completes(self, run_cli: RunCli) -> None:
        script = run_cli("--show-completion", "bash")
        assert "complete -o default -F _clipkit_completion clipkit" in script.stdout
        words = {"COMP_WORDS": "clipkit tra", "COMP_CWORD": "1", "_CLIPKIT_COMPLETE": "complete_bash"}
        assert run_cli(env=words).stdout.split() == ["train"]


class TestOutput:
    def test_json_is_alone_on_stdout(self, run_cli: RunCli, tmp_path: Path) -> None:
        done = run_cli("sample", "shapes", tmp_path / "out", "--num-images", 12, "--json")
        assert json.loads(done.stdout) == {"images": 12, "captions": 60, "splits": {"test": 2, "train": 10}}
        keys = json.loads(run_cli("config", "--json").stdout)
        assert {"path", "type", "default", "meaning"} <= set(keys[0])

    def test_packaged_configs_are_listed_and_printed(self, run_cli: RunCli, tmp_path: Path) -> None:
        names = json.loads(run_cli("config", "--list", "--json", cwd=tmp_path).stdout)
        assert "shapes" in names
        for name in names:
            (tmp_path / "my.yaml").write_text(run_cli("config", name, cwd=tmp_path).stdout)
            mine = run_cli("config", "--config", "my.yaml", cwd=tmp_path)
            assert mine.returncode == 0
            assert mine.stdout == run_cli("config", "--config", name, cwd=tmp_path).stdout

    def test_config_prints_what_can_be_read_again(self, run_cli: RunCli, tmp_path: Path) -> None:
        done = run_cli("config", "--config", "shapes", "--set", "train.batch_size=16", cwd=tmp_path)
        (tmp_path / "x.yaml").write_text(done.stdout)
        assert "batch_size: 16" in done.stdout
        assert run_cli("config", "--config", tmp_path / "x.yaml").stdout == done.stdout

    def test_a_closed_pipe_is_not_reported(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "clipkit", "config", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1

    def test_names_that_are_not_text_are_printed_escaped(self, run_cli: RunCli, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9")
        (tmp_path / name).mkdir()
        (tmp_path / name / "note.txt").touch()
        done = run_cli("sample", "shapes", tmp_path / name)
        assert done.returncode == 1
        assert "caf\\udce9` exists" in done.stderr


# A shell without job control makes its background jobs ignore Ctrl-C.
HEEDING_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from clipkit.cli import main
main()
"""


class TestSignals:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_ends_a_command(self, tmp_path: Path, number: signal.Signals, code: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", HEEDING_CTRL_C, "sample", "shapes", tmp_path / "out", "--num-images", "60000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        deadline = time.monotonic() + 60
        while not any((tmp_path / "out" / "Images").glob("*.jpg")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == code
        assert stdout == ""
        assert "Traceback" not in stderr
