"""The outputs of a frozen text encoder, computed once for each caption.

Shapes: B texts of a batch, N texts of all batches, F the width of the encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from clipkit.data.device import move
from clipkit.models.modes import evaluating
from clipkit.types import Progress, Tokenizer

log = logging.getLogger(__name__)
BATCH_SIZE = 256


class RememberedTexts:
    """The outputs of a text encoder that does not change, once `encode_all` has computed them for all texts.

    How the texts are batched depends only on the texts, so a resumed run has the same features bit for bit.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, texts: Callable[[], Iterable[str]]) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._texts = texts
        self._places: dict[str, int] = {}
        self._features_NF = torch.empty(0)

    @property
    def is_ready(self) -> bool:
        return bool(self._places)

    def __call__(self, texts: Sequence[str], *, device: torch.device) -> Tensor:
        """(B, F) float32."""
        places = move(torch.tensor([self._places[text] for text in texts]), device)
        return self._features_NF[places]

    def encode_all(self, device: torch.device, progress: Progress) -> None:
        texts = list(dict.fromkeys(self._texts()))
        log.info("encoding %s captions once: the text encoder stays frozen", f"{len(texts):,}")
        ids = self._tokenizer.encode(texts)
        by_length = sorted(range(len(texts)), key=lambda place: len(ids[place]))  # for little padding
        parts = []
        with evaluating(self._encoder):
            for start in range(0, len(texts), BATCH_SIZE):
                tokens = self._tokenizer.pad([ids[place] for place in by_length[start : start + BATCH_SIZE]])
                on_device = {name: tensor.to(device) for name, tensor in tokens.items()}
                parts.append(self._encoder(**on_device).float())
                progress(min(start + BATCH_SIZE, len(texts)), len(texts))
        self._features_NF = torch.cat(parts)
        self._places = {texts[place]: index for index, place in enumerate(by_length)}
