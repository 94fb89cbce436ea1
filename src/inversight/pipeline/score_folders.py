"""``inversight score``: any folders of reconstructions against private images, whoever made them."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from inversight.core.console import Reporter
from inversight.core.device import pick_device
from inversight.core.errors import ConfigError, InputError, RunError
from inversight.core.run import Run, check_new_folder, disk_remedy, read_manifest
from inversight.data import (
    ImageSet,
    check_known_classes,
    check_no_class_missing,
    check_overlap,
    load_folder,
)
from inversight.embeddings import named_embedding
from inversight.models.loading import load_target
from inversight.models.networks import FILE_NAME, SavedClassifier, save_classifier
from inversight.models.spec import ModelSpec, absolute_spec
from inversight.pipeline import AuditResult
from inversight.pipeline.evaluation import check_classes, check_pairs, evaluate
from inversight.pipeline.gate import exceeded, gates
from inversight.pipeline.metrics import CONTROL_GAP, ReferenceSet, ScoredSet
from inversight.pipeline.outputs import write_report
from inversight.pipeline.scored import FILES, read_scored, write_evaluation
from inversight.pipeline.stages import public_network
from inversight.report import load_report_data
from inversight.risk import check_rate
from inversight.risk.twins import find_twins
from inversight.settings import DEFAULT_FDR, PairMeasure

LEAST_MEMORY = 16 << 20
"""Bytes below which not even a few images of small features fit."""


@dataclass(frozen=True)
class Against:
    """What reconstructions are scored against, and how: what a run must share to be added to."""

    private: Path
    embedding: str
    features: str
    holdout: Path | None = None
    public: Path | None = None
    network: Path | None = None
    evaluator: str | None = None
    classes: Path | None = None
    size: int | None = None
    trust: bool = False
    pairs: tuple[PairMeasure, ...] = ("psnr",)
    allow_overlap: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain values, paths absolute."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            found[name] = str(value.absolute()) if isinstance(value, Path) else value
        if self.evaluator is not None:
            found["evaluator"] = absolute_spec(self.evaluator)
        return {**found, "pairs": list(self.pairs)}

    @classmethod
    def of_run(cls, run: Path) -> Against:
        """What the scores of ``run``, an audit or a scoring, were taken against.

        Raises:
            RunError: not a run, or one that cannot be added to.
        """
        manifest = read_manifest(run)
        if not manifest.get("finished"):
            raise RunError(
                f"--reuse {run}: the run is not finished; continue it with --resume {run}"
            )
        given = manifest.get("against") or manifest.get("given") or {}
        if given.get("hash_ids"):
            raise RunError(
                f"--reuse {run}: was written with --hash-ids, so that its images cannot be told; "
                "score all folders together instead"
            )
        if given.get("private") is None:
            raise RunError(
                f"--reuse {run}: is the audit of the embedded digits, which are in no folder; "
                "reuse a run on folders"
            )

        trained = {name: run / "stages" / name for name in ("public-network", "evaluator")}
        network = trained["public-network"]
        evaluator = given.get("evaluator")
        if evaluator is None and trained["evaluator"].is_dir():
            evaluator = str(trained["evaluator"])
        known = {**given, "trust": given.get("trust", given.get("trust_target", False))}
        known["evaluator"] = evaluator
        if network.is_dir():
            known["network"] = str(network)
        return cls.from_json(known)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Against:
        """From what :meth:`as_json` gave; other names in it are not read."""

        def path(name: str) -> Path | None:
            return None if given.get(name) is None else Path(given[name])

        return cls(
            private=Path(given["private"]),
            embedding=given["embedding"],
            features=given["features"],
            holdout=path("holdout"),
            public=path("public"),
            network=path("network"),
            evaluator=given.get("evaluator"),
            classes=path("classes"),
            size=given.get("size"),
            trust=bool(given.get("trust", False)),
            pairs=tuple(given.get("pairs", ("psnr",))),
            allow_overlap=bool(given.get("allow_overlap", False)),
        )


def score_folders(
    against: Against,
    reconstructions: Sequence[Path],
    *,
    out: Path,
    reuse: Path | None = None,
    memory: int,
    seed: int,
    device: str,
    reporter: Reporter,
    fdr: float = DEFAULT_FDR,
    fail_on: Sequence[str] = (),
    resume: bool = False,
) -> AuditResult:
    """Score folders of reconstructions against private images; writes a run folder without an attack.

    With ``reuse``, a run against the same images, its reconstructions count too, and only the new
    ones are compared. ``resume`` goes on with what an earlier call left in ``out``.

    Raises:
        InputError: wrong input; nothing has been written.
    """
    where = pick_device(device)
    if memory < LEAST_MEMORY:
        raise ConfigError(f"--memory {memory}: expected bytes, at least {LEAST_MEMORY} (16 MiB)")
    check_pairs(against.pairs)
    check_rate(fdr)
    for gate in (thresholds := gates(fail_on)):
        if gate.metric == CONTROL_GAP:
            raise ConfigError(
                f"--fail-on {gate}: {gate.metric} is of audits alone; a score has none"
            )
        gate.check(holdout=against.holdout is not None, embedding=against.embedding)
    if not resume:
        check_new_folder(out, needed_bytes=20_000_000)
    size = against.size
    own = load_folder(
        against.private, role="--private", size=size, progress=reporter.stage("private")
    )
    earlier = None
    if reuse is not None:
        _check_same(reuse, "private", own)
        earlier = read_scored(reuse / "stages" / "scores")
    sets = _named_sets(
        reconstructions,
        [
            load_folder(f, role="--reconstructions", size=size or own.size, channels=own.channels)
            for f in reconstructions
        ],
        [s.name for s in earlier[1]] if earlier else [],
    )
    for made in sets.values():
        check_classes(own, made)
    held: ImageSet | None = None
    if against.holdout is not None:
        held = load_folder(
            against.holdout, role="--holdout", size=size or own.size, channels=own.channels
        )
        check_known_classes(held, own.classes, f"--holdout {against.holdout}")
        made_of = {s.classes[y] for s in sets.values() for y in s.labels.unique().tolist()}
        check_no_class_missing(held, made_of, f"--holdout {against.holdout}")
        check_overlap(own, held, ("--private", "--holdout"), allow=against.allow_overlap)
    if reuse is not None:
        _check_same(reuse, "holdout", held)
    judge = None
    order = own.classes
    if against.evaluator is not None:
        model = ModelSpec(
            against.evaluator, classes=against.classes, trust=against.trust, role="--evaluator"
        )
        judge = load_target(model, classes=own.classes, size=own.size, channels=own.channels).to(
            where
        )
        order = judge.classes
    own = own.relabel(order, role="--private")
    held = held.relabel(order, role="--holdout") if held is not None else None
    sets = {name: s.relabel(order, role="--reconstructions") for name, s in sets.items()}
    if earlier is not None:
        _check_names(earlier, own, sets, reuse)
    saved = _network(against, own, seed=seed, device=device, reporter=reporter)
    parts: dict[str, Any] = {"size": own.size, "public_network": saved, "evaluator": judge}
    distance = named_embedding(against.embedding, use="distance", role="--embedding", **parts)
    vectors = named_embedding(against.features, use="features", role="--features", **parts)
    before = sum(len(s.ids) for s in earlier[1]) if earlier else 0
    made_images = before + sum(len(s) for s in sets.values())
    inputs = {
        name: {"path": str(path), "images": len(s), "fingerprint": s.fingerprint()}
        for name, path, s in (
            ("private", against.private, own),
            *((f"reconstructions {n}", n, s) for n, s in sets.items()),
            ("holdout", against.holdout, held),
        )
        if s is not None
    }
    if resume:
        began = read_manifest(out).get("inputs") or {}
        if {k: v["fingerprint"] for k, v in began.items()} != {
            k: v["fingerprint"] for k, v in inputs.items()
        }:
            raise RunError(
                f"--resume {out}: the images have changed since the scoring began; start a new one"
            )
        run = Run.open(out)
    else:
        facts = {
            "version": importlib.metadata.version("inversight"),
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "seed": seed,
            "memory": memory,
            "fdr": fdr,
            "embedding": against.embedding,
            "features": against.features,
            "images": "none",
            "title": "Scores of given reconstructions",
            "split": f"private: {len(own)} images; reconstructions: {made_images} images, given",
            "against": against.as_json(),
            "reconstructions": [str(f.absolute()) for f in reconstructions],
            "reused": None if reuse is None else str(reuse.absolute()),
            "inputs": inputs,
        }
        run = Run.create(out, facts)

    def fill(folder: Path) -> None:
        found = evaluate(
            own,
            sets,
            distance=distance,
            features=vectors,
            evaluator=judge,
            holdout=held,
            memory=memory,
            seed=seed,
            pairs=against.pairs,
            fdr=fdr,
            earlier=earlier,
            checkpoint=folder,
            device=where,
            progress=reporter.stage("scores"),
        )
        twins = dict(zip(own.ids, find_twins(own).names(own.ids), strict=True))
        names = pd.array([twins[name] for name in found.samples["id"]], dtype="string")
        found = replace(found, samples=found.samples.assign(twins=names))
        write_evaluation(folder, found)

    with disk_remedy(str(out), f"continue with inversight score --resume {out}"), run:
        if saved is not None:
            run.stage("public-network", lambda f: save_classifier(saved, f / FILE_NAME))
        folder = run.stage("scores", fill)
        for file in FILES:
            if (folder / file).is_file():
                run.publish(folder / file)
        data = load_report_data(out)
        write_report(out, data)
        run.record(finished=True)
    metrics = {key: dict(value) for key, value in data.metrics.items()}
    return AuditResult(out, metrics, data.samples, (), exceeded(thresholds, metrics))


def resume_scoring(
    out: Path, *, device: str, reporter: Reporter, fail_on: Sequence[str] = ()
) -> AuditResult:
    """Go on with a scoring that was stopped; it ends with the tables it would have had.

    Raises:
        RunError: not a scoring, or its images have changed.
    """
    manifest = read_manifest(out)
    if "against" not in manifest:
        raise RunError(
            f"--resume {out}: is not a scoring; an audit goes on with inversight audit --resume {out}"
        )
    reused = manifest["reused"]
    against = Against.from_json(manifest["against"])
    trained = out / "stages" / "public-network"
    if trained.is_dir():
        against = replace(against, network=trained)
    return score_folders(
        against,
        [Path(f) for f in manifest["reconstructions"]],
        out=out,
        reuse=None if reused is None else Path(reused),
        memory=manifest["memory"],
        seed=manifest["seed"],
        fdr=manifest["fdr"],
        device=device,
        reporter=reporter,
        fail_on=fail_on,
        resume=True,
    )


def _network(
    against: Against, own: ImageSet, *, seed: int, device: str, reporter: Reporter
) -> SavedClassifier | None:
    """What ``public`` means here: a network that was trained, or is trained now."""
    if "public" not in (against.embedding, against.features):
        return None
    if against.network is None and against.public is None:
        raise InputError(
            "--embedding public needs --public DIR, to train the network on, or --network FILE "
            "from a run (RUN/stages/public-network)"
        )
    seen = own
    if against.network is None and against.public is not None:
        seen = load_folder(
            against.public,
            role="--public",
            size=against.size or own.size,
            channels=own.channels,
            labelled=False,
        )
    return public_network(seen, against.network, seed=seed, device=device, reporter=reporter)


def _named_sets(
    folders: Sequence[Path], sets: Sequence[ImageSet], taken: Sequence[str]
) -> dict[str, ImageSet]:
    """Sets by their folders' names; ids begin with them where there is more than one set."""
    names = [f.absolute().name for f in folders]
    plain, start = names, len(taken)
    while len(set(names)) < len(names) or set(names) & set(taken):
        start += 1
        names = [f"{start + i}-{name}" for i, name in enumerate(plain)]
    if len(sets) + len(taken) == 1:
        return {names[0]: sets[0]}
    return {
        name: replace(s, ids=tuple(f"{name}/{i}" for i in s.ids))
        for name, s in zip(names, sets, strict=True)
    }


def _check_same(run: Path, role: str, images: ImageSet | None) -> None:
    before = (read_manifest(run).get("inputs") or {}).get(role, {}).get("fingerprint")
    if before != (None if images is None else images.fingerprint()):
        raise RunError(
            f"--reuse {run}: the {role} images are not the ones it was scored against; score all "
            "folders together instead"
        )


def _check_names(
    earlier: tuple[ReferenceSet, tuple[ScoredSet, ...]],
    own: ImageSet,
    sets: dict[str, ImageSet],
    reuse: Path | None,
) -> None:
    reference, before = earlier
    if reference.classes != own.classes or sorted(own.ids) != list(reference.ids):
        raise RunError(
            f"--reuse {reuse}: its classes come in another order ({', '.join(reference.classes[:3])}"
            " ...); score all folders together instead"
        )
    known = {i for s in before for i in s.ids}
    twice = next((i for s in sets.values() for i in s.ids if i in known), None)
    if twice is not None:
        raise ConfigError(
            f"--reconstructions: {twice} has the name of an image in {reuse}; rename its folder"
        )
