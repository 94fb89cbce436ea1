"""What the report shows of exposure: figure, groups, ledger, pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from inversight.core.errors import RunError
from inversight.report import load_report_data, render
from inversight.report.exposure import exposure_figure, groups_of
from inversight.report.formatting import number
from tests.report.examples import metrics, samples, write_run
from tests.report.exposure_examples import (
    COLUMNS,
    SHADOWS,
    exposed_data,
    exposed_samples,
    exposure_item,
    exposure_metrics,
    exposure_table,
    exposures,
)
from tests.report.parsers import Page, assert_texts, parsed, rows_of, texts

NAN, NEAREST = float("nan"), "nearest_distance"


def drawn(table: pd.DataFrame, holdout: list[float] | None = None) -> Any:
    flags = [None if pd.isna(flag) else bool(flag) for flag in table["exposed"]]
    columns = (table[name].tolist() for name in COLUMNS[:3])
    return exposure_figure(*columns, flags, holdout or [])


def test_figure_counts_exposed_other_and_untested_images() -> None:
    shown = texts(drawn(exposed_samples(), [1.1, 0.9, NAN]))
    assert_texts(shown, ["exposed (9)", "not exposed (190)", "not judged (1)", "private (200)"])
    assert "holdout (2)" in shown and "holdout" not in texts(drawn(exposed_samples()))


@pytest.mark.parametrize("images", [1, 2, 200, 2000])
def test_figure_of_any_number_of_images_is_small_and_finite(images: int) -> None:
    figure = drawn(exposed_samples(images, exposed=min(images, 9)))
    assert parsed(figure).tag.endswith("svg")
    assert "nan" not in figure.lower() and "inf" not in figure.lower()
    assert len(figure) < 100_000 + 250 * images


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1.0], [1.0], [1.0]),
        ([1.5], [NAN], [NAN]),
        ([1e-6, 1e6], [1e-9, 1e3], [1.0, 1e300]),
        ([1.1, NAN, 0.0, 1.2], [0.9, NAN, NAN, 1e-200], [1.3, NAN, NAN, 1e200]),
    ],
)
def test_figure_draws_extreme_and_missing_values(
    values: list[float], low: list[float], high: list[float]
) -> None:
    figure = exposure_figure(values, low, high, [None] * len(values), [])
    assert figure is not None and parsed(figure).tag.endswith("svg")


def test_figure_needs_an_exposure() -> None:
    nothing = exposed_samples(30).assign(**dict.fromkeys(COLUMNS[:4], NAN), exposed=pd.NA)
    assert drawn(nothing) is None
    page = Page(render(exposed_data(samples=nothing, exposures=None)))
    assert "No exposure could be computed." in page.text()


def test_run_without_shadow_models_is_as_before() -> None:
    data = exposed_data()
    table = data.samples.drop(columns=list(COLUMNS))
    missing = {k: {"value": None, "reason": "give --shadows K"} for k in exposure_metrics()}
    old = {k: v for k, v in data.metrics.items() if k not in missing}
    none = {"samples": table, "shadows": {}, "exposures": None, "exposure_gallery": []}
    page = Page(render(replace(data, metrics=old, **none)))
    assert "xpos" not in page.text()
    assert not [a for _, a in page.elements if a.get("id", "").startswith("expos")]
    # --shadows 0: the measures come last, with their reason.
    shown = Page(render(replace(data, metrics={**missing, **old}, **none))).text()
    assert shown.count("not computed: give --shadows K") == 4
    assert shown.index("Leakage gap") < shown.index("Exposure of the set")


def test_ledger_is_led_by_exposure() -> None:
    data = exposed_data()
    shuffled = data.samples.sample(frac=1.0, random_state=1)
    html = render(exposed_data(samples=shuffled))
    expected = data.samples.sort_values("exposure_shrunken", ascending=False)
    rows = rows_of(html, "ledger")
    assert [row[1] for row in rows] == expected["id"].tolist()
    first = expected.iloc[0]
    bounds = f"{number(first['exposure_low'])}, {number(first['exposure_high'])}"
    assert rows[0][3:5] == ["yes", f"{number(first['exposure'])} [{bounds}]"]
    keys = [a["data-key"] for a in Page(html).named("th") if "data-key" in a]
    assert keys[:7] == ["id", "label", "exposed", *COLUMNS[:1], *COLUMNS[3:6]]
    assert "exposure_low" not in keys and set(data.samples) - set(keys) == set(COLUMNS[1:3])
    [heading] = [a for a in Page(html).named("th") if "aria-sort" in a]
    assert (heading["data-key"], heading["aria-sort"]) == ("exposure_shrunken", "descending")
    assert "Largest exposure first, by the shrunken value" in Page(html).text()


def test_images_without_exposure_come_last_by_distance() -> None:
    table = exposed_samples(30)
    table.loc[table.index[:5], list(COLUMNS[:6])] = NAN
    rows = rows_of(render(exposed_data(samples=table)), "ledger")
    unknown = table.head(5).sort_values("nearest_distance")["id"]
    assert [row[1] for row in rows[-5:]] == unknown.tolist()


def test_pictures_are_of_the_pair_with_the_median_difference() -> None:
    item = exposure_item("a/1.png")
    page = Page(render(exposed_data(exposure_gallery=[item])))
    assert_texts(page.text(), ["The order is uncertain", "correlate with these by about 0.31."])
    sources = [image["src"] for image in page.named("img")]
    assert len(sources) == len(set(sources)) == 3
    assert_texts(
        page.text(),
        [
            "Of the 12 pairs of models, the pair whose difference of log distances is the median",
            "a/1.png",
            "trained with distance 0.118", "trained without distance 0.171",
            "exposure 1.62 [1.31, 2] · p 0.0004",
        ],
    )  # fmt: skip
    assert "are blurred" in render(exposed_data(images="blurred"))


def test_no_picture_if_images_is_none() -> None:
    with pytest.raises(ValueError, match="no picture"):
        exposed_data(images="none")
    page = Page(render(exposed_data(images="none", exposure_gallery=[])))
    assert not page.named("img") and "Pictures are left out" in page.text()


def grouped() -> pd.DataFrame:
    table = exposed_samples(8, exposed=2)
    return table.assign(group=["ann", "ann", "bob", "bob", "bob", "cy", None, None])


def test_groups_are_listed_with_the_worst_first() -> None:
    table = grouped()
    found = groups_of(table)
    assert found is not None and (found.of, found.single) == (3, 2)
    keys = [column.key for column in found.ledger.columns][1:]
    assert keys == ["group", "exposure", "images", "exposed_images", "flagged_images", NEAREST]
    rows = {row[1].text: [cell.text for cell in row[2:]] for row in found.ledger.rows}
    means = {
        name: float(np.exp(np.log(rows_["exposure"]).mean()))
        for name, rows_ in table.groupby("group")
    }
    assert list(rows) == sorted(means, key=means.__getitem__, reverse=True)
    for name, own in table.groupby("group"):
        count = str(int(own["exposed"].fillna(False).sum()))
        nearest = number(own[NEAREST].min())
        assert rows[name] == [number(means[name]), str(len(own)), count, "0", nearest]
    page = Page(render(exposed_data(samples=table)))
    assert_texts(page.text(), ["All 3 groups.", "2 private images belong to no group."])


def test_groups_show_their_own_test() -> None:
    own = exposures(4, exposed=1).assign(group=["cy", "ann", "bob", "of holdout alone"], images=3)
    found = groups_of(grouped(), own)
    assert found is not None and found.sorted == "exposure_shrunken"
    expected = own.iloc[:3].sort_values("exposure_shrunken", ascending=False)
    assert [row[1].text for row in found.ledger.rows] == expected["group"].tolist()
    first, cells = expected.iloc[0], [cell.text for cell in found.ledger.rows[0][2:6]]
    bounds = f"{number(first['exposure_low'])}, {number(first['exposure_high'])}"
    values = (first["exposure_shrunken"], first["exposure_p"])
    assert cells == ["yes", f"{number(first['exposure'])} [{bounds}]", *map(number, values)]
    page = Page(render(exposed_data(samples=grouped(), exposure_groups=own)))
    assert "tested as a whole" in page.text()


def test_groups_without_exposure_are_ordered_by_distance() -> None:
    table = grouped().drop(columns=list(COLUMNS))
    found = groups_of(table)
    nearest = table.groupby("group")["nearest_distance"].min().sort_values()
    assert found is not None
    assert [row[1].text for row in found.ledger.rows] == nearest.index.tolist()
    assert groups_of(table.assign(group=None)) is None
    assert groups_of(table.drop(columns="group")) is None


def test_reads_a_run_folder_with_shadow_models(tmp_path: Path) -> None:
    table = exposed_samples(40)
    found = {**metrics(), **exposure_metrics(images=40)}
    run = write_run(tmp_path / "run", table, found, shadows=SHADOWS)
    exposure_table(table, holdout=20).to_parquet(run / "exposure.parquet")
    data = load_report_data(run)
    assert data.shadows == SHADOWS and data.exposures is not None
    assert_texts(texts(render(data)[render(data).index("<svg") :].partition("</svg>")[0] + "</svg>"),
                 ["private (40)", "holdout (20)"])  # fmt: skip
    own = exposures(2).assign(group=["ann", "bob"])
    own.to_parquet(run / "exposure_groups.parquet")
    groups = load_report_data(run).exposure_groups
    assert groups is not None and groups["group"].tolist() == ["ann", "bob"]
    exposure_table(table).drop(columns="role").to_parquet(run / "exposure.parquet")
    with pytest.raises(RunError, match="expected the column role"):
        load_report_data(run)


def test_hides_the_path_in_a_recipe_of_a_run_with_hashed_names(tmp_path: Path) -> None:
    recipe = "timm:resnet18?weights=/secret/w.safetensors"
    settings = {"hash_ids": True, "recipe": recipe}
    shadows = {**SHADOWS, "recipe": recipe}
    found = {**metrics(), **exposure_metrics(images=30)}
    table = pd.concat([samples(), exposed_samples(30)[list(COLUMNS)]], axis=1)
    run = write_run(tmp_path / "run", table, found, settings=settings, shadows=shadows)
    page = render(load_report_data(run))
    assert "secret" not in page and "timm:resnet18?weights=(hidden)" in page
