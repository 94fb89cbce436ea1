"""Enforce the threat model: which access an attack has to a target, and how many queries.

One query is one image sent to the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from inversight.attacks.base import Attack, Reconstructions, require_access
from inversight.core.errors import InputError, StageError
from inversight.core.progress import Progress, silent
from inversight.models.target import ACCESS_ORDER, Access, Target
from inversight.priors.base import Prior


class QueriesSpentError(StageError):
    """The next images would exceed the limit of queries; they were not sent."""


@dataclass
class QueryMeter:
    """Count the images sent to a target, up to ``limit`` (None: no limit)."""

    limit: int | None = None
    used: int = 0

    def check(self, images: int) -> None:
        """Check that ``images`` more images may be sent.

        Raises:
            QueriesSpentError: they would exceed the limit.
        """
        if self.limit is not None and self.used + images > self.limit:
            raise QueriesSpentError(
                f"the limit of {self.limit:,} queries is spent: {self.used:,} images were sent and "
                f"{images:,} more were wanted; raise the limit or lower the attack's budget"
            )


class _AnswersOnly(nn.Module):
    """A classifier without parameters, layers or gradients."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        # In a closure: a module that is an attribute would expose its parameters.
        self._answer: Callable[[Tensor], Tensor] = lambda x: answer(x)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._answer(x.detach()).detach()


@dataclass(frozen=True)
class _Metered:
    """The ``before`` hook of a metered target: count in the meter, after the hook that it replaces."""

    meter: QueryMeter
    replaced: Callable[[int], None] | None

    def check(self, images: int) -> None:
        self.meter.check(images)
        if isinstance(self.replaced, _Metered):
            self.replaced.check(images)

    def __call__(self, images: int) -> None:
        self.check(images)
        if self.replaced is not None:
            self.replaced(images)
        self.meter.used += images


def metered(target: Target, access: Access, meter: QueryMeter) -> Target:
    """Return ``target`` with at most ``access``; ``meter`` counts every image sent to it.

    Below white-box access only the network's answers are left, without gradients. A metered target
    can be metered again: all meters count, and the lowest limit holds.
    """
    least = min(access, target.access, key=ACCESS_ORDER.index)
    module = target.module if least is Access.WHITE_BOX else _AnswersOnly(target.module)
    return replace(target, module=module, access=least, before=_Metered(meter, target.before))


def check_queries(target: Target, images: int) -> None:
    """Check that all ``images`` may be sent to ``target``, without sending any.

    A step that is split into batches is then done as a whole or not at all, whatever their size.

    Raises:
        QueriesSpentError: they would exceed a limit.
    """
    if isinstance(target.before, _Metered):
        target.before.check(images)


def black_box(
    answer: Callable[[Tensor], Tensor], *, classes: Sequence[str],
    image_shape: tuple[int, int, int], spec: str = "a callable",
) -> Target:  # fmt: skip
    """Return a target whose scores come from any function, such as a call of a remote service.

    answer: images (N, C, H, W) in [0, 1] of ``image_shape`` (C, H, W) -> logits or logarithms of
    probabilities (N, K), one column for each of ``classes``.

    Raises (when it is called):
        InputError: an answer of another shape, or probabilities instead of their logarithms.
    """

    def checked(images: Tensor) -> Tensor:
        scores = answer(images)
        expected = (len(images), len(classes))
        if tuple(scores.shape) != expected:
            raise InputError(
                f"target {spec}: expected scores of shape {expected}, found {tuple(scores.shape)}"
            )
        total = scores.sum(1)
        if bool((scores >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-3):
            raise InputError(
                f"target {spec}: answers with probabilities; expected their logarithms, or logits"
            )
        return scores

    return Target(
        _AnswersOnly(checked), tuple(classes), image_shape, mean=(0.0,), std=(1.0,), spec=spec,
        access=Access.SCORES,
    )  # fmt: skip


def run_attack(
    attack: Attack, target: Target, prior: Prior, labels: Tensor, *, rng: torch.Generator,
    limit: int | None = None, progress: Progress = silent,
) -> Reconstructions:  # fmt: skip
    """Run ``attack`` with the access that it declares and no more, and count its queries.

    Raises:
        InputError: the target gives less access than the attack needs.
        QueriesSpentError: the attack needs more than ``limit`` queries and cannot end early.
    """
    require_access(attack, target)
    meter = QueryMeter(limit)
    allowed = metered(target, attack.access, meter)
    found = attack.run(allowed, prior, labels, rng=rng, progress=progress)
    return replace(found, queries=meter.used)
