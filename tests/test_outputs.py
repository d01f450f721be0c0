"""What others read: documents, BILOU columns, spaCy documents, HTML."""

import json
import re
from html.parser import HTMLParser

import pytest
from conftest import MARKED
from hypothesis import given
from hypothesis import strategies as st
from rule_model import build_rule_model

from runne_coner.cli import main
from runne_coner.documents import CorpusError, Document, Entity, read_documents, write_brat, write_runne
from runne_coner.outputs import (
    COLOURS,
    LINES,
    SPANS_KEY,
    bilou_columns,
    render_html,
    to_document,
    to_spacy,
    type_mark,
    write_bilou,
    write_html,
)
from runne_coner.pipeline import load_pipeline
from runne_coner.preprocessing import split_words

ODD = '\t Мэр  «Казани»\r\n\r\nОльга\u00a0Калинина — <b>&amp; "да"</b>\u200b й ё 😀👩\u200d👩\u200d👧 הארץ החדש\u2028конец \n'


def entity(text, surface, name, **facts):
    start = text.index(surface)
    return {"entity_type": name, "start": start, "end": start + len(surface), "text": surface, **facts}


def marked(text, entities):
    return [entity(text, surface, name) for surface, name in entities]


def triples(entities):
    return {(e["start"], e["end"], e["entity_type"]) for e in entities}


@st.composite
def texts_with_entities(draw):
    """A text with any white space and signs, and entities that start and end where words do; some cross."""
    text = draw(st.text(alphabet="абА1 \t\r\n\u00a0\u2028.,«<&\"'\u0301\u200b😀א", max_size=60))
    words = split_words(text).tolist()
    if not words:
        return text, []
    word = st.integers(0, len(words) - 1)
    spans = draw(st.lists(st.tuples(word, word, st.sampled_from(["A", "B", "C D"])), max_size=12))
    found = {(words[min(a, b)][0], words[max(a, b)][1], name) for a, b, name in spans}
    return text, [{"entity_type": name, "start": start, "end": end} for start, end, name in found]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_rule_model(tmp_path_factory.mktemp("rule"))


# -- documents ----------------------------------------------------------------------------------------------------------


def test_what_the_pipeline_finds_is_written_and_read_back(model, tmp_path):
    text = "Мэр Казани Ольга Калинина."
    document = to_document(text, load_pipeline(str(model))(text), "one")
    assert document.entities == (Entity(0, 10, "PROFESSION"), Entity(4, 10, "CITY"), Entity(11, 25, "PERSON"))
    write_runne([document], tmp_path / "one.jsonl")
    write_brat([document], tmp_path / "brat")
    assert read_documents(tmp_path / "one.jsonl") == read_documents(tmp_path / "brat") == [document]


def test_documents_and_pipeline_entities_are_taken_alike():
    text, entities = MARKED[1]
    document = to_document(text, marked(text, entities), 1)
    assert to_document(text, document.entities, 1) == document
    for function in (bilou_columns, render_html):
        assert function(text, document.entities) == function(text, marked(text, entities))


@pytest.mark.parametrize("function", [lambda *given: to_document(*given, 7), bilou_columns, render_html])
def test_unsound_entities_are_errors(function):
    for start, end in ((0, 9), (2, 1), (1, 1), (-1, 2)):
        with pytest.raises(CorpusError, match="A at"):
            function("abc", [{"entity_type": "A", "start": start, "end": end}])
    with pytest.raises(CorpusError, match="entity_type"):
        function("abc", [{"entity": "A", "start": 0, "end": 1}])


# -- BILOU columns ------------------------------------------------------------------------------------------------------


