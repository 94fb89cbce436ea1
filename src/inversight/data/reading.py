"""Decodes the images of a listing, in parallel and in bounded memory, into an image set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inversight.core.errors import DataError
from inversight.core.imaging import Size, side_of
from inversight.core.progress import Progress
from inversight.data.decoding import decode, is_grey, open_image, quiet_decoding, to_tensor
from inversight.data.images import ImageSet, pixel_hash
from inversight.data.listing import Item, Listing
from inversight.data.store import DecodedImages, PixelStore

_AT_ONCE = 32
"""Images that a thread decodes before it takes others."""


def read_listing(
    listing: Listing, rows: Sequence[int], *, role: str, size: Size | None, channels: int | None,
    progress: Progress, cache: Path | None = None,
) -> ImageSet:  # fmt: skip
    """Return the images of ``rows``, which ascend, sorted by id.

    Sizes are checked from the headers before anything is decoded.

    Args:
        role: how messages name the set, such as "--private".
        size: see :data:`inversight.core.imaging.Size`; None: the images' own, which must be square and equal.
        channels: 1 or 3; None: 1 if every image is grey.
        progress: called as images are read.
        cache: folder where many images are kept decoded for the next call.

    Raises:
        DataError: naming the first image that does not fit or cannot be decoded.
        DiskFullError: many images find no room in ``cache``, or in the folder of temporary files.
    """
    by_id = sorted(rows, key=listing.ids.__getitem__)
    kept = None
    if cache is not None:
        facts = ([listing.ids[row] for row in by_id], size, channels)
        kept = DecodedImages(cache, listing.files, facts)
    found = None if kept is None else kept.find()
    images, hashes = found or _decoded(listing, rows, by_id, role, size, channels, progress, kept)
    position = {None: -1} | {name: i for i, name in enumerate(listing.classes)}
    return ImageSet(
        images=images,
        labels=torch.tensor([position[listing.labels[row]] for row in by_id], dtype=torch.int64),
        ids=tuple(listing.ids[row] for row in by_id),
        classes=tuple(listing.classes),
        hashes=tuple(hashes),
    )


def _decoded(
    listing: Listing, rows: Sequence[int], by_id: Sequence[int], role: str, size: Size | None,
    channels: int | None, progress: Progress, kept: DecodedImages | None,
) -> tuple[Tensor, list[str]]:  # fmt: skip
    """Return the images in order of their ids, and their hashes."""
    with quiet_decoding():
        (width, height), grey = _check_headers(listing, rows, role, size)
        wanted = channels or (1 if grey else 3)
        shape = (
            len(rows),
            wanted,
            *((height, width) if size is None else (side_of(size), side_of(size))),
        )
        place = {row: i for i, row in enumerate(by_id)}
        hashes = [""] * len(rows)
        threads, done = torch.get_num_threads(), 0
        with (
            PixelStore(shape, None if kept is None else kept.pixels) as store,
            ThreadPoolExecutor(threads) as pool,
        ):

            def fill(part: list[tuple[int, Item]]) -> int:
                for row, item in part:
                    pixels = _decode(item, f"{role} {listing.name(row, item)}")
                    hashes[place[row]] = pixel_hash(pixels)
                    store.put(place[row], to_tensor(pixels, size, wanted)[None])
                return len(part)

            items = zip(rows, listing.items(rows), strict=True)
            while some := list(islice(_parts(items), 4 * threads)):
                for count in pool.map(fill, some):
                    done += count
                    progress(done, len(rows), role)
            images = store.tensor()
    if kept is not None:
        kept.keep(images, hashes)
    return images, hashes


def _parts(items: Iterator[tuple[int, Item]]) -> Iterator[list[tuple[int, Item]]]:
    while part := list(islice(items, _AT_ONCE)):
        yield part


def _decode(item: Item, where: str) -> Image.Image:
    return Image.fromarray(item) if isinstance(item, np.ndarray) else decode(item, where)


def _check_headers(
    listing: Listing, rows: Sequence[int], role: str, size: Size | None
) -> tuple[tuple[int, int], bool]:
    """Check declared sizes; return the first image's width and height, and whether every image is grey."""
    found: Iterator[tuple[str, tuple[int, int], bool]]
    if listing.pixels is not None:
        width, height, is_all_grey = listing.pixels
        found = iter([(str(listing.source), (width, height), is_all_grey)])
    else:
        found = _headers(listing, rows, role)
    headers = list(found)
    first, expected, _ = headers[0]
    for name, (width, height), _ in headers if size is None else ():
        shape = f"{width}x{height}"
        if width != height:
            raise DataError(
                f"{role} {name}: is {shape}, expected square images; give --size N to bring every "
                "image to NxN (shorter side to N, centre cut out), or --size HEIGHTxWIDTH of the target's input"
            )
        if (width, height) != expected:
            raise DataError(
                f"{role}: mixed sizes, {first} is {expected[0]}x{expected[1]} and {name} is {shape}; "
                "give --size N to bring every image to NxN"
            )
    return expected, all(grey for *_, grey in headers)


def _headers(
    listing: Listing, rows: Sequence[int], role: str
) -> Iterator[tuple[str, tuple[int, int], bool]]:
    """Yield the name, the size and whether it is grey of each image."""
    for row, item in zip(rows, listing.items(rows), strict=True):
        name = listing.name(row, item)
        if isinstance(item, np.ndarray):
            yield name, (item.shape[1], item.shape[0]), item.ndim == 2
        else:
            with open_image(item, f"{role} {name}") as image:
                yield name, image.size, is_grey(image)
