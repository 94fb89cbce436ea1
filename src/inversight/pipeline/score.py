"""Scores of given reconstructions against private images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from inversight.core.config import from_mapping
from inversight.core.console import Log, Quiet, Reporter
from inversight.core.device import pick_device
from inversight.core.errors import ConfigError, InputError, RunError
from inversight.core.imaging import Size
from inversight.core.run import Run, check_new_folder, disk_remedy, provenance, read_manifest
from inversight.data import ImageSet, check_holdout_classes, check_overlap
from inversight.embeddings import Embedding, named_embedding
from inversight.models.networks import FILE_NAME, SavedClassifier, save_classifier
from inversight.models.target import Target
from inversight.pipeline.context import Context
from inversight.pipeline.evaluation import check_classes, check_pairs, evaluate
from inversight.pipeline.inputs import (
    keep_classes,
    load_evaluator,
    read_folder,
    warn_of_near_copies,
)
from inversight.pipeline.metrics import Scored
from inversight.pipeline.plan import check_unchanged
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
from inversight.pipeline.signals import join
from inversight.pipeline.train import PUBLIC_NETWORK, public_network
from inversight.risk.twins import find_twins
from inversight.settings import DEFAULT_FDR, PairMeasure

_SETTINGS = [one.name for one in fields(ScoreSettings)]
_OF_EACH = ("trust_target", "fdr", "memory", "seed")
"""Settings that are given for each scoring, and not taken from the run that is reused."""


def publish_scores(run: Run, folder: Path, *, without: Collection[str] = ()) -> None:
    """Copy the scores in ``folder`` to the run folder, except the files ``without``."""
    for file in FILES:
        if file not in without and (folder / file).is_file():
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
    size: Size | None = None,
    trust_target: bool | None = None,
    allow_overlap: bool | None = None,
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
        public: public images, on which the embedding ``public`` is trained. With a holdout they improve
            the tests against it (:func:`inversight.risk.covariates.public_covariates`).
        network: a public network that was trained before, instead of ``public``.
        evaluator: independent classifier, named as a target.
        classes: file with the evaluator's class names in the order of its outputs.
        size: to which all images are brought, see :data:`inversight.core.imaging.Size`.
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
    given = {k: v for k, v in locals().items() if v is not None and k in _SETTINGS}
    if reuse is not None:
        twice = next((name for name in given if name not in _OF_EACH), None)
        if twice is not None:
            raise ConfigError(
                f"--reuse takes --{twice.replace('_', '-')} from the run; leave it out, or score "
                "without --reuse"
            )
        settings = ScoreSettings.of_run(Path(reuse), given)
        private, holdout = settings.private, settings.holdout
    else:
        distance = given.setdefault("embedding", "lpips-vgg")
        given.setdefault("features", "inception" if distance.startswith("lpips") else distance)
        given |= {"private": path_of(private), "holdout": path_of(holdout)}
        settings = from_mapping(ScoreSettings, given, where="--")
    if private is None:
        raise ConfigError("--private is missing: give the private images, or --reuse RUN")
    return _Scoring(
        settings, private, holdout, sets_by_name(reconstructions),
        reuse=None if reuse is None else Path(reuse), limits=thresholds(fail_on),
        device=pick_device(device), log=Log(reporter or Quiet()),
    ).run(Path(out))  # fmt: skip


def resume_scoring(
    run: Path | str,
    *,
    fail_on: str | Sequence[str] | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> AuditResult:
    """Continue a stopped scoring; the result equals that of an uninterrupted one.

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
    settings = from_mapping(
        ScoreSettings, manifest["against"] | ({"network": network} if network.is_dir() else {})
    )
    sets, reused = manifest["reconstructions"], manifest["reused"]
    if settings.private is None or None in sets.values():
        raise RunError(f"--resume {out}: its images were given in memory; score them again")
    return _Scoring(
        settings, settings.private, settings.holdout, list(sets.items()),
        reuse=None if reused is None else Path(reused), limits=thresholds(fail_on),
        device=pick_device(device), log=Log(reporter or Quiet()),
    ).run(out, resumed=True)  # fmt: skip


