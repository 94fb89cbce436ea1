from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversight.embeddings.base import Features
from inversight.scores import DDCSResult, ddcs
from tests.draws import normal, rng
from tests.reference.ddcs_loop import ddcs_loop
from tests.scores.build import features, gaussian, joined, shuffled, value

Pair = tuple[Features, Features]


def score(private: Features, made: Features, **options: float) -> DDCSResult:
    return ddcs(private, made, rng=rng(), **{"bootstrap": 0, **options})  # type: ignore[arg-type]


def columns(result: DDCSResult, *keys: str) -> dict[str, list[float]]:
    """Return values of each private image, all that there are or those of ``keys``."""
    return {key: result.per_sample[key].tolist() for key in keys or result.per_sample}


def by_id(result: DDCSResult, private: Features) -> dict[str, tuple[str, ...]]:
    rows = zip(*columns(result).values(), result.nearest_reconstruction, strict=True)
    return {name: tuple(map(str, row)) for name, row in zip(private.ids, rows, strict=True)}


def close(found: DDCSResult, expected: DDCSResult, rel: float = 1e-9, **powers: float) -> None:
    """Compare columns (all, or those in ``powers``) times a factor, and the nearest ones' names."""
    for key in powers or expected.per_sample:
        wanted = expected.per_sample[key] * powers.get(key, 1.0)
        assert found.per_sample[key].tolist() == pytest.approx(
            wanted.tolist(), rel=rel, nan_ok=True
        )
    assert found.nearest_reconstruction == expected.nearest_reconstruction


@st.composite
def pairs(draw: st.DrawFn, *, grid: bool = True) -> Pair:
    """Interleaved classes, some uncovered or of one image; on a grid most distances tie."""
    classes = draw(st.integers(1, 3))
    n, m = draw(st.integers(classes, 8)), draw(st.integers(1, 10))
    drawn = rng(draw(st.integers(0, 2**32)))

    def side(rows: int, labels: torch.Tensor, prefix: str) -> Features:
        values = torch.randn(rows, 3, generator=drawn)
        if grid:
            values = torch.randint(-1, 2, (rows, 3), generator=drawn).float()
        names = [f"{prefix}{i}" for i in torch.randperm(rows, generator=drawn).tolist()]
        return features(values, labels.tolist(), names)

    labels = torch.cat(
        [torch.arange(classes), torch.randint(classes, (n - classes,), generator=drawn)]
    )
    private = side(n, labels[torch.randperm(n, generator=drawn)], "p")
    return private, side(m, torch.randint(classes, (m,), generator=drawn), "r")


EITHER = pairs(grid=True) | pairs(grid=False)


def test_closed_form() -> None:
    # One dimension: r0, r1 and r2 are nearest to p0 (distances 1, 4, 4), r3 to p2 (16).
    private = features([[0.0], [10.0], [20.0]])
    result = score(private, features([[1.0], [2.0], [-2.0], [24.0]], prefix="r"))
    assert columns(result) == {
        "ddcs_best": [1.0, 0.0, 1 / 16],
        "ddcs_average": [pytest.approx(1 / 3), 0.0, 1 / 16],
        "reconstructions": [3, 0, 1],
        "nearest_distance": [1.0, 64.0, 16.0],
        "exact_hit": [False, False, False],
    }
    assert result.nearest_reconstruction == ("r0000", "r0001", "r0003")
    assert value(result) == pytest.approx((1 + 1 / 16) / 3)
    assert value(result, "ddcs_average") == pytest.approx((1 / 3 + 1 / 16) / 3)
    assert value(result, "covered") == pytest.approx(2 / 3)
    assert result.direction == "higher"


def test_identical_sets_have_exact_hits_and_finite_scores() -> None:
    private = gaussian(12, 40, classes=3)
    names = tuple(f"r{name}" for name in private.ids)
    result = score(private, replace(private, ids=names))
    for scores in columns(result, "ddcs_best", "ddcs_average").values():
        assert scores == [pytest.approx(1e6)] * 12
    assert bool(result.per_sample["exact_hit"].all())
    assert result.nearest_reconstruction == names
    assert value(result, "covered") == 1.0
    assert result.summary["ddcs_best"].extra["exact_hits"] == 12


def test_the_floor_applies_to_the_mean_distance() -> None:
    private, made = features([[0.0]]), features([[0.0], [0.2]], prefix="r")
    result = columns(score(private, made, floor=0.01), "ddcs_best", "ddcs_average", "exact_hit")
    # The mean of 0 and 0.04 lies above the floor: the floor is not applied to single distances.
    assert list(result.values()) == [[pytest.approx(100.0)], [pytest.approx(50.0)], [True]]
    at_the_floor = score(private, features([[0.5]], prefix="r"), floor=0.25)
    assert columns(at_the_floor, "exact_hit") == {"exact_hit": [False]}


