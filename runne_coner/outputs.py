"""What is found in a text, in the forms that others read: RuNNE and brat, BILOU columns, spaCy, HTML.

Every function takes a text and its entities: what `NestedNerPipeline` returns for it (mappings with `entity_type`, `start`,
`end`, and `score` and `level` if they are known), or the entities of a `Document`. Entities that are unsound, such as offsets
outside the text, raise `CorpusError`; one given twice counts once.
"""

import html
import importlib.util
import json
import os
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .documents import CorpusError, Document, Entity, sorted_entities
from .files import replacing
from .preprocessing import split_sentences, split_words
from .tagging import TAGS, bilou_labels, head_names, nesting_levels

if TYPE_CHECKING:
    from spacy.tokens import Doc
    from spacy.vocab import Vocab

Found = Iterable[Mapping[str, Any] | Entity]
"""Entities of one text, as the pipeline or a `Document` gives them."""

SPANS_KEY = "nested-ner"
"""Where `to_spacy` puts the entities: `doc.spans[SPANS_KEY]`."""


class _Mention(NamedTuple):
    start: int
    end: int
    type: str
    score: float | None
    level: int | None


def _mentions(text: str, entities: Found, id: str | int = "text") -> list[_Mention]:
    """The entities, each span and type once, by start, then longest first, then by type."""
    facts: dict[Entity, tuple] = {}
    for entity in entities:
        if isinstance(entity, Mapping):
            facts.setdefault(_entity(entity), (entity.get("score"), entity.get("level")))
        else:
            facts.setdefault(Entity(*entity), (None, None))
    return [_Mention(*entity, *facts[entity]) for entity in sorted_entities(Document(id, text, tuple(facts)))]


def _entity(found: Mapping[str, Any]) -> Entity:
    try:
        return Entity(found["start"], found["end"], found["entity_type"])
    except KeyError as error:
        raise CorpusError(f"an entity without {error}: {dict(found)}. Give what the nested-ner pipeline returns.") from None


def to_document(text: str, entities: Found, id: str | int) -> Document:
    """The text and its entities as a document, which `write_runne` and `write_brat` take.

    Raises:
        CorpusError: an entity is unsound.
    """
    return Document(id, text, tuple(Entity(*mention[:3]) for mention in _mentions(text, entities, id)))


# -- BILOU columns ------------------------------------------------------------------------------------------------------


def bilou_columns(
    text: str,
    entities: Found,
    id: str | int | None = None,
    entity_types: Sequence[str] | None = None,
    levels: int | None = None,
) -> str:
    """The words of a text with their BILOU tags, tab-separated as in CoNLL-U:

        # doc_id = 7
        # columns = INDEX	WORD	START	END	CITY	ORGANIZATION	ORGANIZATION@2
        1	департамент	0	11	O	B	O
        2	мэрии	12	17	O	I	B
        3	Ижевска	18	25	U	L	L

    A line holds a word: its number in the sentence, the word, its first and end character (exclusive) in the text, and the
    tag of each head. A head is an entity type, `@2`, `@3`, ... its deeper nesting levels (`tagging.nesting_levels`). A blank
    line ends each sentence; sentences that share an entity are one. `doc_id` is JSON, so that the number 7 is not the string
    "7". What no column can hold, as it starts or ends inside a word or is nested deeper than `levels`, stands in a comment
    `# not_tagged = TYPE	start	end	reason`. The columns of several documents are joined as they are.

    Args:
        id: of the document; None leaves `doc_id` out.
        entity_types: the types that get columns, whether they occur or not; others are left out. None: those that occur.
        levels: the levels that each type gets; None: the heads that occur, or of `entity_types` the deepest level of any.
    Raises:
        CorpusError: an entity is unsound, or type names would make two columns of one name or break a line.
    """
    tagged = _tag(text, _mentions(text, entities, "text" if id is None else id))
    return _columns(tagged, id, _columns_wanted([tagged], entity_types, levels))


def write_bilou(documents: Iterable[Document], path: str | os.PathLike) -> None:
    """Write documents as `bilou_columns`, all with the columns of the heads that occur in any; whole or not at all.

    Raises:
        CorpusError: an entity is unsound, or the file cannot be written.
    """
    tagged = [
        (document.id, _tag(document.text, _mentions(document.text, document.entities, document.id))) for document in documents
    ]
    heads = _columns_wanted([one for _, one in tagged], None, None)
    _write((_columns(one, id, heads) for id, one in tagged), path)


