"""What a config may hold: every key in order, with its type, default and meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from clipkit.config import Section, config_of
from clipkit.config.kinds import Choice, kinds_of

TYPE_NAMES = {int: "whole number", float: "number", bool: "true | false", str: "text", NoneType: "null"}
Suffix = Literal["", "[]", ".NAME"]


@dataclass(frozen=True, slots=True)
class Key:
    path: str  # with `[]` for each item of a list, and `NAME` for names that the user chooses
    kind: str | None  # the `kind` of the section that has this key, where there are several
    type: str
    default: str | None  # as YAML; None where the key is required
    meaning: str


def list_keys(task: str = "contrastive") -> list[Key]:
    """Every key of a task's config; a section that several keys share is listed below the first of them."""
    return list(_keys_of(config_of(task), prefix="", kind=None, seen={}))


def sections_of(field: FieldInfo) -> dict[str | None, type[Section]]:
    """The sections that a key's value, or each item of it, can be: by their `kind`, or one under None."""
    return _sections_of(Annotated[(field.annotation, *field.metadata, None)])


def suffix_of(field: FieldInfo) -> Suffix:
    """What comes between a key and the keys of its sections: `[]` for a list, `.NAME` for a dict."""
    origin = get_origin(field.annotation)
    return "[]" if origin is tuple else ".NAME" if origin is dict else ""


def _sections_of(annotation: Any) -> dict[str | None, type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {_kind_of(annotation): annotation}
    arguments = get_args(annotation)
    choices = [argument for argument in arguments if isinstance(argument, Choice)]
    if choices:
        return {kind.name: kind.section for kind in kinds_of(choices[0].slot)}
    return {kind: section for argument in arguments for kind, section in _sections_of(argument).items()}


def _kind_of(section: type[Section]) -> str | None:
    """The only possible `kind` of a section; None if it has no `kind`, or a choice."""
    field = section.model_fields.get("kind")
    return None if field is None or len(get_args(field.annotation)) != 1 else str(field.default)


def _keys_of(
    section: type[Section], *, prefix: str, kind: str | None, seen: dict[tuple[type[Section], ...], str]
) -> Iterator[Key]:
    for name, field in sorted(section.model_fields.items(), key=lambda item: item[0] != "kind"):
        path = f"{prefix}{name}"
        sections = sections_of(field)
        below = tuple(sections.values())
        meaning = " ".join((field.description or "").split())
        if below in seen:
            meaning += f" Its keys are those of `{seen[below]}`."
        names_itself = name == "kind" and kind is not None
        default = "" if names_itself else _default_text(field)
        yield Key(path, None if names_itself else kind, _type_text(field.annotation, field.title), default, meaning)
        if below and below not in seen:
            seen[below] = path
            for own_kind, candidate in sections.items():
                yield from _keys_of(candidate, prefix=f"{path}{suffix_of(field)}.", kind=own_kind, seen=seen)


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
