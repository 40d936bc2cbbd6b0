"""`model`: the encoders, the heads and the size of the embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from clipkit.config.fields import BelowOne, Conflicts, Count, CountOrZero, Positive, Section
from clipkit.config.kinds import Choice, register


class TimmImage(Section):
    kind: Literal["timm"] = "timm"
    """A model of the timm library."""
    name: str
    """A timm model such as `resnet50` or `vit_small_patch16_224`, a local folder, or `hf-hub:OWNER/NAME`."""
    pretrained: bool = False
    """Start from the published weights (downloaded once) or from those in the folder."""
    weights: str | None = None
    """Local file with weights for this model (`.safetensors`, or a `.pth` of plain tensors)."""
    global_pool: str | None = None
    """timm's pooling: avg, max, token, map …; `none` flattens all positions. Default: the model's own."""
    num_classes: CountOrZero = 0
    """Use the outputs of timm's classifier, this many, as the feature; 0 uses the pooled feature."""
    drop_rate: BelowOne = 0.0
    """Dropout before the encoder's output layer."""
    drop_path_rate: BelowOne = 0.0
    """Stochastic depth: share of residual branches skipped in training."""
    norm: Literal["batch", "frozen", "sync"] = "batch"
    """BatchNorm unchanged, with frozen statistics, or synchronised across GPUs."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: saves memory, costs about a third more time."""


class FeatureImage(Section):
    kind: Literal["features"] = "features"
    """No encoder: its stored outputs are read from `data.features.image`."""
    dim: Count
    """Length of the stored vectors."""


class TextArchitecture(Section):
    """A BERT-style encoder trained from scratch, with a WordPiece vocabulary built from the training captions."""

    vocab_size: Count = 4000
    """Largest number of word pieces; the captions may yield fewer."""
    hidden_size: Count = 256
    """Width of the token embeddings and of every layer."""
    layers: Count = 4
    """Number of transformer layers."""
    heads: Count = 4
    """Number of attention heads; must divide `hidden_size`."""
    intermediate_size: Count | None = None
    """Width of the feed-forward layers; default: four times `hidden_size`."""
    dropout: BelowOne = 0.1
    """Dropout in the layers and in attention."""
    initializer_range: Positive = 0.02
    """Standard deviation of the initial weights and token embeddings."""
    lowercase: bool = True
    """Convert captions to lower case. Accents are always kept."""

    @model_validator(mode="after")
    def _divisible(self) -> TextArchitecture:
        if self.hidden_size % self.heads:
            raise Conflicts([("heads", f"must divide `hidden_size`, {self.hidden_size}")])
        return self


class TransformersText(Section):
    kind: Literal["transformers"] = "transformers"
    """A model of the transformers library."""
    name: str | None = None
    """A model on the Hugging Face hub or in a local folder; takes precedence over `architecture`."""
    pretrained: bool = True
    """Load the weights of `name`; false uses only its architecture and tokenizer."""
    architecture: TextArchitecture | None = None
    """An encoder to train from scratch, used when there is no `name`."""
    pooling: Literal["cls", "mean"] = "mean"
    """The caption's feature: the vector of its first token, or the mean over its tokens."""
    tokenizer: str | None = None
    """Model or folder whose tokenizer to use; default: that of `name`."""
    remember: bool = False
    """Run a frozen encoder once per training caption, before the first step, and keep its outputs in memory. Has no
    effect on an encoder that is trained."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: saves memory, costs about a third more time."""

    @model_validator(mode="after")
    def _one_origin(self) -> TransformersText:
        if not self.name and not self.architecture:
            raise Conflicts([("name", "set `name` (a model or a folder), or `architecture` (trained from scratch)")])
        return self


class FeatureText(Section):
    kind: Literal["features"] = "features"
    """No encoder: its stored outputs are read from `data.features.text`."""
    dim: Count
    """Length of the stored vectors."""


class ResidualHead(Section):
    kind: Literal["residual"] = "residual"
    """p = linear(x); LayerNorm(dropout(linear(GELU(p))) + p)."""
    dropout: BelowOne = 0.1
    """Share of the head's activations that are set to 0 in training."""


class LinearHead(Section):
    kind: Literal["linear"] = "linear"
    """A linear layer."""
    bias: bool = False
    """Add a learned bias."""


class NoHead(Section):
    kind: Literal["none"] = "none"
    """No head: the encoder's output must have the width `embedding_dim`."""


Head = Annotated[Section, Choice("head")]
ImageEncoder = Annotated[Section, Choice("image_encoder")]
TextEncoder = Annotated[Section, Choice("text_encoder")]

register("image_encoder", TimmImage, "clipkit.models.image_encoder:build")
register("image_encoder", FeatureImage, "clipkit.models.features:build_image_features")
register("text_encoder", TransformersText, "clipkit.models.text_encoder:build")
register("text_encoder", FeatureText, "clipkit.models.features:build_text_features")
register("head", ResidualHead, "clipkit.models.heads:build_residual")
register("head", LinearHead, "clipkit.models.heads:build_linear")
register("head", NoHead, "clipkit.models.heads:build_none")


class LoraConfig(Section):
    """Low-rank adapters (with `peft`) instead of fine-tuning the encoders."""

    rank: Count = 8
    """Width of the adapters."""
    alpha: Positive = 16.0
    """The adapters' output is scaled by `alpha / rank`."""
    dropout: BelowOne = 0.0
    """Dropout before the adapters."""
    encoders: tuple[Literal["image_encoder", "text_encoder"], ...] = ("image_encoder", "text_encoder")
    """Encoders that get adapters; their own weights are frozen."""


class ModelSection(Section):
    """The keys that the models of all tasks have."""

    init: str | None = None
    """Start from the weights of this run or checkpoint."""


class DualEncoderConfig(ModelSection):
    image: ImageEncoder
    """The image encoder."""
    text: TextEncoder
    """The text encoder."""
    head: Head = LinearHead()
    """Maps an encoder's output to the embedding."""
    image_head: Head | None = None
    """Head of the image side; default: `head`."""
    text_head: Head | None = None
    """Head of the text side; default: `head`."""
    embedding_dim: Count = 256
    """Length of the embeddings of images and captions."""
    normalize: bool = True
    """Scale embeddings to length 1."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the whole encoders."""
