"""The prior: trained on public images, or imported from published networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inversight import priors
from inversight.core.config import IMPORT_PATH, check_name, from_mapping
from inversight.core.console import Reporter
from inversight.core.device import memory_remedy
from inversight.core.imaging import Size, to_float
from inversight.core.processes import Processes
from inversight.core.run import atomic_folder, check_new_folder, check_resumable, write_json
from inversight.data import ImageSet, check_size
from inversight.embeddings import Embedding, named_embedding
from inversight.models.networks import FILE_NAME, SavedClassifier, save_classifier
from inversight.pipeline.context import Context
from inversight.pipeline.inputs import read_folder
from inversight.pipeline.train import PUBLIC_NETWORK, public_network
from inversight.priors import SampleMonitor, StylePrior
from inversight.priors.prior_file import PRIOR_FILE, few_images
from inversight.priors.stylegan2_import import import_published
from inversight.scores import frechet_distance
from inversight.settings import PriorTraining, resolve_prior_training

CHECKPOINT = "checkpoint.safetensors"
BEGUN = "training.json"
"""What a training in this folder began with; the same may go on there."""
WATCHED = ("public", "inception", "pixel", "none")
"""Values of ``--features`` where a prior is trained, beside package.module:Class."""


def prior_stage(
    folder: Path, images: Tensor, training: PriorTraining, *, monitor: SampleMonitor | None,
    context: Context,
) -> StylePrior:  # fmt: skip
    """Train a style-based prior and write it to ``folder``, going on from a checkpoint there.

    Args:
        images: uint8 (N, C, S, S), the public images at the prior's size.
        monitor: what is measured during the training, in the main process.
    """
    prior = priors.train_prior(
        images, training=training, rng=context.rng("prior"), device=context.device,
        progress=context.reporter.stage("prior"), checkpoint=folder / CHECKPOINT, monitor=monitor,
        processes=context.processes,
    )  # fmt: skip
    if context.processes.main:
        write_prior(folder, prior)
    return prior


def write_prior(folder: Path, prior: StylePrior) -> None:
    """Write ``prior`` to ``folder`` in place of the checkpoint of its training."""
    prior.save(folder / PRIOR_FILE)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def train_prior(
    public: Path, out: Path, *, size: Size | None, features: str, network: Path | None,
    given: dict[str, Any], context: Context,
) -> Path:  # fmt: skip
    """Train a prior on a folder of public images, going on from a checkpoint in ``out``.

    ``given`` are settings of the training.

    Raises:
        InputError: wrong input.
    """
    processes = context.processes
    from_mapping(PriorTraining, given)  # so that a wrong setting is found before images are read
    check_watched(features)
    images = read_folder(public, "--public", context.reporter, size=size, labelled=False)
    check_size(images.size, given=False)
    training = resolve_prior_training(given, size=images.size, gpus=processes.count)
    monitor = None
    if processes.main:
        facts = {"--seed": context.seed, "the public images": images.fingerprint()}
        check_training(out, facts)
        saved = None
        if features == "public":
            saved = public_network(images, network or kept_network(out), context)
        monitor = monitor_of(
            out, images.images, features=features, network=saved, device=context.device
        )
        begin_training(out, facts, saved)
    warn_of_few(images, context.reporter)
    with training_remedy("prior train", training, processes):
        prior_stage(out, images.images, training, monitor=monitor, context=context)
    return out / PRIOR_FILE


def check_training(out: Path, facts: dict[str, Any]) -> None:
    """Check that a training with ``facts`` may begin in ``out`` or go on there, writing nothing.

    Raises:
        RunError: the folder holds something else, or a training with other facts.
    """
    check_resumable(out, facts, marker=BEGUN, product=PRIOR_FILE, what="a training")


def begin_training(out: Path, facts: dict[str, Any], network: SavedClassifier | None) -> None:
    """Mark ``out`` as the folder of a training, and keep the public network there for later commands."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / BEGUN, facts)
    if network is not None and kept_network(out) is None:
        with atomic_folder(out / PUBLIC_NETWORK) as folder:
            save_classifier(network, folder / FILE_NAME)


