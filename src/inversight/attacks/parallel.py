"""Run one attack in several processes, each of which attacks its part of the classes.

The result of a class does not depend on the other classes: randomness belongs to a class or to a step,
and losses are sums over images. So each process attacks its own classes with the same seed, and together
they reconstruct what one process would, up to rounding. Each process does the work that classes share,
such as a pool or surrogates, for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.attacks.base import Attack, NoSampleError, Reconstructions, require_access
from inversight.attacks.queries import QueryMeter, metered, run_attack
from inversight.attacks.workload import query_limit, share_queries
from inversight.core.processes import Processes
from inversight.core.progress import Progress, silent
from inversight.models.target import Target
from inversight.priors.base import Prior


def assignments(
    attack: Attack, prior: Prior, labels: Tensor, processes: int
) -> list[tuple[Attack, Tensor]]:
    """Divide ``labels`` (K,) among processes, in order; the last ones may get none.

    Returns the labels of each process, and the attack with their part of its queries.
    The first process gets all classes of a joint attack. A limit of queries holds for all processes
    together, each of which sends the pool: no more of them get classes than it covers pools.
    """
    working = 1 if getattr(attack, "joint", False) else max(1, min(processes, len(labels)))
    limit, pool = query_limit(attack, prior)
    if limit is not None and pool > 0:
        working = max(1, min(working, limit // pool))
    parts = [*labels.tensor_split(working), *[labels[:0]] * (processes - working)]
    of = max(1, len(labels))
    return [(share_queries(attack, prior, len(p), of=of, pools=working), p) for p in parts]


@dataclass(frozen=True)
class PartialResult:
    """The result of one process.

    found: None if it had no classes, or if the prior has no sample of them. sent: images sent to the
    target. reason: why the prior's samples were not enough, if so.
    """

    found: Reconstructions | None
    sent: int
    reason: str = ""


def run_assigned(
    attack: Attack, target: Target, prior: Prior, labels: Tensor, *, processes: Processes,
    rng: torch.Generator, progress: Progress = silent,
) -> PartialResult:  # fmt: skip
    """Attack the classes of this process, without waiting for the others.

    All processes call this alike, with ``rng`` in the same state, and then :func:`gather`.

    Raises:
        InputError: the target gives less access than the attack needs.
        QueriesSpentError: as in :func:`~inversight.attacks.run_attack`.
    """
    require_access(attack, target)
    attack, labels = assignments(attack, prior, labels, processes.count)[processes.index]
    if len(labels) == 0:
        return PartialResult(None, 0)
    meter = QueryMeter()  # also counts if nothing is found
    allowed = metered(target, attack.access, meter)
    try:
        found = run_attack(attack, allowed, prior, labels, rng=rng, progress=progress)
    except NoSampleError as error:
        return PartialResult(None, meter.used, str(error))
    return PartialResult(found, meter.used)


def gather(part: PartialResult, processes: Processes) -> Reconstructions | None:
    """Return the results of all processes, in the order of the classes; None but in the main process.

    ``queries`` is the number of images that all of them sent.

    Raises:
        NoSampleError: no process found anything; raised in all of them.
    """
    summaries = processes.gathered((part.sent, part.found is not None, part.reason))
    with processes.together():
        if not any(found for _, found, _ in summaries):
            raise NoSampleError(next(reason for *_, reason in summaries if reason))
    tensors = None
    if part.found is not None:
        tensors = {k: v for k, v in vars(part.found).items() if isinstance(v, Tensor)}
    parts = processes.to_main(tensors)
    if parts is None:
        return None
    whole = {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
    return Reconstructions(**whole, queries=sum(sent for sent, *_ in summaries))
