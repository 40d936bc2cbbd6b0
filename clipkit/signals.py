"""SIGINT, SIGTERM and SIGUSR1: a command without work to save ends at once; one that has some stops when it can."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

log = logging.getLogger(__name__)
FORWARDED_WITHIN_S = 2.0
# SLURM sends SIGUSR1 some time before it ends a job, so it counts as SIGTERM.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


def raise_on_sigterm() -> None:
    """Raise SystemExit on SIGTERM, so that clean-up runs."""
    signal.signal(signal.SIGTERM, _raise)


def exit_on_signals() -> None:
    """End the process at once on a signal, without clean-up.

    An exception would not do: during an import it may be swallowed, or reported as a missing module.
    """
    for number in EXIT_CODES:
        signal.signal(number, _exit)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_CODES[signal.Signals(number)])


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"\ninterrupted\n")
    os._exit(EXIT_CODES[signal.Signals(number)])


class StopSignals:
    """While this is open, the first signal sets `exit_code`, and a second one ends the process at once.

    In a thread other than the main one, where Python has no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._first_at = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_exit(self) -> NoReturn:
        """Raise what the first signal would have raised."""
        if self.exit_code == EXIT_CODES[signal.SIGINT]:
            raise KeyboardInterrupt
        raise SystemExit(self.exit_code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # torchrun forwards what a terminal or SLURM has already sent to every process: that is no second signal.
        is_forwarded = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self._first_at < FORWARDED_WITHIN_S
        if self.exit_code and not is_forwarded:
            os._exit(EXIT_CODES[signal.Signals(number)])  # a resume ignores what is half-written
        if not self.exit_code:
            self.exit_code = EXIT_CODES[signal.Signals(number)]
            self._first_at = time.monotonic()
            log.warning("%s: saving, then stopping; a second signal stops at once", signal.Signals(number).name)
