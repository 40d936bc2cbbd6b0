"""A document checked against `Config`, and every problem of it in words: with its line, its key and a suggestion.

What was wrong is mended in a copy as it was probably meant, and the copy is checked again for what the first
problems hid.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from clipkit.config import Config, Conflicts, parse_values
from clipkit.config.document import AFTER_THE_FILE, Document, KeyPath, dotted
from clipkit.config.reference import kind_of, list_keys, section_at, sections_of

MAX_ROUNDS = 5
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


def check(document: Document) -> Config | None:
    """The config, or None with every problem reported to the document."""
    config = None
    mended = copy.deepcopy(document)
    removed: set[KeyPath] = set()
    for _ in range(MAX_ROUNDS):
        try:
            config = parse_values(mended.values)
            break
        except ValidationError as error:
            before = copy.deepcopy(mended.values)
            findings = [_Finding(detail, mended, removed) for detail in _without_explained(error, mended)]
            for finding in findings:
                finding.report_and_mend()
            if mended.values == before:
                break
    document.problems = mended.problems
    return config


def _without_explained(error: ValidationError, document: Document) -> list[Any]:
    """The error's details, but for missing keys that a misspelt one beside them explains."""
    details = [detail for detail in error.errors() if detail["loc"][-1:] != ("[key]",)]
    explained = set()
    for detail in details:
        path = _key_path(detail["loc"], document.values)
        if detail["type"] == "extra_forbidden" and (guess := _closest_key(path, document)):
            explained.add((*path[:-1], guess))
    return [
        detail
        for detail in details
        if detail["type"] != "missing" or _key_path(detail["loc"], document.values) not in explained
    ]


class _Finding:
    """One of pydantic's complaints: what to tell about it, and how to mend it to find what it hides."""

    def __init__(self, detail: Any, document: Document, removed: set[KeyPath]) -> None:
        self.type: str = detail["type"]
        self.input: Any = detail["input"]
        self.context: dict[str, Any] = detail.get("ctx", {})
        self.fallback: str = detail["msg"]
        self.path = _key_path(detail["loc"], document.values)
        self.document = document
        self.removed = removed

    def report_and_mend(self) -> None:
        error = self.context.get("error")
        if self.type == "extra_forbidden":
            self._unknown_key()
        elif self.type in ("union_tag_invalid", "union_tag_not_found"):
            self._unknown_kind()
        elif self.type == "missing":
            self._missing()
        elif isinstance(error, Conflicts):
            for key, message in error.problems:
                self._conflict((*self.path, *key.split(".")), message)
        else:
            self.document.report(self.path, self._value_message())
            self._remove(self.path)

    def _missing(self) -> None:
        *parent, last = self.path
        if isinstance(last, int):
            self.document.report(tuple(parent), "has too few values")
            self._remove(tuple(parent))
        elif self.path not in self.removed:
            self.document.report(self.path, "is missing")
        elif parent:
            self._remove(tuple(parent))

    def _unknown_key(self) -> None:
        if self._is_left_of_another_kind():
            self.document.remove(self.path)
            return
        guess = _closest_key(self.path, self.document)
        self.document.report(self.path, "unknown key" + _suggest_key(self.path, guess, self.document))
        section = self.path[:-1]
        if guess and self.document.origins.get((*section, guess)) is None:
            self.document.rename(self.path, guess)
        else:
            self.document.remove(self.path)

    def _is_left_of_another_kind(self) -> bool:
        """Whether the file has the key for the `kind` that it gives, and `--set` asks for another."""
        kind_line, own_line = (self.document.origin((*self.path[:-1], key)).line for key in ("kind", self.path[-1]))
        return own_line < AFTER_THE_FILE <= kind_line and _is_of_another_kind(self.path, self.document.values)

    def _unknown_kind(self) -> None:
        parent = section_at(self.path[:-1], self.document.values)
        assert parent is not None, "a union stands in a section"
        sections = sections_of(parent.model_fields[str(self.path[-1])].annotation)
        kinds = [kind for section in sections if (kind := kind_of(section))]
        if self.type == "union_tag_not_found" and not isinstance(self.input, dict):
            self.document.report(self.path, f"must be a section with keys, not {_shown(self.input)}")
            self._remove(self.path)
            return
        given = self.input.get("kind")
        guess = _closest(str(given), kinds)
        if given is None:
            self.document.report(self.path, f"needs a `kind`: {' | '.join(kinds)}")
            guess = _kind_by_keys(self.input, {str(kind_of(section)): section.model_fields for section in sections})
        else:
            suggestion = f"; did you mean `{guess}`?" if guess else ""
            message = f"{_shown(given)} is not one of {' | '.join(kinds)}{suggestion}"
            self.document.report((*self.path, "kind"), message)
        if guess:
            self.document.put((*self.path, "kind"), guess)
        else:
            self._remove(self.path)

    def _conflict(self, path: KeyPath, message: str) -> None:
        # What was taken out a round before may be what this complains of.
        depth = len(self.path)
        names = {dotted(gone) for gone in self.removed}
        names |= {str(gone[-1]) for gone in self.removed if gone[:depth] == self.path}
        if not any(f"`{name}`" in message for name in names) and path not in self.removed:
            self.document.report(path, message)
        self._remove(path)

    def _remove(self, path: KeyPath) -> None:
        while path and not self.document.remove(path):
            path = path[:-1]  # an item goes with its list
        if path:
            self.removed.add(path)

    def _value_message(self) -> str:
        if self.input is None and self.type in EXPECTED:
            return f"is empty; it must be {EXPECTED[self.type]}, or be left out"
        if self.type in EXPECTED:
            quotes = (
                "; put it in quotes" if self.type == "string_type" and not isinstance(self.input, dict | list) else ""
            )
            return f"must be {EXPECTED[self.type]}, not {_shown(self.input)}{quotes}"
        if self.type in BOUNDS:
            name, words = BOUNDS[self.type]
            return f"must be {words} {self.context[name]:g}, not {_shown(self.input)}"
        if self.type == "literal_error":
            options = re.findall(r"'([^']*)'", self.context["expected"])
            guess = _closest(str(self.input), options)
            suggestion = f"; did you mean `{guess}`?" if guess else ""
            return f"{_shown(self.input)} is not one of {' | '.join(options)}{suggestion}"
        if self.type == "string_pattern_mismatch":
            section = section_at(self.path[:-1], self.document.values)
            meaning = section.model_fields[str(self.path[-1])].description if section else ""
            return f"{_shown(self.input)} does not fit: {meaning}"
        if self.type == "too_long":
            return f"must have {self.context['max_length']} values, not {self.context['actual_length']}"
        return str(self.context.get("error", self.fallback))


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


