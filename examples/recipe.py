"""A recipe: how a classifier is trained, so that an audit can train more like it.

Name it beside the model that it trained, from the folder that this file is in:

    inversight audit --private P --holdout H --public Q --target my.module:load --recipe recipe:train

The audit calls ``train`` for each shadow model, with a random half of the private and holdout images.
docs/recipes.md says what it checks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

EPOCHS = 15


def train(
    dataset: Dataset[tuple[Tensor, int]], *, classes: tuple[str, ...], seed: int, device: torch.device
) -> nn.Module:  # fmt: skip
    """Train a small convolutional network.

    Args:
        dataset: items are an image, float32 (C, S, S) in [0, 1], and its label.
        classes: names of the classes; a label is a position in them.
        seed: decides the initial weights and the order of the batches.
        device: where to train.

    Returns:
        A module that maps images (N, C, S, S) to logits (N, K), one for each class.
    """
    torch.manual_seed(seed)
    channels = dataset[0][0].shape[0]
    # Normalisation is a layer here. If your model takes normalised images instead, normalise them
    # in this function and give the audit the same numbers as --mean and --std.
    model = nn.Sequential(
        nn.BatchNorm2d(channels, affine=False),
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4, len(classes)),  # no softmax: attacks need logits
    ).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batches = DataLoader(dataset, batch_size=25, shuffle=True)
    for _ in range(EPOCHS):
        for images, labels in batches:
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    # A new module at each call, trained on this dataset alone: no checkpoint of an earlier call, no
    # early stopping on images that another call was trained on.
    return model
