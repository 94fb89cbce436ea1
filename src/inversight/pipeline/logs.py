"""What an audit logs beside the figures of its progress: reconstructions, results and pictures."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from inversight.attacks import load_latents
from inversight.core.console import Reporter
from inversight.core.loggers import Followed, group_name, open_loggers
from inversight.core.run import Run
from inversight.data import ImageSet, to_pil
from inversight.report import ReportData
from inversight.settings.audit import LoggerName, Pictures

LOGS = "logs"
"""Folder of the logs in a run folder."""
_SHOWN = 16
"""Reconstructions of an attack, and images of each gallery, that are logged."""


@contextmanager
def followed(run: Run, names: Sequence[LoggerName], reporter: Reporter) -> Iterator[Followed]:
    """Give the block a reporter that also logs to ``names``; a resumed run goes on with its own logs."""
    if not names:
        yield Followed(reporter)
        return
    if "log_id" not in run.manifest:
        run.record(log_id=secrets.token_hex(4))
    loggers = open_loggers(names, run.path / LOGS, run.manifest["log_id"])
    with ExitStack() as stack:
        for logger in loggers:
            stack.callback(logger.close)
        yield Followed(reporter, loggers)


def log_attack(log: Followed, name: str, folder: Path, found: ImageSet, pictures: Pictures) -> None:
    """Log the mean loss of each class's reconstructions, and the first pictures unless ``pictures`` is "none".

    folder: of the attack's stage.
    """
    if not log.loggers:
        return
    group, kept = group_name(name), load_latents(folder)
    for number, label in enumerate(kept["labels"].unique().tolist()):
        mean = float(kept["losses"][kept["labels"] == label].double().mean())
        if np.isfinite(mean):
            log.scalar(f"{group}/loss of a class", mean, number)
    if pictures != "none":
        for number, image in enumerate(found.images[:_SHOWN]):
            shown = to_pil(image)
            if pictures == "blurred":
                shown = shown.filter(ImageFilter.GaussianBlur(shown.width / 10))
            log.image(f"{group}/reconstruction", _tensor(shown), number)


def log_results(log: Followed, data: ReportData) -> None:
    """Log every measure with its interval, and the pictures of the report side by side."""
    if not log.loggers:
        return
    for key, metric in data.metrics.items():
        for part in ("value", "low", "high"):
            value = metric.get(part)
            if value is not None:
                log.scalar(f"metrics/{key}" + ("" if part == "value" else f"_{part}"), value)
    for number, near in enumerate(data.gallery[:_SHOWN]):
        log.image("pictures/nearest", _beside(near.private_png, near.reconstruction_png), number)
    for number, one in enumerate(data.exposure_gallery[:_SHOWN]):
        triple = _beside(one.private_png, one.with_png, one.without_png)
        log.image("pictures/largest exposure", triple, number)


def _beside(*pictures: bytes) -> Tensor:
    """Return pictures beside each other at the size of the first, as (C, H, W) uint8.

    A reconstruction has the prior's size, which need not be that of the private image.
    """
    shown = [Image.open(io.BytesIO(png)) for png in pictures]
    mode = "L" if all(one.mode == "L" for one in shown) else "RGB"
    same = [one.convert(mode).resize(shown[0].size, Image.Resampling.NEAREST) for one in shown]
    return torch.cat([_tensor(one) for one in same], dim=2)


def _tensor(picture: Image.Image) -> Tensor:
    """Return a picture as (C, H, W) uint8."""
    pixels = np.array(picture)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0).copy())
