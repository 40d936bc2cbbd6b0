"""The recipes of others that users come from: what their configs build, against the tutorials' own words.

Only the weights are others: small text encoders of the same families from scratch, and no image weights.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from torch.nn import functional as F
from torch.optim import Adam
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from clipkit.data.tokenizer import train_tokenizer
from clipkit.models import DualEncoder
from clipkit.store import Dataset
from clipkit.train.session import open_session
from clipkit.types import Batch
from clipkit.workflows.train import Parts, build_parts

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module")
def dataset(
    shapes_dir: Path, tmp_path_factory: pytest.TempPathFactory, run_cli: Callable[..., CompletedProcess[str]]
) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "shapes.lance"
    done = run_cli("ingest", shapes_dir, path)
    assert done.returncode == 0, done.stderr
    return path


def build(name: str, dataset: Path, text_model: BertModel | DistilBertModel, folder: Path) -> Parts:
    captions = ["a red circle is left of a blue star", "two dogs"]
    train_tokenizer(captions, vocab_size=200, lowercase=False, max_tokens=512, padding="max").save(folder)
    text_model.save_pretrained(folder)
    sets = [f"data.dataset={dataset}", f"model.text.name={folder}", "model.image.pretrained=false", "train.threads=1"]
    return build_parts(open_session(CONFIGS / f"{name}.yaml", sets), torch.device("cpu"))


def rates_and_decay(parts: Parts) -> dict[str, tuple[float, float]]:
    optimizer = parts.engine.optimizer
    assert type(optimizer) is Adam
    groups = {group["group"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(parts.task.model.parameters()))
    assert all((group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8) for group in optimizer.param_groups)
    return groups


def first_batches(parts: Parts, count: int) -> Iterator[Batch]:
    with closing(parts.loader), closing(parts.loader.iterate(0, count)) as batches:
        yield from batches


def test_the_lance_tutorial(dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=300, num_hidden_layers=1))
    parts = build("lance-clip", dataset, bert, tmp_path)
    model = parts.task.model
    assert isinstance(model, DualEncoder)
    assert rates_and_decay(parts) == {"image_encoder": (1e-4, 0), "text_encoder": (1e-5, 0), "heads": (1e-3, 0)}
    assert (parts.engine.plan.total_steps, parts.engine.precision.name) == (2 * 8, "fp32")  # 240 images: 7.5 batches
    *_, last = batches = list(first_batches(parts, 8))
    assert [len(batch) for batch in batches] == [32] * 7 + [16]
    rows = Dataset(dataset).lance.to_table(columns=["image_id", "captions"]).to_pylist()
    assert [image_id for batch in batches for image_id in batch.image_ids] == [row["image_id"] for row in rows]
    assert batches[0].captions == [max(row["captions"], key=len) for row in rows[:32]]
    assert last.images is not None
    assert last.tokens is not None
    assert last.images.shape == (16, 128, 128, 3)
    assert last.tokens.input_ids.shape == (16, 18)

    model.eval()
    with torch.no_grad():
        loss = parts.task.loss(parts.task.encode(last)).loss
        pixels = (last.images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        image = model.image_encoder(pixels)
        text = model.text_encoder.model(last.tokens.input_ids, last.tokens.attention_mask).last_hidden_state[:, 0]
        assert (image.shape[1], text.shape[1]) == (2048, 768)
        image, text = (head_by_hand(head, x) for head, x in ((model.image_head, image), (model.text_head, text)))
        logits = text @ image.T
        targets = ((image @ image.T + text @ text.T) / 2).softmax(-1)
        text_loss = -(targets * logits.log_softmax(-1)).sum(1)
        image_loss = -(targets.T * logits.T.log_softmax(-1)).sum(1)
    torch.testing.assert_close(loss, ((text_loss + image_loss) / 2).mean())


def head_by_hand(head: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    weights = head.state_dict()
    projected = F.linear(x, weights["projection.weight"], weights["projection.bias"])
    mixed = F.linear(F.gelu(projected), weights["linear.weight"], weights["linear.bias"])
    assert [module.p for module in head.modules() if isinstance(module, torch.nn.Dropout)] == [0.3]
    assert projected.shape[1] == 256
    return F.layer_norm(mixed + projected, (256,), weights["norm.weight"], weights["norm.bias"])


def test_the_docarray_tutorial(dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = DistilBertModel(DistilBertConfig(vocab_size=300, n_layers=1))
    parts = build("docarray-clip", dataset, bert, tmp_path)
    model = parts.task.model
    assert isinstance(model, DualEncoder)
    assert rates_and_decay(parts) == dict.fromkeys(("image_encoder", "text_encoder", "heads"), (3e-4, 0))
    assert parts.loader.num_samples == 5 * 240
    assert parts.engine.plan.total_steps == 19
    assert parts.engine.precision.scaler is None
    (batch,) = first_batches(parts, 1)
    assert batch.images is not None
    assert batch.tokens is not None
    assert batch.images.shape == (64, 224, 224, 3)
    assert batch.tokens.input_ids.shape == (64, 512)
    assert not (batch.rows[1:] > batch.rows[:-1]).all()

    model.eval()
    part = slice(0, 6)
    with torch.no_grad():
        mask = batch.tokens.attention_mask[part]
        hidden = model.text_encoder.model(batch.tokens.input_ids[part], mask).last_hidden_state
        text = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        outputs = model.image_encoder((batch.images[part].permute(0, 3, 1, 2) / 255 - mean) / std)
        assert outputs.shape[1] == 1000
        image = F.linear(outputs, *model.image_head.state_dict().values())
        assert image.shape[1] == text.shape[1] == 768
        expected = torch.linalg.norm(F.cosine_similarity(image[:, None], text[None], dim=-1) - torch.eye(6))
        embedded = model.encode_image(batch.images[part]), F.normalize(text, dim=-1)
        torch.testing.assert_close(parts.task.loss(embedded).loss, expected, rtol=1e-4, atol=1e-4)
