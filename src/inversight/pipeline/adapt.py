"""Adaptation: the prior is fine-tuned against the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from inversight import adaptation as adapting
from inversight.adaptation import check_arm
from inversight.adaptation.collapse import LOW, class_entropy
from inversight.attacks.queries import QueryMeter, metered
from inversight.core.config import check_name, from_mapping
from inversight.core.run import write_json
from inversight.embeddings import Embedding, named_embedding
from inversight.models.networks import SavedClassifier
from inversight.models.spec import ModelSpec
from inversight.models.target import Access, Target
from inversight.pipeline.attack import load_target_for
from inversight.pipeline.context import Context
from inversight.pipeline.inputs import read_folder, scaled
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
    folder: Path, prior: StylePrior, target: Target, images: Tensor, *, arm: str,
    adaptation: Adaptation, metric: Embedding | None, monitor: SampleMonitor | None,
    context: Context,
) -> StylePrior:  # fmt: skip
    """Fine-tune ``prior`` against ``target`` and write it, going on from a checkpoint in ``folder``.

    The images that it sent to a target of limited access are in ``facts.json``, as ``queries``.

    Args:
        images: uint8 (N, C, S, S), the public images at the prior's size.
        metric: the embedding of the arm natural-gradient, None for others.
        monitor: what is measured during the training, in the main process.
    """
    meter = QueryMeter()
    if target.access is not Access.WHITE_BOX:
        target = metered(target, target.access, meter)
    adapted = adapting.adapt(
        prior, target, images, arm=arm, adaptation=adaptation, training=prior.training,
        metric=metric, rng=context.rng("adaptation"), checkpoint=folder / CHECKPOINT,
        progress=context.reporter.stage("adaptation"), monitor=monitor, processes=context.processes,
    )  # fmt: skip
    if context.processes.main:
        write_prior(folder, adapted)
        if target.access is not Access.WHITE_BOX:
            write_json(folder / "facts.json", {"queries": meter.used})
    return adapted


def guidance_metric(
    arm: str, name: str, *, size: int, public_network: SavedClassifier | None
) -> Embedding | None:
    """Return the embedding whose metric preconditions the natural gradient, None for other arms."""
    if not ARMS[arm].natural_gradient:
        return None
    return named_embedding(
        name, use="distance", role="--guidance-embedding", size=size,
        public_network=public_network, working_size=max(64, size),
    )  # fmt: skip


def describe_adaptation(
    before: StylePrior, adapted: StylePrior, target: Target, *, arm: str, adaptation: Adaptation,
    context: Context,
) -> dict[str, float]:  # fmt: skip
    """Say what is special about an adapted prior, and warn if the guidance has collapsed it.

    Returns:
        Entropies, in nats, of the target's mean prediction for samples of the ``prior`` and of the
        ``adapted`` one; empty without guidance or with less than white-box access.
    """
    if adaptation.pivots > 0:
        context.reporter.say(describe_pivots(adapted, tuning=adaptation.pivots_tuning))
    if arm == "vanilla" or target.access is not Access.WHITE_BOX:  # each image would be a query
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
    prior: Path, public: Path, out: Path, *, model: ModelSpec, arm: str, guidance_embedding: str,
    features: str, network: Path | None, preset: str, given: dict[str, Any], context: Context,
) -> Path:  # fmt: skip
    """Fine-tune the prior in ``prior`` against a target, going on from a checkpoint in ``out``.

    ``given`` are settings of the adaptation, on top of the preset's.

    Raises:
        InputError: wrong input.
    """
    reporter, processes, where = context.reporter, context.processes, context.device
    check_name("--arm", arm, ARMS)
    check_watched(features)
    adaptation = from_mapping(Adaptation, {**stage_budgets(preset)["adaptation"], **given})
    given_prior = read_prior(prior)
    start = given_prior.prior
    check_adaptable(start, prior)
    channels, size, _ = start.image_shape
    target = load_target_for(given_prior, model, reporter)
    check_arm(arm, adaptation, target)
    shape = scaled(model.size or size, size)
    images = read_folder(
        public, "--public", reporter, size=shape, channels=channels, labelled=False
    )
    facts = {
        "--seed": context.seed,
        "the public images": images.fingerprint(),
        "--arm": arm,
        "--guidance-embedding": guidance_embedding,
    }
    if processes.main:
        check_training(out, facts)
    known, guided = network or kept_network(out), ARMS[arm].natural_gradient
    if guided:
        check_guidance_embedding(guidance_embedding)
    saved: SavedClassifier | None = None
    if guided and guidance_embedding == "public":
        saved = public_network(images, known, context)
    elif processes.main and features == "public":
        known = known or kept_network(prior if prior.is_dir() else prior.parent)
        saved = public_network(images, known, context)
    metric = guidance_metric(arm, guidance_embedding, size=size, public_network=saved)
    monitor = None
    if processes.main:
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
