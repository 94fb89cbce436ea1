"""Which private image each reconstruction is nearest to: all that DDCS needs to know of distances.

Assigning a reconstruction asks for its own distances alone, so that assignments of several sets of
reconstructions can be put together later, and their union scores as if it had been scored at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Makes an assignment from distances that come tile by tile, in any order.

    Distances that are equal (to 1e-8 of themselves) go to the id that sorts first, on both sides.
    """

    def __init__(self, private: Sequence[str], reconstructions: Sequence[str]) -> None:
        self._ranks = rank(private), rank(reconstructions)
        self._nearest = [_Nearest(len(private)), _Nearest(len(reconstructions))]

    def see(self, rows: Tensor, columns: Tensor, distances: Tensor) -> None:
        """Distances (a, b) of private ``rows`` (a,) to reconstruction ``columns`` (b,)."""
        row_ranks, column_ranks = self._ranks[0][rows], self._ranks[1][columns]
        self._nearest[0].see(rows, distances, columns, column_ranks)
        self._nearest[1].see(columns, distances.T, rows, row_ranks)

    def state(self) -> dict[str, Tensor]:
        """What was seen so far, for a checkpoint."""
        names = ("private", "reconstructions")
        return {
            f"{name}/{key}": value
            for name, nearest in zip(names, self._nearest, strict=True)
            for key, value in vars(nearest).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        for name, nearest in zip(("private", "reconstructions"), self._nearest, strict=True):
            for key in vars(nearest):
                setattr(nearest, key, state[f"{name}/{key}"])

    def result(self) -> Assignment:
        """What was seen so far."""
        ours, theirs = self._nearest
        return Assignment(theirs.row, theirs.distance, ours.distance, ours.row)


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
        # The smallest distance itself, so that nothing depends on how tiles are cut.
        self.merge(rows, smallest.squeeze(1), others[column], ranks[column])

    def merge(self, rows: Tensor, found: Tensor, others: Tensor, ranks: Tensor) -> None:
        """One more candidate for each of ``rows``: its distance, its row and its rank."""
        before = self.distance[rows]
        tie = (found <= before * (1.0 + TIE)) & (before <= found * (1.0 + TIE))
        nearer = torch.where(tie, ranks < self._rank[rows], found < before)
        self.row[rows] = torch.where(nearer, others, self.row[rows])
        self._rank[rows] = torch.where(nearer, ranks, self._rank[rows])
        self.distance[rows] = torch.minimum(found, before)


def assign(private: Features, reconstructions: Features, *, memory: int) -> Assignment:
    """Compare the features of every class that both have, within ``memory`` bytes.

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
    """Position (N,) int64 of each id when they are sorted."""
    ranks = torch.empty(len(ids), dtype=torch.int64)
    ranks[torch.tensor(sorted(range(len(ids)), key=ids.__getitem__), dtype=torch.int64)] = (
        torch.arange(len(ids))
    )
    return ranks


def union(parts: Sequence[Assignment], ids: Sequence[Sequence[str]]) -> Assignment:
    """Several sets of reconstructions against the same private images, as one set, one after another.

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
    return Assignment(
        owner=torch.cat([p.owner for p in parts]),
        distance=torch.cat([p.distance for p in parts]),
        nearest=nearest.distance,
        nearest_row=nearest.row,
    )
