"""What every score returns: numbers for ``metrics.json`` and one value for each judged image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from torch import Tensor


@dataclass(frozen=True)
class Summary:
    """One number of ``metrics.json``.

    value: finite, or None where it could not be computed; then ``reason`` says why.
    low, high: bounds of a 95 % interval, None where there is none.
    features: name of the features it was measured on, where that is part of its meaning.
    extra: counts and settings that belong to the number, by name.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    features: str | None = None
    extra: Mapping[str, float | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.value is None) != (self.reason is not None):
            raise ValueError("a summary has either a value or the reason why it has none")
        for number in (self.value, self.low, self.high):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"a summary holds finite numbers or None, found {number}")

    def as_json(self) -> dict[str, float | int | str | None]:
        """``value``, ``low`` and ``high`` always; ``reason`` and ``features`` if set; ``extra``."""
        out: dict[str, float | int | str | None] = {
            "value": self.value,
            "low": self.low,
            "high": self.high,
        }
        if self.reason is not None:
            out["reason"] = self.reason
        if self.features is not None:
            out["features"] = self.features
        return {**out, **self.extra, **out}


@dataclass(frozen=True)
class ScoreResult:
    """What a score found.

    name: the score's name. direction: which way its values mean more leakage; meaning: that in
    words. summary: by key of ``metrics.json``. per_sample: by column name, one value for each row
    of the set named by ``rows``, in that set's row order.
    """

    name: str
    direction: Literal["higher", "lower"]
    meaning: str
    rows: Literal["private", "reconstructions"]
    summary: Mapping[str, Summary]
    per_sample: Mapping[str, Tensor]

    def on_features(self, name: str) -> Self:
        """The same result with every summary naming the features it was measured on."""
        named = {key: replace(value, features=name) for key, value in self.summary.items()}
        return replace(self, summary=named)
