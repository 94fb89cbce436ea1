from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from inversight.report import render_defences, render_defences_text
from inversight.report.defences import change_text, reading
from inversight.report.formatting import NONE
from inversight.report.trade_off import trade_off, trade_off_points
from inversight.report.words import MEASURES, RATIOS, UTILITY
from tests.report.defence_examples import defence, found, table
from tests.report.parsers import Page, rows_of, texts


@pytest.fixture(scope="module")
def page() -> str:
    return render_defences(found(), table())


def text_of(results: dict[str, Any] | None = None) -> str:
    """Return the text of the page of ``results``."""
    return Page(render_defences(results or found(), table())).text()


def row_of(html: str, name: str) -> str:
    """Return the row of a defence in the first table."""
    return html[html.index(f"<code>{name}</code>") :].partition("</tr>")[0]


def test_what_json_reads_back_gives_the_same_page(page):
    assert render_defences(json.loads(json.dumps(found())), table()) == page


def test_signs_of_mathematics_and_control_characters_in_names_are_only_text():
    results = found()
    results["defences"][1]["name"] = r"$\frac{1}{$"
    results["defences"][2]["name"] = "a\u202eb\x1b[31m"
    html = render_defences(results, table())
    assert r"$\frac{1}{$" in html
    assert "\u202e" not in html and "\x1b" not in html
    assert "a\\u202eb\\x1b[31m" in html
    assert "\x1b" not in render_defences_text(results)


def test_recommendation_and_warnings_come_first(page):
    text = Page(page).text()
    assert "Recommended: bilateral dependency (bido)." in text
    assert "keep 95 % of the accuracy" in text and "The holdout has 20 images." in text
    assert text.index("Recommended:") < text.index("The holdout has") < text.index("Trade-off", 300)


def test_no_recommendation_is_said():
    for nothing in ({"defence": None, "reason": "None kept the accuracy."}, None):
        text = text_of(found(recommendation=nothing))
        assert "No defence is recommended." in text
    assert "None kept the accuracy." not in text
    text = text_of(found(recommendation={"defence": "none", "reason": "Nothing leaked."}))
    assert "leave the target as it is. Nothing leaked." in text


def test_a_failed_defence_shows_its_reason_and_no_number(page):
    row = row_of(page, "dp-sgd")
    assert "failed: dp-sgd needs opacus: pip install inversight[dp]" in row
    assert 'class="n"' not in row
    assert "dp-sgd: failed: dp-sgd needs opacus" in render_defences_text(found())


def test_before_after_change_and_interval_are_beside_each_other(page):
    text = Page(page).text()
    times = "\N{MULTIPLICATION SIGN}"
    for part in (
        "0.62 → 0.186 -0.434 [-0.564 to -0.304]",
        f"0.031 → 0.0589 {times} 1.9 [1.75 to 2.05]",
        "Leakage gap leakage_gap 0.62 0.186 -0.434 -0.564 to -0.304 better",
        "Accuracy on holdout holdout_accuracy 0.81 0.778 -0.0324 -0.0421 to -0.0227 worse",
        f"Nearest distance distance 0.081 0.081 {times} 1 0.92 to 1.08 not clear",
        "epsilon: 8",
    ):
        assert part in text
    assert "weights: 0.05, 0.5" in text.replace("[", "").replace("]", "")
    assert "Masked? Plug &amp; Play came out weaker" in page


def test_one_seed_has_no_intervals_and_the_page_says_so():
    html = render_defences(found(1), table())
    text = Page(html).text()
    assert "There is one seed" in text and "No bars" in text
    assert "no interval" in text and "not clear" not in text
    assert 'class="better"' not in html and 'class="worse"' not in html
    printed = " ".join(render_defences_text(found(1)).split())
    assert "There is one seed" in printed
    assert "-0.434" in printed and "-0.564" not in printed
    assert 'id="warnings"' not in render_defences(found(warnings=[]), table())
    assert "There are two seeds" in text_of(found(2))


