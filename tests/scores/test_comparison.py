"""Several sets at once: what each pair of sets gives alone, and neighbours against a slow loop."""

from __future__ import annotations

import pytest
import torch

from inversight.embeddings.pixel import Pixel
from inversight.scores.comparison import Comparison, Labelled, compare
from tests.draws import noise, rng

MEMORY = pytest.mark.parametrize("memory", [4000, 1 << 26])


def drawn(n: int, seed: int, classes: int = 3) -> Labelled:
    """Return random 6 x 6 images, classes interleaved."""
    ids = tuple(f"{seed}-{i:02d}" for i in range(n))
    return Labelled(noise(n, 6, 1, seed), torch.arange(n) % classes, ids)


def compared(
    real: list[Labelled], made: list[Labelled], memory: int = 1 << 26, k: int = 0
) -> Comparison:
    return compare(Pixel((6, 6)), real, made, memory=memory, neighbours=k)


def slow_neighbours(images: Labelled, k: int) -> list[float]:
    x = images.images.double().flatten(1) / 255
    found = []
    for i, label in enumerate(images.labels):
        others = [j for j in range(len(x)) if j != i and images.labels[j] == label]
        near = sorted(float((x[i] - x[j]).square().mean()) for j in others)[:k]
        found.append(sum(near) / len(near) if near else float("nan"))
    return found


@MEMORY
def test_equals_the_comparison_of_each_pair_of_sets(memory: int) -> None:
    real, made = [drawn(11, 0), drawn(7, 1)], [drawn(9, 2), drawn(2, 3), drawn(5, 4, classes=2)]
    found = compared(real, made, memory, k=2)
    for i, one in enumerate(real):
        for j, other in enumerate(made):
            alone = compared([one], [other])
            assert alone.neighbour_distance is None
            for name, expected in vars(alone.assignments[0][0]).items():
                given = getattr(found.assignments[i][j], name)
                torch.testing.assert_close(given, expected, rtol=1e-9, atol=0)
    assert found.neighbour_distance is not None
    assert found.neighbour_distance.tolist() == pytest.approx(slow_neighbours(real[0], 2), rel=1e-5)


@MEMORY
def test_neighbour_distances_do_not_depend_on_row_order(memory: int) -> None:
    images, order = drawn(11, 0), torch.randperm(11, generator=rng())
    ids = tuple(images.ids[i] for i in order.tolist())
    mixed = Labelled(images.images[order], images.labels[order], ids)
    found = compared([mixed], [], memory, k=2).neighbour_distance
    assert found is not None
    assert found.tolist() == pytest.approx(slow_neighbours(mixed, 2), rel=1e-5)


@MEMORY
@pytest.mark.parametrize("count", [1, 3, 20])
def test_mean_of_several_nearest_is_that_of_a_slow_loop(memory: int, count: int) -> None:
    real, made = drawn(11, 0), [drawn(9, 2), drawn(5, 4, classes=2)]
    found = compare(Pixel((6, 6)), [real], made, memory=memory, several=count)
    for one, several, assignment in zip(made, found.several, found.assignments[0], strict=True):
        x, y = (s.images.double().flatten(1) / 255 for s in (real, one))
        expected = []
        for i, label in enumerate(real.labels):
            own = y[one.labels == label]
            near = (own - x[i]).square().mean(1).sort().values[:count]
            expected.append(float(near.mean()))
        assert several.tolist() == pytest.approx(expected, rel=1e-5, nan_ok=True)
        if count == 1:
            known = assignment.nearest_row >= 0
            assert torch.equal(several[known], assignment.nearest[known])
    assert compare(Pixel((6, 6)), [real], made, memory=memory).several == []


def test_neighbours_in_small_classes() -> None:
    """Of two images each has the other; single images have none."""
    images = drawn(4, 0)  # classes of 2, 1 and 1
    found = compared([images], [], k=5).neighbour_distance
    assert found is not None and found[0] == found[3]
    assert found.tolist() == pytest.approx(slow_neighbours(images, 5), nan_ok=True)
