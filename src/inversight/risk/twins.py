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

_MOST_PAIRS = 200_000_000
"""Pairs of two sets that are compared."""

_MOST_WORK = 1e12
"""Products of two numbers that comparing two sets may take: a minute or so on a core."""

_FEW_CLASSES, _FEW_IMAGES = 64, 64
"""Classes, and images of each, from whose pairs the ordinary value is computed for two sets."""

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
        left: (N, C, H, W), floats in [0, 1].
        right: (M, C, H, W), floats in [0, 1].
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


@dataclass(frozen=True)
class NearCopies:
    """Near-copies between two sets of images.

    pairs: rows (i, j) of the first and the second set, the most alike first, exact copies left out.
    compared: numbers of images of either set that were compared.
    """

    pairs: tuple[tuple[int, int], ...]
    compared: tuple[int, int]


def find_near_copies(
    first: ImageSet, second: ImageSet, *, most_pairs: int = _MOST_PAIRS, progress: Progress = silent
) -> NearCopies:
    """Return near-copies between two sets, such as an image and the same saved as a JPEG file.

    As in :func:`find_twins`, these are pairs whose :func:`unexplained` fraction is below ``NEAR`` times the
    ordinary value, here the median over pairs of the first set's images of a class (of 64 images in each of
    64 classes at most). Images of other classes are compared too, since public images have other classes.

    Args:
        first: images whose classes say what is ordinary.
        second: of the same number of channels, maybe of another size.
        most_pairs: if there are more pairs, evenly spaced images of the larger set are compared.
    """
    side = min(SIDE, first.size, second.size)
    threshold = NEAR * (_ordinary(first, side) or 0.0)
    few = _spaced(len(first), len(second), _BLOCK**2)
    with exact_products():
        # Of images with little but noise the grid rules out few pairs, and the others cost far more.
        share = _possible(*_grids(first, second, few, side), 0, 0).float().mean()
        work = len(_shifts(1)) * (_GRID**2 + float(share) * first.channels * side**2)
        left, right = _spaced(len(first), len(second), min(most_pairs, int(_MOST_WORK / work)))
        grids = _grids(first, second, (left, right), side)
        found: list[tuple[float, int, int]] = []
        for a in range(0, len(left), _BLOCK):
            pixels = first.select(left[a : a + _BLOCK]).floats(size=side)
            for b in range(0, len(right), _BLOCK):
                some = _possible(*grids, a, b)
                if bool(some.any()):
                    others = second.select(right[b : b + _BLOCK]).floats(size=side)
                    i, j, value = _near(pixels, others, some)
                    rows = (value.tolist(), left[a + i].tolist(), right[b + j].tolist())
                    found += [row for row in zip(*rows, strict=True) if row[0] < threshold]
            progress(min(a + _BLOCK, len(left)), len(left), "near-copies")
    pairs = [(i, j) for _, i, j in sorted(found) if first.hashes[i] != second.hashes[j]]
    return NearCopies(tuple(pairs), (len(left), len(right)))


def _grids(
    first: ImageSet, second: ImageSet, rows: tuple[Tensor, Tensor], side: int
) -> tuple[Tensor, Tensor]:
    """Return the :func:`sketches` of rows of two sets."""
    left, right = (
        torch.cat([sketches(one.select(b).floats(size=side)) for b in at.split(_BLOCK)], dim=1)
        for one, at in zip((first, second), rows, strict=True)
    )
    return left, right


def _spaced(n: int, m: int, most: int) -> tuple[Tensor, Tensor]:
    """Return rows of two sets of n and m images, all or evenly spaced, that make at most ``most`` pairs."""
    fewer = min(n, m, int(most**0.5))
    n, m, whole = min(n, max(fewer, most // m)), min(m, max(fewer, most // n)), (n, m)
    kept = [
        torch.linspace(0, of - 1, k).round().long() for k, of in zip((n, m), whole, strict=True)
    ]
    return kept[0], kept[1]


def _ordinary(images: ImageSet, side: int) -> float | None:
    """Return the median over classes of the median of :func:`unexplained` over pairs of a class."""
    medians: list[float] = []
    for label in images.labels.unique().tolist()[:_FEW_CLASSES]:
        at = (images.labels == label).nonzero().squeeze(1)[:_FEW_IMAGES]
        if len(at) > 1:
            few = images.select(at).floats(size=side)
            above = torch.triu_indices(len(few), len(few), 1)
            medians.append(float(unexplained(few, few)[above[0], above[1]].median()))
    return float(torch.tensor(medians).median()) if medians else None


def _possible(left: Tensor, right: Tensor, a: int, b: int) -> Tensor:
    """Return which pairs of the blocks from a and from b on can be below ``NEAR``, by their sketches."""
    # Rounding must not rule a pair out.
    least = (1.0 - NEAR) ** 0.5 - 1e-3
    pairs = zip(left, right.flip(0), strict=True)
    return torch.stack([x[a : a + _BLOCK] @ y[b : b + _BLOCK].T > least for x, y in pairs]).any(0)


def _close(pixels: Tensor, grid: Tensor, a: int, b: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs i < j of the blocks of images from a and from b on below ``NEAR``, and their values.

    ``grid``: :func:`sketches` of all images.
    """
    some = _possible(grid, grid, a, b)
    left, right = pixels[a : a + _BLOCK], pixels[b : b + _BLOCK]
    i, j, value = _near(left, right, some.triu(1) if a == b else some)
    return a + i, b + j, value


def _near(left: Tensor, right: Tensor, some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which of ``some`` pairs (N, M) of two blocks are below ``NEAR``, and their values."""
    i, j = some.nonzero().unbind(1)
    if len(i) > _FEW * some.numel():
        value = unexplained(left, right)[i, j]
    else:
        parts = zip(i.split(_BLOCK), j.split(_BLOCK), strict=True)
        value = torch.cat([_of_pairs(left[m], right[n]) for m, n in parts])
    near = value < NEAR
    return i[near], j[near], value[near]


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
    return flat / length.masked_fill(plain, torch.inf)


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
