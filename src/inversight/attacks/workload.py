"""The work that an attack declares: planning its queries and time, and reducing its queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from inversight.attacks.base import Attack
from inversight.models.target import Target
from inversight.priors.base import Prior
from inversight.settings import Training


@dataclass(frozen=True)
class SurrogateWork:
    """Surrogates that an attack trains, and the images that it sends to them.

    count: how many surrogates. images: how many images each is trained on, by ``training``.
    workload: of the images that go through all surrogates.
    """

    count: int
    images: int
    training: Training
    workload: Workload


@dataclass(frozen=True)
class AgentWork:
    """Agents that an attack trains, one for each class.

    steps: training steps. run: (classes, steps) -> None, trains new agents on blank data, to be timed.
    """

    steps: float
    run: Callable[[int, int], None]


@dataclass(frozen=True)
class Workload:
    """Images that an attack processes with a given prior.

    kept: reconstructions of each class. batch_size: images that are processed at once.

    An attack without such images has work of another kind, whose time is not estimated.

    shared: images sent to the target for all classes together, by the setting that gives their number.
    forward: images of each class that are only classified. backward: images of each class that are
    classified and differentiated, at_once of them together. These are upper bounds: an attack can end
    early. scales: the setting that changes the work of each class; None if there is only shared work.
    limit: the attack's own limit of queries for all classes. limited: settings that cannot exceed the
    number of samples to start from.

    loss: the loss of differentiated images, from target and images; None: it costs no more than the
    target. generates: images come from the prior. half: bfloat16 where the hardware is faster at it.
    surrogates and agents: what is trained.

    repeated: work that is done anew for each class, one class at a time, shared images included.
    """

    kept: int
    batch_size: int
    shared: Mapping[str, int] = field(default_factory=dict)
    forward: int = 0
    backward: int = 0
    at_once: int = 0
    scales: Literal["most_queries", "candidates", "steps"] | None = None
    limited: tuple[str, ...] = ()
    limit: int | None = None
    loss: Callable[[Target, Tensor], Tensor] | None = None
    generates: bool = True
    half: bool = False
    surrogates: SurrogateWork | None = None
    agents: AgentWork | None = None
    repeated: tuple[Workload, ...] = ()

    @property
    def shared_queries(self) -> int:
        """Images sent to the target for all classes together."""
        return sum(self.shared.values())

    def unlimited_queries(self, classes: int) -> int:
        """Return the number of images sent for ``classes`` classes if no limit stops the attack."""
        repeated = sum(work.unlimited_queries(1) for work in self.repeated)
        return self.shared_queries + classes * (self.forward + self.backward + repeated)

    def queries(self, classes: int) -> int:
        """Return the largest number of images that are sent to the target for ``classes`` classes."""
        planned = self.unlimited_queries(classes)
        return planned if self.limit is None else min(planned, self.limit)


@runtime_checkable
class Measurable(Protocol):
    """An attack that declares its work, so that its time can be estimated and its queries reduced."""

    def workload(self, prior: Prior) -> Workload:
        """Return the work of the attack with this prior."""


@runtime_checkable
class Cuttable(Protocol):
    """An attack that reduces its queries in its own way."""

    def cut_to(self, queries: int, *, prior: Prior, classes: int) -> Attack | None:
        """Return the attack with at most ``queries`` queries for all ``classes``; None if it cannot be."""


def cut_to(attack: Attack, queries: int, *, prior: Prior, classes: int, used: int) -> Attack | None:
    """Return ``attack`` with settings that need at most ``queries`` queries for all ``classes``.

    used: queries of the unchanged attack. At most half of the queries go to the work that classes
    share, or all of them if there is no other work. Settings of that work shrink in proportion. For
    each class, an attack that can stop early is given a limit; any other gets as many candidates as the
    rest pays for, or as many steps if it searches for a distribution. Returns None if that is less
    than one candidate of each class, or if the attack declares no workload.
    """
    if queries >= used:
        return attack
    if isinstance(attack, Cuttable):
        return attack.cut_to(queries, prior=prior, classes=classes)
    if not isinstance(attack, Measurable):
        return None
    settings: Any = attack
    work = attack.workload(prior)
    shared = work.shared_queries
    share = min(shared, queries if work.scales is None else queries // 2)
    changes: dict[str, Any] = {}
    left = queries
    for name, sent in work.shared.items():
        value = getattr(settings, name)
        changes[name] = max(1, value * share // shared)
        left -= changes[name] * (sent // value)  # a pool can be sent more than once
    most = 1 if work.scales is None else 0
    if work.scales == "most_queries":
        changes["most_queries"] = queries
        most = changes.get("pool", left // classes)
    elif work.scales is not None and used > shared:
        if work.scales == "steps":
            changes["steps"] = max(1, int(left * settings.steps / (used - shared)))
        most = min(int(left * settings.candidates / (used - shared)), changes.get("pool", queries))
    if most < 1:
        return None
    if work.scales is not None:
        changes |= {name: min(getattr(settings, name), most) for name in work.limited}
    try:
        return replace(attack, **changes)  # type: ignore[type-var]
    except ValueError:  # below what the attack's settings allow
        return None


def share_queries(attack: Attack, prior: Prior, classes: int, *, of: int, pools: int = 1) -> Attack:
    """Return ``attack`` with the part of its query limit that is due to ``classes`` of ``of`` classes.

    Every part sends the shared images; all parts together send them ``pools`` times. The rest of the
    limit is divided in proportion to classes.
    """
    limit, shared = query_limit(attack, prior)
    if limit is None:
        return attack
    pool = min(limit // pools, shared)
    part = pool + (limit - pools * pool) * classes // of
    return replace(attack, most_queries=max(1, part))  # type: ignore[type-var]


def query_limit(attack: Attack, prior: Prior) -> tuple[int | None, int]:
    """Return the attack's own limit of queries, if any, and the queries that its classes share."""
    if not isinstance(attack, Measurable):
        return None, 0
    work = attack.workload(prior)
    return work.limit, work.shared_queries
