"""A file or folder that ``inversight train`` wrote."""

from __future__ import annotations

from pathlib import Path

from inversight.models.loaders.base import LoadedModel
from inversight.models.loaders.weights import read_parts
from inversight.models.networks import load_classifier
from inversight.models.spec import ModelSpec


def load_saved(path: Path, model: ModelSpec) -> LoadedModel:
    """Read the classifier with its classes, input size and normalisation.

    Raises:
        TargetError: the file is missing, damaged, or was not written by ``inversight train``.
    """
    if path.is_file():
        read_parts(path, model)  # says what a pickle with this suffix is
    saved = load_classifier(path)
    channels, height, width = saved.image_shape
    return LoadedModel(
        saved.module, (height, width), channels, saved.mean, saved.std, saved.classes
    )
