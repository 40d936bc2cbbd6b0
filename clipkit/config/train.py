"""`train`: duration, batch size, device, checkpoints and safeguards."""

from __future__ import annotations

from typing import Literal

from clipkit.config.fields import Count, Duration, Fraction, NonNegative, Positive, Section, Share


class Ema(Section):
    """An exponential moving average of the weights, used in validation and in the checkpoints' `model.safetensors`."""

    decay: Fraction = 0.999
    """Decay of the average per step."""
    warmup: bool = True
    """Start with a smaller decay: min(decay, (1 + step) / (10 + step))."""


class EarlyStopping(Section):
    patience: Count = 5
    """End the run after this many validations without an improvement of `train.best`."""
    min_delta: NonNegative = 0.0
    """Smallest change that counts as an improvement."""


class Guards(Section):
    on_nonfinite: Literal["stop", "skip", "rollback"] = "skip"
    """What to do when the loss or a gradient is not finite: stop, or skip the step. After `max_skipped` skipped steps
    in a row, `skip` stops and `rollback` returns to the last good checkpoint."""
    max_skipped: Count = 5
    """Largest number of steps in a row that may be skipped."""
    rollback_lr_factor: Share = 1.0
    """Multiply the learning rates by this after each rollback."""
    max_rollbacks: Count = 3
    """Largest number of rollbacks; the next failure stops the run."""
    alarms: bool = True
    """Warn about collapse, a clamped temperature, a loss at chance level, gradient spikes and waiting for data."""


class TrainConfig(Section):
    duration: Duration = "10ep"
    """Length of the run: 2000st (steps), 10ep (epochs), 1Msa (samples) or 30min."""
    batch_size: Count = 128
    """Samples per optimizer step, over all devices and accumulated pieces."""
    chunk_size: Count | None = None
    """Gradient caching: encode this many samples at a time on each device, with the gradient of the whole batch."""
    accumulate: Count = 1
    """Split the batch into this many pieces. A contrastive loss then sees only the negatives of a piece; `chunk_size`
    keeps them all."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computation; auto uses bf16 where the device is fast at it. Weights stay fp32."""
    grad_scaler: bool = True
    """Scale the loss with fp16."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1 or mps."""
    threads: Count | None = None
    """Number of compute threads; default: `OMP_NUM_THREADS`, or the usable cores divided among the machine's ranks."""
    checkpoint_every: Duration | None = "1ep"
    """How often to write a checkpoint; null writes only the last one."""
    validate_every: Duration | None = "1ep"
    """How often to measure on `data.validation`; null is never. The entries of `evaluate` have their own `every`."""
    keep: Count = 3
    """Number of recent checkpoints to keep in addition to the best one."""
    best: str | None = None
    """Metric for the best checkpoint and for early stopping, such as `text_to_image/recall@10`, or `NAME/METRIC` of an
    entry in `evaluate`; default: the main metric of the first evaluator."""
    early_stopping: EarlyStopping | None = None
    """End the run when `best` no longer improves."""
    guards: Guards = Guards()
    """Protection against losses that are not finite, and warnings."""
    ema: Ema | None = None
    """Keep an exponential moving average of the weights."""
    compile: bool = False
    """Compile the model with torch.compile. Takes minutes at the start; `clipkit bench step` shows if it pays."""
    deterministic: bool = True
    """Use deterministic kernels where they exist."""
    log_norms_every: Count | None = None
    """Log the gradient and weight norms of each group every N steps."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """On several devices: replicate the model (DDP), or shard parameters and optimizer state (FSDP2)."""
    timeout_s: Positive = 600.0
    """End the run if a rank does not respond for this many seconds."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | None = None
    """Experiment trackers; default: TensorBoard if it is installed."""

    def encoded_at_once(self, world: int) -> int:
        """How many samples a device encodes at a time in training on `world` devices."""
        share = max(1, self.batch_size // (world * self.accumulate))
        return min(self.chunk_size or share, share)
