"""Several sets at once: what each pair of sets gives alone, and neighbours against a slow loop."""

from __future__ import annotations

import pytest
import torch

from inversight.core.seeding import generator
from inversight.embeddings.pixel import Pixel
from inversight.scores import Assignment
from inversight.scores.comparison import Labelled, compare

EMBEDDING = Pixel((6, 6))


def drawn(n: int, seed: int, classes: int = 3) -> Labelled:
    """Random 6 x 6 images, classes interleaved."""
    pixels = torch.randint(0, 256, (n, 1, 6, 6), generator=generator(seed)).to(torch.uint8)
    return Labelled(pixels, torch.arange(n) % classes, tuple(f"{seed}-{i:02d}" for i in range(n)))


def neighbours(images: Labelled, k: int, **options: int) -> torch.Tensor:
    found = compare(EMBEDDING, [images], [], neighbours=k, **{"memory": 1 << 26, **options})
    assert found.neighbour_distance is not None
    return found.neighbour_distance


def same(found: Assignment, expected: Assignment) -> None:
    for name, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("memory", [4000, 1 << 26])
def test_sets_together_are_as_each_pair_alone(memory: int) -> None:
    real, made = [drawn(11, 0), drawn(7, 1)], [drawn(9, 2), drawn(2, 3), drawn(5, 4, classes=2)]
    found = compare(EMBEDDING, real, made, memory=memory, neighbours=2)
    for i, one in enumerate(real):
        for j, other in enumerate(made):
            alone = compare(EMBEDDING, [one], [other], memory=1 << 26)
            same(found.assignments[i][j], alone.assignments[0][0])
            assert alone.neighbour_distance is None
    torch.testing.assert_close(found.neighbour_distance, neighbours(real[0], 2))


def test_neighbour_distances_are_those_of_a_slow_loop() -> None:
    images = drawn(11, 0)
    found = neighbours(images, 2)
    x = images.images.double().flatten(1) / 255
    for i in range(11):
        others = [j for j in range(11) if j != i and j % 3 == i % 3]
        near = sorted(float((x[i] - x[j]).square().mean()) for j in others)[:2]
        assert found[i].item() == pytest.approx(sum(near) / len(near), rel=1e-5)
    order = torch.randperm(11, generator=generator(0))
    ids = tuple(images.ids[i] for i in order.tolist())
    again = neighbours(Labelled(images.images[order], images.labels[order], ids), 2)
    torch.testing.assert_close(found[order], again)
    torch.testing.assert_close(neighbours(images, 2, memory=4000), found)


def test_small_classes_look_at_all_others_and_single_images_at_none() -> None:
    images = drawn(4, 0)  # classes of 2, 1 and 1
    found = neighbours(images, 5)
    x = images.images.double().flatten(1) / 255
    assert found[0] == found[3] == pytest.approx(float((x[0] - x[3]).square().mean()))
    assert found[1:3].isnan().all()
