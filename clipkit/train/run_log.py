"""What a run writes: lines of metrics, its status, checkpoints. Only rank 0 writes."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.runs.folder import Run
from clipkit.train.checkpoint_writer import CheckpointWriter, Snapshot
from clipkit.train.trackers import MetricsLog

log = logging.getLogger(__name__)
STATUS_EVERY_S = 5.0


@dataclass(slots=True)
class RunLog:
    """The log of a run. On ranks other than 0 it has no `metrics` and no `writer`, and writes nothing."""

    run: Run
    metrics: MetricsLog | None = None
    writer: CheckpointWriter | None = None
    total_steps: int | None = None
    step: int = 0
    status_written_at: float = 0.0

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line of `metrics.jsonl`."""
        if self.metrics is None:
            return
        self.metrics.write(line)
        self.step = int(line["step"])
        if time.monotonic() - self.status_written_at > STATUS_EVERY_S:
            self._write_status("running")

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint in the background."""
        if self.writer is not None:
            self.writer.submit(snapshot)

    def last_good(self, *, before: float = math.inf) -> Path | None:
        """The newest undamaged checkpoint (before a step)."""
        return self.run.newest_checkpoint(before=before)

    def set_total(self, total_steps: int) -> None:
        """Record how many steps a run in minutes has."""
        self.total_steps = total_steps
        if self.metrics is not None:
            self.run.update_facts({"total_steps": total_steps})

    def finish(self) -> None:
        """Wait until everything is on the disk."""
        if self.writer is not None:
            self.writer.wait()

    def close(self, state: str, *, message: str = "") -> None:
        """End the log of a run that is done, stopped or failed."""
        if self.metrics is None or self.writer is None:
            return
        self.writer.close()
        self.metrics.close()
        self._write_status(state, message)
        self.run.unlock()

    def _write_status(self, state: str, message: str = "") -> None:
        self.status_written_at = time.monotonic()
        status = {
            "state": state,
            "step": self.step,
            "total_steps": self.total_steps,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            self.run.write_status(status | ({"message": message} if message else {}))
        except OSError as error:
            log.debug("the status could not be written: %s", error)
