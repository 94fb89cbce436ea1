"""A discriminator on the feature maps of the target.

Sauer et al. 2021 ("Projected GANs converge faster") train discriminators on the features of a network
trained on ImageNet. Here the features are the target's, so that generated images match real ones in the
features that separate the private classes. The choice of network matters little, though: on digits other
networks do as well (docs/evidence.md). Their random mixing of channels and scales between features and
discriminators is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from inversight.adaptation.terms import Observation, Term
from inversight.core.errors import ConfigError
from inversight.core.seeding import draw_seed
from inversight.models.target import Target
from inversight.priors.feature_maps import StandardisedMaps

WIDTH = 64


class Projected(Term):
    """Minus the mean logit of small discriminators ("heads") on the target's feature maps, in (-inf, inf).

    It is a guidance term for the generator, and a discriminator for the game to train. Each of the
    target's :class:`StandardisedMaps` has a small network with spectral normalisation (Miyato et al.
    2018), which gives a logit for each position. They are trained with the hinge loss.

    Raises:
        ConfigError: the target calls no two-dimensional convolution.
    """

    name = "projected"
    needs = ("maps",)

    def __init__(
        self, target: Target, public: Tensor, *, learning_rate: float, rng: torch.Generator
    ) -> None:
        """``public``: uint8 images (N, C, S, S); ``rng`` draws the heads' first weights."""
        self.learning_rate = learning_rate
        self.maps = StandardisedMaps(target, public)
        channels = [mean.shape[1] for mean, _ in self.maps.moments]
        if not channels:
            raise ConfigError(f"{target.spec}: calls no convolution; use another --arm")
        with torch.random.fork_rng(devices=[]):  # the layers know no generator of their own
            torch.manual_seed(draw_seed(rng))
            self.module = nn.ModuleList(_head(width) for width in channels)
        self.module.eval()

    def __call__(self, seen: Observation) -> Tensor:
        judged = self._judge(self.maps.among(seen.maps))
        return -torch.stack([logits.mean() for logits in judged]).mean()

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the heads' mean hinge loss, >= 0, on real and generated images (N, C, S, S) in [0, 1]."""
        with torch.no_grad():
            maps = [self.maps.of(images) for images in (real, fake)]
        on_real, on_fake = (self._judge(one) for one in maps)
        losses = [
            (1.0 - a).relu().mean() + (1.0 + b).relu().mean()
            for a, b in zip(on_real, on_fake, strict=True)
        ]
        return torch.stack(losses).mean()

    def settle(self) -> None:
        """Do one step of the power iteration of the spectral norms.

        It is called once for each step of training, not for each pass, so that results do not depend on
        the division of a batch.
        """
        self.module.train()
        with torch.no_grad():
            for layer in self.module.modules():
                if isinstance(layer, nn.Conv2d):
                    _ = layer.weight
        self.module.eval()

    def _judge(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the heads' logits, each (N, 1, h, w)."""
        return [head(one) for head, one in zip(self.module, maps, strict=True)]


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(channels, WIDTH, 1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(WIDTH, 1, 1)),
    )
