"""Guidance for tests of the adversarial game: a gradient that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from inversight.priors.guidance import GeneratedBatch, SecondDiscriminator


class FixedGuidance:
    """A guidance of one gradient, ``pull(images)``, times ``times``; notes what it was told."""

    def __init__(self, pull: Callable[[Tensor], Tensor], times: float = 1.0) -> None:
        self.state: dict[str, float] = {}
        self.logged: dict[str, float] = {}
        self.second: SecondDiscriminator | None = None
        self.pull = pull
        self.times = times
        self.seen: list[Tensor] = []
        self.measured: list[tuple[float, float]] = []

    def __call__(self, images: Tensor, batch: GeneratedBatch) -> dict[str, Tensor]:
        self.seen.append(images)
        return {"pull": self.pull(images)}

    def due(self, step: int) -> bool:
        return True

    def measure(self, gan: float, terms: Mapping[str, float]) -> None:
        self.measured.append((gan, terms["pull"]))

    def factor(self, name: str) -> float:
        return self.times
