"""Multi-label tags from a stored vector: a task of one's own, with its input, encoder, loss and evaluator.

Shapes: B rows, F the vector's width, T tags.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from clipkit.config import Choice, EvaluatorSection, Group, ModelSection, Section, TaskSection, builder_of, register
from clipkit.data.inputs import Input, Vectors
from clipkit.data.samples import DrawnSamples
from clipkit.distributed import gather_arrays
from clipkit.evaluators import BaseEvaluator, EvaluatorContext
from clipkit.models import Encoder, EncoderContext
from clipkit.models.modes import evaluating
from clipkit.tasks import BaseTask, TaskContext
from clipkit.types import Batch, LossOutput, Progress, Ranks, no_progress

# --- what the config may say -----------------------------------------------------------------------------------------


class VectorEncoder(Section):
    kind: Literal["vector"] = "vector"
    """A stored vector, normalised by a trained LayerNorm."""
    column: str = "vector"
    """The column of vectors of one size."""
    dim: int = 32
    """Length of the vectors."""


class BinaryCrossEntropy(Section):
    kind: Literal["binary_cross_entropy"] = "binary_cross_entropy"
    """A yes or no for each tag."""
    positive_weight: float = 1.0
    """How much more a tag that is there counts than one that is not."""


class TagModel(ModelSection):
    image: Annotated[Section, Choice("image_encoder")] = VectorEncoder()
    """The image encoder; a linear head follows it."""


class TagQuality(EvaluatorSection):
    kind: Literal["tag_quality"] = "tag_quality"
    """The mean loss, and the precision of the most likely tag."""


class VectorTags(TaskSection):
    kind: Literal["vector_tags"] = "vector_tags"
    """Predict the tags of an image."""
    column: str = "tags"
    """A list column of texts."""

    model_section = TagModel
    default_loss = BinaryCrossEntropy()
    groups = MappingProxyType({"encoder": None, "head": None})
    default_groups = MappingProxyType({"encoder": Group(lr=1e-3), "head": Group(lr=1e-2)})
    evaluator = TagQuality


register("image_encoder", VectorEncoder, "tagging:build_encoder")
register("vector_tags_loss", BinaryCrossEntropy, "tagging:build_loss")
register("evaluator", TagQuality, "tagging:build_evaluator")
register("task", VectorTags, "tagging:build_task")

# --- the encoder, the loss and the input ------------------------------------------------------------------------------


def build_encoder(section: VectorEncoder, context: EncoderContext) -> Encoder:
    vectors = Vectors("vector", section.column, setting="model.image.column")
    return Encoder(nn.LayerNorm(section.dim), dim=section.dim, reads=("vector",), inputs=lambda seed: [vectors])


class TagLoss:
    def __init__(self, positive_weight: float) -> None:
        self._positive_weight = torch.tensor(positive_weight)

    def __call__(self, logits_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        weight = self._positive_weight.to(logits_BT.device)
        return F.binary_cross_entropy_with_logits(logits_BT, labels_BT, pos_weight=weight)


def build_loss(section: BinaryCrossEntropy) -> TagLoss:
    return TagLoss(section.positive_weight)


class TagLabels(Input):
    """The tensor `labels`, (B, T): 1 for each tag that a row has."""

    def __init__(self, column: str, tags: Sequence[str]) -> None:
        self.columns = (column,)
        self._places = {tag: place for place, tag in enumerate(tags)}

    def read(self, samples: DrawnSamples) -> Mapping[str, torch.Tensor]:
        labels_BT = torch.zeros(len(samples), len(self._places))
        for row, tags in enumerate(samples.values(self.columns[0])):
            for tag in tags or ():
                if tag in self._places:
                    labels_BT[row, self._places[tag]] = 1
        return {"labels": labels_BT}


# --- the task ---------------------------------------------------------------------------------------------------------


class TagNet(nn.Module):
    def __init__(self, encoder: nn.Module, *, dim: int, num_tags: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(dim, num_tags)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(*inputs))


class TagTask(BaseTask):
    shards = ("encoder", "head")

    def __init__(self, image: Encoder, loss: TagLoss, *, column: str, tags: Sequence[str], seed: int) -> None:
        model = TagNet(image.module, dim=image.dim, num_tags=len(tags))
        super().__init__(model, {"encoder": ["encoder.*"], "head": ["head.*"]})
        self.tags = list(tags)
        self._image = image
        self._loss = loss
        self._labels = TagLabels(column, tags)
        self._seed = seed

    def inputs(self) -> Sequence[Input]:
        return [*self._image.inputs(self._seed), self._labels]

    def loss(self, batch: Batch) -> LossOutput:
        logits_BT = self.model(*(batch[name] for name in self._image.reads))
        with torch.autocast(logits_BT.device.type, enabled=False):
            return LossOutput(self._loss(logits_BT.float(), batch["labels"]), weight=len(batch))

    def architecture(self) -> dict[str, Any]:
        return {"tags": self.tags}


def build_task(context: TaskContext) -> TagTask:
    config = context.config
    if context.architecture is not None:  # of a checkpoint: the tags that the model knows
        tags = context.architecture["tags"]
    else:
        tags = sorted({tag for row in context.training.values(config.task.column) for tag in row or ()})
    image = builder_of(config.model.image)(config.model.image, EncoderContext(config.data))
    loss = builder_of(config.loss)(config.loss)
    return TagTask(image, loss, column=config.task.column, tags=tags, seed=config.run.seed)


# --- the evaluator ----------------------------------------------------------------------------------------------------


class TagEvaluator(BaseEvaluator):
    main = "loss"
    lower_is_better = frozenset({"loss"})
    shown = ("loss", "precision@1")

    def __init__(self, context: EvaluatorContext) -> None:
        self._context = context

    def run(self, model: nn.Module, ranks: Ranks, progress: Progress = no_progress) -> dict[str, Any]:
        """The mean loss over the rows, and how often the most likely tag of a row is one of its own."""
        task, device = self._context.task, next(model.parameters()).device
        sums = torch.zeros(1, 3, dtype=torch.float64)  # loss, hits, rows
        with evaluating(model):
            for batch in self._context.batches(task.inputs(), ranks, device=device):
                best_B1 = model(batch["vector"]).argmax(-1, keepdim=True)
                loss, hits = task.loss(batch).loss * len(batch), batch["labels"].gather(1, best_B1).sum()
                sums += torch.tensor([[loss, hits, len(batch)]])
                progress(int(sums[0, 2]), len(self._context.rows))
        loss, hits, num_rows = torch.cat(gather_arrays(sums)).sum(0).tolist()
        return {"loss": loss / num_rows, "precision@1": hits / num_rows, "num_rows": int(num_rows)}


def build_evaluator(section: TagQuality, context: EvaluatorContext) -> TagEvaluator:
    return TagEvaluator(context)
