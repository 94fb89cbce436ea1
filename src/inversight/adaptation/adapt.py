"""Fine-tuning the prior against the target: the adversarial game continues, guided by the target.

Three arms are those of Li et al. 2025: ``vanilla`` is the GAN loss alone, ``entropy`` adds the entropy of
the target's prediction, ``natural-gradient`` replaces the gradient of that entropy on the generated images
by its natural gradient under a perceptual metric. Two arms are each one half of a published attack:
``pseudo-labels`` (Yuan et al. 2023, PLG-MI) conditions both networks on the classes that the target
predicts for public images, ``target-aware`` (Chen et al. 2021, KED-MI) trains the discriminator to predict
them. The other five are this project's own.
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
from inversight.adaptation.terms import TERMS, Term
from inversight.core.errors import ConfigError
from inversight.core.processes import ALONE, Processes
from inversight.core.progress import Progress, part_of, silent
from inversight.core.seeding import draw_seed, generator
from inversight.embeddings.base import Embedding
from inversight.models.activations import batch_norms, convolutions
from inversight.models.target import Access, Target
from inversight.models.transformations import Transformations
from inversight.priors import SampleMonitor, StylePrior, continue_training
from inversight.priors.classes import add_class_logits, condition_on_classes
from inversight.priors.pivotal_tuning import saved_pivots, tune
from inversight.priors.pivots import (
    SAMPLES,
    ReconstructionLoss,
    confident_images,
    project,
    sample_log_probabilities,
)
from inversight.priors.pseudo_labels import (
    check_top,
    predicted_labels,
    pseudo_labels,
    soft_labels,
)  # fmt: skip
from inversight.settings import ARMS, Adaptation, PriorTraining, arms_with

_SPREAD = 0.5
"""Weight, relative to the arm's, of the terms besides the projected discriminator; chosen on three seeds
of digits."""

_LEAST_OF_A_CLASS = 30
"""Smallest number of public images of a class in ``conditional``, if there are as many (PLG-MI: 30)."""

TUNING_FILE = "tuning.safetensors"
"""Name of the tuning's checkpoint, beside that of the adversarial training."""


def preconditioner_of(adaptation: Adaptation, metric: Embedding) -> Preconditioner:
    """Return the preconditioner of the natural gradient under ``metric``."""
    if adaptation.preconditioner == "eigen":
        return PaperEigen(metric, rank=adaptation.rank)
    return Damped(metric, damping=adaptation.damping, iterations=adaptation.iterations)


def check_arm(arm: str, adaptation: Adaptation, target: Target) -> None:
    """Validate the name of an arm, and that the target gives what it and pivots need.

    Raises:
        ConfigError: unknown arm; less access than it needs; statistics without batch normalisation;
            projected, diverse or conditional without convolutions.
    """
    if arm not in ARMS:
        raise ConfigError(f"arm: expected one of {', '.join(ARMS)}, found {arm!r}")
    able = arms_with(target.access)
    if arm not in able:
        raise ConfigError(
            f"arm {arm} needs {ARMS[arm].least_access} access, but the target {target.spec} gives "
            f"{target.access} only: give --arm {' or '.join(able)}, or --set adaptation.steps=0"
        )
    if adaptation.pivots > 0 and target.access is not Access.WHITE_BOX:
        raise ConfigError(
            f"adaptation.pivots needs gradients, but the target {target.spec} gives {target.access} "
            "only: leave it out"
        )
    if ARMS[arm].batch_norm and not batch_norms(target.module):
        raise ConfigError(
            f"arm {arm} needs a target with batch normalisation, whose running statistics it uses; "
            f"{target.spec} has none: use another --arm"
        )
    if ARMS[arm].projected and not convolutions(target.module):
        raise ConfigError(
            f"arm {arm} needs a target with convolutions, whose maps it uses; {target.spec} has none: "
            "use another --arm"
        )


def check_public(arm: str, adaptation: Adaptation, images: int) -> None:
    """Validate the settings of numbers of public images.

    Raises:
        ConfigError: a setting is larger than the number of images, or tuning is set without pivots.
    """
    check_top(images, adaptation.pivots, "pivots")
    if adaptation.pivots_tuning > 0 and adaptation.pivots == 0:
        raise ConfigError(
            "adaptation.pivots_tuning: there is nothing to tune to without adaptation.pivots: set that "
            "as well, to about as many as an attack keeps of a class"
        )
    setting = ARMS[arm].images_per_class
    if setting is not None and getattr(adaptation, setting) is not None:
        check_top(images, getattr(adaptation, setting), setting)


