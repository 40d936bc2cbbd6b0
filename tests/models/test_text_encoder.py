"""Text encoders: real MiniLM weights, an encoder from scratch, and mismatches that must not pass in silence."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from clipkit import hub
from clipkit.config import TransformersText
from clipkit.data.inputs.tokens import Tokens
from clipkit.data.tokenizer import FastTokenizer, load_tokenizer, train_tokenizer
from clipkit.errors import ModelError
from clipkit.models.text_encoder import always_mask, build_text_encoder, describe, use_eager_attention

CAPTIONS = ["a red circle is left of a blue star", "two dogs run over the wet grass", "một con chó đứng"]


@pytest.fixture(scope="module")
def words() -> FastTokenizer:
    return train_tokenizer(CAPTIONS, vocab_size=200, lowercase=True, max_tokens=16, padding="longest")


def scratch(**options: object) -> TransformersText:
    architecture = {"hidden_size": 32, "layers": 2, "heads": 2, **options}
    return TransformersText.model_validate({"architecture": architecture})


def test_minilm_is_pooled_as_its_authors_do(minilm_dir: Path) -> None:
    tokenizer = load_tokenizer(minilm_dir, max_tokens=32, padding="longest")
    encoder = build_text_encoder(TransformersText(name=str(minilm_dir)), tokenizer=tokenizer).eval()
    reference = AutoModel.from_pretrained(minilm_dir, dtype=torch.float32).eval()
    tokens = tokenizer(["a dog runs", "A man in a red shirt climbs a rock", "the dog is running"])
    with torch.no_grad():
        hidden = reference(tokens.input_ids, tokens.attention_mask).last_hidden_state
        expected = torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, tokens.attention_mask, strict=True)])
        actual = encoder(tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    near, far = (torch.cosine_similarity(actual[0], actual[i], dim=0) for i in (2, 1))
    assert near > 0.8
    assert far < 0.5


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_nothing(words: FastTokenizer, pooling: str) -> None:
    config = TransformersText.model_validate({**scratch().model_dump(), "pooling": pooling})
    encoder = build_text_encoder(config, tokenizer=words).eval()
    tokens = words(CAPTIONS[:1])
    length = int(tokens.attention_mask.sum())
    assert length < tokens.input_ids.shape[1]
    bare = Tokens(tokens.input_ids[:, :length], tokens.attention_mask[:, :length])
    torch.testing.assert_close(encoder(tokens), encoder(bare), rtol=1e-4, atol=1e-5)


def test_from_scratch_fits_its_tokenizer_and_starts_small(words: FastTokenizer) -> None:
    encoder = build_text_encoder(scratch(intermediate_size=48, dropout=0.0), tokenizer=words)
    config = encoder.model.config
    assert encoder.dim == 32
    assert (config.vocab_size, config.max_position_embeddings, config.intermediate_size) == (words.vocab_size, 16, 48)
    embeddings = encoder.model.embeddings.word_embeddings.weight
    assert embeddings[1:].std().item() == pytest.approx(0.02, rel=0.1)
    assert config._attn_implementation == "sdpa"


def test_every_parameter_gets_a_gradient(words: FastTokenizer) -> None:
    """A pooler that nothing uses would sit in the optimizer, and stop DDP."""
    encoder = build_text_encoder(scratch(), tokenizer=words)
    encoder(words(CAPTIONS)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_checkpoints_architecture_needs_no_folder(minilm_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm_dir, folder)
    tokenizer = load_tokenizer(folder, max_tokens=32, padding="longest")
    config = TransformersText(name=str(folder))
    encoder = build_text_encoder(config, tokenizer=tokenizer).eval()
    saved = json.loads(json.dumps(describe(encoder)))
    shutil.rmtree(folder)
    again = build_text_encoder(config, tokenizer=tokenizer, saved=saved).eval()
    again.load_state_dict(encoder.state_dict())
    tokens = tokenizer(CAPTIONS)
    torch.testing.assert_close(again(tokens), encoder(tokens))


def test_not_pretrained_is_the_architecture_alone(minilm_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm_dir / name, tmp_path)
    tokenizer = load_tokenizer(tmp_path, max_tokens=32, padding="longest")
    encoder = build_text_encoder(TransformersText(name=str(tmp_path), pretrained=False), tokenizer=tokenizer)
    assert encoder.dim == 384
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_text_encoder(TransformersText(name=str(tmp_path)), tokenizer=tokenizer)


def test_weights_that_lack_layers_are_refused(words: FastTokenizer, tmp_path: Path) -> None:
    encoder = build_text_encoder(scratch(), tokenizer=words)
    encoder.model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = 3
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lack 16 tensors"):
        build_text_encoder(TransformersText(name=str(tmp_path)), tokenizer=words)


def family(name: str, vocab_size: int) -> PreTrainedModel:
    bert = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes = {"vocab_size": vocab_size, **bert}
    match name:
        case "distilbert":
            return DistilBertModel(DistilBertConfig(vocab_size=vocab_size, dim=32, n_layers=1, n_heads=2))
        case "t5":
            config = T5Config(vocab_size=vocab_size, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
            return T5EncoderModel(config)
        case "mpnet":
            return MPNetModel(MPNetConfig(**sizes, max_position_embeddings=20))
        case _:
            return DebertaV2Model(DebertaV2Config(**sizes))


@pytest.mark.parametrize("name", ["distilbert", "t5", "mpnet", "deberta"])
def test_other_families_work(name: str, words: FastTokenizer, tmp_path: Path) -> None:
    """Also those that know no SDPA attention, as of MPNet and DeBERTa, and weights in shards."""
    family(name, words.vocab_size).save_pretrained(tmp_path, max_shard_size="10KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    encoder = build_text_encoder(TransformersText(name=str(tmp_path), pretrained=name != "t5"), tokenizer=words)
    vectors = encoder(words(CAPTIONS))
    vectors.sum().backward()
    assert vectors.shape == (3, 32)
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["distilbert", "mpnet"])
def test_attention_written_out_gives_the_same(name: str, words: FastTokenizer, tmp_path: Path) -> None:
    family(name, words.vocab_size).save_pretrained(tmp_path)
    encoder = build_text_encoder(TransformersText(name=str(tmp_path)), tokenizer=words).eval()
    before, saved = encoder(words(CAPTIONS)), describe(encoder)
    use_eager_attention(encoder)
    assert encoder.model.config._attn_implementation == "eager"
    torch.testing.assert_close(encoder(words(CAPTIONS)), before)
    assert describe(encoder) == saved


@pytest.mark.parametrize("name", ["distilbert", "t5", "mpnet"])
def test_attention_that_always_has_a_mask_gives_the_same(name: str, words: FastTokenizer, tmp_path: Path) -> None:
    family(name, words.vocab_size).save_pretrained(tmp_path)
    encoder = build_text_encoder(TransformersText(name=str(tmp_path), pretrained=name != "t5"), tokenizer=words).eval()
    inputs = [words(CAPTIONS), words(CAPTIONS[:1])]  # of which the second has no padding
    before, saved = [encoder(tokens) for tokens in inputs], describe(encoder)
    always_mask(encoder)
    torch.testing.assert_close([encoder(tokens) for tokens in inputs], before)
    assert describe(encoder) == saved


def test_a_model_of_more_than_text_is_refused(words: FastTokenizer, tmp_path: Path) -> None:
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="type `clip`, which is no text encoder"):
        build_text_encoder(TransformersText(name=str(tmp_path), pretrained=False), tokenizer=words)


def test_a_tokenizer_of_another_model_is_refused(words: FastTokenizer, minilm_dir: Path, tmp_path: Path) -> None:
    build_text_encoder(scratch(), tokenizer=words).model.save_pretrained(tmp_path)
    large = load_tokenizer(minilm_dir, max_tokens=16, padding="longest")
    with pytest.raises(ModelError, match="30522 tokens"):
        build_text_encoder(TransformersText(name=str(tmp_path)), tokenizer=large)
    long = train_tokenizer(CAPTIONS, vocab_size=100, lowercase=True, max_tokens=64, padding="longest")
    with pytest.raises(ModelError, match="16 positions"):
        build_text_encoder(TransformersText(name=str(tmp_path)), tokenizer=long)


def test_checkpointing_gives_the_same_gradients(words: FastTokenizer) -> None:
    plain = build_text_encoder(scratch(dropout=0.0), tokenizer=words).train()
    config = TransformersText.model_validate({**scratch(dropout=0.0).model_dump(), "checkpointing": True})
    saving = build_text_encoder(config, tokenizer=words).train()
    saving.load_state_dict(plain.state_dict())
    for encoder in (plain, saving):
        encoder(words(CAPTIONS)).square().sum().backward()
    for (name, expected), actual in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name)


def test_no_network_is_said_at_once(words: FastTokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub._is_reachable.cache_clear()
    start = time.monotonic()
    with pytest.raises(ModelError, match="`bert-base-cased`") as caught:
        build_text_encoder(TransformersText(name="bert-base-cased"), tokenizer=words)
    hub._is_reachable.cache_clear()
    assert time.monotonic() - start < 10
    assert "local folder" in caught.value.hint
    assert "pretrained: false" in caught.value.hint
    with pytest.raises(ModelError, match="no folder"):
        build_text_encoder(TransformersText(name="./nowhere"), tokenizer=words)
