"""Distances of all pairs of two image sets in bounded memory, at the speed of the network.

For a :class:`StagedEmbedding` both sets go through the network layer by layer: a layer's features of
one side are held, those of the other side stream past, and only what the next layer needs is kept.
Distances are matrix products in float32, summed in float64, on features taken relative to those of
one image of the set, so that what cancels is small; what is small all the same is computed again by
differences.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from inversight.core.errors import ConfigError, StageError
from inversight.core.imaging import to_float
from inversight.embeddings.base import Embedding, StagedEmbedding, squared_distances

CLOSE = 0.02
"""A layer's distance below this share of its scale is computed again by differences. The products'
error is some 1e-7 of the scale at most, so that what is kept is right to 5e-6 of itself."""

_NARROW = 1 << 16
"""Features up to this many values are compared in float64, which then costs little."""

_CHUNK = 1 << 13
"""Values whose products are summed in float32 before float64 takes over."""

_PAD = 32
"""Values between one image's features and the next one's: rows that start a power of two apart would
get in each other's way in the caches."""

_BYTES_PER_PAIR = 40
"""Float64 temporaries of one distance."""


@dataclass(frozen=True)
class Tile:
    """Distances (a, b) float64 on the CPU, of rows ``left`` (a,) and ``right`` (b,), int64.

    Rows ascend within a tile; identical images have bitwise identical distances.
    """

    left: Tensor
    right: Tensor
    distances: Tensor


