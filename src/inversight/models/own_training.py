"""What an owner's training function is called with, in which state, and where in it an error was."""

from __future__ import annotations

import inspect
import multiprocessing
import random
import sys
import sysconfig
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from inversight.core.errors import one_line
from inversight.core.imaging import fit, to_float
from inversight.data import ImageSet

_PACKAGE = Path(__file__).parents[1]


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Items (image, label): the image (C, S, S) float32 in [0, 1], the label an index of the classes."""

    def __init__(self, images: ImageSet, image_shape: tuple[int, int, int]) -> None:
        self.images = images
        self.image_shape = image_shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        channels, height, width = self.image_shape
        image = to_float(self.images.images[index])[None]
        fitted = fit(image, size=(height, width), channels=channels)[0]
        return fitted, int(self.images.labels[index])


def few_of_each_class(images: ImageSet, most: int) -> ImageSet:
    """Return at most ``most`` images, the first of each class, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    ranked = []
    for row, label in enumerate(images.labels.tolist()):
        ranked.append((seen[label], label, row))
        seen[label] += 1
    return images.select(torch.tensor(sorted(row for *_, row in sorted(ranked)[:most])))


@contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch, numpy and random for the block, send its prints to stderr, and restore it all.

    ``seed`` is in [0, 2**32). The number of threads and the default type of tensors are restored too.
    """
    states = random.getstate(), np.random.get_state()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    # Under loky's, which its workers have, a DataLoader cannot start workers of its own.
    start = multiprocessing.get_start_method(allow_none=True)
    gpus = []
    if device.type == "cuda":
        gpus = [torch.cuda.current_device() if device.index is None else device.index]
    try:
        with (
            torch.random.fork_rng(gpus),
            redirect_stdout(sys.stderr),
            torch.enable_grad(),
        ):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            if start == "loky":
                multiprocessing.set_start_method(None, force=True)
            yield
    finally:
        if start == "loky":
            multiprocessing.set_start_method(start, force=True)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def describe_failure(error: BaseException, function: Callable[..., Any]) -> str:
    """Return an error's type, its message in one line, and the innermost line of the owner's code."""
    message = one_line(error)
    if message.startswith("Caught ") and "Original Traceback" in str(
        error
    ):  # in a DataLoader's worker
        message = str(error).strip().splitlines()[-1]
    text = (
        message
        if message.startswith(type(error).__name__)
        else f"{type(error).__name__}: {message}"
    )
    try:
        home = inspect.getfile(function)
    except TypeError:  # an object that is called
        home = inspect.getfile(type(function))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == home or not _is_installed(frame.filename)
    ]
    if not frames:
        return text
    return f"{text} ({_shown(frames[-1].filename)}:{frames[-1].lineno})"


def _is_installed(file: str) -> bool:
    """Return whether a file is part of Python, of an installed package, or of this one."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = [_PACKAGE, *(Path(sysconfig.get_paths()[name]) for name in names)]
    return file.startswith("<") or any(Path(file).is_relative_to(root) for root in roots)


def _shown(file: str) -> str:
    """Return a file's path, below the current folder if it is there."""
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
