"""What a run writes: lines of metrics, its status, checkpoints. Only rank 0 writes."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipkit.runs.folder import Run
from clipkit.train.checkpoint_writer import CheckpointWriter, Snapshot
from clipkit.train.trackers import MetricsLog

log = logging.getLogger(__name__)
STATUS_EVERY_S = 5.0


class RunLog:
    """Knows the run folder and writes nothing: for ranks other than 0."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl`."""

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint in the background."""

    def last_good(self, *, before: float = math.inf) -> Path | None:
        """The newest checkpoint (before a step) that is whole."""
        return self._run.newest_checkpoint(before=before)

    def fix_total(self, total_steps: int) -> None:
        """Record how many steps a run in minutes has."""

    def finish(self) -> None:
        """Wait until everything is on the disk."""

    def close(self, state: str, *, message: str = "") -> None:
        """The run has ended: done, stopped or failed."""


class RunWriter(RunLog):
    def __init__(
        self,
        run: Run,
        *,
        metrics: MetricsLog,
        writer: CheckpointWriter,
        facts: Mapping[str, Any],
        total_steps: int | None,
    ) -> None:
        """`facts` go into the `meta.json` of every checkpoint."""
        super().__init__(run)
        self._metrics = metrics
        self._writer = writer
        self._facts = facts
        self._step = 0
        self._total_steps = total_steps
        self._status_at = 0.0

    def write(self, line: Mapping[str, Any]) -> None:
        self._metrics.write(line)
        self._step = int(line["step"])
        if time.monotonic() - self._status_at > STATUS_EVERY_S:
            self._write_status("running")

    def save(self, snapshot: Snapshot) -> None:
        self._writer.submit(replace(snapshot, meta={**snapshot.meta, **self._facts}))

    def fix_total(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._run.update_facts({"total_steps": total_steps})

    def finish(self) -> None:
        self._writer.wait()

    def close(self, state: str, *, message: str = "") -> None:
        self._writer.close()
        self._metrics.close()
        self._write_status(state, message)
        self._run.unlock()

    def _write_status(self, state: str, message: str = "") -> None:
        self._status_at = time.monotonic()
        status = {
            "state": state,
            "step": self._step,
            "total_steps": self._total_steps,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            self._run.write_status(status | ({"message": message} if message else {}))
        except OSError as error:
            log.debug("the status could not be written: %s", error)
