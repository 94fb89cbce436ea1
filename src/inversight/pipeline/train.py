"""Training of classifiers: the target, the evaluator and the public network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inversight.core.config import from_mapping
from inversight.core.device import memory_remedy
from inversight.core.errors import InputError
from inversight.core.imaging import Size
from inversight.core.run import atomic_folder, check_new_folder, write_json
from inversight.data import ImageSet, load_images, working_size
from inversight.models.networks import FILE_NAME, SavedClassifier, load_classifier, save_classifier
from inversight.models.training import TrainedClassifier, rotation_task, train_classifier
from inversight.pipeline.context import Context
from inversight.settings import Training

PUBLIC_NETWORK = "public-network"
"""Name of the stage, and of the folder, of the network that the embedding ``public`` uses."""
_PUBLIC_SIZE = 64
"""Largest size, in pixels, at which single commands train a public network."""


def train_network(
    images: ImageSet, training: Training, *, name: str, image_shape: tuple[int, int, int],
    context: Context,
) -> TrainedClassifier:  # fmt: skip
    """Train a classifier on ``images``, which are resized to ``image_shape`` (C, S, S).

    ``name`` is target, evaluator or public-network; random numbers derive from it and the seed. A
    public network without at least two classes learns to recognise rotations instead.
    """
    if name == PUBLIC_NETWORK and len(images.classes) < 2:
        images = rotation_task(images)
    return train_classifier(
        images, training=training, image_shape=image_shape, rng=context.rng(name),
        progress=context.reporter.stage(name), device=context.device,
    )  # fmt: skip


def network_stage(
    folder: Path, images: ImageSet, training: Training, *, name: str,
    image_shape: tuple[int, int, int], context: Context,
) -> TrainedClassifier:  # fmt: skip
    """Write a classifier (:func:`train_network`) and facts about its training to ``folder``."""
    trained = train_network(images, training, name=name, image_shape=image_shape, context=context)
    save_classifier(trained.classifier, folder / FILE_NAME)
    facts = ("epochs", "train_accuracy", "validation_accuracy")
    write_json(folder / "facts.json", {fact: getattr(trained, fact) for fact in facts})
    return trained


def load_network(folder: Path, device: torch.device) -> SavedClassifier:
    """Return the classifier that :func:`network_stage` left in ``folder``, on ``device``."""
    saved = load_classifier(folder)
    saved.module.to(device)
    return saved


def public_network(images: ImageSet, folder: Path | None, context: Context) -> SavedClassifier:
    """Return the public network in ``folder``, or one trained on ``images`` with default settings."""
    if folder is not None:
        return load_network(folder, context.device)
    size = working_size(images.size, _PUBLIC_SIZE)
    images = images.resized(size=size, channels=images.channels)
    shape = (images.channels, size, size)
    trained = train_network(
        images, Training(), name=PUBLIC_NETWORK, image_shape=shape, context=context
    )
    trained.classifier.module.to(context.device)
    return trained.classifier


def train(
    private: Path, out: Path, *, size: Size | None, given: dict[str, Any], context: Context
) -> tuple[Path, str]:
    """Train a classifier on a folder; return its file and a line on its accuracy.

    ``given`` are settings of the training.

    Raises:
        InputError: wrong input; nothing has been written.
    """
    training = from_mapping(Training, given)
    check_new_folder(out, needed_bytes=50_000_000)
    reporter = context.reporter
    images = load_images(
        private, role="--private", size=size, progress=reporter.stage("reading"), warn=reporter.warn
    )
    if len(images.classes) < 2:
        raise InputError(f"--private {private}: has one class; a classifier needs at least two")
    less = max(1, training.batch_size // 2)
    remedy = f"lower batch_size, as in --set batch_size={less}, and run the command again"
    shape = (images.channels, images.size, images.size)
    with memory_remedy("train", remedy), atomic_folder(out) as folder:
        trained = network_stage(
            folder, images, training, name="target", image_shape=shape, context=context
        )
    line = f"{trained.epochs} epochs, accuracy {trained.train_accuracy:.1%} on training images"
    if trained.validation_accuracy is not None:
        line += f", {trained.validation_accuracy:.1%} on the validation split"
    return out / FILE_NAME, line