def weight_of(arm: str, adaptation: Adaptation) -> float:
    """Return the weight in the settings, or else the arm's default; 0 for ``vanilla``."""
    default = ARMS[arm].weight
    return default if default == 0.0 or adaptation.weight is None else adaptation.weight


def guidance_terms(
    arm: str, adaptation: Adaptation, metric: Embedding | None = None, projected: Term | None = None
) -> list[WeightedTerm]:
    """Return the guidance terms of an arm; none for ``vanilla``.

    metric: the embedding that preconditions the natural gradient. projected: the discriminator of the
    target's maps, for the arms ``projected``, ``diverse`` and ``conditional``.

    Raises:
        ConfigError: the natural gradient without a metric, or one of these arms without ``projected``.
    """
    facts, weight = ARMS[arm], weight_of(arm, adaptation)
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
        natural = preconditioner_of(adaptation, metric)
        return [WeightedTerm(term, weight, natural, adaptation.guided_images) for term in terms]
    if not facts.projected:
        return [WeightedTerm(term, weight) for term in terms]
    if projected is None:
        raise ConfigError(f"arm {arm} needs the term made for the target")
    others = [WeightedTerm(term, _SPREAD * weight) for term in terms]
    return [WeightedTerm(projected, weight), *others]


def adapt(
    prior: StylePrior,
    target: Target,
    public: Tensor,
    *, arm: str, adaptation: Adaptation, training: PriorTraining, metric: Embedding | None = None,
    rng: torch.Generator, progress: Progress = silent, checkpoint: Path | None = None,
    monitor: SampleMonitor | None = None, processes: Processes = ALONE,
) -> StylePrior:  # fmt: skip
    """Fine-tune the prior against the target; then find its pivots, and tune the generator to them.

    Args:
        prior: where the training starts.
        target: the model under audit.
        public: uint8 images (N, C, S, S) at the prior's size.
        arm: the kind of guidance.
        adaptation: settings of the fine-tuning.
        training: settings of the prior's own training.
        metric: embedding whose metric preconditions the natural gradient.
        rng: gives the seeds of all random draws.
        progress: called after each step.
        checkpoint: file to save the training to at intervals, and to resume from if it exists. The
            tuning has a checkpoint of its own beside it, :data:`TUNING_FILE`.
        monitor: records samples during the training.
        processes: each calls this alike, and gets the same prior.

    Raises:
        ConfigError: a setting does not fit, or the prior is conditional and the arm is not.
        StageError: the training or the tuning diverged.
        DataError: a checkpoint is damaged, or of another adaptation.
    """
    check_arm(arm, adaptation, target)
    check_public(arm, adaptation, len(public))
    facts, projected = ARMS[arm], None
    if facts.projected and weight_of(arm, adaptation) > 0.0:
        projected = Projected(
            target, public, learning_rate=adaptation.projected_learning_rate,
            rng=generator(draw_seed(rng), "projected"),
        )  # fmt: skip
    terms = guidance_terms(arm, adaptation, metric, projected)
    own, training = training, adaptation.training_settings(training)
    scores = None
    if adaptation.pivots > 0 or facts.conditional or facts.classifying_discriminator:
        scores = soft_labels(target, public)
    chosen, tuning = public[:0], 0
    if adaptation.pivots > 0 and scores is not None:
        rows, most = _pivot_rows(
            prior, target, scores, adaptation, at_once=training.images_at_once or 32, rng=rng
        )
        chosen, tuning = public[rows], adaptation.pivots_tuning if most else 0
    everything = public
    prior, public, class_labels = _with_labels(prior, target, public, scores, arm, adaptation, rng)
    guidance = None
    if terms:
        # The published attacks that two of the arms are part of take the mean over the batch.
        summed = 1 if facts.published_weight is not None else training.batch_size
        mirrored = partial(Transformations(), mirror=adaptation.pseudo_labels_mirror)
        guidance = Guidance(
            target, terms, summed=summed if adaptation.scale == "absolute" else None,
            transform=mirrored if facts.transformed else None, second=projected,
            augmented=adaptation.augmented_guidance,
        )  # fmt: skip
    at_once = training.images_at_once or training.batch_size
    searching = math.ceil(len(chosen) / at_once) * adaptation.pivots_steps
    tell = partial(part_of, progress, whole=adaptation.steps + searching + tuning)
    adapted = continue_training(
        public, training=training, start=prior, class_labels=class_labels, steps=adaptation.steps,
        learning_rate_factor=adaptation.learning_rate_factor, guidance=guidance,
        uniform_latents=adaptation.uniform_latents, rng=rng,
        progress=tell(before=0, share=adaptation.steps), checkpoint=checkpoint, monitor=monitor,
        processes=processes,
    )  # fmt: skip
    # A further adaptation limits the half-life anew.
    adapted = replace(adapted, training=replace(training, ema_images=own.ema_images))
    if len(chosen) == 0:
        return adapted
    seed = draw_seed(rng)
    saved = checkpoint and checkpoint.with_name(TUNING_FILE)
    pivots = saved_pivots(saved) if saved and tuning else None
    loss = ReconstructionLoss(target, everything)
    if pivots is None:
        pivots = project(
            adapted, loss, chosen, steps=adaptation.pivots_steps, batch_size=at_once,
            rng=generator(seed, "pivots"), progress=tell(before=adaptation.steps, share=searching),
        )  # fmt: skip
    adapted = replace(adapted, pivots=pivots.to(adapted.average.mapping.w_avg))
    if tuning > 0:
        adapted = tune(
            adapted, loss, chosen, steps=tuning, missed=adaptation.pivots_missed,
            left=adaptation.pivots_left, learning_rate=adaptation.pivots_learning_rate,
            batch_size=at_once, rng=generator(seed, "pivotal-tuning"),
            progress=tell(before=adaptation.steps + searching, share=tuning), checkpoint=saved,
            processes=processes,
        )  # fmt: skip
    if saved and processes.main:
        saved.unlink(missing_ok=True)
    return adapted


