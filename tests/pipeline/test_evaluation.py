"""Scores of image sets: the keys, what is null and why, order and batches do not matter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from inversight.core.errors import DataError
from inversight.core.imaging import to_uint8
from inversight.core.seeding import generator
from inversight.data import ImageSet
from inversight.embeddings.network import PooledEmbedding
from inversight.embeddings.pixel import Pixel
from inversight.models.target import Target
from inversight.pipeline.evaluation import evaluate
from inversight.pipeline.metrics import METRICS, Evaluation
from inversight.pipeline.scored import by_set, read_scored, write_evaluation
from inversight.risk import calibrate, leakage_gap
from inversight.scores import comparison
from tests.examples import HalfMeans, OwnNetwork
from tests.pipeline.tables import COLUMNS, RISK_COLUMNS, assert_same


def images(counts: list[int], seed: int, name: str = "x") -> ImageSet:
    n = sum(counts)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    classes = tuple("abcdef"[: len(counts)])
    return ImageSet(
        images=torch.randint(0, 256, (n, 1, 8, 8), generator=generator(seed)).to(torch.uint8),
        labels=labels,
        ids=tuple(f"{classes[y]}/{name}{i:03d}.png" for i, y in enumerate(labels.tolist())),
        classes=classes,
        hashes=tuple(str(i) for i in range(n)),
    )


@pytest.fixture
def judge() -> Target:
    network = OwnNetwork(3)
    network.linear.weight.data = torch.randn(3, 64, generator=generator(1))
    return Target(network.requires_grad_(False), ("a", "b", "c"), (1, 8, 8), (0.5,), (0.5,), "own")


def score(
    private: ImageSet,
    made: ImageSet | dict[str, ImageSet],
    *,
    evaluator: Target | None = None,
    holdout: ImageSet | None = None,
    earlier: Evaluation | None = None,
    control: ImageSet | None = None,
) -> Evaluation:
    return evaluate(
        private,
        made if isinstance(made, dict) else {"made": made},
        distance=Pixel((8, 8)),
        features=HalfMeans(),
        evaluator=evaluator,
        holdout=holdout,
        memory=2**30,
        seed=0,
        control=control,
        earlier=None if earlier is None else (earlier.reference, earlier.sets),
    )


PRIVATE, MADE = images([5, 6, 1], 0), images([9, 0, 4], 1, "r")


def test_all_keys_in_order_with_reasons_for_what_is_missing() -> None:
    found = score(PRIVATE, MADE)
    assert tuple(found.metrics) == METRICS
    for key, value in found.metrics.items():
        assert {"value", "low", "high"} <= value.keys(), key
        assert (value["value"] is None) == ("reason" in value), key
    for key in ("fid", "knn_distance", "accuracy_top1", "flagged", "leakage_gap", "control_gap"):
        assert found.metrics[key]["value"] is None
    for key in ("coverage", "density", "precision", "recall", "frechet", "kid"):
        assert found.metrics[key]["features"] == "half-means"
    assert found.holdout is None


def test_the_ledger_has_every_private_image_nearest_first() -> None:
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


def test_rows_may_come_in_any_order(judge: Target) -> None:
    holdout = images([9, 9, 9], 5, "h")

    def shuffled(s: ImageSet, seed: int) -> ImageSet:
        return s.select(torch.randperm(len(s), generator=generator(seed)))

    one = score(PRIVATE, MADE, evaluator=judge, holdout=holdout)
    other = score(
        shuffled(PRIVATE, 1), shuffled(MADE, 2), evaluator=judge, holdout=shuffled(holdout, 3)
    )
    for key, value in one.metrics.items():
        assert other.metrics[key].keys() == value.keys()
        for field, number in value.items():
            found = other.metrics[key][field]
            same = found == (pytest.approx(number, rel=1e-5) if type(number) is float else number)
            assert same, (key, field, found, number)
    pd.testing.assert_frame_equal(one.samples, other.samples, rtol=1e-5)
    assert one.holdout is not None and other.holdout is not None
    pd.testing.assert_frame_equal(one.holdout, other.holdout, rtol=1e-5)


def test_a_holdout_gives_flags_and_a_gap() -> None:
    """The pieces put together by hand, from the tables."""
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
    assert found.metrics["leakage_gap"]["value"] == pytest.approx(gap.value, rel=1e-5)
    assert found.metrics["leakage_gap"]["private_images"] == 14


def test_the_rate_decides_what_is_flagged() -> None:
    counts = []
    for fdr in (0.05, 0.9):
        found = evaluate(
            PRIVATE, {"made": MADE}, distance=Pixel((8, 8)), features=HalfMeans(), evaluator=None,
            holdout=images([12, 12, 12], 5, "h"), memory=2**30, seed=0, fdr=fdr,
        )  # fmt: skip
        assert found.metrics["flagged"]["fdr"] == fdr
        counts.append(found.samples["flagged"].sum())
        # Class b has no reconstruction, so that its images are unknown and not unflagged.
        assert set(found.samples["label"][found.samples["flagged"].isna()]) == {"b"}
        assert found.metrics["flagged"]["not_judged"] == 6
    assert counts[0] < counts[1]


def test_distances_that_have_seen_the_private_images_are_not_calibrated(judge: Target) -> None:
    found = evaluate(
        PRIVATE, {"made": MADE}, distance=PooledEmbedding("evaluator", judge), features=HalfMeans(),
        evaluator=judge, holdout=images([9, 9, 9], 5, "h"), memory=2**30, seed=0,
    )  # fmt: skip
    for key in ("flagged", "leakage_gap"):
        assert found.metrics[key]["value"] is None
        assert "give --embedding pixel, public, lpips-vgg" in str(found.metrics[key]["reason"])
    assert found.samples[RISK_COLUMNS].isna().all().all()
    assert found.metrics["ddcs_best"]["value"] is not None


def test_a_small_holdout_is_not_calibrated() -> None:
    found = score(PRIVATE, MADE, holdout=HOLDOUT)
    assert "at least 9 holdout images" in str(found.metrics["flagged"]["reason"])
    assert found.metrics["leakage_gap"]["value"] is not None


CONTROL = images([9, 0, 4], 7, "r")


def test_the_control_is_in_its_gap_and_nowhere_else() -> None:
    without, found = score(PRIVATE, MADE), score(PRIVATE, MADE, control=CONTROL)
    reason = without.metrics.pop("control_gap")["reason"]
    assert "which only an audit makes" in str(reason)
    gap = found.metrics.pop("control_gap")
    assert_same(found.metrics, without.metrics)
    pd.testing.assert_frame_equal(found.samples, without.samples)
    assert [one.name for one in found.sets] == ["made"]
    alone = score(PRIVATE, CONTROL).metrics["ddcs_best"]["value"]
    assert gap["attack"] == pytest.approx(found.metrics["ddcs_best"]["value"])
    assert gap["control"] == pytest.approx(alone)
    assert gap["value"] == pytest.approx(gap["attack"] - alone)  # type: ignore[operator]
    assert gap["reconstructions"] == 13 and "p_value" not in gap


def test_each_set_is_compared_with_as_many_of_the_control() -> None:
    more = images([4, 2, 0], 8, "s")
    control = images([13, 2, 4], 7, "r")
    found = score(PRIVATE, {"made": MADE, "more": more}, control=control)
    everything = score(PRIVATE, control)
    gap = found.metrics["control_gap"]
    assert gap["control"] == pytest.approx(everything.metrics["ddcs_best"]["value"])
    assert gap["reconstructions"] == 19
    few = control.select(torch.tensor([0, 1, 2, 3, 13, 14]))
    gap = found.by_set["more"]["control_gap"]
    assert gap["control"] == pytest.approx(score(PRIVATE, few).metrics["ddcs_best"]["value"])
    assert gap["reconstructions"] == 6


def test_with_a_holdout_there_is_no_gap_to_a_control() -> None:
    found = score(PRIVATE, MADE, holdout=HOLDOUT, control=CONTROL).metrics["control_gap"]
    assert found["value"] is None and "see flagged and leakage_gap" in str(found["reason"])


def test_an_exact_hit_is_marked_and_finite() -> None:
    stolen = replace(MADE, images=MADE.images.clone())
    stolen.images[2] = PRIVATE.images[3]
    row = score(PRIVATE, stolen).samples.iloc[0]
    assert row["id"] == PRIVATE.ids[3] and bool(row["exact_hit"])
    assert row["ddcs_best"] == pytest.approx(1e6) and row["nearest_distance"] == 0.0


def test_accuracy_is_the_evaluators(judge: Target) -> None:
    found = score(PRIVATE, MADE, evaluator=judge)
    with torch.no_grad():
        by_hand = (judge(MADE.floats()).argmax(1) == MADE.labels).float().mean()
    assert found.metrics["accuracy_top1"]["value"] == pytest.approx(float(by_hand))
    assert found.metrics["knn_distance"]["features"] == "evaluator"


def test_a_class_that_private_has_not() -> None:
    with pytest.raises(DataError, match=r"d/r009\.png is of class d"):
        score(PRIVATE, images([5, 2, 2, 1], 1, "r"))


SETS = {"one": images([4, 3, 1], 7, "one"), "two": images([5, 0, 3], 8, "two")}
HOLDOUT = images([3, 3, 3], 5, "h")
LARGER = images([9, 9, 9], 5, "h")


def at_once(sets: dict[str, ImageSet]) -> ImageSet:
    """The sets as one, shuffled."""
    parts = list(sets.values())
    whole = ImageSet(
        images=torch.cat([s.images for s in parts]),
        labels=torch.cat([s.labels for s in parts]),
        ids=tuple(i for s in parts for i in s.ids),
        classes=parts[0].classes,
        hashes=tuple(h for s in parts for h in s.hashes),
    )
    return whole.select(torch.randperm(len(whole), generator=generator(9)))


def test_the_union_of_sets_scores_as_if_scored_at_once(judge: Target) -> None:
    parts = score(PRIVATE, SETS, evaluator=judge, holdout=LARGER)
    whole = score(PRIVATE, at_once(SETS), evaluator=judge, holdout=LARGER)
    assert parts.metrics["flagged"]["value"] is not None
    assert_same(parts.metrics, whole.metrics)
    pd.testing.assert_frame_equal(
        parts.samples.drop(columns="nearest_set"), whole.samples.drop(columns="nearest_set")
    )
    pd.testing.assert_frame_equal(parts.holdout, whole.holdout)
    origin = parts.samples["nearest_reconstruction"].str.extract(r"/(one|two)")[0]
    assert (origin.dropna() == parts.samples["nearest_set"].dropna()).all()
    assert set(parts.samples["nearest_set"].dropna()) == {"one", "two"}


def test_each_set_has_its_own_scores(judge: Target) -> None:
    parts = score(PRIVATE, SETS, evaluator=judge, holdout=LARGER)
    for name, made in SETS.items():
        alone = score(PRIVATE, made, evaluator=judge, holdout=LARGER)
        assert_same(parts.by_set[name], alone.metrics)


def test_sets_added_to_what_was_kept_score_as_at_once(judge: Target, tmp_path: Path) -> None:
    whole = score(PRIVATE, SETS, evaluator=judge, holdout=LARGER)
    first = score(PRIVATE, {"one": SETS["one"]}, evaluator=judge, holdout=LARGER)
    write_evaluation(tmp_path, first)
    kept = replace(first, reference=read_scored(tmp_path)[0], sets=read_scored(tmp_path)[1])
    both = score(PRIVATE, {"two": SETS["two"]}, evaluator=judge, holdout=LARGER, earlier=kept)
    assert_same(both.metrics, whole.metrics)
    for name in SETS:
        assert_same(both.by_set[name], whole.by_set[name])
    pd.testing.assert_frame_equal(both.samples, whole.samples)
    pd.testing.assert_frame_equal(both.holdout, whole.holdout)
    pd.testing.assert_frame_equal(by_set(both), by_set(whole))


def test_features_that_do_not_fit_the_memory_give_a_reason() -> None:
    found = evaluate(
        PRIVATE, {"made": MADE}, distance=Pixel((8, 8)), features=Pixel((8, 8)), evaluator=None,
        holdout=None, memory=4000, seed=0,
    )  # fmt: skip
    for key in ("coverage", "frechet", "kid"):
        assert found.metrics[key]["value"] is None
        assert "more than --memory" in str(found.metrics[key]["reason"])
    whole = score(PRIVATE, MADE)
    assert_same({"d": found.metrics["ddcs_best"]}, {"d": whole.metrics["ddcs_best"]})


class Counted:
    """Pixels; counts how often each 8 x 8 image comes."""

    name = "pixel"

    def __init__(self) -> None:
        self.times: Counter[bytes] = Counter()

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for image in to_uint8(images):
            self.times[image.numpy().tobytes()] += 1
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


class Stop(BaseException):
    """Stands for a kill: nothing catches it."""


@dataclass
class Tiring:
    """Pixels, until so many calls were made."""

    left: int
    name: str = "pixel"

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.left -= 1
        if self.left < 0:
            raise Stop
        return Pixel((8, 8))(images)


@pytest.mark.parametrize("calls", [1, 3, 4, 6])
def test_a_stopped_scoring_goes_on_with_the_classes_that_are_left(
    calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_CHECKPOINT_SECONDS", -1.0)
    whole = score(PRIVATE, SETS, holdout=HOLDOUT)

    def attempt(embedding: Tiring) -> Evaluation:
        return evaluate(
            PRIVATE, SETS, distance=embedding, features=HalfMeans(), evaluator=None,
            holdout=HOLDOUT, memory=2**30, seed=0, checkpoint=tmp_path,
        )  # fmt: skip

    with pytest.raises(Stop):
        attempt(Tiring(calls))
    rested = Tiring(1000)
    found = attempt(rested)
    # One call for the width, then for each class one for private images and one for reconstructions.
    assert 1000 - rested.left == 1 + 6 - 2 * ((calls - 1) // 2)
    assert found.metrics == whole.metrics
    pd.testing.assert_frame_equal(found.samples, whole.samples)
    pd.testing.assert_frame_equal(found.holdout, whole.holdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 4, 7])
def test_ssim_of_images_below_its_window_has_a_reason(size: int) -> None:
    small = [replace(s, images=s.images[:, :, :size, :size]) for s in (PRIVATE, MADE)]
    found = evaluate(
        small[0], {"made": small[1]}, distance=Pixel((size, size)), features=Pixel((size, size)),
        evaluator=None, holdout=None, memory=2**30, seed=0, pairs=("psnr", "ssim"),
    )  # fmt: skip
    assert found.metrics["ssim"]["value"] is None
    assert f"found {size}x{size}" in str(found.metrics["ssim"]["reason"])
    assert found.metrics["psnr"]["value"] is not None and "ssim" not in found.samples


def seen_once(counted: Counted, *groups: ImageSet) -> None:
    """Check that each image of the groups went through the network once, and nothing else did."""
    expected = {image.numpy().tobytes() for group in groups for image in group.images}
    assert set(counted.times) - expected <= {bytes(64)}  # the blank image that is measured
    assert {counted.times[image] for image in expected} == {1}


@pytest.mark.parametrize("against", ["holdout", "control"])
@pytest.mark.parametrize("kind", ["plain", "staged", "features"])
def test_each_image_goes_through_the_distance_network_once(against: str, kind: str) -> None:
    counted = CountedStages() if kind == "staged" else Counted()
    more = images([3, 0, 2], 11, "budget")
    others = {"holdout": HOLDOUT, "control": images([12, 5, 6], 17, "c")}
    found = evaluate(
        PRIVATE, SETS, distance=counted, features=counted if kind == "features" else HalfMeans(),
        evaluator=None, memory=2**30, seed=0, distance_only={"less": more}, neighbours=True,
        **{"holdout": None, against: others[against]},
    )  # fmt: skip
    seen_once(counted, PRIVATE, more, others[against], *SETS.values())
    assert set(found.nearness) == {"one", "two", "less"}
    near = found.reference.neighbour_distance
    assert near is not None and near.isnan().tolist() == [False] * 11 + [True]
    plain = evaluate(
        PRIVATE, {"less": more}, distance=Pixel((8, 8)), features=HalfMeans(), evaluator=None,
        holdout=None, memory=2**30, seed=0,
    )  # fmt: skip
    assert found.nearness["less"]["ddcs_best"].value == pytest.approx(
        plain.metrics["ddcs_best"]["value"]
    )


def test_too_little_memory_gives_the_same_scores_with_more_passes() -> None:
    counted = CountedStages()
    found = evaluate(
        PRIVATE, SETS, distance=counted, features=HalfMeans(), evaluator=None, holdout=HOLDOUT,
        memory=6000, seed=0, neighbours=True,
    )  # fmt: skip
    assert max(counted.times.values()) > 1
    assert_same(found.metrics, score(PRIVATE, SETS, holdout=HOLDOUT).metrics)
