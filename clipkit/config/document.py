"""A YAML document with the line of each value, and `--set KEY=VALUE` on top of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
AFTER_THE_FILE = 1_000_000_000  # `--set` sorts after every line


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where a value was given: `file.yaml:12`, or `--set a.b`."""

    line: int
    text: str


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    origin: Origin
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.origin.text, self.key, self.message) if part)


@dataclass(slots=True)
class Document:
    """Plain values, the origin of each by its path of keys, and the problems found so far."""

    source: str
    values: dict[Any, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: KeyPath) -> Origin:
        """The origin of a value, or of the nearest section around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return Origin(1, f"{self.source}:1")

    def report(self, path: KeyPath, message: str) -> None:
        problem = Problem(self.origin(path), dotted(path), message)
        if problem not in self.problems:
            self.problems.append(problem)

    def copy_origins(self, path: KeyPath, to: KeyPath) -> None:
        """Let the values at and below one path have their origins at another too."""
        for old, origin in list(self.origins.items()):
            if old[: len(path)] == path:
                self.origins[(*to, *old[len(path) :])] = origin

    def put(self, path: KeyPath, value: Any) -> None:
        """Set a value and create the sections around it; KeyError holds the path of what is in the way."""
        here: Any = self.values
        for depth, part in enumerate(path[:-1]):
            if isinstance(here, dict) and here.get(part) is None:
                here[part] = {}
            here = here[_index(here, part, path[: depth + 1])]
        if isinstance(here, dict):
            here[path[-1]] = value
        else:
            here[_index(here, path[-1], path)] = value


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def read_document(text: str, *, source: str) -> Document:
    """Read YAML; syntax errors and keys that are given twice are `problems` of the document."""
    document = Document(source)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(node, yaml.MappingNode):
            document.values = _Builder(document).build(node, ())
        elif node is not None:
            document.report((), "must be a mapping of keys, such as `data:`")
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date like 2024-13-45; an anchor within itself
        document.problems.append(Problem(_origin_of(error, source), "", f"not valid YAML: {_reason(error)}"))
    return document


def apply_set(document: Document, assignment: str, *, number: int) -> None:
    """Set `a.b=value` in the document; the value is YAML."""
    key, equals, text = assignment.partition("=")
    path: KeyPath = tuple(key.strip().split("."))
    document.origins = {old: where for old, where in document.origins.items() if old[: len(path)] != path}
    origin = Origin(AFTER_THE_FILE + number, f"--set {key.strip()}")
    if not equals or not all(path):
        document.problems.append(Problem(origin, "", f"`{assignment}` is not KEY=VALUE, such as `train.batch_size=64`"))
        return
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = None if node is None else _Builder(document, origin).build(node, path)
    except (yaml.YAMLError, ValueError) as error:
        message = f"`{text}` is not a YAML value ({_reason(error)}); put it in quotes if it is text"
        document.problems.append(Problem(origin, "", message))
        return
    for end in range(1, len(path)):
        document.origins.setdefault(path[:end], origin)
    document.origins[path] = origin
    try:
        document.put(path, value)
    except KeyError as error:
        document.report(path, f"`{dotted(error.args[0])}` is not a section with keys")


class _Builder:
    """Turns YAML nodes into plain values and records the origin of each."""

    def __init__(self, document: Document, origin: Origin | None = None) -> None:
        self.document = document
        self.fixed_origin = origin
        self.constructor = yaml.SafeLoader("")

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._place(item, item, (*path, i)) for i, item in enumerate(node.value)]
        return self.constructor.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[Any, Any]:
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            name = str(key.value)
            if name in first_lines:
                message = f"is given twice, first on line {first_lines[name]}"
                self.document.problems.append(Problem(self._origin(key), dotted((*path, name)), message))
            first_lines.setdefault(name, key.start_mark.line + 1)
        self.constructor.flatten_mapping(node)  # `<<: *anchor`
        values = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            values[name] = self._place(key, value, (*path, name))
        return values

    def _place(self, marked: yaml.Node, value: yaml.Node, path: KeyPath) -> Any:
        self.document.origins[path] = self._origin(marked)
        return self.build(value, path)

    def _origin(self, node: yaml.Node) -> Origin:
        line = node.start_mark.line + 1
        return self.fixed_origin or Origin(line, f"{self.document.source}:{line}")


def _index(container: Any, part: str | int, path: KeyPath) -> str | int:
    if isinstance(container, dict):
        return part
    if isinstance(container, list) and str(part).isdigit() and int(part) < len(container):
        return int(part)
    raise KeyError(path[:-1])


def _origin_of(error: Exception, source: str) -> Origin:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    return Origin(line, f"{source}:{line}")


def _reason(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).strip().splitlines()[0]
