"""The outer call that the attacks of this package share; each attack writes only its own step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions, check_fits, truncated
from inversight.attacks.queries import QueryMeter, check_queries, metered
from inversight.attacks.workload import Workload
from inversight.core.config import settings
from inversight.core.errors import InputError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access, Target
from inversight.priors.base import Prior


@dataclass(frozen=True)
class Problem:
    """The arguments of an attack, and the seed from which all of its randomness derives.

    target: with the attack's access alone; every query is counted by ``meter``. batch_size: images that
    go through prior and target at once.
    """

    target: Target
    prior: Prior
    labels: Tensor
    seed: int
    progress: Progress
    meter: QueryMeter
    batch_size: int

    @property
    def device(self) -> torch.device:
        """The device of the prior's latents."""
        return self.prior.sample(1, rng=generator(0)).device

    def rngs(self, name: str) -> list[torch.Generator]:
        """Return a generator for each class, which does not depend on the other classes."""
        return [generator(self.seed, name, label) for label in self.labels.tolist()]

    def sample(self, count: int, truncation: float, *use: str | int) -> Tensor:
        """Draw ``count`` latents of the prior, truncated if it can be, for the use of that name."""
        rng = generator(self.seed, *use)
        return truncated(self.prior, truncation).sample(count, rng=rng)

    def labels_of(self, candidates: Tensor) -> Tensor:
        """Return the label of each of M candidates, (M,): class by class, as many of each."""
        return self.labels.repeat_interleave(len(candidates) // len(self.labels))

    def log_probabilities(self, latents: Tensor) -> Tensor:
        """Return the logs of the target's probabilities for M latents' images, (M, K): M queries."""
        return self.answers(latents, lambda logits: logits.log_softmax(1))

    def log_confidence(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the logs of the target's confidence in each latent's label, (M,): M queries.

        labels: by default those of as many latents of each class, class by class.
        """
        labels = self.labels_of(latents) if labels is None else labels
        return self.log_probabilities(latents).gather(1, labels[:, None]).squeeze(1)

    def predicted_classes(self, latents: Tensor) -> Tensor:
        """Return the predicted class of each latent's image, (M,) int64: M queries."""
        return self.answers(latents, lambda logits: logits.argmax(1))

    @torch.no_grad()
    def answers(self, latents: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what ``read`` makes of the logits of M latents' images, (M, ...) on the CPU: M queries.

        Raises:
            QueriesSpentError: the limit does not allow M queries; none is sent.
        """
        check_queries(self.target, len(latents))
        images = map(self.prior, latents.split(self.batch_size))
        return torch.cat([read(self.target(batch)).cpu() for batch in images])


@settings
class BaseAttack(ABC):
    """An attack that checks its settings, its access and its queries before it begins."""

    access: ClassVar[Access]
    """The least access to the target that the attack needs."""
    ascending: ClassVar[tuple[str, ...]] = ()
    """Names of settings whose values must not decrease from left to right."""

    batch_size: PositiveInt = 200
    """Images that go through prior and target at once; changes memory, not results."""

    @abstractmethod
    def workload(self, prior: Prior) -> Workload:
        """Return the work of the attack with this prior."""

    @abstractmethod
    def reconstruct(self, problem: Problem) -> Reconstructions:
        """Reconstruct the classes of the problem."""

    def check(self, target: Target, prior: Prior) -> None:
        """Raise if the target, the prior or the settings do not allow the attack, before any query.

        Raises:
            InputError: the prior or target lacks what the attack needs, or settings contradict
                each other.
        """
        values = {name: getattr(self, name) for name in self.ascending}
        if list(values.values()) != sorted(values.values()):
            found = ", ".join(f"{name}={value}" for name, value in values.items())
            raise InputError(
                f"{type(self).__name__}: expected {' <= '.join(values)}, found {found}"
            )

    def run(
        self, target: Target, prior: Prior, labels: Tensor, *, rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:  # fmt: skip
        """Reconstruct each class in ``labels`` (distinct class indices).

        Raises:
            InputError: the target gives too little access, target or prior lack what the attack needs,
                or the settings contradict each other.
            QueriesSpentError: the limit does not even cover the start of the attack.
            NoSampleError: the attack needs a sample of a class, and the prior has none of any of them.
        """
        check_fits(self, target, prior)
        limit = self.workload(prior).limit
        meter = QueryMeter(getattr(self, "most_queries", None) if limit is None else limit)
        allowed = metered(target, self.access, meter)
        seed = draw_seed(rng)
        problem = Problem(allowed, prior, labels, seed, progress, meter, self.batch_size)
        return replace(self.reconstruct(problem), queries=meter.used)
