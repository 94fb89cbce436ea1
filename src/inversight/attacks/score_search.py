"""What attacks without gradients share: the loop of a search by the target's answers alone.

An attack says how a search starts (:meth:`QuerySearch.begin`) and takes its next step
(:meth:`Search.advance`). Limits of queries, progress and the final selection are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions
from inversight.attacks.base_attack import Problem
from inversight.attacks.queries import QueriesSpentError
from inversight.attacks.selection import CropSelection, Pool, Selection, classified_pool
from inversight.attacks.workload import Workload
from inversight.core.config import Fraction, settings
from inversight.core.progress import Figures
from inversight.core.seeding import generator
from inversight.models.target import Access


class Search(ABC):
    """The state of a search of all classes of ``problem`` at once.

    steps: at most. selectable: whether there are enough candidates to select from. note: an addition to
    the progress message.
    """

    selectable = True
    note = ""

    def __init__(self, problem: Problem, steps: int) -> None:
        self.problem, self.steps = problem, steps

    @abstractmethod
    def advance(self, step: int) -> bool:
        """Take step ``step`` (0, 1, ...) for all classes; return False if none is left to take.

        Raises:
            QueriesSpentError: the limit does not allow the step; the state is unchanged.
        """

    @abstractmethod
    def candidates(self) -> tuple[Tensor, Tensor]:
        """Return n latents of each class (L x n, ...), class by class, and their scores (L x n,).

        The higher a score, the better; the log of the target's confidence if it gives that.
        """


@settings
class QuerySearch(Selection, ABC):
    """A search that asks the target for answers, up to a limit of queries."""

    pool: PositiveInt = 5000
    """Latents sampled and classified once, for all classes together."""
    truncation: Fraction = 0.5
    """Truncation of the pool towards the mean latent (as Plug & Play: 0.5)."""
    most_queries: PositiveInt | None = None
    """Largest number of images sent to the target, over all classes. The search then ends with the best
    that it has, selected by crops only if queries are left for them. None: no limit."""

    def limited_workload(self, queries: int) -> Workload:
        """Return a workload of the pool and ``queries`` queries for each class, up to the limit."""
        return Workload(
            self.keep, self.batch_size, shared={"pool": self.pool}, forward=queries,
            scales="most_queries", limit=self.most_queries,
            limited=tuple(n for n in self.ascending if n not in ("pool", "episodes")),
        )  # fmt: skip

    def classified_pool(self, problem: Problem) -> Pool:
        """Return ``pool`` samples of the prior, classified."""
        return classified_pool(problem, self.pool, truncation=self.truncation)

    @abstractmethod
    def begin(self, problem: Problem) -> Search:
        """Return a search at its start."""

    def losses(
        self, problem: Problem, latents: Tensor, labels: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the losses (M,) of a search's candidates, and the values (M,) that rank them.

        scores: (M,), the search's own; by default they rank, and losses are their negatives.
        """
        return -scores.float(), scores

    def reconstruct(self, problem: Problem) -> Reconstructions:
        search = self.begin(problem)

        def progress(done: int, note: str) -> None:
            queries = f", {problem.meter.used:,} queries{search.note}"
            text = Figures(note + queries, queries=problem.meter.used)
            problem.progress(done, search.steps + 2, text)

        progress(1, "search started")
        try:
            for step in range(search.steps):
                if not search.advance(step):
                    break
                progress(step + 2, "steps")
        except QueriesSpentError:
            if not search.selectable:
                raise
        latents, scores = search.candidates()
        labels = search.problem.labels_of(latents)
        losses, ranking = self.losses(problem, latents, labels, scores)
        best, _ = self.best_of(search.problem, latents, losses, ranking=ranking)
        progress(search.steps + 2, "reconstructions selected")
        return best


@settings
class ScoreSearch(QuerySearch, CropSelection, ABC):
    """A search by scores; candidates that survive random crops are kept if queries are left for them."""

    access: ClassVar[Access] = Access.SCORES

    def losses(
        self, problem: Problem, latents: Tensor, labels: Tensor, scores: Tensor
    ) -> tuple[Tensor, Tensor]:
        rng = generator(problem.seed, "crops")
        try:
            confidence = self.robust_confidence(problem, latents, labels, rng=rng)
        except QueriesSpentError:
            return 1.0 - scores.exp(), scores
        return 1.0 - confidence, confidence
