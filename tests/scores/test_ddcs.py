from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inversight.core.errors import ConfigError
from inversight.embeddings.base import Features
from inversight.scores import DDCSResult, ddcs
from tests.reference.ddcs_loop import ddcs_loop
from tests.scores.build import features, gaussian, shuffled


def score(private: Features, reconstructions: Features, **options: float) -> DDCSResult:
    options = {"bootstrap": 0, **options}
    return ddcs(private, reconstructions, rng=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]


def value(result: DDCSResult, key: str = "ddcs_best") -> float:
    found = result.summary[key].value
    assert found is not None
    return found


def by_id(result: DDCSResult, private: Features) -> dict[str, list[object]]:
    columns = [column.tolist() for column in result.per_sample.values()]
    columns.append(list(result.nearest_reconstruction))
    rows = zip(*columns, strict=True)
    return {
        name: ["nan" if value != value else value for value in row]
        for name, row in zip(private.ids, rows, strict=True)
    }


def union(left: Features, right: Features) -> Features:
    return Features(
        tuple(torch.cat(pair) for pair in zip(left.blocks, right.blocks, strict=True)),
        torch.cat([left.labels, right.labels]),
        left.ids + right.ids,
    )


@st.composite
def pairs(draw: st.DrawFn, *, grid: bool = True) -> tuple[Features, Features]:
    """Interleaved classes, some uncovered or of one image; on a grid most distances tie."""
    classes = draw(st.integers(1, 3))
    n, m = draw(st.integers(classes, 8)), draw(st.integers(1, 10))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def values(rows: int) -> torch.Tensor:
        if grid:
            return torch.randint(-1, 2, (rows, 3), generator=rng).float()
        return torch.randn(rows, 3, generator=rng)

    def names(rows: int, prefix: str) -> list[str]:
        return [f"{prefix}{i}" for i in torch.randperm(rows, generator=rng).tolist()]

    labels = torch.cat(
        [torch.arange(classes), torch.randint(classes, (n - classes,), generator=rng)]
    )
    labels = labels[torch.randperm(n, generator=rng)]
    return (
        features(values(n), labels, names(n, "p")),
        features(values(m), torch.randint(classes, (m,), generator=rng), names(m, "r")),
    )


EITHER = pairs(grid=True) | pairs(grid=False)


def test_closed_form() -> None:
    # One dimension: r0, r1 and r2 are nearest to p0 (distances 1, 4, 4), r3 to p2 (16).
    private = features([[0.0], [10.0], [20.0]])
    made = features([[1.0], [2.0], [-2.0], [24.0]], prefix="r")
    result = score(private, made)
    columns = result.per_sample
    assert columns["ddcs_best"].tolist() == [1.0, 0.0, 1 / 16]
    assert columns["ddcs_average"].tolist() == [pytest.approx(1 / 3), 0.0, 1 / 16]
    assert columns["reconstructions"].tolist() == [3, 0, 1]
    assert columns["nearest_distance"].tolist() == [1.0, 64.0, 16.0]
    assert columns["exact_hit"].tolist() == [False, False, False]
    assert result.nearest_reconstruction == ("r0000", "r0001", "r0003")
    assert value(result) == pytest.approx((1 + 1 / 16) / 3)
    assert value(result, "ddcs_average") == pytest.approx((1 / 3 + 1 / 16) / 3)
    assert value(result, "covered") == pytest.approx(2 / 3)
    assert result.direction == "higher"


def test_identity_is_an_exact_hit_for_all_and_stays_finite() -> None:
    private = gaussian(12, 40, classes=3)
    result = score(private, replace(private, ids=tuple(f"r{name}" for name in private.ids)))
    assert result.per_sample["ddcs_best"].tolist() == [pytest.approx(1e6)] * 12
    assert result.per_sample["ddcs_average"].tolist() == [pytest.approx(1e6)] * 12
    assert bool(result.per_sample["exact_hit"].all())
    assert result.nearest_reconstruction == tuple(f"r{name}" for name in private.ids)
    assert value(result, "covered") == 1.0
    assert result.summary["ddcs_best"].extra["exact_hits"] == 12


def test_the_floor_bounds_the_distance_not_the_score() -> None:
    private, made = features([[0.0]]), features([[0.0], [0.2]], prefix="r")
    result = score(private, made, floor=0.01)
    assert result.per_sample["ddcs_best"].tolist() == [pytest.approx(100.0)]
    # The mean of 0 and 0.04 lies above the floor: the floor is not applied to single distances.
    assert result.per_sample["ddcs_average"].tolist() == [pytest.approx(50.0)]
    assert result.per_sample["exact_hit"].tolist() == [True]
    at_the_floor = score(features([[0.0]]), features([[0.5]], prefix="r"), floor=0.25)
    assert at_the_floor.per_sample["exact_hit"].tolist() == [False]


