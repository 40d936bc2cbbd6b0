"""Tokenizers: what they keep, cut and pad, and the silent ways of losing a vocabulary."""

from __future__ import annotations

import csv
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertTokenizerFast

from clipkit.data.tokenizer import FastTokenizer, check_vocabulary, load_tokenizer, train_tokenizer
from clipkit.errors import ModelError

CAPTIONS = ["Một con chó đang đứng trên bãi cỏ", "une fille élève la main", "a dog runs", "A Dog barks loudly"]


@pytest.fixture(scope="module")
def real_captions(flickr8k_dir: Path) -> list[str]:
    with (flickr8k_dir / "captions.txt").open(encoding="utf-8", newline="") as file:
        return [row[1] for row in csv.reader(file)][1:2001]


def trained(**options: object) -> FastTokenizer:
    values = {"vocab_size": 300, "lowercase": True, "max_tokens": 16, "padding": "longest", **options}
    return train_tokenizer(CAPTIONS * 3, **values)  # type: ignore[arg-type]


def test_a_trained_tokenizer_keeps_accents() -> None:
    tokenizer = trained()
    (with_accents, without) = tokenizer.encode(["đứng", "đung"])
    assert with_accents.tolist() != without.tolist()
    decoded = tokenizer._library.decode(with_accents, skip_special_tokens=True)
    assert decoded.replace(" ", "") == "đứng"
    assert tokenizer.encode(["e\u0301le\u0300ve"])[0].tolist() == tokenizer.encode(["élève"])[0].tolist()


def test_case_is_kept_where_asked() -> None:
    lower, cased = trained(), trained(lowercase=False)
    assert lower.encode(["A Dog"])[0].tolist() == lower.encode(["a dog"])[0].tolist()
    assert cased.encode(["A Dog"])[0].tolist() != cased.encode(["a dog"])[0].tolist()


def test_training_is_deterministic() -> None:
    assert trained().fingerprint == trained().fingerprint
    assert trained().fingerprint != trained(lowercase=False).fingerprint


def test_padding_is_to_the_longest_rounded_up_or_to_the_most(minilm_dir: Path) -> None:
    texts = ["a dog", "a dog runs over the green grass in the park today"]
    longest = load_tokenizer(minilm_dir, max_tokens=32, padding="longest")(texts)
    assert longest["input_ids"].shape == (2, 16)
    assert longest["attention_mask"].sum(1).tolist() == [4, 13]
    assert load_tokenizer(minilm_dir, max_tokens=32, padding="max")(texts)["input_ids"].shape == (2, 32)
    assert load_tokenizer(minilm_dir, max_tokens=10, padding="longest")(texts)["input_ids"].shape == (2, 10)


def test_ids_are_those_of_the_library(minilm_dir: Path, real_captions: list[str]) -> None:
    tokenizer = load_tokenizer(minilm_dir, max_tokens=18, padding="max")
    expected = AutoTokenizer.from_pretrained(minilm_dir)(
        real_captions, padding="max_length", truncation=True, max_length=18, return_tensors="pt"
    )
    for _ in range(2):  # the second time from memory
        tokens = tokenizer(real_captions)
        assert torch.equal(tokens["input_ids"], expected["input_ids"])
        assert torch.equal(tokens["attention_mask"], expected["attention_mask"])


def test_truncated_share(minilm_dir: Path, real_captions: list[str]) -> None:
    shares = [
        load_tokenizer(minilm_dir, max_tokens=length, padding="max").truncated_share(real_captions)
        for length in (8, 18, 64)
    ]
    assert shares[0] > 0.8
    assert shares[0] > shares[1] > shares[2] == 0.0


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    tokenizer = trained()
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer", max_tokens=16, padding="longest")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.pad_token_id == tokenizer.pad_token_id
    assert torch.equal(loaded(CAPTIONS)["input_ids"], tokenizer(CAPTIONS)["input_ids"])
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(copy(CAPTIONS)["input_ids"], tokenizer(CAPTIONS)["input_ids"])


def test_it_is_saved_while_another_thread_encodes_with_it(tmp_path: Path) -> None:
    tokenizer = trained(max_tokens=8)
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            tokenizer.save(tmp_path)
            tokenizer.truncated_share(CAPTIONS)

    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(save)
        try:
            batches = [tokenizer([f"a dog {number} barks loudly at dogs" for _ in range(8)]) for number in range(3000)]
        finally:
            stop.set()
        saving.result()
    assert {batch["input_ids"].shape for batch in batches} == {(8, 8)}


def test_real_captions_are_hardly_ever_unknown(minilm_dir: Path, real_captions: list[str], tmp_path: Path) -> None:
    """A folder with nothing but `vocab.txt` and the model's type works too."""
    for name in ("vocab.txt", "config.json"):
        shutil.copy(minilm_dir / name, tmp_path / name)
    whole = load_tokenizer(minilm_dir, max_tokens=32, padding="max")
    bare = load_tokenizer(tmp_path, max_tokens=32, padding="max")
    unknown = whole._library.unk_token_id
    for tokenizer in (whole, bare):
        ids = tokenizer(real_captions)["input_ids"]
        assert (ids == unknown).float().mean() < 0.001


def test_a_tokenizer_without_its_vocabulary_is_refused(minilm_dir: Path) -> None:
    """This way of loading one loses the vocabulary in some versions of transformers; it must not pass in silence."""
    library = BertTokenizerFast(vocab_file=str(minilm_dir / "vocab.txt"))
    tokenizer = FastTokenizer(library, max_tokens=16, padding="max")
    if library.vocab_size > 100:
        pytest.skip("this version of transformers reads the file")
    with pytest.raises(ModelError, match="unknown token"):
        check_vocabulary(tokenizer, name="vocab.txt")


def test_a_missing_folder_and_a_name_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no tokenizer folder"):
        load_tokenizer("./not-there", max_tokens=8, padding="max")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_tokenizer(tmp_path, max_tokens=8, padding="max")
    assert "local folder" in caught.value.hint
