"""Retrieval of real rows: the same numbers on any number of ranks, and the model left as it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
import torch
from small_task import make_retrieval, make_task

from clipkit.config import Retrieval as Section
from clipkit.errors import ConfigError, DataError
from clipkit.evaluators import EvaluatorContext, build_evaluator
from clipkit.evaluators.gallery import Gallery
from clipkit.evaluators.retrieval import Retrieval
from clipkit.metrics.retrieval import retrieval
from clipkit.store import Dataset
from clipkit.tasks import BaseTask
from clipkit.tasks.contrastive import ContrastiveTask
from clipkit.types import Ranks

WORKER = Path(__file__).parent.parent / "workers" / "rank_evaluation.py"


@pytest.fixture(scope="module")
def task(shapes_dataset: Path) -> ContrastiveTask:
    return make_task(shapes_dataset)


def evaluate_on(world: int, folder: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder), str(rank), str(world)], env=environment)
        for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in ranks] == [0] * world
    return [json.loads((folder / f"world{world}rank{rank}.json").read_text()) for rank in range(world)]


def test_ranks_share_the_gallery_exactly(shapes_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes_dataset, tmp_path / "shapes.lance")
    task = make_task(tmp_path / "shapes.lance")
    task.model.text_encoder.eval()  # as a frozen encoder is while the rest trains
    alone = make_retrieval(tmp_path / "shapes.lance", task).run(task.model, Ranks())
    assert task.model.image_encoder.training
    assert not task.model.text_encoder.training
    assert alone["text_to_image"]["mean_rank"] > 1
    for shared in evaluate_on(2, tmp_path):
        for direction in ("text_to_image", "image_to_text"):
            assert shared[direction] == pytest.approx(alone[direction], rel=0.02)
        assert shared["embeddings"] == pytest.approx(alone["embeddings"], rel=1e-3)


def test_a_gallery_is_every_image_and_caption_of_its_rows(
    shapes_dataset: Path, task: ContrastiveTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the batches; also with an image that cannot be decoded, and one without a caption."""
    rows = lance.dataset(shapes_dataset).to_table().slice(0, 12).to_pylist()
    rows[3]["image"], rows[5]["captions"] = b"damaged", []
    schema = lance.dataset(shapes_dataset).schema
    lance.write_dataset(lance.dataset(shapes_dataset).to_table().from_pylist(rows, schema), tmp_path / "a.lance")
    dataset, chosen = Dataset(tmp_path / "a.lance"), np.array([1, 3, 5, 8])
    data = make_retrieval(shapes_dataset, task)._context.data
    galleries = [Gallery(EvaluatorContext(task, dataset, chosen, data, batch_size=size)) for size in (2, 64)]
    embedded = [gallery.embed(task.model, Ranks()) for gallery in galleries]
    torch.testing.assert_close(embedded[0], embedded[1], rtol=1e-4, atol=1e-5)
    assert "1 images cannot be decoded" in caplog.text
    captions = [rows[row]["captions"] for row in chosen]
    owners = np.repeat(np.arange(4), [len(of_image) for of_image in captions]).tolist()
    assert galleries[0].caption_to_image.tolist() == owners
    image_ND, text_MD = embedded[0]
    with torch.no_grad():
        task.model.eval()
        assert task.text.tokenizer is not None
        expected = task.model.encode_text(task.text.tokenizer([text for of_image in captions for text in of_image]))
        black = task.model.encode_image({"pixels": torch.zeros(1, 32, 32, 3, dtype=torch.uint8)})
    torch.testing.assert_close(text_MD, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image_ND[1:2], black, rtol=1e-4, atol=1e-5)
    report = Retrieval(galleries[0]._context).report(task.model, picture=tmp_path / "picture.png")
    assert (report["num_images"], report["num_captions"]) == (4, len(owners))
    ranks = retrieval(image_ND, text_MD, torch.tensor(owners))
    assert report["text_to_image"] == pytest.approx(ranks["text_to_image"])
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_what_cannot_be_measured_is_refused(shapes_dataset: Path, task: ContrastiveTask, tmp_path: Path) -> None:
    table = lance.dataset(shapes_dataset).to_table().slice(0, 2)
    bare = table.from_pylist([{**row, "captions": []} for row in table.to_pylist()], table.schema)
    lance.write_dataset(bare, tmp_path / "bare.lance")
    dataset, data = Dataset(tmp_path / "bare.lance"), make_retrieval(shapes_dataset, task)._context.data
    with pytest.raises(DataError, match="have no captions"):
        build_evaluator(Section(), EvaluatorContext(task, dataset, np.arange(2), data, batch_size=2))
    other: Any = BaseTask(torch.nn.Linear(1, 1), {})
    with pytest.raises(ConfigError, match="embeds images and texts"):
        build_evaluator(Section(), EvaluatorContext(other, dataset, np.arange(2), data, batch_size=2))