def _closest_key(path: KeyPath, document: Document) -> str | None:
    section = section_at(path[:-1], document.values)
    if section is None or _same_name_elsewhere(path):
        return None
    return _closest(str(path[-1]), list(section.model_fields))


def _is_of_another_kind(path: KeyPath, values: Any) -> bool:
    """Whether an unknown key is known all the same: to another kind of its section."""
    parent = section_at(path[:-2], values) if len(path) > 1 else None
    field = parent.model_fields.get(str(path[-2])) if parent else None
    return field is not None and any(path[-1] in kind.model_fields for kind in sections_of(field.annotation))


def _same_name_elsewhere(path: KeyPath) -> list[str]:
    """Keys of this very name in other sections, where they are few."""
    found = sorted({key.path for key in list_keys() if key.path.rpartition(".")[2] == path[-1]})
    return found if len(found) <= 3 else []


def _suggest_key(path: KeyPath, guess: str | None, document: Document) -> str:
    """What follows `unknown key`: the same key elsewhere, a key of this section, or the keys there are."""
    if _is_of_another_kind(path, document.values):
        return "; another `kind` has it"
    if elsewhere := _same_name_elsewhere(path):
        return "; it stands elsewhere: " + ", ".join(f"`{other}`" for other in elsewhere)
    if guess:
        return f"; did you mean `{guess}`?"
    section = section_at(path[:-1], document.values)
    return "; the keys here are " + ", ".join(f"`{key}`" for key in section.model_fields) if section else ""


def _closest(word: str, options: Sequence[str]) -> str | None:
    matches = difflib.get_close_matches(word.lower(), options, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _kind_by_keys(values: dict[str, Any], fields_of: dict[str, Any]) -> str | None:
    """The kind that knows most of the keys."""
    return max(fields_of, key=lambda kind: len(set(values) & set(fields_of[kind])), default=None)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section with keys"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
