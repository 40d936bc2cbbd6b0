"""Making staged fragments visible: one commit, one new version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lance
import pyarrow as pa
from lance.dataset import Transaction
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata

from clipkit.errors import DataError, first_line
from clipkit.store.groups import Groups
from clipkit.store.schema import OWN, PROVENANCE_KEY
from clipkit.store.staging import Receipt

MESSAGE_KEY = "__lance_commit_message"
NUM_TRIES = 5


def commit_replace(
    uri: str, receipts: Sequence[Receipt], schema: pa.Schema, provenance: Mapping[str, Any], *, base_version: int | None
) -> int:
    """Commit a version of the staged fragments alone; DataError where another writer came first. Returns its number."""
    current = current_version(uri)
    if current != base_version:
        raise DataError(
            f"another writer changed `{uri}` during the ingest (version {current}, not {base_version})",
            "nothing was committed; look at the dataset, then ingest again with --overwrite",
        )
    metadata = {**(schema.metadata or {}), PROVENANCE_KEY: json.dumps(provenance)}
    operation = lance.LanceOperation.Overwrite(schema.with_metadata(metadata), staged_fragments(receipts))
    properties = {MESSAGE_KEY: f"clipkit ingest: {provenance['rows']} rows"}
    transaction = Transaction(current or 0, operation, transaction_properties=properties)
    return int(lance.LanceDataset.commit(uri, transaction, enable_stable_row_ids=True).version)


def commit_append(uri: str, receipts: Sequence[Receipt], provenance: Mapping[str, Any], *, base_version: int) -> int:
    """Commit the staged fragments as new ones; DataError where another writer has added one of their ids."""
    dataset = lance.dataset(uri)
    if dataset.version != base_version:
        _refuse_known_ids(dataset, receipts, base_version=base_version)
    operation = lance.LanceOperation.Append(staged_fragments(receipts))
    return _commit(dataset, operation, provenance, verb="append")


def commit_upsert(uri: str, receipts: Sequence[Receipt], provenance: Mapping[str, Any]) -> int:
    """Commit the staged rows in place of those with the same ids."""
    new_ids = Groups(staged_ids(uri, receipts))
    for attempt in range(NUM_TRIES):
        dataset = lance.dataset(uri)
        updated, removed = _without(dataset, new_ids)
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=removed,
            updated_fragments=updated,
            new_fragments=staged_fragments(receipts),
            update_mode="rewrite_rows",
        )
        try:
            return _commit(dataset, operation, provenance, verb="upsert")
        except OSError as error:  # another writer changed the same fragments: take the newest and try again
            if "conflict" not in str(error).lower() or attempt == NUM_TRIES - 1:
                raise
    raise AssertionError("unreachable")


def staged_fragments(receipts: Sequence[Receipt]) -> list[FragmentMetadata]:
    return [FragmentMetadata.from_json(json.dumps(fragment)) for receipt in receipts for fragment in receipt.fragments]


def staged_ids(uri: str, receipts: Sequence[Receipt]) -> Iterator[str]:
    """The ids of the rows in staged files."""
    for path in (path for receipt in receipts for path in receipt.paths):
        reader = LanceFileReader(f"{uri.rstrip('/')}/data/{path}", columns=[OWN.image_id])
        for batch in reader.read_all(batch_size=8192).to_batches():
            yield from batch.column(0).to_pylist()


def is_committed(uri: str, receipts: Sequence[Receipt]) -> bool:
    """Whether the dataset holds the staged files already: a crash between the commit and its clean-up."""
    staged = {path for receipt in receipts for path in receipt.paths}
    if not staged or current_version(uri) is None:
        return False
    fragments = lance.dataset(uri).get_fragments()
    return any(file.path in staged for fragment in fragments for file in fragment.metadata.files)


def current_version(uri: str) -> int | None:
    """The newest version, or None where there is no dataset."""
    try:
        return int(lance.dataset(uri).version)
    except ValueError as error:
        if "not found" in str(error).lower():
            return None
        raise DataError(f"`{uri}` cannot be opened: {first_line(error)}", "check the address") from error


def _commit(dataset: lance.LanceDataset, operation: Any, provenance: Mapping[str, Any], *, verb: str) -> int:
    """Commit, with the provenance in the transaction: changing the schema's metadata would be a commit of its own."""
    properties = {
        MESSAGE_KEY: f"clipkit ingest: {verb} {provenance['rows']} rows",
        PROVENANCE_KEY: json.dumps(provenance),
    }
    transaction = Transaction(dataset.version, operation, transaction_properties=properties)
    return int(lance.LanceDataset.commit(dataset.uri, transaction).version)


def _refuse_known_ids(dataset: lance.LanceDataset, receipts: Sequence[Receipt], *, base_version: int) -> None:
    new_ids = Groups(staged_ids(dataset.uri, receipts))
    for batch in dataset.scanner(columns=[OWN.image_id]).to_batches():
        for image_id in batch.column(0).to_pylist():
            if image_id in new_ids:
                raise DataError(
                    f"another writer added `{image_id}` to `{dataset.uri}` after version {base_version}",
                    "nothing was committed; remove the folder `_ingest` in the dataset, and append again",
                )


def _without(dataset: lance.LanceDataset, ids: Groups) -> tuple[list[FragmentMetadata], list[int]]:
    """The fragments that hold some of these ids, without them, and the numbers of those that hold nothing else."""
    updated, removed = [], []
    for fragment in dataset.get_fragments():
        addresses: list[int] = []
        for batch in fragment.scanner(columns=[OWN.image_id], with_row_address=True).to_batches():
            pairs = zip(batch["_rowaddr"].to_pylist(), batch[OWN.image_id].to_pylist(), strict=True)
            addresses.extend(address for address, image_id in pairs if image_id in ids)
        if not addresses:
            continue
        rest = fragment.delete(f"_rowaddr in ({','.join(map(str, addresses))})")
        if rest is None:
            removed.append(fragment.fragment_id)
        else:
            updated.append(rest)
    return updated, removed
