"""The registry of kinds: for each, its config section and the name of the function that builds it.

A key that comes in kinds is annotated with the `Choice` of a slot. Builders are named as `"module:function"`, so that
reading a config imports nothing heavy; plugins register their own kinds the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from clipkit.config.fields import Section


@dataclass(frozen=True, slots=True)
class Kind:
    """`slot` is where it may stand: `task`, `image_encoder`, `text_encoder`, `head`, `evaluator`, `TASK_loss`."""

    slot: str
    name: str
    section: type[Section]
    builder: str


_kinds: dict[tuple[str, str], Kind] = {}
_open_sections: list[type[Section]] = []  # those with a `Choice` below them, the innermost first
_on_change: list[Callable[[], None]] = []


def register(slot: str, section: type[Section], builder: str) -> None:
    """Make a kind known. Its name is the default of the section's `kind`; a kind of the same name is replaced."""
    name = section.model_fields["kind"].default
    _kinds[slot, name] = Kind(slot, name, section, builder)
    for forget in _on_change:
        forget()
    for open_section in _open_sections:
        open_section.model_rebuild(force=True)


def offers_choices(section: type[Section]) -> type[Section]:
    """Decorate a section that has a `Choice`, or a section with one: kinds that are registered later are known to it."""
    _open_sections.append(section)
    return section


def when_kinds_change(forget: Callable[[], None]) -> None:
    """Have what was derived from the registered kinds forgotten when one is added."""
    _on_change.append(forget)


def kinds_of(slot: str) -> tuple[Kind, ...]:
    """The kinds of a slot, in the order of registration."""
    return tuple(kind for kind in _kinds.values() if kind.slot == slot)


def find_kind(slot: str, name: str) -> Kind | None:
    return _kinds.get((slot, name))


def builder_of(section: Section) -> Callable[..., Any]:
    """The function that builds what a section describes."""
    for kind in _kinds.values():
        if kind.section is type(section):
            module, _, function = kind.builder.partition(":")
            built: Callable[..., Any] = getattr(import_module(module), function)
            return built
    raise LookupError(f"no kind is registered with the section {type(section).__name__}")


@dataclass(frozen=True, slots=True)
class Choice:
    """Marks a key whose section is one of a slot's kinds: `Annotated[Section, Choice("image_encoder")]`."""

    slot: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind.name: handler.generate_schema(kind.section) for kind in kinds_of(self.slot)}
        return core_schema.tagged_union_schema(choices, discriminator="kind", from_attributes=True)
