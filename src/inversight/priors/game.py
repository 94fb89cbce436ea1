"""The adversarial game: one step of discriminator and generator, and all that a step goes on from.

Non-saturating loss (Goodfellow et al. 2014), lazy R1 and path lengths with corrected Adam settings
(StyleGAN2, appendix B), style mixing, moving average of the generator that carries its buffers,
adaptive augmentation.

Two games know classes. Conditioned on them (``c_dim``), generator and discriminator are both told an
image's class: the real images' from what is known of them, the generated ones' are drawn evenly. With a
discriminator that tells classes apart (``critic_classes``; Salimans et al. 2016, KED-MI) real images
also teach it their soft labels. There KED-MI's code has the generator match mean features of the
discriminator; here it has the same non-saturating loss as in every other game.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversight.core.checkpoints import load_state, reading, save_state
from inversight.core.errors import ConfigError
from inversight.core.processes import ALONE, Processes
from inversight.priors.architecture import Architecture, architecture_of
from inversight.priors.augment import OverfittingControl, augment
from inversight.priors.layers import NoiseMode
from inversight.priors.penalties import PathLength, lazy_adam, r1_penalty
from inversight.priors.stylegan2 import Discriminator, Generator
from inversight.settings import PriorTraining

SOFT_LABELS = 2.0
"""Weight of the soft labels' cross-entropy beside the losses on real and on generated images (published
code of KED-MI: 1 beside a half)."""


@dataclass(frozen=True)
class GeneratedBatch:
    """What the game knows of generated images (N, C, S, S) beside what they look like.

    classes (N,) int64 that they were generated for, None where the generator knows none; rng, the
    randomness of what is done with them; critic: such images in [0, 1] -> the discriminator's class
    logits (N, K), None where it has none.
    """

    classes: Tensor | None
    rng: torch.Generator
    critic: Callable[[Tensor], Tensor] | None


class SecondDiscriminator(Protocol):
    """A discriminator that guidance asks, and that the game trains and keeps beside its own.

    ``module`` holds what is trained, at ``learning_rate``.
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def learning_rate(self) -> float: ...

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """What its training lowers: a mean over images (N, C, S, S) in [0, 1] of each kind."""

    def settle(self) -> None:
        """What is to be done once after each step of training."""


class ImageGuidance(Protocol):
    """What terms at generated images beside the discriminator.

    ``state`` is saved and restored with the game; ``logged`` goes into its log. ``second``: what it
    asks and the game has to train, or None.
    """

    state: dict[str, float]
    logged: dict[str, float]
    second: SecondDiscriminator | None

    def __call__(self, images: Tensor, made: GeneratedBatch) -> dict[str, Tensor]:
        """Images (N, C, S, S) in [0, 1] -> gradients of that shape, by name."""

    def due(self, step: int) -> bool:
        """Whether :meth:`measure` is to be called at this step."""

    def measure(self, gan: float, terms: Mapping[str, float]) -> None:
        """Lengths on the generator's parameters of the GAN loss's gradient and of one's own."""

    def factor(self, name: str) -> float:
        """What one's own gradient is multiplied by; called after ``measure`` where that is due."""


@dataclass(frozen=True)
class Microbatch:
    """Part of a batch: real images (n, C, S, S) in [-1, 1], and the randomness of what is done with it.

    class_labels (n, K): what is known of the classes of each; class weights in a game that is conditioned
    on classes, soft labels that sum to 1 for a discriminator that tells classes apart.
    """

    real: Tensor
    rng: torch.Generator
    class_labels: Tensor | None = None


@dataclass(frozen=True)
class _Judged:
    """Real images as the discriminator saw them: its logits (n,), its last layer's outputs, and the
    images that R1 differentiates the logits by."""

    logits: Tensor
    outputs: Tensor
    images: Tensor


