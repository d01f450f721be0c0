"""The error report: what perfect, empty and shifted predictions give, links, doubts about the gold, hostile texts."""

import json
import re

import pytest
from conftest import TYPES, make_documents

from runne_coner.documents import Document, Entity, from_row
from runne_coner.errors import error_data, error_sections
from runne_coner.examples import CONTEXT, LONGEST, ShownErrors, passage
from runne_coner.metrics import ScoreError
from runne_coner.report import Html, write_report
from runne_coner.taxonomy import BOUNDARY_KINDS, KINDS, error_taxonomy


@pytest.fixture(scope="module")
def gold():
    return [from_row(row) for row in make_documents()]


def replaced(documents, change):
    return [Document(d.id, d.text, tuple(filter(None, (change(d, e) for e in d.entities)))) for d in documents]


def report(tmp_path, references, predictions, *options, **more):
    sections = error_sections(references, predictions, TYPES, *options, **more)
    page = write_report(tmp_path / "report", "Errors", sections, error_data(references, predictions))
    data = json.loads(page.with_name("report.json").read_text(encoding="utf-8"))
    return page.read_text(encoding="utf-8"), page.with_name("report.md").read_text(encoding="utf-8"), data


def outcome_counts(data):
    return {row[0]: row[1] for row in data["tables"]["outcomes"]["rows"]}


def number_of(documents):
    return sum(len(document.entities) for document in documents)


def test_anchors_of_labels_that_differ_in_signs_only(tmp_path):
    labels = ["rubert_base/coner", "rubert-base/coner", "rubert.base/coner", "rubert/base-coner", "RuBERT-base/coner"]
    labels += ["модель/coner", "энкодер/coner", "_2f_", "/2f/"]
    prefixes = {ShownErrors([], label).prefix for label in labels}
    assert len(prefixes) == len(labels) and all(re.fullmatch(r"[A-Za-z0-9._-]+", prefix) for prefix in prefixes)


def test_a_perfect_prediction_has_no_error(gold, tmp_path):
    page, text, data = report(tmp_path, gold, gold, ["DISEASE"])
    assert outcome_counts(data) == dict.fromkeys(KINDS, 0) | {"correct": number_of(gold)}
    assert data["errors"] == [] and "instructive_errors" not in data["tables"] and 'class="error"' not in page
    assert "there is no error" in page and "There is no error to show." in text
    assert {tuple(row[1:4]) for row in data["tables"]["scores"]["rows"]} == {(1.0, 1.0, 1.0)}


def test_an_empty_prediction_has_only_misses(gold, tmp_path):
    page, _, data = report(tmp_path, gold, replaced(gold, lambda document, entity: None))
    assert outcome_counts(data) == dict.fromkeys(KINDS, 0) | {"missed": number_of(gold)}
    assert {error["kind"] for error in data["errors"]} == {"missed"} and len(data["errors"]) == number_of(gold)
    assert page.count('class="error"') == number_of(gold) < 50


@pytest.mark.parametrize(
    "kind, left, right", [("too long", 0, 1), ("too long", -1, 0), ("too short", 1, 0), ("too short", 0, -1), ("shifted", 1, 1)]
)
def test_shifted_boundaries_are_only_boundary_errors(gold, tmp_path, kind, left, right):
    # At the ends of a text a border cannot be moved outwards: such entities are left out on both sides.
    def movable(document, entity):
        return entity if 0 < entity.start and entity.end < len(document.text) else None

    references = replaced(gold, movable)
    predictions = replaced(references, lambda document, e: Entity(e.start + left, e.end + right, e.type))
    _, _, data = report(tmp_path, references, predictions)
    counts = outcome_counts(data)
    assert sum(counts[name] for name in BOUNDARY_KINDS) == counts[kind] == number_of(references) > 10


