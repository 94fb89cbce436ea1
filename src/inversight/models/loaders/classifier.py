"""A file or folder that ``inversight train`` wrote."""

from __future__ import annotations

from pathlib import Path

from inversight.models.loaders.base import LoadedModel, read_safetensors
from inversight.models.networks import load_classifier
from inversight.models.spec import ModelSpec


def load_saved(path: Path, model: ModelSpec) -> LoadedModel:
    """Read the classifier with its classes, input size and normalisation.

    Raises:
        TargetError: the file is missing, damaged, or was not written by ``inversight train``.
    """
    if path.is_file():
        read_safetensors(path, model)
    saved = load_classifier(path)
    channels, size, _ = saved.image_shape
    return LoadedModel(saved.module, size, channels, saved.mean, saved.std, saved.classes)
