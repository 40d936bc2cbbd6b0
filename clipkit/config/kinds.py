"""The registry of kinds: for each, its config section and the name of the function that builds it.

A key that comes in kinds is annotated with the `Choice` of a slot. Builders are named as `"module:function"`, so that
reading a config imports nothing heavy; plugins register their own kinds the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

from pydantic import GetCoreSchemaHandler

from clipkit.config.fields import Section
from clipkit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Kind:
    """`slot` is where it may stand: `task`, `image_encoder`, `text_encoder`, `head`, `evaluator`, `TASK_loss`."""

    slot: str
    name: str
    section: type[Section]
    builder: str

    @property
    def owner(self) -> str:
        """The top-level module that registered it: `clipkit`, or a plugin."""
        return _owner(self.section)


_kinds: dict[tuple[str, str], Kind] = {}


def register(slot: str, section: type[Section], builder: str) -> None:
    """Add a kind; its name is the default of its section's `kind`.

    Raises ValueError when the section has no such default, or when another module has registered the name.
    """
    field = section.model_fields.get("kind")
    name = None if field is None else field.default
    if not isinstance(name, str):
        raise ValueError(f'`{section.__name__}` needs a default for `kind`: `kind: Literal["NAME"] = "NAME"`')
    if ":" not in builder:
        raise ValueError(f'the builder of `{section.__name__}` must be `"module:function"`, not `"{builder}"`')
    kind, known = Kind(slot, name, section, builder), _kinds.get((slot, name))
    if known is not None and known.owner != kind.owner:
        raise ValueError(f"`{known.owner}` already has a `{slot}` of the kind `{name}`")
    _kinds[slot, name] = kind
    _rebuild()


def unregister(owner: str) -> None:
    """Forget every kind and section of a top-level module."""
    for key in [key for key, kind in _kinds.items() if kind.owner == owner]:
        del _kinds[key]
    Section.defined[:] = [section for section in Section.defined if _owner(section) != owner]
    _rebuild()


def _rebuild() -> None:
    """Let every section with a `Choice` at any depth know the kinds as they are now."""
    with_choice: set[Any] = set()
    for section in Section.defined:  # what a section contains was defined before it
        fields = section.model_fields.values()
        if any(_has_choice((*field.metadata, field.annotation), with_choice) for field in fields):
            with_choice.add(section)
            section.model_rebuild(force=True)


def _has_choice(parts: Sequence[Any], with_choice: Set[Any]) -> bool:
    for part in parts:
        if isinstance(part, Choice) or (isinstance(part, type) and part in with_choice):
            return True
        if _has_choice(get_args(part), with_choice):
            return True
    return False


def _owner(section: type[Section]) -> str:
    return section.__module__.partition(".")[0]


def kinds_of(slot: str) -> tuple[Kind, ...]:
    """The kinds of a slot, in the order of registration."""
    return tuple(kind for kind in _kinds.values() if kind.slot == slot)


def find_kind(slot: str, name: str) -> Kind | None:
    return _kinds.get((slot, name))


def builder_of(section: Section) -> Callable[..., Any]:
    """The function that builds what a section describes; raises ConfigError when there is no such function."""
    for kind in _kinds.values():
        if kind.section is type(section):
            module, _, function = kind.builder.partition(":")
            try:
                built: Callable[..., Any] = getattr(import_module(module), function)
            except (ImportError, AttributeError) as error:
                raise ConfigError(
                    f"the builder of `kind: {kind.name}`, `{kind.builder}`, cannot be imported: {error}",
                    f"correct the name that `{section.__module__}` registers, or install what is missing",
                ) from error
            return built
    raise LookupError(f"no kind is registered with the section {type(section).__name__}")


@dataclass(frozen=True, slots=True)
class Choice:
    """Marks a key whose section is one of a slot's kinds: `Annotated[Section, Choice("image_encoder")]`."""

    slot: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> dict[str, Any]:
        choices = {}
        for kind in kinds_of(self.slot):
            if not issubclass(kind.section, source):
                raise TypeError(f"`{kind.section.__name__}`, a kind of `{self.slot}`, must be a `{source.__name__}`")
            choices[kind.name] = handler.generate_schema(kind.section)
        return {"type": "tagged-union", "choices": choices, "discriminator": "kind", "from_attributes": True}
