"""Embeddings by the names that ``--embedding``, ``--features`` and ``--guidance-embedding`` take."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from inversight.core.config import IMPORT_PATH, build, check_name
from inversight.core.errors import ConfigError
from inversight.embeddings.base import Embedding
from inversight.embeddings.network import BackboneEmbedding, PooledEmbedding, StageEmbedding
from inversight.embeddings.pixel import Pixel
from inversight.embeddings.weights import folder
from inversight.models.networks import SavedClassifier
from inversight.models.target import Target, target_of
from inversight.settings import EMBEDDINGS

Use = Literal["distance", "features"]


def named_embedding(
    name: str, *, use: Use, role: str, size: int, public_network: SavedClassifier | None = None,
    evaluator: Target | None = None, target: Target | None = None, working_size: int | None = None,
) -> Embedding:  # fmt: skip
    """Return the embedding called ``name``.

    Args:
        use: ``public`` gives its stages' maps as a distance, its penultimate layer as features.
        size: the private images' size, at which ``pixel`` compares.
        working_size: a smaller LPIPS size, for guidance.

    Raises:
        ConfigError: no such name, or what it needs is not there.
        WeightsError: published weights are missing.
    """
    check_name(role, name, (*EMBEDDINGS, IMPORT_PATH))
    if name == "pixel":
        return Pixel((size, size))
    if name in ("lpips-vgg", "lpips-alex", "lpips-squeeze"):
        return _published(name, working_size, folder())
    if name == "inception":
        return _published(name, None, folder())
    if name == "public":
        if public_network is None:
            raise ConfigError(f"{role} public: needs --public, to train the network on")
        if use == "features":
            return PooledEmbedding("public", target_of(public_network, "public network"))
        return StageEmbedding("public", public_network)
    if name == "evaluator":
        if evaluator is None:
            raise ConfigError(f"{role} evaluator: needs --evaluator")
        return PooledEmbedding("evaluator", evaluator)
    if name == "backbone":
        if target is None or target.frozen_until is None:
            raise ConfigError(
                f"{role} backbone: needs an audit of a given --target whose backbone was frozen; name its last "
                "layer with --frozen-until"
            )
        return BackboneEmbedding("backbone", target)
    embedding = build(name, {}, role=role)
    if not isinstance(embedding, Embedding):
        raise ConfigError(
            f"{role} {name}: expected an embedding: a `name` and a call from images (N, C, H, W) in "
            f"[0, 1] to a tuple of feature blocks; found {type(embedding).__name__}"
        )
    return embedding


@cache
def _published(name: str, working_size: int | None, weights: Path) -> Embedding:
    """Return a published network, which a process loads once. weights: the folder it is read from."""
    # Imported on demand: their libraries take seconds to import.
    if name == "inception":
        from inversight.embeddings.inception import Inception

        return Inception()
    from inversight.embeddings.lpips import Lpips

    net: Literal["vgg", "alex", "squeeze"] = name.removeprefix("lpips-")  # type: ignore[assignment]
    return Lpips(net) if working_size is None else Lpips(net, size=working_size, smooth=True)
