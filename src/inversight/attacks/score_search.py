"""What attacks without gradients share: the loop of a search by the target's answers alone.

An attack says how a search starts (:meth:`QuerySearch.begin`) and takes its next step
(:meth:`Search.advance`). Limits of queries, progress and the final selection are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions
from inversight.attacks.base_attack import BaseAttack, Problem
from inversight.attacks.queries import QueriesSpentError
from inversight.attacks.selection import CropSelection, Pool, classified_pool
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.core.seeding import generator
from inversight.models.target import Access


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
class QuerySearch(BaseAttack, ABC):
    """A search that asks the target for answers, up to a limit of queries."""

    keep: PositiveInt = 50
    """Reconstructions kept for each class."""
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
    def query_limit(self) -> int | None:
        return self.most_queries

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
        return classified_pool(problem, self.pool, truncation=self.truncation)

    @abstractmethod
    def begin(self, problem: Problem) -> Search:
        """Return a search at its start."""

    @abstractmethod
    def select(self, problem: Problem, search: Search) -> Reconstructions:
        """Return the reconstructions of a search that has ended."""

    def reconstruct(self, problem: Problem) -> Reconstructions:
        search = self.begin(problem)

        def progress(done: int, note: str) -> None:
            queries = f", {problem.meter.used:,} queries{search.note}"
            problem.progress(done, self.max_steps + 2, note + queries)

        progress(1, "search started")
        try:
            for step in range(self.max_steps):
                if not search.advance(step):
                    break
                progress(step + 2, "steps")
        except QueriesSpentError:
            if not search.selectable:
                raise
        reconstructions = self.select(problem, search)
        progress(self.max_steps + 2, "reconstructions selected")
        return reconstructions


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
            rng = generator(problem.seed, "crops")
            confidence = ranking = self.robust_confidence(problem, latents, labels, rng=rng)
        except QueriesSpentError:
            confidence = ranking.exp()
        return self.best(problem.prior, latents, labels, confidence, ranking)[0]
