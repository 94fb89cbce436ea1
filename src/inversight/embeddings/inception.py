"""``inception``: the 2048 pool features of the published FID network, by torch-fidelity."""

from __future__ import annotations

import io

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from inversight.core.imaging import fit, to_uint8
from inversight.embeddings.weights import load_weights


class Inception:
    """One block (N, 2048): Inception-v3 pool features (Heusel et al. 2017).

    Images are rounded to 8 bits and resized to 299 as torch-fidelity does; not differentiable.

    Raises:
        WeightsError: the published weights are missing.
    """

    name = "inception"

    def __init__(self, *, state: dict[str, Tensor] | None = None) -> None:
        # The constructor reads its weights as a file; the global random state is left alone.
        file = io.BytesIO()
        torch.save(load_weights("inception") if state is None else state, file)
        file.seek(0)
        with torch.random.fork_rng(devices=[]):
            self._network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=file
            )
        self._network.eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (images.shape[2], images.shape[3])
        pixels = to_uint8(fit(images, size=size, channels=3))
        return tuple(self._network.to(images.device)(pixels))
