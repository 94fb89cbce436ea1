"""What an attack is given and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from inversight.core.errors import InputError, StageError
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator
from inversight.models.target import Access, Target
from inversight.priors.base import Conditional, Critic, Intermediate, Prior

ACCESS_ORDER = (Access.LABEL, Access.SCORES, Access.WHITE_BOX)
"""From the least access to the most."""


@dataclass(frozen=True)
class Reconstructions:
    """What an attack made: M images, best first within each class.

    images (M, C, H, W) float in [0, 1]; labels (M,) int64, the class each was made for; latents
    (M, ...); losses (M,), the attack's own selection criterion, lower is better; queries, how many
    images were sent to the target for them, where it was counted.
    """

    images: Tensor
    labels: Tensor
    latents: Tensor
    losses: Tensor
    queries: int | None = None

    def __len__(self) -> int:
        return len(self.images)


@runtime_checkable
class Attack(Protocol):
    """Target and prior -> reconstructions of the classes in ``labels`` (distinct, int64).

    An audit gives it the target with ``access`` and no more (:func:`inversight.attacks.run_attack`).
    What it makes of a class should not depend on which others are attacked. One of which this is not
    true says so by an attribute ``joint`` that is True, and is not shared out by classes.
    """

    @property
    def access(self) -> Access:
        """The least access to the target that the attack needs."""

    def run(
        self,
        target: Target,
        prior: Prior,
        labels: Tensor,
        *,
        rng: torch.Generator,
        progress: Progress = silent,
    ) -> Reconstructions: ...


class NoSampleError(StageError):
    """No sample of the prior is in any of the classes to reconstruct, by an attack that needs one."""


def require_access(attack: Attack, target: Target) -> None:
    """Refuse a target that gives less than the attack needs.

    Raises:
        InputError: naming both.
    """
    if ACCESS_ORDER.index(target.access) < ACCESS_ORDER.index(attack.access):
        raise InputError(
            f"{type(attack).__name__} needs {attack.access} access, but the target "
            f"{target.spec} gives {target.access} only; choose another --attack"
        )


@runtime_checkable
class Demanding(Protocol):
    """An attack that not every target or prior is enough for."""

    def check(self, target: Target, prior: Prior) -> None:
        """Refuse a target or a prior that lacks what the attack needs, spending no counted query.

        Asked before a run, of networks that may not be trained yet: what they are is to be judged, not
        what they answer.

        Raises:
            InputError: it lacks something; says what.
        """


def check_fits(attack: Attack, target: Target, prior: Prior) -> None:
    """Refuse a target or a prior that lacks what the attack needs, before anything is run.

    Raises:
        InputError: the target gives too little access, or the attack's own check fails.
    """
    require_access(attack, target)
    if isinstance(attack, Demanding):
        attack.check(target, prior)


def left_out(made: Reconstructions | None, labels: Tensor, classes: Sequence[str]) -> str | None:
    """A warning that names the classes among ``labels`` that nothing was made for, else None."""
    there = set() if made is None else set(made.labels.tolist())
    missing = [classes[label] for label in labels.tolist() if label not in there]
    if not missing:
        return None
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (
        f"found no sample of the prior in class {', '.join(missing[:3])}{more}, and has made no "
        "reconstruction of it: that says nothing about its images"
    )


def critic_of(attack: Attack, prior: Prior) -> Critic:
    """``prior`` as one that has a critic, which has been asked about one image.

    Raises:
        InputError: it has none, or one that cannot judge an image alone.
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


def intermediate_of(attack: Attack, prior: Prior) -> Intermediate:
    """``prior`` as one that can be stopped between its blocks.

    Raises:
        InputError: it cannot.
    """
    if not isinstance(prior, Intermediate):
        raise _lacking(attack, prior, "intermediate features (`blocks`, `until`, `finish`)")
    return prior


def conditional_of(attack: Attack, prior: Prior, classes: int) -> Conditional:
    """``prior`` as one that is conditioned on so many classes, the target's.

    Raises:
        InputError: it is not.
    """
    if not isinstance(prior, Conditional) or prior.num_classes == 0:
        raise InputError(
            f"{type(attack).__name__} needs a prior that is conditioned on the target's classes, which "
            f"{type(prior).__name__} here is not; adapt it with --arm pseudo-labels, in an audit with "
            "adaptation.steps above 0, or choose another --attack"
        )
    if prior.num_classes != classes:
        raise InputError(
            f"{type(attack).__name__} needs a prior that is conditioned on the target's {classes} "
            f"classes, but it is on {prior.num_classes}; adapt one that is not conditioned with --arm "
            "pseudo-labels to this target, or choose another --attack"
        )
    return prior


def _lacking(attack: Attack, prior: Prior, what: str) -> InputError:
    return InputError(
        f"{type(attack).__name__} needs a prior with {what}, which {type(prior).__name__} has not; "
        "use a style-based prior or choose another --attack"
    )
