"""PPDG-MI (Peng et al., NeurIPS 2024): tune the generator to reconstructions, and attack again.

Threat model: white box. The attacker has the target's weights and the weights of a prior trained on
public images. Round 1 is another attack. Its best reconstructions of a class, called pseudo-private, are
inverted to latents, and the generator is tuned to draw them there, so that images like them become more
likely. Round 2 is the same attack with the tuned generator. Each class has a generator of its own. The
constants are those of the published code for StyleGAN2, point-wise. Differences from it:

- Inversion and tuning share the adaptation's loss, pixels and the target's feature maps, standardised over
  samples of the prior (paper: pixels and LPIPS, 1:1). It needs no network of other images.
- An inversion starts from the sample nearest to the image, without noise (published: from the mean latent,
  with noise and 0.1 of the critic's loss). Its step size is relative to the spread of the latents
  (published: 0.005 nominally; its schedule sets 0.01).
- Tuning draws a batch of a class's images in each step, moves their latents too, and its step size rises
  and falls (published: all images in each step, fixed latents, a constant step size).
- Round 1 shares one pool of samples for all classes.
- The paper's distribution-wise variant, which matches 10 images of a class as a set, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from inversight.attacks.base import Reconstructions, check_fits
from inversight.attacks.base_attack import BaseAttack, Problem
from inversight.attacks.gradient_search import GradientSearch
from inversight.attacks.mi_face import MiFace
from inversight.attacks.selection import render
from inversight.attacks.workload import Workload, cut_to
from inversight.core.config import IMPORT_PATH, Choice, build, settings, to_mapping
from inversight.core.errors import InputError
from inversight.core.imaging import to_uint8
from inversight.core.progress import Progress, part_of
from inversight.core.seeding import generator
from inversight.models.target import Access, Target
from inversight.priors.base import Prior
from inversight.priors.pivotal_tuning import images_compared, tune
from inversight.priors.pivots import ReconstructionLoss, project
from inversight.priors.style_prior import StylePrior
from inversight.settings import ATTACKS, BLACK_BOX

INNER = tuple(
    name
    for name in ATTACKS
    if name not in ("ppdg", "mi-face", "weight-reconstruction", *sum(BLACK_BOX.values(), ()))
)
"""Names of the attacks of which the rounds can be: those by gradients in the prior's latents."""