def kept_network(folder: Path) -> Path | None:
    """Return the folder of the public network that a training kept in ``folder``, if it did."""
    return folder / PUBLIC_NETWORK if (folder / PUBLIC_NETWORK).is_dir() else None


def warn_of_few(images: ImageSet, reporter: Reporter) -> None:
    """Warn if there are too few public images to train or adapt a prior on."""
    few = few_images(len(images))
    if few is not None:
        reporter.warn(few)


def training_remedy(
    stage: str, training: PriorTraining, processes: Processes
) -> AbstractContextManager[None]:
    """Return a context that names a smaller part of the batch if a training runs out of memory."""
    own = training.batch_size // processes.count
    most = max(1, min(own, training.images_at_once or own) // 2)
    share = max(n for n in range(1, most + 1) if own % n == 0)
    return memory_remedy(
        stage,
        f"lower images_at_once, as in --set images_at_once={share}, and run the command again; it "
        "goes on from its checkpoint",
    )


def import_prior(file: Path, out: Path) -> tuple[Path, str]:
    """Import published networks as a prior; return its file and a line that describes them.

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


@dataclass(frozen=True)
class FrechetToPublic:
    """Frechet distance of images from the public images.

    Called with batches of images (B, C, S, S) in [0, 1]. Values compare only between equal numbers of
    images. NaN if a feature is not finite.

    public: uint8 (N, C, S, S), of which at most ``most``, evenly spread, are used.
    """

    public: Tensor
    embedding: Embedding
    device: torch.device
    most: int = 2000

    def __call__(self, images: Iterator[Tensor]) -> float:
        found = self._features(images)
        if not bool(found.isfinite().all()):
            return math.nan
        pair = (
            (features, torch.zeros(len(features), dtype=torch.int64))
            for features in (self._public_features, found)
        )
        value = frechet_distance(*pair).summary["frechet"].value
        return math.nan if value is None else value

    @cached_property
    def _public_features(self) -> Tensor:
        count = min(len(self.public), self.most)
        chosen = self.public[torch.linspace(0, len(self.public) - 1, count).round().long()]
        return self._features(to_float(part).to(self.device) for part in chosen.split(64))

    @torch.no_grad()
    def _features(self, images: Iterator[Tensor]) -> Tensor:
        rows = [torch.cat([b.flatten(1) for b in self.embedding(x)], dim=1).cpu() for x in images]
        return torch.cat(rows).float()


def monitor_of(
    folder: Path, images: Tensor, *, features: str, network: SavedClassifier | None,
    device: torch.device,
) -> SampleMonitor:  # fmt: skip
    """Return a monitor that writes to ``folder``, for a training on ``images``, uint8 (N, C, S, S).

    Raises:
        InputError: features that cannot be had.
    """
    distance = distance_to_public(images, features=features, network=network, device=device)
    return SampleMonitor(folder, distance)


def distance_to_public(
    images: Tensor, *, features: str, network: SavedClassifier | None, device: torch.device
) -> FrechetToPublic | None:
    """Return the distance from public ``images``, uint8 (N, C, S, S), by ``features``; None for "none".

    Pixels are compared at 64 or less, which keeps the covariance small.

    Raises:
        InputError: features that cannot be had.
    """
    if features == "none":
        return None
    embedding = named_embedding(
        features, use="features", role="--features", size=min(images.shape[-1], 64),
        public_network=network,
    )  # fmt: skip
    return FrechetToPublic(images, embedding, device)


def check_watched(name: str) -> None:
    """Check that ``name`` can be given to ``--features`` where a prior is trained.

    Raises:
        ConfigError: with the known names. An embedding like LPIPS is too wide to have a covariance.
    """
    check_name("--features", name, (*WATCHED, IMPORT_PATH))
