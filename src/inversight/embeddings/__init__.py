"""Embeddings: images -> features whose squared distance is the distance."""

from inversight.embeddings.base import (
    Embedding,
    Features,
    Identity,
    Remembering,
    StagedEmbedding,
    embed,
)
from inversight.embeddings.distances import squared_distances
from inversight.embeddings.named import named_embedding
from inversight.embeddings.network import BackboneEmbedding, PooledEmbedding, StageEmbedding
from inversight.embeddings.pairs import Tile, Workspace, image_pairs
from inversight.embeddings.pullback import PullbackMetric

__all__ = [
    "BackboneEmbedding", "Embedding", "Features", "Identity", "PooledEmbedding", "PullbackMetric",
    "Remembering", "StageEmbedding", "StagedEmbedding", "Tile", "Workspace", "embed", "image_pairs",
    "named_embedding", "squared_distances",
]  # fmt: skip
