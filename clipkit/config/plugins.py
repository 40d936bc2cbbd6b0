"""`plugins`: a user's own modules, imported so that they register their kinds.

Plugins are code. A run records their paths and hashes; opening the run imports only what has the recorded hash, and
never a file inside the run's folder.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from clipkit.config.kinds import unregister
from clipkit.errors import ConfigError, first_line


@dataclass(frozen=True)
class Plugin:
    name: str
    path: str
    """The module's file, or the package's folder."""
    sha256: str
    """Of the module's source; of a package, of the names and sources of all its `.py` files."""


_loaded: dict[str, Plugin] = {}
_folders: set[str] = set()  # what plugins were imported from so far


def load_plugins(names: Sequence[str], *, beside: Path | None) -> list[Plugin]:
    """Import plugins from a folder, usually the config's, or from what is installed; raises ConfigError."""
    return [_load(_read(name, _find(name, beside))) for name in names]


def loaded_plugins(names: Sequence[str]) -> list[Plugin]:
    """What is imported under these names; each must have been loaded."""
    return [_loaded[name] for name in names]


def reopen_plugins(recorded: Sequence[Mapping[str, str]], *, run_folder: Path) -> list[Plugin]:
    """Import the plugins of a run from where it found them, or from what is installed.

    `recorded` has the fields of `Plugin`. Raises ConfigError for a plugin that has changed, is missing, or exists only
    inside the run's folder.
    """
    return [_load(_same_as(Plugin(**record), run_folder), run_folder) for record in recorded]


def _same_as(recorded: Plugin, run_folder: Path) -> Plugin:
    """The plugin with the recorded hash."""
    name, path = recorded.name, Path(recorded.path)
    _check_name(name)
    found = [place for place in (path, _installed(name, run_folder)) if place is not None and _module_file(place)]
    allowed = [place for place in found if place.is_absolute() and not _is_inside(place, run_folder)]
    for place in allowed:
        plugin = _read(name, place)
        if plugin.sha256 == recorded.sha256:
            return plugin
    if allowed:
        raise ConfigError(
            f"the plugin `{name}` at `{allowed[0]}` has changed since the run",
            f"put it back as it was, or resume the run with the changed one: `clipkit train --resume {run_folder} "
            "--config FILE`",
        )
    if found:
        raise ConfigError(
            f"the plugin `{name}` is inside the run's folder, at `{found[0]}`, and is not imported from there",
            "if you trust it, copy it to another folder and name that folder in the environment variable PYTHONPATH",
        )
    raise ConfigError(
        f"the plugin `{name}` is neither at `{path}`, where the run found it, nor installed",
        "put it back as it was, or into a folder that the environment variable PYTHONPATH names",
    )


def _find(name: str, beside: Path | None) -> Path:
    _check_name(name)
    path = (_beside(name, beside) if beside else None) or _installed(name)
    if path is None:
        places = (
            f"`{name}.py` and `{name}/__init__.py` are not in `{beside.absolute()}`, and it is" if beside else "it is"
        )
        raise ConfigError(
            f"there is no plugin `{name}`: {places} not installed",
            f"put `{name}.py` beside the config file, or install it",
        )
    return path


def _check_name(name: str) -> None:
    if not name.isidentifier():
        stem = Path(name).stem
        advice = f"write `{stem}`" if stem.isidentifier() else "rename its file with letters, digits and `_`"
        raise ConfigError(f"`{name}` is not the name of a Python module", advice)


def _beside(name: str, folder: Path) -> Path | None:
    places = (folder.absolute() / f"{name}.py", folder.absolute() / name)
    return next((place for place in places if _module_file(place)), None)


def _installed(name: str, avoid: Path | None = None) -> Path | None:
    """Where the interpreter would find a module that is not imported yet."""
    with _search_path(avoid=avoid):
        specs = (finder.find_spec(name, None) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


def _module_file(path: Path) -> Path | None:
    """The file that is executed: the module's own, or the package's `__init__.py`."""
    file = path if path.suffix == ".py" else path / "__init__.py"
    return file if file.is_file() else None


def _is_inside(path: Path, folder: Path) -> bool:
    places = (Path(os.path.abspath(path)), path.resolve())
    return any(place.is_relative_to(root) for place in places for root in (folder.absolute(), folder.resolve()))


def _read(name: str, path: Path) -> Plugin:
    try:
        if path.is_file():
            return Plugin(name, str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        digest = hashlib.sha256()
        for file in sorted(path.rglob("*.py")):
            digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        raise ConfigError(f"the plugin `{name}` cannot be read: {error}", f"make `{path}` readable") from error
    return Plugin(name, str(path), digest.hexdigest())


def _load(plugin: Plugin, avoid: Path | None = None) -> Plugin:
    """Import a plugin under its own name, unless this very one is imported; it replaces another of its name."""
    name, file = plugin.name, _module_file(Path(plugin.path))
    assert file is not None, "a plugin that was found has a file"
    module = sys.modules.get(name)
    is_imported = _file_of(module) == str(file)
    if is_imported and _loaded.setdefault(name, plugin) == plugin:
        return plugin
    if name in sys.stdlib_module_names or name == "clipkit" or (module is not None and name not in _loaded):
        raise ConfigError(f"the plugin `{name}` has the name of a module that is already in use", f"rename `{file}`")
    _forget(name)
    folder = Path(plugin.path).parent
    _forget_siblings(folder)
    _folders.add(str(folder))
    spec = spec_from_file_location(name, file, loader=_SourceLoader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    importlib.invalidate_caches()
    try:
        with _search_path(folder, avoid=avoid):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        _forget(name)
        raise ConfigError(
            f"the plugin `{name}` cannot be imported: {type(error).__name__}: {first_line(error)} "
            f"({_place(error, Path(plugin.path), file)})",
            "correct the plugin; with `CLIPKIT_DEBUG=1` the whole traceback is shown",
        ) from error
    _loaded[name] = plugin
    return plugin


class _SourceLoader(SourceFileLoader):
    """Executes the source that was hashed, never bytecode from `__pycache__`."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


@contextmanager
def _search_path(*first: Path, avoid: Path | None = None) -> Iterator[None]:
    """`sys.path` with folders before it, and without those that lead into the folder to avoid."""
    before = list(sys.path)
    avoided = [entry for entry in before if avoid is not None and _is_inside(Path(entry or "."), avoid)]
    sys.path[:] = [*map(str, first), *(entry for entry in before if entry not in avoided)]
    during = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = [*(entry for entry in sys.path if entry not in during), *before]


def _forget(name: str) -> None:
    unregister(name)
    _loaded.pop(name, None)
    for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[module]


def _forget_siblings(folder: Path) -> None:
    """Forget what other plugins imported from beside themselves, where this folder has a module of that name too."""
    others = _folders - {str(folder), *sys.path}
    for name, module in list(sys.modules.items()):
        if name not in _loaded and os.path.dirname(_file_of(module)) in others and _beside(name, folder):
            del sys.modules[name]


def _file_of(module: ModuleType | None) -> str:
    return getattr(module, "__dict__", {}).get("__file__") or ""


def _place(error: BaseException, plugin: Path, file: Path) -> str:
    """`FILE:LINE`, of the innermost line of the plugin that the error went through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"`{error.filename}:{error.lineno}`"
    frames: list[Any] = traceback.extract_tb(error.__traceback__)
    lines = [f"`{frame.filename}:{frame.lineno}`" for frame in frames if Path(frame.filename).is_relative_to(plugin)]
    return lines[-1] if lines else f"`{file}`"
