"""DDCS for someone's own loop: images come in batches, the score comes out at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from inversight.core.errors import InputError
from inversight.core.imaging import to_float
from inversight.embeddings.base import Embedding, StagedEmbedding
from inversight.embeddings.pairs import Workspace, image_pairs
from inversight.scores.assignment import Assigner, Assignment, union
from inversight.scores.checks import as_array
from inversight.scores.ddcs import DDCSResult, ddcs_of


class DDCS:
    """Keeps private images, takes reconstructions as they come; see :func:`inversight.scores.ddcs`.

    With an ``embedding`` both are images, uint8 or floats in [0, 1], (N, C, H, W) with C of 1 or 3;
    without one they are features (N, ...), whose squared distance is taken. What was compared once is
    never compared again: ``compute`` after more ``update`` costs the new reconstructions, and the
    private images of their classes where their features are too large to keep (LPIPS).

    >>> metric = DDCS(images, labels, embedding=Lpips("vgg"), device="cuda")
    >>> for batch, classes in loop: metric.update(batch, classes)
    >>> metric.compute().summary["ddcs_best"].value

    Args:
        private: (N, ...) tensor or array. labels: (N,) integers. ids: N distinct names; row numbers
            if none are given. They decide ties only.
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
        self._maker: Embedding = embedding or _Given()
        self._embedding = self._maker
        self._images = embedding is not None
        self._options = {"floor": floor, "bootstrap": bootstrap}
        self._memory = memory
        self._device = torch.device(device)
        self._work = Workspace(self._device)
        self._private = self._checked(private, "private")
        self._labels = _labels(labels, len(self._private), "private")
        if len(self._private) == 0:
            raise InputError("private: expected at least one image, found none")
        self._ids = _named(ids, len(self._private), "private", 0)
        self._rows = {
            int(y): (self._labels == y).nonzero().squeeze(1) for y in self._labels.unique()
        }
        self._width: int | None = None
        if self._images and not isinstance(embedding, StagedEmbedding):
            self._keep_features()
        self._waiting: list[tuple[Tensor, Tensor, tuple[str, ...]]] = []
        self._waiting_bytes = 0
        self._done: list[tuple[Assignment, tuple[str, ...]]] = []
        self._count = 0

    def update(
        self,
        reconstructions: Tensor | ArrayLike,
        labels: Tensor | ArrayLike,
        *,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Take reconstructions (M, ...) of the classes ``labels`` (M,).

        Raises:
            InputError: as at construction, or a class that private does not have.
        """
        batch = self._checked(reconstructions, "reconstructions")
        classes = _labels(labels, len(batch), "reconstructions")
        for label in classes.unique().tolist():
            if label not in self._rows:
                raise InputError(
                    f"reconstructions: expected classes that private has, found class {label}; "
                    "remove it or add private images of that class"
                )
        expected, found = self._private.shape[1:], batch.shape[1:]
        if not self._images and batch.flatten(1).shape[1] != self._private.flatten(1).shape[1]:
            raise InputError(
                f"reconstructions: expected features of shape {tuple(expected)}, as private has, "
                f"found {tuple(found)}"
            )
        names = _named(ids, len(batch), "reconstructions", self._count)
        self._count += len(batch)
        if self._width is not None:
            batch = self._features(batch)
        self._waiting.append((batch.clone(), classes, names))
        self._waiting_bytes += batch.numel() * batch.element_size()
        if self._waiting_bytes > self._memory // 4:
            self._compare()

    def compute(self, *, rng: torch.Generator | None = None) -> DDCSResult:
        """The scores of all reconstructions so far; more may follow.

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
            union([assignment for assignment, _ in self._done], names),
            labels=self._labels,
            ids=self._ids,
            reconstruction_ids=everything,
            rng=rng,
            **self._options,  # type: ignore[arg-type]
        )

    def reset(self) -> None:
        """Forget all reconstructions; the private images stay."""
        self._waiting, self._waiting_bytes, self._done, self._count = [], 0, [], 0

    def _compare(self) -> None:
        for batch, labels, names in _joined(self._waiting):
            assigner = Assigner(self._ids, names)
            for label in labels.unique().tolist():
                rows, columns = self._rows[label], (labels == label).nonzero().squeeze(1)
                for tile in image_pairs(
                    self._embedding,
                    self._private[rows],
                    batch[columns],
                    memory=self._memory,
                    device=self._device,
                    workspace=self._work,
                ):
                    assigner.see(rows[tile.left], columns[tile.right], tile.distances)
            self._done.append((assigner.result(), names))
        self._waiting, self._waiting_bytes = [], 0

    def _keep_features(self) -> None:
        """Replace the private images by their features if those are small enough to stay."""
        self._width = self._features(self._private[:1]).shape[1]
        if 4 * self._width * len(self._private) > self._memory // 2:
            self._width = None
            return
        self._private = self._features(self._private)
        self._embedding = _Given()

    def _features(self, images: Tensor) -> Tensor:
        parts = []
        with torch.no_grad():
            for part in images.split(64):
                blocks = self._maker(to_float(part).to(self._device))
                parts.append(torch.cat([b.flatten(1).float().cpu() for b in blocks], dim=1))
        return torch.cat(parts)

    def _checked(self, values: Tensor | ArrayLike, role: str) -> Tensor:
        array = as_array(values, role)
        if not self._images:
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


class _Given:
    """The identity: what comes in are features already."""

    name = "given"

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images.flatten(1),)


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


def _joined(
    waiting: Sequence[tuple[Tensor, Tensor, tuple[str, ...]]],
) -> list[tuple[Tensor, Tensor, tuple[str, ...]]]:
    """Batches of one shape and type in a row as one, so that each class is gone through once."""
    groups: list[list[tuple[Tensor, Tensor, tuple[str, ...]]]] = []
    for one in waiting:
        last = groups[-1][0][0] if groups else None
        if last is not None and (last.shape[1:], last.dtype) == (one[0].shape[1:], one[0].dtype):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [
        (
            torch.cat([batch for batch, _, _ in group]),
            torch.cat([labels for _, labels, _ in group]),
            tuple(name for _, _, names in group for name in names),
        )
        for group in groups
    ]
