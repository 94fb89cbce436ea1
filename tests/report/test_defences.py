from __future__ import annotations

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
from tests.report.parsers import Page, assert_texts, rows_of, texts

TIMES = "\N{MULTIPLICATION SIGN}"
KEPT = {"defence": None, "reason": "None kept it."}
LEFT = {"defence": "none", "reason": "Nothing leaked."}
NO_VALUE = {"mean": None, "low": None, "high": None, "values": []}


@pytest.fixture(scope="module")
def page() -> str:
    return render_defences(found(), table())


def rendered(results: dict[str, Any]) -> str:
    return render_defences(results, table())


def text_of(results: dict[str, Any]) -> str:
    """Return the text of the page of ``results``."""
    return Page(rendered(results)).text()


def row_of(html: str, name: str) -> str:
    """Return the row of a defence in the first table."""
    return html[html.index(f"<code>{name}</code>") :].partition("</tr>")[0]


def test_page_is_the_same_after_a_round_trip_through_json(page: str) -> None:
    assert rendered(json.loads(json.dumps(found()))) == page


def test_formulas_and_control_characters_in_names_are_only_text() -> None:
    results = found()
    results["defences"][1]["name"] = r"$\frac{1}{$"
    results["defences"][2]["name"] = "a\u202eb\x1b[31m"
    html = rendered(results)
    assert r"$\frac{1}{$" in html and "a\\u202eb\\x1b[31m" in html
    assert "\u202e" not in html and "\x1b" not in html
    assert "\x1b" not in render_defences_text(results)


@pytest.mark.parametrize(
    ("results", "stated", "unstated"),
    [
        (
            found(),
            [
                "Recommended: bilateral dependency (bido).", "keep 95 % of the accuracy",
                "The holdout has 20 images.", "0.62 → 0.186 -0.434 [-0.564 to -0.304]",
                f"0.031 → 0.0589 {TIMES} 1.9 [1.75 to 2.05]",
                "Leakage gap leakage_gap 0.62 0.186 -0.434 -0.564 to -0.304 better",
                "Accuracy on holdout holdout_accuracy 0.81 0.778 -0.0324 -0.0421 to -0.0227 worse",
                f"Nearest distance distance 0.081 0.081 {TIMES} 1 0.92 to 1.08 not clear",
                "epsilon: 8", "weights: [0.05, 0.5]", "Masked? Plug & Play came out weaker",
            ],
            [],
        ),
        (found(recommendation=KEPT), ["No defence is recommended. None kept it."], []),
        (found(recommendation=None), ["No defence is recommended."], ["None kept it."]),
        (found(recommendation=LEFT), ["leave the target as it is. Nothing leaked."], []),
        (found(1), ["There is one seed", "No bars", "no interval", "-0.434"], ["not clear", "-0.564"]),
        (found(2), ["There are two seeds"], []),
        (found(warnings=[]), [], ["Warnings"]),
    ],
)  # fmt: skip
def test_page_shows(results: dict[str, Any], stated: list[str], unstated: list[str]) -> None:
    assert_texts(text_of(results), stated, unstated)


def test_recommendation_and_warnings_come_first(page: str) -> None:
    text = Page(page).text()
    assert text.index("Recommended:") < text.index("The holdout has") < text.index("Trade-off", 300)


def test_failed_defence_shows_its_reason_and_no_number(page: str) -> None:
    row = row_of(page, "dp-sgd")
    assert "failed: dp-sgd needs opacus: pip install inversight[dp]" in row
    assert 'class="n"' not in row
    assert "dp-sgd: failed: dp-sgd needs opacus" in render_defences_text(found())


def test_one_seed_has_no_intervals_and_no_change_is_better_or_worse() -> None:
    html = rendered(found(1))
    assert 'class="better"' not in html and 'class="worse"' not in html
    printed = " ".join(render_defences_text(found(1)).split())
    assert "There is one seed" in printed
    assert "-0.434" in printed and "-0.564" not in printed


