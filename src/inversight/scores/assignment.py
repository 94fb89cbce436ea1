"""The nearest private image of each reconstruction, and the reverse: all that DDCS needs of distances.

Each reconstruction is assigned independently, so assignments of several sets of reconstructions can be
joined later, and their union scores as if all had been scored at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.core.checkpoints import tensors_below
from inversight.embeddings.base import Features
from inversight.embeddings.distances import squared_distances
from inversight.scores.classwise import TIE, bounded, rows_by_class, take


@dataclass(frozen=True)
class Assignment:
    """N private images against M reconstructions, in the row order of both.

    owner: (M,) int64, row of the private image of its class that each reconstruction is nearest to,
    -1 where none was compared. distance: (M,) float64, to it. nearest: (N,) float64, distance of each
    private image to the nearest reconstruction of its class, assigned to it or not, infinite where
    there is none. nearest_row: (N,) int64, that reconstruction's row, or -1.
    """

    owner: Tensor
    distance: Tensor
    nearest: Tensor
    nearest_row: Tensor


class Assigner:
    """Builds an assignment from distances that come tile by tile, in any order.

    Among equal distances (up to a relative 1e-8) the id that sorts first wins, on both sides.
    """

    def __init__(self, private: Sequence[str], reconstructions: Sequence[str]) -> None:
        self._ranks = rank(private), rank(reconstructions)
        self._nearest = [_Nearest(len(private)), _Nearest(len(reconstructions))]

    def see(self, rows: Tensor, columns: Tensor, distances: Tensor) -> None:
        """Add distances (a, b) of private ``rows`` (a,) to reconstruction ``columns`` (b,)."""
        row_ranks, column_ranks = self._ranks[0][rows], self._ranks[1][columns]
        self._nearest[0].see(rows, distances, columns, column_ranks)
        self._nearest[1].see(columns, distances.T, rows, row_ranks)

    def state(self) -> dict[str, Tensor]:
        """Return everything seen so far, for a checkpoint."""
        return {
            f"{i}/{k}": v for i, side in enumerate(self._nearest) for k, v in vars(side).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a :meth:`state`."""
        for i, side in enumerate(self._nearest):
            vars(side).update(tensors_below(state, str(i)))

    def result(self) -> Assignment:
        """Return the assignment by everything seen so far."""
        private, reconstructed = self._nearest
        return Assignment(reconstructed.row, reconstructed.distance, private.distance, private.row)


class _Nearest:
    """The nearest other row of each row, and its distance."""

    def __init__(self, rows: int) -> None:
        self.distance = torch.full((rows,), float("inf"), dtype=torch.float64)
        self.row = torch.full((rows,), -1, dtype=torch.int64)
        self._rank = torch.full((rows,), torch.iinfo(torch.int64).max)

    def see(self, rows: Tensor, distances: Tensor, others: Tensor, ranks: Tensor) -> None:
        smallest = distances.amin(1, keepdim=True)
        equal = distances <= smallest * (1.0 + TIE)
        # Among equal ones the id that sorts first, which has the smallest rank.
        column = ranks.expand_as(distances).masked_fill(~equal, torch.iinfo(torch.int64).max)
        column = column.argmin(1)
        # The smallest distance itself, so that the result does not depend on the tiles.
        self.merge(rows, smallest.squeeze(1), others[column], ranks[column])

    def merge(self, rows: Tensor, found: Tensor, others: Tensor, ranks: Tensor) -> None:
        """Add one candidate for each of ``rows``: its distance, its row and its rank."""
        before = self.distance[rows]
        tie = (found <= before * (1.0 + TIE)) & (before <= found * (1.0 + TIE))
        nearer = torch.where(tie, ranks < self._rank[rows], found < before)
        self.row[rows] = torch.where(nearer, others, self.row[rows])
        self._rank[rows] = torch.where(nearer, ranks, self._rank[rows])
        self.distance[rows] = torch.minimum(found, before)


def assign(private: Features, reconstructions: Features, *, memory: int) -> Assignment:
    """Return the assignment of features, class by class, within ``memory`` bytes.

    Raises:
        ConfigError: ``memory`` is not positive.
    """
    assigner = Assigner(private.ids, reconstructions.ids)
    reconstructed = rows_by_class(reconstructions)
    for label, rows in rows_by_class(private).items():
        if label not in reconstructed:
            continue
        own = take(private, rows)
        for part in bounded(reconstructions, reconstructed[label], len(rows), memory):
            distances = squared_distances(own, take(reconstructions, part))
            assigner.see(rows, part, distances.cpu())
    return assigner.result()


def rank(ids: Sequence[str]) -> Tensor:
    """Return the position (N,) int64 of each id when they are sorted."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return torch.tensor(order, dtype=torch.int64).argsort()


def union(parts: Sequence[Assignment], ids: Sequence[Sequence[str]]) -> Assignment:
    """Return the assignment of several sets to the same private images, as one set after another.

    ``ids``: each set's names, distinct over all of them.
    """
    ranks = rank([name for names in ids for name in names])
    nearest = _Nearest(len(parts[0].nearest))
    offset = 0
    for part, names in zip(parts, ids, strict=True):
        rows = (part.nearest_row >= 0).nonzero().squeeze(1)
        others = part.nearest_row[rows] + offset
        nearest.merge(rows, part.nearest[rows], others, ranks[others])
        offset += len(names)
    owner, distance = (torch.cat([getattr(p, k) for p in parts]) for k in ("owner", "distance"))
    return Assignment(owner, distance, nearest.distance, nearest.row)
