"""The types of values in a config, and the base class of its sections."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([kM]?)(st|ep|sa|min)$")
PRETRAINED = "pretrained"  # frozen throughout if the group starts from pretrained weights, otherwise trained
NAME = re.compile(r"^[A-Za-z0-9_-][A-Za-z0-9._-]*\Z")
PERCENT = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")


def parse_duration(text: str) -> tuple[float, str]:
    """`10ep` to (10.0, "ep"); units are st (steps), ep (epochs), sa (samples) and min, with k or M before."""
    match = DURATION.match(text.strip())
    if not match:
        raise ValueError(f"`{text}` is not a duration; write 2000st, 10ep, 1Msa or 30min")
    value = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6}[match[2]]
    return value, match[3]


def _check_duration(value: Any) -> str:
    if parse_duration(str(value))[0] <= 0:
        raise ValueError(f"`{value}` must be more than 0")
    return str(value)


def _check_warmup(value: Any) -> str:
    if match := PERCENT.match(str(value).strip()):
        if float(match[1]) > 100:
            raise ValueError(f"`{value}` is more than 100 %")
    elif not DURATION.match(str(value).strip()):
        raise ValueError(
            f"`{value}` is not a warm-up; write a share of the run such as 3%, or a duration such as 500st"
        )
    return str(value)


def _check_frozen(value: Any) -> str:
    if value == PRETRAINED:
        return PRETRAINED
    if not DURATION.match(str(value).strip()):
        raise ValueError(f"`{value}` is not a duration; write 500st or 3ep, or `{PRETRAINED}`")
    return _check_duration(value)


def _check_name(value: str) -> str:
    if not NAME.match(value):
        raise ValueError(f"`{value}` is not a name; use letters, digits, `_`, `-` and, except at the start, `.`")
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def is_section(value: Any) -> str:
    return "section" if isinstance(value, dict | BaseModel) else "plain"


# `clipkit config` prints the titles as the types.
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False, title="number")]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False, title="number > 0")]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False, title="number >= 0")]
Fraction = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1, title="number from 0 to 1")]
Share = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1, title="number > 0 and <= 1")]
BelowOne = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1, title="number >= 0 and < 1")]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, title="whole number >= 1")]
CountOrZero = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, title="whole number >= 0")]
Duration = Annotated[str, BeforeValidator(_check_duration), Field(title="duration")]
Warmup = Annotated[str, BeforeValidator(_check_warmup), Field(title="percentage | duration")]
Name = Annotated[str, AfterValidator(_check_name)]
Frozen = Annotated[str, BeforeValidator(_check_frozen), Field(title="duration | pretrained")]


class Conflicts(ValueError):
    """Keys that do not fit together: pairs of the key to blame, relative to the section, and what is wrong."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    defined: ClassVar[list[type[Section]]] = []
    """Every section, in the order of definition."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        Section.defined.append(cls)