def test_missing_values_are_shown_as_missing() -> None:
    results = found()
    for one in results["defences"]:
        for part in ("measures", "changes"):
            one[part].pop("flagged", None)
            one[part]["coverage"] = NO_VALUE
    results["defences"][2]["measures"]["holdout_accuracy"] = {"mean": float("nan")}
    results["defences"][2]["changes"].pop("leakage_gap")
    images = table()
    images.loc[images.index[32:36], ["ratio", "nearest_distance"]] = float("nan")
    html = render_defences(results, images)
    assert "<code>flagged</code>" not in html and "<code>coverage</code>" not in html
    assert f"0.81 →</span> <b>{NONE}</b>" in row_of(html, "bido")
    assert "Left out, because they have no value: bido." in Page(html).text()
    # Rows without a ratio are last.
    ratios = [row[4] for row in rows_of(html, "protected")]
    assert NONE in ratios and set(ratios[ratios.index(NONE) :]) == {NONE}


@pytest.mark.parametrize(
    "results",
    [{}, *({"defences": [d]} for d in ({"name": "none"}, {"name": "x", "failed": "no memory"}))],
)
def test_nearly_empty_file_has_a_page(results: dict[str, Any]) -> None:
    html = render_defences(results, table().head(0))
    assert "<svg" not in html and "No defence is recommended." in html
    assert ("No defence was tried." in html) == (not results)
    assert render_defences_text(results).endswith("\n")


def test_ddcs_replaces_a_missing_gap_in_the_figure() -> None:
    results = found()
    for part, key, figures in (("measures", "leakage_gap", 2), ("changes", "distance", 1)):
        for one in results["defences"]:
            one[part].pop(key, None)
        text = text_of(results)
        assert "Leakage gap has no value; DDCS replaces it." in text
        assert text.count("accuracy on holdout (right: better)") == figures


def test_rejects_a_missing_column_and_measures_that_are_not_of_leakage() -> None:
    with pytest.raises(ValueError, match="images lack the column ratio"):
        render_defences(found(), table().drop(columns="ratio"))
    for measure in ("leakage", "holdout_accuracy"):
        with pytest.raises(ValueError, match=rf"measure {measure}: expected one of leakage_gap"):
            render_defences(found(), table(), measure=measure)


def test_lists_protected_images_of_each_defence_nearest_first(page: str) -> None:
    rows = rows_of(page, "protected")
    own = table().query("protected and defence != 'none'")
    assert len(rows) == len(own) == 8 * 5
    best = own.loc[own["ratio"].idxmin()]
    assert rows[0][1:4] == [best["defence"], best["id"], best["label"]]
    shown_ratios = [float(row[4]) for row in rows]
    assert shown_ratios == sorted(shown_ratios)


def test_lists_images_made_worse_off_with_the_reason(page: str) -> None:
    rows = rows_of(page, "nearer")
    assert len(rows) == 4 * 5  # two newly flagged, three nearer in every seed, one of them both
    why = {(row[1], row[2]): row[4] for row in rows}
    assert why["bido", "b/2.png"] == "newly flagged"
    assert why["bido", "b/3.png"] == "newly flagged, nearer in every seed"
    assert why["mixup", "b/5.png"] == "nearer in every seed"
    harmless = found()
    for one in harmless["defences"]:
        one["images"] = None
    assert "nearer-table" not in rendered(harmless)


def test_image_that_the_table_lacks_is_listed_without_numbers() -> None:
    results = found()
    results["defences"][1]["images"]["newly_flagged"] = ["gone.png"]
    row = rows_of(rendered(results), "nearer")[-1]
    assert row[2:6] == ["gone.png", NONE, "newly flagged", NONE]


@pytest.mark.parametrize("key", [k for k in MEASURES if k not in ("private_accuracy",)])
def test_directions(key: str) -> None:
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


