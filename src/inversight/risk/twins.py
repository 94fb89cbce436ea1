"""Twins: near-duplicates among the private images, such as one picture saved twice.

DDCS credits one of two twins with a reconstruction, and a picture that was trained on twice leaks more
easily. Twins are compared by pixels, invariant to a small shift and to brightness and contrast. In
pixel and perceptual distances, a picture shifted by one pixel is about as far from itself as two
ordinary shots of one person are from each other, so no threshold on such a distance finds twins alone
(docs/triage.md has the figures).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from inversight.core.progress import Progress, silent
from inversight.data import ImageSet
from inversight.embeddings.distances import exact_products

SIDE = 64
"""Pixels a side to which larger images are shrunk before they are compared."""

NEAR = 0.05
"""Pairs are twins below this fraction of the value of unrelated images of a class."""

_BLOCK = 512
"""Images of either side that are compared at once: some 0.1 GB of colour images."""

_MEASURED = 512
"""Images of a class, the first by id, from whose pairs its ordinary value is computed."""

_GRID = 8
"""Cells a side of the grid on which most pairs are ruled out, at a small part of the cost."""

_FEW = 0.02
"""Share of the pairs of a block up to which only those that the grid leaves are computed."""

_FLAT = 1e-3
"""Standard deviation of pixels in [0, 1] below which an image counts as one colour."""


@dataclass(frozen=True)
class Twins:
    """Groups among N images, in the order they came.

    group: (N,) int64, the row of the group's first image by id, -1 for an image in no group.
    ordinary: the median over pairs of unrelated images, in [0, 1]; None without any pair. threshold:
    two images below it are twins.
    """

    group: Tensor
    ordinary: float | None
    threshold: float

    def names(self, ids: tuple[str, ...]) -> list[str | None]:
        """Return the id of the first image of each image's group; None for an image in no group."""
        return [None if row < 0 else ids[row] for row in self.group.tolist()]


def unexplained(left: Tensor, right: Tensor, reach: int = 1) -> Tensor:
    """In [0, 1], (N, M) float32, lower is more alike: what of one image the other does not explain.

    ``1 - max(0, r)^2``, where r is the largest correlation of the two images' overlapping pixels over
    shifts by up to ``reach`` pixels either way (zero-mean normalised cross-correlation). Symmetric; 1 for
    an image of one colour.

    Args:
        left, right: (N, C, H, W) and (M, C, H, W), floats in [0, 1].
    """
    best = left.new_zeros(len(left), len(right))
    for shift in _shifts(reach):
        a, b = _overlap(left, *shift), _overlap(right, -shift[0], -shift[1])
        best = torch.maximum(best, _standard(a) @ _standard(b).T)
    return 1.0 - best.clamp(0.0, 1.0).square()


def sketches(images: Tensor, reach: int = 1) -> Tensor:
    """Return vectors (S, N, D) whose products are upper bounds of the correlations of two images.

    ``sketches(a)[s] @ sketches(b)[S - 1 - s].T`` bounds the correlations of a and b at the s-th of the S
    shifts of :func:`unexplained`. A vector holds the image's means over the cells of a grid, and the
    length of what they leave, which two images can at most share in full (Cauchy-Schwarz).

    Args:
        images: (N, C, H, W), floats in [0, 1].
    """
    found = []
    for shift in _shifts(reach):
        part = _overlap(images, *shift)
        whole = _standard(part)
        rows, columns = (_cells(n).to(images) for n in part.shape[2:])
        means = (rows.T @ whole.view(part.shape) @ columns).flatten(1)
        rest = whole.square().sum(1) - means.square().sum(1)
        found.append(torch.cat([means, rest.clamp_min(0.0).sqrt()[:, None]], dim=1))
    return torch.stack(found)


