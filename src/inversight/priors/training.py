"""The adversarial game: trains a prior on public images, and goes on with it in the adaptation.

Non-saturating loss (Goodfellow et al. 2014), lazy R1 with corrected Adam settings (StyleGAN2,
appendix B), moving average of the generator that carries its buffers, adaptive augmentation. All
randomness derives from (seed, step), so a game resumed from a checkpoint goes on bit by bit.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.config import Fraction, from_mapping, settings
from inversight.errors import StageError
from inversight.priors.architecture import Architecture
from inversight.priors.augment import OverfittingControl, augment
from inversight.priors.layers import NoiseMode
from inversight.priors.published import published_architecture
from inversight.priors.stylegan2 import Discriminator, Generator, initialise
from inversight.progress import Progress, silent
from inversight.seeding import draw_seed, generator


class ImageGuidance(Protocol):
    """What pulls at generated images beside the discriminator.

    ``state`` is saved and restored with the game; ``logged`` goes into its log.
    """

    state: dict[str, float]
    logged: dict[str, float]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, S, S) in [0, 1] -> gradients of that shape, by name."""

    def due(self, step: int) -> bool:
        """Whether :meth:`measure` is to be called at this step."""

    def measure(self, gan: float, pulls: Mapping[str, float]) -> None:
        """Lengths on the generator's parameters of the GAN loss's gradient and of one's own."""

    def factor(self, name: str) -> float:
        """What one's own gradient is multiplied by; called after ``measure`` where that is due."""


@settings
class PriorTraining:
    """The style-based prior and how it is trained on the public images."""

    steps: PositiveInt = 2000
    """Steps of the adversarial game (one step of discriminator and generator each)."""
    batch_size: PositiveInt = 32
    """Images a step."""
    config: Literal["small", "auto", "stylegan2", "paper256", "paper512", "paper1024", "cifar"] = (
        "small"
    )
    """Networks: small, for small images on a CPU, or those of a published configuration, which sets
    width, z_dim, w_dim and mapping_depth itself."""
    width: PositiveInt = 16
    """Feature channels of small at full size; doubled at each halving, at most eightfold."""
    z_dim: PositiveInt = 64
    """Dimensions of small's normal latent z (published: 512)."""
    w_dim: PositiveInt = 64
    """Dimensions of small's intermediate latent w, in which attacks search (published: 512)."""
    mapping_depth: PositiveInt = 2
    """Layers of small's mapping network."""
    learning_rate: PositiveFloat = 2e-3
    """Adam's step size (paper: 2e-3)."""
    r1: NonNegativeFloat = 2.0
    """Weight gamma of the R1 penalty; too low and small images collapse (paper: 10)."""
    r1_interval: PositiveInt = 16
    """Steps from one R1 penalty to the next (paper: 16)."""
    ema_images: PositiveFloat = 5000.0
    """Half-life of the generator's moving average, in images (paper: 10,000)."""
    ada_target: Fraction = 0.6
    """Mean sign of the discriminator on real images that augmentation aims at (paper: 0.6)."""
    ada_images: PositiveFloat = 50000.0
    """Images in which the augmentation probability may go from 0 to 1."""
    noise: bool = False
    """Add learnt amounts of noise to the features; attacks cannot search it, so off by default."""
    mirror: bool = True
    """Augment with mirroring and quarter turns; switch off for images like digits."""
    checkpoint_seconds: PositiveFloat = 30.0
    """Time from one checkpoint to the next."""


