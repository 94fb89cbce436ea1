from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from inversight.core.errors import RunError
from inversight.report import Comparison, compare, render_text
from inversight.report.formatting import NONE
from tests.report.examples import metrics, samples, write_run
from tests.report.exposure_examples import SHADOWS, exposure_metrics

Compared = Callable[..., Comparison]


@pytest.fixture
def compared(tmp_path: Path) -> Compared:
    """Return a function that compares a run with one that has the given changes."""

    def run(table: pd.DataFrame | None = None, found: Any = None, **changes: Any) -> Comparison:
        a = write_run(tmp_path / "a")
        return compare(a, write_run(tmp_path / "b", table, found, **changes))

    return run


def test_equal_runs_have_no_differences(compared: Compared) -> None:
    found = compared()
    assert found.warnings == () and found.settings == ()
    assert all(m.difference in (0.0, None) for m in found.metrics)
    assert found.samples is not None and (found.samples["distance_change"].dropna() == 0).all()
    assert "No setting differs." in render_text(found)


def test_measures_are_compared_with_their_intervals(compared: Compared) -> None:
    other = metrics()
    other["ddcs_best"] = {"value": 6.0, "low": 5.0, "high": 7.0, "reconstructions": 60}
    other["covered"] = {"value": 0.75, "low": 0.7, "high": 0.9}
    other["extra"] = {"value": 1.0, "low": None, "high": None}
    by_key = {m.key: m for m in compared(found=other).metrics}
    assert by_key["ddcs_best"].difference == pytest.approx(6.0 - 3.21)
    assert by_key["fid"].difference is None
    overlaps = {key: by_key[key].overlap for key in ("ddcs_best", "covered", "density")}
    assert overlaps == {"ddcs_best": False, "covered": True, "density": None}
    assert by_key["fid"].note == "a and b: the features are <public>"
    assert by_key["extra"].note == "a: not in this run"


def test_settings_that_differ_have_dotted_names(compared: Compared) -> None:
    changed = {"arm": "vanilla", "prior": {"steps": 10}, "attack": [{"keep": 9}], "new": 1}
    expected = (("arm", "entropy", "vanilla"), ("attack.0.keep", "5", "9"), ("new", NONE, "1"))
    assert compared(settings=changed).settings == expected


def test_images_are_matched_by_name_and_sorted_by_change(compared: Compared) -> None:
    table = samples().sample(frac=1.0, random_state=0)
    moved = {"p2/2.png": 0.3, "p4/4.png": -0.2, "p0/5.png": 0.1}
    table["nearest_distance"] += table["id"].map(moved).fillna(0.0)
    table["ddcs_best"] += table["id"] == "p1/6.png"
    found = compared(table[table["id"] != "p3/3.png"])
    assert found.samples is not None
    assert found.samples["id"].tolist()[:4] == [*moved, "p1/6.png"]
    assert found.samples["distance_change"].tolist()[:3] == pytest.approx(list(moved.values()))
    assert "p3/3.png" not in set(found.samples["id"])
    assert any("only 29 images have a name in both runs" in w for w in found.warnings)
    text = render_text(found, images=2)
    assert "p4/4.png" in text and "p0/5.png" not in text


MORE = {**metrics(), "ddcs_best": {**metrics()["ddcs_best"], "reconstructions": 600}}


@pytest.mark.parametrize(
    ("changes", "warning", "images_compared"),
    [
        ({"embedding": "lpips-vgg"}, "embedding: not the same", False),
        ({"features": "pixel"}, "features: not the same", True),
        ({"seed": 4}, r"features: not the same in both runs \(trained with seeds 3 and 4", True),
        ({"seed": 4}, "evaluator: not the same", True),
        ({"inputs": {"private": {"fingerprint": "x"}}}, "the private images differ", True),
        ({"found": MORE}, "60 and 600", True),
    ],
)
def test_warns_of_numbers_that_cannot_be_compared(
    compared: Compared, changes: dict[str, Any], warning: str, images_compared: bool
) -> None:
    found = compared(**changes)
    assert any(re.search(warning, text) for text in found.warnings)
    assert (found.samples is not None) == images_compared
    assert ("Images are not compared" in render_text(found)) != images_compared


@pytest.mark.parametrize(
    ("other", "warning"),
    [
        (SHADOWS, None),
        ({}, None),
        ({**SHADOWS, "accuracy_in": 0.9}, None),
        ({**SHADOWS, "models": 16}, r"models differ \(24 and 16\), so that the one with more"),
        ({**SHADOWS, "prior": "adapted"}, r"prior differ \(unadapted and adapted\)"),
        ({**SHADOWS, "train_images": 80.0}, r"train images differ \(200 and 80\)"),
        (
            {**SHADOWS, "recipe": "m:train"},
            r"recipe differ \(own and m:train\), so that exposure is",
        ),
    ],
)
def test_exposure_is_compared_with_what_differs_between_shadow_models(
    tmp_path: Path, other: dict[str, Any], warning: str | None
) -> None:
    values = {**metrics(), **exposure_metrics(1.06)}, {**metrics(), **exposure_metrics(1.02)}
    models = {**SHADOWS, "recipe": "own"}
    changed = {name: value for name, value in other.items() if value != SHADOWS[name]}
    a = write_run(tmp_path / "a", found=values[0], shadows=models)
    b = write_run(tmp_path / "b", found=values[1], shadows={**models, **changed} if other else {})
    found = compare(a, b)
    by_key = {m.key: m for m in found.metrics}
    assert by_key["exposure_mean"].difference == pytest.approx(-0.04)
    assert list(by_key)[:2] == ["exposed", "exposure_mean"]
    assert "exposure_mean" in render_text(found)
    assert len(found.warnings) == (warning is not None)
    assert warning is None or re.search(warning, found.warnings[0])


def test_public_embeddings_are_the_same_only_with_the_same_seed(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", embedding="public")
    same = write_run(tmp_path / "same", embedding="public", settings={"arm": "vanilla"})
    other = write_run(tmp_path / "other", embedding="public", seed=9)
    assert compare(a, same).samples is not None
    assert compare(a, other).samples is None


def test_names_reach_the_terminal_as_text_only(tmp_path: Path) -> None:
    table = samples()
    table.loc[1, "id"] = "[red]x[/red]\x1b[31m.png"
    run = write_run(tmp_path / "a", table)
    text = render_text(compare(run, run), images=100)
    assert "\x1b" not in text and "[red]x[/red]\\x1b[31m.png" in text


def test_text_is_at_most_as_wide_as_asked(compared: Compared) -> None:
    text = render_text(compared(features="pixel"), width=90)
    assert max(map(len, text.splitlines())) <= 90


@pytest.mark.parametrize(
    ("changes", "message"), [({"finished": False}, "not finished"), (None, "not a run folder")]
)
def test_rejects_unfinished_and_foreign_folders(
    tmp_path: Path, changes: dict[str, Any] | None, message: str
) -> None:
    good = write_run(tmp_path / "good")
    bad = tmp_path / "bad" if changes is None else write_run(tmp_path / "bad", **changes)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(RunError, match=message):
            compare(*pair)