def find_twins(images: ImageSet, *, progress: Progress = silent) -> Twins:
    """Return near-duplicates within classes, and exact copies also across them.

    Twins are pairs whose :func:`unexplained` fraction is below ``NEAR`` times the ordinary one: the
    median over classes of the median over a class's pairs, which is robust as long as most classes are
    not mostly copies. Groups are the connected components of such pairs. Not found: mirrored, rotated or
    strongly cropped copies, shifts by parts of a pixel in small images, and near-copies across classes.
    The result does not depend on row order.

    Needs about 0.1 GB beside the images of one class as floats at 64x64.
    """
    order = torch.tensor(sorted(range(len(images)), key=images.ids.__getitem__))
    rows = images.select(order)
    classes = rows.labels.unique().tolist()
    side = min(SIDE, rows.size)
    medians: list[float] = []
    close: list[tuple[Tensor, Tensor, Tensor]] = []
    done = 0
    for label in classes:
        at = (rows.labels == label).nonzero().squeeze(1)
        pixels = rows.select(at).floats(size=side)
        with exact_products():
            grid = torch.cat([sketches(part) for part in pixels.split(_BLOCK)], dim=1)
            # Blocks of pairs on and above the diagonal.
            for a, b in combinations_with_replacement(range(0, len(at), _BLOCK), 2):
                i, j, value = _close(pixels, grid, a, b)
                close.append((at[i], at[j], value))
            few = pixels[:_MEASURED]
            if len(few) > 1:
                above = torch.triu_indices(len(few), len(few), 1)
                medians.append(float(unexplained(few, few)[above[0], above[1]].median()))
        done += len(at)
        progress(done, len(rows), "twins")
    ordinary = float(torch.tensor(medians).median()) if medians else None
    threshold = NEAR * (ordinary or 0.0)
    edges = [torch.stack([i, j])[:, value < threshold] for i, j, value in close]
    # Each image with the first one of the same pixels, which may be itself.
    first: dict[str, int] = {}
    copies = [(first.setdefault(key, i), i) for i, key in enumerate(rows.hashes)]
    edges.append(torch.tensor(copies).T)
    group = _connected(torch.cat(edges, dim=1), len(rows))
    group = torch.where(group >= 0, order[group], group)
    return Twins(group[order.argsort()], ordinary, threshold)


def _close(pixels: Tensor, grid: Tensor, a: int, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs i < j of the blocks of images from a and from b on below ``NEAR``, and their values.

    ``grid``: :func:`sketches` of all images.
    """
    left, right = slice(a, a + _BLOCK), slice(b, b + _BLOCK)
    # Rounding must not rule a pair out.
    least = (1.0 - NEAR) ** 0.5 - 1e-3
    possible = torch.stack(
        [x[left] @ y[right].T > least for x, y in zip(grid, grid.flip(0), strict=True)]
    )
    some = possible.any(0)
    i, j = (some.triu(1) if a == b else some).nonzero().unbind(1)
    if len(i) > _FEW * some.numel():
        value = unexplained(pixels[left], pixels[right])[i, j]
    else:
        parts = zip(i.split(_BLOCK), j.split(_BLOCK), strict=True)
        value = torch.cat([_of_pairs(pixels[a + m], pixels[b + n]) for m, n in parts])
    near = value < NEAR
    return a + i[near], b + j[near], value[near]


def _of_pairs(left: Tensor, right: Tensor, reach: int = 1) -> Tensor:
    """Return :func:`unexplained` of each image of ``left`` and the one at its place in ``right``, (N,)."""
    best = left.new_zeros(len(left))
    for shift in _shifts(reach):
        a, b = _overlap(left, *shift), _overlap(right, -shift[0], -shift[1])
        best = torch.maximum(best, (_standard(a) * _standard(b)).sum(1))
    return 1.0 - best.clamp(0.0, 1.0).square()


def _shifts(reach: int) -> list[tuple[int, int]]:
    """Return shifts down and right; the negative of the s-th is the s-th from the end."""
    steps = range(-reach, reach + 1)
    return list(product(steps, steps))


def _overlap(images: Tensor, dy: int, dx: int) -> Tensor:
    """Return the pixels that overlap another image's if that is moved down by dy and right by dx."""
    height, width = images.shape[2:]
    return images[..., max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]


def _cells(n: int) -> Tensor:
    """Return (n, G) orthonormal columns, each 0 but on one of G intervals of n pixels, or 0."""
    cell = torch.arange(n) * _GRID // max(n, _GRID)
    indicator = torch.nn.functional.one_hot(cell, _GRID).float()
    return indicator / indicator.sum(0).clamp_min(1.0).sqrt()


def _standard(pixels: Tensor) -> Tensor:
    """Return (N, P): each image less its mean, of length 1; 0 for an image of one colour."""
    flat = pixels.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    length = flat.square().sum(1, keepdim=True).sqrt()
    plain = length < _FLAT * flat.shape[1] ** 0.5
    return (flat / length).masked_fill(plain, 0.0)


def _connected(edges: Tensor, n: int) -> Tensor:
    """Return (n,) int64: the smallest row of each row's component, -1 for a row alone."""
    i, j = edges.numpy()
    graph = coo_array((np.ones(len(i), dtype=bool), (i, j)), shape=(n, n))
    count, component = connected_components(graph, directed=False)
    component = torch.from_numpy(component.astype(np.int64))
    rows = torch.arange(n)
    first = torch.full((count,), n).scatter_reduce(0, component, rows, "amin")
    alone = component.bincount(minlength=count)[component] == 1
    return first[component].masked_fill(alone, -1)
