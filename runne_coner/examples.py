"""The errors of a report one by one: their passages with gold and predicted entities drawn, and what else the gold says."""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from .consistency import Labellings, Words, words_of
from .documents import Document, Entity, marked_text
from .outputs import HTML_STYLE, render_html
from .report import Cell, Html, Link, Section, Table, escape_markdown
from .taxonomy import Mention, Outcome

CONTEXT = 160
"""Characters of context on each side of an error, within its line."""
LONGEST = 800
"""Characters of an error that are shown; longer ones are cut."""

_STYLE = (
    HTML_STYLE
    + """\
.error{border:1px solid var(--line);border-radius:4px;padding:.2em .8em .6em;margin:1em 0;break-inside:avoid}
.error h3{margin:.4em 0}.error p{margin:.3em 0;font-size:.9em}.error dl{display:grid;grid-template-columns:max-content 1fr;
gap:.4em .8em;margin:.4em 0}.error dt{color:var(--soft);font-size:.85em;padding-top:.35em}.error dd{margin:0;min-width:0}
.error:target{outline:3px solid var(--link)}
"""
)


class ShownErrors:
    """The errors that are shown one by one, and the names of what stands in the report beside other systems' errors."""

    def __init__(self, outcomes: Sequence[Outcome], label: str):
        self.outcomes = outcomes
        self.label = label
        # Of two labels never the same: a slash is an underscore, and whatever else an anchor may not hold is its code.
        slug = re.sub(r"[^A-Za-z0-9/-]", lambda sign: f".{ord(sign.group()):x}.", label).replace("/", "_")
        self.prefix = f"{slug}-" if slug else ""

    def anchor(self, number: int) -> str:
        return f"{self.prefix}error-{number}"

    def key(self, name: str) -> str:
        return f"{self.label}: {name}" if self.label else name

    def section(self, title: str, parts: Sequence, anchor: str) -> Section:
        return Section(self.key(title), parts, self.prefix + anchor)

    def linked(self, value: str | int, fits: Callable[[Outcome], bool]) -> Cell:
        """The value, as a link to the first error shown that fits, if there is one."""
        numbers = (number for number, outcome in enumerate(self.outcomes, 1) if fits(outcome))
        number = next(numbers, None)
        return value if number is None else Link(value, self.anchor(number))


def example_section(
    pairs: Sequence[tuple[Document, Document]], surfaces: Mapping[Words, Labellings], shown: ShownErrors
) -> Section:
    """The section of the errors shown, each with an anchor that the tables' links lead to."""
    title = "Instructive errors"
    if not shown.outcomes:
        return shown.section(title, ["There is no error to show."], "instructive-errors")
    by_id = {reference.id: (reference, prediction) for reference, prediction in pairs}
    rows, markup, markdown = [], [], []
    for number, outcome in enumerate(shown.outcomes, 1):
        rows.append(_index_row(number, outcome, shown))
        example = _example(number, outcome, by_id[outcome.document], surfaces, shown)
        markup.append(example.html)
        markdown.append(example.markdown)
    return shown.section(
        title,
        [
            f"{len(rows)} errors, chosen so that frequent ones are seen often and rare ones at all: the kinds take turns;"
            " within a kind, groups of equal types get places by their sizes (Sainte-Laguë); within a group, different texts"
            " come first, those that recur most before others. All entities of the passage are drawn, outer ones above.",
            Table(
                "The errors shown",
                ["number", "kind", "gold", "text", "predicted", "its text", "document", "start"],
                rows,
                key=shown.key("instructive_errors"),
            ),
            Html("\n".join(markup), "\n\n".join(markdown), _STYLE),
        ],
        "instructive-errors",
    )


def _index_row(number: int, outcome: Outcome, shown: ShownErrors) -> list[Cell]:
    sides = [[mention.type, one_line(mention.text)] if mention else [None, None] for mention in sides_of(outcome)]
    return [
        Link(number, shown.anchor(number)),
        outcome.kind,
        *sides[0],
        *sides[1],
        str(outcome.document),
        outcome.mention.start,
    ]


def sides_of(outcome: Outcome) -> tuple[Mention | None, Mention | None]:
    """The gold and the predicted mention."""
    return outcome.gold, outcome.predicted