class Game:
    """Generator, discriminator, moving average, their optimisers and the augmentation control.

    Raises:
        ConfigError: a batch that cannot be shared out equally, or a size that no network has.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        training: PriorTraining,
        learning_rate_factor: float = 1.0,
        device: torch.device | str = "cpu",
        architecture: Architecture | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.training = training
        self.processes = processes
        self.at_once = _at_once(training, processes.count)
        architecture = architecture or architecture_of(image_shape, training)
        self.generator = Generator(architecture).to(device)
        self.discriminator = Discriminator(architecture).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        rate = training.learning_rate * learning_rate_factor
        # Published training corrects both players' settings, whether there is a penalty or not.
        lazy = training.penalty_steps or training.path_length > 0
        self.optimise_g = lazy_adam(
            self.generator.parameters(), rate, training.path_length_interval if lazy else None
        )
        self.optimise_d = lazy_adam(self.discriminator.parameters(), rate, training.r1_interval)
        self.control = OverfittingControl(target=training.ada_target, images=training.ada_images)
        self.path_length = PathLength()
        self.second: SecondDiscriminator | None = None
        self.optimise_second: torch.optim.Optimizer | None = None
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

    def accompany(self, second: SecondDiscriminator) -> None:
        """Train this discriminator too from now on, and keep it in checkpoints."""
        self.second = second
        parameters = second.module.to(self.device).parameters()
        self.optimise_second = lazy_adam(parameters, second.learning_rate, None)

    def step(
        self, real: Tensor, rng: torch.Generator, guidance: ImageGuidance | None = None
    ) -> dict[str, float]:
        """One step of discriminator and generator on real images (N, C, S, S) in [-1, 1]."""
        return self.step_on([Microbatch(real, rng)], guidance)

    def step_on(
        self, microbatches: Sequence[Microbatch], guidance: ImageGuidance | None = None
    ) -> dict[str, float]:
        """One step on this process's microbatches of a batch, all equally large, on every process."""
        d_loss, second_loss, signs = self._step_discriminators(microbatches)
        g_loss = self._step_generator(microbatches, guidance)
        g_loss, d_loss, second_loss, signs = self.processes.means(
            [g_loss, d_loss, second_loss, signs]
        )
        signs *= self.processes.count
        self.processes.average([b for b in self.generator.buffers() if b.is_floating_point()])
        images = sum(len(microbatch.real) for microbatch in microbatches) * self.processes.count
        self.control.see(signs, images)
        self.done += 1
        if self.done % 4 == 0:
            self.control.update()
        self._update_average(images)
        row = {"generator": g_loss, "discriminator": d_loss, "p": self.control.p}
        return row if self.second is None else {**row, "second_discriminator": second_loss}

    @torch.no_grad()
    def samples(self, n: int, rng: torch.Generator) -> Iterator[Tensor]:
        """n images of the moving average, (B, C, S, S) in [0, 1], as many at once as in training."""
        noise: NoiseMode = "const" if self.training.noise else "none"
        z = torch.randn(n, self.average.architecture.z_dim, generator=rng)
        c = self._classes(n, rng)
        for rows in torch.arange(n).split(self.at_once):
            classes = None if c is None else c[rows.to(c.device)]
            w = self.average.mapping(z[rows].to(self.device), classes)
            yield _shown(self.average(w, noise=noise))

    @property
    def is_finite(self) -> bool:
        """Whether the networks are free of NaN and infinity."""
        networks = self._modules().values()
        return all(bool(t.isfinite().all()) for m in networks for t in m.state_dict().values())

    def _step_discriminators(
        self, microbatches: Sequence[Microbatch]
    ) -> tuple[float, float, float]:
        """This process's microbatches' mean loss, the second discriminator's (0 where there is none), and the
        sum of the first's signs on their real images."""
        training = self.training
        penalised = training.r1 > 0 and self.done % training.r1_interval == 0
        joint = penalised and not training.penalty_steps
        weight = training.r1 / 2.0 * training.r1_interval
        self.discriminator.requires_grad_(True)
        self.optimise_d.zero_grad(set_to_none=True)
        if self.optimise_second is not None:
            self.optimise_second.zero_grad(set_to_none=True)
        loss_sum, second_sum, sign_sum = 0.0, 0.0, 0.0
        for microbatch in microbatches:
            rng = microbatch.rng
            c = self._classes(len(microbatch.real), rng)
            with torch.no_grad():
                fake = self._images(self._latents(len(microbatch.real), rng, c)[1], rng)
            if self.second is not None:
                second = self.second.loss(_shown(microbatch.real), _shown(fake))
                second_sum += float(second.detach())
                (second / len(microbatches)).backward()
            judged = self._judge_real(microbatch, follow=joint)
            on_real = judged.logits
            on_fake = self._judge(self._augmented(fake, rng), c)
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
            loss_sum += float(loss.detach())
            sign_sum += float(on_real.detach().sign().sum())
            if joint:
                loss = loss + r1_penalty(on_real, judged.images) * weight
            if self.has_class_logits and microbatch.class_labels is not None:
                loss = loss + SOFT_LABELS * F.cross_entropy(judged.outputs, microbatch.class_labels)
            (loss / len(microbatches)).backward()
        self._apply(self.optimise_d)
        if self.second is not None and self.optimise_second is not None:
            self._apply(self.optimise_second)
            self.second.settle()
        if penalised and not joint:
            self.optimise_d.zero_grad(set_to_none=True)
            for microbatch in microbatches:
                judged = self._judge_real(microbatch, follow=True)
                (r1_penalty(judged.logits, judged.images) * (weight / len(microbatches))).backward()
            self._apply(self.optimise_d)
        return loss_sum / len(microbatches), second_sum / len(microbatches), sign_sum

    def _step_generator(
        self, microbatches: Sequence[Microbatch], guidance: ImageGuidance | None
    ) -> float:
        """The loss, a mean over this process's microbatches."""
        training = self.training
        penalised = training.path_length > 0 and self.done % training.path_length_interval == 0
        self.discriminator.requires_grad_(False)
        self.optimise_g.zero_grad(set_to_none=True)
        loss_sum, latents = 0.0, []
        memory = _Memory(guidance)
        for microbatch in microbatches:
            rng = microbatch.rng
            c = self._classes(len(microbatch.real), rng)
            w, ws = self._latents(len(microbatch.real), rng, c)
            latents.append(w.detach())
            fake = self._images(ws, rng)
            if guidance is None:
                loss = F.softplus(-self._judge(self._augmented(fake, rng), c)).mean()
                (loss / len(microbatches)).backward()
            else:
                images = fake.detach().requires_grad_(True)
                loss = F.softplus(-self._judge(self._augmented(images, rng), c)).mean()
                (gradient,) = torch.autograd.grad(loss, images)
                made = GeneratedBatch(
                    None if c is None else c.argmax(1),
                    rng,
                    self._class_logits if self.has_class_logits else None,
                )
                with memory.of_share():
                    pull = self._pull(guidance, fake, gradient, made)
                fake.backward((gradient + pull) / len(microbatches))
            loss_sum += float(loss.detach())
        memory.merge(self.processes)
        if penalised and not training.penalty_steps:
            self._penalise_paths(microbatches)
        self._apply(self.optimise_g)
        if penalised and training.penalty_steps:
            self.optimise_g.zero_grad(set_to_none=True)
            self._penalise_paths(microbatches)
            self._apply(self.optimise_g)
        self.generator.mapping.track(torch.cat(latents))
        return loss_sum / len(microbatches)

    def _pull(
        self, guidance: ImageGuidance, fake: Tensor, gradient: Tensor, made: GeneratedBatch
    ) -> Tensor:
        """What guidance adds to the GAN loss's gradient on the generated images."""
        # Guidance works on [0, 1]: x01 = (x + 1) / 2, so gradients there are twice as long.
        terms = {name: pull / 2.0 for name, pull in guidance(_shown(fake.detach()), made).items()}
        if guidance.due(self.done):
            parameters = list(self.generator.parameters())

            def length(g: Tensor) -> float:
                grads = torch.autograd.grad(
                    fake, parameters, g, retain_graph=True, allow_unused=True
                )
                norms = torch._foreach_norm([g for g in grads if g is not None])
                return float(torch.stack(norms).norm())

            guidance.measure(length(gradient), {n: length(pull) for n, pull in terms.items()})
        added = torch.zeros_like(gradient)
        for name, pull in terms.items():
            added += guidance.factor(name) * pull
        return added

    def _penalise_paths(self, microbatches: Sequence[Microbatch]) -> None:
        """Add the gradient of the path-length penalty, on half of each microbatch (StyleGAN2, app. B)."""
        weight = self.training.path_length * self.training.path_length_interval
        means = 0.0
        for microbatch in microbatches:
            rng, half = microbatch.rng, max(1, len(microbatch.real) // 2)
            _, ws = self._latents(half, rng, self._classes(half, rng))
            if ws.dim() == 2:
                ws = ws[:, None].expand(-1, self.generator.num_ws, -1)
            penalty, mean = self.path_length.penalty(self._images(ws, rng), ws, rng)
            (penalty * (weight / len(microbatches))).backward()
            means += mean / len(microbatches)
        (self.path_length.mean,) = self.processes.means([means])

    @property
    def has_class_logits(self) -> bool:
        """Whether the discriminator tells classes apart."""
        return self.discriminator.architecture.critic_classes > 0

    def _classes(self, n: int, rng: torch.Generator) -> Tensor | None:
        """One-hot classes (n, K) drawn evenly; None for a generator that knows none."""
        classes = self.generator.architecture.c_dim
        if classes == 0:
            return None
        drawn = torch.randint(classes, (n,), generator=rng)
        return F.one_hot(drawn, classes).float().to(self.device)

    def _latents(
        self, n: int, rng: torch.Generator, c: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """w (n, w_dim) of random z, and what the images are made of: w, or mixed (n, num_ws, w_dim).

        c (n, K): their classes, where the generator knows any.
        """
        generate = self.generator
        z_dim = generate.architecture.z_dim
        w = generate.mapping(torch.randn(n, z_dim, generator=rng).to(self.device), c)
        chance = self.training.mixing
        if chance > 0 and float(torch.rand((), generator=rng)) < chance:
            other = generate.mapping(torch.randn(n, z_dim, generator=rng).to(self.device), c)
            return w, generate.mixed(w, other, rng=rng)
        return w, w

    def _images(self, ws: Tensor, rng: torch.Generator) -> Tensor:
        noise: NoiseMode = "random" if self.training.noise else "none"
        with self.processes.precision():
            images: Tensor = self.generator(ws, noise=noise, rng=rng)
        return images.to(ws.dtype)

    def _judge(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        return self._judgement(images, c)[0]

    def _judgement(self, images: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The discriminator's logits (N,) of images (of classes c), and its last layer's outputs."""
        with self.processes.precision():
            outputs = self.discriminator.outputs(images)
            logits = self.discriminator.judgement(outputs, c)
        return logits.to(images.dtype), outputs.to(images.dtype)

    def _class_logits(self, images: Tensor) -> Tensor:
        """The discriminator's class logits (N, K) of images in [0, 1]."""
        return self._judgement(images * 2.0 - 1.0)[1]

    def _judge_real(self, microbatch: Microbatch, *, follow: bool) -> _Judged:
        """What the discriminator makes of real images once augmented.

        As published R1 looks at the images before augmentation. Plain bilinear sampling can be
        differentiated once only, so without the filter it looks at those after it.
        """
        c = None if self.has_class_logits else microbatch.class_labels
        if follow and self.training.augment_filter:
            real = microbatch.real.detach().requires_grad_(True)
            return _Judged(*self._judgement(self._augmented(real, microbatch.rng), c), real)
        seen = self._augmented(microbatch.real, microbatch.rng)
        if follow:
            seen = seen.detach().requires_grad_(True)
        return _Judged(*self._judgement(seen, c), seen)

    def _augmented(self, images: Tensor, rng: torch.Generator) -> Tensor:
        training = self.training
        return augment(
            images, self.control.p, rng, mirror=training.mirror, filtered=training.augment_filter
        )

    def _apply(self, optimiser: torch.optim.Optimizer) -> None:
        """A step along the gradients' mean over all processes."""
        parameters = (p for group in optimiser.param_groups for p in group["params"])
        self.processes.average([p.grad for p in parameters if p.grad is not None])
        optimiser.step()

    @torch.no_grad()
    def _update_average(self, images: int) -> None:
        """Let the average forget with its half-life, while ``images`` more were seen."""
        half_life = self.training.ema_images
        if self.training.ema_rampup is not None:
            half_life = min(half_life, self.done * images * self.training.ema_rampup)
        keep = 0.5 ** (images / max(half_life, 1e-8))
        torch._foreach_lerp_(  # fused: one call for all parameters
            list(self.average.parameters()), list(self.generator.parameters()), 1.0 - keep
        )
        for mine, theirs in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(theirs)

    def save(self, path: Path, extra: dict[str, Any]) -> None:
        """Write the whole state to ``path``, at once or not at all."""
        facts = {
            "done": self.done,
            "control": {
                "p": self.control.p,
                "signs": self.control.signs,
                "seen": self.control.seen,
            },
            "path_length": self.path_length.mean,
            "extra": extra,
        }
        save_state(path, "game", facts, modules=self._modules(), optimisers=self._optimisers())

    def load(self, path: Path) -> dict[str, Any]:
        """Read the state that :meth:`save` wrote; returns its ``extra``.

        Raises:
            DataError: damaged, or of a game with other networks.
        """
        with reading(path, "training"):
            facts, _ = load_state(
                path, "game", modules=self._modules(), optimisers=self._optimisers()
            )
            self.done = facts["done"]
            for field, value in facts["control"].items():
                setattr(self.control, field, value)
            self.path_length.mean = facts["path_length"]
            extra: dict[str, Any] = facts["extra"]
        return extra

    def _modules(self) -> dict[str, nn.Module]:
        second = {} if self.second is None else {"second": self.second.module}
        return {
            "generator": self.generator,
            "average": self.average,
            "discriminator": self.discriminator,
            **second,
        }

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        second = {} if self.optimise_second is None else {"optimise_second": self.optimise_second}
        return {"optimise_g": self.optimise_g, "optimise_d": self.optimise_d, **second}


class _Memory:
    """A guidance's ``state`` over the microbatches of a step: each microbatch begins from the same state, and
    the mean of what they end in is kept, so that nothing depends on who works on which microbatch."""

    def __init__(self, guidance: ImageGuidance | None) -> None:
        self.state: dict[str, float] = guidance.state if guidance is not None else {}
        self.before = dict(self.state)
        self.after: list[dict[str, float]] = []

    @contextmanager
    def of_share(self) -> Iterator[None]:
        self.state.clear()
        self.state.update(self.before)
        yield
        self.after.append(dict(self.state))

    def merge(self, processes: Processes) -> None:
        if not self.after or len(self.after) * processes.count == 1:
            return
        names = sorted(self.after[0])
        sums = [math.fsum(state[name] for state in self.after) for name in names]
        means = processes.means([total / len(self.after) for total in sums])
        self.state.update(zip(names, means, strict=True))


def _shown(images: Tensor) -> Tensor:
    """Images in [-1, 1] as others than the game's own discriminator see them: in [0, 1]."""
    return ((images + 1.0) / 2.0).clamp(0.0, 1.0)


def _at_once(training: PriorTraining, processes: int) -> int:
    """Images of one microbatch of the batch."""
    own, rest = divmod(training.batch_size, processes)
    if rest:
        raise ConfigError(
            f"prior.batch_size: expected a multiple of the {processes} processes, found "
            f"{training.batch_size}"
        )
    at_once = min(own, training.images_at_once or own)
    if own % at_once:
        raise ConfigError(
            f"prior.images_at_once: expected a divisor of the {own} images that a process has in a "
            f"step, found {at_once}"
        )
    return at_once
