"""A corpus's own values in the dataset's form: captions, texts, names of columns."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Sequence
from typing import Any

from clipkit.types import Scalar

NOT_UTF8 = "the text is not UTF-8 (--encoding says what it is, such as latin-1)"
MISSING = frozenset(("nan", "NaN", "<NA>"))  # what pandas writes for a missing text
BETWEEN_STRINGS = re.compile(r"""(['"])\s+(?=['"])""")  # NumPy writes ['a' 'b'], which Python would join
MIN_BASE64 = 40
# The first bytes of JPEG, PNG, GIF, WebP, TIFF (two) and BMP files.
BASE64_STARTS = ("/9j/", "_9j_", "iVBORw0KGgo", "R0lGODdh", "R0lGODlh", "UklGR", "SUkqA", "TU0AK", "Qk")
URL_SAFE = str.maketrans("-_", "+/")
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
    """Captions from strings, lists of them, or a list written as text; outer white space and empty ones go."""
    captions: list[str] = []
    for value in values:
        if isinstance(value, str):
            text = value.strip()
            if not text.isascii():
                text = text.strip("\ufeff").strip()
            if text[:1] == "[" and (parsed := _list_in_text(text)) is not None:
                captions.extend(as_captions(parsed))
            elif text and text not in MISSING:
                captions.append(text)
        elif isinstance(value, (list, tuple)):
            captions.extend(as_captions(value))
        elif isinstance(value, dict):
            captions.extend(as_captions([value.get("raw") or value.get("caption") or value.get("text")]))
        elif value is not None and value == value:  # not NaN, which pandas writes for a missing value
            captions.append(str(value))
    return captions


def _list_in_text(text: str) -> list[str | None] | None:
    """The strings of a list as JSON, Python or NumPy write it; None where the text is something else."""
    if text[-1] != "]" or (len(text) > 2 and text[1:].lstrip()[:1] not in ("'", '"')):
        return None
    try:
        parsed = json.loads(text)
    except ValueError:
        try:
            parsed = ast.literal_eval(BETWEEN_STRINGS.sub(r"\1, ", text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    is_texts = isinstance(parsed, list) and all(item is None or isinstance(item, str) for item in parsed)
    return parsed if is_texts else None


def as_bytes(text: str) -> bytes | None:
    """The image that a text in base64 holds, with or without a `data:` head; None where it is not one."""
    if text.startswith("data:image/"):
        text = text.partition(",")[2]
    if len(text) < MIN_BASE64 or not text.startswith(BASE64_STARTS):
        return None
    try:
        text = "".join(text.translate(URL_SAFE).split())
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return None


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
