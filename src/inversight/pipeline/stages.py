"""Single stages for the command line: train, prior train, prior import, adapt, attack, report.

Each reads what the stage before it wrote.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inversight.adaptation import adapt, check_arm
from inversight.attacks import (
    Attack,
    check_fits,
    gather,
    run_assigned,
    write_reconstructions,
)
from inversight.attacks.base import missing_classes
from inversight.attacks.endpoint import Endpoint, endpoint_target, read_headers
from inversight.core.config import build, from_mapping, merge, nearest
from inversight.core.console import Quiet, Reporter
from inversight.core.device import memory_remedy, pick_device
from inversight.core.errors import ConfigError, InputError, RunError, TargetError
from inversight.core.processes import ALONE, Processes
from inversight.core.run import atomic_folder, check_new_folder, is_disk_full, write_json
from inversight.core.seeding import generator
from inversight.data import ImageSet, check_size, load_folder, working_size
from inversight.embeddings import Embedding, named_embedding
from inversight.models.loading import load_target
from inversight.models.networks import FILE_NAME, SavedClassifier, load_classifier, save_classifier
from inversight.models.spec import ModelSpec, read_classes
from inversight.models.target import Target
from inversight.models.training import rotation_task, train_classifier
from inversight.pipeline.one_by_one import OneByOne
from inversight.pipeline.outputs import write_report
from inversight.pipeline.watching import FrechetToPublic, check_watched, watched_features
from inversight.priors import SampleMonitor, train_prior
from inversight.priors.pivotal_tuning import describe_pivots
from inversight.priors.prior_file import (
    PRIOR_FILE,
    PriorFile,
    check_adaptable,
    check_channels,
    few_images,
    read_prior,
)
from inversight.priors.stylegan2_import import import_published
from inversight.report import load_report_data
from inversight.settings import (
    ARMS,
    ATTACKS,
    Adaptation,
    PriorTraining,
    Training,
    attack_budget,
    resolve_prior_training,
    stage_budget,
)

_NETWORK = "public-network"
_CHECKPOINT = "checkpoint.safetensors"
_BEGUN = "training.json"
"""Says that a training began in this folder, so that it may go on there."""


def train(
    private: Path,
    out: Path,
    *,
    size: int | None,
    seed: int,
    device: str,
    given: dict[str, Any],
    reporter: Reporter,
) -> tuple[Path, str]:
    """Train a classifier on a folder; returns its file and a line on how it did.

    Raises:
        InputError: wrong input; nothing has been written.
    """
    training = from_mapping(Training, given)
    check_new_folder(out, needed_bytes=50_000_000)
    images = load_folder(private, role="--private", size=size, progress=reporter.stage("reading"))
    if len(images.classes) < 2:
        raise InputError(f"--private {private}: has one class; a classifier needs at least two")
    with _remedy("train", training.batch_size):
        trained = train_classifier(
            images,
            training=training,
            image_shape=(images.channels, images.size, images.size),
            rng=generator(seed, "target"),
            progress=reporter.stage("target"),
            device=pick_device(device),
        )
    facts = {
        "epochs": trained.epochs,
        "train_accuracy": trained.train_accuracy,
        "validation_accuracy": trained.validation_accuracy,
    }
    with atomic_folder(out) as folder:
        save_classifier(trained.classifier, folder / FILE_NAME)
        write_json(folder / "facts.json", facts)
    checked = trained.validation_accuracy
    return out / FILE_NAME, (
        f"{trained.epochs} epochs, accuracy {trained.train_accuracy:.1%} on training images"
        + ("" if checked is None else f", {checked:.1%} on the validation split")
    )


def train_prior_stage(
    public: Path,
    out: Path,
    *,
    size: int | None,
    features: str,
    network: Path | None,
    seed: int,
    device: str,
    given: dict[str, Any],
    reporter: Reporter,
    processes: Processes = ALONE,
) -> Path:
    """Train a prior on a folder of public images; goes on from a checkpoint in ``out``.

    With several ``processes`` each calls this with the same arguments; the first writes and reports.

    Raises:
        InputError: wrong input.
    """
    reporter = reporter if processes.main else Quiet()
    from_mapping(PriorTraining, given)  # what is wrong with it should be said before reading
    check_watched(features)
    where = processes.device(device)
    images = load_folder(
        public, role="--public", size=size, labelled=False, progress=reporter.stage("reading")
    )
    check_size(images.size, given=False)
    training = resolve_prior_training(given, size=images.size, gpus=processes.count)
    watch = None
    if processes.main:
        facts = {"seed": seed, "public": images.fingerprint()}
        _check_begun(out, facts)
        saved = None
        if features == "public":
            known = network or _kept_network(out)
            saved = public_network(images, known, seed=seed, device=str(where), reporter=reporter)
        watch = _watch(images, out, features, saved, where)
        _begin(out, facts, saved)
    _warn_of_few(images, reporter)
    with _game_remedy("prior train", training, processes):
        prior = train_prior(
            images.images,
            training=training,
            rng=generator(seed, "prior"),
            progress=reporter.stage("prior"),
            checkpoint=out / _CHECKPOINT,
            device=where,
            monitor=watch,
            processes=processes,
        )
    if processes.main:
        prior.save(out / PRIOR_FILE)
        (out / _CHECKPOINT).unlink(missing_ok=True)
    return out / PRIOR_FILE


def import_prior_stage(file: Path, out: Path) -> tuple[Path, str]:
    """Import published networks as a prior; returns its file and a line on what they are.

    Raises:
        InputError: wrong input; nothing has been written.
    """
    size = file.stat().st_size if file.is_file() else 0
    check_new_folder(out, needed_bytes=2 * size)
    imported = import_published(file)
    with atomic_folder(out) as folder:
        imported.prior.save(folder / PRIOR_FILE)
        write_json(folder / "prior.json", dict(imported.facts))
    channels, side, _ = imported.prior.image_shape
    parameters = sum(p.numel() for p in imported.prior.average.parameters())
    classes = imported.prior.average.architecture.c_dim
    return out / PRIOR_FILE, (
        f"{imported.facts['configuration']} networks of {side}x{side} images with {channels} "
        f"channel(s), {parameters / 1e6:.1f} million parameters in the generator"
        + (f", conditioned on {classes} classes" if classes else "")
    )


def adapt_stage(
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
    """Fine-tune a prior against a target; goes on from a checkpoint in ``out``.

    With several ``processes`` each calls this with the same arguments; the first writes and reports.

    Raises:
        InputError: wrong input.
    """
    reporter = reporter if processes.main else Quiet()
    where = processes.device(device)
    if arm not in ARMS:
        raise ConfigError(f"--arm {arm}: expected one of {', '.join(ARMS)}{nearest(arm, ARMS)}")
    check_watched(features)
    adaptation = from_mapping(Adaptation, {**stage_budget(preset, "adaptation"), **given})
    given_prior = read_prior(prior)
    start = given_prior.prior
    check_adaptable(start, prior)
    channels, size, _ = start.image_shape
    target = _load_for(given_prior, model)
    check_arm(arm, target)
    images = load_folder(
        public, role="--public", channels=channels, labelled=False, size=size,
        progress=reporter.stage("reading"),
    )  # fmt: skip
    facts = {
        "seed": seed,
        "public": images.fingerprint(),
        "arm": arm,
        "guidance-embedding": guidance_embedding,
    }
    if processes.main:
        _check_begun(out, facts)
    saved: SavedClassifier | None = None
    metric: Embedding | None = None
    known = network or _kept_network(out)
    if ARMS[arm].natural_gradient:
        if guidance_embedding == "evaluator":
            raise ConfigError(
                "--guidance-embedding evaluator has seen the private images, which an attacker has "
                "not; use another value"
            )
        if guidance_embedding == "public":
            saved = public_network(images, known, seed=seed, device=str(where), reporter=reporter)
        metric = named_embedding(
            guidance_embedding,
            use="distance",
            role="--guidance-embedding",
            size=size,
            public_network=saved,
            evaluator=None,
            working_size=max(64, size),
        )
    watch = None
    if processes.main:
        if features == "public" and saved is None:
            known = known or _kept_network(prior if prior.is_dir() else prior.parent)
            saved = public_network(images, known, seed=seed, device=str(where), reporter=reporter)
        watch = _watch(images, out, features, saved, where)
        _begin(out, facts, saved)
    _warn_of_few(images, reporter)
    with _game_remedy("adapt", adaptation.training_settings(start.training), processes):
        adapted = adapt(
            start.to(where),
            target.to(where),
            images.images,
            arm=arm,
            adaptation=adaptation,
            training=start.training,
            metric=metric,
            rng=generator(seed, "adaptation"),
            progress=reporter.stage("adaptation"),
            checkpoint=out / _CHECKPOINT,
            monitor=watch,
            processes=processes,
        )
    if processes.main:
        adapted.save(out / PRIOR_FILE)
        (out / _CHECKPOINT).unlink(missing_ok=True)
    if adaptation.pivots > 0:
        reporter.say(describe_pivots(adapted, tuning=adaptation.pivots_tuning))
    return out / PRIOR_FILE


def attack_stage(
    prior: Path,
    out: Path,
    *,
    model: ModelSpec,
    attack: str,
    limit: int | None,
    preset: str,
    seed: int,
    device: str,
    given: dict[str, Any],
    reporter: Reporter,
    processes: Processes = ALONE,
) -> Path:
    """Attack a target with a prior; returns the folder of the reconstructions, by class.

    With several ``processes`` each calls this with the same arguments; the first writes and reports.

    Raises:
        InputError: wrong input; nothing has been written.
    """
    if processes.count > 1 and model.is_service:
        raise ConfigError(
            f"--target {model.spec}: a service is attacked by one process, which keeps to its rate and "
            "goes on where it was stopped; run the command without accelerate launch"
        )
    reporter = reporter if processes.main else Quiet()
    name = attack.rpartition(":")[2]
    # An error of one process alone, such as a file that its machine lacks, is the end for all.
    with processes.together():
        where = processes.device(device)
        made = build(
            {"class": attack, **merge(attack_budget(preset, attack), given)},
            ATTACKS,
            role="--attack",
        )
        if not isinstance(made, Attack):
            raise ConfigError(f"--attack {attack}: has no `access` and `run`")
        given_prior = read_prior(prior)
        if model.is_service:
            plan = OneByOne(out, made, name, seed, model.spec, given_prior.fingerprint)
            return _attack_service(
                given_prior, model, plan, limit=limit, device=where, reporter=reporter
            )
        target = _load_for(given_prior, model).to(where)
        attacked = given_prior.prior.to(where)
        check_fits(made, target, attacked)
        check_new_folder(out, needed_bytes=50_000_000)
        labels = torch.arange(min(limit or target.num_classes, target.num_classes))
        with _remedy("attack", getattr(made, "batch_size", None)):
            part = run_assigned(
                made,
                target,
                attacked,
                labels,
                processes=processes,
                rng=generator(seed, f"attack/{name}"),
                progress=reporter.stage(name),
            )
    found = gather(part, processes)
    if found is None:
        return out / "reconstructions"
    missing = missing_classes(found, labels, target.classes)
    if missing is not None:
        reporter.warn(f"{name}: {missing}")
    with atomic_folder(out) as folder:
        write_reconstructions(folder, "reconstructions", found, classes=target.classes, name=name)
        write_json(folder / "facts.json", {"queries": found.queries})
    reporter.say(f"{name}: {found.queries:,} images sent to the target, {made.access} access")
    return out / "reconstructions"


def _attack_service(
    prior: PriorFile,
    model: ModelSpec,
    plan: OneByOne,
    *,
    limit: int | None,
    device: torch.device,
    reporter: Reporter,
) -> Path:
    """Attack a service class after class; what is finished is kept, and the same call goes on."""
    plan.check()
    target, endpoint = _connect(prior, model, reporter)
    attacked = prior.prior.to(device)
    check_fits(plan.attack, target, attacked)
    labels = torch.arange(min(limit or target.num_classes, target.num_classes))
    with _remedy("attack", getattr(plan.attack, "batch_size", None)):
        sent = plan.run(target, endpoint, attacked, labels, reporter)
    reporter.say(f"{plan.name}: {sent:,} images sent to the target, {plan.attack.access} access")
    return plan.out / "reconstructions"


def _load_for(prior: PriorFile, model: ModelSpec) -> Target:
    """Load the target; a model of any size takes images of the prior's.

    Raises:
        TargetError: wrong in any way, or its class names are not known.
        DataError: the prior's images are colour and the model's are not, or the other way round.
    """
    if model.headers:
        raise ConfigError(
            f"--endpoint-header: is for a service, and --target {model.spec} is none; leave it out"
        )
    channels, size, _ = prior.prior.image_shape
    target = load_target(model, classes=(), size=size, channels=channels)
    check_channels(
        prior.prior,
        prior.file,
        target.image_shape[0],
        f"those that {model.spec} takes",
        "give a prior trained on images like the target's, or name the target as "
        "package.module:factory, a function that returns it behind a layer that converts",
    )
    return target


def _connect(prior: PriorFile, model: ModelSpec, reporter: Reporter) -> tuple[Target, Endpoint]:
    """Return the service that the spec names, sent images of --size, or as large as the prior's.

    Raises:
        TargetError: its class names are missing, or it gives no usable answer.
    """
    if model.classes is None:
        raise TargetError(
            f"--target {model.spec}: give the names of its classes in the order of its "
            "probabilities with --classes FILE"
        )
    if model.mean is not None or model.std is not None:
        raise TargetError(
            f"--target {model.spec}: a service normalises images itself; leave --mean and --std out"
        )
    channels, size, _ = prior.prior.image_shape
    side = model.size or size
    return endpoint_target(
        model.spec,
        classes=read_classes(model.classes),
        image_shape=(channels, side, side),
        headers=read_headers(model.headers),
        warn=reporter.warn,
    )


def public_network(
    images: ImageSet, network: Path | None, *, seed: int, device: str, reporter: Reporter
) -> SavedClassifier:
    """The network that ``public`` means: read from ``network``, or trained on public ``images``."""
    where = pick_device(device)
    if network is not None:
        saved = load_classifier(network)
    else:
        work = working_size(images.size, 64)
        seen = images.resized(size=work, channels=images.channels)
        saved = train_classifier(
            seen if len(seen.classes) > 1 else rotation_task(seen),
            training=Training(),
            image_shape=(images.channels, work, work),
            rng=generator(seed, "public-network"),
            progress=reporter.stage("public-network"),
            device=where,
        ).classifier
    saved.module.to(where)
    return saved


def _warn_of_few(images: ImageSet, reporter: Reporter) -> None:
    few = few_images(len(images))
    if few is not None:
        reporter.warn(few)


def _remedy(stage: str, batch_size: int | None) -> AbstractContextManager[None]:
    """What to lower if a stage runs out of memory; ``batch_size`` is what it is now, if it has one."""
    less = "" if batch_size is None else f", as in --set batch_size={max(1, batch_size // 2)}"
    return memory_remedy(stage, f"lower batch_size{less}, and run the command again")


def _game_remedy(
    stage: str, training: PriorTraining, processes: Processes
) -> AbstractContextManager[None]:
    """What to lower if a training of a prior runs out of memory: a smaller share of the same batch."""
    own = training.batch_size // processes.count
    most = max(1, min(own, training.images_at_once or own) // 2)
    share = max(n for n in range(1, most + 1) if own % n == 0)
    return memory_remedy(
        stage,
        f"lower images_at_once, as in --set images_at_once={share}, and run the command again; it "
        "goes on from its checkpoint",
    )


def _check_begun(out: Path, facts: dict[str, Any]) -> None:
    """See whether a training may begin in ``out``, or go on there, writing nothing.

    Raises:
        RunError: the folder holds something else, or a training with other ``facts``.
    """
    if not (out / _BEGUN).is_file() or (out / PRIOR_FILE).is_file():
        check_new_folder(out, needed_bytes=50_000_000)
        return
    before = json.loads((out / _BEGUN).read_text())
    for name, value in facts.items():
        if before.get(name) != value:
            what = "the public images" if name == "public" else f"--{name}"
            raise RunError(
                f"--out {out}: a training began there and {what} differed; give the same again to "
                "go on, or name another folder"
            )


def _begin(out: Path, facts: dict[str, Any], network: SavedClassifier | None) -> None:
    """Mark ``out`` as a training's, and keep the public network there for what comes after."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / _BEGUN, facts)
    if network is not None and _kept_network(out) is None:
        with atomic_folder(out / _NETWORK) as folder:
            save_classifier(network, folder / FILE_NAME)


def _kept_network(folder: Path) -> Path | None:
    return folder / _NETWORK if (folder / _NETWORK).is_dir() else None


def _watch(
    images: ImageSet, out: Path, features: str, network: SavedClassifier | None, where: torch.device
) -> SampleMonitor:
    """Looks at a training, told in ``out``."""
    embedding = watched_features(features, size=images.size, public_network=network)
    if embedding is None:
        return SampleMonitor(out)
    return SampleMonitor(out, FrechetToPublic(images.images, embedding, where))


def report_again(run: Path) -> Path:
    """Write the report and the model card of a run again from its tables, without pictures.

    Raises:
        RunError: not a run, or it has no tables yet.
    """
    data = load_report_data(run)
    try:
        return write_report(run, replace(data, gallery=()))
    except OSError as error:
        if is_disk_full(error):
            raise
        raise RunError(f"{run}: cannot be written to ({error.strerror})") from None
