"""What a run is resumed with: its dataset from any folder, and a config with other plugins."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clipkit.train.session import begin, open_session

PLUGIN = """
from typing import Literal

from clipkit.config import EvaluatorSection, register


class Section(EvaluatorSection):
    kind: Literal["of_mine"] = "of_mine"


register("evaluator", Section, "evaluator_of_mine:build")
"""


def test_a_run_is_resumed_from_another_folder(
    tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Path(yaml.safe_load(config_file.read_text())["data"]["dataset"])
    monkeypatch.chdir(dataset.parent)
    run, _ = begin(open_session(config_file, [f"data.dataset={dataset.name}"]), {})
    run.unlock()
    assert str(dataset) in run.config_text
    run.write_config(run.config_text.replace(str(dataset), dataset.name))  # as earlier versions wrote it
    assert open_session(None, resume=str(run.folder)).config.data.dataset == str(dataset)
    monkeypatch.chdir(tmp_path)
    assert open_session(config_file, resume=str(run.folder)).config.data.dataset == str(dataset)


def test_a_config_with_other_plugins_is_compared_too(config_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    (config_file.parent / "evaluator_of_mine.py").write_text(PLUGIN)
    sets = ["plugins=[evaluator_of_mine]", "data.validation=null", "evaluate={mine: {kind: of_mine}}"]
    plugins = [{"name": "evaluator_of_mine", "path": "", "sha256": ""}]
    run, _ = begin(open_session(config_file, sets), {"plugins": plugins})
    run.unlock()
    with caplog.at_level("INFO", logger="clipkit"):
        assert open_session(config_file, resume=str(run.folder)).config.plugins == ()
    assert "the plugins have changed" in caplog.text
    assert "changed: plugins: [evaluator_of_mine] -> []" in caplog.text
