from __future__ import annotations

import base64
from typing import Any

import pytest

from inversight.report import GalleryItem, ReportData, render
from inversight.report.contents import worst_first
from inversight.report.formatting import NONE
from inversight.report.ledger import MOST_ROWS
from tests.report.examples import metrics, metrics_of, plain_data, png, samples
from tests.report.exposure_examples import exposed_data, exposure_metrics
from tests.report.parsers import Page, assert_texts, rows_of

PICTURE = GalleryItem("a/1.png", "a", 4.0, 0.25, png(10), png(99))
NOTHING = samples().assign(ddcs_best=0.0, nearest_distance=float("nan"), exact_hit=False)
FAR = samples().assign(exact_hit=False)
RUN = {
    "settings": {"prior": {"steps": 12}, "attack": [{"keep": 5}], "limit": None},
    "stages": [("prior", 90.0), ("attack", 30.0)],
    "versions": {"torch": "2.6.0"},
    "notes": ["A note."],
}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, [*metrics(), "3.21 2.5 to 4.1 ↑ higher", "1,342 none ↓ lower", "on features: public"]),
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
    rows = page[page.index('class="measures"') :].partition("</table>")[0]
    assert "<code>fid</code>" not in rows and "<code>fid</code>" in page
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
    shown = page.text().partition("Each set of reconstructions")[2]
    assert shown.index(f"one {len(table) - 1}") < shown.index("<b>two 1")
    assert "nearest_set" in headings(several)
    single = plain_data(samples=table.assign(nearest_set="one"))
    assert "Each set of reconstructions" not in Page(render(single)).text()
    assert "nearest_set" not in headings(single)


def headings(data: ReportData) -> list[str]:
    """Return the keys of the ledger's columns."""
    return [a["data-key"] for a in Page(render(data)).named("th") if "data-key" in a]


NEXT = {
    "exposed": "Go through the 9 exposed images",
    "flagged": "Go through the 4 flagged images",
    "set": "treat the set as a whole",
    "defend": "inversight defend RUN",
    "expose": "inversight expose RUN",
    "recipe": "--recipe package.module:function",
    "more": "inversight expose RUN --shadows 48",
    "holdout": "again with --holdout",
}
OWN, GIVEN = {"target": None, "private": "p"}, {"target": "my.models:net"}
UNSEEN = {"holdout_nearest": [0.3] * 40}


@pytest.mark.parametrize(
    ("data", "answer", "numbers", "steps"),
    [
        (
            exposed_data(settings=OWN, **UNSEEN), "leakage shown",
            ["Exposure of the set 1.06 [1.04, 1.09] p = 0.0001, 24 shadow models",
             "Exposed images 9 of 200 false-discovery rate 10 %", "Private images 200 in 10 classes"],
            {"exposed", "defend"},
        ),
        (
            exposed_data(settings=GIVEN, metrics={**metrics_of(), **exposure_metrics(count=0)}),
            "leakage shown", ["Exposed images 0 of 200"], {"set", "expose", "more", "holdout"},
        ),
        (
            exposed_data(settings=OWN, metrics={**metrics_of(), **exposure_metrics(p=0.3)}, **UNSEEN),
            "unclear", ["p = 0.3"], {"exposed", "defend"},
        ),
        (
            plain_data(samples=FAR, metrics=metrics_of(0.38, 0.005, 4), settings=GIVEN, **UNSEEN),
            "leakage shown",
            ["Leakage gap 0.38 [-1, 1.5] p = 0.005", "Flagged images 4 of 30", "30 in 5 classes"],
            {"flagged", "defend", "expose", "recipe"},
        ),
        (
            plain_data(samples=FAR, metrics=metrics_of(0.02, 0.4, 0), settings=OWN, **UNSEEN),
            "no leakage shown", ["p = 0.4", "0 of 30"], {"expose"},
        ),
        (plain_data(samples=FAR), "not tested", ["Private images 30"], {"holdout"}),
    ],
)  # fmt: skip
def test_first_screen_has_the_answer_its_test_the_worst_images_and_what_to_do(
    data: ReportData, answer: str, numbers: list[str], steps: set[str]
) -> None:
    html = render(data)
    shown = Page(html[: html.index("</dl>")] + "</dl></section></main></body></html>").text()
    assert_texts(shown, [f"Verdict: {answer}", *numbers])
    following = html[html.index('<section id="worst"') : html.index('id="gallery"')]
    [worst, *_], what = following.split("</ol>"), following.partition('id="next-title"')[2]
    for name in worst_first(data.samples)["id"].head(3):
        assert name in worst
    what = " ".join(
        what.partition("</section>")[0].replace("<code>", "").replace("</code>", "").split()
    )
    what = what.replace('<code class="line">', "")
    assert {name for name, text in NEXT.items() if text in what} == steps


def test_sections_come_in_the_order_of_a_reader_in_a_hurry() -> None:
    ids = [a["id"] for tag, a in Page(render(exposed_data())).elements if tag == "section"]
    assert ids == [
        "verdict", "worst", "next", "exposure", "gallery", "ledger", "measures", "run", "limits",
    ]  # fmt: skip
