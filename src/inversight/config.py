"""Settings as frozen dataclasses whose fields document and validate themselves.

``@settings`` makes a class a frozen, keyword-only pydantic dataclass: the docstring under each field
is its printed meaning, its type is its validation, and unknown names are refused.
"""

from __future__ import annotations

from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")

_CONFIG = ConfigDict(
    extra="forbid",
    use_attribute_docstrings=True,
    arbitrary_types_allowed=True,
    validate_default=True,
)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only, validated dataclass with documented fields."""
    wrapped: Any = pydantic_dataclass(config=_CONFIG, frozen=True, kw_only=True)(cls)
    return wrapped  # type: ignore[no-any-return]
