"""Plugins: a user's own kinds, found beside the config, and opened again only as a run recorded them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from config_text import SMALL, parse, problems

from clipkit.config import plugins as module
from clipkit.config.file import parse_config
from clipkit.config.kinds import builder_of, find_kind
from clipkit.config.plugins import load_plugins, loaded_plugins, reopen_plugins
from clipkit.config.reference import list_keys
from clipkit.errors import ConfigError

HEAD = """\
from typing import Literal
from clipkit.config import Section, register

class Mine(Section):
    kind: Literal["mine"] = "mine"
    width: int = 3
    \"\"\"How wide.\"\"\"

def build(section):
    return section.width

register("head", Mine, "heads_of_mine:build")
"""
TAGS = """\
from __future__ import annotations
from types import MappingProxyType
from typing import Annotated, Literal
from clipkit.config import EvaluatorSection, Group, ModelSection, Section, TaskSection, register

class TagModel(ModelSection):
    column: str
    \"\"\"The column of vectors.\"\"\"

class Bce(Section):
    kind: Literal["bce"] = "bce"
    \"\"\"A loss.\"\"\"
    smoothing: float = 0.0
    \"\"\"Of the targets.\"\"\"

class TagAccuracy(EvaluatorSection):
    kind: Literal["tags"] = "tags"
    \"\"\"An evaluator.\"\"\"

class Tags(TaskSection):
    kind: Literal["tags"] = "tags"
    \"\"\"A task.\"\"\"
    model_section = TagModel
    default_loss = Bce()
    groups = MappingProxyType({"head": None})
    default_groups = MappingProxyType({"head": Group(lr=1e-2)})
    evaluator = TagAccuracy

    def conflicts(self, config):
        if config.train.batch_size > 1000:
            yield "train.batch_size", "is too large for tags"

