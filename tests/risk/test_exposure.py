"""Exposure: against loops and all halves, right rates without effects, planted effects found."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inversight.core.errors import ConfigError, DesignError, InputError
from inversight.risk.design import draw_design, make_units
from inversight.risk.estimates import planned_factors
from inversight.risk.exposure import Exposure, exposure, membership_auc
from tests.reference import exposure_loop

Floats = NDArray[np.float64]
RAGGED = [2, 3, 4, 5, 9, 17]


def experiment(
    seed: int,
    models: int,
    sizes: list[int],
    *,
    effect: Floats | float = 0.0,
    between: float = 0.0,
    noise: str = "normal",
    units: torch.Tensor | None = None,
) -> tuple[Floats, torch.Tensor, torch.Tensor]:
    """Return log distances, membership and labels.

    Images differ by 0.5; those of a model depend on each other by two factors a class. ``effect``: how much
    training on an image lowers its value; ``between``: standard deviation of what training on an image does
    to each classmate, of either sign.
    """
    rng = np.random.default_rng([seed, models])
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    member = draw_design(labels, units, pairs=models // 2, seed=seed)
    n = len(labels)
    same = (labels[:, None] == labels).numpy()
    common = np.einsum(
        "kcf,cfi->ki",
        rng.normal(size=(models, len(sizes), 2)),
        0.1
        * rng.normal(size=(len(sizes), 2, n))
        * (labels.numpy() == np.arange(len(sizes))[:, None, None]),
    )
    own = rng.normal(size=(models, n)) if noise == "normal" else rng.standard_t(4, size=(models, n))
    scale = 0.15 * np.exp(0.3 * rng.normal(size=n))
    others = between * rng.normal(size=(n, n)) * same * (1 - np.eye(n))
    inside = member.numpy().astype(float)
    values = 0.5 * rng.normal(size=n) + common + scale * own - effect * inside + inside @ others
    return values, member, labels


def some_private(n: int) -> NDArray[np.bool_]:
    return np.arange(n) % 2 == 0


@pytest.mark.parametrize("missing", [False, True])
def test_agrees_with_loops(missing: bool) -> None:
    values, member, labels = experiment(0, 10, [4, 5, 8], effect=0.1)
    if missing:
        values[3, labels == 1] = np.nan
        values[6, 2] = np.nan
    private = some_private(17)
    found = exposure(values, member, labels, private=private, redraws=99)
    rows = exposure_loop.image_rows(values, member.numpy(), labels.tolist())
    effect, error, freedom, p = torch.tensor(rows, dtype=torch.float64).T
    columns = found.per_sample
    torch.testing.assert_close(columns["exposure"].log(), effect)
    torch.testing.assert_close(columns["exposure_p"], p)
    half = torch.from_numpy(exposure_loop.t.ppf(0.975, freedom.numpy())) * error
    torch.testing.assert_close(columns["exposure_low"].log(), effect - half)
    torch.testing.assert_close(columns["exposure_high"].log(), effect + half)
    mean = found.summary["exposure_mean"]
    assert mean.value == pytest.approx(math.exp(float(effect[private].mean())))
    wins = []
    for i in np.flatnonzero(private):
        d = [
            x
            for x in exposure_loop.differences(values, member.numpy(), labels.tolist(), i)
            if x == x
        ]
        wins.append(sum(x > 0 for x in d) / len(d))
        torch.testing.assert_close(
            torch.tensor(d, dtype=torch.float64),
            found.differences[:, i][found.differences[:, i].isfinite()],
        )
    assert found.summary["exposure_auc"].value == pytest.approx(np.mean(wins))
    # Benjamini-Hochberg by its definition, over private images alone.
    ordered = sorted(p[private].tolist())
    for i in range(17):
        q = columns["exposure_q"][i]
        if not private[i]:
            assert q.isnan()
            continue
        above = [len(ordered) * x / (k + 1) for k, x in enumerate(ordered) if x >= p[i] - 1e-12]
        assert q == pytest.approx(min(1.0, min(above)))


def test_interval_of_the_mean_is_t_over_pairs() -> None:
    values, member, labels = experiment(1, 12, [6, 6], effect=0.1)
    found = exposure(values, member, labels, redraws=9)
    means = found.differences.mean(1).numpy()
    half = exposure_loop.t.ppf(0.975, 5) * means.std(ddof=1) / math.sqrt(6)
    mean = found.summary["exposure_mean"]
    assert (mean.low, mean.high) == pytest.approx(
        (math.exp(means.mean() - half), math.exp(means.mean() + half))
    )


def test_p_of_the_set_agrees_with_all_halves() -> None:
    for seed in range(4):
        values, member, labels = experiment(seed, 4, [4, 6], effect=0.05)
        images = [0, 2, 3, 5, 9]
        private = np.isin(np.arange(10), images)
        expected = exposure_loop.set_p_value(values, member.numpy(), labels.tolist(), images)
        found = exposure(values, member, labels, private=private).summary["exposure_mean"]
        margin = 4 * math.sqrt(expected * (1 - expected) / 9999) + 2e-4
        assert abs(float(found.extra["p_value"]) - expected) < margin


@pytest.mark.parametrize(("models", "noise"), [(4, "normal"), (8, "heavy"), (16, "normal")])
def test_without_effects_p_values_hold_their_level(models: int, noise: str) -> None:
    """Ragged classes, dependent images, a class without reconstructions in some models, classmates."""
    simulations, p_set, any_flag, small = 150, [], 0, []
    for seed in range(simulations):
        values, member, labels = experiment(seed, models, RAGGED, noise=noise, between=0.02)
        values[1, labels == 3] = np.nan
        found = exposure(values, member, labels, private=some_private(40), redraws=199)
        p_set.append(float(found.summary["exposure_mean"].extra["p_value"]))
        any_flag += bool(found.per_sample["exposed"].any())
        p = found.per_sample["exposure_p"]
        small.append(float((p[p.isfinite()] <= 0.05).double().mean()))
    for level in (0.05, 0.2, 0.5):
        error = math.sqrt(level * (1 - level) / simulations)
        assert abs(np.mean(np.array(p_set) <= level) - level) < 3.5 * error
    assert abs(np.mean(small) - 0.05) < 0.012
    assert any_flag / simulations <= (0.1 + 3 * math.sqrt(0.09 / simulations) if models >= 8 else 0)


def test_planted_effects_are_found() -> None:
    recall, wrong, held, raw, shrunk = [], [], [], [], []
    for seed in range(20):
        effect = np.where(np.arange(60) % 4 == 0, 0.4, 0.0)
        values, member, labels = experiment(seed, 24, [20, 20, 20], effect=effect)
        private = np.arange(60) % 2 == 0
        found = exposure(values, member, labels, private=private, redraws=199)
        columns = found.per_sample
        flags = columns["exposed"].numpy()
        recall.append(flags[effect > 0].mean())
        wrong.append(flags[effect == 0].sum() / max(1, flags.sum()))
        mean = found.summary["exposure_mean"]
        held.append(mean.low <= math.exp(effect[private].mean()) <= mean.high)  # type: ignore[operator]
        assert mean.extra["p_value"] == pytest.approx(1 / 200)
        assert found.summary["exposure_auc"].low > 0.5  # type: ignore[operator]
        raw.append(((columns["exposure"].log().numpy() - effect) ** 2).mean())
        shrunk.append(((columns["exposure_shrunken"].log().numpy() - effect) ** 2).mean())
    assert np.mean(recall) > 0.8
    assert np.mean(wrong) < 0.1
    assert np.mean(held) >= 0.8
    assert np.mean(shrunk) < np.mean(raw)


def test_detectable_factors_are_found_with_80_percent_power() -> None:
    flagged, small = [], []
    for seed in range(80):
        values, member, labels = experiment(seed, 12, [10] * 4)
        null = exposure(values, member, labels, redraws=199)
        single = math.log(float(null.summary["exposed"].extra["detectable"]))
        every = math.log(float(null.summary["exposure_mean"].extra["detectable"]))
        inside = member.numpy()
        # On the scale after centring, which takes 1 / n of an image's effect away.
        one = values - single * 10 / 9 * inside * (np.arange(40) == seed % 40)
        flagged.append(
            bool(exposure(one, member, labels, redraws=9).per_sample["exposed"][seed % 40])
        )
        private = np.arange(40) % 10 < 5
        found = exposure(values, member, labels, private=private, redraws=199)
        every = math.log(float(found.summary["exposure_mean"].extra["detectable"]))
        moved = exposure(values - every * inside, member, labels, private=private, redraws=199)
        small.append(float(moved.summary["exposure_mean"].extra["p_value"]) <= 0.05)
    assert 0.68 < np.mean(flagged) < 0.92
    assert 0.68 < np.mean(small) < 0.92


def test_reliability_is_the_correlation_with_other_shadow_models() -> None:
    rng = np.random.default_rng(5)
    labels = torch.arange(10).repeat_interleave(20)
    effect = 0.06 + 0.08 * rng.normal(size=200)
    expected, found = [], []
    for seed in range(10):
        results = []
        for again in range(2):
            member = draw_design(labels, pairs=8, seed=2 * seed + again)
            noise = 0.15 * rng.normal(size=(16, 200))
            results.append(exposure(noise - effect * member.numpy(), member, labels, redraws=9))
        logs = [one.per_sample["exposure"].log().numpy() for one in results]
        expected.append(np.corrcoef(*logs)[0, 1])
        found += [float(one.summary["exposed"].extra["reliability"]) for one in results]
    assert 0.3 < np.mean(expected) < 0.6
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.06)
    null, member, labels = experiment(0, 16, [20] * 4)
    assert float(exposure(null, member, labels).summary["exposed"].extra["reliability"]) < 0.3


def test_planned_factors_are_those_that_are_found_later() -> None:
    values, member, labels = experiment(0, 16, [20] * 4)
    found = exposure(values, member, labels).summary
    extra = found["exposed"].extra
    single, mean = planned_factors(
        16,
        80,
        spread=float(extra["spread"]),
        prior_freedom=float(extra.get("prior_freedom", math.inf)),
    )
    assert single == pytest.approx(float(extra["detectable"]), rel=1e-3)
    later = math.log(float(found["exposure_mean"].extra["detectable"]))
    assert math.log(mean) == pytest.approx(later, rel=0.25)
    factors = [planned_factors(k, 100) for k in (4, 8, 16, 32, 64)]
    assert factors[0][0] is None
    assert all(a[1] > b[1] for a, b in pairwise(factors))
    assert all(float(a[0] or 9) > float(b[0] or 9) for a, b in pairwise(factors))
    with pytest.raises(DesignError, match="even number of at least 4, found 9"):
        planned_factors(9, 100)
    with pytest.raises(ConfigError, match="images"):
        planned_factors(8, 0)


def same(found: Exposure, expected: Exposure, order: NDArray[np.int64]) -> None:
    for key, column in expected.per_sample.items():
        torch.testing.assert_close(
            found.per_sample[key], column[torch.from_numpy(order)], equal_nan=True
        )
    for key, summary in expected.summary.items():
        other = found.summary[key]
        assert (other.value, other.low, other.high) == pytest.approx(
            (summary.value, summary.low, summary.high)
        )
    # Redraws differ.
    p = [float(one.summary["exposure_mean"].extra["p_value"]) for one in (found, expected)]
    assert p[0] == pytest.approx(p[1], abs=0.03)


def test_order_of_images_pairs_and_models_of_a_pair_does_not_matter() -> None:
    values, member, labels = experiment(3, 8, RAGGED, effect=0.03)
    values[2, labels == 2] = np.nan
    private = some_private(40)
    expected = exposure(values, member, labels, private=private)
    rng = np.random.default_rng(0)
    order = rng.permutation(40)
    shuffled = exposure(
        values[:, order], member.numpy()[:, order], 9 - labels[order], private=private[order]
    )
    same(shuffled, expected, order)
    for rows in ([6, 7, 0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 4, 5, 7, 6]):
        same(exposure(values[rows], member[rows], labels, private=private), expected, np.arange(40))


def test_what_cannot_be_judged_is_reported_and_never_flagged() -> None:
    """Classes of 1, 2 and 3 images; a class without reconstructions in too many models."""
    effect = 3.0
    values, member, labels = experiment(0, 8, [1, 2, 3, 4, 6], effect=effect)
    values[[0, 2], 6:10] = np.nan
    found = exposure(values, member, labels, redraws=99)
    columns = found.per_sample
    assert columns["exposure"][0].isnan() and columns["exposure_p"][0].isnan()
    assert columns["exposure"][1:].isfinite().all() and columns["exposure_p"][1:].isfinite().all()
    assert columns["exposure_q"].isfinite().nonzero().squeeze(1).tolist() == list(range(10, 16))
    assert not columns["exposed"][:10].any() and columns["exposed"][10:].any()
    extra = found.summary["exposed"].extra
    assert (extra["images"], extra["not_judged"]) == (6, 10)
    assert found.summary["exposed"].value == int(columns["exposed"].sum()) / 6


def test_few_models_flag_nothing_but_test_the_set() -> None:
    values, member, labels = experiment(0, 6, [20, 20], effect=1.0)
    found = exposure(values, member, labels)
    assert not found.per_sample["exposed"].any()
    exposed = found.summary["exposed"]
    assert exposed.value is None and "at least 8 shadow models" in str(exposed.reason)
    assert float(found.summary["exposure_mean"].extra["p_value"]) == 1e-4


def test_later_looks_cost_error_rate() -> None:
    values, member, labels = experiment(5, 8, [8, 8], effect=0.05)
    p = [
        float(exposure(values, member, labels, **options).summary["exposure_mean"].extra["p_value"])
        for options in (dict[str, Any](), {"further_looks": True}, {"looks": 2}, {"looks": 3})
    ]
    assert p == pytest.approx([p[0], *(min(1.0, f * p[0]) for f in (2, 6, 12))])
    images = [
        exposure(values, member, labels, looks=j, redraws=9).per_sample["exposure_p"]
        for j in (1, 2)
    ]
    torch.testing.assert_close(images[1], (6 * images[0]).clamp_max(1.0))
    with pytest.raises(ConfigError, match="looks: expected 1"):
        exposure(values, member, labels, looks=0)


def test_constant_distances_show_nothing_and_exact_ones_are_bounded_by_flips() -> None:
    labels = torch.arange(2).repeat_interleave(6)
    member = draw_design(labels, pairs=5, seed=0)
    nothing = exposure(np.zeros((10, 12)), member, labels, redraws=99)
    assert nothing.summary["exposure_mean"].value == 1.0
    assert nothing.summary["exposure_mean"].extra["p_value"] == 1.0
    assert nothing.summary["exposure_auc"].value == pytest.approx(0.5)
    assert (nothing.per_sample["exposure_p"] == 1.0).all()
    exact = exposure(-0.25 * member.double(), member, labels, redraws=99)
    torch.testing.assert_close(exact.per_sample["exposure_p"], torch.full((12,), 2.0**-5).double())
    assert exact.summary["exposure_mean"].value == pytest.approx(math.exp(0.25))


def test_groups_are_tested_by_the_mean_of_their_images() -> None:
    sizes = [12, 12]
    labels = torch.arange(2).repeat_interleave(12)
    groups = [f"p{i // 2}" for i in range(22)] + [None, None]
    twins = torch.full((24,), -1)
    twins[22:] = 22
    units = make_units(labels, groups, twins)
    effect = np.where(np.isin(np.arange(24), (0, 1)), 0.6, 0.0)
    values, member, labels = experiment(2, 16, sizes, effect=effect, units=units.unit)
    private = np.arange(24) < 12
    found = exposure(values, member, labels, groups, twins=twins, private=private, redraws=99)
    assert found.groups == tuple(f"p{i}" for i in range(11))
    table = found.per_group
    assert set(found.per_sample) | {"images", "private_images"} == set(table)
    expected = found.differences[:, :22].reshape(8, 11, 2).mean((0, 2)).exp()
    torch.testing.assert_close(table["exposure"], expected)
    assert table["exposed"].tolist() == [True] + [False] * 10
    assert table["exposure_q"].isfinite().tolist() == [True] * 6 + [False] * 5
    assert table["images"].tolist() == [2] * 11
    assert table["private_images"].tolist() == [2] * 6 + [0] * 5
    with pytest.raises(DesignError, match="twins and groups to be in one half"):
        exposure(values, draw_design(labels, pairs=8, seed=0), labels, groups)


def test_groups_without_effects_hold_their_level() -> None:
    """Groups of three images, the images of a group alike."""
    labels = torch.arange(3).repeat_interleave(24)
    groups = torch.arange(24).repeat_interleave(3)
    small, any_flag = [], 0
    for seed in range(100):
        values, member, _ = experiment(seed, 12, [24] * 3, units=groups)
        values += 0.2 * np.random.default_rng(seed).normal(size=(12, 24)).repeat(3, axis=1)
        table = exposure(values, member, labels, groups, redraws=9).per_group
        small.append(float((table["exposure_p"] <= 0.05).double().mean()))
        any_flag += bool(table["exposed"].any())
    assert abs(np.mean(small) - 0.05) < 0.02
    assert any_flag <= 10 + 3 * 3


@pytest.mark.parametrize("pull", [-0.3, 0.3])
def test_what_counts_is_training_on_an_image_instead_of_a_classmate(pull: float) -> None:
    """Training on an image also moves reconstructions to (or from) its classmates, all alike.

    With n images in a class of which n / 2 are trained on, an image's n - 1 classmates are nearer by
    pull / (n - 1) for each that is: one more if the image itself is not trained on.
    """
    values, member, labels = experiment(6, 8, [6, 10], effect=0.1)
    n = torch.where(labels == 0, 6, 10).numpy()
    inside = member.numpy().astype(float)
    same = (labels[:, None] == labels).numpy() * (1 - np.eye(16))
    alone = exposure(values, member, labels, redraws=9).per_sample["exposure"].log()
    moved = exposure(values - pull / (n - 1) * (inside @ same), member, labels, redraws=9)
    expected = alone - torch.from_numpy(pull / (n - 1))
    torch.testing.assert_close(moved.per_sample["exposure"].log(), expected)


def test_redraws_in_small_blocks_give_the_same_up_to_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, member, labels = experiment(5, 8, [8, 9], effect=0.03)
    whole = exposure(values, member, labels).summary["exposure_mean"].extra
    monkeypatch.setattr("inversight.risk.experiment._SCRATCH", 170)
    blocks = exposure(values, member, labels).summary["exposure_mean"].extra
    for key in ("p_value", "detectable"):
        assert float(blocks[key]) == pytest.approx(float(whole[key]), abs=0.02)


def test_equal_generators_give_equal_results() -> None:
    values, member, labels = experiment(5, 8, [8, 9], effect=0.03)

    def p(seed: int) -> float | int | str:
        rng = torch.Generator().manual_seed(seed)
        found = exposure(values, member, labels, redraws=999, rng=rng)
        return found.summary["exposure_mean"].extra["p_value"]

    assert p(1) == p(1) != p(2)


def test_where_a_person_is_a_class_its_p_comes_from_all_halves() -> None:
    values, member, labels = experiment(8, 4, [4, 6], effect=0.1)
    groups = ["ann"] * 4 + ["bob"] * 6
    found = exposure(values, member, labels, groups, private=np.arange(10) < 8)
    p = exposure(values, member, labels, private=np.arange(10) < 8).summary["exposure_mean"]
    assert found.summary["exposure_mean"] == p
    for row, images in enumerate((list(range(4)), list(range(4, 10)))):
        torch.testing.assert_close(
            found.per_group["exposure"][row], found.differences[:, images].mean().exp()
        )
        expected = exposure_loop.set_p_value(values, member.numpy(), labels.tolist(), images)
        margin = 4 * math.sqrt(expected * (1 - expected) / 9999) + 2e-4
        assert abs(float(found.per_group["exposure_p"][row]) - expected) < margin


def test_membership_auc_counts_pairs_with_the_lower_loss() -> None:
    values, member, _ = experiment(4, 8, [5, 5], effect=0.1)
    private = some_private(10)
    found = membership_auc(values, member, private=private)
    inside = member.numpy()
    wins = np.array(
        [
            [
                values[2 * p + (not inside[2 * p, i])][i] < values[2 * p + inside[2 * p, i]][i]
                for i in range(10)
            ]
            for p in range(4)
        ]
    )[:, private]
    assert found.value == pytest.approx(wins.mean())
    half = exposure_loop.t.ppf(0.975, 3) * wins.mean(1).std(ddof=1) / 2
    assert found.low == pytest.approx(max(0.0, wins.mean() - half))
    assert membership_auc(np.zeros((8, 10)), member).value == 0.5
    with pytest.raises(DesignError, match="complementary"):
        membership_auc(values, member[[0, 2, 1, 3, 4, 5, 6, 7]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 1, 2, 3, 4]}, "even number, two a pair, found 5; train one more"),
        ({"rows": [0, 1]}, "at least 4, found 2"),
        (
            {"member": [0, 2, 1, 3, 4, 5]},
            "complementary halves, found images in both or neither of pair 0",
        ),
        ({"labels": torch.arange(12)}, "a class with at least two units"),
        ({"halves": True}, "each class in equal halves"),
    ],
)
def test_odd_or_other_designs_raise_value_error(change: dict[str, Any], message: str) -> None:
    values, member, labels = experiment(0, 6, [6, 6])
    rows = change.get("rows", range(6))
    member = member[change.get("member", range(6))]
    if "halves" in change:
        member[0], member[1] = labels == 0, labels == 1
    for kind in (ValueError, InputError):
        with pytest.raises(kind, match=message):
            exposure(values[rows], member[rows], change.get("labels", labels))


def test_refuses_bad_input() -> None:
    values, member, labels = experiment(0, 6, [6, 6])
    with pytest.raises(InputError, match=r"log_distances: expected \(models, images\)"):
        exposure(values[0], member, labels)
    with pytest.raises(InputError, match="membership: expected true or false of shape"):
        exposure(values, member[:, :3], labels)
    with pytest.raises(InputError, match="labels: expected 12"):
        exposure(values, member, labels[:3])
    with pytest.raises(InputError, match="private: expected 12"):
        exposure(values, member, labels, private=[True])
    with pytest.raises(InputError, match="found infinity"):
        exposure(values - np.inf, member, labels)
    with pytest.raises(ConfigError, match="fdr"):
        exposure(values, member, labels, fdr=1.0)
    with pytest.raises(ConfigError, match="redraws"):
        exposure(values, member, labels, redraws=0)
