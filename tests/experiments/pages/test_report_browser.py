"""The page as a real browser shows it."""

import os
import shutil

import numpy as np
import pytest

from experiments.pages import report
from experiments.pages.report import Column, Page, Table
from experiments.pages.series import Figure, Series

pytestmark = pytest.mark.slow

EVIL = "</script><img src=x onerror=alert(1)>\u2028"
TAGGED = "<b>a</b> & <i>"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = "there is no browser: apt-get install chromium"
        if os.environ.get("JAXCLIP_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    steps = np.arange(6000)
    norm = np.exp(np.random.default_rng(0).normal(size=6000))
    limits = np.logspace(-3, 2, 11)
    score = np.linspace(1, 9, 11)
    drawn = [
        Figure(
            "sensitivity", EVIL, "limit", "score",
            [Series(EVIL, limits, score, score - 1, score + 1)], log_x=True,
        ),
        Figure(
            "norm", "norm", "step", "norm",
            [
                Series(TAGGED, steps, norm, mode="lines"),
                Series("clipped", steps[norm > 2], norm[norm > 2], mode="markers"),
            ],
            log_y=True,
        ),
    ]  # fmt: skip
    rows = [["b", 10.0], [EVIL, 9.0], ["a", None], ["c", float("inf")], ["d", -1.5]]
    columns = [Column("a method of a long name", "{}"), Column("score", "{:.2f}")]
    columns += [Column(f"another long column {i}") for i in range(5)]
    table = Table("table", EVIL, columns, [[*row, *["x"] * 5] for row in rows])
    page = Page("page", EVIL, EVIL, [table], drawn, {"command": f"python {EVIL * 20}"})
    return report.write(page, tmp_path_factory.mktemp("page")).as_uri()


@pytest.fixture
def visit(browser, address):
    """Opens the page, and holds at the end that it had no errors and asked for nothing else."""
    pages, faults, requests = [], [], []

    def opened(width=1280, scheme="light"):
        page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        pages.append(page)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_function("document.querySelectorAll('.plot .main-svg .trace').length >= 3")
        return page

    yield opened
    for page in pages:
        page.close()
    assert faults == []
    outside = [url for url in requests if not url.startswith(("data:", "blob:"))]
    assert outside == [address] * len(pages)


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_and_follows_the_scheme(visit, width, scheme):
    page = visit(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    plots = page.locator(".plot").all()
    boxes = [plot.bounding_box() for plot in plots]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(color) == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


def test_figures_change_with_the_scheme(visit):
    page = visit()
    ink = "document.querySelector('.plot .xtick text').style.fill"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ink} !== {light!r}")
    assert page.evaluate(ink) == "rgb(228, 232, 236)"


def test_names_are_text(visit):
    page = visit()
    assert page.locator("h1").text_content() == EVIL
    assert page.locator("img").count() == 0
    assert page.locator(".legendtext").all_text_contents()[:2] == [EVIL, TAGGED]


def first_cells(page):
    return [row.locator("td").first.text_content() for row in page.locator("tbody tr").all()]


def test_sorts_by_click_and_by_keyboard(visit):
    page = visit()
    header = page.locator("th").nth(1)
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert first_cells(page) == ["d", EVIL, "b", "c", "a"]
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert first_cells(page) == ["c", "b", EVIL, "d", "a"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") is None
    assert page.locator("th").first.get_attribute("aria-sort") == "ascending"
    assert first_cells(page)[1:] == ["a", "b", "c", "d"]


def test_hover_tells_a_value(visit):
    page = visit()
    point = page.locator(".plot").first.locator(".points path").nth(5).bounding_box()
    page.mouse.move(point["x"] - 40, point["y"] - 40)
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2, steps=4)
    hover = page.locator(".plot").first.locator(".hovertext")
    hover.wait_for()
    assert "5" in hover.text_content()


def test_zoom_changes_the_range(visit):
    page = visit()
    read = "document.getElementById('plot-norm').layout.xaxis.range"
    before = page.evaluate(read)
    page.locator("#plot-norm").scroll_into_view_if_needed()
    box = page.locator("#plot-norm .nsewdrag").bounding_box()
    across, down = box["x"] + box["width"] / 4, box["y"] + box["height"] / 2
    page.mouse.move(across, down)
    page.mouse.down()
    page.mouse.move(across + box["width"] / 4, down + 5, steps=5)
    page.mouse.up()
    page.wait_for_function(f"{read}[1] < {before[1]} - 100")
    after = page.evaluate(read)
    assert before[0] + 100 < after[0] < after[1] < before[1] - 100
