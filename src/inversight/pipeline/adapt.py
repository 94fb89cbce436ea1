"""Adaptation: the prior is fine-tuned against the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from inversight import adaptation as adapting
from inversight.adaptation import check_arm
from inversight.adaptation.collapse import LOW, class_entropy
from inversight.core.config import check_name, from_mapping
from inversight.core.console import Quiet, Reporter
from inversight.core.processes import ALONE, Processes
from inversight.embeddings import Embedding, named_embedding
from inversight.models.networks import SavedClassifier
from inversight.models.spec import ModelSpec
from inversight.models.target import Target
from inversight.pipeline.attack import load_target_for
from inversight.pipeline.context import Context
from inversight.pipeline.inputs import read_folder
from inversight.pipeline.prior import (
    CHECKPOINT,
    begin_training,
    check_training,
    check_watched,
    kept_network,
    monitor_of,
    training_remedy,
    warn_of_few,
    write_prior,
)
from inversight.pipeline.train import public_network
from inversight.priors import SampleMonitor, StylePrior
from inversight.priors.pivotal_tuning import describe_pivots
from inversight.priors.prior_file import PRIOR_FILE, check_adaptable, read_prior
from inversight.settings import ARMS, Adaptation, check_guidance_embedding, stage_budgets


def adaptation_stage(
    folder: Path,
    prior: StylePrior,
    target: Target,
    images: Tensor,
    *,
    arm: str,
    adaptation: Adaptation,
    metric: Embedding | None,
    monitor: SampleMonitor | None,
    context: Context,
) -> StylePrior:
    """Fine-tune ``prior`` against ``target`` and write it, going on from a checkpoint in ``folder``.

    Args:
        images: uint8 (N, C, S, S), the public images at the prior's size.
        metric: the embedding of the arm natural-gradient, None for others.
        monitor: what is measured during the training, in the main process.
    """
    adapted = adapting.adapt(
        prior, target, images, arm=arm, adaptation=adaptation, training=prior.training,
        metric=metric, rng=context.rng("adaptation"), checkpoint=folder / CHECKPOINT,
        progress=context.reporter.stage("adaptation"), monitor=monitor, processes=context.processes,
    )  # fmt: skip
    if context.processes.main:
        write_prior(folder, adapted)
    return adapted


def guidance_metric(name: str, *, size: int, public_network: SavedClassifier | None) -> Embedding:
    """Return the embedding that the natural gradient measures changes of images of ``size`` by."""
    return named_embedding(
        name, use="distance", role="--guidance-embedding", size=size,
        public_network=public_network, working_size=max(64, size),
    )  # fmt: skip


def describe_adaptation(
    before: StylePrior,
    adapted: StylePrior,
    target: Target,
    *,
    arm: str,
    adaptation: Adaptation,
    context: Context,
) -> dict[str, float]:
    """Say what is special about an adapted prior, and warn if the guidance has collapsed it.

    Returns:
        Entropies, in nats, of the target's mean prediction for samples of the ``prior`` and of the
        ``adapted`` one; empty without guidance.
    """
    if adaptation.pivots > 0:
        context.reporter.say(describe_pivots(adapted, tuning=adaptation.pivots_tuning))
    if arm == "vanilla":
        return {}
    entropies = {
        name: class_entropy(target, one, rng=context.rng("class-entropy"))
        for name, one in (("prior", before), ("adapted", adapted))
    }
    if entropies["adapted"] < LOW * entropies["prior"]:
        context.reporter.warn(
            f"the adapted prior has collapsed onto few classes (entropy of the target's mean "
            f"prediction {entropies['adapted']:.2f} nats, {entropies['prior']:.2f} before): lower "
            "adaptation.weight, or take --arm balanced or --arm vanilla"
        )
    return entropies


def adapt(
    prior: Path,
    public: Path,
    out: Path,
    *,
    model: ModelSpec,
    arm: str,
    guidance_embedding: str,
    features: str,
    network: Path | None,
    preset: str,
    seed: int,
    device: str,
    given: dict[str, Any],
    reporter: Reporter,
    processes: Processes = ALONE,
) -> Path:
    """Fine-tune the prior in ``prior`` against a target, going on from a checkpoint in ``out``.

    ``given`` are settings of the adaptation, on top of the preset's. With several ``processes`` each
    calls this with the same arguments; the main one writes and reports.

    Raises:
        InputError: wrong input.
    """
    reporter = reporter if processes.main else Quiet()
    context = Context(seed, processes.device(device), reporter, processes)
    where = context.device
    check_name("--arm", arm, ARMS)
    check_watched(features)
    adaptation = from_mapping(Adaptation, {**stage_budgets(preset)["adaptation"], **given})
    given_prior = read_prior(prior)
    start = given_prior.prior
    check_adaptable(start, prior)
    channels, size, _ = start.image_shape
    target = load_target_for(given_prior, model)
    check_arm(arm, target)
    images = read_folder(public, "--public", reporter, size=size, channels=channels, labelled=False)
    facts = {
        "--seed": seed,
        "the public images": images.fingerprint(),
        "--arm": arm,
        "--guidance-embedding": guidance_embedding,
    }
    if processes.main:
        check_training(out, facts)
    saved: SavedClassifier | None = None
    metric: Embedding | None = None
    known = network or kept_network(out)
    if ARMS[arm].natural_gradient:
        check_guidance_embedding(guidance_embedding)
        if guidance_embedding == "public":
            saved = public_network(images, known, context)
        metric = guidance_metric(guidance_embedding, size=size, public_network=saved)
    monitor = None
    if processes.main:
        if features == "public" and saved is None:
            known = known or kept_network(prior if prior.is_dir() else prior.parent)
            saved = public_network(images, known, context)
        monitor = monitor_of(out, images.images, features=features, network=saved, device=where)
        begin_training(out, facts, saved)
    warn_of_few(images, reporter)
    start, target = start.to(where), target.to(where)
    with training_remedy("adapt", adaptation.training_settings(start.training), processes):
        adapted = adaptation_stage(
            out, start, target, images.images, arm=arm, adaptation=adaptation, metric=metric,
            monitor=monitor, context=context,
        )  # fmt: skip
    if processes.main:
        describe_adaptation(start, adapted, target, arm=arm, adaptation=adaptation, context=context)
    return out / PRIOR_FILE
