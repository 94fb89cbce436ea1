"""Resampling and convolution by their definitions: plain loops in float64, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def upfirdn_loop(image: Array, taps: Array, up: int, down: int, pad: tuple[int, int]) -> Array:
    """Resample image (H, W) with taps (T, T): insert zeros, pad, convolve, keep every down-th sample."""
    t = len(taps)
    height, width = ((side * up + sum(pad) - t) // down + 1 for side in image.shape)

    def sample(row: int, column: int) -> float:
        inside = 0 <= row < image.shape[0] * up and 0 <= column < image.shape[1] * up
        there = inside and row % up == 0 and column % up == 0
        return float(image[row // up, column // up]) if there else 0.0

    out = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
        for a, b in np.ndindex(t, t):
            row, column = i * down - pad[0] + t - 1 - a, j * down - pad[0] + t - 1 - b
            out[i, j] += taps[a, b] * sample(row, column)
    return out


def correlate_loop(image: Array, weight: Array, stride: int = 1) -> Array:
    """Correlate image (C, H, W) and weight (O, C, K, K) without padding: (O, (H - K) / stride + 1, ...)."""
    k = weight.shape[2]
    height, width = ((side - k) // stride + 1 for side in image.shape[1:])
    out = np.zeros((len(weight), height, width))
    for o, i, j in np.ndindex(out.shape):
        for c, a, b in np.ndindex(weight.shape[1:]):
            out[o, i, j] += weight[o, c, a, b] * image[c, i * stride + a, j * stride + b]
    return out


def convolve_doubled_loop(image: Array, weight: Array, taps: Array) -> Array:
    """Insert zeros, pad once, filter with gain 4, and convolve (weights flipped)."""
    t, k = len(taps), weight.shape[2]
    pad = ((t + 1) // 2 + k // 2, (t - 2) // 2 + k // 2)
    wide = np.stack([upfirdn_loop(channel, 4.0 * taps, 2, 1, pad) for channel in image])
    return correlate_loop(wide, weight[:, :, ::-1, ::-1])


def convolve_halved_loop(image: Array, weight: Array, taps: Array) -> Array:
    """Pad once, filter, correlate, and keep every other sample."""
    t, k = len(taps), weight.shape[2]
    pad = ((t - 1) // 2 + k // 2, (t - 2) // 2 + k // 2)
    smooth = np.stack([upfirdn_loop(channel, taps, 1, 1, pad) for channel in image])
    return correlate_loop(smooth, weight, stride=2)


def modulate_loop(weight: Array, style: Array, demodulate: bool) -> Array:
    """Return the weights (O, C, K, K) of one image with style (C,), scaled first (StyleGAN2, eq. 1-3)."""
    result = weight * style[:, None, None] / weight[0].size ** 0.5
    for kernel in result:
        if demodulate:
            kernel /= (float((kernel**2).sum()) + 1e-8) ** 0.5
    return result


def spread_loop(x: Array, group: int, channels: int) -> Array:
    """Return the minibatch standard deviation of each image's group, (N, channels)."""
    n, features = x.shape[:2]
    groups = n // group
    share = features // channels
    out = np.zeros((n, channels))
    for i in range(n):
        members = [j for j in range(n) if j % groups == i % groups]
        assert len(members) == group
        for channel in range(channels):
            deviations = []
            for feature, *position in np.ndindex(share, *x.shape[2:]):
                values = [float(x[(j, channel * share + feature, *position)]) for j in members]
                mean = sum(values) / group
                variance = sum((v - mean) ** 2 for v in values) / group
                deviations.append((variance + 1e-8) ** 0.5)
            out[i, channel] = sum(deviations) / len(deviations)
    return out
