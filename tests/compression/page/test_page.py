"""Pages of reports: one file, whole, that names nothing outside and escapes all that it tells."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from tensorlrf.compression import Frontier, Report, Sensitivity
from tensorlrf.compression.page.charts import Axis, Point, Series, chart
from tensorlrf.compression.page.document import Paged
from tensorlrf.compression.page.heat_map import place
from tensorlrf.errors import ArgumentError, FileError
from tests.compression.page.reports import (
    factored,
    frontier_of,
    refinement_of,
    report_of,
    sensitivity_of,
    staying,
)

VOID = {"meta", "wbr"}
HOSTILE = "<script>alert('x')</script>.\"&\u202e\x1b\ud800.</style><img src=//a>"


class Read(HTMLParser):
    """What a page is made of: elements that are closed in their order, attributes, texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.table = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        assert len(about) == len(attrs)
        self.starts.append((tag, about))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = str(about["id"])
            self.rows[self.table] = []
        if tag == "tr":
            self.rows[self.table].append([])
        if tag in ("td", "th"):
            self.rows[self.table][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[self.table][-1][-1] += data

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [about for tag, about in self.starts if tag in tags]


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of(80)


def page(value: Paged | Report, folder: Path, **arguments: object) -> str:
    path = folder / "page.html"
    value.to_html(path, **arguments)  # type: ignore[arg-type]  # of several kinds, each tested
    assert [entry.name for entry in folder.iterdir()] == ["page.html"]
    return path.read_text(encoding="utf-8")


def values(report: Report) -> list[Paged | Report]:
    return [report, frontier_of(report), sensitivity_of(report), refinement_of(9)]


def test_pages_are_well_formed_and_can_be_found_one_s_way_in(
    report: Report, tmp_path: Path
) -> None:
    for k, value in enumerate(values(report)):
        (tmp_path / str(k)).mkdir()
        read = Read(page(value, tmp_path / str(k), title="net, smaller", date="1 March 2026"))
        ids = Counter(about["id"] for _, about in read.starts if "id" in about)
        assert set(ids.values()) == {1}
        for _, about in read.starts:
            named = (about.get("aria-labelledby") or "").split()
            linked = [about["href"].removeprefix("#")] if about.get("href") else []
            assert {*named, *linked} <= set(ids)
        headings = [tag for tag, _ in read.starts if re.fullmatch("h[1-6]", tag)]
        assert headings[0] == "h1"
        assert headings.count("h1") == 1
        assert set(headings[1:]) == {"h2"}
        assert read.of("html") == [{"lang": "en"}]
        assert len(read.of("main")) == len(read.of("nav")) == 1
        assert len(read.of("caption")) == len(read.of("table")) >= 1
        for about in read.of("th"):
            assert about["scope"] in ("row", "col")
        for about in read.of("svg"):
            assert about["role"] == "img"
        told = " ".join(text for _, text in read.texts)
        assert "net, smaller" in told
        assert "1 March 2026" in told


def test_nothing_outside_is_named(report: Report, tmp_path: Path) -> None:
    html = page(report, tmp_path, frontier=frontier_of(report), saved="/home/me/small/")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|<link|<img|<iframe", html)
    policy = [about["content"] or "" for about in Read(html).of("meta") if "http-equiv" in about]
    assert [text.startswith("default-src 'none';") for text in policy] == [True]
    assert "/home/me" not in html
    assert all((about["href"] or "").startswith("#") for about in Read(html).of("a"))


def test_every_layer_is_in_a_table_with_what_became_of_it(report: Report, tmp_path: Path) -> None:
    read = Read(page(report, tmp_path))
    rows = {row[0]: row for row in read.rows["layers-table"][1:]}
    stayed = {row[0]: row for row in read.rows["stayed-table"][1:]}
    assert set(rows) | set(stayed) == {row.name for row in report.layers}
    for row in report.layers:
        if row.factored:
            assert f"{row.params_after:,}" in rows[row.name]
            assert f"{row.share:.1%}" in rows[row.name]
            assert f"{row.output_error:.3g}" in rows[row.name]
        else:
            assert stayed[row.name] == [row.name, row.kind, f"{row.params_after:,}", row.reason]


def test_headline_figures_are_those_of_the_report(report: Report, tmp_path: Path) -> None:
    told = " ".join(text for _, text in Read(page(report, tmp_path)).texts)
    assert report.flops is not None
    for figure in (
        f"{report.model.share:.1%}", f"{report.flops[1] / report.flops[0]:.1%}", "1.47x", "0.0521",
        "0.0483 to 0.0562", "0.905", "a drop of 0.007, at most 0.011",
    ):  # fmt: skip
        assert figure in told
    assert "10 modules stayed as they were" in told


def test_a_frontier_and_a_sensitivity_are_drawn(report: Report, tmp_path: Path) -> None:
    plain = Read(page(report, tmp_path))
    known = sensitivity_of(report)
    drawn = Read(page(report, tmp_path, frontier=frontier_of(report), sensitivity=known))
    own = {about["id"] for about in drawn.of("section")} - {a["id"] for a in plain.of("section")}
    assert own == {"frontier", "sensitivity"}
    assert len(drawn.rows["frontier-table"]) == 1 + len(frontier_of(report).points)
    cells = [about for about in drawn.of("rect") if about.get("class") == "cell"]
    scales = 2 * 12
    assert len(cells) == scales + 2 * len(known.layers)
    for about in cells:
        assert 0 < float(about["fill-opacity"] or 0) <= 1


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    rows = (
        replace(factored(HOSTILE, 1), kind=HOSTILE, path=HOSTILE, format=HOSTILE, bias=HOSTILE),
        factored("a", 2),
        staying(HOSTILE + "2", HOSTILE),
    )
    report = replace(report_of(8), layers=rows)
    known = replace(sensitivity_of(report), rule=HOSTILE, unit=HOSTILE)
    front = replace(frontier_of(report), unit=HOSTILE)
    texts = {"title": HOSTILE, "date": HOSTILE, "saved": "small<b>"}
    html = page(report, tmp_path, frontier=front, sensitivity=known, **texts)
    read = Read(html)
    assert len(read.of("script")) == len(read.of("style")) == 1
    assert not read.of("img", "b")
    assert not re.search("[\x1b\u202e\ud800]", html)
    assert "<script>alert('x')</script>" in read.rows["layers-table"][1][0]
    assert "\\x1b" in html


def test_the_same_report_gives_the_same_bytes(report: Report, tmp_path: Path) -> None:
    again = Report.from_json(report.to_json())
    assert page(report, tmp_path) == page(again, tmp_path)


def test_a_model_of_two_thousand_modules_is_below_two_megabytes(tmp_path: Path) -> None:
    report = report_of(2000)
    html = page(report, tmp_path, frontier=frontier_of(report))
    assert len(html.encode()) < 2e6
    assert len(re.findall(r'<th scope="row">model', html)) == 2000 + 1750


def test_a_page_comes_whole_or_not_at_all(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = page(report, tmp_path)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(FileError, match="cannot be written"):
            report.to_html(tmp_path / "page.html")
    assert page(report, tmp_path, title=None) == before


def test_what_cannot_be_a_page_is_refused(report: Report, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    other = sensitivity_of(replace(report, layers=(factored("elsewhere", 0),)))
    for path, arguments, error, message in (
        ("report.pdf", {}, ArgumentError, "a page is written as .html"),
        ("report", {}, ArgumentError, "a page is written as .html"),
        ("none/report.html", {}, FileError, "is missing"),
        ("folder.html", {}, FileError, "is a folder"),
        ("a.html", {"title": 3}, ArgumentError, "title=3 must be a text"),
        ("a.html", {"date": 2026}, ArgumentError, "date=2026 must be a text"),
        ("a.html", {"saved": 1}, ArgumentError, "saved=1 is no path"),
        ("a.html", {"sensitivity": other}, ArgumentError, "of another model.*'elsewhere'"),
        ("a.html", {"sensitivity": 1}, ArgumentError, "sensitivity is a int"),
        ("a.html", {"frontier": report}, ArgumentError, "frontier is a Report"),
    ):
        with pytest.raises(error, match=message):
            report.to_html(tmp_path / path, **arguments)  # type: ignore[arg-type]  # wrong ones
    with pytest.raises(ArgumentError, match=r"as \.html"):
        refinement_of(3).to_html(tmp_path / "curve.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.html"]


def test_models_with_little_to_tell_have_pages(tmp_path: Path) -> None:
    bare = replace(
        report_of(0), model_error=None, model_error_interval=None, quality=None, latency=None,
        refinement=None,
    )  # fmt: skip
    whole = replace(bare, layers=(replace(factored("", 0), output_error=None),))
    unread = replace(sensitivity_of(report_of(16)), layers=())
    assert isinstance(unread, Sensitivity)
    none = Frontier("nats", None, (), (), unread)
    for value in (bare, whole, unread, none, refinement_of(1)):
        Read(page(value, tmp_path))
    told = Read(page(whole, tmp_path))
    assert told.rows["layers-table"][1][0] == "(model)"
    assert "Output error" not in told.rows["layers-table"][0]  # of which nothing is known
    assert "were not compared" in page(bare, tmp_path)


def test_charts_stay_in_their_frame() -> None:
    for xs, ys in (
        ([1.0], [0.0]), ([1e9, 3e9], [-1.0, -1.0]), ([0.0, 0.0], [5.0, 7.0]),
        ([1e-7, 1.0], [1e-7, 1.0]),
    ):  # fmt: skip
        points = [Point(x, y, y - 0.1, "name") for x, y in zip(xs, ys, strict=True)]
        for log in (False, True):
            axis = Axis("loss", log=log and min(xs + ys) > 0)
            drawn = Read(chart("c", "caption", "told", axis, axis, [Series("line", points)]))
            marks = drawn.of("circle")
            assert len(marks) == len(xs)
            for about in marks:
                assert 0 <= float(about["cx"] or -1) <= 460
                assert 0 <= float(about["cy"] or -1) <= 300


def test_names_have_their_place_in_a_map() -> None:
    assert place("model.layers.3.mlp.up") == ("model.layers.3", "mlp.up")
    assert place("a.1.experts.7.w") == ("a.1.experts.7", "w")
    assert place("head") == ("head", "")
    assert place("0") == ("0", "")


def luminance(colour: str) -> float:
    """Relative, as the guidelines for contrast define it."""
    full = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
    parts = [int(full[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_has_contrast_in_light_dark_and_print() -> None:
    style = files("tensorlrf.compression.page").joinpath("page.css").read_text("utf-8")
    palettes = [
        dict(re.findall(r"--(\w+): (#\w+);", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(palettes) == 3
    for colours in palettes:
        for ground in ("paper", "wash"):
            for ink in ("ink", "soft", "accent"):
                low, high = sorted(luminance(colours[name]) for name in (ground, ink))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, ink)
