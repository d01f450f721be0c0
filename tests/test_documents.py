"""Readers and writers of documents: offsets, defects in strict and lenient mode, round trips."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runne_coner.documents import (
    FEATURES,
    CorpusError,
    Document,
    Entity,
    ReadReport,
    from_row,
    read_annotations,
    read_brat,
    read_documents,
    read_entity_types,
    read_runne,
    to_row,
    validate,
    write_brat,
    write_runne,
)
from runne_coner.nerel import load_documents

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_nerel = pytest.mark.skipif(not (DATA / "nerel").is_dir(), reason="the NEREL corpus is not beside the repository")
needs_runne = pytest.mark.skipif(not (DATA / "runne").is_dir(), reason="the RuNNE corpus is not beside the repository")


def brat(folder: Path, text: str, annotations: str | None, name: str = "doc") -> Path:
    """Write one brat document byte by byte."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_bytes(text.encode())
    if annotations is not None:
        (folder / f"{name}.ann").write_bytes(annotations.encode())
    return folder


def jsonl(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def mentions(document: Document) -> list[tuple[str, str]]:
    return [(document.text[start:end], name) for start, end, name in document.entities]


# --- brat: what is read ---------------------------------------------------------------------------------------------


def test_only_text_bound_lines_become_entities(tmp_path):
    annotations = (
        "T1\tPERSON 0 4\tИван\nR1\tKNOWS Arg1:T1 Arg2:T2\nN1\tReference T1 Wikidata:Q1\tИван\nA1\tNegated T1\n"
        "M1\tSure T1\nE1\tEVENT:T2 Arg:T1\n#1\tAnnotatorNotes T1\tsee\n*\tEquiv T1 T2\n\nT2\tCITY 14 20\tМоскве\n"
    )
    report = ReadReport()
    (document,) = read_brat(brat(tmp_path, "Иван живёт в  Москве", annotations), strict=True, report=report)
    assert document == Document("doc", "Иван живёт в  Москве", (Entity(0, 4, "PERSON"), Entity(14, 20, "CITY")))
    assert report.summary() == "" and not report.counts


def test_documents_are_sorted_and_may_lack_annotations(tmp_path):
    for name in ("b", "a", "a10"):
        brat(tmp_path, name, None, name)
    (tmp_path / "ners.txt").write_text("PERSON\n")
    (tmp_path / "._a.txt").write_bytes(b"\xff")
    assert [(document.id, document.text, document.entities) for document in read_brat(tmp_path)] == [
        ("a", "a", ()),
        ("a10", "a10", ()),
        ("b", "b", ()),
    ]


@pytest.mark.parametrize(
    ("text", "annotations"),
    [
        ("Ива\r\nв Москве", "T1\tCITY 7 13\tМоскве\n"),  # CR LF is two characters
        ("Ива\r\nв Москве", "T1\tCITY 6 12\tМоскве\n"),  # the text was annotated with LF
        ("\ufeffв Москве", "T1\tCITY 3 9\tМоскве\n"),  # the mark is counted
        ("\ufeffв Москве", "T1\tCITY 2 8\tМоскве\n"),  # it is not
        ("\ufeffИва\r\nв Москве", "T1\tCITY 6 12\tМоскве\r\n"),
        ("\ufeffИва\r\nв Москве", "\ufeffT1\tCITY 8 14\tМоскве\r\n"),
        ("😀🏳️‍🌈 Москве", "T1\tCITY 6 12\tМоскве\n"),  # code points, not UTF-16 units
        ("а\u2028б\x0cв\x85 Москве", "T1\tCITY 7 13\tМоскве\n"),  # other line separators count as one
        ("в Москве", "T1\tCITY 2 8\tМоскве"),  # no line end at the end
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_offsets_hit_the_mention(tmp_path, text, annotations, strict):
    report = ReadReport()
    (document,) = read_brat(brat(tmp_path, text, annotations), strict=strict, report=report)
    assert mentions(document) == [("Москве", "CITY")]
    assert not report.counts


def test_a_text_that_nothing_speaks_against_stays_untouched(tmp_path):
    (document,) = read_brat(brat(tmp_path, "\ufeffа\r\nб", ""))
    assert document.text == "\ufeffа\r\nб"


@pytest.mark.parametrize("spans", ["0 14", "0 7;8 14"])
def test_a_mention_over_a_line_break_is_one_entity(tmp_path, spans):
    folder = brat(tmp_path, "Великий\nУстюг", f"T1\tCITY {spans.replace('14', '13')}\tВеликий Устюг\n")
    (document,) = read_brat(folder, strict=True)
    assert mentions(document) == [("Великий\nУстюг", "CITY")]


# --- brat: defects --------------------------------------------------------------------------------------------------

TEXT = "Глава своей администрации Иванов"
BRAT_DEFECTS = {
    "discontinuous span": ("T2\tPROFESSION 0 5;12 25\tГлава администрации", [(0, 5), (12, 25)]),
    "discontinuous span, out of order": ("T2\tPROFESSION 12 25;0 5\tадминистрации Глава", [(12, 25), (0, 5)]),
    "entity given twice": ("T2\tPERSON 26 32\tИванов", []),
    "empty span": ("T2\tPERSON 3 3\t", []),
    "reversed offsets": ("T2\tPERSON 5 0\tГлава", []),
    "offsets outside the text": ("T2\tPERSON 26 33\tИванов!", []),
    "offsets outside the text, negative": ("T2\tPERSON -6 -1\tИвано", []),
    "misplaced span": ("T2\tPROFESSION 2 7\tГлава", [(0, 5)]),
    "misplaced span, over white space": ("T2\tPROFESSION 9 20\tГлава   своей", [(0, 11)]),
    "text that disagrees with its span": ("T2\tPROFESSION 0 5\tПетров", []),
    "text that disagrees with its span, parts": ("T2\tPROFESSION 0 5;12 25\tГлава Иванов", []),
    "unknown type": ("T2\tWIZARD 0 5\tГлава", []),
    "broken line": ("T2\tPERSON 0 5", []),
    "broken line, free text": ("Натиск на ворота", []),
    "broken line, no offsets": ("T2\tPERSON x 5\tГлава", []),
}


@pytest.mark.parametrize("name", BRAT_DEFECTS)
def test_brat_defects(tmp_path, name):
    line, repaired = BRAT_DEFECTS[name]
    reason = name.partition(",")[0]
    folder = brat(tmp_path, TEXT, f"T1\tPERSON 26 32\tИванов\n{line}\n")
    types = ["PERSON", "PROFESSION"]
    with pytest.raises(CorpusError) as error:
        list(read_brat(folder, strict=True, types=types))
    assert reason in str(error.value) and str(folder / "doc.ann") in str(error.value) and "line 2" in str(error.value)
    if "broken" not in name:
        first, last = line.split("\t")[1].split(" ")[1], line.split("\t")[1].split(" ")[-1]
        assert first in str(error.value) and last in str(error.value)

    report = ReadReport()
    (document,) = read_brat(folder, types=types, report=report)
    assert [entity[:2] for entity in document.entities] == [(26, 32), *repaired]
    assert report.counts == {reason: 1}
    assert reason in report.summary() and "doc.ann" in report.summary() and "\n" not in report.summary()


def test_a_mention_is_not_moved_out_of_sight(tmp_path):
    text = "Иванов" + " " * 40 + "Петров"
    report = ReadReport()
    (document,) = read_brat(brat(tmp_path, text, "T1\tPERSON 46 52\tИванов\n"), report=report)
    assert document.entities == () and report.counts == {"text that disagrees with its span": 1}


def test_a_mention_is_moved_to_whole_words_if_it_can_be(tmp_path):
    (document,) = read_brat(brat(tmp_path, "телефон он сказал", "T1\tPERSON 6 8\tон\n"))
    assert document.entities == (Entity(8, 10, "PERSON"),)
    (document,) = read_brat(brat(tmp_path, "телефон она сказала", "T1\tPERSON 6 8\tон\n"))
    assert document.entities == (Entity(5, 7, "PERSON"),)


def test_annotations_without_a_text(tmp_path):
    folder = brat(tmp_path, "а", None)
    (folder / "lost.ann").write_text("")
    with pytest.raises(CorpusError, match="lost.ann"):
        list(read_brat(folder, strict=True))
    report = ReadReport()
    assert len(list(read_brat(folder, report=report))) == 1 and report.counts == {"annotations without a text": 1}


@pytest.mark.parametrize("file", ["doc.txt", "doc.ann"])
def test_a_file_that_is_not_utf8_is_named(tmp_path, file):
    folder = brat(tmp_path, "а", "")
    (folder / file).write_bytes("Москва".encode("cp1251"))
    with pytest.raises(CorpusError, match=rf"{file}.*UTF-8.*byte 0"):
        list(read_brat(folder))


def test_a_file_with_a_name_that_is_not_utf8_is_named(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for suffix in (b".txt", b".ann"):
        with open(os.fsencode(folder) + b"/" + "док".encode("cp1251") + suffix, "wb") as file:
            file.write("Мэр".encode() if suffix == b".txt" else b"")
    for read in (read_documents, partial(load_documents, cache_dir=tmp_path / "cache")):
        with pytest.raises(CorpusError, match=r"corpus/\\udce4\\udcee\\udcea\.txt': the file's name is not UTF-8; rename it"):
            read(folder)


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    # Longer than what is read at once.
    path = jsonl(tmp_path / "a.jsonl", *({"id": number, "sentences": "Москва"} for number in range(3000)))
    with path.open("ab") as file:
        file.write('{"id": "last", "sentences": "Пермь"}\n'.encode("cp1251"))
    with pytest.raises(CorpusError, match=rf"{path}, line 3001: is not UTF-8 .*at byte 29"):
        list(read_runne(path))


# --- RuNNE ----------------------------------------------------------------------------------------------------------


def test_runne_ends_are_inclusive_and_ids_stay(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"id": 7, "sentences": "Иван в Москве", "ners": [[0, 3, "PERSON"], [7, 12, "CITY"]]},
        "",
        {"id": "x", "sentences": "😀 Иван\u2028", "ners": [[2, 5, "PERSON"]], "more": 1},
        {"id": 8, "sentences": ""},
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").replace(b"\\u2028", b"\xe2\x80\xa8"))
    first, second, third = read_runne(path, strict=True)
    assert first.id == 7 and mentions(first) == [("Иван", "PERSON"), ("Москве", "CITY")]
    assert second.id == "x" and mentions(second) == [("Иван", "PERSON")] and second.text.endswith("\u2028")
    assert third == Document(8, "")


GOOD = {"id": 1, "sentences": "Иван", "ners": [[0, 3, "PERSON"]]}


def ners(*items):
    return {"id": 2, "sentences": "Анна", "ners": list(items)}


RUNNE_DEFECTS = {
    "entity given twice": (ners([0, 3, "PERSON"], [0, 3, "PERSON"]), 1),
    "empty span": (ners([2, 1, "PERSON"]), 0),
    "reversed offsets": (ners([3, 0, "PERSON"]), 0),
    "offsets outside the text": (ners([0, 4, "PERSON"]), 0),
    "offsets outside the text, negative": (ners([-1, 2, "PERSON"]), 0),
    "unknown type": (ners([0, 3, "WIZARD"]), 0),
    "broken entity, two items": (ners([0, 3]), 0),
    "broken entity, no list": (ners("PERSON"), 0),
    "broken entity, type": (ners([0, 3, None]), 0),
    "broken entity, unhashable": (ners([0, 3, []]), 0),
    "broken entity, boolean": (ners([False, 3, "PERSON"]), 0),
    "broken entity, float": (ners([0, 3.0, "PERSON"]), 0),
    "broken line": ('{"id": 2', None),
    "broken line, too deep": ("[" * 100_000, None),
    "broken line, half a character": ('{"id": 2, "sentences": "\\ud83d"}', None),
    "unusable document, list": ([1], None),
    "unusable document, no id": ({"sentences": "Анна"}, None),
    "unusable document, no text": ({"id": 2, "ners": []}, None),
    "unusable document, id": ({"id": True, "sentences": "Анна"}, None),
    "unusable document, text": ({"id": 2, "sentences": ["Анна"]}, None),
    "unusable document, ners": ({"id": 2, "sentences": "Анна", "ners": {}}, None),
    "id given twice": ({"id": "1", "sentences": "Анна"}, None),
}


@pytest.mark.parametrize("name", RUNNE_DEFECTS)
def test_runne_defects(tmp_path, name):
    line, kept = RUNNE_DEFECTS[name]
    reason = name.partition(",")[0]
    path = jsonl(tmp_path / "a.jsonl", GOOD, line)
    with pytest.raises(CorpusError) as error:
        list(read_runne(path, strict=True, types=["PERSON"]))
    assert reason in str(error.value) and f"{path}, line 2" in str(error.value)

    report = ReadReport()
    documents = list(read_runne(path, strict=False, types=["PERSON"], report=report))
    assert report.counts == {reason: 1}
    assert documents[0] == Document(1, "Иван", (Entity(0, 4, "PERSON"),))
    assert [len(document.entities) for document in documents[1:]] == ([] if kept is None else [kept])


def test_by_default_only_an_entity_given_twice_passes(tmp_path):
    report = ReadReport()
    (document,) = read_runne(jsonl(tmp_path / "a.jsonl", RUNNE_DEFECTS["entity given twice"][0]), report=report)
    assert document.entities == (Entity(0, 4, "PERSON"),) and report.counts == {"entity given twice": 1}
    with pytest.raises(CorpusError, match="empty span"):
        list(read_runne(jsonl(tmp_path / "b.jsonl", RUNNE_DEFECTS["empty span"][0])))


def test_answers_are_joined_by_id(tmp_path):
    path = jsonl(tmp_path / "test.jsonl", {"id": 1, "sentences": "Иван"}, {"id": 2, "sentences": "Анна"})
    answers = jsonl(tmp_path / "answers.jsonl", {"id": "2", "ners": [[0, 3, "PERSON"]]}, {"id": 1, "ners": []})
    assert [mentions(document) for document in read_runne(path, answers=answers)] == [[], [("Анна", "PERSON")]]

    jsonl(answers, {"id": 2, "ners": [[0, 9, "PERSON"]]}, {"id": 1, "ners": []})
    with pytest.raises(CorpusError, match=r"answers.jsonl, line 1, document 2: offsets outside"):
        list(read_runne(path, answers=answers))


def test_answers_that_do_not_match(tmp_path):
    path = jsonl(tmp_path / "test.jsonl", {"id": 1, "sentences": "Иван"})
    answers = jsonl(tmp_path / "answers.jsonl", {"id": 2, "ners": []})
    with pytest.raises(CorpusError, match=r"test.jsonl, line 1, document 1: document without an answer"):
        list(read_runne(path, answers=answers))
    report = ReadReport()
    assert list(read_runne(path, answers=answers, strict=False, report=report)) == [Document(1, "Иван")]
    assert report.counts == {"document without an answer": 1, "answer without a document": 1}


def test_annotations_for_scoring_need_no_text(tmp_path):
    path = jsonl(tmp_path / "p.jsonl", {"id": 5, "ners": [[90, 93, "PERSON"], [90, 93, "PERSON"]]}, {"id": "a"})
    assert read_annotations(path) == [Document(5, "", (Entity(90, 94, "PERSON"),)), Document("a", "")]
    with pytest.raises(CorpusError, match=rf"{path}, line 3, document '5': id given twice: it is also on line 1"):
        read_annotations(jsonl(path, *path.read_text().splitlines(), {"id": "5", "ners": []}))
    with pytest.raises(CorpusError, match="offsets outside the text"):
        read_annotations(jsonl(path, {"id": 5, "sentences": "", "ners": [[0, 0, "PERSON"]]}))
    with pytest.raises(CorpusError, match="unknown type"):
        read_annotations(jsonl(path, {"id": 5, "ners": [[0, 0, "WIZARD"]]}), types=["PERSON"])


# --- Writers --------------------------------------------------------------------------------------------------------

# Line ends, marks, astral and zero-width characters and the separators that str.splitlines would cut at.
ALPHABET = st.sampled_from(list('аБ 1.\t\r\n\\"<') + ["\r\n", "\ufeff", "😀", "\u2028", "\x85", "\x0c", "\u200b", "\x00"])
TEXTS = st.lists(ALPHABET, max_size=30).map("".join)


@st.composite
def documents(draw, ids):
    text = draw(TEXTS)
    spans = st.tuples(st.integers(0, len(text)), st.integers(0, len(text)), st.sampled_from(["PERSON", "CITY", "ДАТА"]))
    entities = {Entity(min(a, b), max(a, b), name) for a, b, name in draw(st.lists(spans, max_size=6)) if a != b}
    return Document(draw(ids), text, tuple(sorted(entities, key=lambda entity: (entity[0], -entity[1], entity[2]))))


NUMBERS_AND_NAMES = st.one_of(st.integers(-5, 10**6), st.text(st.characters(codec="utf-8"), max_size=8))
FILE_NAMES = st.text("абXY_-019", min_size=1, max_size=6)
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


@ONE_FOLDER
@given(st.lists(documents(NUMBERS_AND_NAMES), max_size=5, unique_by=lambda document: str(document.id)))
def test_runne_round_trip(tmp_path, given_documents):
    write_runne(given_documents, tmp_path / "a.jsonl")
    assert list(read_runne(tmp_path / "a.jsonl", strict=True)) == given_documents
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@ONE_FOLDER
@given(st.lists(documents(FILE_NAMES), min_size=1, max_size=5, unique_by=lambda document: str(document.id)))
def test_brat_round_trip(tmp_path_factory, given_documents):
    folder = tmp_path_factory.mktemp("brat") / "new"
    write_brat(given_documents, folder)
    assert list(read_brat(folder, strict=True)) == sorted(given_documents, key=lambda document: document.id + ".txt")
    for document in given_documents:
        assert (folder / f"{document.id}.txt").read_bytes() == document.text.encode()
    assert [path.name for path in folder.parent.iterdir()] == ["new"]


def test_runne_format(tmp_path):
    entities = (Entity(5, 6, "B"), Entity(0, 2, "B"), Entity(0, 4, "Z"), Entity(0, 4, "A"), Entity(0, 2, "B"))
    write_runne([Document(3, "Иван 😀", entities)], tmp_path / "a.jsonl")
    expected = '{"id": 3, "sentences": "Иван 😀", "ners": [[0, 3, "A"], [0, 3, "Z"], [0, 1, "B"], [5, 5, "B"]]}\n'
    assert (tmp_path / "a.jsonl").read_bytes() == expected.encode()


def test_brat_format(tmp_path):
    write_brat([Document(3, "а\r\nб в", (Entity(0, 4, "A"), Entity(5, 6, "B")))], tmp_path / "new")
    assert (tmp_path / "new" / "3.ann").read_bytes() == "T1\tA 0 4\tа  б\nT2\tB 5 6\tв\n".encode()


@pytest.mark.parametrize("write", [write_runne, write_brat])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Document("b", "аб", (Entity(1, 1, "A"),)), "empty span"),
        (Document("b", "аб", (Entity(1, 3, "A"),)), "outside the text"),
        (Document("b", "\ud83d"), "not valid Unicode"),
        (Document("a", "аб"), "given twice"),
    ],
)
def test_a_failed_write_leaves_nothing_behind(tmp_path, write, bad, message):
    with pytest.raises(CorpusError, match=message):
        write([Document("a", "аб"), bad], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    write_runne([Document(1, "а")], path)
    before = path.read_bytes()
    with pytest.raises(CorpusError):
        write_runne([Document(2, "б"), Document("2", "в")], path)
    assert path.read_bytes() == before


def test_standard_output_is_not_replaced(tmp_path):
    program = (
        "import sys; from runne_coner.documents import *\nprint('before', flush=True)\n"
        "write_runne([Document(1, 'a')], '/dev/stdout')\nprint('after')"
    )
    with open(tmp_path / "out", "a") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True, cwd=Path(__file__).parents[1])
    assert (tmp_path / "out").read_text().split("\n")[::2] == ["before", "after"]
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert piped.stdout.split("\n")[1] == '{"id": 1, "sentences": "a", "ners": []}'


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no file system below /dev")
def test_a_file_below_dev_is_replaced_as_any_other(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "a.jsonl"
        for name in ("б", "в"):
            write_runne([Document(1, name)], path)
        assert [document.text for document in read_documents(path)] == ["в"] and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", ".a", "a\n", "x" * 300, "a:b", "\ud800", "ners"])
def test_ids_that_are_no_file_names(tmp_path, name):
    with pytest.raises(CorpusError, match="cannot be a file name"):
        write_brat([Document(name, "а")], tmp_path / "new")


def test_brat_is_written_to_a_new_folder_only(tmp_path):
    brat(tmp_path, "а", "")
    with pytest.raises(CorpusError, match="not an empty folder"):
        write_brat([Document("a", "а")], tmp_path)
    with pytest.raises(CorpusError, match="white space"):
        write_brat([Document("a", "а", (Entity(0, 1, "A B"),))], tmp_path / "new")


# --- The rest -------------------------------------------------------------------------------------------------------


def test_read_documents_takes_each_format(tmp_path, caplog):
    folder = brat(tmp_path / "brat", TEXT, BRAT_DEFECTS["discontinuous span"][0] + "\nNonsense\n")
    (folder / "plain.txt").write_text("Иван", "utf-8")
    with caplog.at_level(logging.WARNING, "runne_coner.documents"):
        assert [document.id for document in read_documents(folder)] == ["doc", "plain"]
    (record,) = caplog.records
    assert "1 x discontinuous span" in record.message and "1 x broken line" in record.message
    assert read_documents(folder / "plain.txt") == [Document("plain", "Иван")]
    assert len(read_documents(folder / "doc.txt")[0].entities) == 2
    with pytest.raises(CorpusError, match="doc.ann, line 2"):
        read_documents(folder, strict=True)
    assert read_documents(jsonl(tmp_path / "a.jsonl", GOOD))[0].id == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "no such file or folder"), ("a.csv", r"\.jsonl.*brat.*\.txt"), ("empty", "no .txt file")],
)
def test_read_documents_says_what_is_missing(tmp_path, name, message):
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=message):
        read_documents(tmp_path / name)


