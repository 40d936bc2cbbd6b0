"""The configs that come with clipkit, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from clipkit.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
SUFFIX = ".yaml"


def list_configs() -> dict[str, Path]:
    """Every packaged config by its name: in `configs/` of the installed package, or of the checkout."""
    in_wheel = PACKAGE / "configs"
    folder = in_wheel if in_wheel.is_dir() else PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def find_config(name: str | Path) -> Path:
    """The file that `--config` names: a path, or the name of a packaged config unless a local file has that name.

    Raises ConfigError where there is none.
    """
    path, packaged = Path(name), list_configs()
    is_bare = not path.suffix and path.name == str(name)
    local = path.with_suffix(SUFFIX) if is_bare else path
    for candidate in (path, local):
        if candidate.exists() and not candidate.is_dir():
            return candidate
    if is_bare and path.name in packaged:
        return packaged[path.name]
    close = difflib.get_close_matches(path.stem, packaged, n=1)
    raise ConfigError(
        f"there is no config file `{name}`" + (f"; did you mean `{close[0]}`?" if close else ""),
        f"give a YAML file or a packaged config: {', '.join(packaged)}",
    )
