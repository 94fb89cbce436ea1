"""How long an audit will take and what it needs, from short trials of its own code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import psutil
import torch

from inversight.adaptation import adapt
from inversight.attacks import (
    Attack,
    BrepMi,
    C2fMi,
    CmaEs,
    DistributionSearch,
    IfGmi,
    LatentSearch,
    Lokt,
    Lomma,
    MiFace,
    MirrorGenetic,
    PlgMi,
    PlugAndPlay,
    RlbMi,
)
from inversight.attacks.budget import common_queries, within
from inversight.attacks.rlb_mi import Agents
from inversight.attacks.surrogates import Committee
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.embeddings import Embedding, StageEmbedding
from inversight.models.networks import build_classifier
from inversight.models.target import Target, target_of
from inversight.models.training import train_classifier
from inversight.priors import Intermediate, Prior, StylePrior, train_prior
from inversight.priors.pivotal_tuning import tune
from inversight.priors.pivots import project
from inversight.settings import (
    ARMS,
    Adaptation,
    AuditSettings,
    ClassifierArchitecture,
    Training,
    prior_training,
)

_WhiteBox = LatentSearch | DistributionSearch | MiFace | PlgMi
_Search = MirrorGenetic | CmaEs | C2fMi | RlbMi | BrepMi
"""Attacks whose time is that of their queries, beside what is counted by itself."""
_Known = _WhiteBox | _Search | Lokt
"""Attacks whose time can be foreseen."""

Cost = Callable[[Attack, int], float]
"""An attack of the kind that was timed and the images that it sends at most -> seconds."""


@dataclass(frozen=True)
class Estimate:
    """seconds for each stage, None where a part is the user's own and cannot be foreseen; bytes."""

    seconds: dict[str, float | None]
    memory_bytes: int
    disk_bytes: int

    @property
    def total(self) -> float:
        """Seconds of all stages that can be foreseen."""
        return sum(s for s in self.seconds.values() if s is not None)

    def __str__(self) -> str:
        parts = [
            f"{name} {'unknown' if s is None else duration(s)}" for name, s in self.seconds.items()
        ]
        return (
            f"about {duration(self.total)} ({', '.join(parts)}), "
            f"{self.memory_bytes / 2**30:.1f} GiB of memory, {self.disk_bytes / 1e6:.0f} MB on disk"
        )


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def estimate(
    settings: AuditSettings,
    *,
    private: ImageSet,
    public: ImageSet,
    public_for_prior: ImageSet,
    shape: tuple[int, int, int],
    attacks: Mapping[str, Attack],
    target: Target | None,
    trains_target: bool,
    trains_evaluator: bool,
    trains_public: bool,
    own_prior: Prior | None,
    given_prior: StylePrior | None,
    device: torch.device,
    remedy: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Estimate:
    """Time two steps of every stage on networks of the right shape and multiply.

    ``public`` is at the size of networks trained here, ``public_for_prior`` at the prior's. Each
    stage is timed within ``remedy(its name)``. Early stopping makes classifiers quicker than this
    says; scoring and the report are counted as one pass of the feature networks.
    """
    seconds: dict[str, float | None] = {}
    classes = max(1, len(private.labels.unique()))
    for name, wanted, images, training in (
        ("target", trains_target, private, settings.target_training),
        ("evaluator", trains_evaluator, private, settings.evaluator_training),
        ("public-network", trains_public, public, settings.public_training),
    ):
        if wanted:
            factor = 4 if name == "public-network" and len(public.classes) < 2 else 1
            with remedy(name):
                seconds[name] = factor * _classifier_seconds(images, training, shape, device)
    stand_in = target or untrained_target(private, shape)
    stand_in = stand_in.to(device)
    style = None if given_prior is None else given_prior.to(device)
    seconds["prior"] = 0.0
    training_ = prior_training(settings)
    if training_ is not None:

        def train(steps: int) -> StylePrior:
            return train_prior(
                public_for_prior.images,
                training=replace(training_, steps=steps),
                rng=generator(0),
                device=device,
            )

        with remedy("prior"):
            style = train(2)
            seconds["prior"] = training_.steps * _step(train)
    if style is not None and not settings.adaptation.keeps_prior:
        with remedy("adaptation"):
            seconds["adaptation"] = _adaptation_seconds(
                settings, style, stand_in, public_for_prior, device
            )
    prior: Prior | None = style or own_prior
    costs: dict[str, Cost] = {}
    for name, attack in attacks.items():
        seconds[name] = None
        if isinstance(attack, _Known) and prior is not None:
            with remedy(name):
                costs[name] = _cost(attack, stand_in, prior, classes, device)
                seconds[name] = costs[name](attack, _planned(attack, prior, classes))
    if settings.budget:
        seconds["budget"] = None
        if prior is not None and len(costs) == len(attacks):
            cut = _cut(settings.budget, attacks, prior, classes)
            attacked = sum(costs[name](less, most) for name, less, most in cut)
            # The whole attacks are looked at once more.
            scored = [*(less for _, less, _ in cut), *attacks.values()]
            made = classes * sum(a.keep for a in scored if isinstance(a, _Known))
            with remedy("scores"):
                looked = _embedding_seconds(
                    settings, shape, len(scored) * len(private) + made, device
                )
            seconds["budget"] = attacked + looked
    kept = sum(a.keep * classes for a in attacks.values() if isinstance(a, _Known))
    embedded = len(private) * 2 + kept
    if settings.private is not None and settings.holdout is None:
        embedded += len(private) + kept  # the control's
    with remedy("scores"):
        seconds["scores"] = _embedding_seconds(settings, shape, embedded, device)
    with remedy("signals"):
        seconds["signals"] = _embedding_seconds(settings, shape, 2 * len(private), device)
    weights = (
        0
        if not isinstance(prior, StylePrior)
        else 4 * sum(p.numel() for m in (prior.raw, prior.critic) for p in m.parameters())
    )
    pixels = math.prod(shape)
    shown = pixels if prior is None else math.prod(prior.image_shape)
    images_bytes = private.images.numel() + public.images.numel()
    if public_for_prior is not public:
        images_bytes += public_for_prior.images.numel()
    floats = 4 * pixels * max(len(private), len(public))
    blocks = min(settings.memory, 4 * embedded * _feature_width(settings, shape))
    resident = psutil.Process().memory_info().rss
    return Estimate(
        seconds=seconds,
        memory_bytes=int(resident + images_bytes + floats + blocks + 8 * weights),
        disk_bytes=int(8 * weights + 2 * kept * shown + 60_000_000),
    )


def _step(run: Callable[[int], object]) -> float:
    """Seconds of one step, from a run of 1 and one of 4, so that set-up cancels.

    A first run is not timed: libraries import parts of themselves when they are first used.
    """
    run(1)
    times = []
    for steps in (1, 4):
        started = time.perf_counter()
        run(steps)
        times.append(time.perf_counter() - started)
    return max(1e-4, (times[1] - times[0]) / 3)


def _classifier_seconds(
    images: ImageSet, training: Training, shape: tuple[int, int, int], device: torch.device
) -> float:
    few = images.select(torch.arange(min(len(images), 4 * training.batch_size)))
    per_epoch = _step(
        lambda epochs: train_classifier(
            few,
            training=replace(training, epochs=epochs, validation=0.0),
            image_shape=shape,
            rng=generator(0),
            device=device,
        )
    )
    return per_epoch * len(images) / len(few) * training.epochs_for(len(images))


def untrained_target(
    private: ImageSet, shape: tuple[int, int, int], architecture: ClassifierArchitecture = "resnet"
) -> Target:
    """A classifier of the images' classes that has learnt nothing, for images of ``shape`` (C, S, S)."""
    saved = build_classifier(
        architecture,
        classes=private.classes,
        image_shape=shape,
        width=16,
        mean=[0.0] * shape[0],
        std=[1.0] * shape[0],
        rng=generator(0),
    )
    return target_of(saved, "untrained")


def _adaptation_seconds(
    settings: AuditSettings,
    prior: StylePrior,
    target: Target,
    public: ImageSet,
    device: torch.device,
) -> float:
    metric: Embedding | None = None
    if ARMS[settings.arm].natural_gradient:
        metric = _metric(settings.guidance_embedding, public, prior.image_shape, device)

    def run(steps: int) -> None:
        adaptation: Adaptation = replace(
            settings.adaptation, steps=steps, pivots=0, pivots_tuning=0
        )
        adapt(
            prior,
            target,
            public.images,
            arm=settings.arm,
            adaptation=adaptation,
            training=prior.training,
            metric=metric,
            rng=generator(0),
        )

    seconds = settings.adaptation.steps * _step(run) if settings.adaptation.steps > 0 else 0.0
    if settings.adaptation.pivots == 0:
        return seconds
    training = settings.adaptation.training_settings(prior.training)
    at_once = training.images_at_once or training.batch_size
    few = public.images[:at_once]

    def search(steps: int) -> None:
        # Few samples to begin from: all of them take little beside the whole search.
        project(
            prior, target, few, few, steps=steps, samples=max(2, len(few)),
            batch_size=at_once, rng=generator(0),
        )  # fmt: skip

    images = settings.adaptation.pivots * target.num_classes
    seconds += images / len(few) * settings.adaptation.pivots_steps * _step(search)
    if settings.adaptation.pivots_tuning == 0:
        return seconds
    pivoted = replace(prior, pivots=prior.sample(len(few), rng=generator(0)))

    def tuning(steps: int) -> None:
        tune(
            pivoted, target, few, few, steps=steps, missed=0.0, batch_size=at_once, rng=generator(0)
        )

    return seconds + settings.adaptation.pivots_tuning * _step(tuning)


def _metric(
    name: str, public: ImageSet, shape: tuple[int, int, int], device: torch.device
) -> Embedding:
    from inversight.embeddings import named_embedding

    network = None
    if name == "public":
        network = build_classifier(
            "resnet",
            classes=public.classes or ("0", "1"),
            image_shape=shape,
            width=16,
            mean=[0.0] * shape[0],
            std=[1.0] * shape[0],
            rng=generator(0),
        )
        network.module.eval().requires_grad_(False).to(device)
        return StageEmbedding("public", network)
    return named_embedding(
        name,
        use="distance",
        role="--guidance-embedding",
        size=shape[1],
        public_network=None,
        evaluator=None,
        working_size=max(64, shape[1]),
    )


def _planned(attack: _Known, prior: Prior, classes: int) -> int:
    """Images that an attack sends to the target if nothing limits it, or few more."""
    if not isinstance(attack, _WhiteBox):
        return attack.planned_queries(prior, classes)
    common = sum(common_queries(attack).values())
    return common + classes * (_image_steps(attack, prior) + attack.crop_images)


def _image_steps(attack: _WhiteBox, prior: Prior) -> int:
    """Images that go forward and back for a class with this prior."""
    if isinstance(attack, IfGmi) and isinstance(prior, Intermediate):
        attack = replace(attack, layers=min(attack.layers, prior.blocks - 1))
    return attack.image_steps


def _cut(
    budget: Sequence[int], attacks: Mapping[str, Attack], prior: Prior, classes: int
) -> list[tuple[str, _Known, int]]:
    """Each attack cut down to each number of queries, where it can be, with what it then sends."""
    found = []
    for name, attack in attacks.items():
        if not isinstance(attack, _Known):
            continue
        used = _planned(attack, prior, classes)
        for queries in budget:
            less = within(attack, queries, classes=classes, used=used)
            if isinstance(less, _Known):
                found.append((name, less, min(queries, used)))
    return found


def _cost(attack: _Known, target: Target, prior: Prior, classes: int, device: torch.device) -> Cost:
    """Times a few steps of ``attack`` and says what it, or less of it, takes."""
    if isinstance(attack, Lomma) and attack.surrogates:
        return _lomma_cost(attack, target, prior, classes, device)
    if isinstance(attack, _WhiteBox):
        return _white_box_cost(attack, target, prior, classes)
    if isinstance(attack, Lokt):
        return _lokt_cost(attack, target, prior, classes, device)
    # Agents are trained as long as there are queries left for episodes.
    trained = _agents_seconds(attack, prior, classes) if isinstance(attack, RlbMi) else 0.0
    whole = _planned(attack, prior, classes)
    query = _query_seconds(target, prior, whole, attack.batch_size)
    return lambda _, most: query * most + trained * most / whole


def _white_box_cost(attack: _WhiteBox, target: Target, prior: Prior, classes: int) -> Cost:
    """Steps forward and back, and images that are only looked at, from runs of 1 and of 3 steps.

    The quicker of two runs each: what else the machine does makes a run longer, never shorter.
    """
    n = min(attack.batch_size, attack.candidates * classes)
    small = replace(_small(attack, n), candidates=n, keep=1, crops=1)
    labels = torch.tensor([0])
    replace(small, steps=1).run(target, prior, labels, rng=generator(0))  # not timed, as in _step
    quickest = {1: math.inf, 3: math.inf}
    for steps in (1, 3, 1, 3):
        started = time.perf_counter()
        replace(small, steps=steps).run(target, prior, labels, rng=generator(0))
        quickest[steps] = min(quickest[steps], time.perf_counter() - started)
    backward = max(1e-6, (quickest[3] - quickest[1]) / 2 / n)
    forward = max(1e-6, (quickest[1] - backward * n) / 3 / n)

    def cost(one: Attack, most: int) -> float:
        if not isinstance(one, _WhiteBox):
            raise TypeError(type(one).__name__)
        pool = common_queries(one).get("pool", 0)
        seen = pool + classes * (one.candidates + one.crop_images)
        return forward * seen + backward * _image_steps(one, prior) * classes

    return cost


def _small(attack: _WhiteBox, n: int) -> _WhiteBox:
    """The attack with n images in a step, all steps alike and none compiled, which takes too long here."""
    if isinstance(attack, IfGmi):
        return replace(attack, pool=n, layers=0)
    if isinstance(attack, Lomma):
        return replace(attack, pool=n, surrogates=0)  # they are counted by themselves
    if isinstance(attack, PlugAndPlay):
        return replace(attack, pool=n, halvings=0, compiled=False)
    if isinstance(attack, LatentSearch):
        return replace(attack, pool=n)
    if isinstance(attack, PlgMi):
        # As long for an image; the prior may not be conditioned yet.
        return PlugAndPlay(pool=n, batch_size=attack.batch_size)
    if isinstance(attack, DistributionSearch):
        return replace(attack, samples=n)
    return replace(attack, group=n)


def _query_seconds(target: Target, prior: Prior, queries: int, batch_size: int) -> float:
    """Seconds of one of so many queries: an image of the prior seen by the target once."""
    n = min(batch_size, queries)
    times = []
    with torch.no_grad():
        for _ in range(3):  # the first is not used, as in _step
            latents = prior.sample(n, rng=generator(0))
            started = time.perf_counter()
            target(prior(latents)).cpu()
            times.append(time.perf_counter() - started)
    return min(times[1:]) / n


def _agents_seconds(attack: RlbMi, prior: Prior, classes: int) -> float:
    """Training of all classes' agents, a step each episode."""
    width = prior.sample(1, rng=generator(0)).numel()
    agents = Agents(width, attack, [generator(0, label) for label in range(classes)])
    x = torch.zeros(classes, attack.training_batch, width)

    def run(steps: int) -> None:
        for _ in range(steps):
            agents.learn(x, x, x[:, :, 0])

    return attack.episodes / attack.at_once * _step(run)


def _lokt_cost(
    attack: Lokt, target: Target, prior: Prior, classes: int, device: torch.device
) -> Cost:
    """Surrogates, and Plug & Play on all of them at once."""
    committee, lesson = _lesson(attack, target, prior, device)
    attacked = _white_box_cost(attack.white_box, committee, prior, classes)(attack.white_box, 0)

    def cost(one: Attack, most: int) -> float:
        return lesson(one) + attacked

    return cost


def _lomma_cost(
    attack: Lomma, target: Target, prior: Prior, classes: int, device: torch.device
) -> Cost:
    """GMI's search, surrogates, and every step's images through all of them, forward and back."""
    searched = _white_box_cost(attack, target, prior, classes)
    committee, lesson = _lesson(attack, target, prior, device)
    n = min(attack.batch_size, attack.candidates * classes)
    images = torch.zeros(n, *prior.image_shape, device=device, requires_grad=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            torch.autograd.grad(committee(images).sum(), images)

    seen = _step(run) / n

    def cost(one: Attack, most: int) -> float:
        if not isinstance(one, Lomma):
            raise TypeError(type(one).__name__)
        return searched(one, most) + lesson(one) + seen * one.image_steps * classes

    return cost


def _lesson(
    attack: Lokt | Lomma, target: Target, prior: Prior, device: torch.device
) -> tuple[Target, Callable[[Attack], float]]:
    """As many untrained surrogates as one, and what it takes to label images and to train on them."""
    shape, names = prior.image_shape, tuple(map(str, range(4 * attack.training.batch_size)))
    blank = torch.zeros(len(names), *shape, dtype=torch.uint8)
    few = ImageSet(blank, torch.arange(len(names)) % 2, names, ("0", "1"), names)
    epoch = _classifier_seconds(few, replace(attack.training, epochs=1), shape, device)
    surrogate = untrained_target(few, shape).to(device)
    committee = replace(surrogate, module=Committee([surrogate] * attack.surrogates))
    query = _query_seconds(target, prior, attack.images, attack.batch_size)

    def seconds(one: Attack) -> float:
        if not isinstance(one, Lokt | Lomma):
            raise TypeError(type(one).__name__)
        epochs = one.training.epochs_for(one.images)
        return one.images * (query + one.surrogates * epochs * epoch / len(few))

    return committee, seconds


def _embedding_seconds(
    settings: AuditSettings, shape: tuple[int, int, int], images: int, device: torch.device
) -> float:
    """One forward pass of the distance's network over all images."""
    name = settings.embedding
    if name in ("public", "pixel", "evaluator"):
        return 0.001 * images * (shape[1] / 32) ** 2 + 1.0
    from inversight.embeddings import named_embedding

    made = named_embedding(
        name, use="distance", role="--embedding", size=shape[1], public_network=None, evaluator=None
    )
    x = torch.rand(2, *shape, device=device)
    with torch.no_grad():
        made(x)
        started = time.perf_counter()
        made(x)
    return (time.perf_counter() - started) / 2 * images


def _feature_width(settings: AuditSettings, shape: tuple[int, int, int]) -> int:
    """Values that one image's features take, roughly."""
    if settings.embedding.startswith("lpips"):
        return 8_000_000
    return 20 * shape[1] ** 2 + 4096