class Workspace:
    """One stretch of memory that is used again and again: fresh memory costs more than what is
    written to it. It grows to what is asked of it; a CPU backs only what was touched."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._flat = torch.empty(0, device=self.device)
        self._known: list[tuple[Embedding, torch.Size, tuple[Sequence[int], ...]]] = []

    def sizes(
        self,
        embedding: Embedding,
        shape: torch.Size,
        measure: Callable[[], tuple[Sequence[int], ...]],
    ) -> tuple[Sequence[int], ...]:
        """What ``measure`` found for images of this shape, which is the same for every class."""
        for known, of, found in self._known:
            if known is embedding and of == shape:
                return found
        found = measure()
        self._known.append((embedding, shape, found))
        return found

    def reserve(self, values: int) -> Tensor:
        """At least so many float32 values, uninitialised; earlier reservations are overwritten."""
        if self._flat.numel() < values:
            self._flat = torch.empty(0, device=self.device)  # not both at once
            self._flat = torch.empty(values, device=self.device)
        return self._flat


def image_pairs(
    embedding: Embedding,
    left: Tensor,
    right: Tensor,
    *,
    memory: int,
    device: torch.device | str = "cpu",
    workspace: Workspace | None = None,
    names: Callable[[bool, int], str] | None = None,
    seen: Callable[[int], None] | None = None,
) -> Iterator[Tile]:
    """Distances of all pairs of images (N, C, H, W) and (M, C', H', W'), tile by tile.

    Every pair is in exactly one tile. Images are uint8, or floats in [0, 1].

    Args:
        memory: bytes of features and of what is kept between layers, beside the network; at least
            one image of either side is in memory, whatever it is.
        workspace: buffers to use again, for calls on many classes.
        names: (is it a left image, its row) -> its name in messages.
        seen: told of every so many images that went through the whole network.

    Raises:
        ConfigError: ``memory`` is not positive.
        StageError: the embedding gave a NaN or an infinity.
    """
    if memory <= 0:
        raise ConfigError(f"memory: expected a positive number of bytes, found {memory}")
    if len(left) == 0 or len(right) == 0:
        return
    where = torch.device(device)
    work = workspace or Workspace(where)
    sides = (_Side(left, where), _Side(right, where))
    maker = (
        _Staged(embedding, work, memory)
        if isinstance(embedding, StagedEmbedding)
        else _Whole(embedding, work, memory)
    )
    tiles = maker.tiles(sides[0], sides[1], seen or (lambda n: None))
    while True:
        # Not around the yield: whoever reads the tiles works under settings of their own.
        with exact_products():
            found = next(tiles, None)
        if found is None:
            return
        a, b, distances = found
        if not bool(distances.isfinite().all()):
            raise StageError(_not_finite(embedding, sides, names))
        rows, columns = sides[0].rows_of(a), sides[1].rows_of(b)
        distances = distances.index_select(0, sides[0].unique_of(rows) - a.start)
        distances = distances.index_select(1, sides[1].unique_of(columns) - b.start)
        yield Tile(rows, columns, distances)


@contextmanager
def exact_products() -> Iterator[None]:
    """Full float32 in convolutions and products, without derivatives.

    TF32, a default on GPUs, keeps ten bits only, and the caller may be under autocast.
    """
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    convolution, product = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolution
        torch.backends.cuda.matmul.allow_tf32 = product


class _Side:
    """One side's images, each different one once, in the order of first appearance."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images = images
        self.device = device
        position: dict[bytes, int] = {}
        first: list[int] = []
        inverse: list[int] = []
        for row, image in enumerate(images):
            key = hashlib.blake2b(image.detach().cpu().contiguous().numpy().tobytes()).digest()
            if key not in position:
                position[key] = len(first)
                first.append(row)
            inverse.append(position[key])
        self.first = torch.tensor(first)
        self._inverse = torch.tensor(inverse)

    def __len__(self) -> int:
        return len(self.first)

    def floats(self, rows: slice) -> Tensor:
        """The different images in ``rows``, float32 on the device."""
        return to_float(self.images[self.first[rows].to(self.images.device)].to(self.device))

    def rows_of(self, part: slice) -> Tensor:
        """All rows, ascending, whose image is one of the different ones in ``part``."""
        inside = (self._inverse >= part.start) & (self._inverse < part.stop)
        rows: Tensor = inside.nonzero().squeeze(1)
        return rows

    def unique_of(self, rows: Tensor) -> Tensor:
        return self._inverse[rows]


class _Whole:
    """An embedding that is asked for all its blocks at once."""

    def __init__(self, embedding: Embedding, work: Workspace, memory: int) -> None:
        self.embedding = embedding
        self.work = work
        self.memory = memory

    def tiles(
        self, left: _Side, right: _Side, seen: Callable[[int], None]
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        ((width,),) = self.work.sizes(
            self.embedding,
            left.images.shape[1:],
            lambda: ([self._features(left, slice(0, 1)).shape[1]],),
        )
        # A quarter of the memory is for the tile of distances and its temporaries.
        room = max(2, self.memory * 3 // 4 // (4 * width))
        stream = max(1, min(len(right), room // 4))
        hold = max(1, min(len(left), room - stream))
        stream = min(stream, max(1, self.memory // 4 // (_BYTES_PER_PAIR * hold)))
        flat = self.work.reserve((hold + stream) * width)
        for a in _parts(len(left), hold):
            held = flat[: (a.stop - a.start) * width].view(-1, width)
            self._fill(left, a, held, seen)
            reference, norms = held[0].clone(), None
            for b in _parts(len(right), stream):
                passing = flat[held.numel() :][: (b.stop - b.start) * width].view(-1, width)
                self._fill(right, b, passing, seen)
                if width <= _NARROW:
                    yield a, b, squared_distances((held.cpu(),), (passing.cpu(),))
                    continue
                if norms is None:
                    norms = _norms(held.sub_(reference))
                passing.sub_(reference)
                yield a, b, _wide_distances(held, norms, passing, _norms(passing))

    def _fill(self, side: _Side, rows: slice, out: Tensor, seen: Callable[[int], None]) -> None:
        for part in _parts(len(out), 64):
            out[part] = self._features(side, _shift(part, rows.start))
            seen(part.stop - part.start)

    def _features(self, side: _Side, rows: slice) -> Tensor:
        blocks = self.embedding(side.floats(rows))
        return torch.cat([b.flatten(1).float() for b in blocks], dim=1)


@dataclass(frozen=True)
class _Layout:
    """How a tile goes through the stages in the memory at hand.

    widths: values of one image's block at each stage. states: of each stage's input, 0 for the
    first, and one more 0. hold, stream: images whose blocks are held and stream past at each stage.
    """

    widths: tuple[int, ...]
    states: tuple[int, ...]
    hold: tuple[int, ...]
    stream: tuple[int, ...]

    @classmethod
    def fit(
        cls, rows: int, columns: int, widths: Sequence[int], states: Sequence[int], values: int
    ) -> _Layout | None:
        """The layout for ``values`` float32 in all, or None if so large a tile does not fit."""
        hold, stream = [], []
        for stage, width in enumerate(widths):
            between = (rows + columns) * (states[stage] + states[stage + 1])
            # Beside what is held and what streams past there is the reference.
            room = (values - between) // (width + _PAD) - 1
            passing = min(columns, max(room - rows, room // 3))
            holding = min(rows, room - passing)
            if passing < min(columns, 4) or holding < min(rows, 4):
                return None
            hold.append(holding)
            stream.append(passing)
        return cls(tuple(widths), tuple(states), tuple(hold), tuple(stream))

    def passes(self, rows: int, columns: int) -> float:
        """Images that go through the network, those again counted that stream past again."""
        again = [math.ceil(rows / h) - 1 for h in self.hold]
        return rows + columns * (1 + sum(again) / len(again))

    def values(self, rows: int, columns: int) -> int:
        """Float32 values that the tile needs."""
        return max(
            (rows + columns) * (self.states[i] + self.states[i + 1])
            + (self.hold[i] + self.stream[i] + 1) * (width + _PAD)
            for i, width in enumerate(self.widths)
        )


class _Staged:
    """An embedding that goes through its network stage by stage."""

    def __init__(self, embedding: StagedEmbedding, work: Workspace, memory: int) -> None:
        self.embedding = embedding
        self.work = work
        self.memory = memory
        self.batch = embedding.batch_size(work.device)

    def tiles(
        self, left: _Side, right: _Side, seen: Callable[[int], None]
    ) -> Iterator[tuple[slice, slice, Tensor]]:
        rows, columns, layout = self._tiling(left, len(right))
        flat = self.work.reserve(layout.values(rows, columns))
        for a in _parts(len(left), rows):
            for b in _parts(len(right), columns):
                yield a, b, self._tile(left, a, right, b, layout, flat, seen)

    def _tiling(self, left: _Side, m: int) -> tuple[int, int, _Layout]:
        """Rows and columns of a tile: as few passes through the network as the memory allows."""
        n = len(left)
        widths, states = self.work.sizes(
            self.embedding, left.images.shape[1:], lambda: self._measured(left)
        )
        # One image of either side goes through, whatever the memory.
        smallest = _Layout(tuple(widths), tuple(states), *[(1,) * len(widths)] * 2)
        best = n * m * 2.0, 1, 1, smallest
        for rows in _divisions(n):
            for columns in _divisions(m):
                layout = _Layout.fit(rows, columns, widths, states, self.memory // 4)
                if layout is not None:
                    tiles = math.ceil(n / rows) * math.ceil(m / columns)
                    cost = tiles * layout.passes(rows, columns)
                    if cost < best[0] or best[3] is smallest:
                        best = cost, rows, columns, layout
        return best[1:]

    def _measured(self, left: _Side) -> tuple[list[int], list[int]]:
        """Values of one image's block at each stage, and of each stage's input, from one image."""
        widths: list[int] = []
        states = [0]
        state: Tensor | None = self.embedding.enter(left.floats(slice(0, 1)))
        while state is not None:
            state, maps = self.embedding.advance(len(widths), state)
            widths.append(maps.numel())
            states.append(0 if state is None else state.numel())
        return widths, states

    def _tile(
        self,
        left: _Side,
        a: slice,
        right: _Side,
        b: slice,
        layout: _Layout,
        flat: Tensor,
        seen: Callable[[int], None],
    ) -> Tensor:
        n, m = a.stop - a.start, b.stop - b.start
        total = torch.zeros(n, m, dtype=torch.float64)
        inputs: tuple[_States | None, _States | None] = (None, None)
        for stage, width in enumerate(layout.widths):
            room = _Room(flat)
            # Inputs lie at one end of the memory and the next stage's at the other, in turn.
            room.take((n + m) * layout.states[stage], low=stage % 2 == 0)
            kept = room.take((n + m) * layout.states[stage + 1], low=stage % 2 == 1)
            nexts = (_States(kept, 0), _States(kept, n)) if kept.numel() else (None, None)
            held = room.rows(layout.hold[stage], width)
            passing = room.rows(layout.stream[stage], width)
            reference = room.rows(1, width)[0]
            for i, rows in enumerate(_parts(n, len(held))):
                ours = held[: rows.stop - rows.start]
                our_norms = self._fill(
                    stage, ours, reference, left, a.start, rows, inputs[0], nexts[0], new=i == 0
                )
                for columns in _parts(m, len(passing)):
                    theirs = passing[: columns.stop - columns.start]
                    keep = nexts[1] if i == 0 else None
                    their_norms = self._fill(
                        stage, theirs, reference, right, b.start, columns, inputs[1], keep
                    )
                    total[rows, columns] += _wide_distances(ours, our_norms, theirs, their_norms)
            inputs = nexts
            done = (n + m) * (stage + 1) // len(layout.widths)
            seen(done - (n + m) * stage // len(layout.widths))
        return total

    def _fill(
        self,
        stage: int,
        out: Tensor,
        reference: Tensor,
        side: _Side,
        start: int,
        part: slice,
        states: _States | None,
        nexts: _States | None,
        *,
        new: bool = False,
    ) -> Tensor:
        """Blocks of images ``start + part`` at a stage relative to ``reference``; their norms.

        ``new``: the first image becomes the reference. ``nexts`` keeps the next stage's inputs.
        """
        norms = []
        for inner in _parts(len(out), self.batch):
            rows = _shift(inner, part.start)
            if states is None:
                state = self.embedding.enter(side.floats(_shift(rows, start)))
            else:
                state = states.read(rows)
            following, maps = self.embedding.advance(stage, state)
            if nexts is not None and following is not None:
                nexts.write(rows, following)
            if new and inner.start == 0:
                self.embedding.refer(stage, maps[:1], reference)
            self.embedding.write(stage, maps, reference, out[inner])
            norms.append(_part_norms(out[inner]))  # while it is in the caches
        return _whole_norms(torch.cat(norms))


class _Room:
    """Parts of one stretch of memory, taken from its low or its high end."""

    def __init__(self, flat: Tensor) -> None:
        self._flat = flat

    def take(self, values: int, *, low: bool = True) -> Tensor:
        if low:
            taken, self._flat = self._flat[:values], self._flat[values:]
        else:
            cut = len(self._flat) - values
            taken, self._flat = self._flat[cut:], self._flat[:cut]
        return taken

    def rows(self, count: int, width: int) -> Tensor:
        """(count, width) whose rows do not start at the same place in the caches."""
        return self.take(count * (width + _PAD)).view(count, width + _PAD)[:, :width]


class _States:
    """What one side's images carry from a stage to the next."""

    def __init__(self, flat: Tensor, start: int) -> None:
        self._flat = flat
        self._start = start
        self._shape: tuple[int, ...] = ()

    def write(self, rows: slice, state: Tensor) -> None:
        self._shape = tuple(state.shape[1:])
        self.read(rows).copy_(state)

    def read(self, rows: slice) -> Tensor:
        c, h, w = self._shape
        width = c * h * w
        part = self._flat[(self._start + rows.start) * width : (self._start + rows.stop) * width]
        # Channels-last within each image, as the network works.
        return part.view(-1, h, w, c).permute(0, 3, 1, 2)


def _norms(rows: Tensor) -> Tensor:
    """Squared lengths (N,) float64 on the CPU of rows (N, D)."""
    return _whole_norms(_part_norms(rows))


def _part_norms(rows: Tensor) -> Tensor:
    """Lengths (N, parts) of the parts of rows (N, D) that float32 can sum."""
    whole = rows.shape[1] // _CHUNK * _CHUNK
    parts: Tensor = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, _CHUNK)), dim=2)
    if whole < rows.shape[1]:
        rest = torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)
        parts = torch.cat([parts, rest], dim=1)
    return parts


def _whole_norms(parts: Tensor) -> Tensor:
    squares: Tensor = _near_float64(parts).double().square().sum(1)
    return squares.cpu()


def _near_float64(values: Tensor) -> Tensor:
    """``values`` where float64 can be had: on the CPU if their device has none."""
    return values if values.device.type in ("cpu", "cuda") else values.cpu()


def _wide_distances(left: Tensor, left_norms: Tensor, right: Tensor, right_norms: Tensor) -> Tensor:
    """Squared distances (N, M) float64 on the CPU of rows (N, D) and (M, D), D large."""
    width = left.shape[1]
    whole = width // _CHUNK * _CHUNK
    a = left[:, :whole].unflatten(1, (-1, _CHUNK)).transpose(0, 1)
    b = right[:, :whole].unflatten(1, (-1, _CHUNK)).permute(1, 2, 0)
    products = _near_float64(torch.bmm(a, b)).sum(0, dtype=torch.float64)
    if whole < width:
        products += _near_float64(left[:, whole:] @ right[:, whole:].T).double()
    products = products.cpu()
    scale = left_norms[:, None] + right_norms[None, :]
    distances = scale - 2.0 * products
    for i, j in (distances < CLOSE * scale).nonzero().tolist():
        distances[i, j] = _by_differences(left[i], right[j])
    return distances.clamp_min_(0.0)


def _by_differences(left: Tensor, right: Tensor) -> float:
    """Squared distance of two long rows: float32 differences, whose squares are summed in parts."""
    return float(_norms((left - right)[None]))


def _parts(rows: int, size: int) -> Iterator[slice]:
    """0..rows in consecutive slices of ``size``, as even as they can be."""
    count = math.ceil(rows / max(1, size))
    size = math.ceil(rows / count)
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _divisions(rows: int) -> list[int]:
    """Sizes of the even parts into which so many rows can be cut."""
    return sorted({math.ceil(rows / count) for count in range(1, min(rows, 256) + 1)} | {1})


def _not_finite(
    embedding: Embedding, sides: tuple[_Side, _Side], names: Callable[[bool, int], str] | None
) -> str:
    """Which image gives features that are no numbers."""
    for number, side in enumerate(sides):
        for row, first in enumerate(side.first.tolist()):
            with exact_products():
                blocks = embedding(side.floats(slice(row, row + 1)))
            if not all(bool(block.isfinite().all()) for block in blocks):
                name = names(number == 0, first) if names else f"{first} of set {number + 1}"
                return (
                    f"embedding {embedding.name}: not a finite number for image {name}; check that "
                    "image and the embedding"
                )
    return f"embedding {embedding.name}: features are so large that distances overflow"
