"""Scores of given reconstructions against private images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from inversight.core.config import from_mapping
from inversight.core.console import Log, Quiet, Reporter
from inversight.core.device import pick_device
from inversight.core.errors import ConfigError, InputError, RunError
from inversight.core.run import Run, check_new_folder, disk_remedy, provenance, read_manifest
from inversight.data import (
    ImageSet,
    check_known_classes,
    check_no_class_missing,
    check_overlap,
    load_folder,
)
from inversight.embeddings import Embedding, named_embedding
from inversight.embeddings.named import Use
from inversight.models.networks import FILE_NAME, SavedClassifier, save_classifier
from inversight.models.target import Target
from inversight.pipeline.context import Context
from inversight.pipeline.evaluation import check_classes, check_pairs, evaluate
from inversight.pipeline.inputs import keep_classes, load_evaluator
from inversight.pipeline.metrics import CONTROL_GAP, ReferenceSet, ScoredSet
from inversight.pipeline.report import report_stage
from inversight.pipeline.result import AuditResult, Threshold, crossed, thresholds
from inversight.pipeline.score_inputs import (
    Images,
    ScoreSettings,
    anchored,
    name_sets,
    path_of,
    read_images,
    sets_by_name,
)
from inversight.pipeline.scored import FILES, read_scored, write_evaluation
from inversight.pipeline.train import PUBLIC_NETWORK, public_network
from inversight.risk import check_rate
from inversight.risk.twins import find_twins
from inversight.settings import DEFAULT_FDR, PairMeasure


@dataclass(frozen=True)
class _Compared:
    """The images of a scoring, of one size: ``sets`` of reconstructions by their names.

    earlier: the private images and the sets of the run that is reused.
    """

    private: ImageSet
    holdout: ImageSet | None
    sets: dict[str, ImageSet]
    earlier: tuple[ReferenceSet, tuple[ScoredSet, ...]] | None

    def relabel(self, order: tuple[str, ...]) -> _Compared:
        """Return all images with their classes in this order."""
        holdout = self.holdout
        return replace(
            self,
            private=self.private.relabel(order, role="--private"),
            holdout=None if holdout is None else holdout.relabel(order, role="--holdout"),
            sets={k: s.relabel(order, role="--reconstructions") for k, s in self.sets.items()},
        )


LEAST_MEMORY = 16 << 20
"""Bytes below which not even a few images of small features fit."""


def publish_scores(run: Run, folder: Path, *, without: str | None = None) -> None:
    """Copy the scores in ``folder`` to the run folder, except the file ``without``."""
    for file in FILES:
        if file != without and (folder / file).is_file():
            run.publish(folder / file)


def score(
    *,
    reconstructions: Images | Sequence[Path | str] | Mapping[str, Images],
    out: Path | str,
    private: Images | None = None,
    holdout: Images | None = None,
    reuse: Path | str | None = None,
    embedding: str | None = None,
    features: str | None = None,
    public: Path | str | None = None,
    network: Path | str | None = None,
    evaluator: str | None = None,
    classes: Path | str | None = None,
    size: int | None = None,
    trust_target: bool = False,
    allow_overlap: bool = False,
    pairs: Sequence[PairMeasure] | None = None,
    fdr: float = DEFAULT_FDR,
    fail_on: str | Sequence[str] | None = None,
    memory: int = 2 << 30,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> AuditResult:
    """Score reconstructions against private images, without an attack.

    Args:
        reconstructions: one or several folders, or images in memory, a mapping giving their names.
        out: the run folder that is written.
        private: the private images; None with ``reuse``.
        holdout: images of the same classes that the target never saw.
        reuse: a finished run: its private images, embeddings and reconstructions are taken over, and
            only the new reconstructions are compared.
        embedding: the distance; default ``lpips-vgg``.
        features: features of coverage, precision, recall and the Frechet distance; default
            ``inception`` for an LPIPS distance, else the embedding.
        public: public images, on which the embedding ``public`` is trained.
        network: a public network that was trained before, instead of ``public``.
        evaluator: independent classifier, named as a target.
        classes: file with the evaluator's class names in the order of its outputs.
        size: size to which all images are brought.
        trust_target: load an evaluator's file although loading it runs code.
        allow_overlap: go on although private images and holdout share images.
        pairs: psnr, ssim, dists: measures of each private image and its nearest reconstruction.
        fdr: accepted share of false alarms among the flagged images.
        fail_on: thresholds on metrics, as in ``"covered>0.2"``.
        memory: bytes that features may take.
        seed: all randomness derives from it.
        device: auto, cpu, cuda, mps.
        reporter: where messages go.

    Raises:
        InputError: wrong input; nothing has been written.
        StageError: scoring failed; it can be resumed.
    """
    if reuse is not None:
        named = dict(
            private=private, holdout=holdout, embedding=embedding, features=features, public=public,
            evaluator=evaluator, classes=classes, network=network, size=size, pairs=pairs,
            allow_overlap=allow_overlap or None,
        )  # fmt: skip
        twice = next((name for name, value in named.items() if value is not None), None)
        if twice is not None:
            raise ConfigError(
                f"--reuse takes --{twice.replace('_', '-')} from the run; leave it out, or score "
                "without --reuse"
            )
        against = ScoreSettings.of_run(Path(reuse))
        against = replace(against, trust_target=against.trust_target or trust_target)
        private, holdout = against.private, against.holdout
    else:
        distance = embedding or "lpips-vgg"
        given = dict(
            private=path_of(private), holdout=path_of(holdout), embedding=distance,
            features=features or ("inception" if distance.startswith("lpips") else distance),
            public=public, network=network, evaluator=evaluator, classes=classes, size=size,
            trust_target=trust_target, allow_overlap=allow_overlap, pairs=pairs or ("psnr",),
        )  # fmt: skip
        against = from_mapping(ScoreSettings, given)
    if private is None:
        raise ConfigError("--private is missing: give the private images, or --reuse RUN")
    return _Scoring(
        against=against, private=private, holdout=holdout, fdr=fdr, memory=memory, seed=seed,
        reconstructions=sets_by_name(reconstructions), reuse=None if reuse is None else Path(reuse),
        limits=thresholds(fail_on), device=pick_device(device), log=Log(reporter or Quiet()),
    ).run(Path(out))  # fmt: skip


def resume_scoring(
    run: Path | str,
    *,
    fail_on: str | Sequence[str] | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> AuditResult:
    """Go on with a scoring that was stopped; its tables are those that it would have had.

    Raises:
        RunError: not a scoring, its images have changed, or they were given in memory.
    """
    out = Path(run)
    manifest = read_manifest(out)
    if "against" not in manifest:
        raise RunError(
            f"--resume {out}: is not a scoring; an audit goes on with inversight audit --resume {out}"
        )
    network = out / "stages" / PUBLIC_NETWORK
    against = from_mapping(
        ScoreSettings, manifest["against"] | ({"network": network} if network.is_dir() else {})
    )
    if against.private is None or None in manifest["reconstructions"].values():
        raise RunError(f"--resume {out}: its images were given in memory; score them again")
    reused = manifest["reused"]
    return _Scoring(
        against=against, private=against.private, holdout=against.holdout,
        **{name: manifest[name] for name in ("fdr", "memory", "seed")},
        reconstructions=list(manifest["reconstructions"].items()),
        reuse=None if reused is None else Path(reused),
        limits=thresholds(fail_on), device=pick_device(device), log=Log(reporter or Quiet()),
    ).run(out, resumed=True)  # fmt: skip


@dataclass(frozen=True)
class _Scoring:
    """A scoring as it was asked for."""

    against: ScoreSettings
    private: Images
    holdout: Images | None
    reconstructions: Sequence[tuple[str, Images]]
    reuse: Path | None
    fdr: float
    memory: int
    seed: int
    limits: tuple[Threshold, ...]
    device: torch.device
    log: Log

    def run(self, out: Path, *, resumed: bool = False) -> AuditResult:
        """Read and check everything, then score it in the run folder ``out``."""
        self._check()
        if not resumed:
            check_new_folder(out, needed_bytes=20_000_000)
        earlier = None
        if self.reuse is not None:
            earlier = read_scored(self.reuse / "stages" / "scores")
        images = self._read(earlier)
        evaluator = load_evaluator(self.against, images.private)
        evaluator = None if evaluator is None else evaluator.to(self.device)
        images = images.relabel(images.private.classes if evaluator is None else evaluator.classes)
        self._check_reused(images)
        network = self._load_network(images.private)
        distance, features = scoring_embeddings(
            self.against.embedding, self.against.features, size=images.private.size,
            network=network, evaluator=evaluator,
        )  # fmt: skip
        manifest = self._manifest(images)
        if resumed:
            before = read_manifest(out)["inputs"]
            if {k: v["fingerprint"] for k, v in before.items()} != {
                k: v["fingerprint"] for k, v in manifest["inputs"].items()
            }:
                raise RunError(
                    f"--resume {out}: the images have changed since the scoring began; start a new one"
                )
        with (
            disk_remedy(str(out), f"continue with inversight score --resume {out}"),
            Run.open(out) if resumed else Run.create(out, manifest) as run,
        ):
            if network is not None:
                run.stage(PUBLIC_NETWORK, lambda f: save_classifier(network, f / FILE_NAME))

            def fill(folder: Path) -> None:
                found = evaluate(
                    **vars(images), distance=distance, features=features, evaluator=evaluator,
                    pairs=self.against.pairs, fdr=self.fdr, memory=self.memory, seed=self.seed,
                    checkpoint=folder, device=self.device, progress=self.log.stage("scores"),
                )  # fmt: skip
                # As an audit's signals do, name the first of equal private images.
                names = images.private.ids
                first = dict(zip(names, find_twins(images.private).names(names), strict=True))
                twins = pd.array([first[name] for name in found.samples["id"]], dtype="string")
                found = replace(found, samples=found.samples.assign(twins=twins))
                write_evaluation(folder, found)

            publish_scores(run, run.stage("scores", fill))
            data = report_stage(out)
            run.record(finished=True)
        metrics = {key: dict(value) for key, value in data.metrics.items()}
        return AuditResult(
            out, metrics, data.samples, tuple(self.log.warnings), crossed(self.limits, metrics)
        )

    def _check(self) -> None:
        """Refuse settings that are wrong whatever the images are."""
        if self.memory < LEAST_MEMORY:
            raise ConfigError(
                f"--memory {self.memory}: expected bytes, at least {LEAST_MEMORY} (16 MiB)"
            )
        check_pairs(self.against.pairs)
        check_rate(self.fdr)
        for limit in self.limits:
            if limit.metric == CONTROL_GAP:
                raise ConfigError(
                    f"--fail-on {limit}: {limit.metric} is of audits alone; a score has none"
                )
            limit.check(holdout=self.holdout is not None, embedding=self.against.embedding)

    def _read(self, earlier: tuple[ReferenceSet, tuple[ScoredSet, ...]] | None) -> _Compared:
        """Read and check all images; no set has a name of one of the run that is reused."""
        against = self.against
        private = read_images(
            self.private, role="--private", size=against.size, limit=against.limit,
            progress=self.log.stage("private"), warn=self.log.warn,
        )  # fmt: skip
        size, channels = against.size or private.size, private.channels

        def read(images: Images, role: str) -> ImageSet:
            return read_images(images, role=role, size=size, channels=channels, warn=self.log.warn)

        sets = name_sets(
            [name for name, _ in self.reconstructions],
            [read(images, "--reconstructions") for _, images in self.reconstructions],
            [] if earlier is None else [s.name for s in earlier[1]],
        )
        for one in sets.values():
            check_classes(private, one)
        holdout: ImageSet | None = None
        if self.holdout is not None:
            role = "--holdout" if against.holdout is None else f"--holdout {against.holdout}"
            holdout = read(self.holdout, "--holdout")
            if against.limit is not None:
                holdout = keep_classes(holdout, private.classes)
            check_known_classes(holdout, private.classes, role)
            attacked = {s.classes[y] for s in sets.values() for y in s.labels.unique().tolist()}
            check_no_class_missing(holdout, attacked, role)
            check_overlap(private, holdout, ("--private", "--holdout"), allow=against.allow_overlap)
        return _Compared(private, holdout, sets, earlier)

    def _check_reused(self, images: _Compared) -> None:
        """Refuse images that the run that is reused was not scored against, and names that it has."""
        run, private = self.reuse, images.private
        if run is None or images.earlier is None:
            return
        before = read_manifest(run)["inputs"]
        for role, one in (("private", private), ("holdout", images.holdout)):
            found = None if one is None else one.fingerprint()
            if before.get(role, {}).get("fingerprint") != found:
                raise RunError(
                    f"--reuse {run}: the {role} images are not the ones it was scored against; score "
                    "all folders together instead"
                )
        reference, scored = images.earlier
        if reference.classes != private.classes or sorted(private.ids) != list(reference.ids):
            raise RunError(
                f"--reuse {run}: its classes come in another order "
                f"({', '.join(reference.classes[:3])} ...); score all folders together instead"
            )
        known = {i for s in scored for i in s.ids}
        twice = next((i for s in images.sets.values() for i in s.ids if i in known), None)
        if twice is not None:
            raise ConfigError(
                f"--reconstructions: {twice} has the name of an image in {run}; rename its folder"
            )

    def _load_network(self, private: ImageSet) -> SavedClassifier | None:
        """Return the public network if an embedding needs it: one trained before, or trained now."""
        against = self.against
        if "public" not in (against.embedding, against.features):
            return None
        images = private
        if against.network is None:
            if against.public is None:
                raise InputError(
                    "--embedding public needs --public DIR, to train the network on, or --network "
                    "FILE from a run (RUN/stages/public-network)"
                )
            images = load_folder(
                against.public, role="--public", size=against.size or private.size,
                channels=private.channels, labelled=False, warn=self.log.warn,
            )  # fmt: skip
        return public_network(images, against.network, Context(self.seed, self.device, self.log))

    def _manifest(self, images: _Compared) -> dict[str, Any]:
        """Return what run.json says of the scoring."""
        sets, private, holdout = images.sets, images.private, images.holdout
        count = sum(len(s) for s in sets.values())
        count += sum(len(s.ids) for s in images.earlier[1]) if images.earlier else 0
        paths = [path_of(given) for _, given in self.reconstructions]
        named = dict(zip(sets, paths, strict=True))
        inputs = [("private", self.against.private, private)]
        inputs += [(f"reconstructions {name}", named[name], one) for name, one in sets.items()]
        if holdout is not None:
            inputs.append(("holdout", self.against.holdout, holdout))
        return {
            **provenance(),
            "seed": self.seed,
            "memory": self.memory,
            "fdr": self.fdr,
            "embedding": self.against.embedding,
            "features": self.against.features,
            "images": "none",
            "title": "Scores of given reconstructions",
            "split": f"private: {len(private)} images; reconstructions: {count} images, given",
            "against": anchored(self.against),
            "reconstructions": {
                name: None if path is None else str(path.absolute()) for name, path in named.items()
            },
            "reused": None if self.reuse is None else str(self.reuse.absolute()),
            "warnings": self.log.warnings,
            "inputs": {
                role: {
                    "path": "in memory" if path is None else str(path),
                    "images": len(one),
                    "fingerprint": one.fingerprint(),
                }
                for role, path, one in inputs
            },
        }


def scoring_embeddings(
    embedding: str,
    features: str,
    *,
    size: int,
    network: SavedClassifier | None,
    evaluator: Target | None,
) -> tuple[Embedding, Embedding]:
    """Return the distance and the features with which images of ``size`` are scored.

    Raises:
        InputError: no such embedding, or what it needs is not there.
    """

    def named(name: str, use: Use, role: str) -> Embedding:
        return named_embedding(
            name, use=use, role=role, size=size, public_network=network, evaluator=evaluator
        )

    return named(embedding, "distance", "--embedding"), named(features, "features", "--features")
