"""The Lance dataset: its schema, reading, the crash-safe writer, versions, provenance and added columns."""

import os

from clipkit.store.dataset import Dataset, Rows
from clipkit.store.schema import Columns

__all__ = ["Columns", "Dataset", "Rows"]

# Lance refuses plain HTTP unless this variable allows it; an endpoint that begins with http:// asks for it.
if os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://"):
    os.environ.setdefault("AWS_ALLOW_HTTP", "true")
