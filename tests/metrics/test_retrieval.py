"""Retrieval metrics against brute force, and in the cases where a careless one flatters the model."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.metrics import retrieval as metrics


def gallery(num_images: int, captions: list[int], dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(num_images), torch.tensor(captions))
    image = F.normalize(torch.randn(num_images, dim, generator=generator), dim=-1)
    text = F.normalize(image[owner] + 1.5 * torch.randn(len(owner), dim, generator=generator), dim=-1)
    return image, text, owner


def brute_force(image: Tensor, text: Tensor, owner: Tensor) -> tuple[list[int], list[int]]:
    similarity = (text.double() @ image.double().T).tolist()
    text_to_image = []
    for caption, row in enumerate(similarity):
        own = row[owner[caption]]
        text_to_image.append(1 + sum(value >= own for i, value in enumerate(row) if i != owner[caption]))
    image_to_text = []
    for i in range(len(image)):
        mine = [caption for caption in range(len(text)) if owner[caption] == i]
        if mine:
            best = max(similarity[caption][i] for caption in mine)
            others = (similarity[caption][i] for caption in range(len(text)) if owner[caption] != i)
            image_to_text.append(1 + sum(value >= best for value in others))
    return text_to_image, image_to_text


@pytest.mark.parametrize("tile", [7, 2**23])
@pytest.mark.parametrize("captions", [[5] * 20, [1, 3, 0, 7, 2] * 4])
def test_ranks_are_brute_forces(captions: list[int], tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "TILE_ELEMENTS", tile)
    image, text, owner = gallery(20, captions)
    text_to_image, image_to_text = brute_force(image, text, owner)
    assert metrics.text_to_image_ranks(text, image, owner).tolist() == text_to_image
    assert metrics.image_to_text_ranks(image, text, owner).tolist() == image_to_text


def test_summary_counts_by_hand() -> None:
    assert metrics.summarize(torch.tensor([1, 1, 4, 6, 11, 100])) == {
        "recall@1": pytest.approx(2 / 6),
        "recall@5": pytest.approx(3 / 6),
        "recall@10": pytest.approx(4 / 6),
        "median_rank": 5.0,
        "mean_rank": pytest.approx(123 / 6),
    }
    assert metrics.summarize(torch.tensor([3, 1, 2]))["median_rank"] == 2.0


def test_a_collapsed_model_has_no_recall() -> None:
    image = F.normalize(torch.ones(40, 8), dim=-1)
    text = F.normalize(torch.ones(80, 8), dim=-1)
    owner = torch.arange(40).repeat_interleave(2)
    result = metrics.retrieval(image, text, owner)
    assert result["text_to_image"]["recall@10"] == 0
    assert result["text_to_image"]["median_rank"] == 40
    assert result["image_to_text"]["recall@10"] == 0
    assert result["image_to_text"]["mean_rank"] == 79


def test_differences_of_rounding_are_ties() -> None:
    image = F.normalize(torch.ones(3, 64), dim=-1)
    text = image.clone()
    image[0] *= 1 + 2e-7  # nearer to every caption by less than a rounding
    assert metrics.text_to_image_ranks(text, image, torch.arange(3)).tolist() == [3, 3, 3]


def test_autocast_leaves_the_numbers_as_they_are() -> None:
    """Training validates under autocast: similarities in bfloat16 would be ties."""
    image, text, owner = gallery(200, [3] * 200, dim=64)
    image, text = (F.normalize(side + 3, dim=-1) for side in (image, text))  # all of them near each other
    pairs = torch.arange(200).view(-1, 2)
    expected = metrics.retrieval(image, text, owner), metrics.pair_accuracy(image, text, owner, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = metrics.retrieval(image, text, owner), metrics.pair_accuracy(image, text, owner, pairs)
    assert actual == expected


def test_what_is_not_a_number_counts_against_the_model() -> None:
    image, text, owner = gallery(10, [2] * 10)
    image[:] = torch.nan
    result = metrics.retrieval(image, text, owner)
    assert result["text_to_image"]["recall@1"] == 0
    assert result["image_to_text"]["recall@1"] == 0


def test_a_perfect_model_is_perfect() -> None:
    image = torch.eye(12)
    owner = torch.arange(12).repeat_interleave(5)
    result = metrics.retrieval(image, image[owner], owner)
    for direction in result.values():
        assert direction == {"recall@1": 1, "recall@5": 1, "recall@10": 1, "median_rank": 1, "mean_rank": 1}


def test_pairs_are_told_apart_or_not() -> None:
    image = torch.eye(4)
    text = torch.stack([image[0], image[1], image[0], image[2] + image[3]])
    owner = torch.tensor([0, 1, 1, 2])
    assert metrics.pair_accuracy(image, text, owner, torch.tensor([[0, 1]])) == pytest.approx(2 / 3)
    assert metrics.pair_accuracy(image, text, owner, torch.tensor([[2, 3]])) == 0  # a tie
