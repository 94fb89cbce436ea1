"""The pages in a browser: they sort and filter, load nothing, and run nothing that a file name holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from inversight.report import render, render_defences
from inversight.report.formatting import NONE
from tests.report import defence_examples
from tests.report.examples import HOSTILE, hostile_data
from tests.report.exposure_examples import exposed_data, hostile_exposed_data

pytestmark = pytest.mark.browser

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip


def heading(page, key: str, table: str = "ledger"):
    return page.locator(f'#{table}-table th[data-key="{key}"]')


def click(page, key: str, table: str = "ledger") -> None:
    heading(page, key, table).locator("button").click()


def show_all_columns(page) -> None:
    page.get_by_label("columns").first.check()


def column(page, key: str, table: str = "ledger") -> list[str]:
    """Return the texts of the shown cells below a heading, from top to bottom."""
    i = heading(page, key, table).evaluate("head => head.cellIndex + 1")
    return page.locator(f"#{table}-table tbody tr:visible td:nth-child({i})").all_inner_texts()


def assert_sorted(page, key: str, direction: str) -> None:
    """Check the values of a column of numbers, missing ones last, and its heading alone."""
    assert heading(page, key).get_attribute("aria-sort") == direction, key
    assert page.locator("#ledger-table th[aria-sort]").count() == 1
    values = hostile_data().samples.set_index("id")[key].astype(float)
    expected = values.sort_values(ascending=direction == "ascending")
    shown = [values[name] for name in column(page, "id")]
    assert shown == pytest.approx(expected.tolist(), nan_ok=True), key


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if _CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=_CHROMIUM, args=list(_QUIET))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def addresses(once) -> dict[str, str]:
    """All pages as files, by name."""

    def fill(folder: Path) -> None:
        pages = {
            "report": render(hostile_data()),
            "exposure": render(hostile_exposed_data()),
            "many": render(exposed_data(2000)),
            "defences": render_defences(defence_examples.found(), defence_examples.table()),
        }
        for name, page in pages.items():
            (folder / f"{name}.html").write_text(page, encoding="utf-8")

    return {page.stem: page.as_uri() for page in once("pages", fill).glob("*.html")}


@pytest.fixture
def page(request, browser, addresses) -> Iterator:
    """An open page, which must not write to the console, open a dialog or request anything."""
    address = addresses[getattr(request, "param", "report")]
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    noise: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: noise.append(message.text))
    opened.on("pageerror", lambda error: noise.append(str(error)))
    opened.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(address)
    yield opened
    opened.close()
    assert noise == [], "the page wrote to the console, failed, or opened a dialog"
    assert [url for url in requests if not url.startswith("data:") and url != address] == []


def test_clicks_sort_number_columns_in_both_directions_starting_with_the_worst(page):
    assert heading(page, "nearest_distance").get_attribute("aria-sort") == "ascending"
    assert not heading(page, "ddcs_best").is_visible()
    show_all_columns(page)
    for key in ("ddcs_best", "ddcs_average", "reconstructions", "nearest_distance", "exact_hit"):
        directions = ["descending", "ascending"]
        for direction in reversed(directions) if key == "nearest_distance" else directions:
            click(page, key)
            assert_sorted(page, key, direction)


def test_text_columns_sort_numbers_in_names_by_value(page):
    show_all_columns(page)
    click(page, "id")
    names = [name for name in column(page, "id") if name not in HOSTILE]
    parts = [tuple(map(int, name[1:].removesuffix(".png").split("/"))) for name in names]
    assert parts == sorted(parts)
    click(page, "nearest_reconstruction")
    assert column(page, "nearest_reconstruction")[-1] == NONE


def test_keyboard_sorts_columns(page):
    show_all_columns(page)
    heading(page, "ddcs_best").locator("button").focus()
    page.keyboard.press("Enter")
    assert_sorted(page, "ddcs_best", "descending")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert_sorted(page, "ddcs_average", "descending")


def test_filter_keeps_matching_rows_and_counts_them(page):
    show_all_columns(page)
    box = page.get_by_label("Filter")
    box.fill("P2/")
    kept = column(page, "id")
    assert kept and all(name.startswith("p2/") for name in kept)
    assert page.locator(".filter output").text_content() == f"{len(kept)} of 30 shown"
    click(page, "ddcs_best")
    assert sorted(column(page, "id")) == sorted(kept)
    for text, rows in (("0.1", 0), ("", 30)):  # numbers are not names
        box.fill(text)
        assert len(column(page, "id")) == rows


def test_hostile_names_are_shown_as_text_and_do_nothing(page):
    assert set(HOSTILE) <= set(column(page, "id"))
    page.locator("#ledger-table td", has_text="onmouseover").first.hover()
    assert page.locator("#ledger-table img").count() == 0
    assert page.locator("script").count() == 1
    assert page.title() == HOSTILE[0]


def test_content_security_policy_blocks_other_addresses(browser, addresses):
    page = browser.new_page()
    page.goto(addresses["report"])
    with page.expect_console_message() as message:
        page.evaluate("() => { new Image().src = 'https://example.invalid/x.png'; }")
    assert "Content Security Policy" in message.value.text and "img-src" in message.value.text
    page.close()


@pytest.mark.parametrize("name", ["exposure", "defences"])
def test_page_has_no_serious_fault_of_access(browser, addresses, name):
    page = browser.new_page(bypass_csp=True, viewport={"width": 1280, "height": 900})
    page.goto(addresses[name])
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    # A few rows of each table are enough.
    page.evaluate("document.querySelectorAll('tr:nth-child(n+5)').forEach((row) => row.remove())")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page).response
        assert found["passes"]
        faults = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert not faults, [(f["id"], [n["html"] for n in f["nodes"][:3]]) for f in faults]
    page.close()


def test_keyboard_skips_to_the_content_and_focus_is_visible(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert page.evaluate("document.activeElement.tagName") == "A" and style == "solid"


@pytest.mark.parametrize("page", ["exposure"], indirect=True)
def test_printing_opens_what_is_folded_and_cuts_nothing(page):
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 without its margins, in CSS pixels
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible() and not page.locator(".filter").first.is_visible()
    for region in page.locator(".scroll").all():
        assert region.evaluate("r => r.scrollWidth <= r.clientWidth + 1"), region.inner_text()[:80]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


@pytest.mark.parametrize("name", ["report", "exposure", "many", "defences"])
def test_page_is_never_wider_than_the_window(browser, addresses, name):
    page = browser.new_page()
    page.goto(addresses[name])
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            heights = page.evaluate(
                "Array.from(document.querySelectorAll('.tall'), (region) => region.scrollHeight)"
            )
            assert max(heights) > 400
    page.close()


@pytest.mark.parametrize("page", ["exposure"], indirect=True)
def test_ledger_sorts_exposures_by_value_and_not_by_text(page):
    assert heading(page, "exposure_shrunken").get_attribute("aria-sort") == "descending"
    click(page, "exposure")
    assert heading(page, "exposure").get_attribute("aria-sort") == "descending"
    values = hostile_exposed_data().samples.set_index("id")["exposure"]
    shown = [values[name] for name in column(page, "id")]
    assert shown == sorted(shown, reverse=True)
    assert column(page, "exposed").count("yes") == 3
    assert set(HOSTILE) <= set(column(page, "group", "groups"))


@pytest.mark.parametrize("page", ["exposure"], indirect=True)
def test_figure_of_exposure_is_drawn_over_the_whole_width(page):
    figure = page.locator("#exposure svg").bounding_box()
    section = page.locator("#exposure").bounding_box()
    assert figure["width"] > 0.95 * section["width"] and figure["height"] > 300
    assert page.locator("#exposure .triple").first.locator("img").count() == 3


@pytest.mark.parametrize("page", ["defences"], indirect=True)
def test_tables_of_defences_sort_and_filter_independently(page):
    before = column(page, "id", "nearer")
    click(page, "ratio", "protected")
    ratios = [float(text) for text in column(page, "ratio", "protected")]
    assert len(ratios) == 40 and ratios == sorted(ratios, reverse=True)
    page.get_by_label("Filter").nth(0).fill("bido")
    assert column(page, "defence", "protected") == ["bido"] * 8
    assert column(page, "id", "nearer") == before
