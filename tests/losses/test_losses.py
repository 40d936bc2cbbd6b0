"""Every loss against the words of its paper or tutorial, on one rank, in tiles, and on several ranks (gloo)."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.config import Identity, InfoNCE, Ranking, Section, Sigmoid, SoftTargets, builder_of
from clipkit.distributed import Shares
from clipkit.losses import PairLoss, tiles
from clipkit.losses.identity import identity
from clipkit.losses.infonce import infonce
from clipkit.losses.ranking import ranking
from clipkit.losses.sigmoid import sigmoid
from clipkit.losses.soft_targets import soft_targets

WORKER = Path(__file__).parent.parent / "workers" / "rank_losses.py"
SCALE, BIAS = 7.0, -3.0


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * F.log_softmax(logits, dim=-1)).sum(1)


def naive_infonce(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    total = torch.zeros((), dtype=image.dtype)
    for a, b in ((image, text), (text, image)):
        for i in range(len(a)):
            logits = torch.stack([scale * (a[i] @ b[j]) for j in range(len(b))])
            total = total - torch.log(logits[i].exp() / logits.exp().sum())
    return total / (2 * len(image))


def naive_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    total = torch.zeros((), dtype=image.dtype)
    for i in range(len(image)):
        for j in range(len(text)):
            label = 1 if i == j else -1
            total = total - F.logsigmoid(label * (scale * (image[i] @ text[j]) + bias))
    return total / len(image)


def naive_soft_targets(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, temperature: float = 1.3) -> Tensor:
    """The Lance documentation's example, line by line."""
    logits = (text @ image.T) / temperature
    image_similarity = image @ image.T
    text_similarity = text @ text.T
    targets = F.softmax((image_similarity + text_similarity) / 2 * temperature, dim=-1)
    text_loss = cross_entropy(logits, targets)
    image_loss = cross_entropy(logits.T, targets.T)
    return ((image_loss + text_loss) / 2.0).mean()


