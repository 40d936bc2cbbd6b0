"""Where a dataset's rows came from: what every ingest that made it wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import lance

from clipkit.store.schema import PROVENANCE_KEY


def provenances(out: str) -> list[Mapping[str, Any]]:
    """What the dataset knows about the ingests that made it, the newest first."""
    dataset = lance.dataset(out)
    found = []
    for version in sorted((v["version"] for v in dataset.versions()), reverse=True):
        try:
            properties = dataset.read_transaction(version).transaction_properties or {}
        except (ValueError, OSError):  # cleaned up
            continue
        if PROVENANCE_KEY in properties:
            found.append(json.loads(properties[PROVENANCE_KEY]))
    first = (dataset.schema.metadata or {}).get(PROVENANCE_KEY.encode())
    if first:
        found.append(json.loads(first))
    return found
