"""Image encoders from the timm library."""

from __future__ import annotations

import difflib
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import load_model_config_from_hf, load_state_dict
from torch import nn

from clipkit import hub
from clipkit.config import TimmImage
from clipkit.data.inputs import Pixels
from clipkit.errors import ModelError, first_line
from clipkit.models.encoder import Encoder, EncoderContext
from clipkit.models.norms import keep_statistics_in_recompute
from clipkit.types import ImageSpec

HUB, FOLDER = "hf-hub:", "local-dir:"
OFFLINE_HINT = (
    "without a network, set `model.image.weights` to a local file, or train from scratch with "
    "`model.image.pretrained: false`"
)


def build(section: TimmImage, context: EncoderContext) -> Encoder:
    """A timm model and its pixels, of size `data.image_size` and normalised as in the model's pretraining."""
    data = context.data
    model = build_image_encoder(section, image_size=data.image_size, saved=context.saved)
    architecture = describe(model)
    spec = ImageSpec(
        data.image_size,
        data.mean or tuple(architecture["mean"]),
        data.std or tuple(architecture["std"]),
        data.resize or "squash",
        data.interpolation or "fast",
    )
    return Encoder(
        module=model,
        dim=feature_dim(model, image_size=data.image_size),
        reads=("pixels",),
        inputs=lambda seed: [Pixels(data, spec, seed=seed)],
        architecture=architecture,
        pixels=spec,
    )


def build_image_encoder(config: TimmImage, *, image_size: int, saved: dict[str, Any] | None = None) -> Any:
    """A timm model with the configured weights or, for a `saved` architecture, with random ones."""
    weights = _read_weights(config.weights) if config.weights and saved is None else None
    if saved is not None:
        source = name = saved["name"]
        args = saved["args"]
    else:
        source, name, args = _resolve(config.name)
    options = args | _options(config, name=name, image_size=image_size)
    if weights is not None:
        options["pretrained_cfg_overlay"] = {"state_dict": weights}
    try:
        pretrained = saved is None and (config.pretrained or weights is not None)
        model = _create(source, pretrained=pretrained, options=options)
    except ModelError as error:
        if weights is None:
            raise
        options.pop("pretrained_cfg_overlay")
        model = _create(source, pretrained=False, options=options)  # raises too, if the weights are not to blame
        raise _misfit(model, weights, name=name, file=config.weights or "") from error
    model.pretrained_cfg["model_args"] = args
    if saved is not None:  # by its name, timm finds the mean and std of other weights
        model.pretrained_cfg |= {"mean": saved["mean"], "std": saved["std"]}
    if weights is not None:
        del model.pretrained_cfg["state_dict"]  # they would stay in memory as long as the model
        if any(name not in weights for name, _ in model.named_parameters()):  # timm says nothing of these
            raise _misfit(model, weights, name=name, file=config.weights or "")
    return _finish(model, config)


def _resolve(name: str) -> tuple[str, str, dict[str, Any]]:
    """timm's name of the source, the name of its architecture, and the arguments in its own config."""
    try:
        if Path(name).is_dir():
            own = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
            return f"{FOLDER}{name}", own["architecture"], own.get("model_args", {})
        if name.startswith(HUB):
            with hub.one_attempt(name):
                _, architecture, args = load_model_config_from_hf(name.removeprefix(HUB))
            return name, architecture, args
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"`{name}` is not a timm model: {first_line(error)}", OFFLINE_HINT) from error
    if os.sep in name:
        raise ModelError(
            f"`model.image.name`: there is no folder `{name}`", f"for a model on the hub write `{HUB}{name}`"
        )
    return name, name, {}


def _options(config: TimmImage, *, name: str, image_size: int) -> dict[str, Any]:
    """The arguments for timm: only what the config sets, because not every model accepts every argument."""
    options: dict[str, Any] = {"num_classes": config.num_classes}
    if config.global_pool is not None:
        options["global_pool"] = "" if config.global_pool == "none" else config.global_pool
    if config.drop_rate:
        options["drop_rate"] = config.drop_rate
    if config.drop_path_rate:
        options["drop_path_rate"] = config.drop_path_rate
    # Transformers have one position embedding per patch, so they are built for the size; timm resamples the weights.
    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if published is not None and published.fixed_input_size:
        options["img_size"] = image_size
    return options