class _Tagged(NamedTuple):
    """A text as words: character `offsets` (words, 2), the word at which each sentence starts, the word spans of each head
    `(type, level)`, and what cannot be tagged with the reason."""

    words: list[str]
    offsets: np.ndarray
    sentences: list[int]
    heads: dict[tuple[str, int], list[tuple[int, int]]]
    lost: list[tuple[_Mention, str]]


def _tag(text: str, mentions: list[_Mention]) -> _Tagged:
    offsets = split_words(text)
    first_of = {start: word for word, (start, _) in enumerate(offsets.tolist())}
    end_of = {end: word + 1 for word, (_, end) in enumerate(offsets.tolist())}
    spans: dict[str, list[tuple[int, int]]] = {}
    lost, inner = [], set()
    for mention in mentions:
        first, end = first_of.get(mention.start), end_of.get(mention.end)
        if first is None or end is None:
            lost.append((mention, "starts or ends inside a word"))
        else:
            spans.setdefault(mention.type, []).append((first, end))
            inner.update(range(first + 1, end))
    heads: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for name, of_type in spans.items():
        for span, level in zip(of_type, nesting_levels(of_type), strict=True):
            heads.setdefault((name, level), []).append(span)
    starts = {0, *np.searchsorted(offsets[:, 0], split_sentences(text)).tolist()} - inner
    words = [text[start:end] for start, end in offsets.tolist()]
    return _Tagged(words, offsets, sorted(start for start in starts if start < len(words)), heads, lost)


def _columns_wanted(tagged: list[_Tagged], entity_types: Sequence[str] | None, levels: int | None) -> list[tuple[str, int]]:
    occurring = {head for one in tagged for head in one.heads}
    if entity_types is None and levels is None:
        return sorted(occurring, key=lambda head: (head[1], head[0]))
    types = sorted({name for name, _ in occurring}) if entity_types is None else list(entity_types)
    deepest = max((level for name, level in occurring if name in types), default=1) if levels is None else levels
    return [(name, level) for level in range(1, deepest + 1) for name in types]


def _columns(tagged: _Tagged, id: str | int | None, heads: list[tuple[str, int]]) -> str:
    names = [head_names([name], level)[-1] for name, level in heads]
    if len(set(names)) < len(names):
        raise CorpusError(f"the columns {names} would not be told apart. Rename the entity types.")
    comments = [] if id is None else [f"# doc_id = {json.dumps(id, ensure_ascii=False)}"]
    comments.append("# columns = " + "\t".join(["INDEX", "WORD", "START", "END", *names]))
    types = {name for name, _ in heads}
    lost = [(mention[:2], mention.type, reason) for mention, reason in tagged.lost]
    for (name, level), spans in tagged.heads.items():
        if name in types and (name, level) not in heads:
            ends = [(int(tagged.offsets[first, 0]), int(tagged.offsets[end - 1, 1])) for first, end in spans]
            lost += [(span, name, f"nested at level {level}") for span in ends]
    for name in [*names, *(name for _, name, _ in lost)]:
        if re.search(r"[\t\r\n]", name):
            raise CorpusError(f"the type {name!r} would break a line of columns. Rename the entity type.")
    comments += [f"# not_tagged = {name}\t{start}\t{end}\t{reason}" for (start, end), name, reason in sorted(lost)]

    found = [(head, *span) for head, key in enumerate(heads) for span in tagged.heads.get(key, [])]
    labels = bilou_labels(found, len(tagged.words), len(heads)).tolist()
    lines = []
    borders = [*tagged.sentences, len(tagged.words)]
    for sentence, first in enumerate(tagged.sentences):
        for word in range(first, borders[sentence + 1]):
            start, end = tagged.offsets[word].tolist()
            tags = [TAGS[label] for label in labels[word]]
            lines.append("\t".join([str(word - first + 1), tagged.words[word], str(start), str(end), *tags]))
        lines.append("")
    return "\n".join([*comments, *(lines or [""])]) + "\n"


# -- spaCy --------------------------------------------------------------------------------------------------------------


