"""The differences between two configs of one run, and which of them a resume allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

# Keys that decide which model is trained, on which rows and in which order. A resume may change the others.
BOUND = (
    "task.*",
    "model.*",
    "loss.kind",
    "loss.learn_temperature",
    "loss.direction",
    "run.seed",
    "data.*",
    "optim.kind",
    "train.batch_size",
)
FREE = (
    "model.init",
    "model.*.checkpointing",
    "model.text.remember",
    "data.dataset",  # it may have moved; its contents are compared once it is open
    "data.validation",
    "data.augment*",
    "data.padding",
    "data.cache",
    "data.decode",
    "data.keep_images_mb",
    "data.workers",
    "data.prefetch",
    "data.bad_rows",
    "data.stall_timeout_s",
)


@dataclass(frozen=True, slots=True)
class Difference:
    key: str
    before: Any
    after: Any

    @property
    def allowed(self) -> bool:
        bound = any(fnmatchcase(self.key, pattern) for pattern in BOUND)
        return not bound or any(fnmatchcase(self.key, pattern) for pattern in FREE)

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} -> {_shown(self.after)}"


def find_differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[Difference]:
    """Every key whose value differs; a section that only one of the two has counts as one key."""
    found = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += find_differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(Difference(prefix + name, old, new))
    return found


def _shown(value: Any) -> str:
    """As in a config file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)