def spans_of(columns: str):
    """Ids and entities of a file of columns, by the rules of its documentation alone."""
    documents = []
    tracks: list[list[tuple[str, str]]] = []
    for line in columns.split("\n"):
        if line.startswith("# doc_id = "):
            documents.append((json.loads(line.removeprefix("# doc_id = ")), set()))
        elif line.startswith("# columns = "):
            heads = line.removeprefix("# columns = ").split("\t")[4:]
        elif line.startswith("# not_tagged = "):
            name, start, end, _ = line.removeprefix("# not_tagged = ").split("\t")
            documents[-1][1].add((int(start), int(end), name))
        elif line:
            index, word, start, end, *tags = line.split("\t")
            assert int(index) == len(tracks) + 1 and int(end) - int(start) == len(word) and len(tags) == len(heads)
            tracks.append([(tag, start, end) for tag in tags])
        else:
            for head, track in zip(heads, zip(*tracks, strict=True), strict=False):
                rest = " ".join(":".join(item) for item in track)
                pattern = r"U:(\d+):(\d+)|B:(\d+):\d+(?: I:\d+:\d+)* L:\d+:(\d+)"
                for a, b, c, d in re.findall(pattern, rest):
                    documents[-1][1].add((int(a or c), int(b or d), head.split("@")[0]))
                # Within a sentence every tag belongs to a span.
                assert not re.search("[BIL]:", re.sub(pattern, "", rest))
            tracks = []
    return documents


def test_columns_by_hand():
    text = "Глава департамента мэрии Ижевска. Да"
    entities = marked(text, [("департамента мэрии Ижевска", "ORG"), ("мэрии Ижевска", "ORG"), ("Ижевска", "CITY")])
    assert bilou_columns(text, entities, id=7).split("\n") == [
        "# doc_id = 7",
        "# columns = INDEX\tWORD\tSTART\tEND\tCITY\tORG\tORG@2",
        "1\tГлава\t0\t5\tO\tO\tO",
        "2\tдепартамента\t6\t18\tO\tB\tO",
        "3\tмэрии\t19\t24\tO\tI\tB",
        "4\tИжевска\t25\t32\tU\tL\tL",
        "5\t.\t32\t33\tO\tO\tO",
        "",
        "1\tДа\t34\t36\tO\tO\tO",
        "",
        "",
    ]
    chosen = bilou_columns(text, entities, entity_types=["PERSON", "ORG"], levels=1).split("\n")
    assert chosen[0] == "# columns = INDEX\tWORD\tSTART\tEND\tPERSON\tORG"
    assert chosen[1] == "# not_tagged = ORG\t19\t32\tnested at level 2"
    assert chosen[4] == "3\tмэрии\t19\t24\tO\tI"
    assert bilou_columns(text, entities, entity_types=["CITY"]).split("\n")[0].endswith("\tEND\tCITY")


@pytest.mark.parametrize(("text", "entities"), MARKED)
def test_columns_give_the_entities_back(text, entities):
    found = marked(text, entities)
    assert spans_of(bilou_columns(text, found, id="a\tb\n")) == [("a\tb\n", triples(found))]


@given(texts_with_entities())
def test_columns_give_any_entities_back(case):
    text, entities = case
    assert spans_of(bilou_columns(text, entities, id=1)) == [(1, triples(entities))]


def test_columns_of_what_is_no_word_and_of_nothing():
    text = "Нижегородский"
    cut = bilou_columns(text, [{"entity_type": "CITY", "start": 0, "end": 6}], id=1)
    assert "# not_tagged = CITY\t0\t6\tstarts or ends inside a word\n" in cut
    assert spans_of(cut) == [(1, {(0, 6, "CITY")})]
    assert bilou_columns("", []) == bilou_columns(" \n", []) == "# columns = INDEX\tWORD\tSTART\tEND\n\n"


def test_a_sentence_never_ends_within_an_entity():
    text = "Фильм «Да. Нет. Да» вышел. Всё."
    columns = bilou_columns(text, [entity(text, "Да. Нет. Да", "WORK_OF_ART")])
    assert [len(block.strip().split("\n")) for block in columns.split("\n\n")[:-1]] == [1 + 10, 2]


def test_types_that_would_break_columns_are_errors():
    for types in (["A\tB"], ["A\nB"], ["A", "A"]):
        with pytest.raises(CorpusError, match="columns"):
            bilou_columns("да", [], entity_types=types)
    # It has no column, but stands in a comment.
    with pytest.raises(CorpusError, match=r"'A\\nB' would break a line of columns"):
        bilou_columns("да", [Entity(0, 1, "A\nB")])