def test_private_accuracy_and_unknown_measures_have_no_good_direction() -> None:
    assert MEASURES["private_accuracy"].good == ""
    assert reading("private_accuracy", {"mean": -0.2, "low": -0.3, "high": -0.1}) == "lower"
    assert reading("unheard_of", {"mean": 0.2, "low": 0.1, "high": 0.3}) == "higher"


def test_measures_have_names_meanings_and_all_but_one_a_direction() -> None:
    assert all(word.meaning and word.name for word in MEASURES.values())
    assert [k for k, word in MEASURES.items() if not word.worse] == ["private_accuracy"]
    assert set(UTILITY) < set(MEASURES)


@pytest.mark.parametrize(
    ("key", "change", "text"),
    [
        ("ddcs_best", {"mean": 0.25}, "+0.25"),
        ("ddcs_best", {"mean": -0.25}, "-0.25"),
        ("distance", {"mean": 1.3}, f"{TIMES} 1.3"),
        ("distance", None, NONE),
    ],
)
def test_changes_are_signed_differences_or_ratios(key: str, change: Any, text: str) -> None:
    assert change_text(key, change) == text


def test_figure_has_the_models_with_both_values_and_the_undefended_at_no_change() -> None:
    listed = found()["defences"]
    plain = {dot.name: dot for dot in trade_off_points(listed, "leakage_gap", recommended="bido")}
    assert set(plain) == {"none", "withhold", "bido", "label-smoothing", "rounding", "mixup"}
    assert plain["bido"].recommended and not plain["mixup"].recommended and plain["none"].undefended
    assert plain["bido"].y == pytest.approx(0.186)
    assert plain["bido"].x_span == pytest.approx((0.7776 * 0.95, 0.7776 * 1.05))
    ratios = {dot.name: dot for dot in trade_off_points(listed, "distance")}
    assert (ratios["none"].y, ratios["none"].y_span) == (1.0, None)
    assert ratios["mixup"].y == pytest.approx(0.93)


def test_figure_keeps_accuracies_between_0_and_1() -> None:
    wide = defence("bido")
    wide["measures"]["holdout_accuracy"] |= {"low": -1.1, "high": 2.8}
    (dot,) = trade_off_points([wide], "leakage_gap")
    assert dot.x_span == (0.0, 1.0)


def test_titles_are_not_repeated_and_the_undefended_has_one() -> None:
    results = found()
    for one in results["defences"]:
        one["title"] = one["name"]
    results["defences"][1].pop("title")
    html = rendered(results)
    assert "<summary>undefended</summary>" in html and "<summary>withhold</summary>" in html
    assert "<code>bido</code>" not in html and "Recommended: bido." in html


def test_single_model_has_no_figure() -> None:
    assert trade_off(trade_off_points([defence("none")], "leakage_gap"), "leakage_gap") is None


def test_figure_names_each_model_as_plain_text() -> None:
    names = [rf"$\frac{{{i}}}{{$" for i in range(9)]
    listed = [defence("none"), *({**defence("bido"), "name": name} for name in names)]
    shown = texts(trade_off(trade_off_points(listed, "leakage_gap"), "leakage_gap"))
    assert all(name in shown for name in ("undefended", *names))


def test_text_has_every_defence_and_is_at_most_as_wide_as_asked() -> None:
    printed = render_defences_text(found(), width=100)
    assert max(map(len, printed.splitlines())) <= 100
    assert printed.startswith("Recommended: bilateral dependency (bido).")
    for name in ("none", "withhold", "* bido", "label-smoothing", "rounding", "mixup"):
        assert re.search(rf"^{re.escape(name)} ", printed, re.M), name
    assert "rounding: masked: Plug & Play came out weaker" in printed
    squeezed = " ".join(printed.split())
    assert "Leakage gap 0.62 0.186 -0.434 -0.564 to -0.304 better" in squeezed
    assert f"0.031 0.0589 {TIMES} 1.9 1.75 to 2.05 better" in squeezed
    assert f"dp-sgd failed {NONE}" in squeezed
