from __future__ import annotations

import pytest
import torch

from inversight.core.errors import InputError
from inversight.scores import dists, dists_network, psnr, ssim
from tests.embeddings.networks import backbone, uninitialised


def pictures(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_its_closed_form_and_bounded() -> None:
    a = torch.full((3, 1, 8, 8), 0.5)
    b = a + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert psnr(a, b).tolist() == pytest.approx([20.0, 40.0, 100.0], rel=1e-5)


def test_ssim_of_constants_is_its_closed_form() -> None:
    """Without variance only the means speak: (2ab + c) / (a^2 + b^2 + c), c = 0.01^2."""
    a, b = torch.full((1, 1, 16, 16), 0.4), torch.full((1, 1, 16, 16), 0.6)
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pairs_do_not_know_of_each_other(measure: object) -> None:
    a = pictures(5)
    b = (a + 0.1 * pictures(5, seed=1)).clamp(0, 1)
    whole = measure(a, b)  # type: ignore[operator]
    single = torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(5)])  # type: ignore[operator]
    torch.testing.assert_close(whole, single)
    assert bool((measure(a, a) > whole).all())  # type: ignore[operator]


def test_dists_is_zero_for_a_copy_and_grows_with_noise() -> None:
    before = torch.random.get_rng_state()
    with uninitialised():
        network = dists_network(backbone("vgg"))
    assert torch.equal(before, torch.random.get_rng_state())
    a = pictures(1, size=24)
    noise = pictures(1, size=24, seed=1)
    near, far, same = (
        dists(a, (a * (1 - w) + noise * w), network=network) for w in (0.1, 0.6, 0.0)
    )
    assert same.tolist() == pytest.approx([0.0], abs=1e-5)
    assert bool((near < far).all()) and bool((near > 0).all()) and bool((far < 1).all())
    from torchmetrics.functional.image import dists as module

    assert module.vgg16.__module__.startswith("torchvision")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="one size on both sides"):
        psnr(pictures(2), pictures(3))
    with pytest.raises(InputError, match="divide uint8"):
        ssim(255 * pictures(1), pictures(1))


@pytest.mark.parametrize("size", [1, 5, 7])
def test_images_below_the_window_of_ssim_are_refused_in_one_line(size: int) -> None:
    with pytest.raises(
        InputError, match=rf"at least 8 pixels a side, found {size}x{size}"
    ) as caught:
        ssim(pictures(2, size), pictures(2, size))
    assert "\n" not in str(caught.value)
    assert bool(psnr(pictures(2, size), pictures(2, size, seed=1)).isfinite().all())