def naive_ranking(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
    return -F.log_softmax(cosine, dim=1).diagonal().mean()


def naive_identity(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
    return torch.linalg.matrix_norm(cosine - torch.eye(len(image), dtype=image.dtype), ord="fro")


NAIVE = {
    "infonce": naive_infonce,
    "sigmoid": naive_sigmoid,
    "soft_targets": naive_soft_targets,
    "ranking": naive_ranking,
    "identity": naive_identity,
}


def ours(name: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    match name:
        case "infonce":
            return infonce(image, text, scale=scale)
        case "sigmoid":
            return sigmoid(image, text, scale=scale, bias=bias)
        case "soft_targets":
            return soft_targets(image, text, temperature=1.3)
        case "ranking":
            return ranking(image, text)
        case _:
            return identity(image, text)


def pairs(count: int = 13, dim: int = 6, *, normalize: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    image, text = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    if normalize:
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (SCALE, BIAS)]
    return [tensor.requires_grad_() for tensor in (image.contiguous(), text.contiguous(), *scalars)]


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    loss = function(*tensors)
    return [loss, *torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", NAIVE)
def test_loss_and_gradient_are_the_naive_versions(name: str, normalize: bool) -> None:
    tensors = pairs(normalize=normalize)
    expected = with_gradients(NAIVE[name], tensors)
    actual = with_gradients(lambda *t: ours(name, *t), tensors)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", NAIVE)
def test_tiles_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = pairs(37)
    expected = with_gradients(lambda *t: ours(name, *t), tensors)
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 37 * 5)
    actual = with_gradients(lambda *t: ours(name, *t), tensors)
    torch.testing.assert_close(actual, expected)


def test_a_large_batch_has_no_matrix_of_logits_in_memory() -> None:
    """From 4,096 to 10,240 pairs peak memory stays as it is, where one matrix of logits would be 419 MB."""
    code = """
import resource, torch
from clipkit.losses.infonce import infonce
torch.set_num_threads(1)
def peak_mb(count):
    image, text = torch.nn.functional.normalize(torch.randn(2, count, 16), dim=-1)
    infonce(image.requires_grad_(), text.requires_grad_(), scale=torch.tensor(10.0)).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
small = peak_mb(4096)
print(peak_mb(10240) - small)
"""
    returned_at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # else the allocator keeps what is freed
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=returned_at_once
    )
    assert int(done.stdout) < 60


def test_label_smoothing_is_torchs() -> None:
    image, text, scale, _ = pairs()
    logits = scale * image @ text.T
    own = torch.arange(len(image))
    expected = (
        F.cross_entropy(logits, own, label_smoothing=0.1) + F.cross_entropy(logits.T, own, label_smoothing=0.1)
    ) / 2
    torch.testing.assert_close(infonce(image, text, scale=scale, label_smoothing=0.1), expected)


def test_ranking_has_two_directions() -> None:
    image, text, *_ = pairs()
    turned = ranking(text, image, direction="text_to_image", temperature=0.2)
    torch.testing.assert_close(ranking(image, text, temperature=0.2), turned)
    assert ranking(image, text, direction="text_to_image") != ranking(image, text)


def test_identity_of_a_perfect_match_is_finite_and_still() -> None:
    image = torch.eye(4).requires_grad_()
    loss = identity(image, image)
    loss.backward()
    assert loss.item() < 1e-3
    assert image.grad is not None
    assert image.grad.abs().max() < 1e-3


def test_soft_targets_have_a_collapsed_minimum_of_sorts() -> None:
    """All embeddings alike is where the loss has no gradient: the known weakness of this baseline."""
    image = torch.ones(8, 4).requires_grad_()
    text = torch.ones(8, 4).requires_grad_()
    loss = soft_targets(image, text)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(8))
    assert image.grad is not None
    assert image.grad.abs().max() < 1e-6


def built(section: Section) -> PairLoss:
    loss: PairLoss = builder_of(section)(section)
    return loss


def test_chance_level_is_the_loss_of_embeddings_that_are_all_alike() -> None:
    alike = F.normalize(torch.ones(32, 4), dim=-1)
    for section in (InfoNCE(), Ranking()):
        loss = built(section)
        assert loss.chance(32) == pytest.approx(loss(alike, alike, shares=Shares((32,))).item())
    best = min(sigmoid(alike, alike, scale=1.0, bias=b / 100).item() for b in range(-600, 0))
    assert built(Sigmoid()).chance(32) == pytest.approx(best, rel=1e-3)
    assert built(SoftTargets()).chance(32) is None


@pytest.mark.parametrize(
    ("section", "function"),
    [
        (
            InfoNCE(temperature=0.2, label_smoothing=0.1),
            lambda image, text: infonce(image, text, scale=5.0, label_smoothing=0.1),
        ),
        (Sigmoid(temperature=0.2, bias=-4.0), lambda image, text: sigmoid(image, text, scale=5.0, bias=-4.0)),
        (SoftTargets(temperature=1.3), lambda image, text: soft_targets(image, text, temperature=1.3)),
        (
            Ranking(direction="text_to_image", temperature=0.2),
            lambda image, text: ranking(image, text, direction="text_to_image", temperature=0.2),
        ),
        (Identity(), identity),
    ],
    ids=list(NAIVE),
)
def test_a_section_builds_its_loss(section: Section, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    image, text = (side.detach().float() for side in pairs()[:2])
    torch.testing.assert_close(built(section)(image, text, shares=Shares((len(image),))), function(image, text))


def test_the_temperature_is_learned_where_the_section_says_so() -> None:
    def learned(section: Section) -> list[str]:
        return [name for name, _ in built(section).temperature.named_parameters()]

    assert learned(InfoNCE()) == ["log_scale"]
    assert learned(Sigmoid()) == ["log_scale", "bias"]
    assert learned(InfoNCE(learn_temperature=False)) == learned(SoftTargets()) == []
    assert built(SoftTargets(temperature=2.0)).temperature.scale().item() == pytest.approx(0.5)


@pytest.mark.parametrize(("world", "sizes"), [(2, [5, 8]), (4, [4, 4, 4, 4])])
def test_ranks_agree_with_one_process(world: int, sizes: list[int], tmp_path: Path) -> None:
    """The mean of the ranks' losses and gradients, weighted by pairs, is that of the global batch; also in tiles."""
    features = pairs(sum(sizes))
    torch.save({"sizes": sizes, "tensors": [t.detach() for t in features]}, tmp_path / "input.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(WORKER), str(tmp_path), str(rank), str(world)], env=environment)
        for rank in range(world)
    ]
    assert [process.wait(timeout=100) for process in ranks] == [0] * world
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(world)]
    for name in NAIVE:
        expected = with_gradients(NAIVE[name], features)
        for variant in (name, f"{name}, tiled"):
            parts = [result[variant] for result in results]
            actual = [torch.stack([part[0] for part in parts]).sum()]
            actual += [torch.cat([part[i] for part in parts]) for i in (1, 2)]
            actual += [torch.stack([part[i] for part in parts]).sum(0) for i in (3, 4)]
            torch.testing.assert_close(actual, expected, msg=lambda text, of=variant: f"{of}: {text}")
