"""Files of columns: tags to spans in every scheme, documents, splits, and defects with their lines."""

import os

import pytest

from runne_coner.checks import CorpusError, ReadReport
from runne_coner.conll import read_conll
from runne_coner.documents import read_documents
from runne_coner.nerel import find_splits, load_documents, load_entity_types


@pytest.fixture
def write(tmp_path):
    def write(content, name="some.conll"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="")
        return path

    return write


def surfaces(document):
    return [(document.text[start:end], kind) for start, end, kind in document.entities]


WORDS = ["Анна", "Мэй", "Иван", "едет", "в", "Томск"]
EXPECTED = [("Анна Мэй", "PER"), ("Иван", "PER"), ("Томск", "LOC")]
SCHEMES = {
    "BIO": ["B-PER", "I-PER", "B-PER", "O", "O", "B-LOC"],
    "IOB1": ["I-PER", "I-PER", "B-PER", "O", "O", "I-LOC"],
    "BIOES": ["B-PER", "E-PER", "S-PER", "O", "O", "S-LOC"],
    "BILOU": ["B-PER", "L-PER", "U-PER", "O", "O", "U-LOC"],
}


@pytest.mark.parametrize("columns", ["{}\t{}", "{} {}", "{} NN x {}", "{}\tNN\t{}"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes(scheme, columns, write):
    lines = [columns.format(word, tag) for word, tag in zip(WORDS, SCHEMES[scheme], strict=True)]
    (document,) = read_conll(write("\n".join(lines)))
    assert document.text == " ".join(WORDS) and document.id == "some-1"
    assert surfaces(document) == EXPECTED


def test_a_tab_in_a_comment_separates_nothing(write):
    (document,) = read_conll(write("# made\tby hand\n-DOCSTART-\t-X- O\nA B-X\nB I-X\n"))
    assert surfaces(document) == [("A B", "X")]


@pytest.mark.parametrize("separator", ["\t", " "])
def test_no_break_spaces_around_tokens_belong_to_them(write, separator):
    (document,) = read_conll(write(f"\u00a0x{separator}B-X\n10\u00a0000\u2009{separator}I-X\n\u00a0{separator}O \r\n"))
    assert document.text == "\u00a0x 10\u00a0000\u2009 \u00a0" and surfaces(document) == [("x 10\u00a0000", "X")]


@pytest.mark.parametrize("content", ["A\tB-X\rB\tI-X\r\rC\tO\r", "A B-X\rB I-X\r", "-DOCSTART- O\r\rA B-X\r"])
def test_lone_carriage_returns_are_a_defect(write, content):
    path = write(content)
    with pytest.raises(CorpusError, match="line 1: broken line: a CR that no LF follows") as error:
        list(read_conll(path))
    assert "\r" not in str(error.value)
    report = ReadReport()
    assert list(read_conll(path, strict=False, report=report)) == [] and report.counts == {"broken line": 1}


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    path = os.fsencode(tmp_path) + b"/" + "док.conll".encode("cp1251")
    with open(path, "wb") as file:
        file.write(b"A O\n")
    with pytest.raises(CorpusError, match=r"\\udce4\\udcee\\udcea\.conll': the file's name is not UTF-8"):
        list(read_conll(os.fsdecode(path)))


def test_neighbours_and_changes_of_type(write):
    tags = "A B-X\nB I-Y\nC E-Y\nD I-Y\nE S-Z\nF I-Z\n\nG I-Z"
    documents = list(read_conll(write(tags)))
    found = [surfaces(document) for document in documents]
    assert found == [[("A", "X"), ("B C", "Y"), ("D", "Y"), ("E", "Z"), ("F", "Z")], [("G", "Z")]]


def test_documents_and_sentences(write):
    content = "-DOCSTART- -X- O\r\n\r\nA B-X\r\nB O\r\n\r\n\r\nC B-Y\r\n-DOCSTART- O\r\n\r\n-DOCSTART- O\r\n\r\nD I-Y\r\n"
    documents = list(read_conll(write("\ufeff" + content)))
    assert [(document.id, document.text) for document in documents] == [("some-1", "A B\nC"), ("some-2", "D")]
    assert [surfaces(document) for document in documents] == [[("A", "X"), ("C", "Y")], [("D", "Y")]]
    # Without -DOCSTART- every sentence is a document.
    documents = list(read_conll(write("A B-X\n\n \nB O\n\n")))
    assert [document.text for document in documents] == ["A", "B"]


def test_comments_and_signs(write):
    documents = list(read_conll(write("# sent_id = 5\n# O\n#нет O\nA B-X-Y\n")))
    assert [document.text for document in documents] == ["# #нет A"] and surfaces(documents[0]) == [("A", "X-Y")]


def test_no_break_spaces_belong_to_tokens(write):
    for separator in (" ", "  ", "\t"):
        content = "около O\n10\u00a0000 B-MONEY\nрублей\u202f I-MONEY \n".replace(" ", separator)
        (document,) = read_conll(write(content), strict=True)
        assert surfaces(document) == [("10\u00a0000 рублей", "MONEY")]


def test_files_without_tokens(write):
    assert list(read_conll(write(""))) == [] == list(read_conll(write("-DOCSTART- O\n\n# note\n")))
    with pytest.raises(CorpusError, match="some.conll: no document"):
        load_documents(write("\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("A O\nB\n", r"some.conll, line 2: broken line: 'B' is not a token and its tag"),
        ("A O\n\nB X-PER\n", r"some.conll, line 3: broken line: the last column 'X-PER' is not O"),
        ("A PER\n", r"line 1: broken line: the last column 'PER'"),
        ("A B-\n", r"line 1: broken line: the last column 'B-'"),
        ("A\tO\n\tO\n", r"line 2: broken line"),
    ],
)
def test_broken_lines(content, message, write):
    for strict in (None, True):
        with pytest.raises(CorpusError, match=message):
            list(read_conll(write(content), strict=strict))
    report = ReadReport()
    documents = list(read_conll(write(content), strict=False, report=report))
    assert report.counts == {"broken line": 1}
    assert [document.text for document in documents] == (["A"] if content.startswith(("A O", "A\tO")) else [])


def test_entities_without_a_beginning(write):
    path = write("A O\nB I-X\nC I-X\n")
    with pytest.raises(CorpusError, match=r"line 2, document 'some-1': entity without a beginning: I-X at 'B'.*strict=False"):
        list(read_conll(path, strict=True))
    for strict in (None, False):
        report = ReadReport()
        (document,) = read_conll(path, strict=strict, report=report)
        assert surfaces(document) == [("B C", "X")] and report.counts == {"entity without a beginning": 1}


def test_unknown_types(write):
    path = write("A B-X\nB B-Y\n")
    with pytest.raises(CorpusError, match=r"line 2, document 'some-1': unknown type: Y"):
        list(read_conll(path, types=["X"]))
    (document,) = read_conll(path, types=["X"], strict=False)
    assert surfaces(document) == [("A", "X")]


def test_not_utf8(tmp_path):
    (tmp_path / "a.bio").write_bytes("Ж O".encode("cp1251"))
    with pytest.raises(CorpusError, match="a.bio: is not UTF-8"):
        list(read_conll(tmp_path / "a.bio"))


@pytest.mark.parametrize("suffix", [".conll", ".bio", ".tsv"])
def test_through_the_loaders(suffix, write, tmp_path):
    write("A B-X\n\nB O\n", f"corpus/train{suffix}")
    write("C B-Y\n", f"corpus/dev{suffix}")
    write("note", "corpus/README.txt")
    folder = tmp_path / "corpus"
    corpus = load_documents(folder, cache_dir=tmp_path / "cache")
    assert {split: rows["text"][:] for split, rows in corpus.items()} == {"train": ["A", "B"], "dev": ["C"]}
    assert corpus["train"][0]["entities"] == [{"start": 0, "end": 1, "type": "X"}]
    assert load_entity_types(folder, corpus) == ["X", "Y"]
    assert list(load_documents(folder / f"dev{suffix}", cache_dir=tmp_path / "cache")) == ["dev"]
    assert [document.text for document in read_documents(folder / f"train{suffix}")] == ["A", "B"]


def test_two_files_of_one_split(write, tmp_path):
    write("A O\n", "corpus/train.bio")
    write("A O\n", "corpus/train.conll")
    with pytest.raises(CorpusError, match="train.conll: train.bio is the split 'train' as well"):
        find_splits(tmp_path / "corpus")


def test_tables_beside_brat_files_are_no_corpus(write, tmp_path):
    write("A", "corpus/a.txt")
    write("", "corpus/a.ann")
    write("x\ty\n", "corpus/statistics.tsv")
    assert find_splits(tmp_path / "corpus")["train"].path == tmp_path / "corpus"