class Game:
    """Generator, discriminator, moving average, their optimisers and the augmentation control."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        training: PriorTraining,
        learning_rate_factor: float = 1.0,
        device: torch.device | str = "cpu",
        architecture: Architecture | None = None,
    ) -> None:
        self.training = training
        architecture = architecture or architecture_of(image_shape, training)
        self.generator = Generator(architecture).to(device)
        self.discriminator = Discriminator(architecture).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        rate = training.learning_rate * learning_rate_factor
        self.optimise_g = torch.optim.Adam(self.generator.parameters(), lr=rate, betas=(0.0, 0.99))
        # R1 adds one step in every r1_interval; Adam's settings are corrected for it.
        ratio = training.r1_interval / (training.r1_interval + 1)
        self.optimise_d = torch.optim.Adam(
            self.discriminator.parameters(), lr=rate * ratio, betas=(0.0, 0.99**ratio)
        )
        self.control = OverfittingControl(target=training.ada_target, images=training.ada_images)
        self.gamma = training.r1
        self.done = 0
        self.device = torch.device(device)

    def start_from(
        self, raw: Generator, average: Generator, critic: Discriminator, p: float
    ) -> None:
        """Take over networks trained before, and their augmentation probability."""
        self.generator.load_state_dict(raw.state_dict())
        self.average.load_state_dict(average.state_dict())
        self.discriminator.load_state_dict(critic.state_dict())
        self.control.p = p

    def step(
        self, real: Tensor, rng: torch.Generator, guidance: ImageGuidance | None = None
    ) -> dict[str, float]:
        """One step of discriminator and generator on real images (N, C, S, S) in [-1, 1]."""
        d_loss = self._step_discriminator(real, rng)
        g_loss = self._step_generator(len(real), rng, guidance)
        self.done += 1
        if self.done % 4 == 0:
            self.control.update()
        self._update_average(len(real))
        return {"generator": g_loss, "discriminator": d_loss, "p": self.control.p}

    def _fakes(self, n: int, rng: torch.Generator) -> Tensor:
        z = torch.randn(n, self.generator.architecture.z_dim, generator=rng).to(self.device)
        w = self.generator.mapping(z)
        if torch.is_grad_enabled():
            self.generator.mapping.track(w)
        noise: NoiseMode = "random" if self.training.noise else "none"
        images: Tensor = self.generator(w, noise=noise, rng=rng)
        return images

    def _augmented(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return augment(images, self.control.p, rng, mirror=self.training.mirror)

    def _step_discriminator(self, real: Tensor, rng: torch.Generator) -> float:
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            fake = self._fakes(len(real), rng)
        penalise = self.done % self.training.r1_interval == 0 and self.gamma > 0
        seen = self._augmented(real, rng)
        if penalise:
            seen = seen.detach().requires_grad_(True)
        on_real = self.discriminator(seen)
        on_fake = self.discriminator(self._augmented(fake, rng))
        self.control.see(on_real)
        loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        total = loss
        if penalise:
            total = loss + r1_penalty(on_real, seen) * (
                self.gamma / 2.0 * self.training.r1_interval
            )
        self.optimise_d.zero_grad(set_to_none=True)
        total.backward()
        self.optimise_d.step()
        return float(loss.detach())

    def _step_generator(
        self, n: int, rng: torch.Generator, guidance: ImageGuidance | None
    ) -> float:
        self.discriminator.requires_grad_(False)
        fake = self._fakes(n, rng)
        self.optimise_g.zero_grad(set_to_none=True)
        if guidance is None:
            loss = F.softplus(-self.discriminator(self._augmented(fake, rng))).mean()
            loss.backward()
        else:
            images = fake.detach().requires_grad_(True)
            loss = F.softplus(-self.discriminator(self._augmented(images, rng))).mean()
            (gradient,) = torch.autograd.grad(loss, images)
            fake.backward(gradient + self._pull(guidance, fake, gradient))
        self.optimise_g.step()
        return float(loss.detach())

    def _pull(self, guidance: ImageGuidance, fake: Tensor, gradient: Tensor) -> Tensor:
        """What guidance adds to the GAN loss's gradient on the generated images."""
        # Guidance works on [0, 1]: x01 = (x + 1) / 2, so gradients there are twice as long.
        shown = ((fake.detach() + 1.0) / 2.0).clamp(0.0, 1.0)
        pulls = {name: pull / 2.0 for name, pull in guidance(shown).items()}
        if guidance.due(self.done):
            parameters = list(self.generator.parameters())

            def length(g: Tensor) -> float:
                grads = torch.autograd.grad(
                    fake, parameters, g, retain_graph=True, allow_unused=True
                )
                norms = torch._foreach_norm([g for g in grads if g is not None])
                return float(torch.stack(norms).norm())

            guidance.measure(length(gradient), {n: length(pull) for n, pull in pulls.items()})
        added = torch.zeros_like(gradient)
        for name, pull in pulls.items():
            added += guidance.factor(name) * pull
        return added

    @torch.no_grad()
    def _update_average(self, batch: int) -> None:
        # Ramp-up as in StyleGAN2-ADA: early averages forget the untrained generator quickly.
        half_life = min(self.training.ema_images, self.done * batch * 0.05)
        keep = 0.5 ** (batch / max(half_life, 1e-8))
        torch._foreach_lerp_(  # fused: one call for all parameters
            list(self.average.parameters()), list(self.generator.parameters()), 1.0 - keep
        )
        for mine, theirs in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(theirs)

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Write the whole state to ``path``, at once or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, module in self._modules().items():
            tensors |= {f"{name}/{k}": v for k, v in module.state_dict().items()}
        for name, optimiser in self._optimisers().items():
            for i, state in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}/{i}/{k}": v for k, v in state.items()}
        control = {"p": self.control.p, "signs": self.control.signs, "seen": self.control.seen}
        facts = {"done": self.done, "control": control, "extra": extra}
        partial = path.with_name(path.name + ".partial")
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(tensors, partial, metadata={"game": json.dumps(facts)})
        partial.replace(path)

    def load(self, path: Path) -> dict[str, Any]:
        """Read the state that :meth:`save` wrote; returns its ``extra``."""
        with safe_open(path, "pt") as handle:
            facts = json.loads(handle.metadata()["game"])
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        for name, module in self._modules().items():
            prefix = f"{name}/"
            module.load_state_dict(
                {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            )
        for name, optimiser in self._optimisers().items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"{name}/"):
                    _, index, field = key.split("/")
                    state.setdefault(int(index), {})[field] = value
            optimiser.load_state_dict(
                {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
            )
        self.done = facts["done"]
        for field, value in facts["control"].items():
            setattr(self.control, field, value)
        extra: dict[str, Any] = facts["extra"]
        return extra

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "average": self.average,
            "discriminator": self.discriminator,
        }

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimise_g": self.optimise_g, "optimise_d": self.optimise_d}


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over images of |grad_x D(x)|^2 (Mescheder et al. 2018), differentiable."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def architecture_of(image_shape: tuple[int, int, int], training: PriorTraining) -> Architecture:
    """The architecture that the settings name for images (C, S, S).

    Raises:
        ConfigError: S is no power of two in 8..1024.
    """
    channels, size, _ = image_shape
    if training.config != "small":
        return published_architecture(training.config, size=size, channels=channels)
    values = {
        "size": size,
        "channels": channels,
        "z_dim": training.z_dim,
        "w_dim": training.w_dim,
        "mapping_depth": training.mapping_depth,
        "channel_base": training.width * size,
        "channel_max": 8 * training.width,
        "resampling": "fast",
    }
    return from_mapping(Architecture, values, where="prior: ")


