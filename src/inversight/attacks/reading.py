"""Images read out of a first layer: the search for signals and the solution of images, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from inversight.attacks.kinks import ImageSolver, Likely, Solution
from inversight.attacks.selectors import SignalSearch
from inversight.attacks.signals import FirstLayer
from inversight.core.progress import Progress, part_of

_PARTS = 4
"""Parts of a round: candidates, and three searches."""
_MIXED = 0.5
"""Most of the second image in a start, which is a mixture of two."""


@dataclass(frozen=True)
class ReadImages:
    """Images that were read out of a first layer, the surest first.

    coordinates: (F, n), in the span. labels: (F,), classes. zeros: (F,), how many neurons certify the image
    beyond those that any image could be given; 0: the signal is known, the image is an estimate.
    """

    coordinates: Tensor
    labels: Tensor
    zeros: Tensor

    def __len__(self) -> int:
        return len(self.coordinates)


class Refit(Protocol):
    """A function that returns candidates (M, n) for what is left of the weights without images that are known.

    round_: number of the round. selectors: (F, n), of the images (F, n). labels: (F,).
    """

    def __call__(
        self, round_: int, selectors: Tensor, images: Tensor, labels: Tensor, progress: Progress
    ) -> Tensor: ...


def read_images(
    layer: FirstLayer, candidates: Tensor, refit: Refit, *, rounds: int, searches: int,
    rng: torch.Generator, progress: Progress,
) -> ReadImages:  # fmt: skip
    """Return the images that can be read out of ``layer``, which has :attr:`FirstLayer.many` neurons.

    candidates: (M, n), images in the coordinates of the span, where the search starts; later rounds have those
    of ``refit``. Each round has ``searches`` starts, and solves images with the selectors known by then.
    """
    search = SignalSearch(layer)
    likely = Likely(candidates)
    solver = ImageSolver(layer, likely, rng)
    known: list[Solution] = []
    images = candidates[:0]
    for done in range(rounds):
        step = partial(part_of, progress, share=1, whole=_PARTS * rounds)
        found = torch.stack([one.image for one in known]) if known else candidates[:0]
        if done:
            selectors = layer.selectors(search.vectors)[: len(known)]
            labels = search.labels[: len(known)]
            candidates = refit(done, selectors, found, labels, step(before=_PARTS * done))
        for part in range(1, _PARTS):
            source = [candidates, images, torch.cat([candidates, images.repeat(3, 1)])][part - 1]
            starts = _mixtures(source if len(source) > 8 else candidates, searches // 3, rng)
            half = starts[::2]
            if len(search):
                half = likely.projected(half, layer.selectors(search.vectors))
            search.search(torch.cat([half, starts[1::2]]), rng)
            counted = f"{len(search)} images found in the weights, {len(known)} of them exactly"
            progress(_PARTS * done + part + 1, _PARTS * rounds, counted)
        images, zeros = _solve(search, solver, layer, known)
        new = [one for one in _surest_first(zeros) if one >= len(known)]
        known += [Solution(images[one], int(zeros[one])) for one in new]
        if new:
            search.settle(new, torch.stack([one.image for one in known]), rng)
        if len(known) >= layer.images:
            break
    images, zeros = _solve(search, solver, layer, known, again=True)
    best = _without_alternatives(search, zeros)
    return ReadImages(images[best], search.labels[best], zeros[best])


def _mixtures(images: Tensor, number: int, rng: torch.Generator) -> Tensor:
    """Return ``number`` images (S, n), each with up to half of another."""
    one, other = torch.randint(len(images), (2, max(2, number)), generator=rng)
    share = _MIXED * torch.rand(len(one), 1, generator=rng, dtype=torch.float64)
    return (1.0 - share) * images[one] + share * images[other]


def _solve(
    search: SignalSearch, solver: ImageSolver, layer: FirstLayer, known: Sequence[Solution],
    *, again: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the images (F, n) of all signals, and how many zeros certify each (F,); 0: an estimate.

    Of the settled signals, which come first, the images are ``known``; with ``again`` those are solved once
    more, with the selectors that are known by now, and kept where no more neurons certify the solution.
    """
    selectors, signals, alike = layer.selectors(search.vectors), search.signals, search.alike
    images = torch.zeros_like(selectors)
    zeros = torch.zeros(len(images), dtype=torch.int64)
    alone = alike.sum(dim=1) == 1
    alone[: len(known)] = True
    for number in range(len(search)):
        others = ~alike[number]
        if number < len(known) and not again:
            found = known[number]
        else:
            found = solver.image(signals[number], selectors[others], alone[others])
            if number < len(known) and found.zeros <= known[number].zeros:
                found = known[number]
        images[number], zeros[number] = found.image, found.zeros
    _drop_repeated(images, zeros, alike, len(known))
    return images, zeros


def _drop_repeated(images: Tensor, zeros: Tensor, alike: Tensor, settled: int) -> None:
    """Set to 0 the zeros of images that another signal has given more surely, or that is settled."""
    order = [*range(settled), *(one for one in _surest_first(zeros) if one >= settled)]
    for place, number in enumerate(order[settled:], settled):
        surer = [one for one in order[:place] if zeros[one] > 0]
        same = torch.cosine_similarity(images[surer], images[number][None], dim=1) > 0.999
        if bool((same | alike[number, surer]).any()):
            zeros[number] = 0


def _surest_first(zeros: Tensor) -> list[int]:
    """Return the numbers of the images that zeros certify."""
    order = zeros.argsort(descending=True, stable=True)
    return [int(one) for one in order if zeros[one] > 0]


def _without_alternatives(search: SignalSearch, zeros: Tensor) -> Tensor:
    """Return the numbers of signals without alternatives of a surer one, the surest first."""
    kept: list[int] = []
    alike = search.alike
    for number in zeros.argsort(descending=True, stable=True).tolist():
        if not bool(alike[number, kept].any()):
            kept.append(number)
    return torch.tensor(kept, dtype=torch.int64)
