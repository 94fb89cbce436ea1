"""Squared Euclidean distances of feature rows that are also right for near-duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_SCRATCH = 1 << 22
"""Numbers held at once in each float64 temporary of squared_distances: 32 MiB."""

CLOSE = 0.02
"""Wide rows whose distance is below this share of its scale are compared by differences. The
products' error is some 1e-7 of the scale at most, so every distance is right to 5e-6 of itself."""

_CHUNK = 1 << 13
"""Values whose products are summed in float32 before float64 takes over."""


def squared_distances(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return all pairs' squared distances, (N, M) float64 >= 0, of blocks (N, D_b) and (M, D_b).

    One matrix product a block, in float64 and a bounded number of columns at a time, on rows
    centred on the mean of ``right``. ``|a|^2 + |b|^2 - 2ab`` cancels exactly where near-duplicates
    matter, so pairs that are close relative to their norms are computed again by differences. Every
    entry has a relative error of about 1e-9, and equal rows have distance 0. Needs about 0.2 GB
    beside the result.

    Raises:
        ValueError: no block, or blocks that do not match in number or width.
    """
    if not left or len(left) != len(right):
        raise ValueError(f"expected equally many blocks, at least one: {len(left)}, {len(right)}")
    total = left[0].new_zeros((len(left[0]), len(right[0])), dtype=torch.float64)
    norms_left, norms_right = total.new_zeros(len(total), 1), total.new_zeros(1, total.shape[1])
    width = max(1, _SCRATCH // max(1, sum(total.shape)))
    for a, b in zip(left, right, strict=True):
        if a.shape[1] != b.shape[1]:
            raise ValueError(f"expected blocks of one width, found {a.shape[1]} and {b.shape[1]}")
        for a_part, b_part in zip(torch.split(a, width, 1), torch.split(b, width, 1), strict=True):
            b0 = b_part.double()
            centre = b0.mean(dim=0, keepdim=True)
            a0, b0 = a_part.double() - centre, b0 - centre
            norms_left += a0.square().sum(1)[:, None]
            norms_right += b0.square().sum(1)[None, :]
            total.addmm_(a0, b0.T, alpha=-2.0)
    scale = norms_left + norms_right
    total += scale
    # The product's error is some 1e-14 of scale: above this share it is 1e-10 of the distance.
    close = (total < 1e-4 * scale).nonzero()
    at_once = max(1, _SCRATCH // max(1, *(a.shape[1] for a in left)))
    for pairs in torch.split(close, at_once):
        i, j = pairs.unbind(1)
        total[i, j] = 0.0
        for a, b in zip(left, right, strict=True):
            total[i, j] += (a[i].double() - b[j].double()).square().sum(1)
    return total.clamp_min_(0.0)


def wide_distances(left: Tensor, left_norms: Tensor, right: Tensor, right_norms: Tensor) -> Tensor:
    """Return squared distances (N, M) float64 on the CPU of rows (N, D) and (M, D), D large.

    The norms are those of :func:`total_norms`. Products are in float32, summed in float64.
    """
    width = left.shape[1]
    whole = width // _CHUNK * _CHUNK
    a = left[:, :whole].unflatten(1, (-1, _CHUNK)).transpose(0, 1)
    b = right[:, :whole].unflatten(1, (-1, _CHUNK)).permute(1, 2, 0)
    products = _near_float64(torch.bmm(a, b)).sum(0, dtype=torch.float64)
    if whole < width:
        products += _near_float64(left[:, whole:] @ right[:, whole:].T).double()
    products = products.cpu()
    scale = left_norms[:, None] + right_norms[None, :]
    distances = scale - 2.0 * products
    for i, j in (distances < CLOSE * scale).nonzero().tolist():
        distances[i, j] = float(total_norms(part_norms((left[i] - right[j])[None])))
    return distances.clamp_min_(0.0)


def part_norms(rows: Tensor) -> Tensor:
    """Return lengths (N, parts) of the parts of rows (N, D) that float32 can sum."""
    whole = rows.shape[1] // _CHUNK * _CHUNK
    parts: Tensor = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, _CHUNK)), dim=2)
    if whole < rows.shape[1]:
        rest = torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)
        parts = torch.cat([parts, rest], dim=1)
    return parts


def total_norms(parts: Tensor) -> Tensor:
    """Return squared lengths (N,) float64 on the CPU of rows with lengths ``parts`` (N, parts)."""
    squares: Tensor = _near_float64(parts).double().square().sum(1)
    return squares.cpu()


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute convolutions and products in full float32, without derivatives.

    TF32, a default on GPUs, keeps ten bits only, and the caller may be under autocast.
    """
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    convolution, product = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast(gpu, enabled=False),
        ):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolution
        torch.backends.cuda.matmul.allow_tf32 = product


def _near_float64(values: Tensor) -> Tensor:
    """Return ``values`` on the CPU if their device has no float64."""
    return values if values.device.type in ("cpu", "cuda") else values.cpu()
