"""The page in a browser: it sorts, filters, keeps quiet and obeys no file name."""

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


class Watched:
    """An open page, and what it did that it should not."""

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
        """Texts of the shown cells below the heading ``key``, from top to bottom."""
        return self.page.evaluate(
            """key => {
              const table = document.getElementById("ledger-table");
              const heads = Array.from(table.tHead.rows[0].cells);
              const i = heads.findIndex((head) => head.dataset.key === key);
              const shown = Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
              return shown.map((row) => row.cells[i].textContent);
            }""",
            key,
        )

    def heading(self, key: str):
        return self.page.locator(f'#ledger-table th[data-key="{key}"]')


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
    pages = {
        "report": render(hostile_data()),
        "defences": render_defences(defence_examples.found(), defence_examples.table()),
    }
    files = {name: tmp_path_factory.mktemp(name) / "page.html" for name in pages}
    for name, page in pages.items():
        files[name].write_text(page, encoding="utf-8")
    return {name: file.as_uri() for name, file in files.items()}


@pytest.fixture
def watched(request, browser, addresses) -> Iterator[Watched]:
    address = addresses[getattr(request, "param", "report")]
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    found = Watched(page, address)
    yield found
    page.close()
    assert found.noise == [], "the page wrote to the console, failed, or opened a dialog"
    assert [url for url in found.requests if not url.startswith("data:") and url != address] == []


NUMERIC = ("ddcs_best", "ddcs_average", "reconstructions", "nearest_distance", "exact_hit")
WORSE_HIGHER = ("ddcs_best", "ddcs_average", "reconstructions", "exact_hit")


def expected(key: str, *, descending: bool) -> list[float]:
    """Values of the column, sorted, the missing ones last."""
    found = hostile_data().samples[key].astype(float)
    return found.sort_values(ascending=not descending, na_position="last").tolist()


def shown_values(watched: Watched, key: str) -> list[float]:
    """The column in the page's order, each row's value looked up by its unique name."""
    table = hostile_data().samples.set_index("id")
    return [float(table.loc[name, key]) for name in watched.column("id")]


def test_clicks_sort_each_number_column_both_ways_the_nearest_first(watched):
    assert watched.heading("nearest_distance").get_attribute("aria-sort") == "ascending"
    for key in NUMERIC:
        directions = ["ascending", "descending"]
        for direction in reversed(directions) if key in WORSE_HIGHER else directions:
            watched.heading(key).locator("button").click()
            assert watched.heading(key).get_attribute("aria-sort") == direction, key
            assert watched.page.locator("#ledger-table th[aria-sort]").count() == 1
            assert shown_values(watched, key) == pytest.approx(
                expected(key, descending=direction == "descending"), nan_ok=True
            ), key


def test_text_columns_sort_with_numbers_in_names_as_numbers(watched):
    watched.heading("id").locator("button").click()
    names = [name for name in watched.column("id") if name not in HOSTILE]
    parts = [tuple(map(int, name[1:].removesuffix(".png").split("/"))) for name in names]
    assert parts == sorted(parts)
    watched.heading("nearest_reconstruction").locator("button").click()
    assert watched.column("nearest_reconstruction")[-1] == NONE


def test_the_keyboard_sorts_too(watched):
    watched.heading("ddcs_best").locator("button").focus()
    watched.page.keyboard.press("Enter")
    assert watched.heading("ddcs_best").get_attribute("aria-sort") == "descending"
    watched.page.keyboard.press("Tab")
    watched.page.keyboard.press("Space")
    assert watched.heading("ddcs_best").get_attribute("aria-sort") is None
    assert watched.heading("ddcs_average").get_attribute("aria-sort") == "descending"
    assert shown_values(watched, "ddcs_average") == expected("ddcs_average", descending=True)


def test_the_filter_keeps_matching_rows_and_counts_them(watched):
    box = watched.page.get_by_label("Filter")
    box.fill("P2/")
    kept = watched.column("id")
    assert kept and all(name.startswith("p2/") for name in kept)
    assert watched.page.locator(".filter output").text_content() == f"{len(kept)} of 30 shown"
    watched.heading("ddcs_best").locator("button").click()
    assert sorted(watched.column("id")) == sorted(kept)
    box.fill("0.1")  # numbers are not names
    assert watched.column("id") == []
    box.fill("")
    assert len(watched.column("id")) == 30


def test_hostile_names_are_seen_as_they_are_and_do_nothing(watched):
    names = watched.column("id")
    assert set(HOSTILE) <= set(names)
    watched.page.locator("#ledger-table td", has_text="onmouseover").first.hover()
    assert watched.page.locator("#ledger-table img").count() == 0
    assert watched.page.locator("script").count() == 1
    assert watched.page.title() == HOSTILE[0]


def test_the_policy_stops_what_would_load_from_elsewhere(watched):
    blocked = watched.page.evaluate(
        """() => new Promise((done) => {
          document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
          const image = new Image();
          image.src = "https://example.invalid/x.png";
          document.body.append(image);
        })"""
    )
    assert blocked == "img-src"
    watched.noise.clear()  # the browser's own words about the violation
    watched.requests[:] = [url for url in watched.requests if "example.invalid" not in url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "defences"])
def test_nothing_is_wider_than_the_window(browser, addresses, name, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.goto(addresses[name])
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('.tall').scrollHeight > 400")
    page.close()


@pytest.mark.parametrize("watched", ["defences"], indirect=True)
def test_the_tables_of_defences_sort_and_filter_each_by_itself(watched):
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
