"""Labelled image sets with stable ids: folders, the embedded digits, splits."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from inversight.core.errors import DataError
from inversight.core.imaging import fit, to_float, to_uint8
from inversight.core.progress import Progress, silent
from inversight.core.seeding import generator

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
"""Image sizes that the style-based prior supports."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm"}
)
MAX_PIXELS = 64_000_000
"""Images that declare more pixels than this are refused before they are decoded."""
_GREY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16B", "I;16L", "I", "F"})


@dataclass(frozen=True)
class ImageSet:
    """N images of one size.

    images: uint8 (N, C, H, W), C 1 or 3. labels: int64 (N,), -1 everywhere without classes. ids: the
    path below the folder, ``/``-separated, distinct. classes: names that labels index, () without.
    hashes: SHA-256 of the decoded pixels at the file's own size, so that a copy in another file
    format is found too.
    """

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return int(self.images.shape[2])

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        return int(self.images.shape[1])

    def select(self, index: Tensor) -> ImageSet:
        """The rows at positions ``index`` (int64), in that order."""
        rows = index.tolist()
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            ids=tuple(self.ids[i] for i in rows),
            hashes=tuple(self.hashes[i] for i in rows),
        )

    def relabel(self, classes: Sequence[str], *, role: str) -> ImageSet:
        """The same images with labels that index ``classes``.

        Raises:
            DataError: an image's class is not among ``classes``.
        """
        position = {name: i for i, name in enumerate(classes)}
        for name in self.classes:
            if name not in position:
                raise DataError(
                    f"{role}: class {name} is not among the {len(position)} classes of the model; "
                    "give its class names in the order of its outputs with --classes FILE"
                )
        if not self.classes:
            return self
        table = torch.tensor([position[name] for name in self.classes])
        return replace(self, labels=table[self.labels], classes=tuple(classes))

    def floats(self, *, size: int | None = None, channels: int | None = None) -> Tensor:
        """float32 images in [0, 1], (N, channels, size, size)."""
        side, depth = size or self.size, channels or self.channels
        out = torch.empty(len(self), depth, side, side)
        # In parts, so that large images are never all in memory as floats at their own size.
        for part, source in zip(out.split(256), self.images.split(256), strict=True):
            part.copy_(fit(to_float(source), size=side, channels=depth))
        return out

    def resized(self, *, size: int, channels: int) -> ImageSet:
        """The same set at another size and number of channels, uint8 again."""
        if (size, channels) == (self.size, self.channels):
            return self
        return replace(self, images=to_uint8(self.floats(size=size, channels=channels)))

    def fingerprint(self) -> str:
        """Hash of ids, contents and class names, whatever the row order."""
        label = [self.classes[i] if self.classes else "" for i in self.labels.tolist()]
        rows = sorted(zip(self.ids, self.hashes, label, strict=True))
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def image_set(
    images: Tensor, labels: Sequence[str], ids: Sequence[str], classes: Sequence[str]
) -> ImageSet:
    """Return a set of images in memory.

    Args:
        images: uint8 (N, C, S, S).
        labels: the name of each image's class, among ``classes``.
        ids: the distinct name of each image.
        classes: the names that labels index.
    """
    position = {name: i for i, name in enumerate(classes)}
    return ImageSet(
        images=images,
        labels=torch.tensor([position[name] for name in labels], dtype=torch.int64),
        ids=tuple(ids),
        classes=tuple(classes),
        hashes=tuple(_pixel_hash(to_pil(image)) for image in images),
    )


def _pixel_hash(image: Image.Image) -> str:
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def load_folder(
    path: Path,
    *,
    role: str,
    size: int | None = None,
    channels: int | None = None,
    labelled: bool = True,
    limit: int | None = None,
    progress: Progress = silent,
) -> ImageSet:
    """Read a folder with one subfolder for each class, rows sorted by id.

    Sizes are checked from the files' headers before anything is decoded. With ``size`` the shorter
    side is brought to it and the centre cut out. ``channels`` None: 1 if every image is grey,
    otherwise 3. Transparency is laid on white; 16-bit grey is scaled to 8 bits; EXIF turns are
    applied; of an animation the first frame counts. ``labelled`` False: class subfolders are
    optional. ``limit``: the first so many classes.

    Raises:
        DataError: one line that names the folder or file.
    """
    classes, files = _list_files(path, role, labelled, limit)
    grey = _check_headers(files, role, size)
    wanted = channels or (1 if grey else 3)
    images, hashes = [], []
    for done, (file, _) in enumerate(files, start=1):
        pixels = _decode(file, role)
        hashes.append(_pixel_hash(pixels))
        images.append(_to_tensor(pixels, size, wanted))
        progress(done, len(files), role)
    position = {name: i for i, name in enumerate(classes)}
    labels = [position[name] if name is not None else -1 for _, name in files]
    return ImageSet(
        images=torch.stack(images),
        labels=torch.tensor(labels, dtype=torch.int64),
        ids=tuple(file.relative_to(path).as_posix() for file, _ in files),
        classes=tuple(classes),
        hashes=tuple(hashes),
    )


