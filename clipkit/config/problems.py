"""A document checked against its config, and every problem of it in words: with its line, its key and a suggestion.

Unknown keys and kinds are found first, and replaced by what was probably meant, so that the one validation that
follows sees the values below them.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from clipkit.config import Config, Conflicts, Section, config_of, parse_values, task_of
from clipkit.config.document import AFTER_THE_FILE, Document, KeyPath, dotted
from clipkit.config.kinds import find_kind
from clipkit.config.reference import Key, list_keys, sections_of, suffix_of

log = logging.getLogger(__name__)

GONE = {
    "data.worker_kind": "images are always decoded in threads",
    "data.token_cache": "captions are tokenized as they are read",
}
EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a section with keys",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
Kinds = Mapping[str | None, type[Section]]


def check(document: Document) -> Config | None:
    """The config, or None with every problem reported to the document, whose values are changed on the way."""
    values = document.values
    names = _Names(document)
    names.check_value(Config.model_fields["task"], values.get("task"), ("task",))
    task = task_of(values)
    of_the_task = () if find_kind("task", task) else ("model", "loss")  # an unknown task's keys are unknown
    for key in of_the_task:
        values.pop(key, None)
    names.check_section(config_of(task), values, (), {})
    try:
        return parse_values(values)
    except ValidationError as error:
        for detail in error.errors():
            path = _key_path(detail["loc"], values)
            if not path or path[0] not in of_the_task:
                _report_detail(document, path, detail)
    return None


class _Names:
    """Compares a document's keys and kinds with those that exist, and replaces what was probably misspelt."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def check_section(self, section: type[Section], values: dict[Any, Any], path: KeyPath, kinds: Kinds) -> None:
        """`kinds` are those that the section was chosen from."""
        for key in [key for key in values if key not in section.model_fields]:
            self._check_unknown_key(section, values, (*path, key), kinds)
        for key, field in section.model_fields.items():
            self.check_value(field, values.get(key), (*path, key))

    def check_value(self, field: FieldInfo, value: Any, path: KeyPath) -> None:
        sections, suffix = sections_of(field), suffix_of(field)
        items: Iterable[tuple[Any, Any]] = ()
        if not suffix:
            self._check_item(sections, value, path)
        elif suffix == "[]" and isinstance(value, list):
            items = enumerate(value)
        elif suffix == ".NAME" and isinstance(value, dict):
            items = value.items()
        for name, item in items:
            self._check_item(sections, item, (*path, name))

    def _check_item(self, sections: Kinds, values: Any, path: KeyPath) -> None:
        if not sections or not isinstance(values, dict):
            return
        if None in sections:
            self.check_section(sections[None], values, path, sections)
            return
        options = [str(kind) for kind in sections]
        kind = values.get("kind")
        if kind is None:
            self.document.report(path, f"needs a `kind`: {' | '.join(options)}")
            known = {option: len(values.keys() & sections[option].model_fields.keys()) for option in options}
            kind = max(options, key=known.__getitem__) if any(known.values()) else None
        elif kind not in options:
            self.document.report((*path, "kind"), _not_one_of(kind, options))
            kind = _closest(str(kind), options)
        if kind is not None:
            values["kind"] = kind
            self.check_section(sections[kind], values, path, sections)

    def _check_unknown_key(self, section: type[Section], values: dict[Any, Any], path: KeyPath, kinds: Kinds) -> None:
        key = path[-1]
        value = values.pop(key)
        if reason := GONE.get(dotted(path)):
            log.warning("%s: `%s` is ignored: %s", self.document.origin(path).text, dotted(path), reason)
            return
        if others := [str(kind) for kind, other in kinds.items() if key in other.model_fields]:
            if not self._is_left_over(path):
                message = f"unknown key for `kind: {values['kind']}`; other kinds have it: {' | '.join(others)}"
                self.document.report(path, message)
            return
        if elsewhere := self._same_name_elsewhere(path):
            self.document.report(path, f"unknown key; did you mean {' or '.join(f'`{other}`' for other in elsewhere)}?")
            return
        guess = _closest(str(key), list(section.model_fields))
        if guess is None:
            listed = ", ".join(f"`{known}`" for known in section.model_fields)
            self.document.report(path, f"unknown key; the keys here are {listed}")
            return
        self.document.report(path, f"unknown key; did you mean `{guess}`?")
        if guess not in values:
            values[guess] = value
            self.document.copy_origins(path, (*path[:-1], guess))

    @cached_property
    def _keys(self) -> list[Key]:
        return list_keys(task_of(self.document.values))

    def _is_left_over(self, path: KeyPath) -> bool:
        """Whether the file has the key for the `kind` that it gives, and `--set` asks for another."""
        kind_line, own_line = (self.document.origin((*path[:-1], key)).line for key in ("kind", path[-1]))
        return own_line < AFTER_THE_FILE <= kind_line

    def _same_name_elsewhere(self, path: KeyPath) -> list[str]:
        """Keys of this very name in other sections, where they are few."""
        found = sorted({key.path for key in self._keys if key.path.rpartition(".")[2] == path[-1]})
        return found if len(found) <= 3 else []


def _report_detail(document: Document, path: KeyPath, detail: Any) -> None:
    """Put one of pydantic's complaints into words."""
    error = detail.get("ctx", {}).get("error")
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return  # `_Names` has reported it
    if isinstance(error, Conflicts):
        for key, message in error.problems:
            document.report((*path, *key.split(".")), message)
    elif detail["type"] == "missing" and isinstance(path[-1], int):
        document.report(path[:-1], "has too few values")
    else:
        document.report(path, _message(detail))


def _message(detail: Any) -> str:
    type_, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if type_ == "missing":
        return "is missing"
    if type_ in EXPECTED:
        if value is None:
            return f"is empty; it must be {EXPECTED[type_]}, or be left out"
        needs_quotes = type_ == "string_type" and not isinstance(value, dict | list)
        return f"must be {EXPECTED[type_]}, not {_shown(value)}" + ("; put it in quotes" if needs_quotes else "")
    if type_ in BOUNDS:
        name, words = BOUNDS[type_]
        return f"must be {words} {context[name]:g}, not {_shown(value)}"
    if type_ == "literal_error":
        return _not_one_of(value, re.findall(r"'([^']*)'", context["expected"]))
    if type_ == "too_long":
        return f"must have {context['max_length']} values, not {context['actual_length']}"
    return str(context.get("error", detail["msg"]))


def _key_path(loc: tuple[str | int, ...], values: Any) -> KeyPath:
    """Pydantic's location as a path of keys, without the names that it gives to members of a union."""
    path: list[str | int] = []
    here = values
    for part in loc:
        if isinstance(here, dict) and part in here:
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        elif part in ("plain", "section") or (isinstance(here, dict) and here.get("kind") == part):
            continue
        path.append(part)
    return tuple(path)


def _not_one_of(value: Any, options: Sequence[str]) -> str:
    guess = _closest(str(value), options)
    return f"{_shown(value)} is not one of {' | '.join(options)}" + (f"; did you mean `{guess}`?" if guess else "")


def _closest(word: str, options: Sequence[str]) -> str | None:
    matches = difflib.get_close_matches(word.lower(), options, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section with keys"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
