"""The kinds of values that a config holds, and what every section has in common."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([kM]?)(st|ep|sa|min)$")
PERCENT = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")


def parse_duration(text: str) -> tuple[float, str]:
    """`10ep` to (10.0, "ep"); units are st (steps), ep (epochs), sa (samples) and min, with k or M before."""
    match = DURATION.match(text.strip())
    if not match:
        raise ValueError(f"`{text}` is no duration; write 2000st, 10ep, 1Msa or 30min")
    value = float(match[1]) * {"": 1, "k": 1e3, "M": 1e6}[match[2]]
    return value, match[3]


def _check_duration(value: str) -> str:
    if parse_duration(value)[0] <= 0:
        raise ValueError(f"`{value}` must be more than nothing")
    return value


def _check_warmup(value: str) -> str:
    if match := PERCENT.match(value.strip()):
        if float(match[1]) > 100:
            raise ValueError(f"`{value}` is more than 100 %")
        return value
    parse_duration(value)
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is meant here, not true or false")
    return value


def is_section(value: Any) -> str:
    return "section" if isinstance(value, dict | BaseModel) else "plain"


Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]
Duration = Annotated[str, AfterValidator(_check_duration)]
Warmup = Annotated[str, AfterValidator(_check_warmup)]
Share = Annotated[float, BeforeValidator(_no_bool), Field(gt=0, le=1)]
Dropout = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)]


class Conflicts(ValueError):
    """Keys that do not fit together: (the key to blame, counted from the section, what is wrong)."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
