"""What attacks without gradients share: the outer call of a search by the target's answers alone.

An attack says how a search starts (:meth:`QuerySearch.begin`) and takes its next step
(:meth:`Search.advance`). Limits of queries, progress and the final selection are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from pydantic import PositiveInt
from torch import Tensor

from inversight.attacks.base import AttackSettings, Reconstructions
from inversight.attacks.queries import QueriesSpentError, QueryMeter, check_queries, restricted
from inversight.attacks.selection import CropSelection, Pool, classified_pool
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.models.target import Access, Target
from inversight.priors.base import Prior


@dataclass(frozen=True)
class Problem:
    """The arguments of an attack, and the seed from which all of its randomness derives.

    target: with the attack's access alone; every query is counted by ``meter``.
    """

    target: Target
    prior: Prior
    labels: Tensor
    seed: int
    meter: QueryMeter
    batch_size: int

    def log_probabilities(self, latents: Tensor) -> Tensor:
        """Return the logs of the target's probabilities for M latents' images, (M, K): M queries."""
        return self._answers(latents, lambda logits: logits.log_softmax(1))

    def log_confidence(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return the logs of the target's confidence in each latent's label, (M,): M queries."""
        return self.log_probabilities(latents).gather(1, labels[:, None]).squeeze(1)

    def predicted_classes(self, latents: Tensor) -> Tensor:
        """Return the predicted class of each latent's image, (M,) int64: M queries."""
        return self._answers(latents, lambda logits: logits.argmax(1))

    @torch.no_grad()
    def _answers(self, latents: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what is read from the logits of M latents' images, on the CPU.

        Raises:
            QueriesSpentError: the limit does not allow M queries; none is sent.
        """
        check_queries(self.target, len(latents))
        images = map(self.prior, latents.split(self.batch_size))
        return torch.cat([read(self.target(batch)).cpu() for batch in images])

    def rngs(self, name: str) -> list[torch.Generator]:
        """Return a generator for each class, which does not depend on the other classes."""
        return [generator(self.seed, name, label) for label in self.labels.tolist()]


class Search(ABC):
    """The state of a search of all classes at once.

    labels: (L,), the classes that are searched for. note: an addition to the progress message.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.labels = problem.labels
        self.note = ""

    @abstractmethod
    def advance(self, step: int) -> bool:
        """Take step ``step`` (0, 1, ...) for all classes; return False if none is left to take.

        Raises:
            QueriesSpentError: the limit does not allow the step; the state is unchanged.
        """

    @property
    def selectable(self) -> bool:
        """Whether there are enough candidates to select from."""
        return True

    @abstractmethod
    def candidates(self) -> tuple[Tensor, Tensor]:
        """Return latents (L, n, ...) and their scores (L, n), the higher the better.

        Scores are the logs of the target's confidences if it gives them.
        """


@settings
class QuerySearch(AttackSettings, ABC):
    """A search that asks the target for answers, up to a limit of queries."""

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together."""
    truncation: Fraction = 0.5
    """Truncation of the pool towards the mean latent (as Plug & Play: 0.5)."""
    most_queries: PositiveInt | None = None
    """Largest number of images sent to the target, over all classes. The search then ends with the best
    that it has, selected by crops only if queries are left for them. None: no limit."""

    @property
    @abstractmethod
    def max_steps(self) -> int:
        """Steps of the search at most."""

    @property
    @abstractmethod
    def access(self) -> Access:
        """The least access to the target that the attack needs."""

    @abstractmethod
    def workload(self, prior: Prior) -> Workload:
        """Return the work of the attack with this prior."""

    def limited_workload(self, queries: int) -> Workload:
        """Return a workload of the pool and ``queries`` queries for each class, up to the limit."""
        return Workload(
            kept=self.keep,
            batch_size=self.batch_size,
            shared={"pool": self.pool},
            forward=queries,
            scales="most_queries",
            limit=self.most_queries,
            limited=tuple(n for n in self.ascending if n not in ("pool", "episodes")),
        )

    def classified_pool(self, problem: Problem) -> Pool:
        """Return ``pool`` samples of the prior, classified."""
        return classified_pool(
            problem.target, problem.prior, self.pool, truncation=self.truncation,
            batch_size=self.batch_size, rng=generator(problem.seed, "pool"),
        )  # fmt: skip

    @abstractmethod
    def begin(self, problem: Problem) -> Search:
        """Return a search at its start."""

    @abstractmethod
    def select(self, problem: Problem, search: Search) -> Reconstructions:
        """Return the reconstructions of a search that has ended."""

    def run(
        self,
        target: Target,
        prior: Prior,
        labels: Tensor,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions:
        """Reconstruct each class in ``labels`` (distinct class indices).

        Raises:
            InputError: the target gives too little access, or the settings contradict each other.
            QueriesSpentError: the limit does not even cover the start of the search.
        """
        target, meter = restricted(self, target, prior, self.most_queries)
        problem = Problem(target, prior, labels, draw_seed(rng), meter, self.batch_size)
        total = self.max_steps + 2
        search = self.begin(problem)
        progress(1, total, f"search started, {meter.used:,} queries{search.note}")
        try:
            for step in range(self.max_steps):
                if not search.advance(step):
                    break
                progress(step + 2, total, f"steps, {meter.used:,} queries{search.note}")
        except QueriesSpentError:
            if not search.selectable:
                raise
        reconstructions = self.select(problem, search)
        progress(total, total, f"reconstructions selected, {meter.used:,} queries{search.note}")
        return replace(reconstructions, queries=meter.used)


@settings
class ScoreSearch(QuerySearch, CropSelection, ABC):
    """A search by scores; candidates that survive random crops are kept if queries are left for them."""

    @property
    def access(self) -> Access:
        return Access.SCORES

    def select(self, problem: Problem, search: Search) -> Reconstructions:
        latents, scores = search.candidates()
        labels = search.labels.repeat_interleave(latents.shape[1])
        latents, ranking = latents.flatten(0, 1), scores.flatten()
        try:
            confidence = ranking = self.robust_confidence(
                problem.target, problem.prior, latents, labels, rng=generator(problem.seed, "crops")
            )
        except QueriesSpentError:
            confidence = ranking.exp()
        return self.best(problem.prior, latents, labels, confidence, ranking)[0]
