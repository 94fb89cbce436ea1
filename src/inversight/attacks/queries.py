"""The threat model, enforced: what an attack may ask of a target, and how often.

One query is one image sent to the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from inversight.attacks.base import (
    ACCESS_ORDER,
    Attack,
    Reconstructions,
    check_fits,
    require_access,
)
from inversight.core.errors import InputError, StageError
from inversight.core.progress import Progress, silent
from inversight.models.target import Access, Target
from inversight.priors.base import Prior


class QueriesSpentError(StageError):
    """The next images would exceed the limit; they were not sent."""


@dataclass
class QueryMeter:
    """Counts the images sent to a target, up to ``limit`` (None: any number)."""

    limit: int | None = None
    used: int = 0

    def check(self, images: int) -> None:
        """See whether so many more may be sent.

        Raises:
            QueriesSpentError: they may not.
        """
        if self.limit is not None and self.used + images > self.limit:
            raise QueriesSpentError(
                f"the limit of {self.limit:,} queries is spent: {self.used:,} images were sent and "
                f"{images:,} more were wanted; raise the limit or lower the attack's budget"
            )


class _Sealed(nn.Module):
    """A classifier as its answers alone: no parameters, no layers, no gradients."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()

        def ask(x: Tensor) -> Tensor:
            return answer(x)

        # Not the module itself, whose parameters would then be this one's.
        self._answer = ask

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self._answer(x.detach())
        return found.detach()


@dataclass(frozen=True)
class _Metering:
    """What a metered target tells before it sends images: every meter, then whoever was told before."""

    meters: tuple[QueryMeter, ...]
    other: Callable[[int], None] | None

    def check(self, images: int) -> None:
        for meter in self.meters:
            meter.check(images)

    def __call__(self, images: int) -> None:
        self.check(images)
        if self.other is not None:
            self.other(images)
        for meter in self.meters:
            meter.used += images


def metered(target: Target, access: Access, meter: QueryMeter) -> Target:
    """``target`` with no more than ``access``, every image sent to it counted by ``meter``.

    Below white-box access its network is sealed: what is left are answers without gradients. A target
    can be metered again; then all meters count and the lowest limit holds.
    """
    told = target.before
    if isinstance(told, _Metering):
        before = _Metering((meter, *told.meters), told.other)
    else:
        before = _Metering((meter,), told)
    least = min(access, target.access, key=ACCESS_ORDER.index)
    module = target.module if least is Access.WHITE_BOX else _Sealed(target.module)
    return replace(target, module=module, access=least, before=before)


def admitted(
    attack: Attack, target: Target, prior: Prior, most: int | None = None
) -> tuple[Target, QueryMeter]:
    """``target`` with no more than the attack's access, and what counts the images sent to it.

    Args:
        most: images at most.

    Raises:
        InputError: the target gives less than the attack needs, or the attack cannot work with it,
            with the prior or with its own settings.
    """
    check_fits(attack, target, prior)
    meter = QueryMeter(most)
    return metered(target, attack.access, meter), meter


def check_queries(target: Target, images: int) -> None:
    """See whether ``images`` may be sent to ``target`` as a whole, sending none.

    So that a step that goes through in batches is taken entirely or not at all, whatever their size.

    Raises:
        QueriesSpentError: a limit forbids it.
    """
    if isinstance(target.before, _Metering):
        target.before.check(images)


def black_box(
    answer: Callable[[Tensor], Tensor],
    *,
    classes: Sequence[str],
    image_shape: tuple[int, int, int],
    spec: str = "a callable",
) -> Target:
    """Any function that classifies images, such as a call of a remote service, as a target.

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
        module=_Sealed(checked),
        classes=tuple(classes),
        image_shape=image_shape,
        mean=(0.0,),
        std=(1.0,),
        spec=spec,
        access=Access.SCORES,
    )


def run_attack(
    attack: Attack,
    target: Target,
    prior: Prior,
    labels: Tensor,
    *,
    rng: torch.Generator,
    limit: int | None = None,
    progress: Progress = silent,
) -> Reconstructions:
    """Run ``attack`` with the access that it names and no more, and count its queries.

    Raises:
        InputError: the target gives less access than the attack needs.
        QueriesSpentError: ``limit`` queries were not enough, and the attack has no way to end early.
    """
    require_access(attack, target)
    meter = QueryMeter(limit)
    allowed = metered(target, attack.access, meter)
    made = attack.run(allowed, prior, labels, rng=rng, progress=progress)
    return replace(made, queries=meter.used)
