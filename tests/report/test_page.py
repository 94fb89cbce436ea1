from __future__ import annotations

import base64
from typing import Any

import pytest

from inversight.report import GalleryItem, render
from inversight.report.formatting import NONE
from inversight.report.ledger import MOST_ROWS
from tests.report.examples import metrics, plain_data, png, samples
from tests.report.parsers import Page, rows_of


def text_of(**changes: Any) -> str:
    """Return the text of the page of a plain run with ``changes``."""
    return Page(render(plain_data(**changes))).text()


@pytest.fixture(scope="module")
def plain_page() -> str:
    return render(plain_data())


def test_control_and_direction_characters_are_shown_as_escapes():
    table = samples()
    table.loc[2, "id"] = "a\u202egnp.exe"
    page = render(plain_data(samples=table))
    assert "\u202e" not in page
    assert "a\\u202egnp.exe" in page


def test_pictures_go_in_as_given():
    item = GalleryItem("a/1.png", "a", 4.0, 0.25, png(10), png(99))
    page = render(plain_data(gallery=[item], images="blurred"))
    for picture in (item.private_png, item.reconstruction_png):
        assert "data:image/png;base64," + base64.b64encode(picture).decode() in page
    assert "Both sides are blurred" in page


def test_without_pictures_there_is_none_and_the_page_says_so(plain_page):
    assert not Page(plain_page).named("img")
    assert "--images none" in plain_page
    with pytest.raises(ValueError, match="no picture"):
        plain_data(gallery=[GalleryItem("a", "a", 1.0, 1.0, png(1), png(2))], images="none")


def test_every_measure_has_value_interval_direction_and_meaning(plain_page):
    text = Page(plain_page).text()
    for key in metrics():
        assert key in text
    assert "3.21 2.5 to 4.1 higher" in text
    assert "1,342 none lower" in text
    assert "on features: public" in text


def test_a_measure_without_a_value_shows_its_reason_and_no_zero(plain_page):
    assert "not computed: the features are &lt;public&gt;" in plain_page
    row = plain_page[plain_page.index("<code>fid</code>") :]
    assert 'class="n value"' not in row[: row.index("</tr>")]


def test_every_column_of_the_table_is_in_the_ledger_also_unknown_ones():
    table = samples().assign(q_value=0.5, my_column="x")
    page = render(plain_data(samples=table))
    keys = [a["data-key"] for a in Page(page).named("th") if "data-key" in a]
    assert sorted(keys) == sorted(table.columns)


def test_the_ledger_starts_with_the_smallest_distance_and_ends_with_the_unknown_ones():
    table = samples()
    page = render(plain_data(samples=table.sample(frac=1.0, random_state=1)))
    expected = table.sort_values("nearest_distance", na_position="last")["id"]
    assert [row[1] for row in rows_of(page, "ledger")] == expected.tolist()
    assert f'data-v="">{NONE}</td>' in page


def test_a_long_ledger_shows_the_nearest_and_says_where_the_rest_is():
    page = render(plain_data(samples=samples(MOST_ROWS + 100)))
    assert len(rows_of(page, "ledger")) == MOST_ROWS
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 100} rows" in page
    assert "samples.parquet" in page


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [(0.93, "can judge"), (0.6, "are rough"), (0.2, "do not rely on"), (None, "was not measured")],
)
def test_the_evaluator_is_trusted_as_far_as_it_classifies_real_images(accuracy, words):
    assert words in text_of(evaluator={"holdout_accuracy": accuracy})


def test_pages_without_any_score_or_distance_still_come_out():
    table = samples().assign(ddcs_best=0.0, nearest_distance=float("nan"), exact_hit=False)
    page = render(plain_data(samples=table, metrics={}))
    assert "No private image scores above 0." in page
    assert "No private image has a reconstruction of its class." in page
    assert "<svg" not in page


def test_settings_stages_and_versions_are_there():
    text = text_of(
        settings={"prior": {"steps": 12}, "attack": [{"keep": 5}], "limit": None},
        stages=[("prior", 90.0), ("attack", 30.0)],
        versions={"torch": "2.6.0"},
        notes=["A note."],
    )
    parts = ("prior.steps 12", "attack.0.keep 5", "prior 90.0 s 75 %", "torch 2.6.0", "A note.")
    assert all(part in text for part in (*parts, "2502.19070"))


def test_sets_stand_side_by_side_only_where_there_are_several():
    table = samples()
    table["nearest_set"] = ["<b>two", *["one"] * (len(table) - 1)]
    by_set = {"one": metrics(), "<b>two": {**metrics(), "covered": {"value": None, "reason": "x"}}}
    page = Page(render(plain_data(samples=table, by_set=by_set)))
    text = page.text()
    assert "Each set of reconstructions" in text and "<b>two" in text
    assert not page.named("b")
    # The set that is nearest to more images comes first.
    assert text.index(f"one {len(table) - 1}") < text.index("<b>two 1")
    assert "nearest_set" in [heading.get("data-key") for heading in page.named("th")]
    table["nearest_set"] = "one"
    page = Page(render(plain_data(samples=table)))
    assert "Each set of reconstructions" not in page.text()
    assert "nearest_set" not in [heading.get("data-key") for heading in page.named("th")]
