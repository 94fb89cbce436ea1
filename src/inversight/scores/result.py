"""The results of scores: numbers for ``metrics.json`` and one value for each image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from torch import Tensor

Extra = Mapping[str, float | int | str]


@dataclass(frozen=True)
class Summary:
    """One number of ``metrics.json``.

    value: finite, or None where it could not be computed; then ``reason`` says why.
    low, high: bounds of a 95 % interval, None where there is none.
    features: name of the features it was measured on, where that is part of its meaning.
    extra: counts and settings that belong to the number, by name.
    caveat: why the value says less than it seems to, None if nothing is known against it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    features: str | None = None
    extra: Extra = field(default_factory=dict)
    caveat: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) != (self.reason is not None):
            raise ValueError("a summary has either a value or the reason why it has none")
        for number in (self.value, self.low, self.high):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"a summary holds finite numbers or None, found {number}")

    def with_caveat(self, text: str | None) -> Summary:
        """Return the summary with one more caveat, unless ``text`` is None or there is no value."""
        if text is None or self.value is None:
            return self
        return replace(self, caveat="; ".join(filter(None, (self.caveat, text))))

    def as_json(self) -> dict[str, float | int | str | None]:
        """Return ``value``, ``low``, ``high``; ``reason``, ``features``, ``caveat`` if set; ``extra``."""
        out = {name: value for name, value in vars(self).items() if name != "extra"}
        for name in ("reason", "features", "caveat"):
            if out[name] is None:
                del out[name]
        return {**out, **self.extra, **out}


@dataclass(frozen=True)
class ScoreResult:
    """The result of a score.

    direction: which way its values mean more leakage. summary: by key of ``metrics.json``.
    per_sample: by column name, one value for each row of the set named by ``rows``, in that set's row
    order.
    """

    direction: Literal["higher", "lower"]
    rows: Literal["private", "reconstructions"]
    summary: Mapping[str, Summary]
    per_sample: Mapping[str, Tensor] = field(default_factory=dict)

    def on_features(self, name: str) -> Self:
        """Return the same result with every summary naming the features it was measured on."""
        named = {key: replace(value, features=name) for key, value in self.summary.items()}
        return replace(self, summary=named)


def distance_of_sets(
    key: str, left: Tensor, right: Tensor, distance: Callable[[Tensor, Tensor], float], *,
    caveat: str | None = None, **extra: int,
) -> ScoreResult:  # fmt: skip
    """Return the distance of private (N, D) and reconstructed (M, D) features under ``key``.

    Fewer than 2 images on a side give a None value with its reason.
    """
    counts = {"private_images": len(left), "reconstructions": len(right), **extra}
    if min(len(left), len(right)) < 2:
        summary = Summary(None, reason="needs at least 2 images on both sides", extra=counts)
    else:
        summary = Summary(distance(left, right), extra=counts, caveat=caveat)
    return ScoreResult("lower", "private", {key: summary})