# -- spaCy --------------------------------------------------------------------------------------------------------------


def test_without_spacy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    for call in (lambda: to_spacy("да", []), lambda: render_html("да", [], displacy=True)):
        with pytest.raises(ImportError, match=r"runne-coner\[spacy\]"):
            call()


@pytest.fixture(scope="module")
def spacy():
    import spacy  # of the extra `dev`, so that nothing here is skipped

    return spacy


def test_spacy_documents_hold_the_spans(spacy):
    text = "Мэр Казани Ольга Калинина."
    entities = [
        entity(text, "Мэр Казани", "PROFESSION", score=0.5, level=1),
        entity(text, "Казани", "CITY", score=0.25, level=2),
    ]
    vocab = spacy.blank("ru").vocab
    doc = to_spacy(text, entities, vocab)
    assert doc.vocab is vocab and [token.text for token in doc] == ["Мэр", "Казани", "Ольга", "Калинина", "."]
    spans = doc.spans[SPANS_KEY]
    assert [(span.text, span.label_, span.start_char) for span in spans] == [
        ("Мэр Казани", "PROFESSION", 0),
        ("Казани", "CITY", 4),
    ]
    assert spans.attrs["scores"].tolist() == [0.5, 0.25] and spans.attrs["levels"].tolist() == [1, 2]
    again = spacy.tokens.Doc(vocab).from_bytes(doc.to_bytes())
    assert again.spans[SPANS_KEY].attrs["scores"].tolist() == [0.5, 0.25]
    assert not {"scores", "levels"} & set(to_spacy(text, [Entity(0, 3, "A")]).spans[SPANS_KEY].attrs)


@pytest.mark.parametrize("text", ["", " ", "\n\t", "a", " a  b ", ODD])
def test_spacy_keeps_odd_texts(spacy, text):
    doc = to_spacy(text, [])
    assert doc.text == text and len(doc.spans[SPANS_KEY]) == 0
    assert [t.text for t in doc if not t.is_space] == [text[start:end] for start, end in split_words(text)]


def test_spacy_keeps_any_text_and_its_spans(spacy):
    vocab = spacy.blank("xx").vocab

    @given(texts_with_entities(), st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=3))
    def check(case, anywhere):
        # Spans that start or end inside words or white space are kept as well.
        text, entities = case
        others = [{"entity_type": "X", "start": a, "end": a + n} for a, n in anywhere if a + n <= len(text)]
        doc = to_spacy(text, entities + others, vocab)
        assert doc.text == text
        found = {(span.start_char, span.end_char, span.label_) for span in doc.spans[SPANS_KEY]}
        assert found == triples(entities + others)

    check()


def test_displacy_gets_escaped_labels(spacy):
    page = render_html("Мэр <b>", [Entity(0, 3, "<i>A")], page=True, displacy=True)
    assert "<i>A" not in page and "&lt;i&gt;A" in page and "<b>" not in page


def test_displacy_draws_what_it_can_show(spacy, monkeypatch):
    """Where spaCy is installed; nesting in the same type, which it would show as one entity, is left to the template."""
    text = "Мэр Казани\nи департамент мэрии Ижевска"
    nested = [entity(text, "Мэр Казани", "PROFESSION"), entity(text, "Казани", "CITY")]
    same = [entity(text, "департамент мэрии Ижевска", "ORG"), entity(text, "мэрии Ижевска", "ORG")]
    across = [entity(text, "Казани\nи департамент", "ORG")]

    def by_displacy(entities, **options):
        markup = render_html(text, entities, **options)
        assert ('class="spans"' in markup) != ('class="rc-text"' in markup)
        return 'class="spans"' in markup

    assert by_displacy(nested) and by_displacy([])
    assert not by_displacy(same) and not by_displacy(across) and not by_displacy(nested, displacy=False)
    assert by_displacy(same, displacy=True) and by_displacy(across, displacy=True)
    assert render_html(text, nested).count('class="spans"') == 2  # a line each
    with monkeypatch.context() as missing:
        missing.setitem(__import__("sys").modules, "spacy", None)
        assert not by_displacy(nested)


