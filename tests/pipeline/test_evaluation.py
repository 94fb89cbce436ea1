"""Scores of image sets: the keys, what is null and why, order and batches do not matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from inversight.core.errors import DataError
from inversight.core.imaging import to_uint8
from inversight.core.seeding import generator
from inversight.data import ImageSet, image_set
from inversight.embeddings import Embedding, PooledEmbedding
from inversight.embeddings.pixel import Pixel
from inversight.models.target import Target
from inversight.pipeline.evaluation import evaluate
from inversight.pipeline.metrics import EXPOSURES, METRICS, Evaluation
from inversight.pipeline.scored import by_set, read_nearness, read_scored, write_evaluation
from inversight.risk import calibrate, distance_gap, leakage_gap, public_covariates
from inversight.scores import comparison
from tests.examples import HalfMeans, OwnNetwork
from tests.pipeline.tables import COLUMNS, RISK_COLUMNS, assert_same
from tests.pipeline.tiny import Stop


def images(counts: list[int], seed: int, name: str = "x") -> ImageSet:
    """Return random images, as many of each class (a, b, ...) as ``counts`` says."""
    labels = [c for c, n in zip("abcdef", counts, strict=False) for _ in range(n)]
    pixels = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=generator(seed))
    ids = [f"{label}/{name}{i:03d}.png" for i, label in enumerate(labels)]
    return image_set(pixels.to(torch.uint8), labels, ids, "abcdef"[: len(counts)])


def judge() -> Target:
    network = OwnNetwork(3)
    network.linear.weight.data = torch.randn(3, 64, generator=generator(1))
    return Target(network.requires_grad_(False), ("a", "b", "c"), (1, 8, 8), (0.5,), (0.5,), "own")


def score(private: ImageSet, made: ImageSet | dict[str, ImageSet], **given: Any) -> Evaluation:
    """Return the evaluation of one set called "made", or of several."""
    usual: dict[str, Any] = {
        "distance": Pixel((8, 8)), "features": HalfMeans(), "evaluator": None, "holdout": None,
        "memory": 2**30, "seed": 0,
    }  # fmt: skip
    sets = made if isinstance(made, dict) else {"made": made}
    return evaluate(private, sets, **usual | given)


def shuffled(s: ImageSet, seed: int) -> ImageSet:
    return s.select(torch.randperm(len(s), generator=generator(seed)))


def value(found: Evaluation, metric: str) -> Any:
    return found.metrics[metric]["value"]


def reason(found: Evaluation, metric: str) -> str:
    """Return why there is no value."""
    assert value(found, metric) is None
    return str(found.metrics[metric]["reason"])


def assert_same_tables(found: Evaluation, expected: Evaluation, **tolerance: float) -> None:
    pd.testing.assert_frame_equal(found.samples, expected.samples, **tolerance)
    if expected.holdout is not None:
        pd.testing.assert_frame_equal(found.holdout, expected.holdout, **tolerance)


PRIVATE, MADE = images([5, 6, 1], 0), images([9, 0, 4], 1, "r")
CONTROL = images([9, 0, 4], 7, "r")
SETS = {"one": images([4, 3, 1], 7, "one"), "two": images([5, 0, 3], 8, "two")}
HOLDOUT = images([3, 3, 3], 5, "h")
LARGER = images([9, 9, 9], 5, "h")
JUDGE = judge()
JUDGED = PooledEmbedding("evaluator", JUDGE)


def test_has_all_metrics_in_order_with_reasons_where_one_is_missing() -> None:
    found = score(PRIVATE, MADE)
    assert tuple(found.metrics) == METRICS
    for key, metric in found.metrics.items():
        assert {"value", "low", "high"} <= metric.keys(), key
        assert (metric["value"] is None) == ("reason" in metric), key
    for key in ("fid", "knn_distance", "accuracy_top1", "flagged", "leakage_gap", "control_gap"):
        assert value(found, key) is None
    for key in EXPOSURES:
        assert all(key not in one for one in found.by_set.values())
        assert found.metrics[key]["reason"] == "needs the shadow models of an audit (--shadows K)"
    for key in ("coverage", "density", "precision", "recall", "frechet", "kid"):
        assert found.metrics[key]["features"] == "half-means"
    assert found.holdout is None


def test_ledger_lists_every_private_image_nearest_first() -> None:
    found = score(PRIVATE, MADE)
    assert list(found.samples) == COLUMNS
    assert set(found.samples["id"]) == set(PRIVATE.ids)
    near = found.samples["nearest_distance"]
    assert near.dropna().is_monotonic_increasing
    # Class b has no reconstruction: nothing is near its images, which come last.
    assert set(found.samples["label"][near.isna()]) == {"b"}
    assert near.isna().tolist() == [False] * 6 + [True] * 6
    assert found.samples["nearest_reconstruction"].isna().tolist() == near.isna().tolist()


def test_distances_are_mean_squared_errors() -> None:
    found = score(PRIVATE, MADE).samples.set_index("id")
    for i, name in enumerate(PRIVATE.ids):
        same = MADE.images[MADE.labels == PRIVATE.labels[i]].double() / 255
        if len(same):
            errors = (same - PRIVATE.images[i].double() / 255).square().mean((1, 2, 3))
            assert found.loc[name, "nearest_distance"] == pytest.approx(float(errors.min()))


def test_row_order_does_not_matter() -> None:
    one = score(PRIVATE, MADE, evaluator=JUDGE, holdout=LARGER)
    other = score(
        shuffled(PRIVATE, 1), shuffled(MADE, 2), evaluator=JUDGE, holdout=shuffled(LARGER, 3)
    )
    assert_same(other.metrics, one.metrics, rel=1e-5)
    assert_same_tables(other, one, rtol=1e-5)


def test_flags_and_gap_are_those_of_the_tables() -> None:
    private, holdout, made = images([8, 6], 0), images([20, 20], 5, "h"), images([8, 6], 1, "r")
    for i in range(4):
        made.images[i] = private.images[i] ^ 1  # nearly the private image
    found = score(private, made, holdout=holdout)
    assert found.holdout is not None
    assert list(found.samples) == [*COLUMNS[:-1], *RISK_COLUMNS, COLUMNS[-1]]
    near = [(t["nearest_distance"].to_numpy(), t["label"].map({"a": 0, "b": 1}).to_numpy())
            for t in (found.samples, found.holdout)]  # fmt: skip
    expected = calibrate(near[0], near[1])
    for key in RISK_COLUMNS:
        assert found.samples[key].tolist() == expected.per_sample[key].tolist()
    assert found.metrics["flagged"] == expected.summary["flagged"].as_json()
    assert found.metrics["flagged"]["count"] == 4
    assert set(found.samples["id"][found.samples["flagged"]]) == set(private.ids[:4])

    def pixels(s: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
        return s.images.flatten(1).double() / 255 / 8, s.labels

    gap = leakage_gap(*map(pixels, (private, holdout, made)))
    assert value(found, "leakage_gap") == pytest.approx(gap.value, rel=1e-5)
    assert found.metrics["leakage_gap"]["private_images"] == 14


def test_public_images_are_covariates_of_the_tests_against_the_holdout(tmp_path: Path) -> None:
    private, holdout, made = images([8, 6], 0), images([20, 20], 5, "h"), images([8, 6], 1, "r")
    public, distance = images([15, 10], 3, "p"), Pixel((8, 8))
    found = score(private, made, holdout=holdout, public=public)
    order = torch.tensor([found.samples["id"].tolist().index(name) for name in private.ids])
    near = [(t["nearest_distance"].to_numpy(), t["label"].map({"a": 0, "b": 1}).to_numpy())
            for t in (found.samples, found.holdout)]  # fmt: skip
    given = [public_covariates(s, public, distance, memory=2**30) for s in (private, holdout)]
    covariates = given[0][order.argsort()], given[1]
    expected = calibrate(near[0], near[1], covariates=covariates)
    assert found.metrics["flagged"] == pytest.approx(expected.summary["flagged"].as_json())
    assert found.samples["p_value"].tolist() == expected.per_sample["p_value"].tolist()
    gap = distance_gap(near[0], near[1], covariates=covariates, bootstrap=0)
    assert value(found, "distance_gap") == pytest.approx(gap.value)
    # A later scoring knows them.
    write_evaluation(tmp_path, found)
    again = score(private, {"more": images([2, 2], 9, "m")}, holdout=holdout,
                  earlier=read_scored(tmp_path))  # fmt: skip
    assert again.metrics["flagged"]["explained"] > 0
    assert "explained" not in score(private, made, holdout=holdout).metrics["flagged"]


def test_groups_and_near_copies_count_as_one_against_the_holdout(tmp_path: Path) -> None:
    private, holdout, made = images([8, 6], 0), images([20, 20], 5, "h"), images([8, 6], 1, "r")
    holdout.images[1:4] = holdout.images[0] // 2 + 10  # a burst
    names = ("ann",) * 3 + (None,) * 9 + ("eve",) * 2
    grouped = replace(private, groups=names)
    found = score(grouped, made, holdout=holdout)
    assert list(found.samples) == [*COLUMNS[:-1], *RISK_COLUMNS, COLUMNS[-1], "group"]
    assert found.samples.set_index("id")["group"].dropna().to_dict() == {
        name: group for name, group in zip(private.ids, names, strict=True) if group
    }
    for key in ("flagged", "leakage_gap"):
        assert found.metrics[key]["private_units"] == 14 - 3
        assert found.metrics[key]["holdout_units"] == 40 - 3
    order = torch.tensor([found.samples["id"].tolist().index(name) for name in private.ids])
    near = [(t["nearest_distance"].to_numpy(), t["label"].map({"a": 0, "b": 1}).to_numpy())
            for t in (found.samples, found.holdout)]  # fmt: skip
    units = torch.tensor([0, 0, 0, *range(3, 12), 12, 12]), torch.tensor([0] * 4 + [*range(4, 40)])
    expected = calibrate(near[0], near[1], units=(units[0][order.argsort()], units[1]))
    for key in RISK_COLUMNS:
        assert found.samples[key].tolist() == expected.per_sample[key].tolist()
    # Row order does not matter, and a later scoring knows the groups.
    other = score(shuffled(grouped, 1), made, holdout=shuffled(holdout, 2))
    assert_same(other.metrics, found.metrics, rel=1e-9)
    assert_same_tables(other, found)
    write_evaluation(tmp_path, found)
    again = score(
        private, {"more": images([1, 0], 9, "m")}, holdout=holdout, earlier=read_scored(tmp_path)
    )
    assert again.metrics["flagged"]["holdout_units"] == 37
    assert again.samples["group"].value_counts().to_dict() == {"ann": 3, "eve": 2}


def test_hides_names_of_groups(tmp_path: Path) -> None:
    grouped = replace(PRIVATE, groups=("ann",) * 5 + (None,) * 7)
    write_evaluation(tmp_path, score(grouped, MADE), hide=lambda name: f"#{len(name)}")
    groups = pd.read_parquet(tmp_path / "samples.parquet")["group"]
    assert groups.dropna().tolist() == ["#3"] * 5 and groups.isna().sum() == 7
    for file in tmp_path.iterdir():
        assert b"ann" not in file.read_bytes()


def test_accepted_rate_decides_what_is_flagged() -> None:
    counts = []
    for fdr in (0.05, 0.9):
        found = score(PRIVATE, MADE, holdout=images([12, 12, 12], 5, "h"), fdr=fdr)
        assert found.metrics["flagged"]["fdr"] == fdr
        counts.append(found.samples["flagged"].sum())
        # Class b has no reconstruction, so that its images are unknown and not unflagged.
        assert set(found.samples["label"][found.samples["flagged"].isna()]) == {"b"}
        assert found.metrics["flagged"]["not_judged"] == 6
    assert counts[0] < counts[1]


SEEN = {"distance": JUDGED, "evaluator": JUDGE, "holdout": LARGER}
WIDE = {"features": Pixel((8, 8)), "memory": 4000}


@pytest.mark.parametrize(
    ("metric", "given", "why"),
    [
        ("control_gap", {}, "which only an audit makes"),
        ("control_gap", {"holdout": HOLDOUT, "control": CONTROL}, "see flagged and leakage_gap"),
        ("flagged", {"holdout": HOLDOUT}, "at least 9 holdout images"),
        ("flagged", SEEN, "give --embedding pixel, public, lpips-vgg"),
        ("leakage_gap", SEEN, "give --embedding pixel, public, lpips-vgg"),
        *((metric, WIDE, "more than --memory") for metric in ("coverage", "frechet", "kid")),
    ],
)
def test_gives_the_reason_for_a_missing_metric(
    metric: str, given: dict[str, Any], why: str
) -> None:
    found = score(PRIVATE, MADE, **given)
    assert why in reason(found, metric) and value(found, "ddcs_best") is not None
    if metric == "flagged":
        assert found.samples[RISK_COLUMNS].isna().all().all()


def test_control_enters_its_gap_alone() -> None:
    without, found = score(PRIVATE, MADE), score(PRIVATE, MADE, control=CONTROL)
    gap = found.metrics["control_gap"]
    assert_same(found.metrics, {**without.metrics, "control_gap": gap})
    pd.testing.assert_frame_equal(found.samples, without.samples)
    assert [one.name for one in found.sets] == ["made"]
    alone = value(score(PRIVATE, CONTROL), "ddcs_best")
    assert gap["attack"] == pytest.approx(value(found, "ddcs_best"))
    assert gap["control"] == pytest.approx(alone)
    assert gap["value"] == pytest.approx(gap["attack"] - alone)  # type: ignore[operator]
    assert gap["reconstructions"] == 13 and "p_value" not in gap


def test_each_set_is_compared_with_as_many_images_of_the_control() -> None:
    control = images([13, 2, 4], 7, "r")
    found = score(PRIVATE, {"made": MADE, "more": images([4, 2, 0], 8, "s")}, control=control)
    few = control.select(torch.tensor([0, 1, 2, 3, 13, 14]))
    for metrics, used in ((found.metrics, control), (found.by_set["more"], few)):
        expected = pytest.approx(value(score(PRIVATE, used), "ddcs_best"))
        assert metrics["control_gap"]["control"] == expected
        assert metrics["control_gap"]["reconstructions"] == len(used)


def test_exact_hit_is_marked_and_finite() -> None:
    stolen = replace(MADE, images=MADE.images.clone())
    stolen.images[2] = PRIVATE.images[3]
    row = score(PRIVATE, stolen).samples.iloc[0]
    assert row["id"] == PRIVATE.ids[3] and bool(row["exact_hit"])
    assert row["ddcs_best"] == pytest.approx(1e6) and row["nearest_distance"] == 0.0


@pytest.mark.parametrize("features", [HalfMeans(), Pixel((8, 8))])
def test_features_that_an_attack_found_take_the_place_of_its_images(features: Embedding) -> None:
    private, held, made = images([3, 2], 0), images([3, 3], 2, "h"), images([2, 2], 1, "made")
    # What was found are the features of the private images, in another order than that of the names.
    (own,) = Pixel((8, 8))(private.floats())
    known = {name: own[row] for name, row in zip(made.ids, (1, 0, 4, 3), strict=True)}
    found = score(
        private, shuffled(made, 3), features=features, known_features=known, holdout=held
    )  # fmt: skip
    expected = private.select(torch.tensor([1, 0, 4, 3]))
    same = score(
        private, replace(expected, ids=made.ids), features=HalfMeans(), holdout=held
    )  # fmt: skip
    for table in ("samples", "holdout"):
        one, other = (getattr(x, table)["nearest_distance"].to_numpy() for x in (found, same))
        assert one == pytest.approx(other, abs=1e-6)
    assert (found.samples["nearest_distance"] < 1e-6).sum() == 4


def test_accuracy_is_that_of_the_evaluator() -> None:
    found = score(PRIVATE, MADE, evaluator=JUDGE)
    with torch.no_grad():
        by_hand = (JUDGE(MADE.floats()).argmax(1) == MADE.labels).float().mean()
    assert value(found, "accuracy_top1") == pytest.approx(float(by_hand))
    assert found.metrics["knn_distance"]["features"] == "evaluator"


def test_rejects_a_class_without_private_images() -> None:
    with pytest.raises(DataError, match=r"d/r009\.png is of class d"):
        score(PRIVATE, images([5, 2, 2, 1], 1, "r"))


def test_several_sets_score_as_their_union_and_each_as_if_alone() -> None:
    sets = SETS.values()
    labels = [one.classes[y] for one in sets for y in one.labels.tolist()]
    ids = [name for one in sets for name in one.ids]
    union = image_set(torch.cat([one.images for one in sets]), labels, ids, PRIVATE.classes)
    parts = score(PRIVATE, SETS, evaluator=JUDGE, holdout=LARGER)
    whole = score(PRIVATE, shuffled(union, 9), evaluator=JUDGE, holdout=LARGER)
    assert value(parts, "flagged") is not None
    assert_same(parts.metrics, whole.metrics)
    owner = parts.samples["nearest_set"]
    assert_same_tables(parts, replace(whole, samples=whole.samples.assign(nearest_set=owner)))
    origin = parts.samples["nearest_reconstruction"].str.extract(r"/(one|two)")[0]
    assert (origin.dropna() == owner.dropna()).all() and {*owner.dropna()} == {"one", "two"}
    for name, made in SETS.items():
        alone = score(PRIVATE, made, evaluator=JUDGE, holdout=LARGER)
        expected = {key: one for key, one in alone.metrics.items() if key not in EXPOSURES}
        assert_same(parts.by_set[name], expected)


@pytest.mark.parametrize("features", [HalfMeans(), JUDGED])
def test_sets_added_to_kept_scores_score_as_at_once(tmp_path: Path, features: Embedding) -> None:
    given: dict[str, Any] = {"evaluator": JUDGE, "holdout": LARGER, "features": features}
    whole = score(PRIVATE, SETS, **given)
    write_evaluation(tmp_path, score(PRIVATE, {"one": SETS["one"]}, **given))
    both = score(PRIVATE, {"two": SETS["two"]}, earlier=read_scored(tmp_path), **given)
    assert_same(both.metrics, whole.metrics)
    for name in SETS:
        assert_same(both.by_set[name], whole.by_set[name])
    assert_same_tables(both, whole)
    pd.testing.assert_frame_equal(by_set(both), by_set(whole))
    write_evaluation(tmp_path, whole)
    assert read_nearness(tmp_path) == whole.nearness


class Counted:
    """Pixels, until ``most`` calls were made; counts how often each 8 x 8 image comes."""

    name = "pixel"

    def __init__(self, most: int = 1000) -> None:
        self.times: Counter[bytes] = Counter()
        self.left = most

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.left == 0:
            raise Stop
        self.left -= 1
        self.times.update(image.numpy().tobytes() for image in to_uint8(images))
        return Pixel((8, 8))(images)


class CountedStages(Counted):
    """The same as a staged embedding of two stages, the upper and the lower half."""

    def batch_size(self, device: torch.device) -> int:
        return 2

    def enter(self, images: torch.Tensor) -> torch.Tensor:
        self(images)
        return images / 8

    def advance(self, stage: int, state: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        return (None if stage else state), state[:, :, 4 * stage : 4 * stage + 4]

    def refer(self, stage: int, maps: torch.Tensor, reference: torch.Tensor) -> None:
        torch.neg(maps[0].flatten(), out=reference)

    def write(
        self, stage: int, maps: torch.Tensor, reference: torch.Tensor, out: torch.Tensor
    ) -> None:
        torch.add(maps.flatten(1), reference, out=out)


@pytest.mark.parametrize("calls", [1, 3, 4, 6])
def test_stopped_scoring_goes_on_with_the_classes_that_are_left(
    calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_CHECKPOINT_SECONDS", -1.0)
    whole = score(PRIVATE, SETS, holdout=HOLDOUT)

    def attempt(embedding: Counted) -> Evaluation:
        return score(PRIVATE, SETS, distance=embedding, holdout=HOLDOUT, checkpoint=tmp_path)

    with pytest.raises(Stop):
        attempt(Counted(calls))
    rested = Counted()
    found = attempt(rested)
    # One call for the width, then for each class one for private images and one for reconstructions.
    assert 1000 - rested.left == 1 + 6 - 2 * ((calls - 1) // 2)
    assert found.metrics == whole.metrics
    assert_same_tables(found, whole)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 4, 7])
def test_ssim_of_images_below_its_window_has_a_reason(size: int) -> None:
    private, made = (replace(s, images=s.images[:, :, :size, :size]) for s in (PRIVATE, MADE))
    pixel, pairs = Pixel((size, size)), ("psnr", "ssim")
    found = score(private, made, distance=pixel, features=pixel, pairs=pairs)
    assert f"found {size}x{size}" in reason(found, "ssim")
    assert value(found, "psnr") is not None and "ssim" not in found.samples


@pytest.mark.parametrize("against", ["holdout", "control"])
@pytest.mark.parametrize("kind", ["plain", "staged", "features"])
def test_each_image_goes_through_the_distance_network_once(against: str, kind: str) -> None:
    counted = CountedStages() if kind == "staged" else Counted()
    more = images([3, 0, 2], 11, "budget")
    others = {"holdout": HOLDOUT, "control": images([12, 5, 6], 17, "c")}
    found = score(
        PRIVATE, SETS, distance=counted, features=counted if kind == "features" else HalfMeans(),
        distance_only={"less": more}, neighbours=True, **{against: others[against]},
    )  # fmt: skip
    groups = (PRIVATE, more, others[against], *SETS.values())
    expected = {image.numpy().tobytes() for group in groups for image in group.images}
    assert set(counted.times) - expected <= {bytes(64)}  # the blank image that is measured
    assert {counted.times[image] for image in expected} == {1}
    assert set(found.nearness) == {"one", "two", "less"}
    near = found.reference.neighbour_distance
    assert near is not None and near.isnan().tolist() == [False] * 11 + [True]
    alone = value(score(PRIVATE, {"less": more}), "ddcs_best")
    assert found.nearness["less"]["ddcs_best"].value == pytest.approx(alone)


def test_too_little_memory_gives_the_same_scores_with_more_passes() -> None:
    counted = CountedStages()
    found = score(PRIVATE, SETS, distance=counted, holdout=HOLDOUT, memory=6000, neighbours=True)
    assert max(counted.times.values()) > 1
    # Distances are float32, and processors round their sums differently.
    assert_same(found.metrics, score(PRIVATE, SETS, holdout=HOLDOUT).metrics, rel=1e-5)
    assert value(found, "leakage_gap") is not None
    assert_same_tables(score(PRIVATE, MADE, **WIDE), score(PRIVATE, MADE))


@dataclass(frozen=True)
class Pixels:
    """Stands for Inception: as many features as pixels."""

    name: str = "inception"

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (images.flatten(1),)


@pytest.mark.parametrize(("size", "small"), [(28, True), (32, False)])
def test_small_images_on_inception_and_few_images_have_caveats(size: int, small: bool) -> None:
    """MNIST's 28x28 pixels, on more features than images."""
    sets = (images([5, 4], seed).resized(size=size, channels=1) for seed in (0, 1))
    found = score(*sets, features=Pixels()).metrics
    for key in ("fid", "frechet", "kid", "coverage", "recall"):
        text = str(found[key].get("caveat"))
        assert (f"images of {size}x{size} are enlarged" in text) is small
    assert str(found["fid"]["caveat"]).startswith("9 images do not determine a covariance")
    assert str(found["coverage"]["caveat"]).startswith("2 of 2 classes have fewer than 6 private")
    assert "caveat" not in found["ddcs_best"]
    assert "caveat" not in score(*(images([5], s) for s in (0, 1))).metrics["kid"]
