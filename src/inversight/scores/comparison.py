"""Assignments between several sets of images, with each image through the embedding once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from inversight.core.checkpoints import tensors_below
from inversight.core.progress import Progress, silent
from inversight.core.run import atomic_file
from inversight.embeddings.base import Embedding
from inversight.embeddings.pairs import Workspace, image_pairs
from inversight.scores.assignment import Assigner, Assignment

_CHECKPOINT_SECONDS = 30.0


class Labelled(NamedTuple):
    """Images (N, C, H, W), uint8 or floats in [0, 1], or features (N, D), with labels (N,) int64 and N ids."""

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`.

    assignments: ``[i][j]`` of real set i and reconstructed set j. neighbour_distance: (N,) float64 >= 0
    of the first real set, NaN for the only image of a class; None where it was not asked for. several:
    ``[j]`` (N,) float64, mean distance of each image of the first real set to the nearest few images of
    reconstructed set j, NaN where its class has none; empty where they were not asked for.
    """

    assignments: list[list[Assignment]]
    neighbour_distance: Tensor | None
    several: list[Tensor] = field(default_factory=list)


def compare(
    embedding: Embedding, real: Sequence[Labelled], reconstructed: Sequence[Labelled], *,
    memory: int, neighbours: int = 0, several: int = 0, workspace: Workspace | None = None,
    checkpoint: Path | None = None, progress: Progress = silent,
) -> Comparison:  # fmt: skip
    """Compare every reconstructed set with every real one, class by class.

    All images of a class go through the embedding together, so each image goes through it once where
    ``memory`` allows it (:func:`inversight.embeddings.image_pairs`). The result does not depend on row
    order.

    Args:
        neighbours: also return the mean distance of each image of the first real set to this number of
            nearest other images of its class (to all others in smaller classes); 0 for none.
        workspace: buffers to use again, on the embedding's device; default: the CPU.
        checkpoint: file in which finished classes are kept from time to time. A later call with the
            same sets continues with the others. The caller deletes it.

    Raises:
        StageError: the embedding returned a NaN or an infinity.
    """
    assigners = [[Assigner(a.ids, b.ids) for b in reconstructed] for a in real]
    nearest = torch.full((len(real[0].ids), neighbours), float("inf"), dtype=torch.float64)
    few = [
        torch.full((len(real[0].ids), several), float("inf"), dtype=torch.float64)
        for _ in reconstructed
    ]
    done_labels: list[int] = []
    if checkpoint is not None and checkpoint.is_file():
        kept = load_file(checkpoint)
        nearest, done_labels = kept["nearest"], kept["done"].tolist()
        for i, assigner in enumerate(chain(*assigners)):
            assigner.restore(tensors_below(kept, str(i)))
    wanted = [s.labels for s in reconstructed] + ([real[0].labels] if neighbours else [])
    classes = {}
    for label in torch.cat(wanted).unique().tolist():
        rows, columns = (
            [torch.where(s.labels == label)[0] for s in sets] for sets in (real, reconstructed)
        )
        if not sum(map(len, columns)):  # only the first set is looked at, for its neighbours
            rows = [rows[0], *(index[:0] for index in rows[1:])]
        classes[label] = rows, columns
    counts = {k: sum(map(len, rows)) + sum(map(len, cols)) for k, (rows, cols) in classes.items()}
    done, total = sum(counts[k] for k in done_labels), sum(counts.values())
    workspace = workspace or Workspace()
    saved = time.monotonic()
    for label, (rows, columns) in classes.items():
        if label in done_labels:
            continue

        def seen(images: int) -> None:
            nonlocal done
            # Repeated passes for lack of memory are not counted.
            done = min(done + images, total)
            progress(done, total, embedding.name)

        names = [
            [s.ids[i] for s, index in zip(sets, found, strict=True) for i in index.tolist()]
            for sets, found in ((real, rows), (reconstructed, columns))
        ]
        for tile in image_pairs(
            embedding,
            [s.images[index] for s, index in zip(real, rows, strict=True)],
            [s.images[index] for s, index in zip(reconstructed, columns, strict=True)],
            memory=memory, within=len(rows[0]) if neighbours else 0, workspace=workspace,
            names=names, seen=seen,
        ):  # fmt: skip
            if tile.within:
                _see_neighbours(nearest, rows[0], tile.left, tile.right, tile.distances)
                continue
            for i, mine, at in _split(tile.left, rows):
                for j, theirs, to in _split(tile.right, columns):
                    found = tile.distances[mine][:, theirs]
                    assigners[i][j].see(at, to, found)
                    if several and not i:
                        few[j][at] = _smallest(few[j][at], found)
        done_labels.append(label)
        if checkpoint is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            # Whole classes only, so that a resumed comparison equals one that was not stopped.
            kept = {"nearest": nearest, "done": torch.tensor(done_labels)}
            for i, assigner in enumerate(chain(*assigners)):
                kept |= {f"{i}/{k}": v.contiguous() for k, v in assigner.state().items()}
            with atomic_file(checkpoint) as partial:
                save_file(kept, partial)
            saved = time.monotonic()
    known = nearest.masked_fill(nearest.isinf(), float("nan"))
    return Comparison(
        [[assigner.result() for assigner in row] for row in assigners],
        known.nanmean(1) if neighbours else None,
        [one.masked_fill(one.isinf(), float("nan")).nanmean(1) for one in few] if several else [],
    )


def _see_neighbours(
    nearest: Tensor, rows: Tensor, left: Tensor, right: Tensor, distances: Tensor
) -> None:
    """Update ``nearest`` (N, k) with distances among the images at ``rows`` of one class."""
    left_own, right_own = left < len(rows), right < len(rows)
    left, right = left[left_own], right[right_own]
    itself = left[:, None] == right[None, :]
    found = distances[left_own][:, right_own].masked_fill(itself, float("inf"))
    nearest[rows[left]] = _smallest(nearest[rows[left]], found)


def _smallest(known: Tensor, found: Tensor) -> Tensor:
    """Return the k smallest of ``known`` (N, k) and ``found`` (N, M) in each row, in order."""
    return torch.cat([known, found], dim=1).topk(known.shape[1], dim=1, largest=False).values


def _split(index: Tensor, rows: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (set, mask over ``index``, row in the set) for positions in the sets' joined ``rows``."""
    start = 0
    for number, own in enumerate(rows):
        mask = (index >= start) & (index < start + len(own))
        if bool(mask.any()):
            yield number, mask, own[index[mask] - start]
        start += len(own)
