"""Guidance of the adversarial game by gradients of the target on generated images.

Their scale is relative to the GAN loss's gradient, measured on the generator's parameters. There a weight
means the same for every image size, generator and scale of the target's logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inversight.adaptation.preconditioners import Identity, Preconditioner
from inversight.adaptation.terms import Term, observe
from inversight.embeddings.pullback import dot
from inversight.models.target import Target
from inversight.priors.guidance import GeneratedBatch, SecondDiscriminator


@dataclass(frozen=True)
class WeightedTerm:
    """A guidance term, its weight, and the preconditioner of its gradient.

    ``part``: number of images of each batch that the term is computed on; the estimate stays unbiased,
    and a costly preconditioner costs less.
    """

    term: Term
    weight: float
    preconditioner: Preconditioner = field(default_factory=Identity)
    part: int | None = None


class Guidance:
    """Guidance of the adversarial game: images in [0, 1] -> each term's gradient on them.

    A preconditioner turns a gradient, image by image, and leaves its length: the metric sets the
    direction (Li et al. 2025). ``factor`` makes a term's gradient on the generator's parameters
    ``weight`` times as long as the GAN loss's, by running means of the norms that :meth:`measure` gets every
    ``interval`` steps. ``state`` holds them, so that a resumed adaptation goes on exactly.

    ``summed`` sets the published scale instead: ``weight`` times the gradient of the sum over a batch of
    ``summed`` images, in the length that the preconditioner gives it; 1: of the mean.

    ``transform``: images and generator -> transformed images, the target's input.

    ``second``: a discriminator that one of the terms uses, for the game to train.
    """

    def __init__(
        self,
        target: Target,
        terms: Sequence[WeightedTerm],
        *,
        memory: float = 0.9,
        interval: int = 8,
        summed: int | None = None,
        transform: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        second: SecondDiscriminator | None = None,
    ) -> None:
        self.target = target
        self.terms = {pull.term.name: pull for pull in terms}
        self.memory = memory
        self.interval = interval
        self.summed = summed
        self.transform = transform
        self.second = second
        self.state: dict[str, float] = {}
        self.logged: dict[str, float] = {}

    def __call__(self, images: Tensor, batch: GeneratedBatch | None = None) -> dict[str, Tensor]:
        """Images (N, C, H, W) in [0, 1] -> a gradient of that shape for each term.

        ``batch``: what the game knows about them; terms and transformations may need it.
        """
        x = images.detach().requires_grad_(True)
        terms = [one.term for one in self.terms.values()]
        with torch.enable_grad():
            shown = x
            if self.transform is not None and batch is not None:
                shown = self.transform(x, batch.rng)
            needs = {need for term in terms for need in term.needs}
            seen = observe(self.target, shown, needs)
            if batch is not None:
                asked = batch.class_logits is not None and "critic" in needs
                critic = batch.class_logits(x) if asked and batch.class_logits is not None else None
                seen = replace(seen, classes=batch.classes, critic=critic)
            values = {
                name: one.term(seen.first(one.part or len(x))) for name, one in self.terms.items()
            }
        mean_prediction = seen.logits.detach().softmax(1).mean(0)
        self.logged = {
            # High when the images spread over the classes, low when they collapse onto few.
            "class_entropy": float(
                -(mean_prediction * mean_prediction.clamp_min(1e-12).log()).sum()
            ),
        }
        gradients = {}
        for name, value in values.items():
            (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
            part = self.terms[name].part or len(x)
            step = gradient.clone()
            step[:part] = self._turned(name, images[:part].detach(), gradient[:part])
            gradients[name] = step
            self.logged[name] = float(value.detach())
        return gradients

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
        weight = self.terms[name].weight
        if self.summed is not None:
            return weight * self.summed
        return weight * self._length("gan") / max(self._length(name), 1e-20)

    def _turned(self, name: str, images: Tensor, gradient: Tensor) -> Tensor:
        preconditioner = self.terms[name].preconditioner
        if isinstance(preconditioner, Identity):
            return gradient
        natural = preconditioner(images, gradient)
        self.logged["cosine"] = _mean_cosine(natural, gradient)
        self.logged |= getattr(preconditioner, "logged", {})
        if self.summed is not None:
            return natural
        stretch = dot(gradient, gradient).sqrt() / dot(natural, natural).sqrt().clamp_min(1e-20)
        return natural * stretch.view(-1, 1, 1, 1)

    def _run(self, name: str, value: float) -> None:
        """Running mean of the square of ``value``, and of the mass it has."""
        mean, mass = self.state.get(name, 0.0), self.state.get(f"{name}_mass", 0.0)
        self.state[name] = self.memory * mean + (1.0 - self.memory) * value**2
        self.state[f"{name}_mass"] = self.memory * mass + (1.0 - self.memory)

    def _length(self, name: str) -> float:
        return math.sqrt(self.state[name] / self.state[f"{name}_mass"])


def _mean_cosine(a: Tensor, b: Tensor) -> float:
    norms = (dot(a, a) * dot(b, b)).sqrt().clamp_min(1e-30)
    return float((dot(a, b) / norms).mean())