register("task", Tags, "tags_of_mine:build")
register("tags_loss", Bce, "tags_of_mine:build_loss")
register("evaluator", TagAccuracy, "tags_of_mine:build_evaluator")
"""
TAG_CONFIG = "plugins: [tags_of_mine]\ntask: {kind: tags}\ndata: {dataset: a.lance}\nmodel: {column: vector}\n"


@pytest.fixture(autouse=True)
def _forget_afterwards() -> Iterator[None]:
    yield
    for name in list(module._loaded):
        module._forget(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heads_of_mine.py").write_text(HEAD)
    (tmp_path / "tags_of_mine.py").write_text(TAGS)
    return tmp_path


def refusal(name: str, beside: Path | None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_plugins([name], beside=beside)
    return caught.value


class TestKinds:
    def test_a_kind_beside_the_config(self, folder: Path) -> None:
        config = parse("plugins: [heads_of_mine]\n" + SMALL, "model.head={kind: mine, width: 7}", beside=folder)
        head = config.model.head  # type: ignore[attr-defined]
        assert builder_of(head)(head) == 7
        assert ("model.head.width", "mine") in {(key.path, key.kind) for key in list_keys()}
        assert loaded_plugins(config.plugins)[0].path == str(folder / "heads_of_mine.py")

    def test_a_task_decides_what_model_loss_and_evaluators_hold(self, folder: Path) -> None:
        text = TAG_CONFIG + "loss: {kind: bce, smoothing: 0.1}\nevaluate: {dev: {kind: tags}}\n"
        config = parse(text, beside=folder)
        assert config.model_dump()["loss"] == {"kind": "bce", "smoothing": 0.1}
        assert config.optim.groups.keys() == {"head"}
        assert parse(TAG_CONFIG, "data.validation=id < 9", beside=folder).evaluators[""].kind == "tags"  # type: ignore[attr-defined]
        assert {key.path for key in list_keys("tags") if key.path.startswith("model.")} == {
            "model.init",
            "model.column",
        }
        assert problems(TAG_CONFIG, "train.batch_size=1001", beside=folder) == [
            "--set train.batch_size: train.batch_size: is too large for tags"
        ]

    def test_problems_suggest_kinds_and_keys_of_plugins(self, folder: Path) -> None:
        text = TAG_CONFIG.replace("kind: tags", "kind: tagz").replace("column:", "colunm:")
        assert problems(text + "loss: {kind: bec}\n", beside=folder) == [
            "x.yaml:2: task.kind: `tagz` is not one of contrastive | tags; did you mean `tags`?",
            "x.yaml:4: model.colunm: unknown key; did you mean `column`?",
            "x.yaml:5: loss.kind: `bec` is not one of bce; did you mean `bce`?",
        ]


class TestLoading:
    def test_a_package_is_hashed_whole_and_may_import_what_lies_beside_it(self, tmp_path: Path) -> None:
        package = tmp_path / "package_of_mine"
        package.mkdir()
        (tmp_path / "sibling_of_mine.py").write_text("X = 1")
        (package / "__init__.py").write_text("from package_of_mine.part import X\nimport sibling_of_mine")
        (package / "part.py").write_text("X = 1")
        (plugin,) = load_plugins(["package_of_mine"], beside=tmp_path)
        assert str(tmp_path) not in sys.path
        (package / "part.py").write_text("X = 2")
        (changed,) = load_plugins(["package_of_mine"], beside=tmp_path)
        assert plugin.path == changed.path == str(package)
        assert plugin.sha256 != changed.sha256

    def test_the_same_one_is_imported_once_and_a_changed_one_again(self, folder: Path) -> None:
        load_plugins(["heads_of_mine"], beside=folder)
        first = find_kind("head", "mine")
        load_plugins(["heads_of_mine"], beside=folder)
        assert find_kind("head", "mine") is first
        (folder / "heads_of_mine.py").write_text(HEAD.replace("= 3", "= 4"))
        load_plugins(["heads_of_mine"], beside=folder)
        assert find_kind("head", "mine").section().width == 4  # type: ignore[union-attr]

    def test_one_of_the_same_name_elsewhere_replaces_it_and_its_siblings(self, tmp_path: Path) -> None:
        for number in (1, 2):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "plugin_of_mine.py").write_text("from sibling_of_mine import NUMBER")
            (tmp_path / str(number) / "sibling_of_mine.py").write_text(f"NUMBER = {number}")
            load_plugins(["plugin_of_mine"], beside=tmp_path / str(number))
            plugin = sys.modules["plugin_of_mine"]
            assert number == plugin.NUMBER

    def test_one_that_is_installed(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(folder)
        config = parse(SMALL, "plugins=[heads_of_mine]", "model.head={kind: mine}", beside=folder / "elsewhere")
        assert config.plugins == ("heads_of_mine",)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("import math\nmath.sqroot(2)", r"AttributeError: module 'math' has no attribute 'sqroot' \(`.*.py:2`\)"),
            ("x = (", r"SyntaxError: '\(' was never closed \(bad_of_mine.py, line 1\) \(`.*.py:1`\)"),
            ("raise SystemExit(3)", r"SystemExit: 3 \(`.*.py:1`\)"),
            (HEAD.replace(' = "mine"', ""), r"ValueError: `Mine` needs a default for `kind`.* \(`.*.py:12`\)"),
            (TAGS.replace("    evaluator =", "    _other ="), r"TypeError: the task `Tags` does not set `evaluator`"),
        ],
    )
    def test_one_that_fails_leaves_nothing_behind(self, source: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "bad_of_mine.py").write_text(source)
        with pytest.raises(ConfigError, match=f"the plugin `bad_of_mine` cannot be imported: {message}"):
            load_plugins(["bad_of_mine"], beside=tmp_path)
        assert "bad_of_mine" not in sys.modules
        assert find_kind("head", "mine") is None
        assert find_kind("task", "tags") is None

    def test_names_that_cannot_be_imported(self, tmp_path: Path) -> None:
        (tmp_path / "yaml.py").write_text("")
        assert "there is no plugin `none_of_mine`" in refusal("none_of_mine", tmp_path).message
        assert refusal("mine.py", tmp_path).hint == "write `mine`"
        assert "has the name of a module that is already in use" in refusal("yaml", tmp_path).message

    def test_problems_name_the_line(self, folder: Path) -> None:
        text = SMALL + "plugins: [none_of_mine]\nloss: {kind: of_the_plugin}"
        (found,) = problems(text, beside=folder)
        assert found.startswith("x.yaml:6: plugins: there is no plugin `none_of_mine`")
        assert problems(SMALL + "plugins: mine") == ["x.yaml:6: plugins: must be a list of module names"]


class TestReopening:
    @pytest.fixture
    def run(self, folder: Path) -> Path:
        (folder / "runs" / "a").mkdir(parents=True)
        return folder / "runs" / "a"

    @pytest.fixture
    def record(self, folder: Path) -> dict[str, str]:
        (plugin,) = load_plugins(["heads_of_mine"], beside=folder)
        module._forget("heads_of_mine")
        return asdict(plugin)

    def refusal(self, record: dict[str, str], run: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            reopen_plugins([record], run_folder=run)
        assert "heads_of_mine" not in sys.modules
        assert caught.value.hint
        return caught.value.message

    def test_the_config_of_a_run_uses_what_it_recorded(self, record: dict[str, str], run: Path) -> None:
        text = "plugins: [heads_of_mine]\n" + SMALL
        reopened = reopen_plugins([record], run_folder=run)
        parse_config(text, source="x.yaml", sets=["model.head={kind: mine}"], plugins=reopened)
        with pytest.raises(ConfigError, match="the run has no record of the plugin `heads_of_mine`"):
            parse_config(text, source="x.yaml", plugins=[])

    def test_one_that_moved_is_found_where_it_is_installed(
        self, record: dict[str, str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "site").mkdir()
        Path(record["path"]).rename(tmp_path / "site" / "heads_of_mine.py")
        assert "is neither at" in self.refusal(record, run)
        monkeypatch.syspath_prepend(tmp_path / "site")
        assert reopen_plugins([record], run_folder=run)[0].path == str(tmp_path / "site" / "heads_of_mine.py")

    def test_one_that_changed_is_refused(self, record: dict[str, str], run: Path) -> None:
        Path(record["path"]).write_text(HEAD + "\n")
        assert "has changed since the run" in self.refusal(record, run)

    @pytest.mark.parametrize("way", ["recorded", "symlink", "current folder", "symlinked run"])
    def test_never_from_inside_the_runs_folder(
        self, way: str, record: dict[str, str], run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inside = run / "heads_of_mine.py"
        Path(record["path"]).rename(inside)
        if way == "recorded":
            record["path"] = str(inside)
        elif way == "symlink":
            Path(record["path"]).symlink_to(inside)
        elif way == "current folder":
            monkeypatch.chdir(run)
            monkeypatch.setattr(sys, "path", ["", str(run), *sys.path])
        else:
            (run.parent / "b").symlink_to(run)
            record["path"], run = str(inside), run.parent / "b"
        assert self.refusal(record, run)
