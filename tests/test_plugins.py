"""The task of a user's own, `tests/plugins/tagging.py`: trained, resumed, on several ranks, evaluated, opened."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lance
import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from clipkit.errors import ConfigError
from clipkit.opening import open_model
from clipkit.runs.metrics import read_metrics

if TYPE_CHECKING:
    from conftest import RunCli

ROOT = Path(__file__).parent.parent
PLUGINS = ROOT / "tests" / "plugins"
TAGGING = PLUGINS / "tagging.py"


@pytest.fixture(scope="session")
def tags_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 rows with a vector and the tags that a linear map of it gives; some rows have none."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 32)).astype(np.float32)
    scores = vectors @ rng.normal(size=(32, 6))
    table = pa.table(
        {
            "image_id": [f"image-{row}" for row in range(400)],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 32),
            "tags": pa.array(
                [[f"tag-{tag}" for tag in np.flatnonzero(row > 3)] for row in scores], pa.list_(pa.string())
            ),
            "split": ["dev" if row % 5 == 0 else "train" for row in range(400)],
        }
    )
    path = tmp_path_factory.mktemp("tags") / "tags.lance"
    lance.write_dataset(table, str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds only the plugin and its config."""
    for name in ("tagging.py", "tagging.yaml"):
        shutil.copy(PLUGINS / name, tmp_path)
    return tmp_path


def arguments(dataset: Path, *sets: str, run: str = "run") -> list[str]:
    changes = [f"data.dataset={dataset}", f"run.dir={run}", "train.duration=4ep", "train.threads=1", *sets]
    return ["train", "--config", "tagging.yaml", *(part for change in changes for part in ("--set", change))]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


def dev_losses(run: Path) -> list[float]:
    return [line["dev"]["loss"] for line in read_metrics(run) if "dev" in line]


def test_it_trains_and_keeps_the_best_by_the_lowest_loss(folder: Path, tags_dataset: Path, run_cli: RunCli) -> None:
    result = run_cli(*arguments(tags_dataset, "optim.groups.head.lr=1.0", "train.keep=1"), cwd=folder)
    assert result.returncode == 0, result.stderr
    evaluations = {line["step"]: line["dev"]["loss"] for line in read_metrics(folder / "run") if "dev" in line}
    best = json.loads((folder / "run" / "checkpoints" / "best.json").read_text())
    assert best["metric"] == "dev/loss"
    assert best["step"] == min(evaluations, key=evaluations.__getitem__)
    measured = run_cli("eval", "run", tags_dataset, "--json", cwd=folder)
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["loss"] == pytest.approx(best["value"], rel=1e-6)


def test_a_killed_run_is_resumed_bit_for_bit(folder: Path, tags_dataset: Path, run_cli: RunCli) -> None:
    whole = run_cli(*arguments(tags_dataset, run="whole"), cwd=folder)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "clipkit", *arguments(tags_dataset, "train.checkpoint_every=7st")]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list((folder / "run").glob("checkpoints/step-*/meta.json")):
        pass
    process.kill()
    process.wait()
    resumed = run_cli("train", "--resume", "run", cwd=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(folder / "run") == losses(folder / "whole")
    one, other = (
        load_file(folder / run / "checkpoints" / "step-00000040" / "model.safetensors") for run in ("run", "whole")
    )
    assert all((one[name] == other[name]).all() for name in other)


def test_pieces_and_ranks_give_the_losses_of_one_process(folder: Path, tags_dataset: Path, run_cli: RunCli) -> None:
    for name, sets in (("whole", ()), ("pieces", ("train.accumulate=4",))):
        result = run_cli(*arguments(tags_dataset, *sets, run=name), cwd=folder)
        assert result.returncode == 0, result.stderr
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "clipkit"]
    ranks = subprocess.run(
        [*launch, *arguments(tags_dataset, run="ranks")], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ranks.returncode == 0, ranks.stderr
    expected = losses(folder / "whole")
    assert losses(folder / "pieces") == pytest.approx(expected, rel=1e-5)
    assert losses(folder / "ranks") == pytest.approx(expected, rel=1e-5)
    evaluations = [[line["dev"] for line in read_metrics(folder / run) if "dev" in line] for run in ("whole", "ranks")]
    assert [each["loss"] for each in evaluations[1]] == pytest.approx(
        [each["loss"] for each in evaluations[0]], rel=1e-5
    )


def test_a_run_opens_with_the_plugin_that_trained_it(folder: Path, tags_dataset: Path, run_cli: RunCli) -> None:
    result = run_cli(*arguments(tags_dataset), cwd=folder)
    assert result.returncode == 0, result.stderr
    model = open_model(folder / "run")
    assert model.task.architecture() == {"tags": [f"tag-{number}" for number in range(6)]}
    with (folder / "tagging.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ConfigError, match="has changed since the run") as caught:
        open_model(folder / "run")
    assert "--config" in caught.value.hint


def test_a_loss_of_ones_own_trains_the_contrastive_task(tmp_path: Path, shapes_dataset: Path, run_cli: RunCli) -> None:
    shutil.copy(PLUGINS / "margin.py", tmp_path)
    config = run_cli("config", "shapes").stdout
    (tmp_path / "run.yaml").write_text("plugins: [margin]\n" + config)
    sets = ("loss.kind=margin", "run.dir=run", "train.duration=2st", "train.batch_size=16", "train.validate_every=null")
    arguments = (part for change in (*sets, f"data.dataset={shapes_dataset}") for part in ("--set", change))
    result = run_cli("train", "--config", "run.yaml", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path / "run")) == 2


def test_an_error_in_a_plugin_names_its_place(folder: Path, tags_dataset: Path, run_cli: RunCli) -> None:
    code = (folder / "tagging.py").read_text()
    (folder / "tagging.py").write_text(
        code.replace('return {"labels": labels_BT}', 'return {"labels": labels_BT.nothing}')
    )
    result = run_cli(*arguments(tags_dataset), "--dry-run", cwd=folder)
    assert result.returncode == 1
    assert re.search(r"raised in a plugin, at `.*tagging\.py:\d+`", result.stderr)


def test_a_wrong_metric_is_found_before_training(folder: Path, shapes_dataset: Path, run_cli: RunCli) -> None:
    sets = ("--set", f"data.dataset={shapes_dataset}", "--set", "train.best=text_to_image/recall@7")
    result = run_cli("train", "--config", "shapes", *sets, "--set", "train.batch_size=16", "--dry-run", cwd=folder)
    assert result.returncode == 1
    assert "`train.best: text_to_image/recall@7` is not a metric" in result.stderr


def test_the_docs_explain_these_very_modules() -> None:
    """Every Python block of docs/plugins.md is in a plugin, and every definition of the plugins is in the docs."""
    code, text = TAGGING.read_text(), (ROOT / "docs" / "plugins.md").read_text()
    code += (PLUGINS / "margin.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        assert block in code
    for name in re.findall(r"^(?:class|def) (\w+)", code, flags=re.MULTILINE):
        assert any(name in block for block in blocks), name
    (config,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert config in TAGGING.with_suffix(".yaml").read_text()
