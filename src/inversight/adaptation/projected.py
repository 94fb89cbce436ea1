"""A discriminator that sees images as the target does: by the maps of its convolutions.

Sauer et al. 2021 ("Projected GANs converge faster") give a GAN discriminators on the features of a
network trained on ImageNet. Here the features are the target's: what it tells the private images apart
by is what generated images have to share with real ones. That it is the target's matters little, though:
on digits other networks do as well (docs/evidence.md). Random mixing of channels and scales, which
they put between features and discriminators, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from inversight.adaptation.terms import Need, Observation, observe
from inversight.errors import ConfigError
from inversight.seeding import draw_seed
from inversight.target import Target

HEADS = 4
WIDTH = 64
_MEASURED = 1024
"""Least number of public images whose mean and variance maps are standardised by, if there are as many."""
_MAPS: tuple[Need, ...] = ("maps",)


class Projected:
    """Minus the mean judgement of the heads on what the target makes of the images, in (-inf, inf).

    A term to lower for the generator, and a discriminator for the game to train. Up to four of the
    target's maps, evenly spaced in depth and without the first, are standardised channel by channel by
    the public images; each has a small network of its own with spectral normalisation (Miyato et al.
    2018) that judges positions. They are trained with the hinge loss.

    Raises:
        ConfigError: the target calls no two-dimensional convolution.
    """

    name = "projected"
    needs = _MAPS

    def __init__(
        self, target: Target, public: Tensor, *, learning_rate: float, rng: torch.Generator
    ) -> None:
        """``public``: uint8 images (N, C, S, S); ``rng`` draws the heads' first weights."""
        self.target = target
        self.learning_rate = learning_rate
        measured = _moments(target, public[:: max(1, len(public) // _MEASURED)])
        if not measured:
            raise ConfigError(f"{target.spec}: calls no convolution; use another --arm")
        last = len(measured) - 1
        self.depths = sorted({round(last * i / HEADS) for i in range(1, HEADS + 1)})
        self.moments = [measured[depth] for depth in self.depths]
        with torch.random.fork_rng(devices=[]):  # the layers know no generator of their own
            torch.manual_seed(draw_seed(rng))
            self.module = nn.ModuleList(_head(mean.shape[1]) for mean, _ in self.moments)
        self.module.eval()

    def __call__(self, seen: Observation) -> Tensor:
        judged = self._judge(seen.maps)
        return -torch.stack([logits.mean() for logits in judged]).mean()

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Mean hinge loss of the heads, >= 0, on images (N, C, S, S) in [0, 1] of each kind."""
        with torch.no_grad():
            maps = [observe(self.target, images, _MAPS).maps for images in (real, fake)]
        on_real, on_fake = (self._judge(one) for one in maps)
        losses = [
            (1.0 - a).relu().mean() + (1.0 + b).relu().mean()
            for a, b in zip(on_real, on_fake, strict=True)
        ]
        return torch.stack(losses).mean()

    def settle(self) -> None:
        """One step of the power iteration that spectral norms come from.

        Once for each step of training, not for each pass, so that results do not hang on how a batch
        is shared out.
        """
        self.module.train()
        with torch.no_grad():
            for layer in self.module.modules():
                if isinstance(layer, nn.Conv2d):
                    _ = layer.weight
        self.module.eval()

    def _judge(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The heads' logits, each (N, 1, h, w), of all the target's maps."""
        chosen = [maps[depth] for depth in self.depths]
        return [
            head((one - mean) * scale)
            for head, one, (mean, scale) in zip(self.module, chosen, self.moments, strict=True)
        ]


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, WIDTH, 1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(WIDTH, 1, 1)),
    )


@torch.no_grad()
def _moments(
    target: Target, public: Tensor, *, batch_size: int = 64
) -> list[tuple[Tensor, Tensor]]:
    """Mean and one over the standard deviation, (1, C, 1, 1), of each map over images and positions."""
    device = next((p.device for p in target.module.parameters()), torch.device("cpu"))
    sums: list[tuple[Tensor, Tensor]] = []
    for images in public.split(batch_size):
        maps = observe(target, images.to(device).float() / 255.0, _MAPS).maps
        exact = [m.cpu().double() for m in maps]  # not every device has float64
        found = [(_total(m), _total(m.square())) for m in exact]
        before = sums or [(torch.zeros(()), torch.zeros(()))] * len(found)
        sums = [(a + c, b + d) for (a, b), (c, d) in zip(before, found, strict=True)]
    moments = []
    for first, second in sums:
        mean = first / len(public)
        scale = ((second / len(public) - mean.square()).clamp_min(0.0) + 1e-5).rsqrt()
        moments.append((_for_channels(mean, device), _for_channels(scale, device)))
    return moments


def _total(maps: Tensor) -> Tensor:
    """Sum over images of the mean over positions, (C,)."""
    return maps.mean((2, 3)).sum(0)


def _for_channels(values: Tensor, device: torch.device) -> Tensor:
    return values.float().view(1, -1, 1, 1).to(device)
