"""The command line: its commands, and how they end (exit codes, errors, signals)."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from typing import Annotated, Any

import typer

from clipkit import __version__, console, signals
from clipkit.commands import COMMANDS
from clipkit.errors import ClipkitError

# The base class of what typer raises for wrong usage, which it does not export.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
# A config that is given as an argument.
CONFIG_ARGUMENT = re.compile(r"unexpected extra argument\S* \((\S+\.ya?ml)\)")

app = typer.Typer(
    name="clipkit",
    help="Train and fine-tune CLIP-like image-text models on your own pictures, from one Lance dataset.",
    no_args_is_help=True,
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
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    console.start_logging()


for register in COMMANDS:
    register(app)


def main() -> None:
    """Run one command and exit: 0 done, 1 a reported error, 2 wrong usage, 3 rows rejected, 130, 143."""
    signals.raise_on_sigterm()
    for stream in (sys.stdout, sys.stderr):  # file names may hold bytes that are not text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="clipkit", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted")
        code = 130
    except BrokenPipeError:  # nobody reads our stdout any more, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except USAGE_ERROR as error:
        code = _report_usage(error)
    except Exception as error:
        if os.environ.get("CLIPKIT_DEBUG") == "1":
            raise
        code = _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _report_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.command_path if error.ctx else "clipkit"
        message = error.format_message()
        config = CONFIG_ARGUMENT.search(message)
        if config and any("--config" in param.opts for param in error.ctx.command.params):
            console.print_error(message, f"name a config with an option: `{command} --config {config[1]}`")
        else:
            console.print_error(message, f"`{command} --help` lists the arguments and options")
    return 2


def _report(error: Exception) -> int:
    if isinstance(error, ClipkitError):
        console.print_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:  # a full disk, no permission
        where = f": `{error.filename}`" if error.filename else ""
        console.print_error(f"{error.strerror}{where}", "CLIPKIT_DEBUG=1 shows where it happened")
        return 1
    hint = "this is a bug in clipkit: run it again with CLIPKIT_DEBUG=1 for the traceback, and report it"
    if place := _place_in_plugin(error):
        hint = f"it was raised in a plugin, at {place}: CLIPKIT_DEBUG=1 shows the traceback"
    console.print_error(f"{type(error).__name__}: {error}", hint)
    return 1


def _place_in_plugin(error: Exception) -> str | None:
    """The innermost place in the code of a plugin that an error passed, as `file:line`."""
    from clipkit.config.plugins import is_plugin_file

    frames = traceback.extract_tb(error.__traceback__)
    places = [f"`{frame.filename}:{frame.lineno}`" for frame in frames if is_plugin_file(frame.filename)]
    return places[-1] if places else None
