from __future__ import annotations

import re

import pytest

from inversight.core.errors import RunError
from inversight.report import compare, render_text
from inversight.report.formatting import NONE
from tests.report.examples import metrics, samples, write_run


def test_a_run_is_equal_to_itself(tmp_path):
    run = write_run(tmp_path / "a")
    found = compare(run, run)
    assert found.warnings == () and found.settings == ()
    assert all(m.difference in (0.0, None) for m in found.metrics)
    assert (found.samples["distance_change"].dropna() == 0).all()
    assert "No setting differs." in render_text(found)


def test_differences_are_b_minus_a_and_intervals_are_compared(tmp_path):
    other = metrics()
    other["ddcs_best"] = {"value": 6.0, "low": 5.0, "high": 7.0, "reconstructions": 60}
    other["covered"] = {"value": 0.75, "low": 0.7, "high": 0.9}
    other["extra"] = {"value": 1.0, "low": None, "high": None}
    found = compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", found=other))
    by_key = {m.key: m for m in found.metrics}
    assert by_key["ddcs_best"].difference == pytest.approx(6.0 - 3.21)
    assert by_key["ddcs_best"].overlap is False
    assert by_key["covered"].overlap is True
    assert by_key["density"].overlap is None
    assert by_key["fid"].difference is None
    assert by_key["fid"].note == "a and b: the features are <public>"
    assert by_key["extra"].note == "a: not in this run"


def test_settings_that_differ_are_named_by_their_path(tmp_path):
    changed = {"arm": "vanilla", "prior": {"steps": 10}, "attack": [{"keep": 9}], "new": 1}
    found = compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", settings=changed))
    assert found.settings == (
        ("arm", "entropy", "vanilla"),
        ("attack.0.keep", "5", "9"),
        ("new", NONE, "1"),
    )


def test_images_are_matched_by_name_and_sorted_by_their_change(tmp_path):
    a = samples()
    b = samples().sample(frac=1.0, random_state=0)
    moved = {"p2/2.png": 0.3, "p4/4.png": -0.2, "p0/5.png": 0.1}
    for name, change in moved.items():
        b.loc[b["id"] == name, "nearest_distance"] += change
    b = b[b["id"] != "p3/3.png"]
    b.loc[b["id"] == "p1/6.png", "ddcs_best"] += 1.0
    found = compare(write_run(tmp_path / "a", a), write_run(tmp_path / "b", b))
    assert found.samples["id"].tolist()[:4] == [*moved, "p1/6.png"]
    assert found.samples["distance_change"].tolist()[:3] == pytest.approx(list(moved.values()))
    assert "p3/3.png" not in set(found.samples["id"])
    assert any("only 29 images have a name in both runs" in w for w in found.warnings)
    text = render_text(found, images=2)
    assert "p4/4.png" in text and "p0/5.png" not in text


@pytest.mark.parametrize(
    ("changes", "words", "images_compared"),
    [
        ({"embedding": "lpips-vgg"}, "embedding: not the same", False),
        ({"features": "pixel"}, "features: not the same", True),
        ({"seed": 4}, r"features: not the same in both runs \(trained with seeds 3 and 4", True),
        ({"seed": 4}, "evaluator: not the same", True),
        ({"inputs": {"private": {"fingerprint": "x"}}}, "the private images differ", True),
    ],
)
def test_what_makes_numbers_incomparable_is_a_warning(tmp_path, changes, words, images_compared):
    found = compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", **changes))
    assert any(re.search(words, warning) for warning in found.warnings)
    assert (found.samples is not None) == images_compared
    assert ("Images are not compared" in render_text(found)) != images_compared


def test_a_public_embedding_trained_by_each_run_is_the_same_only_from_the_same_seed(tmp_path):
    a = write_run(tmp_path / "a", embedding="public")
    same = write_run(tmp_path / "same", embedding="public", settings={"arm": "vanilla"})
    other = write_run(tmp_path / "other", embedding="public", seed=9)
    assert compare(a, same).samples is not None
    assert compare(a, other).samples is None


def test_another_number_of_reconstructions_is_a_warning(tmp_path):
    more = metrics()
    more["ddcs_best"]["reconstructions"] = 600
    found = compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", found=more))
    assert any("60 and 600" in warning for warning in found.warnings)


def test_names_reach_the_terminal_as_text_only(tmp_path):
    table = samples()
    table.loc[1, "id"] = "[red]x[/red]\x1b[31m.png"
    a, b = write_run(tmp_path / "a", table), write_run(tmp_path / "b", table)
    text = render_text(compare(a, b), images=100)
    assert "\x1b" not in text
    assert "[red]x[/red]\\x1b[31m.png" in text


def test_the_text_keeps_to_its_width(tmp_path):
    found = compare(write_run(tmp_path / "a"), write_run(tmp_path / "b", features="pixel"))
    assert max(map(len, render_text(found, width=90).splitlines())) <= 90


@pytest.mark.parametrize(
    ("changes", "words"), [({"finished": False}, "not finished"), (None, "not a run folder")]
)
def test_unfinished_and_foreign_folders_are_refused(tmp_path, changes, words):
    good = write_run(tmp_path / "good")
    bad = tmp_path / "bad"
    if changes is None:
        bad.mkdir()
    else:
        write_run(bad, **changes)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(RunError, match=words):
            compare(*pair)
