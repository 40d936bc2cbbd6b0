"""`train`: how long, on what and how safely."""

from __future__ import annotations

from typing import Literal

from clipkit.config.fields import Count, Duration, Fraction, NonNegative, Positive, Section, Share


class Ema(Section):
    """A moving average of the weights, which validation and the checkpoints' `model.safetensors` use."""

    decay: Fraction = 0.999
    """The share of the average that a step keeps."""
    warmup: bool = True
    """Let the decay grow with the steps, min(decay, (1 + step) / (10 + step))."""


class EarlyStopping(Section):
    patience: Count = 5
    """Validations without improvement of `train.best` after which the run ends."""
    min_delta: NonNegative = 0.0
    """Less than this is no improvement."""


class Guards(Section):
    on_nonfinite: Literal["stop", "skip", "rollback"] = "skip"
    """A loss or gradient that is not finite: stop, or skip the step; after `max_skipped` in a row `skip`
    stops and `rollback` goes back to the last good checkpoint."""
    max_skipped: Count = 5
    """Steps in a row that may be skipped."""
    rollback_lr_factor: Share = 1.0
    """Learning rates are multiplied by this after a rollback."""
    max_rollbacks: Count = 3
    """Rollbacks after which the next trouble stops the run."""
    alarms: bool = True
    """Warn of collapse, clamped temperature, loss at chance, jumps of the gradient and waiting for data."""


class TrainConfig(Section):
    duration: Duration = "10ep"
    """How long: 2000st (steps), 10ep (epochs), 1Msa (samples) or 30min."""
    batch_size: Count = 128
    """Global: across devices and accumulation."""
    chunk_size: Count | None = None
    """Gradient caching: encode so many samples a device at a time, with the gradient of the whole batch."""
    accumulate: Count = 1
    """Process the batch in so many pieces, each with its own negatives; `chunk_size` keeps them all."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the arithmetic; auto takes bf16 where the device is fast at it. Weights stay fp32."""
    grad_scaler: bool = True
    """Scale the loss under fp16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    threads: Count | None = None
    """Compute threads; `OMP_NUM_THREADS`, or the usable cores shared by a machine's ranks, when left out."""
    checkpoint_every: Duration | None = "1ep"
    """How often a checkpoint is written; null writes only the last."""
    validate_every: Duration | None = "1ep"
    """How often `data.validation` is measured; null never does. What `evaluate` names has its own `every`."""
    keep: Count = 3
    """Checkpoints that are kept beside the best one."""
    best: str | None = None
    """The metric that chooses the best checkpoint and stops early, such as `text_to_image/recall@10`, or `NAME/METRIC`
    of one in `evaluate`; the first evaluator's main metric when left out."""
    early_stopping: EarlyStopping | None = None
    """End the run when validation no longer improves."""
    guards: Guards = Guards()
    """What is done about losses that are not finite, and what is warned of."""
    ema: Ema | None = None
    """Keep a moving average of the weights."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start; `clipkit bench step` tells if steps are faster."""
    deterministic: bool = True
    """Deterministic kernels where they exist."""
    log_norms_every: Count | None = None
    """Log the gradient and weight norms of each group every so many steps."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """On several devices: a replica on each, or parameters and optimizer sharded (FSDP2)."""
    timeout_s: Positive = 600.0
    """Seconds after which a rank that does not answer ends the run."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | None = None
    """TensorBoard when installed, when left out."""

    def encoded_at_once(self, world: int) -> int:
        """How many samples each of so many devices encodes at a time in training."""
        share = max(1, self.batch_size // (world * self.accumulate))
        return min(self.chunk_size or share, share)
