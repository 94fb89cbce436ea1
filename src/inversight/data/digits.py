"""scikit-learn's handwritten digits, the data of the demonstration."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from inversight.core.seeding import generator
from inversight.data.images import ImageSet


@dataclass(frozen=True)
class Digits:
    """The embedded demonstration data and what its split is."""

    private: ImageSet
    holdout: ImageSet
    public: ImageSet
    description: str


def load_digits(*, seed: int, per_class: int = 10, public_images: int = 800) -> Digits:
    """scikit-learn's handwritten digits (8x8 grey, 10 classes) in three disjoint parts."""
    from sklearn import datasets

    raw = datasets.load_digits()
    pixels = torch.from_numpy(np.round(raw.images * (255.0 / 16.0)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(raw.target.astype(np.int64))
    everything = ImageSet(
        images=pixels,
        labels=labels,
        ids=tuple(f"{int(y)}/digit-{i:04d}.png" for i, y in enumerate(labels)),
        classes=tuple(str(d) for d in range(10)),
        hashes=tuple(hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in pixels),
    )
    first: dict[str, int] = {}
    for i, digest in enumerate(everything.hashes):
        first.setdefault(digest, i)
    unique = torch.tensor(sorted(first.values()))
    order = unique[torch.randperm(len(unique), generator=generator(seed, "digits"))]
    private: list[int] = []
    holdout: list[int] = []
    rest: list[int] = []
    taken: dict[int, int] = {}
    for i in order.tolist():
        label = int(labels[i])
        n = taken.get(label, 0)
        taken[label] = n + 1
        (private if n < per_class else holdout if n < 2 * per_class else rest).append(i)

    def part(rows: list[int]) -> ImageSet:
        return everything.select(torch.tensor(sorted(rows, key=everything.ids.__getitem__)))

    public = part(rest[:public_images])
    return Digits(
        private=part(private),
        holdout=part(holdout),
        public=public,
        description=(
            f"scikit-learn's handwritten digits, 8x8: {per_class} images of each of the ten digits "
            f"are private (the target is trained on them), {per_class} others of each are the "
            f"holdout (never shown to the target), and {len(public)} of the rest are public (the "
            "attacker has them). The attacker has other handwriting of the same digits, so a "
            "reconstruction can be near a private image by resemblance alone; the holdout, which "
            "cannot leak, shows how near that is."
        ),
    )
