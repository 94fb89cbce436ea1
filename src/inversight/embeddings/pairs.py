"""Distances of all pairs of two image sets in bounded memory, at the speed of the network.

Both sets go through the network stage by stage: at each stage the features of some left images are held
in memory, those of the others are compared with them batch by batch, and only the input of the next
stage is kept. Distances are matrix products in float32, summed in float64. A reference image's features
are subtracted first to keep cancelling terms small; small distances are recomputed by differences.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from inversight.core.errors import ConfigError, StageError
from inversight.core.imaging import to_float
from inversight.embeddings.base import Embedding, StagedEmbedding
from inversight.embeddings.distances import (
    exact_products,
    part_norms,
    squared_distances,
    total_norms,
    wide_distances,
)

_NARROW = 1 << 16
"""Features without stages of up to this many values are compared in float64, at little cost."""

_PAD = 32
"""Unused values between the features of two images: rows that start a power of two apart compete for
the same cache lines."""

_BYTES_PER_PAIR = 40
"""Float64 temporaries of one distance."""

Images = Tensor | Sequence[Tensor]
"""Images (N, C, H, W), or several such sets one after another, each of its own size."""

_Part = tuple[bool, slice, slice, Tensor]
"""(are both sides left, distinct left images, distinct images of the other side, distances)"""


@dataclass(frozen=True)
class Tile:
    """Distances (a, b) float64 on the CPU, of rows ``left`` (a,) and ``right`` (b,), int64.

    Rows ascend within a tile; identical images have bitwise identical distances. ``within``: both are
    rows of the left images.
    """

    left: Tensor
    right: Tensor
    distances: Tensor
    within: bool = False


class Workspace:
    """A buffer for repeated use, since allocating fresh memory takes longer than filling it.

    It grows to the largest request; on a CPU only the pages that were used take memory.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._flat = torch.empty(0, device=self.device)
        self._sizes: list[tuple[_Staged, torch.Size, list[int], list[int]]] = []

    @exact_products()
    def sizes(self, embedding: _Staged, image: Tensor) -> tuple[list[int], list[int]]:
        """Return how many values one image has at each stage: of its block, and of the stage's input.

        Inputs are 0 for the first stage, and a 0 follows the last. Measured once for each shape.
        """
        for known, shape, widths, states in self._sizes:
            if known == embedding and shape == image.shape:
                return widths, states
        widths, states = [], [0]
        state: Tensor | None = embedding.enter(
            to_float(torch.zeros_like(image)[None].to(self.device))
        )
        while state is not None:
            state, maps = embedding.advance(len(widths), state)
            widths.append(maps.numel())
            states.append(0 if state is None else state.numel())
        self._sizes.append((embedding, image.shape, widths, states))
        return widths, states

    def reserve(self, values: int) -> Tensor:
        """Return at least that many uninitialised float32 values; overwrites earlier reservations."""
        if self._flat.numel() < values:
            self._flat = torch.empty(0, device=self.device)  # not both at once
            self._flat = torch.empty(values, device=self.device)
        return self._flat


def image_pairs(
    embedding: Embedding, left: Images, right: Images, *, memory: int, within: int = 0,
    workspace: Workspace | None = None, names: Sequence[Sequence[str]] | None = None,
    seen: Callable[[int], None] = lambda images: None,
) -> Iterator[Tile]:  # fmt: skip
    """Yield the distances of all pairs of left and right images, tile by tile.

    Every pair is in exactly one tile. Images are uint8, or floats in [0, 1]. Each image goes through the
    network once if ``memory`` suffices for the states of all images between two stages and the features
    of all left images at one stage; otherwise as few times as possible.

    Args:
        memory: bytes of features and of states between stages, beside the network. At least one image
            of either side is in memory, whatever the value.
        within: number of left images, from the first, whose pairs with each other are yielded too, in both
            directions.
        workspace: buffers to use again, for calls on many classes, and the embedding's device;
            default: the CPU.
        names: names of the left and the right images in messages.
        seen: called with the number of images that went through the network since the last call.

    Raises:
        ConfigError: ``memory`` is not positive.
        StageError: the embedding returned a NaN or an infinity.
    """
    if memory <= 0:
        raise ConfigError(f"memory: expected a positive number of bytes, found {memory}")
    sides = _Side(left), _Side(right)
    if len(sides[0]) == 0 or len(sides[1]) + within == 0:
        return
    work = workspace or Workspace()
    tiles = _Pairs(embedding, work, seen).tiles(*sides, within, memory)
    for own, a, b, distances in tiles:
        other = sides[0] if own else sides[1]
        if not bool(distances.isfinite().all()):
            raise StageError(_not_finite(embedding, sides, names, work.device))
        rows, columns = sides[0].rows_of(a), other.rows_of(b)
        distances = distances.index_select(0, sides[0].inverse[rows] - a.start)
        distances = distances.index_select(1, other.inverse[columns] - b.start)
        yield Tile(rows, columns, distances, own)
        if own and b.start >= a.stop:
            yield Tile(columns, rows, distances.T, own)


