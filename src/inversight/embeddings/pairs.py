"""Distances of all pairs of two image sets in bounded memory, at the speed of the network.

Both sets go through the network stage by stage: a stage's features of one side are held, those of the
other side stream past, and only the input of the next stage is kept. Distances are matrix products in
float32, summed in float64, on features relative to those of one image of the set, so that cancelling
terms are small; distances that are small all the same are computed again by differences.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
"""Features without stages of up to this many values are compared in float64, which then costs little."""

_PAD = 32
"""Values between the features of one image and the next: rows that start a power of two apart compete
for the same cache lines."""

_BYTES_PER_PAIR = 40
"""Float64 temporaries of one distance."""

Images = Tensor | Sequence[Tensor]
"""Images (N, C, H, W), or several such sets one after another, each of its own size."""

_Part = tuple[bool, slice, slice, Tensor]
"""(are both sides left, different left images, different images of the other side, distances)"""


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
    """A buffer that is used again and again, since allocating fresh memory costs more than filling it.

    It grows to the largest request; on a CPU only touched pages take memory.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._flat = torch.empty(0, device=self.device)
        self._sizes: list[tuple[Embedding, torch.Size, list[int], list[int]]] = []

    def sizes(self, embedding: StagedEmbedding, image: Tensor) -> tuple[list[int], list[int]]:
        """Return how many values one image has at each stage: of its block, and of the stage's input.

        Inputs are 0 for the first stage, and a 0 follows the last. Measured once for each shape.
        """
        for known, shape, widths, states in self._sizes:
            if known == embedding and shape == image.shape:
                return widths, states
        widths, states = [], [0]
        blank = torch.zeros_like(image)[None].to(self.device)
        state: Tensor | None = embedding.enter(to_float(blank))
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
    embedding: Embedding,
    left: Images,
    right: Images,
    *,
    memory: int,
    within: int = 0,
    device: torch.device | str = "cpu",
    workspace: Workspace | None = None,
    names: Sequence[Sequence[str]] | None = None,
    seen: Callable[[int], None] | None = None,
) -> Iterator[Tile]:
    """Yield the distances of all pairs of left and right images, tile by tile.

    Every pair is in exactly one tile. Images are uint8, or floats in [0, 1]. Each image goes through the
    network once if ``memory`` holds the states of all of them between two stages and a stage's features
    of the left ones; else as few times as it allows.

    Args:
        memory: bytes of features and of states between stages, beside the network; at least one
            image of either side is in memory, whatever it is.
        within: number of left images, from the first, whose pairs with each other are yielded too, in both
            directions.
        workspace: buffers to use again, for calls on many classes.
        names: what messages call the left and the right images.
        seen: called with the number of images that went through the network since the last call.

    Raises:
        ConfigError: ``memory`` is not positive.
        StageError: the embedding returned a NaN or an infinity.
    """
    if memory <= 0:
        raise ConfigError(f"memory: expected a positive number of bytes, found {memory}")
    work = workspace or Workspace(device)
    sides = _Side(left, work.device), _Side(right, work.device)
    if len(sides[0]) == 0 or len(sides[1]) + within == 0:
        return
    tiles = _Pairs(embedding, work, memory, seen or (lambda n: None)).tiles(*sides, within)
    while True:
        # Not around the yield: the consumer's own settings apply there.
        with exact_products():
            found = next(tiles, None)
        if found is None:
            return
        own, a, b, distances = found
        other = sides[0] if own else sides[1]
        if not bool(distances.isfinite().all()):
            raise StageError(_not_finite(embedding, sides, names))
        rows, columns = sides[0].rows_of(a), other.rows_of(b)
        distances = distances.index_select(0, sides[0].inverse[rows] - a.start)
        distances = distances.index_select(1, other.inverse[columns] - b.start)
        yield Tile(rows, columns, distances, own)
        if own and b.start >= a.stop:
            yield Tile(columns, rows, distances.T, own)


class _Side:
    """The distinct images of one side, in the order of first appearance."""

    def __init__(self, images: Images, device: torch.device) -> None:
        parts = [images] if isinstance(images, Tensor) else images
        self.images = [image for part in parts for image in part]
        self.device = device
        position: dict[bytes, int] = {}
        first: list[int] = []
        inverse: list[int] = []
        for row, image in enumerate(self.images):
            key = hashlib.blake2b(image.detach().cpu().contiguous().numpy().tobytes()).digest()
            if position.setdefault(key, len(first)) == len(first):
                first.append(row)
            inverse.append(position[key])
        self.first = first
        self.inverse = torch.tensor(inverse, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.first)

    def through(self, function: Callable[[Tensor], Tensor], rows: slice) -> Tensor:
        """Return ``function`` of the distinct images in ``rows``, float32 on the device.

        It is called once for each run of images of one shape.
        """
        images = [self.images[i] for i in self.first[rows]]
        groups = groupby(images, key=lambda x: (x.shape, x.dtype))
        found = [
            function(to_float(torch.stack(list(group)).to(self.device))) for _, group in groups
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def rows_of(self, part: slice) -> Tensor:
        """Return all rows, ascending, whose image is one of the distinct ones in ``part``."""
        inside = (self.inverse >= part.start) & (self.inverse < part.stop)
        rows: Tensor = inside.nonzero().squeeze(1)
        return rows


class _OneStage:
    """Any embedding as a staged one: all its blocks side by side are the only stage."""

    def __init__(self, embedding: Embedding) -> None:
        self.embedding = embedding
        self.name = embedding.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OneStage) and self.embedding is other.embedding

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.embedding(images)

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


