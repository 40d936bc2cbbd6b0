"""The walls of the house, read from the imports: layers, no cycles, and who may print."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clipkit"
# A unit is a module or a package directly under clipkit. It imports from lower layers, or from itself; the lowest and
# the highest layer are each one house.
LAYERS = {
    0: {"__init__", "errors", "files", "types", "hardware", "signals", "config"},
    1: {"distributed", "hub"},
    2: {"images", "store", "runs", "metrics"},
    3: {"readers", "losses", "data"},
    4: {"models"},
    5: {"train"},
    6: {"tasks"},
    7: {"evaluators"},
    8: {"opening"},
    9: {"workflows"},
    10: {"console", "cli", "commands", "__main__"},
}
LAYER_OF = {unit: layer for layer, units in LAYERS.items() for unit in units}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def unit(self) -> str:
        return self.name.split(".")[1] if "." in self.name else "__init__"

    def imports(self) -> Iterator[tuple[str, bool]]:
        """Names of clipkit's modules that this one imports, and whether only for the type checker."""
        typing_only = {
            id(node)
            for block in ast.walk(self.tree)
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
            for node in ast.walk(block)
        }
        for node in ast.walk(self.tree):
            for name in _imported(node):
                if name.split(".")[0] == "clipkit":
                    yield name, id(node) in typing_only


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        below = [f"{node.module}.{alias.name}" for alias in node.names]
        modules = [name for name in below if name in MODULE_NAMES]
        return [*modules, *([node.module] if len(modules) < len(below) else [])]
    return []


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULE_NAMES = _modules()
DISTRIBUTIONS = packages_distributions()
MODULES = [Module(name, path, ast.parse(path.read_text())) for name, path in MODULE_NAMES.items()]
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


@each_module
def test_a_module_imports_only_from_lower_layers(module: Module) -> None:
    assert module.unit in LAYER_OF, f"give `{module.unit}` a layer"
    for name, typing_only in module.imports():
        if typing_only and module.unit == "types":  # the contracts name what they are about
            continue
        if module.name == "clipkit":  # the public functions import when they are called
            continue
        unit = name.split(".")[1] if "." in name else "__init__"
        own, other = LAYER_OF[module.unit], LAYER_OF[unit]
        assert other < own or unit == module.unit or own == other in (0, 10), f"{module.name} imports {name}"


NAMES_OF_KINDS = re.compile(
    r"contrastive|retrieval|recall|image_encoder|text_encoder|dual_encoder|captioning|tagging", re.IGNORECASE
)


@pytest.mark.parametrize("module", [module for module in MODULES if module.unit == "train"], ids=lambda m: m.name)
def test_the_trainer_names_no_task_tower_or_metric(module: Module) -> None:
    found = NAMES_OF_KINDS.findall(module.path.read_text())
    assert not found


# Modules without a test module of their own, and the tests that cover them.
TESTED_ELSEWHERE = {
    "clipkit.types": "no code: the contracts",
    "clipkit.errors": "no code: the errors",
    "clipkit.__main__": "every test of the command line runs it",
    "clipkit.cli": "tests/test_cli.py",
    "clipkit.signals": "tests/test_cli.py, tests/train/test_resume.py",
    "clipkit.hardware": "tests/workflows/test_doctor.py",
    "clipkit.hub": "tests/models/test_text_encoder.py: a model that cannot be downloaded",
    "clipkit.distributed": "tests/losses/test_losses.py, tests/train/test_ranks.py: on real ranks",
    "clipkit.commands.*": "tests/test_cli.py and the tests of the workflows run them as a user does",
    "clipkit.config.*": "tests/config/test_file.py reads the sections from YAML",
    "clipkit.data.*": "tests/data/test_loader.py makes batches with them",
    "clipkit.losses.*": "tests/losses/test_losses.py compares each with a plain version",
    "clipkit.models.*": "tests/models/test_dual_encoder.py builds models of them",
    "clipkit.evaluators.*": "tests/workflows/test_evaluate.py, tests/test_plugins.py",
    "clipkit.tasks.base": "tests/test_plugins.py",
    "clipkit.train.*": "tests/train/test_training.py and test_resume.py train with them",
    "clipkit.workflows.train": "tests/train",
    "clipkit.workflows.leaks": "tests/workflows/test_info.py",
    "clipkit.workflows.ingest.*": "tests/workflows/ingest runs whole ingests",
    "clipkit.store.*": "tests/workflows/ingest writes, kills and resumes with them",
    "clipkit.readers.*": "the tests of the readers that use them",
}


@each_module
def test_a_module_has_its_test(module: Module) -> None:
    parts = module.name.split(".")[1:]
    is_package = module.path.name == "__init__.py"
    mirrored = PACKAGE.parent.joinpath("tests", *parts[:-1], f"test_{parts[-1]}.py") if parts else None
    assert (
        is_package
        or mirrored is None
        or mirrored.is_file()
        or any(fnmatchcase(module.name, p) for p in TESTED_ELSEWHERE)
    )


def test_there_are_no_cycles() -> None:
    graph = {
        module.name: {name for name, typing_only in module.imports() if not typing_only} - {module.name}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@each_module
def test_only_the_console_prints(module: Module) -> None:
    if module.unit == "console":
        return
    for node in ast.walk(module.tree):
        text = ast.unparse(node) if isinstance(node, ast.Call) else ""
        assert not text.startswith(("print(", "sys.stdout.write", "sys.stderr.write")), f"{module.name}: {text}"


@each_module
def test_a_module_says_what_it_is(module: Module) -> None:
    if module.name != "clipkit.__main__":
        assert ast.get_docstring(module.tree)


@each_module
def test_what_is_imported_is_a_dependency_or_an_extra(module: Module) -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in declared}
    for node in ast.walk(module.tree):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            imported = [node.module]
        for top in {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"clipkit"}:
            distributions = {name.lower().replace("_", "-") for name in DISTRIBUTIONS.get(top, [top])}
            assert distributions & names, f"{module.name} imports {top}"


@each_module
def test_nothing_is_unpickled(module: Module) -> None:
    """What clipkit reads is tensors and JSON; `torch.load` only with `weights_only=True`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node)
            if text.startswith("torch.load("):
                assert "weights_only=True" in text
            assert not text.startswith(("pickle.load", "yaml.load(", "yaml.unsafe_load"))
