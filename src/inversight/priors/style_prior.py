"""The style-based prior as attacks see it, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from inversight.config import from_mapping, to_mapping
from inversight.errors import DataError, InversightError
from inversight.priors.architecture import Architecture
from inversight.priors.layers import NoiseMode
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.priors.training import Game, ImageGuidance, PriorTraining, run_game
from inversight.progress import Progress, silent

_KEY = "inversight.prior"


@dataclass(frozen=True)
class StylePrior:
    """A trained style-based GAN. Its latents are points of W, one w (N, w_dim) for all layers.

    It also takes a w for each layer, (N, num_ws, w_dim), which truncation with a cutoff gives.
    ``raw`` is the generator that training goes on with, ``average`` its moving average, which makes
    the images; ``critic`` the discriminator. All three are of one architecture, wherever that came
    from; ``training`` says how the game goes on.
    """

    average: Generator
    raw: Generator
    critic: Discriminator
    training: PriorTraining
    image_shape: tuple[int, int, int]
    augmentation: float = 0.0
    psi: float = 1.0
    cutoff: int | None = None
    log: tuple[dict[str, float], ...] = field(default=(), repr=False)

    def sample(self, n: int, *, rng: torch.Generator) -> Tensor:
        """n latents w = mean + psi (mapping(z) - mean), z ~ N(0, I): (n, w_dim), for all layers.

        With a cutoff below the number of layers, (n, num_ws, w_dim). A network conditioned on
        classes is given one of them at random for each latent.
        """
        device = self.average.mapping.w_avg.device
        architecture = self.average.architecture
        z = torch.randn(n, architecture.z_dim, generator=rng).to(device)
        c: Tensor | None = None
        if architecture.c_dim > 0:
            chosen = torch.randint(architecture.c_dim, (n,), generator=rng)
            c = F.one_hot(chosen, architecture.c_dim).float().to(device)
        with torch.no_grad():
            w: Tensor = self.average.mapping(z, c)
        return self.average.truncated(w, self.psi, self.cutoff)

    def __call__(self, latents: Tensor) -> Tensor:
        """Images (N, C, S, S), clamped to [0, 1]; noise is constant, so a latent is an image."""
        noise: NoiseMode = "const" if self.training.noise else "none"
        images: Tensor = self.average(latents, noise=noise)
        return ((images + 1.0) / 2.0).clamp(0.0, 1.0)

    def truncated(self, psi: float, cutoff: int | None = None) -> StylePrior:
        """This prior with truncation ``psi`` in [0, 1] (1: none, 0: the mean latent alone).

        ``cutoff``: only so many layers are truncated, those of low resolution; None: all.
        """
        return replace(self, psi=psi, cutoff=cutoff)

    def to(self, device: torch.device | str) -> StylePrior:
        """This prior with its networks on ``device``."""
        for module in (self.average, self.raw, self.critic):
            module.to(device)
        return self

    def save(self, path: Path) -> None:
        """Write networks, settings and log to one safetensors file."""
        tensors: dict[str, Tensor] = {}
        for name in ("average", "raw", "critic"):
            state = getattr(self, name).state_dict()
            tensors |= {f"{name}/{k}": v.detach().cpu().contiguous() for k, v in state.items()}
        facts = {
            "architecture": to_mapping(self.average.architecture),
            "training": to_mapping(self.training),
            "augmentation": self.augmentation,
            "log": list(self.log),
        }
        save_file(tensors, path, metadata={_KEY: json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> StylePrior:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: missing, damaged, or not a prior.
        """
        try:
            with safe_open(path, "pt") as handle:
                facts = json.loads((handle.metadata() or {})[_KEY])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            training = from_mapping(PriorTraining, facts["training"])
            architecture = from_mapping(Architecture, facts["architecture"])
            raw, average = Generator(architecture), Generator(architecture)
            critic = Discriminator(architecture)
            for name, module in (("raw", raw), ("average", average), ("critic", critic)):
                prefix = f"{name}/"
                module.load_state_dict(
                    {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                )
                module.requires_grad_(False)
        except (
            SafetensorError,
            OSError,
            KeyError,
            ValueError,
            RuntimeError,
            InversightError,
        ) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{path}: not a prior that inversight wrote ({reason})") from error
        return cls(
            average=average,
            raw=raw,
            critic=critic,
            training=training,
            image_shape=architecture.image_shape,
            augmentation=float(facts["augmentation"]),
            log=tuple(facts["log"]),
        )


def train_prior(
    public: Tensor,
    *,
    training: PriorTraining,
    rng: torch.Generator,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    device: torch.device | str = "cpu",
) -> StylePrior:
    """Train a prior on public images, uint8 (N, C, S, S), S a power of two in 8..1024.

    Raises:
        ConfigError: another S.
        StageError: the game diverged.
    """
    shape = (int(public.shape[1]), int(public.shape[2]), int(public.shape[3]))
    game = Game(image_shape=shape, training=training, device=device)
    log = run_game(
        game,
        public,
        steps=training.steps,
        rng=rng,
        progress=progress,
        checkpoint=checkpoint,
        fresh=True,
    )
    return _finished(game, training, shape, log)


def play(
    public: Tensor,
    *,
    training: PriorTraining,
    start: StylePrior,
    steps: int,
    learning_rate_factor: float,
    guidance: ImageGuidance | None,
    rng: torch.Generator,
    progress: Progress = silent,
    checkpoint: Path | None = None,
) -> StylePrior:
    """Go on with the game of a trained prior for ``steps`` steps, guided or not.

    Raises:
        StageError: the game diverged.
    """
    device = next(start.raw.parameters()).device
    game = Game(
        image_shape=start.image_shape,
        training=training,
        learning_rate_factor=learning_rate_factor,
        device=device,
        architecture=start.raw.architecture,
    )
    game.start_from(start.raw, start.average, start.critic, start.augmentation)
    log = run_game(
        game,
        public,
        steps=steps,
        rng=rng,
        guidance=guidance,
        progress=progress,
        checkpoint=checkpoint,
    )
    return _finished(game, training, start.image_shape, log)


def _finished(
    game: Game, training: PriorTraining, shape: tuple[int, int, int], log: list[dict[str, float]]
) -> StylePrior:
    for module in (game.generator, game.average, game.discriminator):
        module.requires_grad_(False)
    return StylePrior(
        average=game.average,
        raw=game.generator,
        critic=game.discriminator,
        training=training,
        image_shape=shape,
        augmentation=game.control.p,
        log=tuple(log),
    )
