"""``inception``: the 2048 pool features of the published FID network, by torch-fidelity."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

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
        self._network = empty_network()
        self._network.load_state_dict(load_weights("inception") if state is None else state)
        self._network.eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (images.shape[2], images.shape[3])
        pixels = to_uint8(fit(images, size=size, channels=3))
        return tuple(self._network.to(images.device)(pixels))


class _Unfilled(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """torch-fidelity's network whose constructor loads no weights; they are loaded later."""

    _constructed = False

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._constructed:
            return None
        return super().load_state_dict(state, *args, **kwargs)


def empty_network() -> torch.nn.Module:
    """Return the network with random weights; the global random state is left alone."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        # An empty file satisfies the constructor, so that nothing is downloaded.
        nothing = Path(folder) / "nothing.pth"
        torch.save({}, nothing)
        network = _Unfilled(
            name="inception-v3-compat",
            features_list=["2048"],
            feature_extractor_weights_path=str(nothing),
        )
    network._constructed = True
    module: torch.nn.Module = network
    return module
