"""Similarity of each private image and its nearest reconstruction.

SSIM (Wang et al. 2004), PSNR and DISTS (Ding et al. 2020), computed by torchmetrics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inversight.core.errors import InputError
from inversight.core.imaging import fit

SMALLEST_SSIM = 8
"""Pixels a side below which SSIM's window of 11 x 11 pixels says nothing."""

_PEAK = 1e-10
"""Lower bound of the mean squared error in PSNR: exact copies have 100 dB."""


def ssim(private: Tensor, nearest: Tensor) -> Tensor:
    """In [-1, 1], higher is more leakage: structural similarity of each pair, (N,) float64.

    Both (N, C, H, W) in [0, 1], at the private images' size; 11 x 11 Gaussian window. It does not
    recognise a likeness that is shifted by a few pixels.

    Raises:
        InputError: shapes that do not match, or smaller than 8 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(private, nearest)
    if min(private.shape[2:]) < SMALLEST_SSIM:
        raise InputError(
            f"ssim: expected images of at least {SMALLEST_SSIM} pixels a side, found "
            f"{private.shape[2]}x{private.shape[3]}"
        )
    found: Tensor = structural_similarity_index_measure(
        nearest.double(), private.double(), data_range=1.0, reduction="none"
    )
    return found.reshape(-1).double().cpu()


def psnr(private: Tensor, nearest: Tensor) -> Tensor:
    """In dB, at most 100, higher is more leakage: peak signal-to-noise ratio of each pair, (N,).

    ``-10 log10`` of the mean squared error of images in [0, 1]. It ignores structure: a grey
    average scores well.

    Raises:
        InputError: shapes that do not match.
    """
    _check(private, nearest)
    error = (private.double() - nearest.double()).square().flatten(1).mean(1)
    return -10.0 * error.clamp_min(_PEAK).log10().cpu()


def dists(private: Tensor, nearest: Tensor, *, network: nn.Module) -> Tensor:
    """In [0, 1], lower is more leakage: deep structure and texture distance of each pair, (N,).

    Both (N, C, H, W) in [0, 1]; brought to 256 x 256. ``network``: see :func:`dists_network`. It
    ignores where a texture lies.

    Raises:
        InputError: shapes that do not match.
    """
    _check(private, nearest)
    network = network.to(private.device)
    found = []
    for a, b in zip(private.split(8), nearest.split(8), strict=True):
        with torch.no_grad():
            large = [fit(x, size=256, channels=3) for x in (b, a)]
            found.append(network(*large).reshape(-1).double().cpu())
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)


def dists_network(backbone: dict[str, Tensor]) -> nn.Module:
    """Return torchmetrics' DISTS network with ``backbone``, VGG16's published parameters (``features.*``)."""
    from torchmetrics.functional.image import dists as module

    before = module.vgg16
    with torch.device("meta"):
        vgg = before()
    vgg.load_state_dict(backbone, strict=False, assign=True)
    # torchmetrics would download the backbone; the weights here are the same.
    module.vgg16 = lambda weights: vgg
    try:
        with torch.random.fork_rng(devices=[]):
            built: nn.Module = module.DISTSNetwork().eval()
    finally:
        module.vgg16 = before
    return built


def _check(private: Tensor, nearest: Tensor) -> None:
    if private.shape != nearest.shape or private.ndim != 4:
        raise InputError(
            "expected equally many images (N, C, H, W) of one size on both sides, found "
            f"{tuple(private.shape)} and {tuple(nearest.shape)}"
        )
    if len(private) and (float(private.min()) < 0 or float(private.max()) > 1):
        raise InputError("expected images in [0, 1]; divide uint8 images by 255")
