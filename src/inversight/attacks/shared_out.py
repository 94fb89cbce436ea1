"""One attack by several processes, each on its share of the classes.

Attacks are written so that a class's result does not depend on which others are attacked: randomness
belongs to a class or to a step, and losses are sums over images. So each process attacks classes of
its own with the same seed, and all together have made what one would have made, but for rounding.
What an attack does for all classes, its pool or its surrogates, each process does for itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from inversight.attacks.base import Attack, NoSampleError, Reconstructions, require_access
from inversight.attacks.budget import fair_share, pool_queries
from inversight.attacks.queries import QueryMeter, metered, run_attack
from inversight.core.processes import Processes
from inversight.core.progress import Progress, silent
from inversight.models.target import Target
from inversight.priors.base import Prior


@dataclass(frozen=True)
class Share:
    """What one process does: labels (L,), maybe none, and the attack with their part of its queries."""

    attack: Attack
    labels: Tensor


def shares(attack: Attack, prior: Prior, labels: Tensor, processes: int) -> list[Share]:
    """The shares of so many processes, in the order of ``labels`` (K,); the last may have no classes.

    A joint attack is whole in the first. A limit of queries holds for all shares together, each of
    which sends a pool: no more of them have classes than it covers pools of.
    """
    working = 1 if getattr(attack, "joint", False) else max(1, min(processes, len(labels)))
    most, pool = getattr(attack, "most_queries", None), pool_queries(attack, prior)
    if most is not None and pool > 0:
        working = max(1, min(working, most // pool))
    parts = [*labels.tensor_split(working), *[labels[:0]] * (processes - working)]
    return [
        Share(fair_share(attack, prior, len(part), of=max(1, len(labels)), pools=working), part)
        for part in parts
    ]


@dataclass(frozen=True)
class Part:
    """What a process has made of its share: ``made``, if anything, and how many images it sent.

    without: why nothing was made, where the prior has no sample of its classes.
    """

    made: Reconstructions | None
    sent: int
    without: str = ""


def run_share(
    attack: Attack,
    target: Target,
    prior: Prior,
    labels: Tensor,
    *,
    processes: Processes,
    rng: torch.Generator,
    progress: Progress = silent,
) -> Part:
    """Attack this process's share of the classes, waiting for nobody.

    All processes call this alike, with ``rng`` in the same state, and then :func:`gathered`.

    Raises:
        InputError: the target gives less access than the attack needs.
        QueriesSpentError: as :func:`~inversight.attacks.run_attack`.
    """
    require_access(attack, target)
    share = shares(attack, prior, labels, processes.count)[processes.index]
    if len(share.labels) == 0:
        return Part(None, 0)
    meter = QueryMeter()  # also of what makes nothing
    allowed = metered(target, attack.access, meter)
    try:
        made = run_attack(share.attack, allowed, prior, share.labels, rng=rng, progress=progress)
    except NoSampleError as error:
        return Part(None, meter.used, str(error))
    return Part(made, meter.used)


def gathered(part: Part, processes: Processes) -> Reconstructions | None:
    """The parts of all processes in the order of the classes, in the main one; None in the others.

    ``queries`` are the images that all of them sent: a pool counts as often as it was sent.

    Raises:
        NoSampleError: none has made anything; all raise it.
    """
    own = json.dumps([part.sent, part.made is not None, part.without])
    told = [json.loads(text) for text in processes.texts(own)]
    with processes.together():
        if not any(made for _, made, _ in told):
            raise NoSampleError(next(words for *_, words in told if words))
    parts = processes.to_main(None if part.made is None else _tensors(part.made))
    if parts is None:
        return None
    whole = {
        name: torch.cat([one[name] for one in parts]) if len(parts) > 1 else tensor
        for name, tensor in parts[0].items()
    }
    return Reconstructions(**whole, queries=sum(sent for sent, *_ in told))


def _tensors(made: Reconstructions) -> dict[str, Tensor]:
    tensors = {field.name: getattr(made, field.name) for field in fields(made)}
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
