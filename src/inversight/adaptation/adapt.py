"""Fine-tunes the prior against the target: the adversarial game goes on, and the target terms.

Li et al. 2025 (METHOD section 3), three arms: ``vanilla`` is the GAN loss alone, ``entropy`` adds the
entropy of the target's prediction, ``natural-gradient`` replaces that entropy's gradient on the
generated images by its natural gradient under a perceptual metric. Five more of ours, and two that are
one half of a published attack each: ``pseudo-labels`` (Yuan et al. 2023, PLG-MI) conditions both networks
on the classes that the target puts public images in, ``target-aware`` (Chen et al. 2021, KED-MI) teaches
them to the discriminator.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from inversight.adaptation.eigen import PaperEigen
from inversight.adaptation.guidance import Guidance, WeightedTerm
from inversight.adaptation.preconditioners import Damped, Preconditioner
from inversight.adaptation.projected import Projected
from inversight.adaptation.terms import (
    Balance,
    CriticEntropy,
    Entropy,
    Margin,
    Spread,
    Statistics,
    Term,
)
from inversight.core.errors import ConfigError
from inversight.core.processes import ALONE, Processes
from inversight.core.progress import Progress, silent
from inversight.core.seeding import draw_seed, generator
from inversight.embeddings.base import Embedding
from inversight.models.activations import batch_norms, convolutions
from inversight.models.target import Target
from inversight.models.transformations import Transformations
from inversight.priors import SampleMonitor, StylePrior, continue_training
from inversight.priors.classes import add_class_logits, condition_on_classes
from inversight.priors.pivotal_tuning import saved_pivots, tune
from inversight.priors.pivots import SAMPLES, confident_images, project, sample_log_probabilities
from inversight.priors.pseudo_labels import (
    check_top,
    predicted_labels,
    pseudo_labels,
    soft_labels,
)
from inversight.settings import ARMS, Adaptation, PriorTraining

TERMS: dict[str, Term] = {
    "entropy": Entropy(),
    "balance": Balance(),
    "statistics": Statistics(),
    "spread": Spread(),
    "margin": Margin(),
    "critic-entropy": CriticEntropy(),
}
"""The guidance terms that ``Arm.terms`` names."""

_SPREAD = 0.5
"""Weight of what ``diverse`` adds to ``projected``, relative to the arm's own: from three seeds of
digits."""

_LEAST_OF_A_CLASS = 30
"""Public images that a class of ``conditional`` has at least, where there are as many: PLG-MI's number."""

TUNING_FILE = "tuning.safetensors"
"""Where a tuning of the generator keeps its state meanwhile, beside the game's checkpoint."""

_REMEMBERED = 0.1
"""Longest half-life of the moving average of a prior that learns classes, as a share of all images."""


def preconditioner_of(adaptation: Adaptation, metric: Embedding) -> Preconditioner:
    """What turns the entropy's gradient into its natural gradient under ``metric``."""
    if adaptation.preconditioner == "eigen":
        return PaperEigen(metric, rank=adaptation.rank)
    return Damped(metric, damping=adaptation.damping, iterations=adaptation.iterations)


def check_arm(arm: str, target: Target) -> None:
    """Refuse a target that lacks what an arm looks at.

    Raises:
        ConfigError: statistics without batch normalisation; projected, diverse or conditional without
            convolutions.
    """
    if ARMS[arm].batch_norm and not batch_norms(target.module):
        raise ConfigError(
            f"arm {arm} needs a target with batch normalisation, whose running statistics it uses; "
            f"{target.spec} has none: use another --arm"
        )
    if ARMS[arm].projected and not convolutions(target.module):
        raise ConfigError(
            f"arm {arm} needs a target with convolutions, by whose maps it judges; {target.spec} has "
            "none: use another --arm"
        )


def check_public(arm: str, adaptation: Adaptation, images: int) -> None:
    """Refuse settings that ask for more of each class than there are public images, or for none of them.

    Raises:
        ConfigError: they do.
    """
    check_top(images, adaptation.pivots, "pivots")
    if adaptation.pivots_tuning > 0 and adaptation.pivots == 0:
        raise ConfigError(
            "adaptation.pivots_tuning: there is nothing to tune to without adaptation.pivots: set that "
            "as well, to about as many as an attack keeps of a class"
        )
    setting = ARMS[arm].images_per_class
    top = None if setting is None else getattr(adaptation, setting)
    if setting is not None and top is not None:
        check_top(images, top, setting)


