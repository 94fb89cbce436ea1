"""Guidance of the adversarial game by gradients of the target on generated images.

Weights are relative to the gradient of the GAN loss, measured on the generator's parameters, so that a
weight means the same for every image size, generator and scale of the target's logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

import torch
from torch import Tensor

from inversight.adaptation.preconditioners import Preconditioner
from inversight.adaptation.terms import Need, Observation, Term, entropy_of, observe
from inversight.embeddings.pullback import dot
from inversight.models.target import Access, Target
from inversight.priors.guidance import GeneratedBatch, SecondDiscriminator


@dataclass(frozen=True)
class WeightedTerm:
    """A guidance term, its weight, and the preconditioner of its gradient, if any.

    ``part``: number of images of each batch that the term is computed on; the estimate stays unbiased,
    and an expensive preconditioner takes less time.
    """

    term: Term
    weight: float
    preconditioner: Preconditioner | None = None
    part: int | None = None


@dataclass
class Guidance:
    """Guidance of the adversarial game: maps images in [0, 1] to each term's gradient on them.

    A preconditioner changes the direction of each image's gradient and keeps its length (Li et al. 2025).
    ``factor`` makes a term's gradient on the generator's parameters ``weight`` times as long as the GAN
    loss's, by running means of the norms that :meth:`measure` receives every ``interval`` steps.
    ``state`` holds these means, so that a resumed adaptation gives the same result.

    ``summed`` selects the published scale instead: ``weight`` times the gradient of the sum over a batch
    of ``summed`` images, with the length that the preconditioner gives it; 1: of the mean.

    ``transform`` maps images and a generator to transformed images, the target's input. ``augmented``: the
    target gets the images after the game's augmentation, as published. ``second`` is a discriminator that
    one of the terms uses, for the game to train. ``memory`` is the factor of the running means at each
    measurement.
    """

    target: Target
    terms: Sequence[WeightedTerm]
    _: KW_ONLY
    memory: float = 0.9
    interval: int = 8
    summed: int | None = None
    transform: Callable[[Tensor, torch.Generator], Tensor] | None = None
    augmented: bool = False
    second: SecondDiscriminator | None = None
    state: dict[str, float] = field(default_factory=dict, init=False)
    logged: dict[str, float] = field(default_factory=dict, init=False)

    def __call__(self, images: Tensor, batch: GeneratedBatch | None = None) -> dict[str, Tensor]:
        """Return each term's gradient (N, C, H, W) on images (N, C, H, W) in [0, 1], by its name.

        ``batch``: what the game knows about them; terms and transformations may need it.
        """
        x = images.detach().requires_grad_(True)
        with torch.enable_grad():
            shown = self.transform(x, batch.rng) if self.transform and batch else x
            if self.augmented and batch and batch.augment:
                shown = batch.augment(shown)
            needs = {need for one in self.terms for need in one.term.needs}
            seen = self._observe(shown, needs)
            if batch is not None:
                judge = batch.class_logits if "critic" in needs else None
                seen = replace(seen, classes=batch.classes, critic=judge and judge(x))
            values = [one.term(seen.first(one.part or len(x))) for one in self.terms]
        # High when the images spread over the classes, low when they collapse onto few.
        self.logged = {}
        if seen.logits.shape[1]:
            probabilities = seen.logits.detach().softmax(1).mean(0)
            self.logged["class_entropy"] = float(entropy_of(probabilities))
        gradients = {}
        for one, value in zip(self.terms, values, strict=True):
            (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
            gradients[one.term.name] = step = gradient.clone()
            if one.preconditioner is not None:
                part = slice(one.part)
                step[part] = self._natural(
                    one.preconditioner, images[part].detach(), gradient[part]
                )
            self.logged[one.term.name] = float(value.detach())
        return gradients

    def _observe(self, images: Tensor, needs: Collection[Need]) -> Observation:
        """Return what the target makes of ``images``; logits (N, 0) where no term needs it.

        A target of limited access is not asked for the log alone: each image would be a query.
        """
        white_box = self.target.access is Access.WHITE_BOX
        if white_box or any(one.term.of_target for one in self.terms):
            return observe(self.target, images, needs)
        return Observation(images.new_zeros(len(images), 0))

    def due(self, step: int) -> bool:
        """Return whether :meth:`measure` has to be called in this step."""
        return self.summed is None and step % self.interval == 0

    def measure(self, gan: float, terms: Mapping[str, float]) -> None:
        """Record the norms of the GAN loss's and the terms' gradients on the generator's parameters."""
        self._run("gan", gan)
        for name, length in terms.items():
            self._run(name, length)

    def factor(self, name: str) -> float:
        """Return the factor of a term's gradient on the images."""
        weight = next(one.weight for one in self.terms if one.term.name == name)
        if self.summed is not None:
            return weight * self.summed
        return weight * self._length("gan") / max(self._length(name), 1e-20)

    def _natural(self, precondition: Preconditioner, images: Tensor, gradient: Tensor) -> Tensor:
        """Return the preconditioned gradient, as long as before unless the scale is the published one."""
        natural = precondition(images, gradient)
        squares = dot(gradient, gradient), dot(natural, natural)
        cosines = dot(natural, gradient) / (squares[1] * squares[0]).sqrt().clamp_min(1e-30)
        self.logged["cosine"] = float(cosines.mean())
        self.logged |= getattr(precondition, "logged", {})
        if self.summed is not None:
            return natural
        stretch = squares[0].sqrt() / squares[1].sqrt().clamp_min(1e-20)
        return natural * stretch.view(-1, 1, 1, 1)

    def _run(self, name: str, value: float) -> None:
        """Update the running mean of the square of ``value``, and the total weight of that mean."""
        mean, mass = self.state.get(name, 0.0), self.state.get(f"{name}_mass", 0.0)
        self.state[name] = self.memory * mean + (1.0 - self.memory) * value**2
        self.state[f"{name}_mass"] = self.memory * mass + (1.0 - self.memory)

    def _length(self, name: str) -> float:
        return math.sqrt(self.state[name] / self.state[f"{name}_mass"])
