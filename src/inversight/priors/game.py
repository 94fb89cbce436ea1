"""The adversarial game between generator and discriminator: its networks, one step, its checkpoint.

Non-saturating loss (Goodfellow et al. 2014), lazy R1 and path-length regularisation with corrected Adam
settings (StyleGAN2, appendix B), style mixing, moving average of the generator including its buffers,
adaptive augmentation.

Two variants use classes. In a conditional game (``c_dim``), generator and discriminator both get the
class of an image: real images have class labels, those of generated images are drawn uniformly. A
discriminator with class logits (``critic_classes``; Salimans et al. 2016, KED-MI) is also trained on soft
labels of the real images. There KED-MI's code trains the generator to match mean features of the
discriminator; here its loss is the non-saturating one, as in every other game.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.checkpoints import load_state, reading, save_state
from inversight.core.errors import ConfigError
from inversight.core.processes import ALONE, Processes
from inversight.priors.architecture import Architecture
from inversight.priors.augment import OverfittingControl, augment
from inversight.priors.guidance import (
    GeneratedBatch,
    ImageGuidance,
    SecondDiscriminator,
    mean_state,
)
from inversight.priors.layers import NoiseMode
from inversight.priors.penalties import PathLength, lazy_adam, r1_penalty
from inversight.priors.style_prior import StylePrior, to_unit_range
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.settings import PriorTraining

SOFT_LABELS = 2.0
"""Weight of the soft labels' cross-entropy relative to the losses of real and generated images (published
code of KED-MI: 1 relative to a half)."""


@dataclass(frozen=True)
class Microbatch:
    """Part of a batch that is processed at once.

    Attributes:
        real: images (n, C, S, S) in [-1, 1].
        rng: generator for all random draws of this part.
        class_labels: (n, K) class weights of the images in a conditional game, or soft labels that sum
            to 1 for a discriminator with class logits.
    """

    real: Tensor
    rng: torch.Generator
    class_labels: Tensor | None = None


@dataclass(frozen=True)
class _Generated:
    """Generated images (n, C, S, S), and what they were generated from: w (n, w_dim), classes (n, K)."""

    w: Tensor
    classes: Tensor | None
    images: Tensor


class Game:
    """Generator, discriminator, moving average, their optimisers and the augmentation control.

    Raises:
        ConfigError: the batch cannot be divided equally.
    """

    def __init__(
        self, architecture: Architecture, training: PriorTraining, *, learning_rate_factor: float = 1.0,
        uniform_latents: bool = False, device: torch.device | str = "cpu", processes: Processes = ALONE,
    ) -> None:  # fmt: skip
        self.training = training
        self.draw_latents = torch.rand if uniform_latents else torch.randn
        self.processes = processes
        self.device = torch.device(device)
        self.has_class_logits = architecture.critic_classes > 0
        self.at_once = _microbatch_size(training, processes.count)
        self.generator = Generator(architecture).to(device)
        self.discriminator = Discriminator(architecture).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        rate = training.learning_rate * learning_rate_factor
        # Published training corrects the settings of both optimisers, with or without a penalty.
        lazy = training.penalty_steps or training.path_length > 0
        interval = training.path_length_interval if lazy else None
        self.optimise_g = lazy_adam(self.generator.parameters(), rate, interval)
        self.optimise_d = lazy_adam(self.discriminator.parameters(), rate, training.r1_interval)
        self.control = OverfittingControl(target=training.ada_target, images=training.ada_images)
        self._augment = partial(augment, mirror=training.mirror, filtered=training.augment_filter)
        self.path_length = PathLength()
        self.rampup = training.ema_rampup
        self.second: SecondDiscriminator | None = None
        self.done = 0
        self.networks: dict[str, nn.Module] = {
            "generator": self.generator, "average": self.average, "discriminator": self.discriminator
        }  # fmt: skip
        self.optimisers = {"optimise_g": self.optimise_g, "optimise_d": self.optimise_d}

    def start_from(self, prior: StylePrior) -> None:
        """Load the networks of ``prior``, whose moving average a ramp-up would discard."""
        self.generator.load_state_dict(prior.raw.state_dict())
        self.average.load_state_dict(prior.average.state_dict())
        self.discriminator.load_state_dict(prior.critic.state_dict())
        self.control.p = prior.augmentation
        self.rampup = None

    def add_discriminator(self, second: SecondDiscriminator) -> None:
        """Train this discriminator too from now on, and save it in checkpoints."""
        self.second = second
        self.networks["second"] = second.module.to(self.device)
        parameters = second.module.parameters()
        self.optimisers["optimise_second"] = lazy_adam(parameters, second.learning_rate, None)

    def prior(self, log: Sequence[dict[str, float]] = ()) -> StylePrior:
        """Return the networks, which are not trained any further, as a prior."""
        for network in self.networks.values():
            network.requires_grad_(False)
        return StylePrior(
            self.average, self.generator, self.discriminator, self.training,
            augmentation=self.control.p, log=tuple(log),
        )  # fmt: skip

    @property
    def is_finite(self) -> bool:
        """Whether the networks are free of NaN and infinity."""
        states = (network.state_dict().values() for network in self.networks.values())
        return all(bool(tensor.isfinite().all()) for state in states for tensor in state)

    def step(
        self, microbatches: Sequence[Microbatch], guidance: ImageGuidance | None = None
    ) -> dict[str, float]:
        """Train discriminator and generator on one batch, and return the row for the log.

        ``microbatches`` are this process's part of the batch, all of one size; every process calls this.
        """
        generated = [self._generate(part) for part in microbatches] if self._keeps_images else []
        judged = self._step_discriminators(microbatches, generated)
        g_loss = self._step_generator(microbatches, guidance, generated)
        g_loss, d_loss, second_loss, signs = self.processes.means([g_loss, *judged])
        signs *= self.processes.count
        self.processes.average([b for b in self.generator.buffers() if b.is_floating_point()])
        images = sum(len(part.real) for part in microbatches) * self.processes.count
        self.control.see(signs, images)
        self.done += 1
        if self.done % 4 == 0:
            self.control.update()
        self._update_average(images)
        row = {"generator": g_loss, "discriminator": d_loss, "p": self.control.p}
        return row if self.second is None else {**row, "second_discriminator": second_loss}

    @torch.no_grad()
    def samples(self, n: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Yield n images of the moving average in batches (B, C, S, S) in [0, 1]."""
        noise: NoiseMode = "const" if self.training.noise else "none"
        z = torch.randn(n, self.average.architecture.z_dim, generator=rng).to(self.device)
        c = self._classes(n, rng)
        # Without gradients twice as many images as in a step take no more memory.
        at_once = 2 * self.at_once if self.training.images_at_once else max(self.at_once, 64)
        for rows in torch.arange(n, device=self.device).split(at_once):
            w = self.average.mapping(z[rows], None if c is None else c[rows])
            yield to_unit_range(self.average(w, noise=noise))

    @property
    def _keeps_images(self) -> bool:
        """Whether the generator's step uses the images of the discriminator's step, with their graph.

        Parts of a batch are generated one after another, for which memory is kept low.
        """
        return not self.training.new_latents and self.at_once == self.training.batch_size

    def _generate(self, part: Microbatch) -> _Generated:
        """Generate as many images as the microbatch has real ones."""
        c = self._classes(len(part.real), part.rng)
        w, ws = self._latents(len(part.real), part.rng, c)
        return _Generated(w.detach(), c, self._images(ws, part.rng))

    def _step_discriminators(
        self, parts: Sequence[Microbatch], generated: Sequence[_Generated] = ()
    ) -> tuple[float, float, float]:
        """Train the discriminators on this process's microbatches.

        Returns:
            Mean loss of the discriminator, that of the second one (0 if there is none), and the sum of
            the signs of the discriminator's logits of real images.
        """
        training, count = self.training, len(parts)
        penalised = training.r1 > 0 and self.done % training.r1_interval == 0
        joint = penalised and not training.penalty_steps
        weight = training.r1 / 2.0 * training.r1_interval
        self.discriminator.requires_grad_(True)
        loss_sum, second_sum, sign_sum = 0.0, 0.0, 0.0
        for i, part in enumerate(parts):
            with torch.no_grad():
                own = generated[i] if generated else self._generate(part)
            c, fake = own.classes, own.images.detach()
            if self.second is not None:
                second = self.second.loss(to_unit_range(part.real), to_unit_range(fake))
                second_sum += float(second.detach())
                (second / count).backward()
            if joint:
                on_real, outputs, seen = self._judge_real(part, follow=True)
                on_fake, _ = self._judge(self._augment(fake, self.control.p, part.rng), c)
            else:
                on_real, on_fake, outputs = self._judge_both(part, fake, c)
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
            loss_sum += float(loss.detach())
            sign_sum += float(on_real.detach().sign().sum())
            if joint:
                loss = loss + r1_penalty(on_real, seen) * weight
            if self.has_class_logits and part.class_labels is not None:
                loss = loss + SOFT_LABELS * F.cross_entropy(outputs, part.class_labels)
            (loss / count).backward()
        self._apply(self.optimise_d)
        if self.second is not None:
            self._apply(self.optimisers["optimise_second"])
            self.second.settle()
        if penalised and not joint:
            for part in parts:
                logits, _, seen = self._judge_real(part, follow=True)
                (r1_penalty(logits, seen) * (weight / count)).backward()
            self._apply(self.optimise_d)
        return loss_sum / count, second_sum / count, sign_sum

    def _step_generator(
        self, parts: Sequence[Microbatch], guidance: ImageGuidance | None,
        generated: Sequence[_Generated] = (),
    ) -> float:  # fmt: skip
        """Train the generator on this process's microbatches, and return its mean loss."""
        training, count = self.training, len(parts)
        penalised = training.path_length > 0 and self.done % training.path_length_interval == 0
        self.discriminator.requires_grad_(False)
        before = {} if guidance is None else dict(guidance.state)
        loss_sum, latents, states = 0.0, [], []
        for i, part in enumerate(parts):
            own = generated[i] if generated else self._generate(part)
            c, fake = own.classes, own.images
            latents.append(own.w)
            images = fake if guidance is None else fake.detach().requires_grad_(True)
            loss = F.softplus(
                -self._judge(self._augment(images, self.control.p, part.rng), c)[0]
            ).mean()
            loss_sum += float(loss.detach())
            if guidance is None:
                (loss / count).backward()
                continue
            (gradient,) = torch.autograd.grad(loss, images)
            judge = self._class_logits if self.has_class_logits else None
            shown = partial(self._augmented, rng=part.rng)
            batch = GeneratedBatch(None if c is None else c.argmax(1), part.rng, judge, shown)
            guidance.state.clear()
            guidance.state.update(before)
            added = self._guiding_gradient(guidance, fake, gradient, batch)
            states.append(dict(guidance.state))
            fake.backward((gradient + added) / count)
        if guidance is not None:
            guidance.state.update(mean_state(states, self.processes))
        if penalised:
            if training.penalty_steps:
                self._apply(self.optimise_g)
            self._penalise_paths(parts)
        self._apply(self.optimise_g)
        self.generator.mapping.track(torch.cat(latents))
        return loss_sum / count

    def _guiding_gradient(
        self, guidance: ImageGuidance, fake: Tensor, gradient: Tensor, batch: GeneratedBatch
    ) -> Tensor:
        """Return what guidance adds to the GAN loss's ``gradient`` on the generated images."""
        # Guidance works on [0, 1]: x01 = (x + 1) / 2, so gradients there are twice as long.
        found = guidance(to_unit_range(fake.detach()), batch)
        terms = {name: term / 2.0 for name, term in found.items()}
        if guidance.due(self.done):
            weights = list(self.generator.parameters())

            def norm(g: Tensor) -> float:
                grads = torch.autograd.grad(fake, weights, g, retain_graph=True, allow_unused=True)
                norms = torch._foreach_norm([g for g in grads if g is not None])
                return float(torch.stack(norms).norm())

            guidance.measure(norm(gradient), {name: norm(term) for name, term in terms.items()})
        added = (guidance.factor(name) * term for name, term in terms.items())
        return sum(added, torch.zeros_like(gradient))

    def _penalise_paths(self, parts: Sequence[Microbatch]) -> None:
        """Add the gradient of the path-length penalty on half of each microbatch (StyleGAN2, app. B)."""
        weight = self.training.path_length * self.training.path_length_interval
        means = 0.0
        for part in parts:
            half = max(1, len(part.real) // 2)
            _, ws = self._latents(half, part.rng, self._classes(half, part.rng))
            if ws.dim() == 2:
                ws = ws[:, None].expand(-1, self.generator.num_ws, -1)
            penalty, mean = self.path_length.penalty(self._images(ws, part.rng), ws, part.rng)
            (penalty * (weight / len(parts))).backward()
            means += mean / len(parts)
        (self.path_length.mean,) = self.processes.means([means])

    def _classes(self, n: int, rng: torch.Generator) -> Tensor | None:
        """Draw n classes uniformly, one-hot (n, K); None for a generator without classes."""
        classes = self.generator.architecture.c_dim
        if classes == 0:
            return None
        drawn = torch.randint(classes, (n,), generator=rng)
        return F.one_hot(drawn, classes).float().to(self.device)

    def _latents(self, n: int, rng: torch.Generator, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draw w (n, w_dim), and the generator's input: w, or mixed styles (n, num_ws, w_dim)."""

        def draw() -> Tensor:
            z = self.draw_latents(n, self.generator.architecture.z_dim, generator=rng)
            w: Tensor = self.generator.mapping(z.to(self.device), c)
            return w

        w, chance = draw(), self.training.mixing
        if chance > 0 and float(torch.rand((), generator=rng)) < chance:
            return w, self.generator.mixed(w, draw(), rng=rng)
        return w, w

    def _images(self, ws: Tensor, rng: torch.Generator) -> Tensor:
        noise: NoiseMode = "random" if self.training.noise else "none"
        with self.processes.precision():
            images: Tensor = self.generator(ws, noise=noise, rng=rng)
        return images.to(ws.dtype)

    def _judge(
        self, images: Tensor, c: Tensor | None = None, *, sets: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return the discriminator's logits (N,) of images (of classes c), and its last outputs."""
        with self.processes.precision():
            outputs = self.discriminator.outputs(images, sets=sets)
            logits = self.discriminator.judgement(outputs, c)
        return logits.to(images.dtype), outputs.to(images.dtype)

    def _augmented(self, images: Tensor, *, rng: torch.Generator) -> Tensor:
        """Return images (N, C, S, S) in [0, 1] as the discriminator would see them, on the same scale."""
        return (self._augment(images * 2.0 - 1.0, self.control.p, rng) + 1.0) / 2.0

    def _class_logits(self, images: Tensor) -> Tensor:
        """Return the discriminator's class logits (N, K) of images in [0, 1]."""
        return self._judge(images * 2.0 - 1.0)[1]

    def _judge_both(
        self, part: Microbatch, fake: Tensor, c: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the discriminator on real and generated images at once, which is faster.

        Returns:
            Its logits of the real images (n,), of ``fake`` (n,), and its last outputs of the real ones.
        """
        n = len(fake)
        seen = self._augment(torch.cat([part.real, fake]), self.control.p, part.rng)
        if c is not None and part.class_labels is not None:
            c = torch.cat([part.class_labels, c])
        logits, outputs = self._judge(seen, c, sets=2)
        return logits[:n], logits[n:], outputs[:n]

    def _judge_real(self, part: Microbatch, *, follow: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the discriminator on augmented real images.

        Returns:
            Its logits (n,), its last outputs, and the images that R1 differentiates the logits by, if
            ``follow``. As published, these are the images before augmentation. Bilinear sampling can be
            differentiated only once, so without the filter they are the augmented images.
        """
        c = None if self.has_class_logits else part.class_labels
        if follow and self.training.augment_filter:
            real = part.real.detach().requires_grad_(True)
            return *self._judge(self._augment(real, self.control.p, part.rng), c), real
        seen = self._augment(part.real, self.control.p, part.rng)
        if follow:
            seen = seen.detach().requires_grad_(True)
        return *self._judge(seen, c), seen

    def _apply(self, optimiser: torch.optim.Optimizer) -> None:
        """Average the gradients over all processes, update the parameters, and drop the gradients."""
        parameters = (p for group in optimiser.param_groups for p in group["params"])
        self.processes.average([p.grad for p in parameters if p.grad is not None])
        optimiser.step()
        optimiser.zero_grad()

    @torch.no_grad()
    def _update_average(self, images: int) -> None:
        """Update the moving average after ``images`` more images."""
        half_life = self.training.ema_images
        if self.rampup is not None:
            half_life = min(half_life, self.done * images * self.rampup)
        keep = 0.5 ** (images / max(half_life, 1e-8))
        torch._foreach_lerp_(  # fused: one call for all parameters
            list(self.average.parameters()), list(self.generator.parameters()), 1.0 - keep
        )
        for own, other in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            own.copy_(other)

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Write the whole state to ``path``, atomically."""
        facts = {
            "done": self.done, "path_length": self.path_length.mean, "extra": extra,
            "control": {name: vars(self.control)[name] for name in ("p", "signs", "seen")},
        }  # fmt: skip
        save_state(path, "game", facts, modules=self.networks, optimisers=self.optimisers)

    def load(self, path: Path) -> dict[str, Any]:
        """Load the state that :meth:`save` wrote, and return its ``extra``.

        Raises:
            DataError: damaged, or of a game with other networks.
        """
        with reading(path, "training"):
            facts = load_state(path, "game", modules=self.networks, optimisers=self.optimisers)
            self.done = facts["done"]
            vars(self.control).update(facts["control"])
            self.path_length.mean = facts["path_length"]
            return dict(facts["extra"])


def _microbatch_size(training: PriorTraining, processes: int) -> int:
    """Return the number of images in each microbatch."""
    own, rest = divmod(training.batch_size, processes)
    if rest:
        batch = training.batch_size
        raise ConfigError(
            f"prior.batch_size: expected a multiple of the {processes} processes, found {batch}"
        )
    at_once = min(own, training.images_at_once or own)
    if own % at_once:
        raise ConfigError(
            f"prior.images_at_once: expected a divisor of the {own} images that a process has in a "
            f"step, found {at_once}"
        )
    return at_once