def _pivot_rows(
    prior: StylePrior, target: Target, scores: Tensor, adaptation: Adaptation, *, at_once: int,
    rng: torch.Generator,
) -> tuple[Tensor, bool]:  # fmt: skip
    """Return the rows of the public images to invert, possibly none, and whether to tune to them.

    The generator is tuned only if they are at least half of the most confident images: one that is tuned
    to a few images forgets the others. ``scores``: the target's log-probabilities of the public images.
    """
    wanted, share = adaptation.pivots, adaptation.pivots_surer_than
    confident = confident_images(scores, wanted)
    if share == 0.0:
        return confident, True
    samples = sample_log_probabilities(
        target, prior, max(SAMPLES, wanted), batch_size=at_once,
        rng=generator(draw_seed(rng), "surer-than"),
    )  # fmt: skip
    chosen = confident_images(scores, wanted, surer_than=share, samples=samples)
    return chosen, 2 * len(chosen) >= len(confident)


def _with_labels(
    prior: StylePrior, target: Target, public: Tensor, scores: Tensor | None, arm: str,
    adaptation: Adaptation, rng: torch.Generator,
) -> tuple[StylePrior, Tensor, Tensor | None]:  # fmt: skip
    """Return the prior that the arm starts from, its public images, and their class labels if it has any.

    ``scores``: the target's log-probabilities of the public images, for arms with classes.
    """
    classes, setting = target.num_classes, ARMS[arm].images_per_class
    if prior.num_classes > 0 and (setting is None or prior.num_classes != classes):
        able = " or ".join(name for name in ARMS if ARMS[name].conditional)
        raise ConfigError(
            f"arm {arm}: the prior is conditioned on {prior.num_classes} classes, which takes "
            f"arm {able} and a target with as many classes, found {classes}; give a prior that is not "
            "conditioned"
        )
    if scores is not None and setting is not None:
        least = min(len(public), _LEAST_OF_A_CLASS)
        top = getattr(adaptation, setting)
        if top is None:
            top = max(least, len(public) // classes)
        rows, labels = pseudo_labels(scores, top) if top else predicted_labels(scores, least)
        if prior.num_classes == 0:
            prior = condition_on_classes(prior, classes, rng=generator(draw_seed(rng), "classes"))
        return prior, public[rows], F.one_hot(labels, classes).float()
    if scores is not None and ARMS[arm].classifying_discriminator:
        return add_class_logits(prior, classes), public, scores.exp()
    return prior, public, None
