"""The protocol of an attack, its result, and the checks before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from inversight.core.errors import InputError, StageError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.models.target import ACCESS_ORDER, Access, Target
from inversight.priors.base import Conditional, Critic, Intermediate, Prior, Truncatable
from inversight.settings import attacks_with


@dataclass(frozen=True)
class Reconstructions:
    """The M images that an attack reconstructed, best first within each class.

    images: (M, C, H, W) float in [0, 1]. labels: (M,) int64, the class of each image. latents:
    (M, ...). losses: (M,), the attack's own selection criterion, lower is better. queries: the
    number of images sent to the target; None if they were not counted. features: (M, D), what the attack
    found instead of images, which are only drawn after them; None: it found images.
    """

    images: Tensor
    labels: Tensor
    latents: Tensor
    losses: Tensor
    queries: int | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


@runtime_checkable
class Attack(Protocol):
    """Target and prior -> reconstructions of the classes in ``labels`` (distinct, int64).

    An audit passes the target with ``access`` and no more (:func:`inversight.attacks.run_attack`).
    The result of a class should not depend on which other classes are attacked. If it does, set the
    attribute ``joint`` to True: then several processes do not divide the classes among them. An
    attack can have ``check(target, prior)`` (:class:`Checked`), ``advice(target, private)``
    (:class:`Advising`) and ``workload(prior)`` (:class:`~inversight.attacks.workload.Measurable`).
    """

    @property
    def access(self) -> Access:
        """The least access to the target that the attack needs."""

    def run(
        self, target: Target, prior: Prior, labels: Tensor, *, rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions: ...  # fmt: skip


class NoSampleError(StageError):
    """No sample of the prior falls into any of the classes, and the attack needs one."""


@runtime_checkable
class Checked(Protocol):
    """An attack that has requirements of the target or the prior beyond access."""

    def check(self, target: Target, prior: Prior) -> None:
        """Raise if target or prior lacks what the attack needs, without a counted query.

        Called before a run, with networks that may be untrained: check what they are, not what they
        answer.

        Raises:
            InputError: says what is missing.
        """


@runtime_checkable
class Advising(Protocol):
    """An attack that can tell the owner, who has the training images, why it may find little."""

    def advice(self, target: Target, private: ImageSet) -> tuple[str, ...]:
        """Return warnings on a trained target, one line each. private: its training images."""


def require_access(attack: Attack, target: Target) -> None:
    """Check that the target gives the access that the attack needs.

    Raises:
        InputError: it gives less; names both.
    """
    if ACCESS_ORDER.index(target.access) < ACCESS_ORDER.index(attack.access):
        raise InputError(
            f"{type(attack).__name__} needs {attack.access} access, but the target "
            f"{target.spec} gives {target.access} only; give another --attack: "
            f"{', '.join(attacks_with(target.access))}"
        )


def check_fits(attack: Attack, target: Target, prior: Prior) -> None:
    """Check that the attack can run with this target and prior, before anything is run.

    Raises:
        InputError: the target gives too little access, or the attack's own check fails.
    """
    require_access(attack, target)
    if isinstance(attack, Checked):
        attack.check(target, prior)


def missing_classes(found: Tensor, labels: Tensor, classes: Sequence[str]) -> str | None:
    """Return a warning that names the classes in ``labels`` that are not in ``found``, or None.

    found: labels of the reconstructions.
    """
    present = set(found.tolist())
    missing = [classes[label] for label in labels.tolist() if label not in present]
    if not missing:
        return None
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (
        f"found no sample of the prior in class {', '.join(missing[:3])}{more}, so there is no "
        "reconstruction of it; this says nothing about its images"
    )


def truncated(prior: Prior, psi: float) -> Prior:
    """Return the prior with truncation ``psi``, or unchanged if it does not support truncation."""
    return prior.truncated(psi) if isinstance(prior, Truncatable) else prior


def require_critic(attack: Attack, prior: Prior) -> Critic:
    """Return ``prior`` as one with a critic, after a trial with one image.

    Raises:
        InputError: it has no critic, or one that cannot judge an image without its class.
    """
    if not isinstance(prior, Critic):
        raise _lacking(attack, prior, "a critic (`realness`)")
    try:
        with torch.no_grad():
            prior.realness(prior(prior.sample(1, rng=generator(0))))
    except InputError as error:
        raise InputError(
            f"{type(attack).__name__} needs a critic that judges an image alone, but {error}"
        ) from error
    return prior


def loss_with_critic(prior: Prior) -> Callable[[Target, Tensor], Tensor]:
    """Return a loss of images that goes through the target and, if there is one, the prior's critic."""

    def loss(target: Target, images: Tensor) -> Tensor:
        realness = prior.realness(images).sum() if isinstance(prior, Critic) else 0.0
        return target(images).sum() - realness

    return loss


def require_intermediate(attack: Attack, prior: Prior) -> Intermediate:
    """Return ``prior`` as one whose generator can be stopped between its blocks.

    Raises:
        InputError: it cannot.
    """
    if not isinstance(prior, Intermediate):
        raise _lacking(attack, prior, "intermediate features (`blocks`, `until`, `finish`)")
    return prior


def require_conditional(attack: Attack, prior: Prior, classes: int) -> Conditional:
    """Return ``prior`` as one that is conditioned on the target's ``classes`` classes.

    Raises:
        InputError: it is not.
    """
    known = prior.num_classes if isinstance(prior, Conditional) else 0
    if not isinstance(prior, Conditional) or known != classes:
        raise InputError(
            f"{type(attack).__name__} needs a prior that is conditioned on the target's {classes} "
            f"classes, but it is on {known or 'none'}; adapt an unconditioned prior to this target with "
            "--arm pseudo-labels, in an audit with adaptation.steps above 0, or choose another --attack"
        )
    return prior


def _lacking(attack: Attack, prior: Prior, what: str) -> InputError:
    return InputError(
        f"{type(attack).__name__} needs a prior with {what}, which {type(prior).__name__} has not; "
        "use a style-based prior or choose another --attack"
    )