@dataclass(frozen=True)
class _Layout:
    """How a tile of ``rows`` x ``columns`` images goes through the stages in the memory at hand.

    widths: values of one image's block at each stage. states: of each stage's input, 0 for the
    first, and one more 0. hold, stream: images whose blocks are held and stream past at each stage.
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
            # Beside what is held and what streams past there is the reference.
            room = ((memory - for_pairs) // 4 - between) // (width + _PAD) - 1
            passing = min(columns, max(room - rows, room // 3))
            holding = min(rows, room - passing)
            if passing < min(columns, 4) or holding < min(rows, 4):
                return None
            hold.append(holding)
            stream.append(min(passing, max(1, for_pairs // (_BYTES_PER_PAIR * holding))))
        return cls(rows, columns, widths, states, hold, stream)

    def passes(self) -> float:
        """Return the number of images through the network, counting those that stream past again."""
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
    """The images of one side of a tile, and what they carry from a stage to the next.

    inputs, outputs: of the stage, (count, C, H, W), channels-last as the network works. room: values in
    which outputs are kept.
    """

    def __init__(self, side: _Side, part: slice) -> None:
        self.side, self.start, self.count = side, part.start, part.stop - part.start
        self.room = torch.empty(0)
        self.inputs: Tensor | None = None
        self.outputs: Tensor | None = None

    def keep(self, rows: slice, outputs: Tensor) -> None:
        """Keep a stage's outputs at ``rows``."""
        if self.outputs is None:
            _, c, h, w = outputs.shape
            self.outputs = self.room.view(self.count, h, w, c).permute(0, 3, 1, 2)
        self.outputs[rows] = outputs


