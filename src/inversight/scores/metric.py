"""DDCS for one's own loop: images come in batches, and the score can be computed at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from inversight.core.errors import InputError
from inversight.core.imaging import to_float
from inversight.embeddings.base import Embedding, Identity, StagedEmbedding
from inversight.embeddings.pairs import Workspace
from inversight.scores.assignment import Assignment, union
from inversight.scores.checks import as_array, check_classes
from inversight.scores.comparison import Labelled, compare
from inversight.scores.ddcs import DDCSResult, ddcs_of


class DDCS:
    """DDCS of reconstructions that come in batches (see :func:`inversight.scores.ddcs`).

    With an ``embedding`` both sides are images, uint8 or floats in [0, 1], (N, C, H, W) with C of 1 or
    3; without one they are features (N, ...), compared by their squared distance. ``compute`` after
    another ``update`` embeds the new reconstructions only, and the private images of their classes if
    their features are too large to keep (LPIPS).

    >>> metric = DDCS(images, labels, embedding=Lpips("vgg"), device="cuda")
    >>> for batch, classes in loop: metric.update(batch, classes)
    >>> metric.compute().summary["ddcs_best"].value

    Args:
        private: (N, ...) tensor or array. labels: (N,) integers. ids: N distinct names; row numbers
            if none are given. They only decide ties.
        floor, bootstrap: as for :func:`inversight.scores.ddcs`.
        memory: bytes of features, and of reconstructions that wait to be compared.
        device: where the embedding works.

    Raises:
        InputError: shapes or types that do not match, a NaN or infinity, images outside [0, 1].
    """

    def __init__(
        self,
        private: Tensor | ArrayLike,
        labels: Tensor | ArrayLike,
        *,
        embedding: Embedding | None = None,
        ids: Sequence[str] | None = None,
        floor: float = 1e-6,
        memory: int = 2 << 30,
        bootstrap: int = 1000,
        device: torch.device | str = "cpu",
    ) -> None:
        self._embedding = embedding
        self._options: dict[str, Any] = {"floor": floor, "bootstrap": bootstrap}
        self._memory = memory
        self._work = Workspace(device)
        given = self._checked(private, "private")
        if len(given) == 0:
            raise InputError("private: expected at least one image, found none")
        classes = _labels(labels, len(given), "private")
        self._distance: Embedding = embedding or Identity()
        self._keeps_features = False
        if embedding is not None and not isinstance(embedding, StagedEmbedding):
            width = self._features(embedding, given[:1]).shape[1]
            if 4 * width * len(given) <= memory // 2:
                given, self._distance = self._features(embedding, given), Identity()
                self._keeps_features = True
        self._private = Labelled(given, classes, _named(ids, len(given), "private", 0))
        self.reset()

    def update(
        self,
        reconstructions: Tensor | ArrayLike,
        labels: Tensor | ArrayLike,
        *,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Add reconstructions (M, ...) of the classes ``labels`` (M,).

        Raises:
            InputError: as at construction, or a class that private does not have.
        """
        batch = self._checked(reconstructions, "reconstructions")
        classes = _labels(labels, len(batch), "reconstructions")
        names = _named(ids, len(batch), "reconstructions", self._count)
        check_classes(classes, names, self._private.labels)
        expected, found = self._private.images.shape[1:], batch.shape[1:]
        if self._embedding is None and expected != found:
            raise InputError(
                f"reconstructions: expected features of shape {tuple(expected)}, as private has, "
                f"found {tuple(found)}"
            )
        self._count += len(batch)
        if self._embedding is not None and self._keeps_features:
            batch = self._features(self._embedding, batch)
        self._waiting.append(Labelled(batch.clone(), classes, names))
        if sum(b.images.nbytes for b in self._waiting) > self._memory // 4:
            self._compare()

    def compute(self, *, rng: torch.Generator | None = None) -> DDCSResult:
        """Return the scores of all reconstructions so far; more may follow.

        Raises:
            InputError: no reconstruction yet.
        """
        self._compare()
        if not self._done:
            raise InputError(
                "reconstructions: expected at least one, found none; call update first"
            )
        names = [ids for _, ids in self._done]
        everything = [name for ids in names for name in ids]
        if len(set(everything)) < len(everything):
            raise InputError("reconstructions: expected distinct ids over all updates")
        return ddcs_of(
            union([assignment for assignment, _ in self._done], names), labels=self._private.labels,
            ids=self._private.ids, reconstruction_ids=everything, rng=rng, **self._options,
        )  # fmt: skip

    def reset(self) -> None:
        """Forget all reconstructions; the private images stay."""
        self._waiting: list[Labelled] = []
        self._done: list[tuple[Assignment, tuple[str, ...]]] = []
        self._count = 0

    def _compare(self) -> None:
        """Assign the waiting reconstructions."""
        # Batches of one shape and type are joined to one set.
        groups = groupby(self._waiting, key=lambda b: (b.images.shape[1:], b.images.dtype))
        sets = []
        for _, group in groups:
            images, labels, names = zip(*group, strict=True)
            ids = tuple(name for part in names for name in part)
            sets.append(Labelled(torch.cat(images), torch.cat(labels), ids))
        if sets:
            found = compare(
                self._distance, [self._private], sets, memory=self._memory, workspace=self._work
            )
            self._done += [(a, s.ids) for a, s in zip(found.assignments[0], sets, strict=True)]
        self._waiting = []

    @torch.no_grad()
    def _features(self, embedding: Embedding, images: Tensor) -> Tensor:
        parts = []
        for part in images.split(64):
            blocks = embedding(to_float(part).to(self._work.device))
            parts.append(torch.cat([b.flatten(1).float().cpu() for b in blocks], dim=1))
        return torch.cat(parts)

    def _checked(self, values: Tensor | ArrayLike, role: str) -> Tensor:
        array = as_array(values, role)
        if self._embedding is None:
            array = array.float()
            if array.ndim == 0 or not bool(array.isfinite().all()):
                raise InputError(f"{role}: expected finite features of shape (N, ...)")
            return array.reshape(len(array), math.prod(array.shape[1:]))
        if array.ndim != 4 or array.shape[1] not in (1, 3):
            raise InputError(
                f"{role}: expected images (N, 1 or 3, H, W), found shape {tuple(array.shape)}"
            )
        if array.dtype == torch.uint8:
            return array
        if not array.is_floating_point():
            raise InputError(f"{role}: expected uint8 or floats in [0, 1], found {array.dtype}")
        array = array.float()
        # Written so that a NaN fails it too.
        if len(array) and not (float(array.min()) >= 0 and float(array.max()) <= 1):
            raise InputError(
                f"{role}: expected floats in [0, 1], found values from {float(array.min()):.3g} to "
                f"{float(array.max()):.3g}; undo the normalisation or divide by 255"
            )
        return array


def _labels(given: Tensor | ArrayLike, rows: int, role: str) -> Tensor:
    labels = as_array(given, f"{role} labels")
    if labels.shape != (rows,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(
            f"{role} labels: expected {rows} integers, one for each image, found shape "
            f"{tuple(labels.shape)} and type {labels.dtype}"
        )
    return labels.long().cpu()


def _named(ids: Sequence[str] | None, rows: int, role: str, start: int) -> tuple[str, ...]:
    if ids is None:
        # Twelve digits, so that names sort as the numbers do.
        return tuple(f"{role}-{start + i:012d}" for i in range(rows))
    if len(ids) != rows or len(set(ids)) != rows:
        raise InputError(f"{role} ids: expected {rows} distinct names, found {len(set(ids))}")
    return tuple(ids)