def test_displacy_labels_stand_on_pale_colours(spacy):
    """It writes them in black."""
    for number in range(40):
        markup = render_html("Мэр", [Entity(0, 3, f"T{number}")])
        colours = set(re.findall(r"background: #(\w{6})", markup))
        assert len(colours) == 1
        assert min(int(value[i : i + 2], 16) for value in colours for i in (0, 2, 4)) >= 127


# -- HTML ---------------------------------------------------------------------------------------------------------------


class Shown(HTMLParser):
    """What a browser would show as text, and of each bar its attributes and the characters above it."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.text, self.bars, self.tags, self.open = "", [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "i":
            self.bars.append(dict(attributes) | {"box": self.box})
        if tag != "meta":
            self.open.append((tag, len(self.text)))

    def handle_endtag(self, tag):
        opened, start = self.open.pop()
        assert opened == tag
        if tag == "span":
            self.box = (start, len(self.text))

    def handle_data(self, data):
        if any(tag == "div" for tag, _ in self.open):
            self.text += data

    def spans(self):
        """The entities as first and last boxes of their bars show them."""
        return {
            (bar["box"][0], int(re.search(r"-(\d+)", bar["title"]).group(1)), bar["data-type"])
            for bar in self.bars
            if "rc-first" in bar.get("class", "")
        }


@given(texts_with_entities())
def test_html_shows_the_text_and_its_entities(case):
    text, entities = case
    shown = Shown(render_html(text, entities, displacy=False))
    assert shown.text == text
    assert shown.spans() == triples(entities)
    assert sum("rc-last" in bar.get("class", "") for bar in shown.bars) == len(entities)
    # Every word of an entity has its bar.
    for found in entities:
        title = f"{found['entity_type']}, {found['start']}-{found['end']}"
        under = {i for bar in shown.bars if bar["title"] == title for i in range(*bar["box"])}
        within = range(found["start"], found["end"])
        assert {i for i in within if not text[i].isspace()} <= under <= set(within)


@given(texts_with_entities())
def test_html_stacks_inner_spans_below_outer_ones(case):
    text, entities = case
    rows: dict[tuple, set] = {}
    boxes: dict[tuple, list] = {}
    for bar in Shown(render_html(text, entities, displacy=False)).bars:
        row = int(re.search(r"grid-row:(\d+)", bar["style"]).group(1))
        rows.setdefault(bar["title"], set()).add(row)
        boxes.setdefault(bar["box"], []).append(row)
    assert all(len(found) == 1 for found in rows.values())
    assert all(len(set(found)) == len(found) for found in boxes.values())
    level = {
        (e["start"], e["end"], e["entity_type"]): min(rows[f"{e['entity_type']}, {e['start']}-{e['end']}"]) for e in entities
    }
    for a, b, _ in level:
        for c, d, _ in level:
            if a <= c and d <= b and (a, b) != (c, d):
                assert max(row for (e, f, _), row in level.items() if (e, f) == (a, b)) < min(
                    row for (e, f, _), row in level.items() if (e, f) == (c, d)
                )


def test_html_escapes_everything():
    text = ODD + "<script>alert(1)</script>'\"&lt;"
    name = "\"><script>'&"
    for markup in (
        render_html(text, [], displacy=False),
        render_html(text, [Entity(0, len(text), name)], page=True, displacy=False),
    ):
        shown = Shown(markup)
        assert shown.text == text
        assert "script" not in shown.tags and not re.search(r"https?:|url\(|@import|\bon\w+=|src=", markup)
    assert {bar.get("data-type", name) for bar in shown.bars} == {name}


def test_html_tells_score_and_level():
    bars = Shown(render_html("да", [entity("да", "да", "A", score=0.9876, level=2)], displacy=False)).bars
    assert [bar["title"] for bar in bars] == ["A, 0-2, score 0.988, level 2"]


def test_html_gives_right_to_left_words_their_direction():
    text = "Газета הארץ החדש и Время"
    markup = render_html(text, marked(text, [("הארץ החדש", "ORG"), ("Время", "ORG")]), displacy=False)
    assert re.findall(r'"(rc-[lr])"><span class="rc-box"><span>(\w+)', markup) == [
        ("rc-r", "הארץ"),
        ("rc-r", "החדש"),
        ("rc-l", "Время"),
    ]


def test_html_of_nothing_and_of_a_page():
    assert Shown(render_html("", [], displacy=False)).text == ""
    page = render_html("Мэр", [], page=True, displacy=False)
    assert page.startswith("<!DOCTYPE html>") and page.endswith("</html>\n") and 'charset="utf-8"' in page


def test_a_type_has_one_mark():
    assert type_mark("CITY") == type_mark("CITY")
    marks = {type_mark(f"TYPE{number}") for number in range(500)}
    assert marks == {(colour, line) for colour in COLOURS for line in LINES}


def test_long_texts():
    text, entities = MARKED[1]
    count = 60_000 // len(text)
    many = [
        Entity(e["start"] + i * len(text), e["end"] + i * len(text), e["entity_type"])
        for i in range(count)
        for e in marked(text, entities)
    ]
    long = text * count
    assert spans_of(bilou_columns(long, many, id=1)) == [(1, set(many))]
    assert Shown(render_html(long, many, displacy=False)).text == long


# -- files and the command line -----------------------------------------------------------------------------------------


def test_files_of_several_documents(tmp_path):
    documents = [to_document(text, marked(text, entities), f"<{n}>") for n, (text, entities) in enumerate(MARKED)]
    write_bilou(iter(documents), tmp_path / "all.tsv")
    content = (tmp_path / "all.tsv").read_text(encoding="utf-8")
    assert spans_of(content) == [(document.id, set(document.entities)) for document in documents]
    assert len(set(re.findall("# columns = .*", content))) == 1
    write_html(iter(documents), tmp_path / "all.html", displacy=False)
    shown = Shown((tmp_path / "all.html").read_text(encoding="utf-8"))
    assert shown.tags.count("h2") == shown.tags.count("div") == len(documents)
    assert shown.text == "".join(document.text for document in documents)


@pytest.mark.parametrize("write", [write_bilou, write_html])
def test_files_are_whole_or_not_there(write, tmp_path):
    for broken in (Document(2, "да", (Entity(0, 9, "A"),)), Document(2, "\ud800")):
        with pytest.raises(CorpusError):
            write([Document(1, "да"), broken], tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(CorpusError, match="cannot be written"):
        write([], tmp_path / "no" / "out")


def test_predict_formats(model, tmp_path):
    text = "Мэр Казани Ольга Калинина."
    wanted = Document("a", text, (Entity(0, 10, "PROFESSION"), Entity(4, 10, "CITY"), Entity(11, 25, "PERSON")))
    write_runne([Document("a", text)], tmp_path / "in.jsonl")
    for name in ("runne", "brat", "bilou", "html"):
        main(
            ["predict", "--model", str(model), "--input", str(tmp_path / "in.jsonl")]
            + ["--output", str(tmp_path / f"{name}.jsonl"), "--format", name]
        )
    assert read_documents(tmp_path / "runne.jsonl") == read_documents(tmp_path / "brat.jsonl") == [wanted]
    assert spans_of((tmp_path / "bilou.jsonl").read_text(encoding="utf-8")) == [("a", set(wanted.entities))]
    # displaCy draws what it can; the template says characters, of which entities can be read back.
    assert (tmp_path / "html.jsonl").read_text(encoding="utf-8").count('class="spans"') == 1
    write_html([wanted], tmp_path / "ours.html", displacy=False)
    assert Shown((tmp_path / "ours.html").read_text(encoding="utf-8")).spans() == set(wanted.entities)


def test_predict_checks_the_output_before_it_loads_anything(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("а", encoding="utf-8")
    for output, form, message in (
        ("full", "brat", "new or empty"),
        ("full/a.txt", "brat", "new or empty"),
        ("full", "html", "file name"),
    ):
        with pytest.raises(SystemExit):
            main(["predict", "--model", "no", "--input", "no", "--output", str(tmp_path / output), "--format", form])
        assert message in capsys.readouterr().err