def _example(
    number: int,
    outcome: Outcome,
    pair: tuple[Document, Document],
    surfaces: Mapping[Words, Labellings],
    shown: ShownErrors,
) -> Html:
    title = f"{number}. {outcome.kind}: {_headline(outcome)}"
    place = f"Document {outcome.document}, characters {outcome.mention.start}-{outcome.mention.end}."
    notes = [place, *_doubts(outcome, surfaces)]
    views = {
        name: passage(pair[0].text, document.entities, outcome)
        for name, document in zip(("gold", "predicted"), pair, strict=True)
    }
    drawn = "".join(
        f"<dt>{name}</dt><dd>{render_html(view.text, view.entities, style=False, displacy=False)}</dd>"
        for name, view in views.items()
    )
    back = f'<a href="#{shown.prefix}error-tables">To the tables</a>'
    paragraphs = f"<p>{html.escape(notes[0])} {back}</p>" + "".join(f"<p>{html.escape(note)}</p>" for note in notes[1:])
    markup = (
        f'<article class="error" id="{shown.anchor(number)}"><h3>{html.escape(title)}</h3>\n<dl>{drawn}</dl>\n'
        f"{paragraphs}</article>"
    )
    lines = [f'<a id="{shown.anchor(number)}"></a>**{escape_markdown(title)}**']
    lines += [f"- {name}: {escape_markdown(marked_text(view))}" for name, view in views.items()]
    lines += [f"- {escape_markdown(note)}" for note in notes]
    return Html(markup, "\n".join([lines[0], "", *lines[1:]]))


def _headline(outcome: Outcome) -> str:
    gold, guess = ((mention and f"{mention.type} «{one_line(mention.text)}»") for mention in sides_of(outcome))
    return f"{gold} found as {guess}" if gold and guess else gold or guess


def _doubts(outcome: Outcome, surfaces: Mapping[Words, Labellings]) -> list[str]:
    """What the gold says elsewhere about the strings of an error, if it does not always say the same."""
    strings = dict.fromkeys(words_of(mention.text) for mention in sides_of(outcome) if mention)
    return [
        f"The gold looks inconsistent: «{one_line(' '.join(words))}» is {labels_line(surfaces[words])}"
        f" ({places_line(surfaces[words])})."
        for words in strings
        if words in surfaces
    ]


def passage(text: str, entities: Iterable[Entity], outcome: Outcome) -> Document:
    """The words around an error as a document of its own, marked `…` where the text goes on.

    It reaches `CONTEXT` characters to each side, no further than the next line breaks, to whole words; entities are cut at
    its ends.
    """
    mentions = [mention for mention in sides_of(outcome) if mention]
    first = min(mention.start for mention in mentions)
    last = min(max(mention.end for mention in mentions), first + LONGEST)
    start, end = _reach(text[:first], backwards=True), _reach(text[last:], backwards=False)
    start, end = first - start, last + end
    head, tail = "… " if start > 0 else "", " …" if end < len(text) else ""
    shift = len(head) - start
    cut = {
        Entity(max(entity.start, start) + shift, min(entity.end, end) + shift, entity.type)
        for entity in entities
        if entity.start < end and entity.end > start
    }
    return Document(outcome.document, head + text[start:end] + tail, tuple(sorted(cut)))


def _reach(side: str, backwards: bool) -> int:
    """How many characters of the text on one side of an error are shown."""
    near = side[::-1][:CONTEXT] if backwards else side[:CONTEXT]
    line = re.match(r"[^\n]*", near).group()
    if len(line) < CONTEXT or len(side) <= CONTEXT:
        return len(line)
    return len(line.rpartition(" ")[0]) or len(line)


def one_line(text: str, longest: int = 80) -> str:
    """A text on one line, cut if it is long."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


# -- the gold's labels in words -----------------------------------------------------------------------------------------


def labels_line(labellings: Labellings) -> str:
    """How often the gold has which labels: `CITY 5, no label 2`."""
    return ", ".join(f"{_label(types)} {len(labellings[types])}" for types in _by_frequency(labellings))


def places_line(labellings: Labellings) -> str:
    """The first place of each of the gold's labels."""
    firsts = [(types, labellings[types][0]) for types in _by_frequency(labellings)]
    return "; ".join(f"{_label(types)}: {place.document}, {place.start}-{place.end}" for types, place in firsts)


def _label(types: tuple[str, ...]) -> str:
    return " and ".join(types) or "no label"


def _by_frequency(labellings: Labellings) -> list[tuple[str, ...]]:
    return sorted(labellings, key=lambda types: (-len(labellings[types]), types))
