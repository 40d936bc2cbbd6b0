"""A checkpoint folder: written completely or not at all, checked by checksums, read without unpickling.

`model.safetensors` holds the weights to evaluate (with EMA, the averaged ones), `train_state.pt` what only a resume
needs: optimizer, loss scaler and, with EMA, the weights in training. `meta.json` lists the files with size and
checksum; a checkpoint with a file that does not match is damaged.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from clipkit.errors import CheckpointError
from clipkit.files import read_json, sync, write_whole

if TYPE_CHECKING:
    import torch
    from torch import nn

META = "meta.json"
WEIGHTS = "model.safetensors"
TRAIN_STATE = "train_state.pt"


def write_checkpoint(
    folder: Path,
    *,
    weights: Mapping[str, torch.Tensor],
    train_state: Mapping[str, Any],
    meta: Mapping[str, Any],
    save_extras: Callable[[Path], None],
) -> None:
    """Write and sync the files of a checkpoint; `meta.json`, with the checksums of the others, comes last."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(dict(weights), folder / WEIGHTS)
    torch.save(train_state, folder / TRAIN_STATE)
    save_extras(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
    listed = {**meta, "files": list_files(folder)}
    write_whole(folder / META, json.dumps(listed, indent=2, ensure_ascii=False))


def read_train_state(checkpoint: Path) -> dict[str, Any]:
    import torch

    try:
        state: dict[str, Any] = torch.load(checkpoint / TRAIN_STATE, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own message advises to load it without `weights_only`
        raise CheckpointError(
            f"`{checkpoint / TRAIN_STATE}` holds more than tensors and numbers, and is not loaded",
            "clipkit did not write it: do not trust where it came from",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"`{checkpoint / TRAIN_STATE}` cannot be read: {error}", "resume from an earlier checkpoint"
        ) from error
    return state


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint / WEIGHTS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"`{checkpoint / WEIGHTS}` cannot be read: {error}", "use another checkpoint") from error


def check_fits(weights: Mapping[str, torch.Tensor], model: nn.Module, *, checkpoint: Path) -> None:
    """Raise CheckpointError, which names the differences, for weights that do not fit the model."""
    own = model.state_dict()
    differences = [f"`{name}` is missing" for name in own if name not in weights]
    differences += [f"`{name}` is unknown" for name in weights if name not in own]
    differences += [
        f"`{name}` has the shape {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if differences:
        model_text = read_meta(checkpoint).get("model", "a different one")
        shown = ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
        raise CheckpointError(
            f"the weights of `{checkpoint}` do not fit the model ({model_text}): {shown}",
            "use the `model` section of the checkpoint's own `config.yaml`",
        )


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are as they were written."""
    files = read_json(checkpoint / META).get("files")
    if not isinstance(files, dict):
        return f"`{META}` is missing or incomplete"
    for name, expected in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"`{name}` is missing"
        size = file.stat().st_size
        if size != expected["bytes"]:
            return f"`{name}` has {size} of {expected['bytes']} bytes"
        if checksum(file) != expected["crc32"]:
            return f"`{name}` has changed since it was written"
    return None


def read_meta(checkpoint: Path) -> dict[str, Any]:
    return read_json(checkpoint / META)


def list_files(folder: Path) -> dict[str, dict[str, int]]:
    """Size and checksum of every file in a folder, in the form of `meta.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != META)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": checksum(path)} for path in files
    }


def checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