def working_size(native: int, cap: int) -> int:
    """The largest size of SIZES that is at most ``native`` and ``cap``.

    Raises:
        DataError: both are below 8.
    """
    fitting = [s for s in SIZES if s <= min(native, cap)]
    if not fitting:
        raise DataError(
            f"images of {native}x{native}: the smallest size that works is 8; give --size 8 or more"
        )
    return fitting[-1]


def check_size(size: int, *, given: bool) -> None:
    """Refuse a native image size that the prior has no match for, unless ``--size`` chose it.

    Raises:
        DataError: naming the sizes that work.
    """
    if not given and size not in SIZES:
        near = [s for s in SIZES if s <= max(size, 8)][-1]
        raise DataError(
            f"images are {size}x{size}; the prior works at {', '.join(map(str, SIZES))}: give "
            f"--size {near} to resize them, or the target's own input size"
        )


def check_overlap(a: ImageSet, b: ImageSet, names: tuple[str, str], *, allow: bool) -> int:
    """Number of images that both sets hold, by content.

    Raises:
        DataError: there are some and ``allow`` is False.
    """
    first: dict[str, str] = {}
    for digest, name in zip(a.hashes, a.ids, strict=True):
        first.setdefault(digest, name)
    shared = [
        (first[digest], name)
        for digest, name in zip(b.hashes, b.ids, strict=True)
        if digest in first
    ]
    if shared and not allow:
        raise DataError(
            f"{names[0]} and {names[1]} share {len(shared)} image(s), first {shared[0][0]} = "
            f"{shared[0][1]}: the result would mean nothing; remove them from one side, or give "
            "--allow-overlap to go on all the same"
        )
    return len(shared)


def check_known_classes(holdout: ImageSet, classes: Sequence[str], role: str) -> None:
    """Refuse a holdout with classes that private does not have.

    Raises:
        DataError: naming the first such class.
    """
    foreign = next((c for c in holdout.classes if c not in classes), None)
    if foreign is not None:
        raise DataError(
            f"{role}: class {foreign} is not in --private; the holdout holds other images of the "
            "same classes"
        )


def check_no_class_missing(holdout: ImageSet, classes: Iterable[str], role: str) -> None:
    """Refuse a holdout without images of some of ``classes``, which it could say nothing about.

    Raises:
        DataError: naming the first few such classes.
    """
    missing = sorted(set(classes) - set(holdout.classes))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{role}: has no images of class {', '.join(missing[:3])}{more}; add some that the target "
            "never saw, or go on without a holdout and without flags"
        )


def split(images: ImageSet, fraction: float, *, rng: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """(rest, held out): about ``fraction`` of each class held out, never a class's last image."""
    held: list[int] = []
    for label in images.labels.unique().tolist():
        rows = (images.labels == label).nonzero().squeeze(1)
        count = min(len(rows) - 1, max(1, round(fraction * len(rows)))) if fraction > 0 else 0
        held += rows[torch.randperm(len(rows), generator=rng)][:count].tolist()
    mask = torch.zeros(len(images), dtype=torch.bool)
    mask[torch.tensor(held, dtype=torch.int64)] = True
    return images.select((~mask).nonzero().squeeze(1)), images.select(mask.nonzero().squeeze(1))


@dataclass(frozen=True)
class Digits:
    """The embedded demonstration data and what its split is."""

    private: ImageSet
    holdout: ImageSet
    public: ImageSet
    description: str


def digits(*, seed: int, per_class: int = 10, public_images: int = 800) -> Digits:
    """scikit-learn's handwritten digits (8x8 grey, 10 classes) in three disjoint parts."""
    from sklearn.datasets import load_digits

    raw = load_digits()
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


def write_images(folder: Path, images: Tensor, names: Sequence[str]) -> None:
    """Write uint8 images (N, C, H, W) as PNG files ``folder/name``, making subfolders."""
    for image, name in zip(images, names, strict=True):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(file, format="PNG")


def to_pil(image: Tensor) -> Image.Image:
    """A uint8 image (C, H, W) -> Pillow image, grey or RGB."""
    array = image.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, 2))


