"""The report and the model card of a run, written from its tables."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from PIL import ImageFilter
from torch import Tensor

from inversight.core.errors import RunError
from inversight.core.run import is_disk_full, names_behind, write_json, write_text
from inversight.data import ImageSet, to_pil
from inversight.report import (
    GalleryItem,
    ReportData,
    load_report_data,
    model_card,
    render,
    render_card,
)
from inversight.report.contents import nearest_first
from inversight.report.reading import read_mapping

MOST_SHOWN = 24
"""Images that the report shows."""


def report_stage(run: Path) -> ReportData:
    """Write report.html, model-card.md and model-card.json of ``run``; return what they show.

    Raises:
        RunError: not a run, or it has no tables yet.
    """
    data = load_report_data(run)
    card = model_card(read_mapping(run, "run.json"), data.metrics)
    write_text(run / "report.html", render(data))
    write_json(run / "model-card.json", card)
    write_text(run / "model-card.md", render_card(card))
    return data


def report(run: Path) -> Path:
    """Write the report and the model card of ``run`` again; return the report's path.

    Raises:
        RunError: not a run, it has no tables yet, or it cannot be written to.
    """
    try:
        report_stage(run)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise RunError(f"{run}: cannot be written to ({error.strerror})") from None
    return run / "report.html"


def make_gallery(
    run: Path, private: ImageSet, reconstructions: Iterable[ImageSet], *, blurred: bool
) -> tuple[GalleryItem, ...]:
    """Return the ``MOST_SHOWN`` images of ``run`` nearest to a reconstruction, nearest first, with it."""
    samples = nearest_first(pd.read_parquet(run / "samples.parquet")).head(MOST_SHOWN)
    real = names_behind(run)
    own = dict(zip(private.ids, private.images, strict=True))
    found = {
        name: image
        for one in reconstructions
        for name, image in zip(one.ids, one.images, strict=True)
    }

    def png(images: dict[str, Tensor], name: str) -> bytes:
        picture, buffer = to_pil(images[real.get(name, name)]), io.BytesIO()
        if blurred:
            picture = picture.filter(ImageFilter.GaussianBlur(picture.width / 10))
        picture.save(buffer, format="PNG")
        return buffer.getvalue()

    return tuple(
        GalleryItem(
            id=row["id"], label=row["label"], score=float(row["ddcs_best"]),
            nearest_distance=float(row["nearest_distance"]), private_png=png(own, row["id"]),
            reconstruction_png=png(found, row["nearest_reconstruction"]),
        )
        for row in samples.to_dict("records")
        if isinstance(row["nearest_reconstruction"], str)
    )  # fmt: skip