def build_networks(
    image_shape: tuple[int, int, int], training: PriorTraining
) -> tuple[Generator, Discriminator]:
    """Untrained networks of the settings' architecture for images (C, S, S).

    Raises:
        ConfigError: S is no power of two in 8..1024.
    """
    architecture = architecture_of(image_shape, training)
    return Generator(architecture), Discriminator(architecture)


def run_game(
    game: Game,
    public: Tensor,
    *,
    steps: int,
    rng: torch.Generator,
    guidance: ImageGuidance | None = None,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    fresh: bool = False,
) -> list[dict[str, float]]:
    """Play until ``steps`` steps are done; the log has a row for about every hundredth of them.

    ``fresh`` draws initial weights. ``public`` is uint8 (N, C, S, S).

    Raises:
        StageError: the loss stopped being a number; the last good checkpoint stays.
    """
    seed = draw_seed(rng)
    if fresh:
        initialise(game.generator, generator(seed, "generator"))
        initialise(game.discriminator, generator(seed, "discriminator"))
        game.average.load_state_dict(game.generator.state_dict())
    log: list[dict[str, float]] = []
    state = guidance.state if guidance is not None else {}
    if checkpoint is not None and checkpoint.is_file():
        extra = game.load(checkpoint)
        log = extra["log"]
        state.update(extra["guidance"])
    data = public.to(game.device)
    saved = time.monotonic()
    every = max(1, steps // 100)
    while game.done < steps:
        step_rng = generator(seed, game.done)
        index = torch.randint(len(data), (game.training.batch_size,), generator=step_rng)
        real = data[index.to(game.device)].float() / 127.5 - 1.0
        row = game.step(real, step_rng, guidance)
        if not all(math.isfinite(v) for v in row.values()):
            kept = f"; the last good state is in {checkpoint}" if checkpoint else ""
            raise StageError(
                f"the adversarial game diverged at step {game.done} (loss is not a number): lower "
                f"prior.learning_rate or raise prior.r1{kept}"
            )
        if game.done % every == 0 or game.done == steps:
            log.append({"step": game.done, **row, **(guidance.logged if guidance else {})})
        progress(game.done, steps, f"G {row['generator']:.2f} D {row['discriminator']:.2f}")
        if (
            checkpoint is not None
            and time.monotonic() - saved > game.training.checkpoint_seconds
            and game.done < steps
        ):
            game.save(checkpoint, {"log": log, "guidance": state})
            saved = time.monotonic()
    return log