def test_every_table_adds_up(gold, tmp_path):
    def spoilt(document, entity):
        if entity.start % 5 == 0:
            return None
        name = "CITY" if entity.start % 3 == 0 else entity.type
        return Entity(entity.start, entity.end - (entity.end % 4 == 0), name)

    predictions = replaced(gold, spoilt)
    training = [Document("t", "Анна из Перми", (Entity(0, 4, "PERSON"),))]
    _, _, data = report(tmp_path, gold, predictions, ["DISEASE"], training)
    total = len(error_taxonomy(gold, predictions))
    for key in ("by_type", "by_support", "by_length", "by_nesting", "by_few_shot"):
        table = data["tables"][key]
        first = table["columns"].index("correct")
        assert table["columns"][first : first + len(KINDS)] == list(KINDS)
        assert sum(sum(row[first : first + len(KINDS)]) for row in table["rows"]) == total
        assert sum(row[table["columns"].index("gold")] for row in table["rows"]) == number_of(gold)
        assert sum(row[table["columns"].index("predicted")] for row in table["rows"]) == number_of(predictions)
    assert [row[0] for row in data["tables"]["by_support"]["rows"]] == ["0", "1-9"]
    assert {row[0]: row[2] for row in data["tables"]["by_type"]["rows"]} == dict.fromkeys(TYPES, 0) | {"PERSON": 1}
    assert [row[0] for row in data["tables"]["by_type"]["rows"] if row[1]] == ["DISEASE"]
    matrix = data["tables"]["confusion_matrix"]
    off_diagonal = sum(
        row[column] for row in matrix["rows"] for column, name in enumerate(matrix["columns"]) if column and name != row[0]
    )
    assert off_diagonal == outcome_counts(data)["confusion"] == sum(row[2] for row in data["tables"]["confusions"]["rows"])


def test_tables_link_to_the_errors_shown(gold, tmp_path):
    predictions = replaced(gold, lambda document, entity: Entity(entity.start, entity.end, "CITY"))
    page, text, data = report(tmp_path, gold, predictions)
    for table in ("What became of the spans", "By type", "Confused pairs"):
        markup = page[page.index(f"<caption>{table}") :].split("</table>")[0]
        assert re.search(r'<a href="#error-\d+">\d+</a>', markup)
    for row in data["tables"]["confusions"]["rows"]:
        link = re.search(rf"<tr><th scope=\"row\">{row[0]}</th><td>{row[1]}</td>.*?#error-(\d+)", page)
        heading = re.search(rf'id="error-{link[1]}"><h3>(.*?)</h3>', page)[1]
        assert f"confusion: {row[0]} " in heading and f"found as {row[1]} " in heading
    assert page.count('href="#error-tables"') >= page.count('class="error"')
    assert '<a id="error-1"></a>' in text and "](#error-1)" in text


def test_gold_and_predicted_spans_are_drawn_nested_with_their_context(tmp_path):
    text = "Вчера директор школы Перми уволен."
    references = [Document("d", text, (Entity(6, 26, "PROFESSION"), Entity(15, 26, "ORGANIZATION"), Entity(21, 26, "CITY")))]
    predictions = [Document("d", text, (Entity(6, 26, "PROFESSION"), Entity(15, 20, "ORGANIZATION")))]
    page, markdown, _ = report(tmp_path, references, predictions)
    first = page[page.index('id="error-1"') :].split("</article>")[0]
    drawn_gold, drawn_guess = first.split("<dt>predicted</dt>")
    assert re.findall(r'data-type="(\w+)" style="grid-row:(\d)', drawn_gold) == [
        ("PROFESSION", "2"),
        ("ORGANIZATION", "3"),
        ("CITY", "4"),
    ]
    assert re.findall(r'data-type="(\w+)"', drawn_guess) == ["PROFESSION", "ORGANIZATION"]
    assert page.count(".rc-text{") == 1
    plain = markdown.replace("\\", "")
    assert "gold: Вчера [PROFESSION директор [ORGANIZATION школы [CITY Перми]]] уволен." in plain
    assert "predicted: Вчера [PROFESSION директор [ORGANIZATION школы] Перми] уволен." in plain