def weight_of(arm: str, adaptation: Adaptation) -> float:
    """The weight that was given, or else the arm's own; 0 for ``vanilla``."""
    default = ARMS[arm].weight
    return default if default == 0.0 or adaptation.weight is None else adaptation.weight


def guidance_terms(
    arm: str,
    adaptation: Adaptation,
    metric: Embedding | None,
    projected: Term | None = None,
) -> list[WeightedTerm]:
    """What an arm guides by; nothing for ``vanilla``. ``projected`` is the term of that arm, of
    ``diverse`` and of ``conditional`` that is made for a target.

    Raises:
        ConfigError: the natural gradient without a metric, or an unknown arm.
    """
    if arm not in ARMS:
        raise ConfigError(f"arm: expected one of {', '.join(ARMS)}, found {arm!r}")
    facts = ARMS[arm]
    weight = weight_of(arm, adaptation)
    name = facts.published_weight
    published = None if name is None else float(getattr(adaptation, name))
    if weight == 0.0 or published == 0.0:
        return []
    if published is not None and adaptation.scale == "absolute":
        weight = published
    terms = [TERMS[name] for name in facts.terms]
    if facts.natural_gradient:
        if metric is None:
            raise ConfigError("arm natural-gradient needs a guidance embedding")
        turned = preconditioner_of(adaptation, metric)
        return [WeightedTerm(term, weight, turned, part=adaptation.guided_images) for term in terms]
    if facts.projected:
        if projected is None:
            raise ConfigError(f"arm {arm} needs the term made for the target")
        return [
            WeightedTerm(projected, weight),
            *(WeightedTerm(term, _SPREAD * weight) for term in terms),
        ]
    return [WeightedTerm(term, weight) for term in terms]