def test_nearer_reconstructions_score_higher() -> None:
    private = gaussian(20, 16, classes=2)
    noise = gaussian(20, 16, seed=1).blocks
    scores = [
        value(score(private, replace(private, blocks=blocks)))
        for scale in (1.0, 0.3, 0.1, 0.01)
        for blocks in [tuple(b + scale * e for b, e in zip(private.blocks, noise, strict=True))]
    ]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


def test_many_copies_of_one_good_reconstruction_cover_one_image() -> None:
    private = features([[0.0], [1.0], [2.0], [3.0]])
    copies = score(private, features([[0.1]] * 4, prefix="r"))
    spread = score(private, features([[0.1], [1.1], [2.1], [3.1]], prefix="r"))
    assert value(copies, "covered") == 0.25
    assert value(spread) == pytest.approx(4 * value(copies), rel=1e-4)


def test_a_class_of_one_image_and_a_class_without_reconstructions() -> None:
    private = features([[0.0], [5.0], [6.0]], labels=[3, 9, 9])
    result = score(private, features([[2.0]], labels=[3], prefix="r"))
    assert result.per_sample["ddcs_best"].tolist() == [0.25, 0.0, 0.0]
    nearest = result.per_sample["nearest_distance"].tolist()
    assert nearest[0] == 4.0
    assert math.isnan(nearest[1]) and math.isnan(nearest[2])
    assert result.per_sample["exact_hit"].tolist() == [False] * 3
    assert result.nearest_reconstruction == ("r0000", None, None)


def test_identical_private_images_resolve_to_the_first_id_in_spite_of_rounding() -> None:
    # 33 copies among others: products of their columns differ in the last bits.
    rng = torch.Generator().manual_seed(0)
    image = torch.randn(1, 999, generator=rng)
    others = torch.randn(30, 999, generator=rng)
    made = features(image + 0.3 * torch.randn(17, 999, generator=rng), prefix="r")
    ids = [f"p{i:02d}" for i in torch.randperm(63, generator=rng).tolist()]
    private = features(torch.cat([image.expand(33, -1), others]), ids=ids)
    first = min(ids[:33])
    for memory in (1, 10_000, 2 << 30):
        assigned = score(private, made, memory=memory).per_sample["reconstructions"]
        assert assigned[ids.index(first)] == 17
    swapped = score(made, private)
    assert {swapped.nearest_reconstruction[i] for i in range(17)} == {first}


@settings(max_examples=80, derandomize=True)
@given(EITHER)
def test_equals_the_definition_in_loops(pair: tuple[Features, Features]) -> None:
    private, made = pair
    plain = [
        [
            (name, label, row)
            for name, label, row in zip(
                side.ids, side.labels.tolist(), side.flat().double().tolist(), strict=True
            )
        ]
        for side in pair
    ]
    expected = ddcs_loop(plain[0], plain[1])
    result = score(private, made)
    for i, name in enumerate(private.ids):
        row = expected[name]
        columns = {key: column[i].item() for key, column in result.per_sample.items()}
        assert columns["ddcs_best"] == pytest.approx(row.best, rel=1e-7)
        assert columns["ddcs_average"] == pytest.approx(row.average, rel=1e-7)
        assert columns["reconstructions"] == row.assigned
        assert columns["nearest_distance"] == pytest.approx(
            row.nearest_distance, rel=1e-7, nan_ok=True
        )
        assert columns["exact_hit"] == (row.nearest_distance < 1e-6)
        assert result.nearest_reconstruction[i] == row.nearest_reconstruction
    mean = sum(row.best for row in expected.values()) / len(expected)
    assert value(result) == pytest.approx(mean, rel=1e-7)


@settings(max_examples=40, derandomize=True)
@given(EITHER, st.integers(0, 99))
def test_row_order_of_either_side_does_not_matter(
    pair: tuple[Features, Features], seed: int
) -> None:
    private, made = pair
    expected = score(private, made, bootstrap=20)
    other_private, _ = shuffled(private, seed)
    other_made, _ = shuffled(made, seed + 1)
    found = score(other_private, other_made, bootstrap=20)
    assert by_id(found, other_private) == by_id(expected, private)
    assert found.summary == expected.summary