def _create(name: str, *, pretrained: bool, options: dict[str, Any]) -> Any:
    has_weights = name.startswith(FOLDER) or "pretrained_cfg_overlay" in options
    asks_hub = name.startswith(HUB) or (pretrained and not has_weights)
    try:
        with hub.one_attempt(name) if asks_hub else nullcontext():
            return timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise ModelError(
            f"the weights of the image encoder `{name}` cannot be loaded: {first_line(error)}", OFFLINE_HINT
        ) from error
    except Exception as error:  # timm's models raise any kind of error
        raise ModelError(
            f"timm cannot build the image encoder `{name}`: {first_line(error)}", _suggestion(name)
        ) from error


def _suggestion(name: str) -> str:
    if timm.is_model(name) or name.startswith((FOLDER, HUB)):
        return "check `model.image` and `data.image_size`: not every model takes every option and size"
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    return f"did you mean {', '.join(f'`{n}`' for n in near)}?" if near else "`timm.list_models()` lists the names"


def _read_weights(path: str) -> dict[str, torch.Tensor]:
    try:
        return dict(load_state_dict(path, weights_only=True))
    except FileNotFoundError as error:
        raise ModelError(
            f"`model.image.weights`: there is no file `{path}`", "a relative path starts at the working directory"
        ) from error
    except Exception as error:  # torch, pickle and safetensors each have their own errors
        raise ModelError(
            f"`{path}` cannot be read as weights: {first_line(error)}",
            "clipkit reads `.safetensors` files, and `.pth` files that contain only tensors",
        ) from error


def _misfit(model: nn.Module, weights: dict[str, torch.Tensor], *, name: str, file: str) -> ModelError:
    """What distinguishes a file of weights from the model, and which model its name suggests."""
    own = {parameter: tensor.shape for parameter, tensor in model.named_parameters()}
    reshaped = [
        f"`{parameter}` is {list(weights[parameter].shape)}, not {list(shape)}"
        for parameter, shape in own.items()
        if parameter in weights and weights[parameter].shape != shape
    ]
    missing = [f"`{parameter}` is missing" for parameter in own if parameter not in weights]
    found = [*reshaped[:1], *missing[:1]]
    near = difflib.get_close_matches(Path(file).stem, timm.list_models(), n=5, cutoff=0.4)
    fitting = [candidate for candidate in near if _fits(candidate, weights)]
    return ModelError(
        f"`{file}` does not hold the weights of `{name}`: of its {len(own)} tensors {len(missing)} are missing and "
        f"{len(reshaped)} have another shape ({'; '.join(found)})",
        f"set `model.image.name: {fitting[0]}`, which they fit" if fitting else "set `model.image.name` to their model",
    )


def _fits(name: str, weights: dict[str, torch.Tensor]) -> bool:
    """Whether weights have the names and shapes of a timm model's features."""
    with torch.device("meta"):
        own = dict(timm.create_model(name, num_classes=0).named_parameters())
    return all(name in weights and weights[name].shape == parameter.shape for name, parameter in own.items())


def _finish(model: Any, config: TimmImage) -> Any:
    if config.norm == "frozen":
        model = freeze_batch_norm_2d(model)
    elif config.norm == "sync" and torch.distributed.is_initialized():
        if not torch.cuda.is_available():
            raise ModelError("SyncBatchNorm runs only on GPUs", "use `model.image.norm: frozen` or `batch`")
        model = convert_sync_batchnorm(model)
    if config.checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, RuntimeError) as error:
            raise ModelError(
                f"the image encoder `{config.name}` has no activation checkpointing in timm",
                "set `model.image.checkpointing: false`; `train.chunk_size` saves memory with any model",
            ) from error
        keep_statistics_in_recompute(model)
    return model.to(memory_format=torch.channels_last)


def feature_dim(model: nn.Module, *, image_size: int) -> int:
    """Width of the (flattened) features for images of this size, from one forward pass."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference mode: some models cache tensors for later
            width = model(torch.zeros(1, 3, image_size, image_size)).flatten(1).shape[1]
    except Exception as error:  # the size is not divisible into patches, or too small for the strides
        raise ModelError(
            f"the image encoder cannot take images of {image_size} px: {first_line(error)}",
            "choose another `data.image_size`",
        ) from error
    finally:
        model.train(was_training)
    return int(width)


def describe(model: Any) -> dict[str, Any]:
    """JSON from which this timm model can be rebuilt without its folder or the hub."""
    published = model.pretrained_cfg
    return {
        "name": published["architecture"],
        "args": published["model_args"],
        "mean": list(published["mean"]),
        "std": list(published["std"]),
    }
