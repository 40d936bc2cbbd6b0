"""`plugins`: a user's own modules, imported so that they register their kinds.

A plugin is code, so a run records where its plugins were and a hash of each. Opening the run imports only what has the
recorded hash, and never a file inside the run's folder.
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
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

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
_folders: set[str] = set()  # that plugins have been imported from


def load_plugins(names: Sequence[str], *, beside: Path | None) -> list[Plugin]:
    """Import plugins from a folder, usually the config's, or from what is installed; raises ConfigError."""
    return [_load(_read(name, _find(name, beside))) for name in names]


def loaded_plugins(names: Sequence[str]) -> list[Plugin]:
    """The plugins of these names; each must have been loaded."""
    return [_loaded[name] for name in names]


def is_plugin_file(filename: str) -> bool:
    """Whether a file is a loaded plugin's."""
    path = Path(filename)
    return any(path == Path(plugin.path) or Path(plugin.path) in path.parents for plugin in _loaded.values())


def reopen_plugins(recorded: Sequence[Mapping[str, str]], *, run_folder: Path) -> list[Plugin]:
    """Import the plugins of a run from where the run found them, or from what is installed.

    `recorded` has the fields of `Plugin`. Raises ConfigError for a plugin that has changed, is missing, or exists only
    inside the run's folder.
    """
    return [_load(_find_recorded(Plugin(**record), run_folder), run_folder) for record in recorded]


def _find_recorded(recorded: Plugin, run_folder: Path) -> Plugin:
    """The plugin with the recorded hash."""
    name = recorded.name
    _check_name(name)
    places = [place for place in (Path(recorded.path), _installed(name, run_folder)) if place and _module_file(place)]
    allowed = [place for place in places if place.is_absolute() and not _is_inside(place, run_folder)]
    for place in allowed:
        plugin = _read(name, place)
        if plugin.sha256 == recorded.sha256:
            return plugin
    if allowed:
        raise ConfigError(
            f"the plugin `{name}` at `{allowed[0]}` has changed since the run",
            f"restore it, or resume the run with the changed one: `clipkit train --resume {run_folder} --config FILE`",
        )
    raise ConfigError(
        f"the plugin `{name}` is neither at `{recorded.path}`, where the run found it, nor installed",
        "restore it, or add its folder to the environment variable PYTHONPATH; nothing is imported from the run folder",
    )


def _find(name: str, beside: Path | None) -> Path:
    _check_name(name)
    path = (_beside(name, beside) if beside else None) or _installed(name)
    if path is None:
        looked = f"`{beside.absolute()}` has no `{name}.py` or `{name}/__init__.py`, and it is" if beside else "it is"
        raise ConfigError(
            f"there is no plugin `{name}`: {looked} not installed", f"put `{name}.py` beside the config, or install it"
        )
    return path


def _check_name(name: str) -> None:
    if not name.isidentifier():
        stem = Path(name).stem
        advice = f"write `{stem}`" if stem.isidentifier() else "rename its file, with letters, digits and `_`"
        raise ConfigError(f"`{name}` is not the name of a Python module", advice)


def _beside(name: str, folder: Path) -> Path | None:
    places = (folder.absolute() / f"{name}.py", folder.absolute() / name)
    return next((place for place in places if _module_file(place)), None)


def _installed(name: str, avoid: Path | None = None) -> Path | None:
    """Where Python would find a module that is not imported yet."""
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
    """Import a plugin, unless this very one is imported; it replaces another of its name."""
    name, file = plugin.name, _module_file(Path(plugin.path))
    assert file is not None, "a plugin that was found has a file"
    is_imported = _file_of(sys.modules.get(name)) == str(file)
    if is_imported and _loaded.setdefault(name, plugin) == plugin:
        return plugin
    if name in sys.stdlib_module_names or name == "clipkit" or (name in sys.modules and name not in _loaded):
        raise ConfigError(f"the plugin `{name}` has the name of a module that is already in use", f"rename `{file}`")
    _forget(name)
    folder = Path(plugin.path).parent
    _forget_siblings(folder)
    _folders.add(str(folder))
    spec = spec_from_file_location(name, file)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    importlib.invalidate_caches()
    try:
        with _search_path(folder, avoid=avoid):
            exec(compile(file.read_bytes(), file, "exec"), module.__dict__)  # never bytecode, which has no hash
    except (Exception, SystemExit) as error:
        _forget(name)
        raise ConfigError(
            f"the plugin `{name}` cannot be imported: {type(error).__name__}: {first_line(error)} "
            f"(`{_failed_line(error, plugin, file)}`)",
            "correct the plugin; `CLIPKIT_DEBUG=1` shows the whole traceback",
        ) from error
    _loaded[name] = plugin
    return plugin


@contextmanager
def _search_path(*first: Path, avoid: Path | None = None) -> Iterator[None]:
    """`sys.path` with folders before it, and without those that lead into the folder to avoid."""
    before = list(sys.path)
    kept = [entry for entry in before if avoid is None or not _is_inside(Path(entry or "."), avoid)]
    sys.path[:] = during = [*map(str, first), *kept]
    try:
        yield
    finally:
        sys.path[:] = [*(entry for entry in sys.path if entry not in during), *before]  # keeps what a plugin added


def _forget(name: str) -> None:
    unregister(name)
    _loaded.pop(name, None)
    for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[module]


def _forget_siblings(folder: Path) -> None:
    """Forget what plugins imported from beside themselves in other folders, where this folder has one of that name."""
    others = _folders - {str(folder), *sys.path}
    for name, module in list(sys.modules.items()):
        if name not in _loaded and os.path.dirname(_file_of(module)) in others and _beside(name, folder):
            del sys.modules[name]


def _file_of(module: ModuleType | None) -> str:
    return getattr(module, "__dict__", {}).get("__file__") or ""


def _failed_line(error: BaseException, plugin: Plugin, file: Path) -> str:
    """`FILE:LINE` of the innermost line of the plugin that the error passed through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{frame.filename}:{frame.lineno}" for frame in frames if Path(frame.filename).is_relative_to(plugin.path)]
    return lines[-1] if lines else str(file)
