"""The outputs of a frozen text encoder, computed once per caption and kept.

Shapes: B texts of a batch, N texts that are kept, F the encoder's width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from clipkit.data.device import move
from clipkit.models.modes import evaluating
from clipkit.types import Tokenizer

log = logging.getLogger(__name__)
BATCH_SIZE = 256


class RememberedTexts:
    """The outputs of a text encoder that does not change, computed for all texts on the first call.

    By then a resumed run has loaded its weights. The batches depend only on the texts, so that rounding is the same
    however often a run was interrupted.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Tokenizer, texts: Callable[[], Iterable[str]]) -> None:
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._texts = texts
        self._places: dict[str, int] = {}
        self._features_NF = torch.empty(0)

    def __call__(self, texts: Sequence[str], *, device: torch.device) -> Tensor:
        """(B, F) float32."""
        if not self._places:
            self._encode_all(device)
        places = move(torch.tensor([self._places[text] for text in texts]), device)
        return self._features_NF[places]

    def _encode_all(self, device: torch.device) -> None:
        texts = list(dict.fromkeys(self._texts()))
        log.info("encoding %s captions once: the text encoder stays frozen", f"{len(texts):,}")
        ids = self._tokenizer.encode(texts)
        by_length = sorted(range(len(texts)), key=lambda place: len(ids[place]))  # so that there is little padding
        parts = []
        with evaluating(self._encoder):
            for start in range(0, len(texts), BATCH_SIZE):
                tokens = self._tokenizer.pad([ids[place] for place in by_length[start : start + BATCH_SIZE]])
                on_device = {name: tensor.to(device) for name, tensor in tokens.items()}
                parts.append(self._encoder(**on_device).float())
        self._features_NF = torch.cat(parts)
        self._places = {texts[place]: index for index, place in enumerate(by_length)}
