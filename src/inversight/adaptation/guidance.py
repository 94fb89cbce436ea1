"""The target's pull on generated images, in proportion to the discriminator's.

The discriminator and the target each give a gradient on the generated images; this module gives the
target's share. Because the weight is relative to the discriminator's gradient, one default works at
every image size and whatever the target's logits are scaled to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inversight.adaptation.preconditioners import Identity, Preconditioner
from inversight.embeddings.pullback import dot
from inversight.objectives import Objective
from inversight.target import Target


class Guidance:
    """Callable for the adversarial game: images in [0, 1] and the GAN's gradient -> what to add.

    gradient = weight * (GAN gradient's running length / guidance's running length) * P g, where g is
    the gradient of the objective's mean over the images and P g has the length of g for each image.
    ``state`` holds the running lengths, so that a resumed adaptation goes on exactly.
    """

    def __init__(
        self,
        target: Target,
        *,
        objective: Objective,
        preconditioner: Preconditioner,
        weight: float,
        memory: float = 0.98,
    ) -> None:
        self.target = target
        self.objective = objective
        self.preconditioner = preconditioner
        self.weight = weight
        self.memory = memory
        self.state: dict[str, float] = {}
        self.logged: dict[str, float] = {}

    def __call__(self, images: Tensor, gan_gradient: Tensor) -> Tensor:
        """images (N, C, H, W) in [0, 1]; the GAN loss's gradient with respect to them."""
        x = images.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.target(x)
            value = self.objective(logits, None).mean()
            (gradient,) = torch.autograd.grad(value, x)
        lengths = dot(gradient, gradient).sqrt()
        step = gradient
        if not isinstance(self.preconditioner, Identity):
            natural = self.preconditioner(images.detach(), gradient)
            # The metric sets the direction; the length stays the objective's own (METHOD section 3).
            stretch = lengths / dot(natural, natural).sqrt().clamp_min(1e-20)
            step = natural * stretch.view(-1, 1, 1, 1)
        gan = self._running("gan", float(gan_gradient.norm()))
        own = self._running("guidance", float(gradient.norm()))
        mean_prediction = logits.detach().softmax(1).mean(0)
        self.logged = {
            "objective": float(value.detach()),
            # High when the images spread over the classes, low when they collapse onto few.
            "class_entropy": float(
                -(mean_prediction * mean_prediction.clamp_min(1e-12).log()).sum()
            ),
            "cosine": _mean_cosine(step, gradient),
        }
        return step * (self.weight * gan / max(own, 1e-20))

    def _running(self, name: str, value: float) -> float:
        """Bias-corrected running root mean square of ``value``."""
        mean, mass = self.state.get(name, 0.0), self.state.get(f"{name}_mass", 0.0)
        mean = self.memory * mean + (1.0 - self.memory) * value**2
        mass = self.memory * mass + (1.0 - self.memory)
        self.state[name], self.state[f"{name}_mass"] = mean, mass
        return math.sqrt(mean / mass)


def _mean_cosine(a: Tensor, b: Tensor) -> float:
    norms = (dot(a, a) * dot(b, b)).sqrt().clamp_min(1e-30)
    return float((dot(a, b) / norms).mean())
