"""Monitoring: which grids and rows are written, and that the training is not changed by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from inversight.core.seeding import generator
from inversight.priors.game import Game
from inversight.priors.monitor import SampleMonitor
from tests.priors.tiny import SHAPE, Record, assert_same, new_game, play, state


def mean_level(images: Iterator[Tensor]) -> float:
    """Not a distance, but it tells which images it was given."""
    return float(torch.cat(list(images)).mean())


def rows(folder: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / "progress.json").read_text())
    return found


def trained(folder: Path | None, steps: int = 6, **changes: object) -> tuple[Game, str]:
    """Train a game that is monitored in ``folder``; return it with its last note."""
    game, record = new_game(**changes), Record()
    monitor = None if folder is None else SampleMonitor(folder, mean_level, fewest=16)
    play(game, steps=steps, progress=record, monitor=monitor)
    return game, record.notes[-1]


def grey(n: int, rng: torch.Generator) -> Iterator[Tensor]:
    yield torch.zeros(n, *SHAPE)


def test_records_after_each_interval(tmp_path: Path) -> None:
    game, note = trained(tmp_path, watch_images=10)
    # Four images a step: records are taken at the start, after 10 and 20 images, and at the end.
    assert [row["images"] for row in rows(tmp_path)] == [0, 12, 20, 24]
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == [f"images-{n:09d}.png" for n in (0, 12, 20, 24)]
    last = rows(tmp_path)[-1]
    assert {"generator", "discriminator", "p", "frechet", "frechet_images"} <= last.keys()
    assert last["frechet_images"] == 16
    expected = mean_level(game.samples(16, generator(0, "watch", "distance")))
    assert last["frechet"] == pytest.approx(expected)
    assert "Frechet" in note


def test_records_ten_times_by_default(tmp_path: Path) -> None:
    trained(tmp_path, steps=20, batch_size=16)
    assert [row["images"] for row in rows(tmp_path)] == list(range(0, 321, 32))


def test_monitoring_does_not_change_the_game(tmp_path: Path) -> None:
    (watched, _), (alone, note) = trained(tmp_path, watch_images=4), trained(None)
    assert_same(state(watched), state(alone))
    assert "Frechet" not in note


def test_the_grid_shows_samples_of_the_average(tmp_path: Path) -> None:
    game, _ = trained(tmp_path)
    shown = np.asarray(Image.open(tmp_path / "samples" / "images-000000024.png"))
    assert shown.shape == (80, 80)  # eight by eight images of 8 x 8, framed
    images = torch.cat(list(game.samples(64, generator(0, "watch", "grid"))))
    for i, image in enumerate(images):
        row, column = divmod(i, 8)
        cut = shown[10 * row + 1 : 10 * row + 9, 10 * column + 1 : 10 * column + 9]
        assert np.abs(cut - image[0].numpy() * 255).max() <= 0.51
    assert shown[0].min() == shown[:, 0].min() == 255


@pytest.mark.parametrize(("size", "side"), [(8, 8), (256, 8), (512, 4), (1024, 2)])
def test_grids_of_large_images_have_few(tmp_path: Path, size: int, side: int) -> None:
    def draw(n: int, rng: torch.Generator) -> Iterator[Tensor]:
        yield torch.zeros(1, 3, 1, 1).expand(n, 3, size, size)

    assert SampleMonitor(tmp_path).record(draw, images=5, every=1, facts={}) is None
    with Image.open(tmp_path / "samples" / "images-000000005.png") as grid:
        assert grid.size == (side * (size + 2), side * (size + 2)) and grid.mode == "RGB"
    assert rows(tmp_path) == [{"images": 5}]


def test_drops_rows_of_repeated_steps_and_values_that_are_not_finite(tmp_path: Path) -> None:
    monitor = SampleMonitor(tmp_path, lambda images: float("nan"))
    for images in (0, 10, 20, 10):
        monitor.record(grey, images=images, every=10, facts={"generator": 0.5})
    assert [row["images"] for row in rows(tmp_path)] == [0, 10]
    assert "frechet" not in rows(tmp_path)[0]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(("every", "count"), [(100, 128), (32_000, 1000), (10**6, 2000)])
def test_the_distance_uses_a_share_of_the_images(tmp_path: Path, every: int, count: int) -> None:
    monitor = SampleMonitor(tmp_path, lambda images: float(sum(map(len, images))))
    assert monitor.record(grey, images=1, every=every, facts={}) == count
