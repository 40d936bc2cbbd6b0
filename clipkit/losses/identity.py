"""The Frobenius distance between the cosine similarity matrix and the identity."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from clipkit.config import Identity
from clipkit.distributed import Shares, total
from clipkit.losses.base import PairLoss


def identity(image_BD: Tensor, text_BD: Tensor, *, shares: Shares | None = None) -> Tensor:
    """The Frobenius distance between the cosine similarity matrix C = I T' and the identity.

    |C - 1|^2 = <I'I, T'T> - 2 tr C + N, so two D x D matrices are summed over ranks and C itself is never computed.
    """
    shares = shares or Shares((len(image_BD),))
    image_BD, text_BD = F.normalize(image_BD, dim=-1), F.normalize(text_BD, dim=-1)
    image_gram_DD = total(image_BD.T @ image_BD, shares)
    text_gram_DD = total(text_BD.T @ text_BD, shares)
    trace = total((image_BD * text_BD).sum(), shares)
    squared = (image_gram_DD * text_gram_DD).sum() - 2 * trace + shares.total
    return squared.clamp(min=1e-12).sqrt()  # rounding can make a perfect match negative


class IdentityLoss(PairLoss):
    def __init__(self, section: Identity) -> None:
        super().__init__()

    def __call__(self, image_BD: Tensor, text_BD: Tensor, *, shares: Shares) -> Tensor:
        return identity(image_BD, text_BD, shares=shares)
