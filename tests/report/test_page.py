from __future__ import annotations

import base64
from typing import Any

import pytest

from inversight.report import GalleryItem, ReportData, render
from inversight.report.formatting import NONE
from inversight.report.ledger import MOST_ROWS
from tests.report.examples import metrics, plain_data, png, samples
from tests.report.parsers import Page, assert_texts, rows_of

PICTURE = GalleryItem("a/1.png", "a", 4.0, 0.25, png(10), png(99))
NOTHING = samples().assign(ddcs_best=0.0, nearest_distance=float("nan"), exact_hit=False)
RUN = {
    "settings": {"prior": {"steps": 12}, "attack": [{"keep": 5}], "limit": None},
    "stages": [("prior", 90.0), ("attack", 30.0)],
    "versions": {"torch": "2.6.0"},
    "notes": ["A note."],
}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, [*metrics(), "3.21 2.5 to 4.1 higher", "1,342 none lower", "on features: public"]),
        ({}, ["not computed: the features are <public>", "--images none", "2502.19070"]),
        (
            {"metrics": {**metrics(), "frechet": {"value": 7.0, "caveat": "9 <images>"}}},
            ["9 <images>."],
        ),
        (RUN, ["prior.steps 12", "attack.0.keep 5", "prior 90.0 s 75 %", "torch 2.6.0", "A note."]),
        ({"gallery": [PICTURE], "images": "blurred"}, ["Both sides are blurred"]),
        ({"evaluator": {"holdout_accuracy": 0.93}}, ["can judge"]),
        ({"evaluator": {"holdout_accuracy": 0.6}}, ["are rough"]),
        ({"evaluator": {"holdout_accuracy": 0.2}}, ["do not rely on"]),
        ({"evaluator": {"holdout_accuracy": None}}, ["was not measured"]),
        ({"samples": NOTHING, "metrics": {}}, ["No private image scores above 0."]),
        ({"samples": NOTHING}, ["No private image has a reconstruction of its class."]),
    ],
)
def test_page_shows(changes: dict[str, Any], shown: list[str]) -> None:
    assert_texts(Page(render(plain_data(**changes))).text(), shown)


def test_writes_control_and_direction_characters_as_escapes() -> None:
    table = samples()
    table.loc[2, "id"] = "a\u202egnp.exe"
    page = render(plain_data(samples=table))
    assert "\u202e" not in page and "a\\u202egnp.exe" in page


def test_embeds_pictures_unchanged_and_none_without_a_gallery() -> None:
    page = Page(render(plain_data(gallery=[PICTURE], images="full")))
    found = [image["src"].partition("base64,")[2] for image in page.named("img")]
    assert [*map(base64.b64decode, found)] == [PICTURE.private_png, PICTURE.reconstruction_png]
    assert not Page(render(plain_data())).named("img")


def test_rejects_pictures_if_images_is_none() -> None:
    with pytest.raises(ValueError, match="no picture"):
        plain_data(gallery=[PICTURE], images="none")


def test_shows_no_number_or_figure_without_values() -> None:
    page = render(plain_data(samples=NOTHING))
    assert 'class="n value"' not in page[page.index("<code>fid</code>") :].partition("</tr>")[0]
    assert "<svg" not in page


def test_ledger_has_all_columns_even_unknown_ones() -> None:
    table = samples().assign(q_value=0.5, my_column="x")
    assert sorted(headings(plain_data(samples=table))) == sorted(table.columns)


def test_ledger_is_sorted_by_distance_with_unknown_distances_last() -> None:
    table = samples()
    page = render(plain_data(samples=table.sample(frac=1.0, random_state=1)))
    expected = table.sort_values("nearest_distance", na_position="last")["id"]
    assert [row[1] for row in rows_of(page, "ledger")] == expected.tolist()
    assert f'data-v="">{NONE}</td>' in page


def test_long_ledger_is_cut_and_says_where_the_rest_is() -> None:
    page = render(plain_data(samples=samples(MOST_ROWS + 100)))
    assert len(rows_of(page, "ledger")) == MOST_ROWS
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 100} rows" in page
    assert "samples.parquet" in page


def test_compares_sets_of_reconstructions_only_if_there_are_several() -> None:
    table = samples()
    table["nearest_set"] = ["<b>two", *["one"] * (len(table) - 1)]
    by_set = {"one": metrics(), "<b>two": {**metrics(), "covered": {"value": None, "reason": "x"}}}
    several = plain_data(samples=table, by_set=by_set)
    page = Page(render(several))
    assert "Each set of reconstructions" in page.text() and not page.named("b")
    # The set that is nearest to more images comes first.
    assert page.text().index(f"one {len(table) - 1}") < page.text().index("<b>two 1")
    assert "nearest_set" in headings(several)
    single = plain_data(samples=table.assign(nearest_set="one"))
    assert "Each set of reconstructions" not in Page(render(single)).text()
    assert "nearest_set" not in headings(single)


def headings(data: ReportData) -> list[str]:
    """Return the keys of the ledger's columns."""
    return [a["data-key"] for a in Page(render(data)).named("th") if "data-key" in a]
