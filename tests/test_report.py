"""The report writer: its files, what the page may hold, escaping, links, and that a report is whole or not there."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from runne_coner.report import Figure, Html, Link, ReportError, Section, Table, write_report

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c4890000000d49444154789c6360606060000000050001a5f645400000"
    "000049454e44ae426082".replace(" ", "")
)
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
HOSTILE = '<script>alert("x")</script> | *a* `b` & [c](d)'


def table(**changes):
    content = {"title": "Scores", "columns": ["type", "F1"], "rows": [["A", 0.123456], ["B", None]], "note": "A note."}
    return Table(**(content | changes))


def sections():
    return [
        Section("Tables", [table(rows=[["A", Link(0.5, "here")], ["B", float("nan")]]), "A paragraph."], "tables"),
        Section("Рисунок", [Figure("Распределение", PNG, SVG, HOSTILE), Html('<p id="here">x</p>', "x", ".x{}")], "figure"),
    ]


class Elements(HTMLParser):
    """The elements of a page: name and attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_files_of_a_report(tmp_path):
    page = write_report(tmp_path / "report", "A report", sections(), {"array": np.array([1.0, np.nan]), "n": np.int64(3)})
    assert page == tmp_path / "report" / "report.html"
    names = sorted(path.relative_to(tmp_path / "report").as_posix() for path in (tmp_path / "report").rglob("*.*"))
    assert names == ["figures/1-figure.png", "figures/1-figure.svg", "report.html", "report.json", "report.md"]
    assert (tmp_path / "report/figures/1-figure.png").read_bytes() == PNG
    data = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert data["tables"]["Scores"] == {"columns": ["type", "F1"], "rows": [["A", 0.5], ["B", None]]}
    assert data["array"] == [1.0, None] and data["n"] == 3 and data["title"] == "A report"
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "| A | [0.5000](#here) |" in text and "| B | – |" in text and "(figures/1-figure.png)" in text


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page = write_report(tmp_path / "r", HOSTILE, sections(), {}).read_text(encoding="utf-8")
    elements = Elements(page)
    assert not elements.named("script") and not elements.named("link") and not elements.named("iframe")
    assert [image["src"][:22] for image in elements.named("img")] == ["data:image/png;base64,"]
    assert elements.named("img")[0]["alt"] == HOSTILE
    assert all(anchor["href"].startswith("#") for anchor in elements.named("a"))
    assert not re.search(r"url\(|@import|https?://", page)
    assert {mark.get("scope") for mark in elements.named("th")} == {"row", "col"}
    assert len(elements.named("caption")) == 1


def test_hostile_text_stays_text(tmp_path):
    part = table(title=HOSTILE, rows=[[HOSTILE, HOSTILE]], note=HOSTILE)
    page = write_report(tmp_path / "r", "t", [Section(HOSTILE, [part, HOSTILE], "s")], {})
    assert not Elements(page.read_text(encoding="utf-8")).named("script")
    rows = [line for line in page.with_name("report.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {3}


def test_a_report_is_replaced_whole_and_nothing_else_is(tmp_path):
    folder = tmp_path / "r"
    write_report(folder, "first", sections(), {})
    write_report(folder, "second", sections()[:1] + [Section("x", [Html('<i id="here"></i>', "")], "x")], {})
    assert not (folder / "figures").exists() and "second" in (folder / "report.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ReportError, match="notes.txt"):
        write_report(folder, "third", [], {})
    assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"
    with pytest.raises(ReportError, match="is a file"):
        write_report(folder / "notes.txt", "t", [], {})


def test_a_failure_leaves_the_earlier_report(tmp_path):
    write_report(tmp_path / "r", "first", [], {})
    with pytest.raises(ReportError, match="cannot be written as JSON"):
        write_report(tmp_path / "r", "second", sections(), {"object": object()})
    assert "first" in (tmp_path / "r" / "report.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize(
    "content, message",
    [
        ([Section("a", [], "s"), Section("b", [], "s")], "'s' is given twice"),
        ([Section("a", [table(rows=[[Link("A", "no"), 1]])], "s")], "'no', which nothing has"),
        ([Section("a", [table(), table()], "s")], "two tables have the key 'Scores'"),
        ([Section("a", [table(rows=[["A"]])], "s")], "does not have 2 values"),
    ],
)
def test_mistakes_in_a_report_are_named(tmp_path, content, message):
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path / "r", "t", content, {})
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "value, text",
    [(3, "3"), (0.5, "0.5000"), (2e-6, "2.0e-06"), (0.0, "0.0000"), (True, "yes"), (None, "–"), ("a", "a"), (np.int64(2), "2")],
)
def test_values_in_tables(tmp_path, value, text):
    page = write_report(tmp_path / "r", "t", [Section("s", [table(rows=[["A", value]])], "s")], {})
    assert f">{text}</td>" in page.read_text(encoding="utf-8")
