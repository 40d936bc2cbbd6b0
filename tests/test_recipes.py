"""The configs of two tutorials build the models, batches and losses that the tutorials describe.

Only the weights differ: small text encoders of the same families, from scratch, and no image weights.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.optim import Adam
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from clipkit.data.tokenizer import train_tokenizer
from clipkit.models import DualEncoder
from clipkit.store import Dataset
from clipkit.train.session import open_session
from clipkit.types import Batch
from clipkit.workflows.train import Training, build_training

CONFIGS = Path(__file__).parent.parent / "configs"


def build(name: str, shapes_dataset: Path, text_model: BertModel | DistilBertModel, folder: Path) -> Training:
    captions = ["a red circle is left of a blue star", "two dogs"]
    train_tokenizer(captions, vocab_size=200, lowercase=False, max_tokens=512, padding="max").save(folder)
    text_model.save_pretrained(folder)
    sets = ["model.image.pretrained=false", "train.threads=1"]
    sets += [f"data.dataset={shapes_dataset}", f"model.text.name={folder}"]
    return build_training(open_session(CONFIGS / f"{name}.yaml", sets), torch.device("cpu"))


def rates_and_decay(built: Training) -> dict[str, tuple[float, float]]:
    optimizer = built.engine.optimizer
    assert type(optimizer) is Adam
    groups = {group["group"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(built.task.model.parameters()))
    assert all((group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8) for group in optimizer.param_groups)
    return groups


def first_batches(built: Training, count: int) -> Iterator[Batch]:
    with closing(built.loader), closing(built.loader.iterate(0, count)) as batches:
        yield from batches


def test_the_lance_tutorial(shapes_dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=300, num_hidden_layers=1))
    built = build("lance-clip", shapes_dataset, bert, tmp_path)
    model = built.task.model
    assert isinstance(model, DualEncoder)
    assert rates_and_decay(built) == {"image_encoder": (1e-4, 0), "text_encoder": (1e-5, 0), "heads": (1e-3, 0)}
    assert (built.engine.plan.total_steps, built.engine.precision.name) == (2 * 8, "fp32")  # 240 images: 7.5 batches
    *_, last = batches = list(first_batches(built, 8))
    assert [len(batch) for batch in batches] == [32] * 7 + [16]
    rows = Dataset(shapes_dataset).lance.to_table(columns=["image_id", "captions"]).to_pylist()
    assert [image_id for batch in batches for image_id in batch.image_ids] == [row["image_id"] for row in rows]
    assert batches[0].captions == [max(row["captions"], key=len) for row in rows[:32]]
    assert last["pixels"].shape == (16, 128, 128, 3)
    assert last["input_ids"].shape == (16, 18)

    model.eval()
    with torch.no_grad():
        loss = built.task.loss(last).loss
        pixels = (last["pixels"].permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        image = model.image_encoder(pixels)
        text = model.text_encoder.model(last["input_ids"], last["attention_mask"]).last_hidden_state[:, 0]
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


def test_the_docarray_tutorial(shapes_dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = DistilBertModel(DistilBertConfig(vocab_size=300, n_layers=1))
    built = build("docarray-clip", shapes_dataset, bert, tmp_path)
    model = built.task.model
    assert isinstance(model, DualEncoder)
    assert rates_and_decay(built) == dict.fromkeys(("image_encoder", "text_encoder", "heads"), (3e-4, 0))
    assert built.loader.num_samples == 5 * 240
    assert built.engine.plan.total_steps == 19
    assert built.engine.precision.scaler is None
    (batch,) = first_batches(built, 1)
    assert batch["pixels"].shape == (64, 224, 224, 3)
    assert batch["input_ids"].shape == (64, 512)
    assert not (batch.rows[1:] > batch.rows[:-1]).all()

    model.eval()
    part = slice(0, 6)
    with torch.no_grad():
        mask = batch["attention_mask"][part]
        hidden = model.text_encoder.model(batch["input_ids"][part], mask).last_hidden_state
        text = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        outputs = model.image_encoder((batch["pixels"][part].permute(0, 3, 1, 2) / 255 - mean) / std)
        assert outputs.shape[1] == 1000
        image = F.linear(outputs, *model.image_head.state_dict().values())
        assert image.shape[1] == text.shape[1] == 768
        expected = torch.linalg.norm(F.cosine_similarity(image[:, None], text[None], dim=-1) - torch.eye(6))
        embedded = model.encode_image({"pixels": batch["pixels"][part]}), F.normalize(text, dim=-1)
        torch.testing.assert_close(built.task.loss_of(embedded, batch).loss, expected, rtol=1e-4, atol=1e-4)