def to_spacy(text: str, entities: Found, vocab: "Vocab | None" = None) -> "Doc":
    """A spaCy `Doc` of the text (`doc.text == text`, whatever its white space) with `doc.spans["nested-ner"]`.

    Its tokens are the words of this package; white space other than one blank after a word is a token, and an entity that
    starts or ends inside a word cuts it. The group of spans is in the order of the pipeline (by start, then longest first),
    and its `attrs` hold `"scores"` and `"levels"`, arrays in the order of the spans (as spaCy's own span categorizer has
    them), where all entities have such.

    Args:
        vocab: of a spaCy pipeline that goes on with the document; None makes one without language.
    Raises:
        ImportError: spaCy is not installed. CorpusError: an entity is unsound.
    """
    spacy = _spacy()
    from spacy.tokens import Doc, Span, SpanGroup

    mentions = _mentions(text, entities)
    tokens, spaces, first_of, end_of = _spacy_tokens(text, mentions)
    doc = Doc(spacy.blank("xx").vocab if vocab is None else vocab, words=tokens, spaces=spaces)
    spans = [Span(doc, first_of[m.start], end_of[m.end], label=m.type) for m in mentions]
    attrs: dict[str, Any] = {}
    if all(mention.score is not None for mention in mentions):
        attrs["scores"] = np.array([mention.score for mention in mentions], dtype=np.float32)
    if all(mention.level is not None for mention in mentions):
        attrs["levels"] = np.array([mention.level for mention in mentions], dtype=np.int32)
    doc.spans[SPANS_KEY] = SpanGroup(doc, name=SPANS_KEY, attrs=attrs, spans=spans)
    return doc


def _spacy():
    try:
        import spacy
    except ImportError as error:
        raise ImportError('this needs spaCy: pip install "runne-coner[spacy]"') from error
    return spacy


def _spacy_tokens(text: str, mentions: list[_Mention]) -> tuple[list[str], list[bool], dict[int, int], dict[int, int]]:
    """Tokens that join to the text, whether a blank follows each, and the token of each first and end character."""
    starts, ends = {mention.start for mention in mentions}, {mention.end for mention in mentions}
    cuts = sorted({0, len(text), *split_words(text).ravel().tolist(), *starts, *ends})
    tokens: list[str] = []
    spaces: list[bool] = []
    first_of: dict[int, int] = {}
    end_of: dict[int, int] = {}
    for start, end in zip(cuts, cuts[1:], strict=False):
        follows = bool(tokens) and not tokens[-1].isspace() and start not in starts
        if follows and text[start] == " " and (end - start > 1 or end not in ends):
            spaces[-1] = True
            start += 1
        if start < end:
            first_of[start] = len(tokens)
            tokens.append(text[start:end])
            spaces.append(False)
            end_of[end] = len(tokens)
    return tokens, spaces, first_of, end_of


# -- HTML ---------------------------------------------------------------------------------------------------------------

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")
"""The palette of Okabe and Ito (2008), which all kinds of colour vision tell apart, without its yellow (pale on white)."""
LINES = ("solid", "double", "dashed")
"""The second mark of a type, for types that share a colour and for print in black."""

HTML_STYLE = """\
.rc-text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;text-align:start;line-height:1.7;background:#fff;
color:#111;padding:.2em .4em}
.rc-word{white-space:pre}
.rc-l::before,.rc-l::after{content:"\\200e"}
.rc-r::before,.rc-r::after{content:"\\200f"}
.rc-box{display:inline-grid;grid-template-rows:auto;grid-auto-rows:max(1em,15px);line-height:1.25;max-width:100%}
.rc-r>.rc-box{direction:rtl}
.rc-box>span{white-space:break-spaces}
.rc-box>i{font:600 .62em/1 system-ui,sans-serif;border-top:4px none;padding-top:1px;white-space:pre;
break-inside:avoid}
.rc-box>i.rc-first{margin-inline-start:1px;border-inline-start:2px solid;padding-inline:2px 5px}
.rc-box>i.rc-over{width:0;min-width:100%;box-sizing:border-box}
.rc-box>i.rc-last{margin-inline-end:2px}
.rc-box>i::after{content:attr(data-type);color:#111}
"""
"""The CSS of `render_html`, for pages that bring it once themselves."""
_STYLE = f"<style>\n{HTML_STYLE}</style>\n"
# Only what stands in the text is text: labels are generated content, so that copying a passage gives the passage. Words of
# entities are boxes that grow with their labels (or, rc-over, the label runs on under the next words of its entity), so that
# labels never cover each other and lines never touch; the bars are borders, which browsers print even where they leave out
# backgrounds. A box is no letter to the Unicode bidirectional algorithm, hence the invisible marks (rc-l, rc-r) that give it
# the direction of its words.

_PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.7 system-ui,sans-serif;max-width:60em;margin:1.5em auto;padding:0 1em;background:#fff}}
h2{{font-size:1em;margin:2em 0 .3em}}</style>
</head><body>
{content}</body></html>
"""

_BREAK = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_LINE_BREAK = re.compile(f"[{_BREAK}]")
_PIECE = re.compile(rf"[{_BREAK}]+|\S+|[^\S{_BREAK}]+")
_BOXED_PIECE = re.compile(rf"[{_BREAK}]+|\S+[^\S{_BREAK}]*|[^\S{_BREAK}]+")


def render_html(text: str, entities: Found, page: bool = False, *, style: bool = True, displacy: bool | None = None) -> str:
    """The text with its entities as stacked underlines, outer ones above, for notebooks, reports and print.

    An HTML fragment (or a page) that needs no script and no network. A type has the same colour everywhere. displaCy (style
    `span`) draws it where spaCy is installed and can: it cannot tell entities apart that are nested in or overlap one of
    their own type. Those, and everything where there is no spaCy, are drawn by a template of this module, which also keeps
    the text as it is (displaCy puts a blank after every word), gives every type a line style, and shows score and level when
    the pointer rests on an underline. In a notebook: `IPython.display.HTML(render_html(text, recognize(text)))`.

    Args:
        page: a whole HTML file instead of a fragment.
        style: False leaves this module's style out of a fragment, for pages that hold `HTML_STYLE` already.
        displacy: True: displaCy in any case; False: this module's template; None: as said above.
    Raises:
        CorpusError: an entity is unsound. ImportError: `displacy=True` without spaCy.
    """
    mentions = _mentions(text, entities)
    fragment = (_STYLE if style or page else "") + _drawn(text, mentions, displacy)
    return _PAGE.format(title="Named entities", content=fragment) if page else fragment


def _drawn(text: str, mentions: list[_Mention], displacy: bool | None = None) -> str:
    if displacy or (displacy is None and _displacy_shows(text, mentions)):
        return _displacy(text, mentions)
    return _fragment(text, mentions)


def write_html(documents: Iterable[Document], path: str | os.PathLike, *, displacy: bool | None = None) -> None:
    """Write documents as one page of `render_html` with their ids as headings; whole or not at all.

    Args:
        displacy: as in `render_html`; None: displaCy if it can show all documents, so that a page looks the same throughout.
    Raises:
        CorpusError: an entity is unsound, or the file cannot be written.
    """
    marked = [(str(each.id), each.text, _mentions(each.text, each.entities, each.id)) for each in documents]
    if displacy is None:
        displacy = all(_displacy_shows(text, mentions) for _, text, mentions in marked)
    head, foot = _PAGE.format(title="Named entities", content="\0").split("\0")
    sections = (f"<h2>{_escape(id)}</h2>\n{_drawn(text, mentions, displacy)}" for id, text, mentions in marked)
    _write(_joined(head + _STYLE, sections, foot), path)


def type_mark(entity_type: str) -> tuple[str, str]:
    """Colour and line style of an entity type; they depend on its name alone."""
    number = zlib.crc32(entity_type.encode("utf-8", "surrogatepass"))
    return COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]


def _escape(text: str) -> str:
    # A bare carriage return would be read as a line feed.
    return html.escape(text).replace("\r", "&#13;")


def _fragment(text: str, mentions: list[_Mention]) -> str:
    markup: list[str] = []
    group: list[str] = []  # pieces between which no line may break
    boxed, end, hold = False, 0, 0
    for piece, box, held in _pieces(text, mentions):
        # A line may break before and after white space, unless a label runs on under it.
        blank = not box and piece.isspace()
        if group and end >= hold and (blank or text[end - 1].isspace()):
            markup.append(_group(group, boxed))
            group, boxed = [], False
        group.append(box or _escape(piece))
        boxed, end, hold = boxed or bool(box), end + len(piece), max(hold, held)
    return f'<div class="rc-text">{"".join(markup)}{_group(group, boxed)}</div>\n'


def _group(pieces: list[str], boxed: bool) -> str:
    return f'<span class="rc-word">{"".join(pieces)}</span>' if boxed else "".join(pieces)


def _pieces(text: str, mentions: list[_Mention]) -> Iterator[tuple[str, str, int]]:
    """The text in pieces: their text, the box with underlines of a word of an entity (else ""), and the character up to
    which its labels reach under the text."""
    cuts = sorted({0, len(text), *(m.start for m in mentions), *(m.end for m in mentions)})
    coming = list(reversed(mentions))
    open_rows: list[tuple[int, _Mention]] = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        open_rows = [(row, mention) for row, mention in open_rows if mention.end > start]
        while coming and coming[-1].start == start:
            # Below all that are still open, so what is inside another stands under it, also where spans cross.
            open_rows.append((open_rows[-1][0] + 1 if open_rows else 1, coming.pop()))
        for match in (_BOXED_PIECE if open_rows else _PIECE).finditer(text, start, end):
            piece = match.group()
            if not open_rows or _LINE_BREAK.match(piece):
                yield piece, "", 0
                continue
            reach = [_label_reach(text, mention) for _, mention in open_rows]
            bars = [_bar(row, mention, match, over > 0) for (row, mention), over in zip(open_rows, reach, strict=True)]
            box = f'<span class="rc-box"><span>{_escape(piece)}</span>{"".join(bars)}</span>'
            yield piece, _marked(box, piece), max(reach)


def _label_reach(text: str, mention: _Mention) -> int:
    """Where the label of an entity ends if the entity's first line is longer than the label, else 0."""
    end = mention.start + len(mention.type) + 1
    return end if end <= mention.end and not _LINE_BREAK.search(text, mention.start, end) else 0


