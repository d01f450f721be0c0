"""Reports: sections of tables, figures and markup, written as Markdown, one HTML page, JSON, and PNG and SVG files.

The page needs no network, no script and no other file: its style is inline, its figures are embedded, and its content security
policy forbids anything else. Its colours follow the reader's light or dark setting; print is always dark on white.
"""

import base64
import html
import json
import math
import numbers
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import check_writable, replacing_folder

MARKDOWN, PAGE, DATA, FIGURES = "report.md", "report.html", "report.json", "figures"
"""The names in a report's folder; `FIGURES` is a folder of PNG and SVG files."""
WIDE = 15
"""Tables with so many columns of numbers have their names upright."""


class ReportError(ValueError):
    """A report cannot be written; the message names the folder, table, figure or anchor."""


@dataclass(frozen=True)
class Link:
    """A table's value that leads to an anchor of the same report."""

    value: "str | int | float"
    anchor: str


Cell = str | int | float | None | Link
"""A table's value; None (and not-a-number) is shown as a dash."""


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows.

    Attributes:
        title: the caption.
        columns: names of the columns.
        rows: a value for each column; numbers that are not whole are shown with four decimals and kept whole in the JSON.
        note: a remark below the table.
        key: its name in `report.json` under `tables`; None is the title.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    key: str | None = None


@dataclass(frozen=True)
class Figure:
    """A picture: the PNG stands in the page, both files lie in the folder. `alt` says in words what is to be seen."""

    title: str
    png: bytes
    svg: str
    alt: str


@dataclass(frozen=True)
class Html:
    """Markup, and the same in Markdown. `style` is CSS that the page takes up once, however many parts bring it."""

    html: str
    markdown: str
    style: str = ""


Part = Table | Figure | Html | str
"""A part of a section; a string is a paragraph of plain text."""


@dataclass(frozen=True)
class Section:
    """A heading with its parts; `anchor` is what links lead to."""

    title: str
    parts: Sequence[Part]
    anchor: str


def write_report(folder: str | os.PathLike, title: str, sections: Sequence[Section], data: Mapping[str, Any]) -> Path:
    """Write `report.md`, `report.html`, `report.json` and `figures/*.png` and `*.svg`, all of them or none.

    Args:
        folder: a new folder, an empty one, or an earlier report, which is replaced whole.
        title: of the report.
        sections: in order.
        data: further content of the JSON, beside `title` and `tables` (by key: `columns` and `rows`). Arrays become lists;
            not-a-number becomes null.
    Returns:
        The path of the page.
    Raises:
        ReportError: the folder holds something else or cannot be written, two tables have one key, a row does not fit its
            columns, an anchor is given twice, or a link leads nowhere.
    """
    target = Path(os.path.realpath(folder))
    check_report_folder(target)
    figures = [part for section in sections for part in section.parts if isinstance(part, Figure)]
    names = {id(figure): f"{number}-{_slug(figure.title)}" for number, figure in enumerate(figures, 1)}
    content = {"title": title, **data, "tables": _table_data(sections)}
    page = _page(title, sections)
    _check_links(page)
    try:
        with replacing_folder(target, filled=True) as part:
            (part / FIGURES).mkdir()
            for figure in figures:
                (part / FIGURES / f"{names[id(figure)]}.png").write_bytes(figure.png)
                (part / FIGURES / f"{names[id(figure)]}.svg").write_text(figure.svg, encoding="utf-8")
            (part / PAGE).write_text(page, encoding="utf-8", newline="\n")
            (part / MARKDOWN).write_text(_markdown(title, sections, names), encoding="utf-8", newline="\n")
            text = json.dumps(_plain(content), ensure_ascii=False, indent=1, allow_nan=False)
            (part / DATA).write_text(text + "\n", encoding="utf-8", newline="\n")
            if not figures:
                (part / FIGURES).rmdir()
    except OSError as error:
        raise ReportError(f"{folder}: the report cannot be written ({error.strerror or error})") from error
    return target / PAGE


def check_report_folder(folder: str | os.PathLike) -> None:
    """Find out before long work that a report may be written to a folder.

    Raises:
        ReportError: there is a file, the folder holds something that is not a report's, or nothing can be written beside it.
    """
    try:
        check_writable(folder)
    except OSError as error:
        raise ReportError(f"{folder}: the report cannot be written ({error.strerror or error})") from error
    path = Path(os.path.realpath(folder))
    if not path.exists():
        return
    if not path.is_dir():
        raise ReportError(f"{folder}: is a file; give a new folder, or that of an earlier report")
    own = {MARKDOWN, PAGE, DATA, FIGURES}
    other = sorted(item.name for item in path.iterdir() if item.name not in own)
    if (path / FIGURES).is_dir():
        other += sorted(f"{FIGURES}/{item.name}" for item in (path / FIGURES).iterdir() if item.suffix not in (".png", ".svg"))
    if other:
        raise ReportError(
            f"{folder}: holds {other[0]}, which is no part of a report, and a report is replaced whole; give a new folder"
        )


