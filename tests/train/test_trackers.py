"""`metrics.jsonl` is always written; trackers get the same numbers."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipkit.errors import MissingExtra
from clipkit.runs.folder import Run
from clipkit.runs.metrics import cut_metrics, read_metrics
from clipkit.train.trackers import MetricsLog, MlFlow, TensorBoard, Tracker, WeightsAndBiases, open_trackers

TRAINING = {"step": 1, "loss": 0.5, "lr": {"heads": 0.25}}
VALIDATION = {"step": 2, "split": "dev", "text_to_image": {"recall@1": 0.125}}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run.create(tmp_path / "run", config="run: {}\n", facts={})
    yield run
    run.unlock()


def write(run: Run, tracker: Tracker) -> None:
    log = MetricsLog(run, [tracker])
    log.write(TRAINING)
    log.write(VALIDATION)
    log.close()


def test_lines_are_json_and_numbers_that_are_not_finite_are_null(run: Run) -> None:
    log = MetricsLog(run, [])
    log.write({**TRAINING, "loss": float("nan"), "lr": {"heads": float("inf")}})
    log.close()
    text = (run.folder / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "lr": {"heads": None}}
    assert read_metrics(run.folder) == [json.loads(text)]


def test_tensorboard(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(run, TensorBoard(run.folder, 0))
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        "loss": [(1, 0.5)],
        "lr/heads": [(1, 0.25)],
        "text_to_image/recall@1": [(2, 0.125)],
    }


def test_weights_and_biases_offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(run, WeightsAndBiases(run.folder, run.id, "name", {"run": {"seed": 0}}))
    assert len(list(run.folder.glob(f"wandb/offline-run-*/run-{run.id}.wandb"))) == 1


@pytest.mark.filterwarnings("ignore:The ``noload``")  # within MLflow
def test_mlflow_in_the_run_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(run.folder)
    for _ in range(2):  # a resume continues the same run
        write(run, MlFlow(run.folder, run.id, "name", {"run": {"seed": 0}}))
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert found.data.metrics == {"loss": 0.5, "lr/heads": 0.25, "text_to_image/recall_at_1": 0.125}
    mlflow.set_tracking_uri(None)


def interrupted(run: Run, tracker: str) -> None:
    """Four steps, of which a resume repeats the last two, and two more."""
    for step, last in ((0, 4), (2, 6)):
        cut = cut_metrics(run.folder, step)
        log = MetricsLog(run, open_trackers([tracker], run, name="name", config={}, step=step), cut=cut)
        for done in range(step + 1, last + 1):
            log.write({"step": done, "loss": 1 / done})
        log.write({"step": last, "split": "dev", "recall": 0.5})
        log.close()
        time.sleep(1)  # TensorBoard reads its files in the order of their names, which have seconds


def test_tensorboard_continues_where_the_run_does(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(run, "tensorboard")
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.filterwarnings("ignore:The ``noload``")  # within MLflow
def test_mlflow_gets_no_step_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(run.folder)
    interrupted(run, "mlflow")
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    client = mlflow.MlflowClient()
    steps = {key: [m.step for m in client.get_metric_history(found.info.run_id, key)] for key in ("loss", "recall")}
    assert steps == {"loss": [1, 2, 3, 4, 5, 6], "recall": [4, 6]}
    mlflow.set_tracking_uri(None)


def test_weights_and_biases_gets_no_step_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    interrupted(run, "wandb")
    files = sorted(run.folder.glob(f"wandb/offline-run-*/run-{run.id}.wandb"))
    assert [step for file in files for step in wandb_steps(file)] == [1, 2, 3, 4, 5, 6]


def wandb_steps(file: Path) -> list[int]:
    """The steps whose numbers an offline file holds: records in blocks of 32 kB, as LevelDB logs have them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, steps, parts = file.read_bytes(), 7, [], b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
        _, size, kind = struct.unpack_from("<IHB", data, offset)
        parts += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
    return steps


def test_a_tracker_that_is_not_installed_names_its_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingExtra, match="`wandb` is not installed") as caught:
        open_trackers(["wandb"], run, name="name", config={})
    assert "clipkit-train[wandb]" in caught.value.hint
