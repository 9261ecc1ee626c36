"""Pages of reports as Chromium shows them: `make test-browser`, which has the driver in a folder.

The default suite does not collect this file, for its name; it needs a browser. Pictures of the
page, light, dark, of a phone's width and printed, are left in build/browser, to be looked at.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compression.page.reports import frontier_of, report_of

PICTURES = Path(__file__).resolve().parents[2] / "build" / "browser"

FIRST_PAINT = 1000
"""Milliseconds."""

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail("playwright is missing, the driver of the browser: run `make test-browser`")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.fail("no Chromium is here: apt-get install chromium, or CHROMIUM=/path/to/it")
    rights = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox
    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=program, args=rights)
        yield made
        made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Number of modules -> address of the page of a report with a frontier."""
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for modules in (240, 2000):
        report = report_of(modules)
        path = folder / f"report{modules}.html"
        report.to_html(
            path, frontier=frontier_of(report), saved="small", title="A model of thirty blocks"
        )
        found[modules] = path.as_uri()
    return found


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, pages: dict[int, str]) -> Iterator[Opened]:
    """A page in a window of its own; nothing may have gone wrong in it, or been asked for."""
    wrong: list[str] = []
    contexts = []

    def of(modules: int = 240, *, width: int = 1200, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 850}, **options)
        contexts.append(context)
        window = context.new_page()
        window.on("console", lambda message: wrong.append(message.text))
        window.on("pageerror", lambda error: wrong.append(str(error)))
        window.on("request", lambda asked: asked.url in pages.values() or wrong.append(asked.url))
        window.goto(pages[modules])
        return window

    yield of
    for context in contexts:
        context.close()
    assert wrong == []


def names(window: Any, table: str = "layers-table") -> list[str]:
    """Of the rows that are shown, from above."""
    return window.locator(f"#{table} tbody tr:not([hidden]) th").all_inner_texts()  # type: ignore[no-any-return]  # the driver has no types here


def test_a_column_sorts_by_numbers_and_back(opened: Opened) -> None:
    window = opened()
    given = names(window)
    report = report_of(240)
    rows = [row for row in report.layers if row.factored]
    head = window.locator("#layers-table thead th", has_text="Output error")
    for turn, sign in (("descending", -1), ("ascending", 1)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == turn
        wanted = sorted(rows, key=lambda row: sign * round(row.output_error or 0.0, 12))
        errors = {row.name: f"{row.output_error:.3g}" for row in rows}
        assert [errors[name] for name in names(window)] == [errors[row.name] for row in wanted]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert names(window) == given


def test_words_sort_with_the_numbers_in_them(opened: Opened) -> None:
    window = opened()
    head = window.locator("#layers-table thead th", has_text="Layer")
    head.get_by_role("button").focus()
    window.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    found = [int(name.split(".")[2]) for name in names(window)]
    assert found == sorted(found)
    assert len(set(found)) == 30


def test_a_search_shows_what_has_all_of_its_words(opened: Opened) -> None:
    window = opened()
    field = window.get_by_label("Search layers").first
    assert field.get_attribute("aria-controls") == "layers-table"
    field.fill("layers.1 down")
    wanted = {f"model.layers.{k}.down_proj" for k in (1, *range(10, 20))}
    assert set(names(window)) == wanted
    assert window.locator("output[for=layers-table-search]").inner_text() == "11 of 210"
    field.press("Escape")
    assert len(names(window)) == 210
    field.fill("nothing has this")
    assert names(window) == []
    assert len(names(window, "stayed-table")) == 30


def test_without_a_script_the_tables_are_whole(opened: Opened) -> None:
    window = opened(java_script_enabled=False)
    assert len(names(window)) == 210
    assert len(names(window, "stayed-table")) == 30
    assert window.locator("input, button").count() == 0
    assert window.locator("svg").count() == 5


def test_keys_reach_all_that_does_something_and_it_is_seen(opened: Opened) -> None:
    window = opened()
    reached = set()
    for _ in range(60):
        window.keyboard.press("Tab")
        reached.add(window.evaluate("document.activeElement.tagName"))
        if "BODY" in reached:  # past the last one
            break
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert window.evaluate(style) != "none"
    assert {"A", "DIV", "BUTTON", "INPUT"} <= reached


@pytest.mark.parametrize("width", [320, 375, 1200])
def test_no_page_is_wider_than_its_window(opened: Opened, width: int) -> None:
    window = opened(width=width)
    assert window.evaluate("document.documentElement.scrollWidth") <= width


def test_two_thousand_modules_are_painted_within_a_second(opened: Opened) -> None:
    best = float("inf")
    for _ in range(3):  # what another process takes of the machine is not the page's
        window = opened(2000)
        for _ in range(50):
            painted = window.evaluate(PAINTED)
            if painted is not None:
                break
            time.sleep(0.05)
        best = min(best, painted)
    print(f"first paint of 2,000 modules: {best:.0f} ms")
    assert best < FIRST_PAINT
    field = window.get_by_label("Search layers").first
    field.fill("layers.249")
    assert len(names(window)) == 7


def test_pictures_to_look_at(opened: Opened) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    grounds = set()
    for name, width, scheme in (
        ("light", 1200, "light"),
        ("dark", 1200, "dark"),
        ("phone", 375, "light"),
        ("phone-dark", 375, "dark"),
    ):
        window = opened(width=width, color_scheme=scheme)
        grounds.add(window.evaluate("getComputedStyle(document.body).backgroundColor"))
        window.screenshot(path=PICTURES / f"{name}.png", full_page=True)
    assert len(grounds) == 2
    # A dark screen prints on white.
    window.emulate_media(media="print")
    assert (
        window.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert not window.locator("nav, .tools").first.is_visible()
    assert window.locator("#layers-table tbody tr").last.is_visible()
    # Else Chromium does not repeat the heads of tables.
    shown = window.locator("#layers-table th button").first.evaluate(
        "button => getComputedStyle(button).display"
    )
    assert shown == "contents"
    window.pdf(path=PICTURES / "print.pdf", format="A4")
    assert sorted(path.name for path in PICTURES.iterdir()) == [
        "dark.png", "light.png", "phone-dark.png", "phone.png", "print.pdf",
    ]  # fmt: skip