def _marked(box: str, piece: str) -> str:
    """The box with the direction of its first letter."""
    sides = {"L": "rc-l", "R": "rc-r", "AL": "rc-r"}
    side = next((sides[kind] for kind in map(unicodedata.bidirectional, piece) if kind in sides), None)
    return f'<span class="{side}">{box}</span>' if side else box


def _bar(row: int, mention: _Mention, match: re.Match, over: bool) -> str:
    colour, line = type_mark(mention.type)
    first, last = match.start() == mention.start, match.end() == mention.end
    classes = ["rc-first"] * first + ["rc-over"] * (first and over) + ["rc-last"] * last
    facts = [mention.type, f"{mention.start}-{mention.end}"]
    facts += [f"score {mention.score:.3f}"] if mention.score is not None else []
    facts += [f"level {mention.level}"] if mention.level is not None else []
    attributes = {
        "class": " ".join(classes),
        "title": ", ".join(facts),
        "data-type": mention.type if first else "",
        "style": f"grid-row:{row + 1};border-top-style:{line};border-color:{colour}",
    }
    return "<i" + "".join(f' {name}="{_escape(value)}"' for name, value in attributes.items() if value) + "></i>"


def _displacy_shows(text: str, mentions: list[_Mention]) -> bool:
    """Whether displaCy is there and can show these entities: no two of one type on one word, none across lines."""
    if importlib.util.find_spec("spacy") is None:
        return False
    end_of_type: dict[str, int] = {}
    for mention in mentions:
        if mention.start < end_of_type.get(mention.type, 0) or _LINE_BREAK.search(text, mention.start, mention.end):
            return False
        end_of_type[mention.type] = mention.end
    return True


def _displacy(text: str, mentions: list[_Mention]) -> str:
    """The text as displaCy draws it, each line by itself, as it knows no line breaks."""
    _spacy()
    from spacy import displacy

    # displaCy escapes the text, but not the labels.
    labels = {mention.type: html.escape(mention.type) for mention in mentions}
    coming = list(reversed(mentions))
    lines = []
    for start, end in _lines(text, mentions):
        here = []
        while coming and coming[-1].end <= end:
            mention = coming.pop()
            here.append(mention._replace(start=mention.start - start, end=mention.end - start))
        tokens, _, first_of, end_of = _spacy_tokens(text[start:end], here)
        spans = [{"start_token": first_of[m.start], "end_token": end_of[m.end], "label": labels[m.type]} for m in here]
        lines.append({"text": text[start:end], "tokens": tokens, "spans": spans, "settings": {}})
    colours = {label: _pale(type_mark(name)[0]) for name, label in labels.items()}
    return displacy.render(lines, style="span", manual=True, jupyter=False, options={"colors": colours})


def _lines(text: str, mentions: list[_Mention]) -> Iterator[tuple[int, int]]:
    """Characters of the lines of a text; what an entity runs across is one line."""
    start, reach, coming = 0, 0, list(reversed(mentions))
    for match in _LINE_BREAK.finditer(text):
        while coming and coming[-1].start < match.start():
            reach = max(reach, coming.pop().end)
        if match.start() >= reach:
            if start < match.start():
                yield start, match.start()
            start = match.end()
    if start < len(text) or not text:
        yield start, len(text)


def _pale(colour: str) -> str:
    """The colour mixed with as much white: displaCy writes labels in black on it."""
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


# -- files --------------------------------------------------------------------------------------------------------------


def _joined(head: str, parts: Iterable[str], foot: str) -> Iterator[str]:
    yield head
    yield from parts
    yield foot


def _write(parts: Iterable[str], path: str | os.PathLike) -> None:
    try:
        with replacing(Path(path)) as file:
            file.writelines(parts)
    except UnicodeEncodeError as error:
        raise CorpusError(f"{path}: a text is not valid Unicode ({error}).") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be written ({error.strerror or error}).") from error
