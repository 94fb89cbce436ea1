"""Looks at a game: grids and rows where they should be, and nothing of the game changed by them."""

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
from inversight.priors.monitor import SampleMonitor, grid_of
from inversight.priors.training import run_game
from tests.priors.test_training import SHAPE, assert_same, public, state, tiny


def mean_level(images: Iterator[Tensor]) -> float:
    """Not a distance, but one sees which images it was given."""
    return float(torch.cat(list(images)).mean())


def rows(folder: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / "progress.json").read_text())
    return found


def trained(folder: Path | None, **changes: object) -> tuple[Game, list[str]]:
    told: list[str] = []
    game = Game(image_shape=SHAPE, training=tiny(**changes))
    run_game(
        game,
        public(),
        steps=6,
        rng=generator(0),
        fresh=True,
        progress=lambda done, total, note="": told.append(note),
        monitor=None if folder is None else SampleMonitor(folder, mean_level),
    )
    return game, told


def test_looks_are_taken_in_time(tmp_path: Path) -> None:
    game, told = trained(tmp_path, watch_images=10)
    # Four images a step: the looks are at the start, after 10 and 20 images, and at the end.
    assert [row["images"] for row in rows(tmp_path)] == [0, 12, 20, 24]
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == [f"images-{n:09d}.png" for n in (0, 12, 20, 24)]
    last = rows(tmp_path)[-1]
    assert {"generator", "discriminator", "p", "frechet", "frechet_images"} <= last.keys()
    assert last["frechet_images"] == 128
    expected = torch.cat(list(game.samples(128, generator(0, "watch", "distance")))).mean()
    assert last["frechet"] == pytest.approx(float(expected))
    assert "Frechet" in told[-1]


def test_ten_looks_by_default(tmp_path: Path) -> None:
    game = Game(image_shape=SHAPE, training=tiny(batch_size=2))
    run_game(
        game,
        public(),
        steps=20,
        rng=generator(0),
        fresh=True,
        monitor=SampleMonitor(tmp_path, mean_level),
    )
    assert [row["images"] for row in rows(tmp_path)] == list(range(0, 41, 4))


def test_a_watched_game_is_the_same_game(tmp_path: Path) -> None:
    (watched, _), (alone, told) = trained(tmp_path, watch_images=4), trained(None)
    assert_same(state(watched), state(alone))
    assert "Frechet" not in told[-1]


def test_the_grid_shows_the_averages_samples(tmp_path: Path) -> None:
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
        yield torch.rand(1, 3, 1, 1, generator=rng).expand(n, 3, size, size)

    assert SampleMonitor(tmp_path).record(draw, images=5, every=1, facts={}) is None
    with Image.open(tmp_path / "samples" / "images-000000005.png") as grid:
        assert grid.size == (side * (size + 2), side * (size + 2)) and grid.mode == "RGB"
    assert rows(tmp_path) == [{"images": 5}]


def test_grid_of_places_images_in_rows() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1)
    grid = grid_of(images, 2)
    assert grid.shape == (1, 6, 6)
    assert grid[0, 1::3, 1::3].tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_rows_that_a_kill_undid_are_dropped_and_numbers_alone_are_kept(tmp_path: Path) -> None:
    def draw(n: int, rng: torch.Generator) -> Iterator[Tensor]:
        yield torch.zeros(n, *SHAPE)

    monitor = SampleMonitor(tmp_path, lambda images: float("nan"))
    for images in (0, 10, 20, 10):
        monitor.record(draw, images=images, every=10, facts={"generator": 0.5})
    assert [row["images"] for row in rows(tmp_path)] == [0, 10]
    assert "frechet" not in rows(tmp_path)[0]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(("every", "count"), [(100, 128), (32_000, 1000), (10**6, 2000)])
def test_the_distance_costs_a_share_of_the_training(tmp_path: Path, every: int, count: int) -> None:
    asked: list[int] = []

    def draw(n: int, rng: torch.Generator) -> Iterator[Tensor]:
        asked.append(n)
        yield torch.zeros(n, *SHAPE)

    SampleMonitor(tmp_path, mean_level).record(draw, images=1, every=every, facts={})
    assert asked[-1] == count
