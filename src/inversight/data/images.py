"""Labelled images of one size with stable ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inversight.core.errors import DataError
from inversight.core.imaging import fit, to_float, to_uint8
from inversight.data.store import PixelStore


@dataclass(frozen=True)
class ImageSet:
    """N images of one size.

    images: uint8 (N, C, H, W), C 1 or 3. labels: int64 (N,), -1 everywhere without classes. ids: the
    path below the folder, ``/``-separated, distinct. classes: names that labels index, () without.
    hashes: SHA-256 of the decoded pixels at the file's own size, so that a copy in another file
    format is found too. groups: the name of each image's group (a person, a burst), None for an image
    alone; None for all where no groups were given.
    """

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    hashes: tuple[str, ...]
    groups: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return int(self.images.shape[2])

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        return int(self.images.shape[1])

    def select(self, index: Tensor) -> ImageSet:
        """Return the rows at positions ``index`` (int64), in that order."""
        rows = index.tolist()
        if rows == list(range(len(self))):  # many images are not copied needlessly
            return self
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            ids=tuple(self.ids[i] for i in rows),
            hashes=tuple(self.hashes[i] for i in rows),
            groups=None if self.groups is None else tuple(self.groups[i] for i in rows),
        )

    def relabel(self, classes: Sequence[str], *, role: str) -> ImageSet:
        """Return the same images with labels that index ``classes``.

        Raises:
            DataError: an image's class is not among ``classes``.
        """
        position = {name: i for i, name in enumerate(classes)}
        for name in self.classes:
            if name not in position:
                raise DataError(
                    f"{role}: class {name} is not among the {len(position)} classes of the model; "
                    "give its class names in the order of its outputs with --classes FILE"
                )
        if not self.classes:
            return self
        table = torch.tensor([position[name] for name in self.classes])
        return replace(self, labels=table[self.labels], classes=tuple(classes))

    def floats(
        self, *, size: int | tuple[int, int] | None = None, channels: int | None = None
    ) -> Tensor:
        """Return float32 images in [0, 1], (N, channels, H, W); ``size``: H and W, or both in one."""
        found, depth = size or self.size, channels or self.channels
        side = (found, found) if isinstance(found, int) else found
        out = torch.empty(len(self), depth, *side)
        # In parts, so that large images are never all in memory as floats at their own size.
        for part, source in zip(out.split(256), self.images.split(256), strict=True):
            part.copy_(fit(to_float(source), size=side, channels=depth))
        return out

    def resized(self, *, size: int, channels: int) -> ImageSet:
        """Return the set at another size and number of channels, uint8."""
        if (size, channels) == (self.size, self.channels):
            return self
        with PixelStore((len(self), channels, size, size)) as store:
            for start in range(0, len(self), 256):
                part = self.images[start : start + 256]
                store.put(start, to_uint8(fit(to_float(part), size=size, channels=channels)))
            return replace(self, images=store.tensor())

    def fingerprint(self) -> str:
        """Return a hash of ids, contents and class names that does not depend on the row order."""
        label = [self.classes[i] if self.classes else "" for i in self.labels.tolist()]
        rows = sorted(zip(self.ids, self.hashes, label, strict=True))
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def image_set(
    images: Tensor, labels: Sequence[str], ids: Sequence[str], classes: Sequence[str]
) -> ImageSet:
    """Return a set of images in memory.

    Args:
        images: uint8 (N, C, S, S).
        labels: the name of each image's class, among ``classes``.
        ids: the distinct name of each image.
        classes: the names that labels index.
    """
    position = {name: i for i, name in enumerate(classes)}
    return ImageSet(
        images=images,
        labels=torch.tensor([position[name] for name in labels], dtype=torch.int64),
        ids=tuple(ids),
        classes=tuple(classes),
        hashes=tuple(pixel_hash(to_pil(image)) for image in images),
    )


def join_images(private: ImageSet, holdout: ImageSet | None) -> ImageSet:
    """Return the private images by id, then the holdout's by id, with the role before each id."""
    sets = [private] if holdout is None else [private, holdout]
    parts = []
    for role, one in zip(("private", "holdout"), sets, strict=False):
        order = sorted(range(len(one)), key=one.ids.__getitem__)
        by_id = one.select(torch.tensor(order))
        parts.append(replace(by_id, ids=tuple(f"{role}/{name}" for name in by_id.ids)))
    groups = None
    if any(one.groups is not None for one in parts):
        groups = tuple(g for one in parts for g in (one.groups or (None,) * len(one)))
    return ImageSet(
        images=torch.cat([one.images for one in parts]),
        labels=torch.cat([one.labels for one in parts]),
        ids=tuple(name for one in parts for name in one.ids),
        classes=private.classes,
        hashes=tuple(h for one in parts for h in one.hashes),
        groups=groups,
    )


def pixel_hash(image: Image.Image) -> str:
    """Return the SHA-256 of an image's size and pixels, the same for grey pixels as L and as RGB."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    return hashlib.sha256(repr(image.size).encode() + pixels.tobytes()).hexdigest()


def write_images(folder: Path, images: Tensor, names: Sequence[str]) -> None:
    """Write uint8 images (N, C, H, W) as PNG files ``folder/name``, making subfolders."""
    for image, name in zip(images, names, strict=True):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(file, format="PNG")


def to_pil(image: Tensor) -> Image.Image:
    """Return a uint8 image (C, H, W) as a Pillow image, grey or RGB."""
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, 2))