class _Pairs:
    """Takes two sides' images through an embedding and yields their distances."""

    def __init__(
        self, embedding: Embedding, work: Workspace, memory: int, seen: Callable[[int], None]
    ) -> None:
        self.embedding = (
            embedding if isinstance(embedding, StagedEmbedding) else _OneStage(embedding)
        )
        self.work = work
        self.memory = memory
        self.batch = self.embedding.batch_size(work.device)
        self.seen = seen
        self.passed = self.reported = 0
        self.stages = 1

    def tiles(self, left: _Side, right: _Side, within: int) -> Iterator[_Part]:
        """Yield all pairs of distinct images, and those within the first ``within`` left rows."""
        own = int(left.inverse[:within].max()) + 1 if within else 0
        layout = self._layout(left, max(1, len(right)))
        for a in _parts(len(left), layout.rows):
            later = [_shift(b, a.stop) for b in _parts(own - a.stop, layout.columns)]
            parts = [(left, b) for b in later]
            parts += [(right, b) for b in _parts(len(right), layout.columns)]
            for i, (side, b) in enumerate(parts or [(right, slice(0, 0))]):
                sources = _Source(left, a), _Source(side, b)
                inside = max(0, min(own, a.stop) - a.start) if i == 0 else 0
                for among, rows, columns, distances in self._tile(*sources, layout, inside):
                    start = a.start if among else b.start
                    among = among or side is left
                    yield among, _shift(rows, a.start), _shift(columns, start), distances

    def _layout(self, left: _Side, m: int) -> _Layout:
        """Return the tiles that need the fewest passes through the network in the given memory."""
        n = len(left)
        widths, states = self.work.sizes(self.embedding, left.images[0])
        self.stages = len(widths)
        found = (
            _Layout.fit(rows, columns, widths, states, self.memory)
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

        Sums over stages are kept; at the last stage they are yielded as they become complete.
        """
        flat = self.work.reserve(layout.values())
        last = len(layout.widths) - 1
        sums = {}
        if last:
            sums[False] = torch.zeros(left.count, right.count, dtype=torch.float64)
            sums[True] = torch.zeros(left.count, own, dtype=torch.float64)
        for stage in range(last + 1):
            for among, rows, columns, part in self._stage(stage, left, right, layout, own, flat):
                if last:
                    part = sums[among][rows, columns].add_(part)
                if stage == last:
                    yield among, rows, columns, part

    def _stage(
        self, stage: int, left: _Source, right: _Source, layout: _Layout, own: int, flat: Tensor
    ) -> Iterator[_Part]:
        """Yield one stage's share of the distances of a tile."""
        # Inputs lie at one end of the memory and outputs at the other, in turn; blocks between them.
        counts = [left.count, right.count]
        before, after = (sum(counts) * size for size in layout.states[stage : stage + 2])
        even = stage % 2 == 0
        kept = flat[len(flat) - after :] if even else flat[:after]
        left.room, right.room = kept.split([n * layout.states[stage + 1] for n in counts])
        width, sizes = layout.widths[stage], [layout.hold[stage], layout.stream[stage], 1]
        blocks = flat[before if even else after :][: sum(sizes) * (width + _PAD)]
        hold, stream, (reference,) = blocks.view(-1, width + _PAD)[:, :width].split(sizes)
        for i, rows in enumerate(_parts(left.count, len(hold))):
            held = hold[: rows.stop - rows.start]
            norms = self._fill(stage, left, rows, held, reference, new=i == 0, keep=True)
            inside = slice(rows.start, min(rows.stop, own))
            size = max(0, inside.stop - inside.start)
            for part in _parts(size, len(stream)):
                passing = held[:size], norms[:size], held[part], norms[part]
                yield True, inside, _shift(part, rows.start), self._distances(*passing)
            # Left images that are held later stream past too, and so do all right ones.
            later = [_shift(part, rows.stop) for part in _parts(own - rows.stop, len(stream))]
            parts = [(left, part) for part in later]
            parts += [(right, part) for part in _parts(right.count, len(stream))]
            for source, part in parts:
                theirs = stream[: part.stop - part.start]
                keep = source is right and i == 0
                their_norms = self._fill(stage, source, part, theirs, reference, keep=keep)
                distances = self._distances(held, norms, theirs, their_norms)
                yield source is left, rows, part, distances
        for source in (left, right):
            source.inputs, source.outputs = source.outputs, None

    def _distances(self, a: Tensor, a_norms: Tensor, b: Tensor, b_norms: Tensor) -> Tensor:
        if isinstance(self.embedding, _OneStage) and a.shape[1] <= _NARROW:
            return squared_distances((a.cpu(),), (b.cpu(),))
        return wide_distances(a, a_norms, b, b_norms)

    def _fill(
        self, stage: int, source: _Source, part: slice, out: Tensor, reference: Tensor,
        *, new: bool = False, keep: bool = False,
    ) -> Tensor:  # fmt: skip
        """Write a stage's blocks of the images in ``part`` to ``out``; return their norms.

        new: the first image becomes the reference. keep: the next stage's inputs are kept.
        """
        norms = []
        for inner in _parts(len(out), self.batch):
            rows = _shift(inner, part.start)
            if source.inputs is None:
                state = source.side.through(self.embedding.enter, _shift(rows, source.start))
            else:
                state = source.inputs[rows]
            following, maps = self.embedding.advance(stage, state)
            if keep and following is not None:
                source.keep(rows, following)
            if new and inner.start == 0:
                self.embedding.refer(stage, maps[:1], reference)
            self.embedding.write(stage, maps, reference, out[inner])
            norms.append(part_norms(out[inner]))  # while it is in the caches
            self._count(inner.stop - inner.start)
        return total_norms(torch.cat(norms))

    def _count(self, images: int) -> None:
        """Report images that went through all stages."""
        self.passed += images
        whole = self.passed // self.stages
        self.seen(whole - self.reported)
        self.reported = whole


def _parts(rows: int, size: int) -> Iterator[slice]:
    """Yield 0..rows in consecutive slices of at most ``size``, as even as possible; none if rows <= 0."""
    if rows <= 0:
        return
    size = math.ceil(rows / math.ceil(rows / max(1, size)))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _divisions(rows: int) -> list[int]:
    """Return the sizes of the even parts into which ``rows`` rows can be cut."""
    return sorted({math.ceil(rows / count) for count in range(1, min(rows, 256) + 1)} | {1})


def _not_finite(
    embedding: Embedding, sides: tuple[_Side, _Side], names: Sequence[Sequence[str]] | None
) -> str:
    """Return the message that names the image whose features are not finite."""
    for number, side in enumerate(sides):
        for row, first in enumerate(side.first):
            with exact_products():
                found = side.through(_OneStage(embedding).enter, slice(row, row + 1))
            if not bool(found.isfinite().all()):
                name = names[number][first] if names else f"{first} of set {number + 1}"
                return (
                    f"embedding {embedding.name}: not a finite number for image {name}; check that "
                    "image and the embedding"
                )
    return f"embedding {embedding.name}: features are so large that distances overflow"
