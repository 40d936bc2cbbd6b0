"""`task`: the kind of training, which determines the keys of `model` and `loss`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from clipkit.config.evaluate import EvaluatorSection, Retrieval
from clipkit.config.fields import Section
from clipkit.config.kinds import register
from clipkit.config.loss import InfoNCE
from clipkit.config.model import DualEncoderConfig, FeatureImage, FeatureText, ModelSection, TransformersText
from clipkit.config.optim import Group

if TYPE_CHECKING:
    from clipkit.config import Config


class TaskSection(Section):
    """A kind of training: its keys, and what a config of it may contain. Its losses are the kinds of `KIND_loss`."""

    model_section: ClassVar[type[ModelSection]]
    default_loss: ClassVar[Section]
    groups: ClassVar[Mapping[str, str | None]]
    """Names of the optimizer groups, each with the group whose settings it takes when it is left out."""
    default_groups: ClassVar[Mapping[str, Group]]
    """The default of `optim.groups`."""
    evaluator: ClassVar[type[EvaluatorSection]]
    """The evaluator of `data.validation`."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        missing = sorted(name for name in cls.__class_vars__ if not hasattr(cls, name))
        if missing:
            raise TypeError(f"the task `{cls.__name__}` does not set {', '.join(f'`{name}`' for name in missing)}")

    def conflicts(self, config: Config) -> Iterator[tuple[str, str]]:
        """Keys of this task's config that do not fit together: (the key to blame, what is wrong)."""
        yield from ()


class Contrastive(TaskSection):
    kind: Literal["contrastive"] = "contrastive"
    """Two encoders that map an image and its caption to nearby embeddings."""

    model_section = DualEncoderConfig
    default_loss = InfoNCE()
    groups = MappingProxyType({"image_encoder": None, "text_encoder": None, "heads": None, "temperature": "heads"})
    default_groups = MappingProxyType(
        {
            "image_encoder": Group(lr=1e-3, weight_decay=0.05),
            "text_encoder": Group(lr=1e-4, weight_decay=0.05),
            "heads": Group(lr=1e-3, weight_decay=0.05),
        }
    )
    evaluator = Retrieval

    def conflicts(self, config: Config) -> Iterator[tuple[str, str]]:
        if config.train.batch_size < 2:
            yield "train.batch_size", "must be at least 2: a contrastive loss needs negatives"
        model, features = config.model, config.data.features
        assert isinstance(model, DualEncoderConfig)
        for side, encoder, column in (("image", model.image, features.image), ("text", model.text, features.text)):
            if isinstance(encoder, FeatureImage | FeatureText) != (column is not None):
                yield f"model.{side}", f"set `kind: features` and `data.features.{side}` together"
        is_remembered = isinstance(model.text, TransformersText) and model.text.remember
        if is_remembered and not config.optim.freezes_for_good("text_encoder"):
            yield "model.text.remember", "needs a frozen encoder: `optim.freeze: [text_encoder]`"


register("task", Contrastive, "clipkit.tasks.contrastive:build")
