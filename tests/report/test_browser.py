"""The pages in a browser: they sort and filter, load nothing, and run nothing that a file name holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from inversight.report import render, render_defences
from inversight.report.formatting import NONE
from tests.report import defence_examples
from tests.report.examples import HOSTILE, hostile_data

pytestmark = pytest.mark.browser

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
_COLUMN = """key => {
  const table = document.getElementById("ledger-table");
  const heads = Array.from(table.tHead.rows[0].cells);
  const i = heads.findIndex((head) => head.dataset.key === key);
  const shown = Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
  return shown.map((row) => row.cells[i].textContent);
}"""
"""Returns the texts of the shown cells below the heading ``key``, from top to bottom."""
_BLOCKED = """() => new Promise((done) => {
  document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
  const image = new Image();
  image.src = "https://example.invalid/x.png";
  document.body.append(image);
})"""
"""Loads an image from elsewhere; returns the directive that forbids it."""


class Watched:
    """An open page, and what it wrote to the console or requested."""

    def __init__(self, page, address: str) -> None:
        self.page = page
        self.noise: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.noise.append(message.text))
        page.on("pageerror", lambda error: self.noise.append(str(error)))
        page.on("dialog", lambda dialog: (self.noise.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(address)

    def column(self, key: str) -> list[str]:
        return self.page.evaluate(_COLUMN, key)

    def heading(self, key: str):
        return self.page.locator(f'#ledger-table th[data-key="{key}"]')

    def sort(self, key: str) -> None:
        self.heading(key).locator("button").click()

    def assert_sorted(self, key: str, direction: str) -> None:
        """Check the values of a column of numbers, missing ones last, and its heading alone."""
        assert self.heading(key).get_attribute("aria-sort") == direction, key
        assert self.page.locator("#ledger-table th[aria-sort]").count() == 1
        values = hostile_data().samples.set_index("id")[key].astype(float)
        expected = values.sort_values(ascending=direction == "ascending")
        shown = [values[name] for name in self.column("id")]
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
def addresses(tmp_path_factory) -> dict[str, str]:
    """Both pages as files, by name."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {
        "report": render(hostile_data()),
        "defences": render_defences(defence_examples.found(), defence_examples.table()),
    }
    for name, page in pages.items():
        (folder / name).with_suffix(".html").write_text(page, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in pages}


@pytest.fixture
def watched(request, browser, addresses) -> Iterator[Watched]:
    address = addresses[getattr(request, "param", "report")]
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    found = Watched(page, address)
    yield found
    page.close()
    assert found.noise == [], "the page wrote to the console, failed, or opened a dialog"
    assert [url for url in found.requests if not url.startswith("data:") and url != address] == []


def test_clicks_sort_number_columns_in_both_directions_starting_with_the_worst(watched):
    assert watched.heading("nearest_distance").get_attribute("aria-sort") == "ascending"
    for key in ("ddcs_best", "ddcs_average", "reconstructions", "nearest_distance", "exact_hit"):
        directions = ["descending", "ascending"]
        for direction in reversed(directions) if key == "nearest_distance" else directions:
            watched.sort(key)
            watched.assert_sorted(key, direction)


def test_text_columns_sort_numbers_in_names_by_value(watched):
    watched.sort("id")
    names = [name for name in watched.column("id") if name not in HOSTILE]
    parts = [tuple(map(int, name[1:].removesuffix(".png").split("/"))) for name in names]
    assert parts == sorted(parts)
    watched.sort("nearest_reconstruction")
    assert watched.column("nearest_reconstruction")[-1] == NONE


def test_keyboard_sorts_columns(watched):
    watched.heading("ddcs_best").locator("button").focus()
    watched.page.keyboard.press("Enter")
    watched.assert_sorted("ddcs_best", "descending")
    watched.page.keyboard.press("Tab")
    watched.page.keyboard.press("Space")
    watched.assert_sorted("ddcs_average", "descending")


def test_filter_keeps_matching_rows_and_counts_them(watched):
    box = watched.page.get_by_label("Filter")
    box.fill("P2/")
    kept = watched.column("id")
    assert kept and all(name.startswith("p2/") for name in kept)
    assert watched.page.locator(".filter output").text_content() == f"{len(kept)} of 30 shown"
    watched.sort("ddcs_best")
    assert sorted(watched.column("id")) == sorted(kept)
    for text, rows in (("0.1", 0), ("", 30)):  # numbers are not names
        box.fill(text)
        assert len(watched.column("id")) == rows


def test_hostile_names_are_shown_as_text_and_do_nothing(watched):
    assert set(HOSTILE) <= set(watched.column("id"))
    watched.page.locator("#ledger-table td", has_text="onmouseover").first.hover()
    assert watched.page.locator("#ledger-table img").count() == 0
    assert watched.page.locator("script").count() == 1
    assert watched.page.title() == HOSTILE[0]


def test_content_security_policy_blocks_other_addresses(watched):
    assert watched.page.evaluate(_BLOCKED) == "img-src"
    watched.noise.clear()  # the browser's own message about the violation
    watched.requests[:] = [url for url in watched.requests if "example.invalid" not in url]


@pytest.mark.parametrize("name", ["report", "defences"])
def test_page_is_never_wider_than_the_window(browser, addresses, name):
    page = browser.new_page()
    page.goto(addresses[name])
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.querySelector('.tall').scrollHeight > 400")
    page.close()


@pytest.mark.parametrize("watched", ["defences"], indirect=True)
def test_tables_of_defences_sort_and_filter_independently(watched):
    def texts(table: str, column: int) -> list[str]:
        cells = f"#{table}-table tbody tr:visible td:nth-child({column})"
        return watched.page.locator(cells).all_inner_texts()

    before = texts("nearer", 3)
    watched.page.locator('#protected-table th[data-key="ratio"] button').click()
    ratios = [float(text) for text in texts("protected", 5)]
    assert len(ratios) == 40 and ratios == sorted(ratios, reverse=True)
    watched.page.get_by_label("Filter").nth(0).fill("bido")
    assert texts("protected", 2) == ["bido"] * 8
    assert texts("nearer", 3) == before