def test_entity_types(tmp_path):
    conf = (
        "# a comment\n[entities]\n\nAGE\n!Thing\n\tPERSON\t<NORM>:Wikidata\n\t\tACTOR\n-----\n<X>=AGE|CITY\nAGE\n"
        "[relations]\nKNOWS\tArg1:PERSON, Arg2:PERSON\n"
    )
    (tmp_path / "annotation.conf").write_bytes(conf.replace("\n", "\r\n").encode())
    assert read_entity_types(tmp_path) == ["AGE", "PERSON", "ACTOR"]
    (tmp_path / "ners.txt").write_text("\ufeffB\nA\n\nB\n", "utf-8")
    assert read_entity_types(tmp_path) == ["B", "A"]
    assert read_entity_types(tmp_path / "annotation.conf") == ["AGE", "PERSON", "ACTOR"]
    (tmp_path / "ners.txt").write_text("\n")
    for path in (tmp_path / "ners.txt", tmp_path / "none", tmp_path / "ners.txt" / "x"):
        with pytest.raises(CorpusError, match=str(path)):
            read_entity_types(path)


def test_validate_and_rows():
    document = Document(1, "Иван", (Entity(0, 4, "PERSON"), Entity(0, 9, "PERSON")))
    with pytest.raises(CorpusError, match=r"document 1: offsets outside the text: PERSON at \[0, 9\)"):
        validate(document)
    sound = validate(document, strict=False)
    assert sound.entities == document.entities[:1] and sound.id == 1
    row = to_row(sound)
    assert FEATURES.encode_example(row) == row
    assert from_row(row) == Document("1", "Иван", sound.entities)


