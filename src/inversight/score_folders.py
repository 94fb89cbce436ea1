"""``inversight score``: any folders of reconstructions against private images, whoever made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from inversight.audit import AuditResult
from inversight.console import Reporter
from inversight.data import ImageSet, check_known_classes, load_folder
from inversight.device import pick_device
from inversight.embeddings import named_embedding
from inversight.errors import InputError
from inversight.evaluation import check_classes, evaluate
from inversight.report import load_report_data, render
from inversight.run import Run, write_json, write_text
from inversight.stages import public_network
from inversight.target import load_target


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
    classes: Path | None,
    trust: bool,
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
    where = pick_device(device)
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
        held = load_folder(holdout, role="--holdout", size=size or own.size, channels=own.channels)
        check_known_classes(held, own.classes, f"--holdout {holdout}")
        held = held.relabel(own.classes, role="--holdout")
    judge = None
    if evaluator is not None:
        judge = load_target(
            evaluator,
            classes=own.classes,
            class_order=classes,
            size=own.size,
            channels=own.channels,
            mean=None,
            std=None,
            trust=trust,
            role="--evaluator",
        ).to(where)
        if judge.classes != own.classes:
            own, made = (s.relabel(judge.classes, role="--evaluator") for s in (own, made))
            held = held.relabel(judge.classes, role="--evaluator") if held is not None else None
    saved = None
    if "public" in (embedding, features):
        if network is None and public is None:
            raise InputError(
                "--embedding public needs --public DIR, to train the network on, or --network FILE "
                "from a run (RUN/stages/public-network)"
            )
        seen = own
        if network is None and public is not None:
            seen = load_folder(
                public,
                role="--public",
                size=size or own.size,
                channels=own.channels,
                labelled=False,
            )
        saved = public_network(seen, network, seed=seed, device=device, reporter=reporter)
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