# -- JSON ---------------------------------------------------------------------------------------------------------------


def _tables(sections: Iterable[Section]) -> list[Table]:
    return [part for section in sections for part in section.parts if isinstance(part, Table)]


def _table_data(sections: Sequence[Section]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for table in _tables(sections):
        key = table.title if table.key is None else table.key
        if key in tables:
            raise ReportError(f"two tables have the key {key!r}; give each its own")
        for row in table.rows:
            if len(row) != len(table.columns):
                raise ReportError(f"table {key!r}: the row {list(row)} does not have {len(table.columns)} values")
        tables[key] = {
            "columns": list(table.columns),
            "rows": [[value.value if isinstance(value, Link) else value for value in row] for row in table.rows],
        }
    return tables


def _plain(value: Any) -> Any:
    """The value as JSON has it: mappings, lists, strings, finite numbers, null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and torch
        return _plain(value.tolist())
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    raise ReportError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")


# -- HTML ---------------------------------------------------------------------------------------------------------------

_STYLE = """
:root{color-scheme:light dark;--fg:#1a1a1a;--bg:#fff;--soft:#555;--line:#c8ccd0;--head:#eef1f4;--link:#0b5cad}
@media screen and (prefers-color-scheme:dark){:root{--fg:#e6e6e6;--bg:#16181b;--soft:#a8adb3;--line:#42474d;--head:#23272c;
--link:#7ab8ff}}
@media print{:root{color-scheme:light}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:72em;margin:1.5em auto;padding:0 1em}
h1{font-size:1.7em;line-height:1.2}h2{font-size:1.3em;margin:2.2em 0 .6em;border-bottom:1px solid var(--line)}
h3{font-size:1em;margin:1.6em 0 .4em}a{color:var(--link)}:target{scroll-margin-top:1em}
nav ul{columns:18em;padding-left:1.2em}
.table{overflow-x:auto;margin:1.2em 0 .3em}table{border-collapse:collapse;font-size:.9em;font-variant-numeric:tabular-nums}
caption{text-align:start;font-weight:600;padding:.2em 0 .4em;white-space:nowrap}
th,td{padding:.22em .6em;border-bottom:1px solid var(--line);text-align:start;vertical-align:top}
thead th{background:var(--head);vertical-align:bottom}tbody th{font-weight:500}
.n{text-align:end;white-space:nowrap}.zero{color:var(--soft);opacity:.6}
.wide thead th.n{writing-mode:vertical-rl;text-align:start;transform:rotate(180deg);padding:.6em .2em}
.wide td{padding-inline:.45em}.note{color:var(--soft);font-size:.9em;margin:.2em 0 1.4em}
figure{margin:1.4em 0}figure img{max-width:100%;height:auto;background:#fff}figcaption{font-weight:600}
@media print{body{font-size:10pt;max-width:none;margin:0}nav{display:none}.table{overflow:visible}table{font-size:8pt}
thead{display:table-header-group}tr,figure{break-inside:avoid}h2,h3,caption{break-after:avoid}a{color:inherit;
text-decoration:none}}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width">
<style>{style}</style>
</head><body><main>
<h1>{title}</h1>
<nav aria-label="Contents"><ul>
{contents}
</ul></nav>
{content}
</main></body></html>
"""


def _page(title: str, sections: Sequence[Section]) -> str:
    styles = dict.fromkeys(part.style for section in sections for part in section.parts if isinstance(part, Html))
    return _PAGE.format(
        title=html.escape(title),
        style=_STYLE + "\n".join(styles),
        contents="\n".join(f'<li><a href="#{section.anchor}">{html.escape(section.title)}</a></li>' for section in sections),
        content="\n".join(_html_section(section) for section in sections),
    )


def _html_section(section: Section) -> str:
    parts = "\n".join(_html_part(part) for part in section.parts)
    return (
        f'<section id="{section.anchor}" aria-labelledby="{section.anchor}-title">\n'
        f'<h2 id="{section.anchor}-title">{html.escape(section.title)}</h2>\n{parts}\n</section>'
    )


def _html_part(part: Part) -> str:
    if isinstance(part, Table):
        return _html_table(part)
    if isinstance(part, Figure):
        source = f"data:image/png;base64,{base64.b64encode(part.png).decode('ascii')}"
        caption = f"<figcaption>{html.escape(part.title)}</figcaption>"
        return f'<figure><img src="{source}" alt="{html.escape(part.alt)}">{caption}</figure>'
    return part.html if isinstance(part, Html) else f"<p>{html.escape(part)}</p>"


def _html_table(table: Table) -> str:
    numeric = _numeric_columns(table)
    classes = [' class="n"' if right else "" for right in numeric]
    head = "".join(f'<th scope="col"{mark}>{html.escape(name)}</th>' for name, mark in zip(table.columns, classes, strict=True))
    lines = []
    for first, *others in table.rows:
        cells = "".join(_html_data_cell(value, mark) for value, mark in zip(others, classes[1:], strict=True))
        lines.append(f'<tr><th scope="row"{classes[0]}>{_html_cell(first)}</th>{cells}</tr>')
    title = html.escape(table.title)
    # Names of many columns stand upright, so that their numbers fit.
    wide = ' class="wide"' if sum(numeric) >= WIDE else ""
    note = f'\n<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    # A region that scrolls must be reachable by keyboard.
    return (
        f'<div class="table" role="region" aria-label="{title}" tabindex="0"><table{wide}><caption>{title}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + f"\n</tbody></table></div>{note}"
    )


def _html_data_cell(value: Cell, numeric: str) -> str:
    # Zeros are pale: what is there stands out.
    return (
        '<td class="n zero">0</td>'
        if numeric and value == 0 and not isinstance(value, (bool, float))
        else (f"<td{numeric}>{_html_cell(value)}</td>")
    )


def _numeric_columns(table: Table) -> list[bool]:
    def number(value: Cell) -> bool:
        value = value.value if isinstance(value, Link) else value
        return value is None or not isinstance(value, str)

    return [all(number(row[column]) for row in table.rows) and bool(table.rows) for column in range(len(table.columns))]


def _html_cell(value: Cell) -> str:
    if isinstance(value, Link):
        return f'<a href="#{html.escape(value.anchor)}">{html.escape(format_value(value.value))}</a>'
    return html.escape(format_value(value))


def format_value(value: Cell) -> str:
    """A value as tables show it: four decimals, or two digits of a number too small for them; a dash for none."""
    if isinstance(value, Link):
        value = value.value
    if value is None or isinstance(value, float) and math.isnan(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (str, numbers.Integral)):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"


def _check_links(page: str) -> None:
    anchors = re.findall(r'<[^>]*? id="([^"]*)"', page)
    for name, count in Counter(anchors).items():
        if count > 1:
            raise ReportError(f"the anchor {name!r} is given twice")
    if nowhere := sorted(set(re.findall(r'<a [^>]*?href="#([^"]*)"', page)) - set(anchors)):
        raise ReportError(f"a link leads to the anchor {nowhere[0]!r}, which nothing has")


# -- Markdown -----------------------------------------------------------------------------------------------------------


def escape_markdown(text: str) -> str:
    """Plain text as Markdown shows it, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", " ".join(text.split()))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], numeric: Sequence[bool]) -> str:
    """A pipe table; `numeric` columns stand to the right."""
    lines = [[escape_markdown(name) for name in columns], ["---:" if right else "---" for right in numeric]]
    lines += [[_markdown_cell(value) for value in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_cell(value: Cell) -> str:
    text = escape_markdown(format_value(value))
    return f"[{text}](#{value.anchor})" if isinstance(value, Link) else text


def _markdown(title: str, sections: Sequence[Section], names: Mapping[int, str]) -> str:
    blocks = [f"# {escape_markdown(title)}"]
    for section in sections:
        blocks.append(f'<a id="{section.anchor}"></a>\n\n## {escape_markdown(section.title)}')
        for part in section.parts:
            if isinstance(part, Table):
                blocks.append(f"**{escape_markdown(part.title)}**")
                blocks.append(markdown_table(part.columns, part.rows, _numeric_columns(part)))
                blocks += [escape_markdown(part.note)] if part.note else []
            elif isinstance(part, Figure):
                path = f"{FIGURES}/{names[id(part)]}"
                blocks.append(f"![{escape_markdown(part.alt)}]({path}.png)")
                blocks.append(f"*{escape_markdown(part.title)}* ([SVG]({path}.svg))")
            else:
                blocks.append(part.markdown.strip() if isinstance(part, Html) else escape_markdown(part))
    return "\n\n".join(blocks) + "\n"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "figure"