def _list_files(
    path: Path, role: str, labelled: bool, limit: int | None
) -> tuple[list[str], list[tuple[Path, str | None]]]:
    """Class names, and files with their class, sorted by id."""
    layout = f"expected {path}/CLASS/IMAGE.png, one subfolder for each class"
    try:
        if not path.exists():
            raise DataError(f"{role} {path}: no such folder; {layout}")
        if not path.is_dir():
            raise DataError(f"{role} {path}: is a file; {layout}")
        entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"{role} {path}: cannot be read ({error.strerror})") from None
    if not entries:
        raise DataError(f"{role} {path}: is empty; {layout}")
    folders = [p for p in entries if p.is_dir()]
    loose = [p for p in entries if p.is_file() and p.suffix.lower() in SUFFIXES]
    if labelled and not folders:
        raise DataError(f"{role} {path}: has no class subfolders; {layout}")
    files: list[tuple[Path, str | None]] = []
    if labelled or not loose:
        for folder in folders[:limit]:
            inside = _images_below(folder, role)
            if not inside:
                raise DataError(
                    f"{role} {folder}: holds no images ({', '.join(sorted(SUFFIXES))}); "
                    "add some or remove the folder"
                )
            files += [(file, folder.name) for file in inside]
        classes = [folder.name for folder in folders[:limit]]
    else:
        classes = []
        inside = loose + [file for folder in folders for file in _images_below(folder, role)]
        files = [(file, None) for file in inside]
    if not files:
        raise DataError(f"{role} {path}: holds no images ({', '.join(sorted(SUFFIXES))})")
    for file, _ in files:
        try:
            str(file).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{role} {file!r}: file name is not UTF-8; rename it") from None
    files.sort(key=lambda row: row[0].relative_to(path).as_posix())
    return classes, files


def _images_below(folder: Path, role: str) -> list[Path]:
    try:
        # rglob does not follow links to folders, so no loop can hold it up.
        return sorted(
            p
            for p in folder.rglob("*")
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
        )
    except OSError as error:
        raise DataError(f"{role} {folder}: cannot be read ({error.strerror})") from None


def _check_headers(files: Sequence[tuple[Path, str | None]], role: str, size: int | None) -> bool:
    """Check declared sizes; True if every image is grey."""
    grey = True
    first: tuple[Path, tuple[int, int]] | None = None
    for file, _ in files:
        with _opened(file, role) as image:
            found = image.size
            grey = grey and image.mode in _GREY_MODES
        if size is not None:
            continue
        if found[0] != found[1]:
            raise DataError(
                f"{role} {file}: is {found[0]}x{found[1]}, expected square images; give --size N "
                "to bring every image to NxN (shorter side to N, centre cut out)"
            )
        if first is None:
            first = (file, found)
        elif found != first[1]:
            raise DataError(
                f"{role}: mixed sizes, {first[0]} is {first[1][0]}x{first[1][1]} and {file} is "
                f"{found[0]}x{found[1]}; give --size N to bring every image to NxN"
            )
    return grey


def _opened(file: Path, role: str) -> Image.Image:
    """Open for reading the header, refusing what is not an image or declares too many pixels."""
    try:
        if file.stat().st_size == 0:
            raise DataError(f"{role} {file}: is empty (0 bytes); replace or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except (UnidentifiedImageError, SyntaxError, ValueError):
        raise DataError(f"{role} {file}: is not a readable image; replace or remove it") from None
    except Image.DecompressionBombError:
        raise DataError(_bomb(role, file)) from None
    except OSError as error:
        raise DataError(
            f"{role} {file}: cannot be read ({error.strerror or error}); replace or remove it"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(_bomb(role, file))
    return image


def _bomb(role: str, file: Path) -> str:
    return (
        f"{role} {file}: declares more than {MAX_PIXELS / 1e6:.0f} million pixels, which could "
        "exhaust memory; shrink or remove it"
    )


def _decode(file: Path, role: str) -> Image.Image:
    """The whole image, turned upright, as L or RGB."""
    with _opened(file, role) as image:
        try:
            image.load()
            upright: Image.Image = ImageOps.exif_transpose(image)
            return _plain(upright)
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise whatever they trip over
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{role} {file}: is damaged or cut short ({reason}); replace or remove it"
            ) from None


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = 255.0 / 65535.0 if values.max(initial=0.0) > 255.0 else 1.0
        return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8))
    if image.mode in ("L", "1"):
        return image.convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        flat = Image.alpha_composite(paper, layered)
        return flat.convert("L" if image.mode in ("LA", "La") else "RGB")
    return image.convert("RGB")


def _to_tensor(image: Image.Image, size: int | None, channels: int) -> Tensor:
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size, size):
        shorter = min(image.size)
        wide = max(size, round(image.width * size / shorter))
        high = max(size, round(image.height * size / shorter))
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array[None] if channels == 1 else np.moveaxis(array, 2, 0).copy())