class _Side:
    """The distinct images of one side, in the order of first appearance.

    first: row of each. inverse: (number of rows,) int64, the distinct image of each row.
    """

    def __init__(self, images: Images) -> None:
        parts = [images] if isinstance(images, Tensor) else images
        self.images = [image for part in parts for image in part]
        contents = (image.detach().cpu().contiguous().numpy().tobytes() for image in self.images)
        keys = [hashlib.blake2b(content).digest() for content in contents]
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        number = {key: i for i, key in enumerate(first)}
        self.first = list(first.values())
        self.inverse = torch.tensor([number[key] for key in keys], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.first)

    def distinct(self, part: slice) -> list[Tensor]:
        """Return the distinct images in ``part``."""
        return [self.images[row] for row in self.first[part]]

    def rows_of(self, part: slice) -> Tensor:
        """Return all rows, ascending, whose image is one of the distinct ones in ``part``."""
        inside = (self.inverse >= part.start) & (self.inverse < part.stop)
        rows: Tensor = inside.nonzero().squeeze(1)
        return rows


@dataclass(frozen=True)
class _OneStage:
    """Any embedding as a staged one: all its blocks side by side are the only stage."""

    embedding: Embedding

    def batch_size(self, device: torch.device) -> int:
        return 64

    def enter(self, images: Tensor) -> Tensor:
        return torch.cat([b.flatten(1).float() for b in self.embedding(images)], dim=1)

    def advance(self, stage: int, state: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, state

    def refer(self, stage: int, maps: Tensor, reference: Tensor) -> None:
        if maps.shape[1] > _NARROW:
            torch.neg(maps[0], out=reference)
        else:
            reference.zero_()

    def write(self, stage: int, maps: Tensor, reference: Tensor, out: Tensor) -> None:
        torch.add(maps, reference, out=out)


_Staged = StagedEmbedding | _OneStage


@dataclass(frozen=True)
class _Layout:
    """How a tile of ``rows`` x ``columns`` images goes through the stages in the memory at hand.

    widths: values of one image's block at each stage. states: values of each stage's input, 0 for the
    first, and one more 0. hold, stream: number of images whose blocks are held, and number of those
    compared with them at a time, for each stage.
    """

    rows: int
    columns: int
    widths: Sequence[int]
    states: Sequence[int]
    hold: Sequence[int]
    stream: Sequence[int]

    @classmethod
    def fit(
        cls, rows: int, columns: int, widths: Sequence[int], states: Sequence[int], memory: int
    ) -> _Layout | None:
        """Return the layout within ``memory`` bytes, or None if so large a tile does not fit."""
        for_pairs = min(memory // 4, _BYTES_PER_PAIR * rows * columns)
        sums = 2 * rows * (rows + columns) if len(widths) > 1 else 0
        hold, stream = [], []
        for stage, width in enumerate(widths):
            between = (rows + columns) * (states[stage] + states[stage + 1]) + sums
            # Less the reference image's block.
            room = ((memory - for_pairs) // 4 - between) // (width + _PAD) - 1
            passing = min(columns, max(room - rows, room // 3))
            holding = min(rows, room - passing)
            if passing < min(columns, 4) or holding < min(rows, 4):
                return None
            hold.append(holding)
            stream.append(min(passing, max(1, for_pairs // (_BYTES_PER_PAIR * holding))))
        return cls(rows, columns, widths, states, hold, stream)

    def passes(self) -> float:
        """Return the number of images through the network, counting repeated passes."""
        again = [math.ceil(self.rows / h) - 1 for h in self.hold]
        return self.rows + self.columns * (1 + sum(again) / len(again))

    def values(self) -> int:
        """Return the number of float32 values that the tile needs."""
        return max(
            (self.rows + self.columns) * (self.states[i] + self.states[i + 1])
            + (self.hold[i] + self.stream[i] + 1) * (width + _PAD)
            for i, width in enumerate(self.widths)
        )


class _Source:
    """The images of one side of a tile, and their states between two stages.

    inputs, outputs: of the stage, (count, C, H, W), channels-last as the network works. room: values in
    which outputs are kept.
    """

    def __init__(self, images: Sequence[Tensor], device: torch.device) -> None:
        self.images, self.device = images, device
        self.room = torch.empty(0)
        self.inputs: Tensor | None = None
        self.outputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def state(self, embedding: _Staged, rows: slice) -> Tensor:
        """Return the stage's input at ``rows``; the first one's by a call for each run of one shape."""
        if self.inputs is not None:
            return self.inputs[rows]
        groups = groupby(self.images[rows], key=lambda x: (x.shape, x.dtype))
        images = [torch.stack(list(group)).to(self.device) for _, group in groups]
        found = [embedding.enter(to_float(batch)) for batch in images]
        return found[0] if len(found) == 1 else torch.cat(found)

    def keep(self, rows: slice, outputs: Tensor) -> None:
        """Keep a stage's outputs at ``rows``."""
        if self.outputs is None:
            _, c, h, w = outputs.shape
            self.outputs = self.room.view(len(self), h, w, c).permute(0, 3, 1, 2)
        self.outputs[rows] = outputs


class _Pairs:
    """Takes two sides' images through an embedding and yields their distances."""

    def __init__(self, embedding: Embedding, work: Workspace, seen: Callable[[int], None]) -> None:
        self.embedding: _Staged = (
            embedding if isinstance(embedding, StagedEmbedding) else _OneStage(embedding)
        )
        self.work, self.seen = work, seen
        self.batch = self.embedding.batch_size(work.device)
        self.passed = 0  # images through single stages, not reported yet

    def tiles(self, left: _Side, right: _Side, within: int, memory: int) -> Iterator[_Part]:
        """Yield all pairs of distinct images, and those within the first ``within`` left rows."""
        own = int(left.inverse[:within].max()) + 1 if within else 0
        device = self.work.device
        layout = self._layout(left, max(1, len(right)), memory)
        for a in _parts(len(left), layout.rows):
            parts = [(left, b) for b in _parts(own, layout.columns, start=a.stop)]
            parts += [(right, b) for b in _parts(len(right), layout.columns)]
            for i, (side, b) in enumerate(parts or [(right, slice(0, 0))]):
                sources = _Source(left.distinct(a), device), _Source(side.distinct(b), device)
                inside = max(0, min(own, a.stop) - a.start) if i == 0 else 0
                for among, rows, columns, distances in self._tile(*sources, layout, inside):
                    columns = _shift(columns, a.start if among else b.start)
                    yield among or side is left, _shift(rows, a.start), columns, distances

    def _layout(self, left: _Side, m: int, memory: int) -> _Layout:
        """Return the tiles that need the fewest passes through the network in the given memory."""
        n = len(left)
        widths, states = self.work.sizes(self.embedding, left.images[0])
        found = (
            _Layout.fit(rows, columns, widths, states, memory)
            for rows in _divisions(n)
            for columns in _divisions(m)
        )
        return min(
            filter(None, found),
            key=lambda x: math.ceil(n / x.rows) * math.ceil(m / x.columns) * x.passes(),
            # One image of either side goes through, whatever the memory.
            default=_Layout(1, 1, widths, states, *[[1] * len(widths)] * 2),
        )

    def _tile(self, left: _Source, right: _Source, layout: _Layout, own: int) -> Iterator[_Part]:
        """Yield the distances of a tile, and those among its first ``own`` left images.

        Distances are summed over stages, and yielded at the last stage as they become complete.
        """
        flat = self.work.reserve(layout.values())
        last = len(layout.widths) - 1
        sums = {
            among: torch.zeros(len(left), columns if last else 0, dtype=torch.float64)
            for among, columns in ((False, len(right)), (True, own))
        }
        for stage in range(last + 1):
            for among, rows, columns, part in self._stage(stage, left, right, layout, own, flat):
                if last:
                    part = sums[among][rows, columns].add_(part)
                if stage == last:
                    yield among, rows, columns, part

    def _stage(
        self, stage: int, left: _Source, right: _Source, layout: _Layout, own: int, flat: Tensor
    ) -> Iterator[_Part]:
        """Yield one stage's contribution to the distances of a tile."""
        # Inputs are at one end of the memory and outputs at the other, in turn; blocks between them.
        counts = [len(left), len(right)]
        before, after = (sum(counts) * size for size in layout.states[stage : stage + 2])
        even = stage % 2 == 0
        kept = flat[len(flat) - after :] if even else flat[:after]
        left.room, right.room = kept.split([n * layout.states[stage + 1] for n in counts])
        width, sizes = layout.widths[stage], [layout.hold[stage], layout.stream[stage], 1]
        blocks = flat[before if even else after :][: sum(sizes) * (width + _PAD)]
        hold, stream, (reference,) = blocks.view(-1, width + _PAD)[:, :width].split(sizes)
        fill = partial(self._fill, stage, len(layout.widths), reference)
        for i, rows in enumerate(_parts(len(left), len(hold))):
            held = hold[: rows.stop - rows.start]
            norms = fill(left, rows, held, new=i == 0, keep=True)
            inside = slice(rows.start, min(rows.stop, own))
            size = max(0, inside.stop - inside.start)
            for part in _parts(size, len(stream)):
                passing = held[:size], norms[:size], held[part], norms[part]
                yield True, inside, _shift(part, rows.start), self._distances(*passing)
            # Left images that are held later are compared too, and so are all right ones.
            parts = [(left, part) for part in _parts(own, len(stream), start=rows.stop)]
            parts += [(right, part) for part in _parts(len(right), len(stream))]
            for source, part in parts:
                theirs = stream[: part.stop - part.start]
                their_norms = fill(source, part, theirs, keep=source is right and i == 0)
                distances = self._distances(held, norms, theirs, their_norms)
                yield source is left, rows, part, distances
        for source in (left, right):
            source.inputs, source.outputs = source.outputs, None

    @exact_products()
    def _distances(self, a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor) -> Tensor:
        if isinstance(self.embedding, _OneStage) and a.shape[1] <= _NARROW:
            return squared_distances((a.cpu(),), (b.cpu(),))
        return wide_distances(a, a_norms, b, b_norms)

    @exact_products()
    def _fill(
        self, stage: int, stages: int, reference: Tensor, source: _Source, part: slice, out: Tensor,
        *, new: bool = False, keep: bool = False,
    ) -> Tensor:  # fmt: skip
        """Write a stage's blocks of the images in ``part`` to ``out``; return their norms.

        new: the first image becomes the reference. keep: the next stage's inputs are kept.
        """
        norms = []
        for inner in _parts(len(out), self.batch):
            rows = _shift(inner, part.start)
            following, maps = self.embedding.advance(stage, source.state(self.embedding, rows))
            if keep and following is not None:
                source.keep(rows, following)
            if new and inner.start == 0:
                self.embedding.refer(stage, maps[:1], reference)
            self.embedding.write(stage, maps, reference, out[inner])
            norms.append(part_norms(out[inner]))  # while it is in the caches
            whole, self.passed = divmod(self.passed + inner.stop - inner.start, stages)
            self.seen(whole)
        return total_norms(torch.cat(norms))


def _parts(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    """Yield start..stop in consecutive slices of at most ``size``, as even as possible."""
    if stop <= start:
        return
    size = math.ceil((stop - start) / math.ceil((stop - start) / max(1, size)))
    for first in range(start, stop, size):
        yield slice(first, min(stop, first + size))


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _divisions(rows: int) -> list[int]:
    """Return the sizes of the even parts into which ``rows`` rows can be cut."""
    return sorted({math.ceil(rows / count) for count in range(1, min(rows, 256) + 1)} | {1})


@exact_products()
def _not_finite(
    embedding: Embedding, sides: tuple[_Side, _Side], names: Sequence[Sequence[str]] | None,
    device: torch.device,
) -> str:  # fmt: skip
    """Return the message that names the image whose features are not finite."""
    for number, side in enumerate(sides):
        for row in side.first:
            features = _Source([side.images[row]], device).state(_OneStage(embedding), slice(1))
            if not bool(features.isfinite().all()):
                name = names[number][row] if names else f"{row} of set {number + 1}"
                return (
                    f"embedding {embedding.name}: not a finite number for image {name}; check that "
                    "image and the embedding"
                )
    return f"embedding {embedding.name}: features are so large that distances overflow"
