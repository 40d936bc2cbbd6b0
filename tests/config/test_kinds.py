"""The registry of kinds: what is registered is known to the parser, and what cannot work is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
from config_text import SMALL, parse

from clipkit.config import Section, builder_of, register
from clipkit.config.kinds import find_kind, unregister
from clipkit.errors import ConfigError


class Average(Section):
    kind: Literal["average"] = "average"
    """A head for the tests."""


class NoDefault(Section):
    kind: Literal["none"]


class InfoNCE(Section):
    kind: Literal["infonce"] = "infonce"


@pytest.fixture(autouse=True)
def _forget_afterwards() -> Iterator[None]:
    yield
    unregister(__name__.partition(".")[0])


def test_a_kind_is_known_wherever_its_slot_is_and_is_gone_afterwards() -> None:
    register("head", Average, "collections:OrderedDict")
    model = parse(SMALL, "model.text_head={kind: average}").model
    assert model.text_head == Average()  # type: ignore[attr-defined]
    assert builder_of(Average()).__name__ == "OrderedDict"
    unregister(__name__.partition(".")[0])
    assert find_kind("head", "average") is None
    with pytest.raises(ConfigError, match="`average` is not one of residual"):
        parse(SMALL, "model.text_head={kind: average}")


@pytest.mark.parametrize(
    ("slot", "section", "builder", "message"),
    [
        ("head", NoDefault, "module:build", "`NoDefault` needs a default for `kind`"),
        ("head", Average, "module.build", 'must be `"module:function"`, not `"module.build"`'),
        (
            "contrastive_loss",
            InfoNCE,
            "module:build",
            "`clipkit` already has a `contrastive_loss` of the kind `infonce`",
        ),
        ("evaluator", Average, "module:build", "`Average`, a kind of `evaluator`, must be a `EvaluatorSection`"),
    ],
)
def test_what_cannot_work_is_refused(slot: str, section: type[Section], builder: str, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        register(slot, section, builder)


@pytest.mark.parametrize("builder", ["no_such_module:build", "collections:no_such_function"])
def test_a_builder_that_does_not_exist_is_named(builder: str) -> None:
    register("head", Average, builder)
    with pytest.raises(ConfigError, match=f"the builder of `kind: average`, `{builder}`, cannot be imported"):
        builder_of(Average())
