"""A trained model is opened by its run or its checkpoint, and embeds files, bytes and texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import clipkit
from clipkit.errors import CheckpointError, DataError
from clipkit.opening import open_model

RUN = Path(__file__).parent / "fixtures" / "run_before" / "run"
CHECKPOINT = RUN / "checkpoints" / "step-00000004"


def test_a_checkpoint_is_opened_by_its_run_or_by_its_folder() -> None:
    assert clipkit.load(RUN).checkpoint == open_model(CHECKPOINT).checkpoint == CHECKPOINT
    with pytest.raises(CheckpointError, match="is itself a checkpoint"):
        open_model(CHECKPOINT, checkpoint="last")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, copy)
    config, meta = copy / "config.yaml", copy / "meta.json"
    config.write_text(config.read_text().replace("embedding_dim: 16", "embedding_dim: 8"))
    content = json.loads(meta.read_text())
    del content["files"]["config.yaml"]  # its checksum
    meta.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="do not fit the model"):
        open_model(copy)


def test_files_bytes_and_texts_are_embedded(shapes_dir: Path, tmp_path: Path) -> None:
    model = open_model(RUN)
    files = sorted((shapes_dir / "Images").iterdir())[:3]
    vectors = model.encode_images([files[0], files[1].read_bytes(), files[2]], batch_size=2)
    assert vectors.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.encode_images(files), vectors, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(model.encode_images([str(files[0])]), model.encode_images([files[0]]))
    assert model.encode_texts([]).shape == (0, 16)
    texts = model.encode_texts(["a red circle", "a blue star"])
    assert texts.shape == (2, 16)
    np.testing.assert_allclose(model.encode_texts("a red circle"), texts[:1], atol=1e-6)
    (tmp_path / "torn.jpg").write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"torn\.jpg"):
        model.encode_images([tmp_path / "torn.jpg"])
