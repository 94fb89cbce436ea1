"""The style-based prior: the interface for attacks, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.core.checkpoints import UNREADABLE, read_tensors, save_state, tensors_below
from inversight.core.config import from_mapping, to_mapping
from inversight.core.errors import DataError, InputError, InversightError, one_line
from inversight.priors.architecture import Architecture
from inversight.priors.base import BlockFeatures
from inversight.priors.image_cache import ImageCache
from inversight.priors.layers import NoiseMode
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.settings import PriorTraining

_KEY = "inversight.prior"
_PIVOTS = "pivots"


def to_unit_range(images: Tensor) -> Tensor:
    """Map images from [-1, 1] to [0, 1]."""
    return ((images + 1.0) / 2.0).clamp(0.0, 1.0)


@dataclass(frozen=True)
class StylePrior:
    """A trained style-based GAN. Its latents are points of W, one w (N, w_dim) for all layers.

    It also takes one w for each layer, (N, num_ws, w_dim), as truncation with a cutoff returns.

    Attributes:
        average: moving average of the generator, which makes the images.
        raw: the generator that training continues with.
        critic: the discriminator. All three have one architecture.
        training: settings for continuing the training.
        augmentation: probability of augmentation at the end of the training.
        psi: truncation in [0, 1]; 1: none.
        cutoff: number of layers that are truncated; None: all.
        log: rows of the training's log.
        pivots: (M, w_dim), latents of chosen public images, not truncated; None: none.
        cache: images of latents that are asked for again; None: all are made anew.
    """

    average: Generator
    raw: Generator
    critic: Discriminator
    training: PriorTraining
    augmentation: float = 0.0
    psi: float = 1.0
    cutoff: int | None = None
    log: tuple[dict[str, float], ...] = field(default=(), repr=False)
    pivots: Tensor | None = field(default=None, repr=False)
    cache: ImageCache | None = field(default=None, repr=False, compare=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, S, S)."""
        return self.average.architecture.image_shape

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        """Draw n latents w = mean + psi (mapping(z) - mean), z ~ N(0, I): (n, w_dim), for all layers.

        With a cutoff below the number of layers, (n, num_ws, w_dim). For a conditional prior, the class
        of each latent is drawn uniformly.
        """
        z = torch.randn(n, self.average.architecture.z_dim, generator=rng)
        classes = self.num_classes
        labels = torch.randint(classes, (n,), generator=rng) if classes > 0 else None
        return self._latents(z, labels)

    @property
    def num_classes(self) -> int:
        """Classes that the generator is conditioned on; 0: none."""
        return self.average.architecture.c_dim

    def sample_of(self, labels: Tensor, *, rng: torch.Generator) -> Tensor:
        """A latent w of each class in ``labels`` (n,), as :meth:`sample` has them.

        Truncation terms towards the mean of all classes.

        Raises:
            InputError: the prior is not conditioned on classes, or not on these.
        """
        if self.num_classes == 0:
            raise InputError(
                "the prior is not conditioned on classes, so that it has no samples of one; adapt it "
                "with --arm pseudo-labels"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise InputError(
                f"the prior is conditioned on {self.num_classes} classes: expected labels in "
                f"0..{self.num_classes - 1}, found {int(labels.min())}..{int(labels.max())}"
            )
        z = torch.randn(len(labels), self.average.architecture.z_dim, generator=rng)
        return self._latents(z, labels)

    @torch.no_grad()
    def _latents(self, z: Tensor, labels: Tensor | None) -> Tensor:
        device = self.average.mapping.w_avg.device
        c = None if labels is None else F.one_hot(labels.to(device), self.num_classes).float()
        w: Tensor = self.average.mapping(z.to(device), c)
        return self.average.truncated(w, self.psi, self.cutoff)

    def __call__(self, latents: Tensor) -> Tensor:
        """Return images (N, C, S, S), clamped to [0, 1]; noise is constant, so they are deterministic."""
        return self._made(latents) if self.cache is None else self.cache.get(latents, self._made)

    def _made(self, latents: Tensor) -> Tensor:
        images: Tensor = self.average(latents, noise=self._noise)
        return to_unit_range(images.to(latents.dtype))

    def realness(self, images: Tensor) -> Tensor:
        """Return the critic's logits (N,) of images (N, C, S, S) in [0, 1], each judged independently.

        For a critic with class logits, this is their log-sum-exp. In training the critic also gets the
        standard deviation over a group of images.

        Raises:
            InputError: the critic judges images together with their classes.
        """
        if self.num_classes > 0:
            raise InputError(
                f"the prior's critic judges images with their classes ({self.num_classes}), not alone; "
                "use another --arm, such as target-aware, a prior that is not conditioned, or another "
                "--attack"
            )
        logits: Tensor = self.critic(images * 2.0 - 1.0, alone=True)
        return logits.to(images.dtype)

    @property
    def blocks(self) -> int:
        """Blocks of the generator: one for each resolution from 4x4 up."""
        return len(self.average.synthesis.resolutions)

    def until(
        self, block: int, latents: Tensor, start: BlockFeatures | None = None
    ) -> BlockFeatures:
        """Return features (N, channels, r, r) after ``block`` blocks, r = 2 x 2^block, and the image.

        Raises:
            ValueError: ``block`` is not beyond ``start`` or not in 1..blocks.
        """
        done = 0 if start is None else start.block
        if not done < block <= self.blocks:
            raise ValueError(f"expected a block in {done + 1}..{self.blocks}, found {block}")
        return self._part(latents, start, block)

    def finish(self, start: BlockFeatures, latents: Tensor) -> Tensor:
        """Run the blocks after ``start``, and return images (N, C, S, S), clamped to [0, 1]."""
        images = cast(Tensor, self._part(latents, start, self.blocks).image)
        return to_unit_range(images.to(latents.dtype))

    def _part(self, latents: Tensor, start: BlockFeatures | None, last: int) -> BlockFeatures:
        """Run the blocks from ``start`` (or the first) to ``last``, in the parameters' precision."""
        first, x, image = (
            (0, None, None) if start is None else (start.block, start.features, start.image)
        )
        found = self.average.synthesis(
            self.average.rows(latents), self._noise, None, False,
            x=x, image=image, first=first, last=last,
        )  # fmt: skip
        return BlockFeatures(last, *found)

    @property
    def _noise(self) -> NoiseMode:
        return "const" if self.training.noise else "none"

    def truncated(self, psi: float, cutoff: int | None = None) -> StylePrior:
        """Return this prior with truncation ``psi`` in [0, 1] (1: none, 0: the mean latent only).

        ``cutoff``: number of layers to truncate, from the lowest resolution; None: all.
        """
        return replace(self, psi=psi, cutoff=cutoff)

    def to(self, device: torch.device | str) -> StylePrior:
        """Return this prior with its networks on ``device``."""
        for module in (self.average, self.raw, self.critic):
            module.to(device)
        return self if self.pivots is None else replace(self, pivots=self.pivots.to(device))

    def save(self, path: Path) -> None:
        """Write networks, settings and log to one safetensors file."""
        networks = {"average": self.average, "raw": self.raw, "critic": self.critic}
        tensors = {} if self.pivots is None else {_PIVOTS: self.pivots}
        facts = {
            "architecture": to_mapping(self.average.architecture),
            "training": to_mapping(self.training),
            "augmentation": self.augmentation,
            "log": list(self.log),
        }
        save_state(path, _KEY, facts, modules=networks, optimisers={}, tensors=tensors)

    @classmethod
    def load(cls, path: Path) -> StylePrior:
        """Load the file that :meth:`save` wrote.

        Raises:
            DataError: missing, damaged, or not a prior.
        """
        try:
            metadata, tensors = read_tensors(path)
            facts = json.loads(metadata[_KEY])
            training = from_mapping(PriorTraining, facts["training"])
            architecture = from_mapping(Architecture, facts["architecture"])
            average, raw = Generator(architecture), Generator(architecture)
            critic = Discriminator(architecture)
            for name, module in (("raw", raw), ("average", average), ("critic", critic)):
                module.load_state_dict(tensors_below(tensors, name))
                module.requires_grad_(False)
            pivots = tensors.get(_PIVOTS)
            if pivots is not None and (pivots.dim() != 2 or pivots.shape[1] != architecture.w_dim):
                raise ValueError(f"pivots of the shape {tuple(pivots.shape)}")
        except (*UNREADABLE, InversightError) as error:
            message = f"{path}: not a prior that inversight wrote ({one_line(error)})"
            raise DataError(message) from error
        return cls(
            average, raw, critic, training, augmentation=float(facts["augmentation"]),
            log=tuple(facts["log"]), pivots=pivots,
        )  # fmt: skip
