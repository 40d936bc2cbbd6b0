"""A corpus's own values as the dataset takes them: captions, texts, names of columns."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from clipkit.types import Scalar

NOT_UTF8 = "the text is not UTF-8"
QUOTED = re.compile(r'"((?:[^"]|"")*)"')
# What a dataset has by itself, and names that Lance keeps for itself.
RESERVED = frozenset(("image_id", "image", "captions", "split", "width", "height", "orientation"))
LANCE_NAMES = frozenset(
    (
        "_rowid",
        "_rowaddr",
        "_rowoffset",
        "_row_created_at_version",
        "_row_last_updated_at_version",
        "_distance",
        "_score",
    )
)
NOT_IN_NAMES = re.compile(r"[.`]")  # Lance's own punctuation for fields of structs


def as_captions(values: Sequence[Any]) -> list[str]:
    """Captions from strings, lists of them, or a list as JSON; outer white space and empty ones go."""
    captions: list[str] = []
    for value in values:
        if isinstance(value, str):
            text = value.strip()
            if text[:2] in ('["', "[]") and (parsed := _json_list(text)) is not None:
                captions.extend(as_captions(parsed))
            elif text:
                captions.append(text)
        elif isinstance(value, (list, tuple)):
            captions.extend(as_captions(value))
        elif isinstance(value, dict):
            captions.extend(as_captions([value.get("raw") or value.get("caption") or value.get("text")]))
        elif value is not None and value == value:  # not NaN, which pandas writes for nothing
            captions.append(str(value))
    return captions


def _json_list(text: str) -> list[Any] | None:
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    return parsed if isinstance(parsed, list) else None


def as_scalar(value: Any) -> Scalar:
    """A value for a column of its own: a number or a string as it is, all else as text."""
    if isinstance(value, str):
        return value if is_unicode(value) else printable(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, dict)):
        return json.dumps(value, default=str)
    return str(value)


def is_unicode(text: str) -> bool:
    """Whether a text that was read with `surrogateescape` was UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """A text that is not UTF-8, with question marks for what cannot be shown."""
    return text.encode("utf-8", "replace").decode()


def unquote(text: str) -> str:
    """Without CSV quotes, where the whole text is one quoted field."""
    if text[:1] == '"' and (match := QUOTED.fullmatch(text)):
        return match[1].replace('""', '"').strip()
    return text


def kept_name(name: str) -> str:
    """The column that a corpus's own column becomes: one that Lance takes, and that no dataset has by itself."""
    name = NOT_IN_NAMES.sub("_", name) or "unnamed"
    return f"source_{name}" if name in RESERVED | LANCE_NAMES else name
