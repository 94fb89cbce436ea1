"""Resampling and convolution as their definitions read: plain loops in float64, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def upfirdn_loop(image: Array, taps: Array, up: int, down: int, pad: tuple[int, int]) -> Array:
    """image (H, W), taps (T, T): zeros inserted, padded, convolved, every down-th sample kept."""
    t = len(taps)
    height, width = ((side * up + sum(pad) - t) // down + 1 for side in image.shape)

    def sample(row: int, column: int) -> float:
        inside = 0 <= row < image.shape[0] * up and 0 <= column < image.shape[1] * up
        there = inside and row % up == 0 and column % up == 0
        return float(image[row // up, column // up]) if there else 0.0

    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for a in range(t):
                for b in range(t):
                    row, column = i * down - pad[0] + t - 1 - a, j * down - pad[0] + t - 1 - b
                    out[i, j] += taps[a, b] * sample(row, column)
    return out


def correlate_loop(image: Array, weight: Array, stride: int = 1) -> Array:
    """image (C, H, W), weight (O, C, K, K), no padding: (O, (H - K) / stride + 1, ...)."""
    out_channels, channels, k, _ = weight.shape
    height, width = ((side - k) // stride + 1 for side in image.shape[1:])
    out = np.zeros((out_channels, height, width))
    for o in range(out_channels):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    for a in range(k):
                        for b in range(k):
                            value = image[c, i * stride + a, j * stride + b]
                            out[o, i, j] += weight[o, c, a, b] * value
    return out


def convolve_doubled_loop(image: Array, weight: Array, taps: Array) -> Array:
    """Zeros inserted, padded once, filtered with gain 4, then convolved (weights flipped)."""
    t, k = len(taps), weight.shape[2]
    pad = ((t + 1) // 2 + k // 2, (t - 2) // 2 + k // 2)
    wide = np.stack([upfirdn_loop(channel, 4.0 * taps, 2, 1, pad) for channel in image])
    return correlate_loop(wide, weight[:, :, ::-1, ::-1])


def convolve_halved_loop(image: Array, weight: Array, taps: Array) -> Array:
    """Padded once, filtered, correlated, every other sample kept."""
    t, k = len(taps), weight.shape[2]
    pad = ((t - 1) // 2 + k // 2, (t - 2) // 2 + k // 2)
    smooth = np.stack([upfirdn_loop(channel, taps, 1, 1, pad) for channel in image])
    return correlate_loop(smooth, weight, stride=2)


def modulate_loop(weight: Array, style: Array, demodulate: bool) -> Array:
    """StyleGAN2, eq. 1-3: the weights (O, C, K, K) of one image with style (C,), scaled first."""
    out_channels, channels, k, _ = weight.shape
    result = np.zeros_like(weight)
    for o in range(out_channels):
        for c in range(channels):
            result[o, c] = weight[o, c] * style[c] / (channels * k * k) ** 0.5
        if demodulate:
            result[o] /= (float((result[o] ** 2).sum()) + 1e-8) ** 0.5
    return result


def spread_loop(x: Array, group: int, channels: int) -> Array:
    """Minibatch standard deviation: for each image (N,) its group's values (N, channels)."""
    n, features = x.shape[:2]
    groups = n // group
    share = features // channels
    out = np.zeros((n, channels))
    for i in range(n):
        members = [j for j in range(n) if j % groups == i % groups]
        assert len(members) == group
        for channel in range(channels):
            deviations = []
            for feature in range(channel * share, (channel + 1) * share):
                for position in np.ndindex(*x.shape[2:]):
                    values = [float(x[(j, feature, *position)]) for j in members]
                    mean = sum(values) / group
                    variance = sum((v - mean) ** 2 for v in values) / group
                    deviations.append((variance + 1e-8) ** 0.5)
            out[i, channel] = sum(deviations) / len(deviations)
    return out
