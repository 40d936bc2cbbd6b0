"""What a config may hold: every key in order, with its type, default and meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from clipkit.config import Config, Section

TYPE_NAMES = {int: "whole number", float: "number", bool: "true | false", str: "text", NoneType: "null"}


@dataclass(frozen=True, slots=True)
class Key:
    path: str  # with `[]` for each item of a list, and `NAME` for names that the user chooses
    kind: str | None  # the `kind` of the section that has this key, where there are several
    type: str
    default: str | None  # as YAML; None where the key is required
    meaning: str


def list_keys() -> list[Key]:
    """Every key of a config; a section that several keys share is listed below the first of them."""
    return list(_keys_of(Config, prefix="", kind=None, seen={}))


def section_at(path: Sequence[str | int], values: Any) -> type[Section] | None:
    """The section that a path of keys leads to; of several kinds, the one that `values` names."""
    sections: tuple[type[Section], ...] = (Config,)
    for part in path:
        known = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = sections_of(known[0].annotation) if known else sections
        values = _child(values, part)
        if len(sections) > 1:
            kind = _child(values, "kind")
            sections = tuple(section for section in sections if kind_of(section) == kind)
    return sections[0] if sections else None


def sections_of(annotation: Any) -> tuple[type[Section], ...]:
    """The sections that a key's value can be: one, or each of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(section for argument in get_args(annotation) for section in sections_of(argument))


def kind_of(section: type[Section]) -> str | None:
    field = section.model_fields.get("kind")
    return None if field is None else field.default


def _child(values: Any, part: str | int) -> Any:
    if isinstance(values, Mapping):
        return values.get(part)
    if isinstance(values, list) and isinstance(part, int) and part < len(values):
        return values[part]
    return None


def _keys_of(
    section: type[Section], *, prefix: str, kind: str | None, seen: dict[tuple[type[Section], ...], str]
) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        below = sections_of(field.annotation)
        meaning = " ".join((field.description or "").split())
        if below and below in seen:
            meaning += f" Its keys are those of `{seen[below]}`."
        names_itself = name == "kind" and kind is not None
        default = "" if names_itself else _default_text(field)
        yield Key(path, None if names_itself else kind, _type_text(field.annotation, field.title), default, meaning)
        if below and below not in seen:
            seen[below] = path
            suffix = _path_suffix(field.annotation)
            for candidate in below:
                own_kind = kind_of(candidate) if len(below) > 1 else None
                yield from _keys_of(candidate, prefix=f"{path}{suffix}.", kind=own_kind, seen=seen)


def _path_suffix(annotation: Any) -> str:
    origins = {get_origin(annotation)}
    if tuple in origins:
        return "[]"
    return ".NAME" if dict in origins else ""


def _type_text(annotation: Any, title: str | None = None) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        titles = [item.title for item in arguments[1:] if isinstance(item, FieldInfo) and item.title]
        return _type_text(arguments[0], titles[0] if titles else title)
    if title:
        return title
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is Union or origin is UnionType:
        return " | ".join(dict.fromkeys(_type_text(argument) for argument in arguments))
    if origin is tuple:
        return "[" + ", ".join("…" if argument is ... else _type_text(argument) for argument in arguments) + "]"
    if origin is dict:
        return f"{{NAME: {_type_text(arguments[1])}}}"
    return TYPE_NAMES.get(annotation, "section")


def _default_text(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Section):
        return f"kind {default.kind}" if hasattr(default, "kind") else ""
    if isinstance(default, Mapping):
        return ", ".join(default)
    value = [_rounded(item) for item in default] if isinstance(default, tuple) else _rounded(default)
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
