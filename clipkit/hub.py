"""Reaching the Hugging Face hub: asked once, briefly, so that a machine without a network is told so at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_session

CONNECT_TIMEOUT_S = 5.0
OFFLINE_TEXT_HINT = (
    "without a network point `model.text.name` at a local folder with the model's files (with `pretrained: false` its "
    "`config.json` and tokenizer are enough), or leave it out and train from scratch with `model.text.architecture`"
)


@contextmanager
def one_attempt(name: str) -> Iterator[None]:
    """Let the hub's libraries load this model from their cache alone where the hub does not answer.

    Left to themselves they try each file six times, which takes from half a minute to several. A local folder needs
    no hub, and so none is asked.
    """
    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was_offline or not (Path(name).is_dir() or _is_reachable())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


@cache
def _is_reachable() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=CONNECT_TIMEOUT_S, follow_redirects=False)
    except Exception:  # whatever the client raises (name resolution, proxy, TLS, time), there is no hub
        return False
    return True
