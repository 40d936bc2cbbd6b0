"""The command line: which commands there are, and how one ends (exit codes, errors, signals)."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from clipkit import __version__, console
from clipkit.commands import COMMANDS
from clipkit.errors import ClipkitError

app = typer.Typer(
    name="clipkit",
    help="Train, measure and use image-text models on one Lance dataset.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print_result(f"clipkit {__version__}")
        raise typer.Exit


@app.callback()
def _clipkit(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    console.start_logging()


for register in COMMANDS:
    register(app)


def main() -> None:
    """Run one command and exit: 0 done, 1 a reported error, 2 wrong usage, 3 rows rejected, 130, 143."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(standalone_mode=False)
    except ClipkitError as error:
        if os.environ.get("CLIPKIT_DEBUG") == "1":
            raise
        console.print_error(error.message, error.hint)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted")
        code = 130
    except BrokenPipeError:  # the reader of our stdout has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if os.environ.get("CLIPKIT_DEBUG") == "1" and not _is_usage_error(error):
            raise
        code = _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _is_usage_error(error: Exception) -> bool:
    return hasattr(error, "exit_code") and hasattr(error, "show")


def _report(error: Exception) -> int:
    if _is_usage_error(error):  # typer's own: an unknown option, a missing argument
        error.show()  # type: ignore[attr-defined]
        return int(error.exit_code)  # type: ignore[attr-defined]
    console.print_error(
        f"{type(error).__name__}: {error}",
        "this is a defect in clipkit: run again with CLIPKIT_DEBUG=1 for the traceback, and report it",
    )
    return 1


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
