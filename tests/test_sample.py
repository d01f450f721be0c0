"""The bundled sample is what its generator writes, and has the properties the demo and the tests rely on."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import razdel

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "runne_coner" / "data" / "sample"
GENERATOR = ROOT / "recipes" / "sample" / "generate.py"
FILES = ("train.jsonl", "test.jsonl", "ners.txt")
PARTS = ("train", "test")
FEW_SHOT = ("DISEASE", "PENALTY", "WORK_OF_ART")
TYPES = """AGE AWARD CITY COUNTRY CRIME DATE DISEASE DISTRICT EVENT FACILITY FAMILY IDEOLOGY LANGUAGE LAW LOCATION MONEY
NATIONALITY NUMBER ORDINAL ORGANIZATION PENALTY PERCENT PERSON PRODUCT PROFESSION RELIGION STATE_OR_PROVINCE TIME
WORK_OF_ART""".split()


def read(part):
    return [json.loads(line) for line in (SAMPLE / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus():
    return {part: read(part) for part in PARTS}


def mentions(documents):
    return Counter(label for document in documents for _, _, label in document["ners"])


def pairs(document):
    """Ordered pairs of different entities of one document."""
    ners = [tuple(ner) for ner in document["ners"]]
    return [(a, b) for a in ners for b in ners if a != b]


def sentences(documents):
    lines = [line for document in documents for line in document["sentences"].splitlines() if line]
    return {sentence.text for line in lines for sentence in razdel.sentenize(line)} | set(lines)


def generate(output, *arguments, **environment):
    command = [sys.executable, str(GENERATOR), "--output", str(output), *arguments]
    subprocess.run(command, check=True, capture_output=True, env=environment or None)


def test_files_are_what_the_generator_writes(tmp_path):
    for hash_seed in ("0", "7"):
        generate(tmp_path, PYTHONHASHSEED=hash_seed)
        for name in FILES:
            assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_another_seed_gives_other_documents(tmp_path):
    generate(tmp_path, "--seed", "1")
    assert (tmp_path / "train.jsonl").read_bytes() != (SAMPLE / "train.jsonl").read_bytes()
    assert (tmp_path / "ners.txt").read_bytes() == (SAMPLE / "ners.txt").read_bytes()


def test_size_and_counts(corpus):
    assert sum((SAMPLE / name).stat().st_size for name in FILES) < 1_000_000
    assert len(corpus["train"]) == 400
    assert len(corpus["test"]) == 100
    identifiers = [document["id"] for documents in corpus.values() for document in documents]
    assert len(set(identifiers)) == len(identifiers)
    # Demo and tests train on it with two cores.
    assert sum(len(document["sentences"].split()) for document in corpus["train"]) < 23_000


def test_types(corpus):
    assert (SAMPLE / "ners.txt").read_text(encoding="utf-8").split() == TYPES == sorted(TYPES)
    for part in PARTS:
        assert set(mentions(corpus[part])) == set(TYPES)
    train, test = mentions(corpus["train"]), mentions(corpus["test"])
    for label in FEW_SHOT:
        assert 12 <= train[label] <= 20
        assert test[label] >= 10
    assert min(count for label, count in train.items() if label not in FEW_SHOT) >= 30


@pytest.mark.parametrize("part", PARTS)
def test_entities(corpus, part):
    for document in corpus[part]:
        text, ners = document["sentences"], document["ners"]
        assert ners == sorted(ners, key=lambda ner: (ner[0], -ner[1], ner[2]))
        assert len({tuple(ner) for ner in ners}) == len(ners)
        words = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
        starts, ends = {start for start, _ in words}, {end for _, end in words}
        for first, last, _ in ners:
            assert 0 <= first <= last < len(text)
            assert first in starts and last + 1 in ends, text[first : last + 1]


@pytest.mark.parametrize("part", PARTS)
def test_nesting(corpus, part):
    inner = {(d["id"], b) for d in corpus[part] for a, b in pairs(d) if a[0] <= b[0] and b[1] <= a[1] and a[2] == b[2]}
    share = len(inner) / mentions(corpus[part]).total()
    assert 0.05 <= share <= 0.12
    assert {b[2] for _, b in inner} >= {"EVENT", "FACILITY", "LAW", "ORGANIZATION", "PROFESSION"}
    everything = [pair for document in corpus[part] for pair in pairs(document)]
    assert any(a[:2] == b[:2] for a, b in everything), "one span with two types"
    assert not any(a[0] < b[0] <= a[1] < b[1] for a, b in everything), "crossing entities"


@pytest.mark.parametrize("part", PARTS)
def test_same_type_reaches_depth_three(corpus, part):
    def depth(ner, ners):
        outer = [o for o in ners if o != ner and o[2] == ner[2] and o[0] <= ner[0] and ner[1] <= o[1]]
        return 1 + len(outer)

    assert max(depth(ner, document["ners"]) for document in corpus[part] for ner in document["ners"]) == 3


@pytest.mark.parametrize("part", PARTS)
def test_adjacent_entities_of_one_type(corpus, part):
    adjacent = Counter(
        a[2]
        for document in corpus[part]
        for a, b in pairs(document)
        if a[2] == b[2] and a[1] + 2 == b[0] and document["sentences"][a[1] + 1] == " "
    )
    assert adjacent["PERSON"] >= 5


def test_held_out_part_is_new(corpus):
    assert not sentences(corpus["train"]) & sentences(corpus["test"])
    names = {
        part: {d["sentences"][a : b + 1] for d in corpus[part] for a, b, label in d["ners"] if label == "CITY"}
        for part in PARTS
    }
    assert names["test"] - names["train"]


@pytest.mark.parametrize("part", PARTS)
def test_text_has_no_leftovers_of_templates(corpus, part):
    for document in corpus[part]:
        text = document["sentences"]
        assert not re.search(r"[{}\[\]~|?_#]| {2}| [,.:»]|«\s|\bв [Фф][^аеиоуяю]", text), text
        assert all(line[0].isupper() or line[0] in "«0123456789" for line in text.splitlines() if line)
