"""The most exposed images beside what came nearest to them, for the report."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
from PIL import ImageFilter
from torch import Tensor

from inversight.data import ImageSet, to_pil
from inversight.pipeline.hidden_names import names_behind
from inversight.report import GalleryItem

MOST = 24
"""Images that the report shows."""


def gallery(
    run: Path,
    private: ImageSet,
    reconstructions: dict[str, ImageSet],
    *,
    blurred: bool,
    hashed: bool,
) -> tuple[GalleryItem, ...]:
    """At most ``MOST`` images of the run's ledger that anything was nearest to, the most exposed first.

    ``hashed``: the ledger names images by :func:`hidden_names`.
    """
    samples = pd.read_parquet(run / "stages" / "scores" / "samples.parquet")
    real = names_behind(run) if hashed else {}
    own = {name: i for i, name in enumerate(private.ids)}
    made = {
        name: image
        for one in reconstructions.values()
        for name, image in zip(one.ids, one.images, strict=True)
    }
    items = []
    for row in samples.head(MOST).itertuples():
        if not isinstance(row.nearest_reconstruction, str):
            continue
        name, nearest = str(row.id), row.nearest_reconstruction
        items.append(
            GalleryItem(
                id=name,
                label=str(row.label),
                score=float(row.ddcs_best),  # type: ignore[arg-type]
                nearest_distance=float(row.nearest_distance),  # type: ignore[arg-type]
                private_png=_png(private.images[own[real.get(name, name)]], blurred),
                reconstruction_png=_png(made[real.get(nearest, nearest)], blurred),
            )
        )
    return tuple(items)


def _png(image: Tensor, blurred: bool) -> bytes:
    picture = to_pil(image)
    if blurred:
        picture = picture.filter(ImageFilter.GaussianBlur(picture.width / 10))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
