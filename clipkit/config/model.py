"""`model`: the two encoders, the heads, and the embeddings they meet in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from clipkit.config.fields import BelowOne, Conflicts, Count, CountOrZero, Positive, Section
from clipkit.config.kinds import Choice, offers_choices, register


class TimmImage(Section):
    kind: Literal["timm"] = "timm"
    """A model of the timm library."""
    name: str
    """A timm model, such as `resnet50` or `vit_small_patch16_224`, a folder of one, or `hf-hub:OWNER/NAME`."""
    pretrained: bool = False
    """Start from the published weights (downloaded once), or the folder's."""
    weights: str | None = None
    """A local file of weights for this model (`.safetensors`, or a `.pth` of plain tensors)."""
    global_pool: str | None = None
    """timm's pooling: avg, max, token, map …; `none` keeps every position, flattened; the model's own when left out."""
    num_classes: CountOrZero = 0
    """Keep timm's classifier with so many outputs as the feature; 0 takes the pooled feature."""
    drop_rate: BelowOne = 0.0
    """Dropout before the encoder's output."""
    drop_path_rate: BelowOne = 0.0
    """Stochastic depth: the share of residual branches that are left out in training."""
    norm: Literal["batch", "frozen", "sync"] = "batch"
    """BatchNorm as it is, with its statistics frozen, or synchronised over GPUs."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""


class FeatureImage(Section):
    kind: Literal["features"] = "features"
    """The encoder's output is stored: see `data.features.image`."""
    dim: Count
    """Length of the stored vectors."""


class TextArchitecture(Section):
    """A BERT-type encoder from scratch, with a WordPiece vocabulary trained on the training captions."""

    vocab_size: Count = 4000
    """At most so many word pieces; the captions may have fewer."""
    hidden_size: Count = 256
    """Width of the token embeddings and of every layer."""
    layers: Count = 4
    """Transformer layers."""
    heads: Count = 4
    """Attention heads; `hidden_size` must be a multiple."""
    intermediate_size: Count | None = None
    """Width of the feed-forward layers; four times `hidden_size` when left out."""
    dropout: BelowOne = 0.1
    """Dropout of the layers' outputs and of attention."""
    initializer_range: Positive = 0.02
    """Standard deviation of the initial weights and token embeddings."""
    lowercase: bool = True
    """Lower-case captions. Accents are always kept."""

    @model_validator(mode="after")
    def _divisible(self) -> TextArchitecture:
        if self.hidden_size % self.heads:
            raise Conflicts([("heads", f"`hidden_size`, {self.hidden_size}, is not a multiple of it")])
        return self


class TransformersText(Section):
    kind: Literal["transformers"] = "transformers"
    """A model of the transformers library."""
    name: str | None = None
    """A model of the Hugging Face hub, or a local folder; it goes before `architecture`."""
    pretrained: bool = True
    """With `name`: load the weights; false takes the architecture alone, and the tokenizer."""
    architecture: TextArchitecture | None = None
    """An encoder from scratch, for when there is no `name`."""
    pooling: Literal["cls", "mean"] = "mean"
    """The caption's vector: the first token's, or the mean over its tokens."""
    tokenizer: str | None = None
    """Another model's or folder's tokenizer than `name`'s."""
    remember: bool = False
    """Run an encoder that stays frozen once for each training caption, before the first step, and keep in memory
    what it gives. A text encoder that starts from scratch under `freeze: pretrained` is trained, and runs as ever."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""

    @model_validator(mode="after")
    def _one_origin(self) -> TransformersText:
        if not self.name and not self.architecture:
            raise Conflicts([("name", "give `name` (a model or a folder), or `architecture` (one from scratch)")])
        return self


class FeatureText(Section):
    kind: Literal["features"] = "features"
    """The encoder's output is stored: see `data.features.text`."""
    dim: Count
    """Length of the stored vectors."""


class ResidualHead(Section):
    kind: Literal["residual"] = "residual"
    """p = linear(x); LayerNorm(dropout(linear(GELU(p))) + p)."""
    dropout: BelowOne = 0.1
    """In training, the share of the head's activations that are set to 0."""


class LinearHead(Section):
    kind: Literal["linear"] = "linear"
    """One matrix."""
    bias: bool = False
    """Add a learned constant."""


class NoHead(Section):
    kind: Literal["none"] = "none"
    """The encoder's output as it is; its width must be `embedding_dim`."""


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
    """Low-rank adapters through `peft` in place of full fine-tuning of the encoders."""

    rank: Count = 8
    """Width of the adapters."""
    alpha: Positive = 16.0
    """The adapters' output is scaled by `alpha / rank`."""
    dropout: BelowOne = 0.0
    """Dropout before the adapters."""
    encoders: tuple[Literal["image_encoder", "text_encoder"], ...] = ("image_encoder", "text_encoder")
    """Which encoders get adapters; what they had is frozen."""


class ModelSection(Section):
    """What the models of all tasks have."""

    init: str | None = None
    """Start from the weights of this run or checkpoint."""


@offers_choices
class DualEncoderConfig(ModelSection):
    image: ImageEncoder
    """The image encoder."""
    text: TextEncoder
    """The text encoder."""
    head: Head = LinearHead()
    """From an encoder's output to the embedding."""
    image_head: Head | None = None
    """The image side's head where it differs from `head`."""
    text_head: Head | None = None
    """The text side's head where it differs from `head`."""
    embedding_dim: Count = 256
    """Length of the embeddings that images and captions share."""
    normalize: bool = True
    """Scale embeddings to length 1."""
    lora: LoraConfig | None = None
    """Train low-rank adapters in place of the encoders."""
