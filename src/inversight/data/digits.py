"""scikit-learn's handwritten digits, the data of the demonstration."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from inversight.core.seeding import generator
from inversight.data.images import ImageSet, image_set


@dataclass(frozen=True)
class Digits:
    """The data of the demonstration; ``description`` says how it was split."""

    private: ImageSet
    holdout: ImageSet
    public: ImageSet
    description: str


def load_digits(*, seed: int, per_class: int = 10, public_images: int = 800) -> Digits:
    """Return scikit-learn's handwritten digits (8x8 grey, 10 classes) in three disjoint parts.

    ``per_class`` images of each digit are private and as many the holdout; of the rest at most
    ``public_images`` are public. Of equal images the first counts.
    """
    from sklearn import datasets

    raw = datasets.load_digits()
    pixels = torch.from_numpy(np.round(raw.images * (255.0 / 16.0)).astype(np.uint8))[:, None]
    names = [str(digit) for digit in raw.target]
    everything = image_set(
        pixels,
        labels=names,
        ids=[f"{name}/digit-{i:04d}.png" for i, name in enumerate(names)],
        classes=[str(d) for d in range(10)],
    )
    first = {digest: i for i, digest in reversed([*enumerate(everything.hashes)])}
    unique = torch.tensor(sorted(first.values()))
    order = unique[torch.randperm(len(unique), generator=generator(seed, "digits"))]
    parts: list[list[int]] = [[], [], []]
    taken: Counter[str] = Counter()
    for i in order.tolist():
        parts[min(taken[names[i]] // per_class, 2)].append(i)
        taken[names[i]] += 1
    parts[2] = parts[2][:public_images]
    private, holdout, public = (
        everything.select(torch.tensor(sorted(rows, key=everything.ids.__getitem__)))
        for rows in parts
    )
    return Digits(
        private, holdout, public,
        description=(
            f"scikit-learn's handwritten digits, 8x8: {per_class} images of each of the ten digits "
            f"are private (the target is trained on them), {per_class} others of each are the "
            f"holdout (never shown to the target), and {len(public)} of the rest are public (the "
            "attacker has them). The attacker has other handwriting of the same digits, so a "
            "reconstruction can be near a private image by resemblance alone; the holdout, which "
            "cannot leak, shows how near that is."
        ),
    )  # fmt: skip