@needs_runne
def test_runne_train():
    report = ReadReport()
    corpus = list(read_runne(DATA / "runne" / "train.jsonl", report=report))
    raw = [json.loads(line) for line in (DATA / "runne" / "train.jsonl").read_text("utf-8").split("\n") if line]
    assert len(corpus) == 461 and report.counts.keys() == {"entity given twice"}
    for document, original in zip(corpus, raw, strict=True):
        assert document.id == original["id"] and type(document.id) is int
        assert {(start, end - 1, name) for start, end, name in document.entities} == set(map(tuple, original["ners"]))


@needs_nerel
@pytest.mark.parametrize(("split", "count"), [("train", 746), ("dev", 94)])
def test_nerel_mentions_are_their_text(split, count):
    """Every continuous mention of the .ann files, read here by other means, is an entity with exactly its text."""
    corpus = list(read_brat(DATA / "nerel" / split))
    assert len(corpus) == count
    for document in corpus:
        found = {(start, end, name): document.text[start:end].split() for start, end, name in document.entities}
        for line in (DATA / "nerel" / split / f"{document.id}.ann").read_text("utf-8").split("\n"):
            if line.startswith("T") and ";" not in (fields := line.split("\t"))[1]:
                name, start, end = fields[1].split()
                assert found[int(start), int(end), name] == fields[2].split()


@needs_nerel
@needs_runne
def test_discontinuous_spans_become_what_they_are_in_runne():
    """RuNNE took documents from NEREL: both readers give the same entities, but for a handful corrected in between."""
    runne = {document.text.strip(): document for document in read_runne(DATA / "runne" / "train.jsonl")}
    shared = missing = extra = 0
    for document in read_brat(DATA / "nerel" / "train"):
        if other := runne.get(document.text.strip()):
            shift = other.text.index(document.text.strip()) - document.text.index(document.text.strip())
            ours = {(start + shift, end + shift, name) for start, end, name in document.entities}
            shared += len(ours & set(other.entities))
            missing += len(set(other.entities) - ours)
            extra += len(ours - set(other.entities))
    assert shared > 20_000 and missing + extra < shared / 500