def test_copies_of_one_reconstruction_cover_one_image() -> None:
    private = features([[0.0], [1.0], [2.0], [3.0]])
    copies = score(private, features([[0.1]] * 4, prefix="r"))
    spread = score(private, features([[0.1], [1.1], [2.1], [3.1]], prefix="r"))
    assert value(copies, "covered") == 0.25
    assert value(spread) == pytest.approx(4 * value(copies), rel=1e-4)


def test_classes_of_one_image_and_without_reconstructions() -> None:
    private = features([[0.0], [5.0], [6.0]], labels=[3, 9, 9])
    result = score(private, features([[2.0]], labels=[3], prefix="r"))
    assert columns(result, "ddcs_best", "exact_hit") == {
        "ddcs_best": [0.25, 0.0, 0.0],
        "exact_hit": [False] * 3,
    }
    nearest = result.per_sample["nearest_distance"].tolist()
    assert nearest == pytest.approx([4.0, math.nan, math.nan], nan_ok=True)
    assert result.nearest_reconstruction == ("r0000", None, None)


@pytest.mark.parametrize("memory", [1, 10_000, 2 << 30])
def test_ties_of_identical_images_go_to_the_first_id_despite_rounding(memory: int) -> None:
    # 33 copies among others: products of their columns differ in the last bits.
    image, others, steps = (normal(n, 999, seed=n, dtype=torch.float32) for n in (1, 30, 17))
    made = features(image + 0.3 * steps, prefix="r")
    ids = [f"p{i:02d}" for i in torch.randperm(63, generator=rng()).tolist()]
    private = features(torch.cat([image.expand(33, -1), others]), ids=ids)
    first = min(ids[:33])
    assigned = score(private, made, memory=memory).per_sample["reconstructions"]
    assert assigned[ids.index(first)] == 17
    swapped = score(made, private, memory=memory)
    assert {swapped.nearest_reconstruction[i] for i in range(17)} == {first}


@settings(max_examples=80, derandomize=True)
@given(EITHER)
def test_equals_the_definition_in_loops(pair: Pair) -> None:
    private, made = pair
    expected = ddcs_loop(
        *(
            list(zip(s.ids, s.labels.tolist(), s.flat().double().tolist(), strict=True))
            for s in pair
        )
    )
    result = score(private, made)
    for i, name in enumerate(private.ids):
        row = expected[name]
        found = {key: column[i].item() for key, column in result.per_sample.items()}
        assert found == pytest.approx(
            {
                "ddcs_best": row.best, "ddcs_average": row.average,
                "reconstructions": row.assigned, "nearest_distance": row.nearest_distance,
                "exact_hit": row.nearest_distance < 1e-6,
            },
            rel=1e-7, nan_ok=True,
        )  # fmt: skip
        assert result.nearest_reconstruction[i] == row.nearest_reconstruction
    mean = sum(row.best for row in expected.values()) / len(expected)
    assert value(result) == pytest.approx(mean, rel=1e-7)


@settings(max_examples=40, derandomize=True)
@given(EITHER, st.integers(0, 99))
def test_does_not_depend_on_row_order(pair: Pair, seed: int) -> None:
    expected = score(*pair, bootstrap=20)
    private, made = (shuffled(side, seed + i)[0] for i, side in enumerate(pair))
    found = score(private, made, bootstrap=20)
    assert by_id(found, private) == by_id(expected, pair[0])
    assert found.summary == expected.summary


@settings(max_examples=40, derandomize=True)
@given(EITHER, st.sampled_from([1, 200, 500]))
def test_does_not_depend_on_memory(pair: Pair, memory: int) -> None:
    close(score(*pair, memory=memory), score(*pair))


@settings(max_examples=40, derandomize=True)
@given(EITHER)
def test_duplicated_reconstructions_do_not_change_scores(pair: Pair) -> None:
    private, made = pair
    doubled = joined(made, replace(made, ids=tuple(f"{name}~copy" for name in made.ids)))
    same = {"ddcs_best": 1, "ddcs_average": 1, "nearest_distance": 1}
    close(score(private, doubled), score(private, made), **same, reconstructions=2)


@settings(max_examples=40, derandomize=True)
@given(EITHER)
def test_one_more_reconstruction_never_lowers_the_score(pair: Pair) -> None:
    private, made = pair
    if len(made) == 1:
        return
    before, after = score(private, made.select(torch.arange(len(made) - 1))), score(private, made)
    assert value(after) >= value(before) * (1 - 1e-7)
    far, near = (r.per_sample["nearest_distance"].nan_to_num(nan=math.inf) for r in (before, after))
    assert bool((near <= far * (1 + 1e-9)).all())


@settings(max_examples=40, derandomize=True)
@given(pairs(grid=False), st.sampled_from([0.25, 2.0, 16.0]))
def test_scores_scale_with_the_inverse_of_the_distance(pair: Pair, factor: float) -> None:
    scaled = [replace(side, blocks=tuple(factor * block for block in side.blocks)) for side in pair]
    before, after = score(*pair, floor=1e-30), score(*scaled, floor=1e-30)
    inverse = factor**-2
    close(after, before, ddcs_best=inverse, ddcs_average=inverse, nearest_distance=factor**2)
