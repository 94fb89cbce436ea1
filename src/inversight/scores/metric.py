"""DDCS for one's own loop: images come in batches, and the score can be computed at any time."""

from __future__ import annotations

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
from inversight.scores.checks import as_array, as_labels, as_vectors, check_classes
from inversight.scores.comparison import Labelled, compare
from inversight.scores.ddcs import DDCSResult, ddcs_of


class DDCS:
    """DDCS of reconstructions that come in batches (see :func:`inversight.scores.ddcs`).

    With an ``embedding`` both sides are images, uint8 or floats in [0, 1], (N, C, H, W) with C of 1 or
    3; without one they are features (N, ...), compared by their squared distance. After another
    ``update``, ``compute`` embeds only the new reconstructions, and also the private images of their
    classes if features are too large to keep (LPIPS).

    >>> metric = DDCS(images, labels, embedding=Lpips("vgg"), device="cuda")
    >>> for batch, classes in loop: metric.update(batch, classes)
    >>> metric.compute().summary["ddcs_best"].value

    Args:
        private: (N, ...) images or features.
        labels: (N,) integers, the class of each.
        embedding: what makes features of images. None: ``private`` are features.
        ids: N distinct names, which only decide ties. None: row numbers.
        floor: as for :func:`inversight.scores.ddcs`.
        memory: bytes of features, and of reconstructions that wait to be compared.
        bootstrap: as for :func:`inversight.scores.ddcs`.
        device: where the embedding works.

    Raises:
        InputError: shapes or types that do not match, a NaN or infinity, images outside [0, 1].
    """

    def __init__(
        self, private: Tensor | ArrayLike, labels: Tensor | ArrayLike, *,
        embedding: Embedding | None = None, ids: Sequence[str] | None = None, floor: float = 1e-6,
        memory: int = 2 << 30, bootstrap: int = 1000, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self._embedding, self._memory, self._work = embedding, memory, Workspace(device)
        self._options: dict[str, Any] = {"floor": floor, "bootstrap": bootstrap}
        self.reset()
        given = self._labelled(private, labels, ids, "private")
        if not given.ids:
            raise InputError("private: expected at least one image, found none")
        self._distance: Embedding = embedding or Identity()
        self._keeps_features = False
        if embedding is not None and not isinstance(embedding, StagedEmbedding):
            width = self._features(embedding, given.images[:1]).shape[1]
            if 4 * width * len(given.ids) <= memory // 2:
                given = given._replace(images=self._features(embedding, given.images))
                self._keeps_features, self._distance = True, Identity()
        self._private = given

    def update(
        self, reconstructions: Tensor | ArrayLike, labels: Tensor | ArrayLike, *,
        ids: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Add reconstructions (M, ...) of the classes ``labels`` (M,).

        Raises:
            InputError: as at construction, or a class that private does not have.
        """
        batch = self._labelled(reconstructions, labels, ids, "reconstructions")
        check_classes(batch.labels, batch.ids, self._private.labels)
        expected, found = (tuple(x.images.shape[1:]) for x in (self._private, batch))
        if self._embedding is None and expected != found:
            raise InputError(
                f"reconstructions: expected features of shape {expected}, as private has, found {found}"
            )
        self._count += len(batch.ids)
        images = batch.images
        if self._embedding is not None and self._keeps_features:
            images = self._features(self._embedding, images)
        self._waiting.append(batch._replace(images=images.clone()))
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
        assignments, names = zip(*self._done, strict=True)
        everything = [name for ids in names for name in ids]
        if len(set(everything)) < len(everything):
            raise InputError("reconstructions: expected distinct ids over all updates")
        return ddcs_of(
            union(assignments, names), labels=self._private.labels, ids=self._private.ids,
            reconstruction_ids=everything, rng=rng, **self._options,
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

    def _labelled(
        self, values: object, labels: object, ids: Sequence[str] | None, role: str
    ) -> Labelled:
        """Check the given images or features, their labels and their names.

        Rows without names are numbered, with twelve digits so that names sort as the numbers do.
        """
        images = as_vectors(values, role) if self._embedding is None else _as_images(values, role)
        rows = len(images)
        if ids is None:
            ids = [f"{role}-{self._count + i:012d}" for i in range(rows)]
        if len(ids) != rows or len(set(ids)) != rows:
            raise InputError(f"{role} ids: expected {rows} distinct names, found {len(set(ids))}")
        return Labelled(images, as_labels(labels, rows, role).cpu(), tuple(ids))


def _as_images(given: object, role: str) -> Tensor:
    """Return images (N, C, H, W) as uint8 or as float32 in [0, 1]."""
    images = as_array(given, role)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InputError(
            f"{role}: expected images (N, 1 or 3, H, W), found shape {tuple(images.shape)}"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError(f"{role}: expected uint8 or floats in [0, 1], found {images.dtype}")
    images = images.float()
    # Written so that a NaN fails it too.
    if len(images) and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise InputError(
            f"{role}: expected floats in [0, 1], found values from {float(images.min()):.3g} to "
            f"{float(images.max()):.3g}; undo the normalisation or divide by 255"
        )
    return images
