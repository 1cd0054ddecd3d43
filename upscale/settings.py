"""What every section of the config is made of: the strict base class and the types of its numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

AUTO = "auto"


def integral(value: Any) -> Any:
    """Accept 20.0e6 for a count: YAML has no other short way to write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(integral), Field(ge=1)]
CountOrZero = Annotated[int, BeforeValidator(integral), Field(ge=0)]
Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
