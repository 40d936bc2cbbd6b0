"""Where a dataset's rows came from: what every ingest that made it wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import lance

from clipkit.store.schema import PROVENANCE_KEY


def provenances(out: str) -> list[Mapping[str, Any]]:
    """What the dataset knows about the ingests that made it and added to it, the newest first."""
    dataset = lance.dataset(out)
    found = []
    for version in sorted((v["version"] for v in dataset.versions()), reverse=True):
        try:
            transaction = dataset.read_transaction(version)
        except (ValueError, OSError):  # cleaned up
            continue
        if isinstance(transaction.operation, lance.LanceOperation.Overwrite):
            break  # what came before is not in the dataset any more
        properties = transaction.transaction_properties or {}
        if PROVENANCE_KEY in properties:
            found.append(json.loads(properties[PROVENANCE_KEY]))
    return [*found, *filter(None, [first_provenance(dataset)])]


def first_provenance(dataset: lance.LanceDataset) -> Mapping[str, Any]:
    """What the dataset knows about the ingest that made it; empty where another tool did."""
    text = (dataset.schema.metadata or {}).get(PROVENANCE_KEY.encode())
    return json.loads(text) if text else {}
