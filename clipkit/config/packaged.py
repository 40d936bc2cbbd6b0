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
    """The file that `--config` names: a path, or the bare name of a packaged config.

    Raises ConfigError where there is none.
    """
    path, packaged = Path(name), list_configs()
    if path.exists() and not path.is_dir():
        return path
    if str(name) in packaged:
        return packaged[str(name)]
    close = difflib.get_close_matches(path.stem, packaged, n=1)
    raise ConfigError(
        f"there is no config file `{name}`" + (f"; did you mean `{close[0]}`?" if close else ""),
        f"give a YAML file or a packaged config: {', '.join(packaged)}",
    )
