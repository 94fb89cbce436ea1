"""Estimate how long an audit takes and what it needs, from short trials of its own code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial

import psutil
import torch

from inversight.adaptation import adapt
from inversight.attacks.workload import Measurable, Workload, cut_to
from inversight.core.seeding import generator
from inversight.core.threads import ThreadTrials, usable_threads
from inversight.embeddings import named_embedding
from inversight.models.target import Target
from inversight.pipeline.adapt import guidance_metric
from inversight.pipeline.plan import Plan, workers_of
from inversight.pipeline.timing import (
    Timer,
    attack_timer,
    seconds_per_step,
    training_seconds,
    untrained_classifier,
    untrained_target,
)
from inversight.priors import Prior, StylePrior, train_prior
from inversight.priors.pivotal_tuning import tune
from inversight.priors.pivots import ReconstructionLoss, project
from inversight.priors.prior_file import PriorFile
from inversight.report.formatting import duration
from inversight.risk.covariates import MOST_PUBLIC

_TOGETHER = 0.5
"""Time of a training among several that are done together, in times of one alone (benchmarks/shadows.py)."""

_NOT_TIMED = ("public", "pixel", "evaluator", "backbone")
"""Embeddings whose time is estimated without a trial."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of each stage, None if it cannot be estimated, such as a user's own part; bytes.

    shadow: seconds of one shadow model on one of ``workers`` processes, None if it cannot be estimated.
    threads: the number of threads for each stage that has a choice. beside: a stage that takes no time of its
    own, as another process runs it meanwhile.
    """

    seconds: dict[str, float | None]
    memory_bytes: int
    disk_bytes: int
    shadow: float | None = None
    workers: int = 1
    threads: dict[str, int] = field(default_factory=dict)
    beside: str | None = None

    def shadow_seconds(self, models: int) -> float | None:
        """Return the seconds that ``models`` shadow models take."""
        return None if self.shadow is None else models * self.shadow / self.workers

    @property
    def total(self) -> float:
        """Seconds of all stages that can be estimated."""
        return sum(s for name, s in self.seconds.items() if s is not None and name != self.beside)

    def __str__(self) -> str:
        parts = [
            f"{name} {'unknown' if s is None else duration(s)}" for name, s in self.seconds.items()
        ]
        return (
            f"about {duration(self.total)} ({', '.join(parts)}), "
            f"{self.memory_bytes / 2**30:.1f} GiB of memory, {self.disk_bytes / 1e6:.0f} MB on disk"
        )


def estimate(plan: Plan) -> Estimate:
    """Time a few steps of every stage on networks of the right shape, and multiply.

    Early stopping makes the training of classifiers shorter than estimated. Scoring and the report are
    counted as one pass of the feature networks.

    Raises:
        StageError: there is not enough memory for a stage.
    """
    settings, inputs, shape, device = plan.settings, plan.inputs, plan.shape, plan.device
    private, public, attacks = inputs.private, plan.public_at_work, plan.attacks
    remedy = partial(plan.remedy, kept="nothing has been written")
    seconds: dict[str, float | None] = {}
    workers, each = workers_of(plan)
    free = device.type == "cpu" and settings.threads is None
    before_shadows = trials = ThreadTrials(usable_threads() if free else None)
    if free and plan.shadows and workers > 1 and plan.cluster is None:
        # Other processes train shadow models beside every stage but the target's training.
        trials = ThreadTrials(max(1, usable_threads() - each))
    classes = len(private.labels.unique())
    network = plan.needs_public_network(exposure=settings.shadows != 0)
    embedding_seconds = _EmbeddingSeconds(plan)
    for name, trained, images, training in (
        ("target", inputs.target is None, private, settings.target_training),
        ("evaluator", inputs.evaluator is None, private, settings.evaluator_training),
        ("public-network", network, public, settings.public_training),
    ):
        if trained:
            factor = 4 if name == "public-network" and len(public.classes) < 2 else 1
            with remedy(name):
                train = partial(training_seconds, images, training, shape, device)
                tried = before_shadows if name == "target" else trials
                seconds[name] = factor * tried.seconds(name, train, "classifier")
    # A service is not asked: each image is a query, and how fast it answers is not known.
    service = inputs.endpoint is not None
    given = None if service else inputs.target
    target = (given or untrained_target(private, shape)).to(device).restricted(plan.access)
    with remedy("prior"):
        prior, seconds["prior"] = _prior_and_seconds(plan, trials)
    if isinstance(prior, StylePrior) and plan.adapts:
        with remedy("adaptation"):
            estimated = partial(_adaptation_seconds, plan, prior, target)
            seconds["adaptation"] = trials.seconds("adaptation", estimated)
    works: dict[str, Workload] = {}
    timers: dict[str, Timer] = {}

    def timed(name: str) -> float:
        timers[name] = attack_timer(works[name], target, prior, classes)
        return timers[name](works[name])

    for name, attack in attacks.items():
        seconds[name] = None
        if isinstance(attack, Measurable):
            works[name] = attack.workload(prior)
            if works[name].unlimited_queries(classes) == 0:  # its own work, which is not known
                continue
            with remedy(name):
                found = trials.seconds(f"attack-{name}", partial(timed, name))
                seconds[name] = None if service else found
    kept = classes * sum(work.kept for work in works.values())
    if settings.budget:
        seconds["budget"] = None
        if len(timers) == len(attacks) and not service:
            cuts = _cut_workloads(plan, prior, works, classes)
            attacked = sum(timers[name](work) for name, work in cuts)
            # The unchanged attacks are scored again too.
            scored = len(private) * (len(cuts) + len(attacks)) + kept
            scored += classes * sum(work.kept for _, work in cuts)
            with remedy("scores"):
                seconds["budget"] = attacked + embedding_seconds(scored)
    embedded = len(private) * 2 + kept
    if settings.private is not None and settings.holdout is None:
        embedded += len(private) + kept  # the control
    else:  # once more, for the covariates of the tests against the holdout
        embedded += 2 * len(private) + min(len(public), MOST_PUBLIC)
    measured = partial(embedding_seconds, embedded)
    with remedy("scores"):
        if settings.embedding in _NOT_TIMED:
            seconds["scores"] = measured()
        else:
            seconds["scores"] = trials.seconds("scores", measured)
    shadow = _shadow_seconds(plan, seconds, works, embedding_seconds)
    if plan.shadows:
        seconds["shadows"] = None if shadow is None else plan.shadows * shadow / workers
    with remedy("signals"):
        seconds["signals"] = embedding_seconds(2 * len(private))
    weights = 0
    if isinstance(prior, StylePrior):
        weights = 4 * sum(p.numel() for m in (prior.raw, prior.critic) for p in m.parameters())
    pixels = math.prod(shape)
    images_bytes = private.images.numel() + public.images.numel()
    if plan.public_for_prior is not public:
        images_bytes += plan.public_for_prior.images.numel()
    floats = 4 * pixels * max(len(private), len(public))
    blocks = min(settings.memory, 4 * embedded * _feature_width(plan))
    resident = psutil.Process().memory_info().rss
    processes = workers if plan.shadows else 1
    return Estimate(
        seconds=seconds,
        memory_bytes=int(processes * (resident + images_bytes + floats + blocks) + 8 * weights),
        disk_bytes=int(8 * weights + 2 * kept * math.prod(prior.image_shape) + 60_000_000),
        shadow=shadow, workers=workers, threads=before_shadows.fastest | trials.fastest,
    )  # fmt: skip


def _shadow_seconds(
    plan: Plan, seconds: dict[str, float | None], works: dict[str, Workload],
    embedding_seconds: _EmbeddingSeconds,
) -> float | None:  # fmt: skip
    """Return the seconds of training, attacking and measuring one shadow model on one process."""
    name, training = next(iter(plan.attacks)), plan.settings.target_training
    trained, attacked = seconds.get("target"), seconds[name]
    if trained is None or attacked is None:
        return None
    private, holdout = plan.inputs.private, plan.inputs.holdout
    images = len(private) + (0 if holdout is None else len(holdout))
    half = max(1, images // 2)
    work = half * training.epochs_for(half) / (len(private) * training.epochs_for(len(private)))
    scored = works[name].kept * len(private.labels.unique()) + images / (
        2 * plan.settings.shadow_pairs
    )
    measured = embedding_seconds(math.ceil(scored), plan.settings.exposure_distance)
    return _TOGETHER * work * trained + attacked + measured


def _prior_and_seconds(plan: Plan, trials: ThreadTrials) -> tuple[Prior, float]:
    """Return the prior, or one that is hardly trained, and the seconds of its training."""
    training, images = plan.prior, plan.public_for_prior.images
    if isinstance(training, PriorFile):
        return training.prior.to(plan.device), 0.0
    if isinstance(training, Prior):
        return training, 0.0

    trained: list[StylePrior] = []

    def train(steps: int) -> None:
        few = replace(training, steps=steps)
        trained.append(train_prior(images, training=few, rng=generator(0), device=plan.device))

    seconds = trials.seconds("prior", lambda: training.steps * seconds_per_step(train))
    return trained[-1], seconds


def _adaptation_seconds(plan: Plan, prior: StylePrior, target: Target) -> float:
    """Return the seconds of the adaptation: the game, the search of pivots and the tuning to them."""
    arm, name, wanted = (
        plan.settings.arm,
        plan.settings.guidance_embedding,
        plan.settings.adaptation,
    )
    public, shape, network = plan.public_for_prior, prior.image_shape, None
    if name == "public":  # an untrained one of the same size
        network = untrained_classifier(public.classes or ("0", "1"), shape)
        network.module.eval().requires_grad_(False).to(plan.device)
    metric = guidance_metric(arm, name, size=shape[1], public_network=network)

    def play(steps: int) -> None:
        adaptation = replace(wanted, steps=steps, pivots=0, pivots_tuning=0)
        adapt(
            prior, target, public.images, arm=arm, adaptation=adaptation,
            training=prior.training, metric=metric, rng=generator(0),
        )  # fmt: skip

    seconds = wanted.steps * seconds_per_step(play) if wanted.steps > 0 else 0.0
    if wanted.pivots == 0:
        return seconds
    training = wanted.training_settings(prior.training)
    at_once = training.images_at_once or training.batch_size
    few = public.images[:at_once]
    loss = ReconstructionLoss(target, few)

    def search(steps: int) -> None:
        # With few samples to start from: classifying all takes little compared with the search.
        project(
            prior, loss, few, steps=steps, samples=max(2, len(few)),
            batch_size=at_once, rng=generator(0),
        )  # fmt: skip

    images = wanted.pivots * target.num_classes
    seconds += images / len(few) * wanted.pivots_steps * seconds_per_step(search)
    if wanted.pivots_tuning == 0:
        return seconds
    pivoted = replace(prior, pivots=prior.sample(len(few), rng=generator(0)))

    def tuning(steps: int) -> None:
        tune(pivoted, loss, few, steps=steps, missed=0.0, batch_size=at_once, rng=generator(0))

    return seconds + wanted.pivots_tuning * seconds_per_step(tuning)


def _cut_workloads(
    plan: Plan, prior: Prior, works: dict[str, Workload], classes: int
) -> list[tuple[str, Workload]]:
    """Return the workload of each attack cut to each number of queries, if it can be cut to it."""
    found: list[tuple[str, Workload]] = []
    for name, work in works.items():
        used = work.queries(classes)
        for queries in plan.settings.budget:
            less = cut_to(plan.attacks[name], queries, prior=prior, classes=classes, used=used)
            if isinstance(less, Measurable):
                found.append((name, less.workload(prior)))
    return found


class _EmbeddingSeconds:
    """Seconds of a distance's network, by default the scores', timed once for each number of threads."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._of_two: dict[tuple[str, int], float] = {}

    def __call__(self, images: int, name: str | None = None) -> float:
        """Return the seconds of one forward pass over ``images``."""
        plan, name = self.plan, name or self.plan.settings.embedding
        if name in _NOT_TIMED:
            return 0.001 * images * (plan.work / 32) ** 2 + 1.0
        key = name, torch.get_num_threads()
        if key not in self._of_two:
            embedding = named_embedding(name, use="distance", role="--embedding", size=plan.work)
            two = torch.rand(2, *plan.shape, device=plan.device)
            with torch.no_grad():
                self._of_two[key] = seconds_per_step(lambda n: [embedding(two) for _ in range(n)])
        return images / 2 * self._of_two[key]


def _feature_width(plan: Plan) -> int:
    """Return about how many values one image's features have."""
    lpips = plan.settings.embedding.startswith("lpips")
    return 8_000_000 if lpips else 20 * plan.work**2 + 4096