def test_inconsistent_gold_is_shown_in_a_table_and_at_the_error(tmp_path):
    references = [
        Document("a", "Спартак выиграл", (Entity(0, 7, "ORGANIZATION"),)),
        Document("b", "Спартак восстал", (Entity(0, 7, "PERSON"),)),
    ]
    training = [Document("t", "Вышел Спартак, вышел Томск", (Entity(21, 26, "CITY"),))]
    predictions = [references[0], Document("b", "", (Entity(0, 7, "ORGANIZATION"),))]
    page, _, data = report(tmp_path, references, predictions, (), training)
    assert data["tables"]["gold_inconsistencies"]["rows"] == [
        [
            "Спартак",
            "no label 1, ORGANIZATION 1, PERSON 1",
            "no label: t, 6-13; ORGANIZATION: a, 0-7; PERSON: b, 0-7",
            1,
        ]
    ]
    assert "The gold looks inconsistent: «Спартак» is no label 1, ORGANIZATION 1, PERSON 1" in page
    # Documents that are given twice count once.
    _, _, again = report(tmp_path, references, predictions, (), [*training, *references])
    assert again["tables"]["gold_inconsistencies"] == data["tables"]["gold_inconsistencies"]
    page, _, data = report(tmp_path, references[:1], predictions[:1])
    assert "gold_inconsistencies" not in data["tables"]


def test_several_systems_in_one_report(gold, tmp_path):
    missed = replaced(gold, lambda document, entity: None)
    sections = [s for name in ("Standard", "CoNER 2") for s in error_sections(gold, missed, TYPES, label=name)]
    page = write_report(tmp_path / "r", "Both", sections, {}).read_text(encoding="utf-8")
    assert 'id="Standard-error-1"' in page and 'href="#CoNER.20.2-error-1"' in page and "CoNER 2: Errors" in page


def test_passages_are_short_and_keep_what_they_show():
    text = "\n".join(["начало", "слово " * 200 + "Томск" + " слово" * 200, "конец"])
    start = text.index("Томск")
    documents = [Document("d", text, (Entity(start, start + 5, "CITY"), Entity(7, start + 300, "ORGANIZATION")))]
    outcomes = error_taxonomy(documents, [Document("d", text)])
    by_type = {outcome.gold.type: passage(text, documents[0].entities, outcome) for outcome in outcomes}
    view = by_type["CITY"]
    assert view.text.startswith("… слово") and view.text.endswith("слово …") and "\n" not in view.text
    assert len(view.text) <= 5 + 2 * CONTEXT + 4
    assert [(view.text[e.start : e.end], e.type) for e in view.entities if e.type == "CITY"] == [("Томск", "CITY")]
    assert len(by_type["ORGANIZATION"].text) <= LONGEST + 2 * CONTEXT + 4
    short = Document("d", "ab", (Entity(0, 1, "CITY"),))
    assert passage("ab", short.entities, error_taxonomy([short], [Document("d", "")])[0]) == short


def test_hostile_texts_and_types_stay_text(tmp_path):
    text = "<script>alert(1)</script> & <b>Томск\r\n\x00|`*"
    entities = (Entity(0, len(text), "<img src=x>"), Entity(26, 35, 'a"b|c'))
    references = [Document("<i>d</i>", text, entities)]
    sections = error_sections(references, [Document("<i>d</i>", text)], ["<img src=x>", 'a"b|c'])
    page = write_report(tmp_path / "r", "t", sections, {}).read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|i>|b>)", page)
    assert any(isinstance(part, Html) for section in sections for part in section.parts)


def test_documents_that_do_not_fit_are_errors(gold):
    with pytest.raises(ScoreError, match="lack document"):
        error_sections(gold, gold[1:], TYPES)
    with pytest.raises(ScoreError, match="unknown type 'CITY'"):
        error_sections(gold, gold, ["PERSON", "ORGANIZATION", "PROFESSION", "DISEASE"])
    with pytest.raises(ScoreError, match="does not lie in the text"):
        error_sections([Document(1, "ab")], [Document(1, "ab", (Entity(0, 9, "CITY"),))], TYPES)
