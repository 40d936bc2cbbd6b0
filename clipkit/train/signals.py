"""SIGTERM, SIGINT and SIGUSR1 ask a run to stop after its step; a second one ends it at once."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)
FORWARDED_WITHIN_S = 2.0
# SLURM sends SIGUSR1 some time before it ends a job: the run ends as one that was terminated.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


def leave_on_signals() -> None:
    """End the command at once where there is nothing to save yet.

    It does not raise: an exception in the middle of an import can be swallowed there, or told as a missing module.
    """
    for number in EXIT_CODES:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(EXIT_CODES[signal.Signals(number)])


class StopSignals:
    """`requested` is the exit code that the first signal asks for, or 0."""

    def __init__(self) -> None:
        self.requested = 0
        self._first_at = 0.0
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopSignals:
        for number in EXIT_CODES:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = EXIT_CODES[signal.Signals(number)]
        if self.requested:
            if not self._is_forwarded():
                os._exit(code)  # at once: whatever is half-written is ignored by a resume
            return
        self.requested = code
        self._first_at = time.monotonic()
        log.warning("%s: stopping after this step and saving; once more stops at once", signal.Signals(number).name)

    def _is_forwarded(self) -> bool:
        """Whether this may be the first signal again: torchrun passes on what a terminal or SLURM sends to all."""
        return "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._first_at < FORWARDED_WITHIN_S
