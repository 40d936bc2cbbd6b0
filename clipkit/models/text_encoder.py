"""Text encoders from the transformers library, with their tokenizers.

Shapes: B texts, T tokens, H hidden width.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    BertConfig,
    PretrainedConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from clipkit import hub
from clipkit.config import TextArchitecture, TransformersText
from clipkit.data.inputs import Tokens
from clipkit.data.tokenizer import FastTokenizer, load_tokenizer, train_tokenizer
from clipkit.errors import ModelError, first_line
from clipkit.models.encoder import Encoder, EncoderContext
from clipkit.types import Tokenizer

log = logging.getLogger(__name__)
MASKED_ATTENTION = "sdpa_with_mask"
TOKENIZER_ROWS = 200_000  # in a larger corpus, the vocabulary is trained on this many rows spread over it
MEASURED_ROWS = 20_000  # rows from which the share of truncated captions is estimated


class TextEncoder(nn.Module):
    """A transformers model and its pooling: token ids to one vector per text."""

    model: Any  # a transformers model; as nn.Module it would lack its methods

    def __init__(self, model: nn.Module, *, pooling: Literal["cls", "mean"]) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    @property
    def dim(self) -> int:
        return int(self.model.config.hidden_size)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        hidden_BTH: torch.Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden_BTH[:, 0]
        mask_BT1 = attention_mask.unsqueeze(-1).to(hidden_BTH.dtype)
        sum_BH = (hidden_BTH * mask_BT1).sum(1, dtype=torch.promote_types(hidden_BTH.dtype, torch.float32))
        return sum_BH / attention_mask.sum(1, keepdim=True).clamp(min=1)


def build(section: TransformersText, context: EncoderContext) -> Encoder:
    """A transformers model and its tokenizer, which is loaded or trained on the captions."""
    tokenizer = make_tokenizer(section, context)
    model = build_text_encoder(section, tokenizer=tokenizer, saved=context.saved)
    tokens = Tokens(tokenizer, column=context.data.captions_column)
    return Encoder(
        module=model,
        dim=model.dim,
        reads=("input_ids", "attention_mask"),
        inputs=lambda seed: [tokens],
        architecture=describe(model),
        tokenizer=tokenizer,
    )


def make_tokenizer(section: TransformersText, context: EncoderContext) -> FastTokenizer:
    """The tokenizer; logs the share of captions that it truncates."""
    data, training = context.data, context.training
    source = context.checkpoint / "tokenizer" if context.checkpoint is not None else section.tokenizer or section.name
    if source is not None:
        tokenizer = load_tokenizer(source, max_tokens=data.max_tokens, padding=data.padding)
    else:
        assert section.architecture is not None, "the config has checked it"
        assert training is not None, "only a checkpoint is opened without training rows"
        tokenizer = train_tokenizer(
            training.captions(num_rows=TOKENIZER_ROWS),
            vocab_size=section.architecture.vocab_size,
            lowercase=section.architecture.lowercase,
            max_tokens=data.max_tokens,
            padding=data.padding,
        )
    if training is not None:
        share = tokenizer.truncated_share(training.captions(num_rows=MEASURED_ROWS))
        log.info("%.1f %% of the captions are truncated to `data.max_tokens: %d`", 100 * share, data.max_tokens)
    return tokenizer


def build_text_encoder(
    config: TransformersText,
    *,
    tokenizer: Tokenizer,
    saved: dict[str, Any] | None = None,
) -> TextEncoder:
    """A text encoder for the tokenizer. With a `saved` architecture, weights are random and nothing is downloaded."""
    if saved is not None:
        options = dict(saved)
        model = AutoModel.from_config(AutoConfig.for_model(options.pop("model_type"), **options), dtype=torch.float32)
    elif config.name is not None:
        model = _from_name(config.name, pretrained=config.pretrained)
    else:
        assert config.architecture is not None, "the config has checked it"
        model = AutoModel.from_config(_bert_config(config.architecture, tokenizer), dtype=torch.float32)
    model = _encoder_part(model)
    model.config.use_cache = False  # only needed for generation
    _check_fits(model.config, tokenizer, name=config.name or "architecture")
    if config.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return TextEncoder(model, pooling=config.pooling)


def _bert_config(architecture: TextArchitecture, tokenizer: Tokenizer) -> PretrainedConfig:
    return BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=architecture.hidden_size,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        intermediate_size=architecture.intermediate_size or 4 * architecture.hidden_size,
        max_position_embeddings=tokenizer.max_tokens,
        hidden_dropout_prob=architecture.dropout,
        attention_probs_dropout_prob=architecture.dropout,
        initializer_range=architecture.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
    )


def _from_name(name: str, *, pretrained: bool) -> Any:
    if name.startswith((".", os.sep, "~")) and not Path(name).is_dir():
        raise ModelError(f"`model.text.name`: there is no folder `{name}`", hub.OFFLINE_TEXT_HINT)
    transformers.utils.logging.set_verbosity_error()  # missing weights are checked below
    transformers.utils.logging.disable_progress_bar()
    try:
        with hub.one_attempt(name):
            return _load(name, pretrained=pretrained)
    except ModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more
        raise ModelError(
            f"the text encoder `{name}` cannot be loaded: {first_line(error)}", hub.OFFLINE_TEXT_HINT
        ) from error


def _load(name: str, *, pretrained: bool) -> Any:
    if not pretrained:
        return AutoModel.from_config(AutoConfig.from_pretrained(name), dtype=torch.float32)
    model, info = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ModelError(
            f"the weights of the text encoder `{name}` lack {len(missing)} tensors, such as `{missing[0]}`",
            "use `pretrained: false` to train this architecture from scratch",
        )
    return model


def _encoder_part(model: Any) -> Any:
    """The encoder of an encoder-decoder, without a pooler, which would get no gradient."""
    if hasattr(model, "encoder") and hasattr(model, "decoder"):
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _check_fits(config: PretrainedConfig, tokenizer: Tokenizer, *, name: str) -> None:
    if not hasattr(config, "vocab_size"):
        raise ModelError(
            f"`{name}` is a model of type `{config.model_type}`, which is not a text encoder",
            "use a model that reads only text, such as `bert-base-cased`",
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the text encoder `{name}` only {config.vocab_size}",
            "they belong to different models; set `model.text.tokenizer`",
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or positions < 0:  # relative positions have no limit
        return
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        positions -= config.pad_token_id + 1  # these start counting after the padding token
    if tokenizer.max_tokens > positions:
        raise ModelError(
            f"`data.max_tokens` is {tokenizer.max_tokens}, but the text encoder `{name}` has {positions} positions",
            f"set `data.max_tokens` to {positions} or less",
        )


def use_eager_attention(encoder: nn.Module) -> None:
    """Compute attention as plain matrix products instead of torch's fused kernel: more memory, the same values."""
    if isinstance(encoder, TextEncoder):
        encoder.model.set_attn_implementation("eager")


def always_mask(encoder: nn.Module) -> None:
    """Pass the attention mask in every batch, whether or not it masks anything.

    transformers omits a mask that masks nothing, and waits for the GPU to find out. Few batches have no padding.
    """
    if isinstance(encoder, TextEncoder) and encoder.model.config._attn_implementation == "sdpa":
        AttentionInterface.register(MASKED_ATTENTION, sdpa_attention_forward)
        AttentionMaskInterface.register(MASKED_ATTENTION, _full_mask)
        encoder.model.set_attn_implementation(MASKED_ATTENTION)


def _full_mask(*args: Any, **options: Any) -> torch.Tensor | None:
    options |= {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
    return sdpa_mask(*args, **options)  # type: ignore[no-any-return]


def describe(encoder: TextEncoder) -> dict[str, Any]:
    """JSON from which this text encoder can be rebuilt without its folder or the hub."""
    return dict(encoder.model.config.to_dict())
