"""Single stages for the command line: train, prior train, score, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from inversight.audit import AuditResult, _device
from inversight.config import from_mapping
from inversight.console import Reporter
from inversight.data import ImageSet, check_size, load_folder, working_size
from inversight.embeddings import named_embedding
from inversight.errors import InputError, RunError
from inversight.evaluation import check_classes, evaluate
from inversight.networks import FILE_NAME, load_classifier, save_classifier
from inversight.priors import PriorTraining, train_prior
from inversight.report import load_report_data, render
from inversight.run import Run, write_json, write_text
from inversight.seeding import generator
from inversight.target import load_target
from inversight.training import Training, rotation_task, train_classifier


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
    Run.check_new(out, needed_bytes=50_000_000)
    images = load_folder(private, role="--private", size=size, progress=reporter.stage("reading"))
    if len(images.classes) < 2:
        raise InputError(f"--private {private}: has one class; a classifier needs at least two")
    trained = train_classifier(
        images,
        training=training,
        image_shape=(images.channels, images.size, images.size),
        rng=generator(seed, "target"),
        progress=reporter.stage("target"),
        device=_device(device),
    )
    out.mkdir(parents=True, exist_ok=True)
    save_classifier(trained.classifier, out / FILE_NAME)
    facts = {
        "epochs": trained.epochs,
        "train_accuracy": trained.train_accuracy,
        "validation_accuracy": trained.validation_accuracy,
    }
    write_json(out / "facts.json", facts)
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
    seed: int,
    device: str,
    given: dict[str, Any],
    reporter: Reporter,
) -> Path:
    """Train a prior on a folder of public images; goes on from a checkpoint in ``out``.

    Raises:
        InputError: wrong input.
    """
    training = from_mapping(PriorTraining, given)
    images = load_folder(
        public, role="--public", size=size, labelled=False, progress=reporter.stage("reading")
    )
    check_size(images.size, given=False)
    checkpoint = out / "checkpoint.safetensors"
    if not checkpoint.is_file():
        Run.check_new(out, needed_bytes=50_000_000)
    out.mkdir(parents=True, exist_ok=True)
    prior = train_prior(
        images.images,
        training=training,
        rng=generator(seed, "prior"),
        progress=reporter.stage("prior"),
        checkpoint=checkpoint,
        device=_device(device),
    )
    prior.save(out / "prior.safetensors")
    checkpoint.unlink(missing_ok=True)
    return out / "prior.safetensors"


def score_folders(
    *,
    private: Path,
    reconstructions: Sequence[Path],
    holdout: Path | None,
    out: Path,
    embedding: str,
    features: str,
    public: Path | None,
    evaluator: str | None,
    network: Path | None,
    size: int | None,
    memory: int,
    seed: int,
    device: str,
    reporter: Reporter,
) -> AuditResult:
    """Score folders of reconstructions against private images; writes a run folder without an attack.

    Raises:
        InputError: wrong input; nothing has been written.
    """
    where = _device(device)
    Run.check_new(out, needed_bytes=20_000_000)
    own = load_folder(private, role="--private", size=size, progress=reporter.stage("private"))
    made = _union(
        [
            load_folder(f, role="--reconstructions", size=size or own.size, channels=own.channels)
            for f in reconstructions
        ],
        reconstructions,
    )
    check_classes(own, made)
    made = made.relabel(own.classes, role="--reconstructions")
    held: ImageSet | None = None
    if holdout is not None:
        held = load_folder(
            holdout, role="--holdout", size=size or own.size, channels=own.channels
        ).relabel(own.classes, role="--holdout")
    judge = None
    if evaluator is not None:
        judge = load_target(
            evaluator,
            classes=own.classes,
            class_order=None,
            size=own.size,
            channels=own.channels,
            mean=None,
            std=None,
            trust=False,
            role="--evaluator",
        ).to(where)
        if judge.classes != own.classes:
            own, made = (s.relabel(judge.classes, role="--evaluator") for s in (own, made))
            held = held.relabel(judge.classes, role="--evaluator") if held is not None else None
    saved = None
    if "public" in (embedding, features):
        if network is not None:
            saved = load_classifier(network)
        elif public is not None:
            seen = load_folder(
                public,
                role="--public",
                size=size or own.size,
                channels=own.channels,
                labelled=False,
            )
            work = working_size(seen.size, 64)
            seen = seen.resized(size=work, channels=own.channels)
            saved = train_classifier(
                seen if len(seen.classes) > 1 else rotation_task(seen),
                training=Training(),
                image_shape=(own.channels, work, work),
                rng=generator(seed, "public-network"),
                progress=reporter.stage("public-network"),
                device=where,
            ).classifier
        else:
            raise InputError(
                "--embedding public needs --public DIR, to train the network on, or --network FILE "
                "from a run (RUN/stages/public-network)"
            )
        saved.module.to(where)
    parts: dict[str, Any] = {"size": own.size, "public_network": saved, "evaluator": judge}
    distance = named_embedding(embedding, use="distance", role="--embedding", **parts)
    vectors = named_embedding(features, use="features", role="--features", **parts)
    found = evaluate(
        own,
        made,
        distance=distance,
        features=vectors,
        evaluator=judge,
        holdout=held,
        memory=memory,
        seed=seed,
        device=where,
        progress=reporter.stage("scores"),
    )
    run = Run.create(
        out,
        {
            "seed": seed,
            "embedding": embedding,
            "features": features,
            "images": "none",
            "title": "Scores of given reconstructions",
            "split": f"private: {len(own)} images; reconstructions: {len(made)} images, given",
            "inputs": {
                name: {"path": str(path), "images": len(s), "fingerprint": s.fingerprint()}
                for name, path, s in (
                    ("private", private, own),
                    ("reconstructions", ", ".join(map(str, reconstructions)), made),
                    ("holdout", holdout, held),
                )
                if s is not None
            },
        },
    )
    try:
        write_json(out / "metrics.json", found.metrics)
        found.samples.to_parquet(out / "samples.parquet", index=False)
        if found.holdout is not None:
            found.holdout.to_parquet(out / "holdout.parquet", index=False)
        write_text(out / "report.html", render(load_report_data(out)))
        run.record(finished=True)
    finally:
        run.close()
    return AuditResult(out, found.metrics, found.samples, ())


def report_again(run: Path) -> Path:
    """Write the report of a run again from its tables, without pictures.

    Raises:
        RunError: not a run, or it has no tables yet.
    """
    data = load_report_data(run)
    path = run / "report.html"
    try:
        write_text(path, render(replace(data, gallery=())))
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def read_samples(run: Path) -> pd.DataFrame:
    """samples.parquet of a run, one row for each private image."""
    return pd.read_parquet(run / "samples.parquet")


def _union(sets: Sequence[ImageSet], folders: Sequence[Path]) -> ImageSet:
    """Several folders' reconstructions as one set; ids begin with the folder's name if they are many."""
    if len(sets) == 1:
        return sets[0]
    classes = tuple(sorted({c for s in sets for c in s.classes}))
    relabelled = [s.relabel(classes, role="--reconstructions") for s in sets]
    names = [f.name for f in folders]
    if len(set(names)) < len(names):
        names = [f"{i + 1}-{name}" for i, name in enumerate(names)]
    return ImageSet(
        images=torch.cat([s.images for s in relabelled]),
        labels=torch.cat([s.labels for s in relabelled]),
        ids=tuple(f"{n}/{i}" for n, s in zip(names, relabelled, strict=True) for i in s.ids),
        classes=classes,
        hashes=tuple(h for s in relabelled for h in s.hashes),
    )