@dataclass(frozen=True)
class _Compared:
    """The images of a scoring, of one size and with classes in one order, and the evaluator.

    sets: the sets of reconstructions by their names.
    """

    private: ImageSet
    holdout: ImageSet | None
    public: ImageSet | None
    sets: dict[str, ImageSet]
    evaluator: Target | None


@dataclass(frozen=True)
class _Scoring:
    """A scoring, ready to run. reuse: the run whose sets of reconstructions count as well."""

    settings: ScoreSettings
    private: Images
    holdout: Images | None
    reconstructions: Sequence[tuple[str, Images]]
    reuse: Path | None
    limits: tuple[Threshold, ...]
    device: torch.device
    log: Log

    def run(self, out: Path, *, resumed: bool = False) -> AuditResult:
        """Read and check everything, then score it in the run folder ``out``."""
        settings = self.settings
        check_pairs(settings.pairs)
        for limit in self.limits:
            limit.check(
                holdout=self.holdout is not None, embedding=settings.embedding, control=False
            )
        if not resumed:
            check_new_folder(out, needed_bytes=20_000_000)
        earlier = None if self.reuse is None else read_scored(self.reuse / "stages" / "scores")
        images = self._read(earlier)
        network = self._load_network(images)
        distance, features = scoring_embeddings(
            settings.embedding, settings.features, size=images.private.size, network=network,
            evaluator=images.evaluator,
        )  # fmt: skip
        manifest = self._manifest(images, earlier)
        if resumed:
            check_unchanged(manifest, read_manifest(out), out)
        with (
            disk_remedy(str(out), f"continue with inversight score --resume {out}"),
            Run.open(out) if resumed else Run.create(out, manifest) as run,
        ):
            if network is not None:
                run.stage(PUBLIC_NETWORK, lambda f: save_classifier(network, f / FILE_NAME))

            def fill(folder: Path) -> None:
                found = evaluate(
                    **vars(images), earlier=earlier, distance=distance, features=features,
                    pairs=settings.pairs, fdr=settings.fdr, memory=settings.memory,
                    seed=settings.seed, checkpoint=folder, device=self.device,
                    progress=self.log.stage("scores"),
                )  # fmt: skip
                names = images.private.ids
                # As an audit's signals do, name the first of equal private images.
                twins = pd.array(find_twins(images.private).names(names), dtype="string")
                samples = join(found.samples, pd.DataFrame({"id": names, "twins": twins}))
                write_evaluation(folder, replace(found, samples=samples))

            publish_scores(run, run.stage("scores", fill))
            data = report_stage(out)
            run.record(finished=True)
        metrics = {key: dict(value) for key, value in data.metrics.items()}
        return AuditResult(
            out, metrics, data.samples, tuple(self.log.warnings), crossed(self.limits, metrics)
        )

    def _read(self, earlier: Scored | None) -> _Compared:
        """Read and check all images and the evaluator; ``earlier`` is of the run that is reused."""
        settings = self.settings
        private = read_images(
            self.private, "--private", self.log, size=settings.size, limit=settings.limit
        )
        read = partial(read_images, reporter=self.log, channels=private.channels)
        sets = name_sets(
            [name for name, _ in self.reconstructions],
            [
                # Those of audits are squares.
                read(images, "--reconstructions", size=private.size)
                for _, images in self.reconstructions
            ],
            [] if earlier is None else [s.name for s in earlier[1]],
        )
        for one in sets.values():
            check_classes(private, one)
        holdout: ImageSet | None = None
        if self.holdout is not None:
            holdout = read(self.holdout, "--holdout", size=settings.size or private.size)
            if settings.limit is not None:
                holdout = keep_classes(holdout, private.classes)
            attacked = {s.classes[y] for s in sets.values() for y in s.labels.unique().tolist()}
            check_holdout_classes(holdout, private.classes, "--holdout", needed=attacked)
            allow = settings.allow_overlap
            check_overlap(private, holdout, ("--private", "--holdout"), allow=allow)
            warn_of_near_copies({"--private": private, "--holdout": holdout}, self.log)
        evaluator = load_evaluator(settings, private, self.log)
        order = private.classes if evaluator is None else evaluator.classes
        public: ImageSet | None = None
        if settings.public is not None and (
            self._trains_network or (holdout is not None and earlier is None)
        ):
            public = read_folder(
                settings.public, "--public", self.log, size=settings.size or private.size,
                channels=private.channels, labelled=False,
            )  # fmt: skip
        images = _Compared(
            private.relabel(order, role="--private"),
            None if holdout is None else holdout.relabel(order, role="--holdout"),
            public,
            {name: one.relabel(order, role="--reconstructions") for name, one in sets.items()},
            None if evaluator is None else evaluator.to(self.device),
        )
        if self.reuse is not None and earlier is not None:
            self._check_reused(self.reuse, earlier, images)
        return images

    def _check_reused(self, run: Path, earlier: Scored, images: _Compared) -> None:
        """Refuse images that ``run`` was not scored against, and names that it has."""
        check_unchanged({"inputs": self._real(images)}, read_manifest(run), run)
        reference, scored = earlier
        if reference.classes != images.private.classes:
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

    @property
    def _needs_network(self) -> bool:
        """Whether an embedding is the public network's."""
        return "public" in (self.settings.embedding, self.settings.features)

    @property
    def _trains_network(self) -> bool:
        """Whether a public network is to be trained."""
        return self._needs_network and self.settings.network is None

    def _load_network(self, images: _Compared) -> SavedClassifier | None:
        """Return the public network if an embedding needs it: one trained before, or trained now."""
        if not self._needs_network:
            return None
        trained_on = images.private
        if self._trains_network:
            if images.public is None:
                raise InputError(
                    "--embedding public needs --public DIR, to train the network on, or --network "
                    "FILE from a run (RUN/stages/public-network)"
                )
            trained_on = images.public
        context = Context(self.settings.seed, self.device, self.log)
        return public_network(trained_on, self.settings.network, context)

    def _manifest(self, images: _Compared, earlier: Scored | None) -> dict[str, Any]:
        """Return what run.json says of the scoring."""
        settings = self.settings
        count = sum(map(len, images.sets.values()))
        count += 0 if earlier is None else sum(len(s.ids) for s in earlier[1])
        paths = {
            name: path_of(given)
            for name, (_, given) in zip(images.sets, self.reconstructions, strict=True)
        }
        return {
            **provenance(),
            **{name: getattr(settings, name) for name in ("seed", "embedding", "features")},
            "images": "none",
            "title": "Scores of given reconstructions",
            "split": f"private: {len(images.private)} images; reconstructions: {count} images, given",
            "against": anchored(settings),
            "reconstructions": {
                name: None if path is None else str(path.absolute()) for name, path in paths.items()
            },
            "reused": None if self.reuse is None else str(self.reuse.absolute()),
            "warnings": self.log.warnings,
            "inputs": self._real(images)
            | {f"reconstructions {k}": _facts(one, paths[k]) for k, one in images.sets.items()},
        }

    def _real(self, images: _Compared) -> dict[str, Any]:
        """Return what run.json says of private images and holdout."""
        found = {"private": _facts(images.private, self.settings.private)}
        if images.holdout is not None:
            found["holdout"] = _facts(images.holdout, self.settings.holdout)
        return found


def _facts(images: ImageSet, path: Path | None) -> dict[str, Any]:
    return {
        "path": str(path or "in memory"),
        "images": len(images),
        "fingerprint": images.fingerprint(),
    }


def scoring_embeddings(
    embedding: str,
    features: str,
    *,
    size: int,
    network: SavedClassifier | None,
    evaluator: Target | None,
    target: Target | None = None,
) -> tuple[Embedding, Embedding]:
    """Return the distance and the features with which images of ``size`` are scored.

    Raises:
        InputError: no such embedding, or what it needs is not there.
    """
    named = partial(
        named_embedding, size=size, public_network=network, evaluator=evaluator, target=target
    )
    return (
        named(embedding, use="distance", role="--embedding"),
        named(features, use="features", role="--features"),
    )