def adapt(
    prior: StylePrior,
    target: Target,
    public: Tensor,
    *,
    arm: str,
    adaptation: Adaptation,
    training: PriorTraining,
    metric: Embedding | None = None,
    rng: torch.Generator,
    progress: Progress = silent,
    checkpoint: Path | None = None,
    monitor: SampleMonitor | None = None,
    processes: Processes = ALONE,
) -> StylePrior:
    """The adapted prior. ``public``: uint8 images (N, C, S, S) at the prior's size.

    ``watch`` looks at it as it changes. Its pivots are found when the game is over, and then it is tuned
    to them. ``checkpoint`` is the file that the game is kept in from time to time and gone on from; the
    tuning has one of its own beside it, :data:`TUNING_FILE`. With several ``processes`` each calls this
    alike.

    Raises:
        ConfigError: a setting does not fit, or the prior knows classes and the arm none.
        StageError: the game diverged, or the tuning.
        DataError: a checkpoint is damaged, or of another adaptation.
    """
    check_arm(arm, target)
    check_public(arm, adaptation, len(public))
    projected = None
    if ARMS[arm].projected and weight_of(arm, adaptation) > 0.0:
        projected = Projected(
            target,
            public,
            learning_rate=adaptation.projected_learning_rate,
            rng=generator(draw_seed(rng), "projected"),
        )
    terms = guidance_terms(arm, adaptation, metric, projected)
    training = adaptation.training_settings(training)
    if ARMS[arm].conditional:
        # Classes are new: an average that reaches back behind the adaptation would not know them.
        images = max(1.0, _REMEMBERED * adaptation.steps * training.batch_size)
        training = replace(training, ema_images=min(training.ema_images, images))
    scores = None
    if adaptation.pivots > 0 or ARMS[arm].conditional or ARMS[arm].classifying_discriminator:
        scores = soft_labels(target, public)
    chosen, most = None, False
    if adaptation.pivots > 0 and scores is not None:
        rows, most = _pivotal(
            prior, target, scores, adaptation, at_once=training.images_at_once, rng=rng
        )
        chosen = public[rows] if len(rows) > 0 else None
    everything = public
    prior, public, class_labels = _with_knowledge(
        prior, target, public, scores, arm, adaptation, rng
    )
    summed = None
    if adaptation.scale == "absolute":
        # A mean in the papers of the two arms that are other attacks'.
        summed = 1 if ARMS[arm].published_weight is not None else training.batch_size
    transform = None
    if ARMS[arm].transformed:
        transform = partial(Transformations(), mirror=adaptation.pseudo_labels_mirror)
    guidance = None
    if terms:
        guidance = Guidance(target, terms, summed=summed, transform=transform, second=projected)
    at_once = training.images_at_once or training.batch_size
    parts = 0 if chosen is None else math.ceil(len(chosen) / at_once)
    searching = parts * adaptation.pivots_steps
    tuning = adaptation.pivots_tuning if most else 0
    in_all = adaptation.steps + searching + tuning

    def after(before: int, share: int) -> Progress:
        """Progress of a part of ``share`` steps with ``before`` steps done."""

        def tell(done: int, total: int, note: str = "") -> None:
            progress(before + share * done // total, in_all, note)

        return tell

    adapted = continue_training(
        public,
        training=training,
        start=prior,
        class_labels=class_labels,
        steps=adaptation.steps,
        learning_rate_factor=adaptation.learning_rate_factor,
        guidance=guidance,
        rng=rng,
        progress=after(0, adaptation.steps),
        checkpoint=checkpoint,
        monitor=monitor,
        processes=processes,
    )
    if chosen is None:
        return adapted
    seed = draw_seed(rng)
    kept = None if checkpoint is None else checkpoint.with_name(TUNING_FILE)
    pivots = None if kept is None or tuning == 0 else saved_pivots(kept)
    if pivots is None:
        pivots = project(
            adapted,
            target,
            chosen,
            everything,
            steps=adaptation.pivots_steps,
            batch_size=at_once,
            rng=generator(seed, "pivots"),
            progress=after(adaptation.steps, searching),
        )
    adapted = replace(adapted, pivots=pivots.to(adapted.average.mapping.w_avg))
    if tuning > 0:
        adapted = tune(
            adapted,
            target,
            chosen,
            everything,
            steps=tuning,
            missed=adaptation.pivots_missed,
            left=adaptation.pivots_left,
            learning_rate=adaptation.pivots_learning_rate,
            batch_size=at_once,
            rng=generator(seed, "pivotal-tuning"),
            progress=after(adaptation.steps + searching, tuning),
            checkpoint=kept,
            processes=processes,
        )
    if kept is not None and processes.main:
        kept.unlink(missing_ok=True)
    return adapted


def _pivotal(
    prior: StylePrior, target: Target, scores: Tensor, adaptation: Adaptation, *, at_once: int | None,
    rng: torch.Generator,
) -> tuple[Tensor, bool]:  # fmt: skip
    """Rows of the public images whose pivots are searched for, there may be none; and whether they are at
    least half of those that the target is surest of: a generator that is tuned to a few alone forgets what
    else it drew. ``scores``: what the target says of the public images."""
    wanted, share = adaptation.pivots, adaptation.pivots_surer_than
    surest = confident_images(scores, wanted)
    if share == 0.0:
        return surest, True
    samples = sample_log_probabilities(
        target, prior, max(SAMPLES, wanted), batch_size=at_once or 32,
        rng=generator(draw_seed(rng), "surer-than"),
    )  # fmt: skip
    chosen = confident_images(scores, wanted, surer_than=share, samples=samples)
    return chosen, 2 * len(chosen) >= len(surest)


def _with_knowledge(
    prior: StylePrior, target: Target, public: Tensor, scores: Tensor | None, arm: str,
    adaptation: Adaptation, rng: torch.Generator,
) -> tuple[StylePrior, Tensor, Tensor | None]:  # fmt: skip
    """Where an arm that knows classes begins, its public images, and what the target says of them, by
    ``scores``, which such an arm has."""
    classes = target.num_classes
    if prior.num_classes > 0 and (not ARMS[arm].conditional or prior.num_classes != classes):
        able = " or ".join(name for name in ARMS if ARMS[name].conditional)
        raise ConfigError(
            f"arm {arm}: the prior is conditioned on {prior.num_classes} classes, and can go on with "
            f"arm {able} and a target of so many alone, found {classes}; give a "
            "prior that is not conditioned"
        )
    if scores is None:
        return prior, public, None
    if ARMS[arm].conditional:
        top = _images_of_a_class(arm, adaptation, len(public), classes)
        if top > 0:
            rows, labels = pseudo_labels(scores, top)
        else:
            rows, labels = predicted_labels(scores, min(len(public), _LEAST_OF_A_CLASS))
        if prior.num_classes == 0:
            prior = condition_on_classes(prior, classes, rng=generator(draw_seed(rng), "classes"))
        return prior, public[rows], F.one_hot(labels, classes).float()
    if ARMS[arm].classifying_discriminator:
        return add_class_logits(prior, classes), public, scores.exp()
    return prior, public, None


def _images_of_a_class(arm: str, adaptation: Adaptation, images: int, classes: int) -> int:
    """How many of so many public images each of the classes is given; 0: all that it is taken for."""
    top: int | None = getattr(adaptation, ARMS[arm].images_per_class or "conditional_top")
    return top if top is not None else min(images, max(_LEAST_OF_A_CLASS, images // classes))
