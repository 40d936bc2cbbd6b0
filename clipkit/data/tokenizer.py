"""Texts to padded token ids: the tokenizer of a published model, or a WordPiece tokenizer trained on the captions."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clipkit import hub
from clipkit.errors import ModelError, first_line

Padding = Literal["longest", "max"]
PAD_MULTIPLE = 8
REMEMBERED = 200_000  # texts whose ids are kept in memory
Ids = np.ndarray  # (T,) int32
NUM_PROBES = 64
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


class FastTokenizer:
    """A tokenizer of the `tokenizers` library with a length and padding; implements `types.Tokenizer`."""

    def __init__(self, library_tokenizer: Any, *, max_tokens: int, padding: Padding) -> None:
        """`library_tokenizer` is a fast tokenizer of transformers, which can also save itself."""
        self._library = library_tokenizer
        self._backend: tokenizers.Tokenizer = library_tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._vocabulary = hashlib.sha256(self._backend.to_str().encode()).hexdigest()
        self._backend.enable_truncation(max_tokens)
        self._max_tokens = max_tokens
        self._padding = padding
        self._memory: dict[str, Ids] = {}

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the size of the embedding table."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    @property
    def pad_token_id(self) -> int:
        for token_id in (self._library.pad_token_id, self._library.eos_token_id):
            if token_id is not None:
                return int(token_id)
        return 0

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    @property
    def num_remembered(self) -> int:
        return REMEMBERED

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the ids: the vocabulary, the rules and the length, but not the padding."""
        return hashlib.sha256(f"{self._vocabulary}:{self._max_tokens}".encode()).hexdigest()[:16]

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        return self.pad(self.encode(texts))

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text (int32), truncated to `max_tokens`, not padded; recent texts are cached."""
        memory = self._memory
        new = [text for text in dict.fromkeys(texts) if text not in memory]
        if len(memory) + len(new) > REMEMBERED:
            memory = {text: memory[text] for text in texts if text in memory}
        for text, encoding in zip(new, self._backend.encode_batch_fast(new) if new else (), strict=True):
            memory[text] = np.array(encoding.ids, dtype=np.int32)
        self._memory = memory
        return [memory[text] for text in texts]

    def pad(self, ids: Sequence[Ids]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, both (B, T); T is the longest length, rounded up to 8, or `max_tokens`."""
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        width = self._max_tokens
        if self._padding == "longest":
            longest = int(lengths.max(initial=1))
            width = min(width, -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE)
        mask = np.arange(width) < lengths[:, None]
        input_ids = np.full((len(ids), width), self.pad_token_id, dtype=np.int64)
        if len(ids):
            input_ids[mask] = np.concatenate(ids)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }

    def truncated_share(self, texts: Sequence[str]) -> float:
        """The share of texts that are longer than `max_tokens`."""
        if not texts:
            return 0.0
        encodings = self._backend.encode_batch_fast(list(texts))
        return sum(bool(encoding.overflowing) for encoding in encodings) / len(texts)

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` and transformers read."""
        library = copy.deepcopy(self._library)  # the loader's threads encode with this one meanwhile
        library.backend_tokenizer.no_truncation()
        library.save_pretrained(str(folder))


def load_tokenizer(source: str | Path, *, max_tokens: int, padding: Padding) -> FastTokenizer:
    """The tokenizer of a local folder, or of a model on the Hugging Face hub by its name."""
    name = str(source)
    if name.startswith((".", os.sep, "~")) and not Path(name).is_dir():
        raise ModelError(f"there is no tokenizer folder `{name}`", hub.OFFLINE_TEXT_HINT)
    try:
        with hub.one_attempt(name):
            library = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more
        raise ModelError(
            f"the tokenizer of `{name}` cannot be loaded: {first_line(error)}", hub.OFFLINE_TEXT_HINT
        ) from error
    if not getattr(library, "is_fast", False):
        raise ModelError(f"the tokenizer of `{name}` has no fast version", "use a model with a `tokenizer.json`")
    tokenizer = FastTokenizer(library, max_tokens=max_tokens, padding=padding)
    check_vocabulary(tokenizer, name=name)
    return tokenizer


def check_vocabulary(tokenizer: FastTokenizer, *, name: str) -> None:
    """Raise ModelError if a tokenizer does not recognise the words of its own vocabulary.

    transformers can load one without its vocabulary, and then every word silently becomes the unknown token.
    """
    backend = tokenizer._backend
    special = set(tokenizer._library.all_special_ids)
    vocabulary = sorted(backend.get_vocab(with_added_tokens=False).items())
    words = [word for word, index in vocabulary if index not in special and word.isalpha()]
    probes = words[:: max(1, len(words) // NUM_PROBES)]
    if not any(set(encoding.ids) - special for encoding in backend.encode_batch_fast(probes)):
        raise ModelError(
            f"the tokenizer of `{name}` maps every word to its unknown token",
            "its vocabulary was not loaded: the folder needs a `tokenizer.json`, or a `vocab.txt` and a `config.json` "
            "with the model's type",
        )


def train_tokenizer(
    captions: Iterable[str], *, vocab_size: int, lowercase: bool, max_tokens: int, padding: Padding
) -> FastTokenizer:
    """A BERT-like WordPiece tokenizer trained on these captions; the same captions give the same tokenizer.

    Accents are kept, composed (NFC).
    """
    captions = list(captions)
    normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.BertNormalizer(clean_text=True, strip_accents=False, lowercase=lowercase),
        ]
    )
    special = list(SPECIAL_TOKENS.values())
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The library numbers letters in the order of a hash table, which breaks ties between pieces at random. As special
    # tokens they are numbered in order. The tokenizer that is built from the vocabulary treats them as usual.
    letters = _letters(normalizer.normalize_str(caption) for caption in captions)
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=[*special, *letters], show_progress=False)
    trained.train_from_iterator(captions, trainer)
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=trained.get_vocab(), unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    library = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_tokens, **SPECIAL_TOKENS)
    return FastTokenizer(library, max_tokens=max_tokens, padding=padding)


def _letters(texts: Iterable[str]) -> list[str]:
    """The letters that start a word and those that continue one (`##a`), sorted."""
    first: set[str] = set()
    later: set[str] = set()
    for text in texts:
        for word in text.split():
            first.update(word)  # punctuation splits a word, so any letter can be a first one
            later.update(word[1:])
    return [*sorted(first), *(f"##{letter}" for letter in sorted(later))]
