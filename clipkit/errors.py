"""The errors that clipkit raises.

ClipkitError            something the user can fix: printed as `error:` and `hint:`, exit code 1
├── ConfigError         a training config that is not valid
├── DataError           a corpus or dataset that cannot be read or written
│   └── RejectedRows    done, but rows were rejected under --strict (exit code 3)
├── ModelError          a model that cannot be built or loaded
├── CheckpointError     a run or checkpoint that cannot be used
├── TrainingError       a training run that had to stop
└── MissingExtra        an optional package that is not installed
"""

import re

DISTRIBUTION = "clipkit-train"  # the name for `pip install`: `clipkit` on PyPI is another project
RUST_PLACE = re.compile(r",? ?/\S+\.rs:\d+:\d+")  # a position in Lance's source code, which its errors contain


class ClipkitError(Exception):
    """An error and a `hint`: what is wrong, and what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(ClipkitError):
    pass


class DataError(ClipkitError):
    pass


class RejectedRows(DataError):
    exit_code = 3


class ModelError(ClipkitError):
    pass


class CheckpointError(ClipkitError):
    pass


class TrainingError(ClipkitError):
    pass


class MissingExtra(ClipkitError):
    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"`{package}` is not installed, and {purpose} needs it",
            f"`pip install '{DISTRIBUTION}[{extra}]'`",
        )


def first_line(error: BaseException) -> str:
    """The first line of another library's error, short enough for a message of clipkit."""
    lines = RUST_PLACE.sub("", str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