def test_missing_values_are_missing_and_never_zero():
    results = found()
    for one in results["defences"]:
        for part in ("measures", "changes"):
            one[part].pop("flagged", None)
            one[part]["coverage"] = {"mean": None, "low": None, "high": None, "values": []}
    results["defences"][2]["measures"]["holdout_accuracy"] = {"mean": float("nan")}
    results["defences"][2]["changes"].pop("leakage_gap")
    images = table(results)
    images.loc[images.index[32:36], ["ratio", "nearest_distance"]] = float("nan")
    html = render_defences(results, images)
    assert "<code>flagged</code>" not in html and "<code>coverage</code>" not in html
    assert f"0.81 →</span> <b>{NONE}</b>" in row_of(html, "bido")
    assert "Left out, because they have no value: bido." in Page(html).text()
    # Rows without a ratio stand last.
    ratios = [row[4] for row in rows_of(html, "protected")]
    assert NONE in ratios and NONE not in ratios[: ratios.index(NONE)]
    assert set(ratios[ratios.index(NONE) :]) == {NONE}


def test_the_barest_file_still_gives_a_page():
    for listed in ([], [{"name": "none"}], [{"name": "x", "failed": "no memory"}]):
        results = {"defences": listed}
        html = render_defences(results, table().head(0))
        assert "<svg" not in html
        assert "No defence is recommended." in html
        assert render_defences_text(results).endswith("\n")
    assert "No defence was tried." in render_defences({}, table().head(0))


def test_without_a_gap_ddcs_replaces_it_and_the_page_says_so():
    results = found()
    for one in results["defences"]:
        one["measures"].pop("leakage_gap", None)
    text = text_of(results)
    assert "Leakage gap has no value; DDCS replaces it." in text
    assert text.count("accuracy on holdout (right: better)") == 2
    for one in results["defences"]:
        one["changes"].pop("distance", None)
    text = text_of(results)
    assert text.count("accuracy on holdout (right: better)") == 1


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="images lack the column ratio"):
        render_defences(found(), table().drop(columns="ratio"))
    for measure in ("leakage", "holdout_accuracy"):
        with pytest.raises(ValueError, match=rf"measure {measure}: expected one of leakage_gap"):
            render_defences(found(), table(), measure=measure)


def test_protected_images_of_each_defence_the_nearest_first(page):
    rows = rows_of(page, "protected")
    own = table()
    own = own[own["protected"] & (own["defence"] != "none")]
    assert len(rows) == len(own) == 8 * 5
    best = own.loc[own["ratio"].idxmin()]
    assert rows[0][1:4] == [best["defence"], best["id"], best["label"]]
    shown_ratios = [float(row[4]) for row in rows]
    assert shown_ratios == sorted(shown_ratios)


def test_images_made_worse_off_are_listed_with_the_reason(page):
    rows = rows_of(page, "nearer")
    assert len(rows) == 4 * 5  # two newly flagged, three nearer in every seed, one of them both
    why = {(row[1], row[2]): row[4] for row in rows}
    assert why["bido", "b/2.png"] == "newly flagged"
    assert why["bido", "b/3.png"] == "newly flagged, nearer in every seed"
    assert why["mixup", "b/5.png"] == "nearer in every seed"
    harmless = found()
    for one in harmless["defences"]:
        one["images"] = None
    assert "nearer-table" not in render_defences(harmless, table())


def test_an_image_that_the_table_lacks_is_listed_without_numbers():
    results = found()
    results["defences"][1]["images"]["newly_flagged"] = ["gone.png"]
    rows = rows_of(render_defences(results, table()), "nearer")
    (row,) = [row for row in rows if row[2] == "gone.png"]
    assert row[3] == NONE and row[4] == "newly flagged" and row[5] == NONE
    assert rows[-1] == row


# What a change means


@pytest.mark.parametrize("key", [k for k in MEASURES if k not in ("private_accuracy",)])
def test_directions(key):
    none = 1.0 if key in RATIOS else 0.0
    up = {"mean": none + 0.2, "low": none + 0.1, "high": none + 0.3}
    down = {"mean": none - 0.2, "low": none - 0.3, "high": none - 0.1}
    wanted_up = key in ("holdout_accuracy", *RATIOS)
    assert MEASURES[key].good == ("higher is better" if wanted_up else "lower is better")
    assert reading(key, up) == ("better" if wanted_up else "worse")
    assert reading(key, down) == ("worse" if wanted_up else "better")
    assert reading(key, {**up, "low": none - 0.01}) == "not clear"
    assert reading(key, {**up, "low": None, "high": None}) == "no interval"
    assert reading(key, {"mean": None}) == reading(key, None) == ""