@settings(max_examples=40, derandomize=True)
@given(EITHER, st.sampled_from([1, 200, 500]))
def test_block_size_does_not_matter(pair: tuple[Features, Features], memory: int) -> None:
    whole, parts = score(*pair), score(*pair, memory=memory)
    for key, column in whole.per_sample.items():
        torch.testing.assert_close(parts.per_sample[key], column, rtol=1e-9, atol=0, equal_nan=True)
    assert parts.nearest_reconstruction == whole.nearest_reconstruction


@settings(max_examples=40, derandomize=True)
@given(EITHER)
def test_duplicated_reconstructions_change_neither_score(pair: tuple[Features, Features]) -> None:
    private, made = pair
    doubled = union(made, replace(made, ids=tuple(f"{name}~copy" for name in made.ids)))
    before, after = score(private, made), score(private, doubled)
    for key in ("ddcs_best", "ddcs_average", "nearest_distance"):
        torch.testing.assert_close(
            after.per_sample[key], before.per_sample[key], rtol=1e-9, atol=0, equal_nan=True
        )
    assert after.nearest_reconstruction == before.nearest_reconstruction
    assert torch.equal(
        after.per_sample["reconstructions"], 2 * before.per_sample["reconstructions"]
    )


@settings(max_examples=40, derandomize=True)
@given(EITHER)
def test_one_more_reconstruction_never_lowers_best_nor_moves_the_nearest_away(
    pair: tuple[Features, Features],
) -> None:
    private, made = pair
    if len(made) == 1:
        return
    before, after = score(private, made.select(torch.arange(len(made) - 1))), score(private, made)
    assert value(after) >= value(before) * (1 - 1e-7)
    infinite = [
        result.per_sample["nearest_distance"].nan_to_num(nan=math.inf) for result in (after, before)
    ]
    assert bool((infinite[0] <= infinite[1] * (1 + 1e-9)).all())


@settings(max_examples=40, derandomize=True)
@given(pairs(grid=False), st.sampled_from([0.25, 2.0, 16.0]))
def test_scores_scale_with_the_inverse_of_the_distance(
    pair: tuple[Features, Features], factor: float
) -> None:
    private, made = pair
    scaled = [replace(side, blocks=tuple(factor * block for block in side.blocks)) for side in pair]
    before, after = score(private, made, floor=1e-30), score(*scaled, floor=1e-30)
    for key, power in (("ddcs_best", -2), ("ddcs_average", -2), ("nearest_distance", 2)):
        torch.testing.assert_close(
            after.per_sample[key],
            before.per_sample[key] * factor**power,
            rtol=1e-9,
            atol=0,
            equal_nan=True,
        )


@settings(max_examples=40, derandomize=True)
@given(EITHER)
def test_a_class_without_reconstructions_scores_zero_and_leaves_the_rest(
    pair: tuple[Features, Features],
) -> None:
    private, made = pair
    extra = features(torch.zeros(2, 3), labels=[8, 8], prefix="uncovered")
    before, after = score(private, made), score(union(extra, private), made)
    assert after.per_sample["ddcs_best"][:2].tolist() == [0.0, 0.0]
    assert bool(after.per_sample["nearest_distance"][:2].isnan().all())
    torch.testing.assert_close(
        after.per_sample["ddcs_best"][2:], before.per_sample["ddcs_best"], rtol=1e-9, atol=0
    )
    n = len(private)
    assert value(after) == pytest.approx(value(before) * n / (n + 2))


def test_intervals_hold_the_value_and_follow_the_seed() -> None:
    private, made = gaussian(60, 8, classes=4), gaussian(80, 8, classes=4, seed=1, prefix="r")
    first, again = (ddcs(private, made, rng=torch.Generator().manual_seed(5)) for _ in range(2))
    other = ddcs(private, made, rng=torch.Generator().manual_seed(6))
    assert first.summary == again.summary
    assert first.summary != other.summary
    for summary in first.summary.values():
        assert summary.value is not None and summary.low is not None and summary.high is not None
        assert summary.low < summary.value < summary.high
    assert value(first) == value(other)


def test_without_resamples_there_is_no_interval() -> None:
    summary = score(gaussian(6, 4), gaussian(6, 4, seed=1)).summary["ddcs_best"]
    assert (summary.low, summary.high) == (None, None)


@pytest.mark.parametrize(
    "option", [{"floor": 0.0}, {"floor": math.nan}, {"memory": 0}, {"bootstrap": -1}]
)
def test_options_out_of_range_are_named(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        score(gaussian(6, 4), gaussian(6, 4, seed=1), **option)
