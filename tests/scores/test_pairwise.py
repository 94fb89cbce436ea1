from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import dists as module

from inversight.core.errors import InputError
from inversight.scores import dists, dists_network, psnr, ssim
from tests.draws import uniform
from tests.embeddings.networks import backbone


def pictures(n: int, size: int = 32, seed: int = 0) -> Tensor:
    return uniform(n, 3, size, size, seed=seed)


def test_psnr_is_its_closed_form_and_bounded() -> None:
    a = torch.full((3, 1, 8, 8), 0.5)
    b = a + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr(a, b).tolist() == pytest.approx([20.0, 40.0, 100.0], rel=1e-5)


def test_ssim_of_constants_is_its_closed_form() -> None:
    """Without variance only the means count: (2ab + c) / (a^2 + b^2 + c), c = 0.01^2."""
    a, b = torch.full((1, 1, 16, 16), 0.4), torch.full((1, 1, 16, 16), 0.6)
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pairs_are_measured_independently(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    a = pictures(5)
    b = (a + 0.1 * pictures(5, seed=1)).clamp(0, 1)
    whole = measure(a, b)
    torch.testing.assert_close(whole, torch.cat(list(map(measure, a.split(1), b.split(1)))))
    assert bool((measure(a, a) > whole).all())


def test_dists_is_zero_for_a_copy_and_grows_with_noise() -> None:
    before = torch.random.get_rng_state(), module.vgg16
    network = dists_network(backbone("vgg"))
    assert torch.equal(before[0], torch.random.get_rng_state()) and module.vgg16 is before[1]
    a, noise = pictures(1, 24), pictures(1, 24, seed=1)
    same, near, far = (
        float(dists(a, a * (1 - w) + noise * w, network=network)) for w in (0.0, 0.1, 0.6)
    )
    assert same == pytest.approx(0.0, abs=1e-5)
    assert 0 < near < far < 1


def test_rejects_images_that_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="one size on both sides"):
        psnr(pictures(2), pictures(3))
    with pytest.raises(InputError, match="divide uint8"):
        ssim(255 * pictures(1), pictures(1))


@pytest.mark.parametrize("size", [1, 5, 7])
def test_ssim_rejects_images_below_its_window(size: int) -> None:
    message = rf"at least 8 pixels a side, found {size}x{size}"
    with pytest.raises(InputError, match=message) as caught:
        ssim(pictures(2, size), pictures(2, size))
    assert "\n" not in str(caught.value)
    assert bool(psnr(pictures(2, size), pictures(2, size, seed=1)).isfinite().all())