def test_accuracy_on_private_images_and_unknown_measures_have_no_good_direction():
    assert MEASURES["private_accuracy"].good == ""
    assert reading("private_accuracy", {"mean": -0.2, "low": -0.3, "high": -0.1}) == "lower"
    assert reading("unheard_of", {"mean": 0.2, "low": 0.1, "high": 0.3}) == "higher"


def test_every_measure_but_one_has_a_direction_and_all_have_a_meaning():
    assert all(word.meaning and word.name for word in MEASURES.values())
    assert [k for k, word in MEASURES.items() if not word.worse] == ["private_accuracy"]
    assert set(UTILITY) < set(MEASURES)


def test_changes_are_signed_differences_or_ratios():
    assert change_text("ddcs_best", {"mean": 0.25}) == "+0.25"
    assert change_text("ddcs_best", {"mean": -0.25}) == "-0.25"
    assert change_text("distance", {"mean": 1.3}) == "\N{MULTIPLICATION SIGN} 1.3"
    assert change_text("distance", None) == NONE


# The picture


def test_dots_are_those_with_both_values_and_the_undefended_stands_at_no_change():
    listed = found()["defences"]
    plain = {dot.name: dot for dot in trade_off_points(listed, "leakage_gap", recommended="bido")}
    assert set(plain) == {"none", "withhold", "bido", "label-smoothing", "rounding", "mixup"}
    assert plain["bido"].recommended and not plain["mixup"].recommended and plain["none"].undefended
    assert plain["bido"].y == pytest.approx(0.186)
    assert plain["bido"].x_span == pytest.approx((0.7776 * 0.95, 0.7776 * 1.05))
    ratios = {dot.name: dot for dot in trade_off_points(listed, "distance")}
    assert (ratios["none"].y, ratios["none"].y_span) == (1.0, None)
    assert ratios["mixup"].y == pytest.approx(0.93)


def test_the_accuracy_in_the_picture_stays_a_share():
    wide = copy.deepcopy(defence("bido"))
    wide["measures"]["holdout_accuracy"] |= {"low": -1.1, "high": 2.8}
    (dot,) = trade_off_points([wide], "leakage_gap")
    assert dot.x_span == (0.0, 1.0)


def test_titles_are_not_repeated_and_the_undefended_has_one():
    results = found()
    for one in results["defences"]:
        one["title"] = one["name"]
    results["defences"][1].pop("title")
    html = render_defences(results, table())
    assert "<summary>undefended</summary>" in html and "<summary>withhold</summary>" in html
    assert "<code>bido</code>" not in html and "Recommended: bido." in html


def test_one_dot_is_no_trade_off():
    assert trade_off(trade_off_points([defence("none")], "leakage_gap"), "leakage_gap") is None


def test_each_model_is_in_the_legend_and_a_name_is_no_formula():
    listed = [defence("none"), *(copy.deepcopy(defence("bido")) for _ in range(9))]
    for i, one in enumerate(listed[1:]):
        one["name"] = rf"$\frac{{{i}}}{{$"
    svg = trade_off(trade_off_points(listed, "leakage_gap"), "leakage_gap")
    shown = texts(svg)
    assert "undefended" in shown and all(rf"$\frac{{{i}}}{{$" in shown for i in range(9))


# The terminal


def test_the_text_has_every_defence_and_keeps_to_its_width():
    printed = render_defences_text(found(), width=100)
    assert max(map(len, printed.splitlines())) <= 100
    assert printed.startswith("Recommended: bilateral dependency (bido).")
    for name in ("none", "withhold", "* bido", "label-smoothing", "rounding", "mixup"):
        assert re.search(rf"^{re.escape(name)} ", printed, re.M), name
    assert "rounding: masked: Plug & Play came out weaker" in printed
    squeezed = " ".join(printed.split())
    assert "Leakage gap 0.62 0.186 -0.434 -0.564 to -0.304 better" in squeezed
    assert "0.031 0.0589 \N{MULTIPLICATION SIGN} 1.9 1.75 to 2.05 better" in squeezed
    assert f"dp-sgd failed {NONE}" in squeezed