@settings
class Ppdg(BaseAttack):
    """PPDG-MI: a white-box attack, a generator for each class tuned to its results, and the attack again.

    Reconstructions are those of round 2 alone, which is the attack that the paper evaluates: the target is
    as confident in those of round 1, and could not tell which to keep. Their latents belong to the tuned
    generators, which are not kept; the prior makes other images of them.
    """

    access: ClassVar[Access] = Access.WHITE_BOX

    around: Annotated[str | dict[str, Any], Choice(dict.fromkeys((*INNER, IMPORT_PATH), ""))] = (
        Field(default_factory=lambda: {"class": "plug-and-play", "pool": 500, "candidates": 100})
    )
    """The attack of both rounds: a name, or a mapping {class: NAME, setting: value} (published: Plug &
    Play with a pool of 500 and 100 candidates). Its ``batch_size`` is that of this attack."""
    images: PositiveInt = 5
    """Pseudo-private images of a class, at most as many as the attack keeps (published: 5)."""
    samples: Annotated[int, Field(ge=2, le=1024)] = 1024
    """Samples of the prior that standardise the loss; they are sent to the target. As many others are
    where inversions can start."""
    inversion_steps: PositiveInt = 300
    """Steps of an inversion (published: 300)."""
    tuning_steps: NonNegativeInt = 150
    """Steps of the tuning (published: 150); 0: none, round 2 repeats the attack with other samples."""
    tuning_learning_rate: PositiveFloat = 3e-4
    """Adam's step size for the generator (published, for a large network: 3e-4)."""

    @property
    def inner(self) -> GradientSearch:
        """The attack of both rounds.

        Raises:
            ConfigError: unknown name or wrong setting.
            InputError: the attack is not one by gradients in the prior's latents.
        """
        found = build(self.around, ATTACKS, role="around")
        if not isinstance(found, GradientSearch) or isinstance(found, MiFace):
            raise InputError(
                f"Ppdg: around: expected a white-box attack that searches the prior's latents, such as "
                f"{', '.join(INNER)}, found {type(found).__name__}"
            )
        return replace(found, batch_size=self.batch_size)

    @property
    def keep(self) -> int:
        """Reconstructions kept for each class."""
        return self.inner.keep

    @property
    def image_steps(self) -> int:
        """Images of each class that go forward and back, over all steps."""
        return 2 * self.inner.image_steps + self._inverted + self._tuned

    @property
    def _inverted(self) -> int:
        """Images of each class over all steps of the inversion."""
        return self.images * self.inversion_steps if self.tuning_steps else 0

    @property
    def _tuned(self) -> int:
        """Images of each class over all steps of the tuning."""
        return self.images * self.tuning_steps

    def check(self, target: Target, prior: Prior) -> None:
        super().check(target, prior)
        inner = self.inner
        require_tunable(self, prior)
        check_fits(inner, target, prior)
        if self.images > inner.keep:
            raise InputError(
                f"Ppdg: expected images <= keep of the attack around which it runs, found "
                f"images={self.images}, keep={inner.keep}"
            )

    def workload(self, prior: Prior) -> Workload:
        one = self.inner.workload(prior)
        if not self.tuning_steps:
            return replace(one, repeated=(one,))
        compared = images_compared(self.images, steps=self.tuning_steps, batch_size=self.images)
        # Each is sent beside its reconstruction, which is differentiated in the steps.
        tuning = Workload(
            0, self.images, forward=2 * compared - self._tuned, backward=self._tuned,
            at_once=self.images,
        )  # fmt: skip
        return replace(
            one, shared={**one.shared, "samples": self.samples}, forward=one.forward + self.images,
            backward=one.backward + self._inverted, repeated=(tuning, one),
        )  # fmt: skip

    def cut_to(self, queries: int, *, prior: Prior, classes: int) -> Ppdg | None:
        """Return the attack with all of its parts reduced alike; see :func:`~.workload.cut_to`."""
        inner, work = self.inner, self.workload(prior)
        share = queries / work.queries(classes)
        less = replace(
            self, samples=max(2, int(share * self.samples)),
            inversion_steps=max(1, int(share * self.inversion_steps)),
            tuning_steps=min(self.tuning_steps, max(1, int(share * self.tuning_steps))),
        )  # fmt: skip
        one = inner.workload(prior).queries(1)
        rounds = inner.workload(prior).queries(classes) + classes * one
        others = less.workload(prior).queries(classes) - rounds
        # As if the classes shared nothing in round 1 either.
        each = (queries - others) // (2 * classes)
        cut = cut_to(inner, each, prior=prior, classes=1, used=one)
        if not isinstance(cut, GradientSearch):
            return None
        name = self.around if isinstance(self.around, str) else self.around["class"]
        around = {**to_mapping(cut), "class": name}
        return replace(less, around=around, images=min(self.images, cut.keep))

    def reconstruct(self, problem: Problem) -> Reconstructions:
        inner, prior, seed = self.inner, require_tunable(self, problem.prior), problem.seed
        classes = len(problem.labels)
        part = partial(part_of, problem.progress, whole=classes * self.image_steps)
        done = classes * inner.image_steps
        first = inner.run(
            problem.target, prior, problem.labels, rng=generator(seed, "first"),
            progress=part(before=0, share=done),
        )  # fmt: skip
        tuning = None
        if self.tuning_steps:
            inverting = part(before=done, share=classes * self._inverted)
            tuning = self._tuning(problem, first, inverting)
            done += classes * self._inverted
        found = []
        for label in problem.labels:
            # Not under a name: a class's generator is freed before the next one is tuned.
            found.append(
                inner.run(
                    problem.target,
                    prior if tuning is None
                    else tuning(int(label), part(before=done, share=self._tuned)),
                    label[None], rng=generator(seed, "second", int(label)),
                    progress=part(before=done + self._tuned, share=inner.image_steps),
                )
            )  # fmt: skip
            done += self._tuned + inner.image_steps
        images, labels, latents, losses = (
            torch.cat(parts) for parts in zip(*map(_tensors, found), strict=True)
        )
        return Reconstructions(images, labels, latents, losses)

    def _tuning(
        self, problem: Problem, first: Reconstructions, progress: Progress
    ) -> Callable[[int, Progress], StylePrior]:
        """Invert the best reconstructions of each class; return the tuning of the generator to a class."""
        prior, seed = require_tunable(self, problem.prior), problem.seed
        latents = problem.sample(self.samples, 1.0, "samples")
        samples = to_uint8(render(prior, latents, batch_size=self.batch_size))
        loss = ReconstructionLoss(problem.target, samples)
        rows = torch.cat(
            [(first.labels == x).nonzero().flatten()[: self.images] for x in problem.labels]
        )
        images, labels = to_uint8(first.images[rows]), first.labels[rows]
        pivots = project(
            prior, loss, images, steps=self.inversion_steps, samples=self.samples,
            batch_size=self.batch_size, rng=generator(seed, "inversion"), progress=progress,
        )  # fmt: skip

        def tuned(label: int, progress: Progress) -> StylePrior:
            mine = labels == label
            made = tune(
                replace(prior, pivots=pivots[mine.to(pivots.device)]), loss, images[mine],
                steps=self.tuning_steps, missed=0.0, left=0.0, batch_size=self.images,
                learning_rate=self.tuning_learning_rate, setting="tuning_learning_rate",
                rng=generator(seed, "tuning", label), progress=progress,
            )  # fmt: skip
            return replace(made, pivots=prior.pivots)

        return tuned


def _tensors(found: Reconstructions) -> tuple[Tensor, ...]:
    return found.images, found.labels, found.latents, found.losses


def require_tunable(attack: Ppdg, prior: Prior) -> StylePrior:
    """Return ``prior`` as one whose generator can be tuned.

    Raises:
        InputError: it cannot.
    """
    if not isinstance(prior, StylePrior):
        raise InputError(
            f"{type(attack).__name__} needs a prior whose generator it can tune, which "
            f"{type(prior).__name__} is not; use a style-based prior or choose another --attack"
        )
    return prior
