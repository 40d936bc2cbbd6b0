"""Access to the Hugging Face hub, which fails fast without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_session

CONNECT_TIMEOUT_S = 5.0
OFFLINE_TEXT_HINT = (
    "without a network, set `model.text.name` to a local folder with the model's files (with `pretrained: false` its "
    "`config.json` and tokenizer are enough), or remove it and train from scratch with `model.text.architecture`"
)


@contextmanager
def one_attempt(name: str) -> Iterator[None]:
    """Make the hub's libraries use only their cache if the hub does not answer; a local folder needs no hub.

    By default they try each file six times, which takes from half a minute to several minutes.
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
    except Exception:  # any error (name resolution, proxy, TLS, timeout) means that there is no hub
        return False
    return True
