"""The datasets builder and `load_documents`: splits, downloads from a local server, caches, entity types."""

import functools
import http.server
import json
import logging
import os
import threading
import zipfile
from pathlib import Path

import datasets
import pytest

from runne_coner import nerel
from runne_coner.documents import FEATURES, CorpusError, Document, Entity, read_entity_types, write_brat, write_runne
from runne_coner.nerel import (
    FEW_SHOT_TYPES,
    NEREL_TYPES,
    SOURCES,
    NerelBuilder,
    find_splits,
    load_documents,
    load_entity_types,
)

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_nerel = pytest.mark.skipif(not (DATA / "nerel").is_dir(), reason="the NEREL corpus is not beside the repository")
needs_runne = pytest.mark.skipif(not (DATA / "runne").is_dir(), reason="the RuNNE corpus is not beside the repository")

IVAN = Document(1, "Иван в Москве", (Entity(0, 4, "PERSON"), Entity(7, 13, "CITY")))
ANNA = Document(2, "Анна 😀", (Entity(0, 4, "PERSON"),))
IVAN_ROW = {
    "id": "1",
    "text": "Иван в Москве",
    "entities": [{"start": 0, "end": 4, "type": "PERSON"}, {"start": 7, "end": 13, "type": "CITY"}],
}


@pytest.fixture
def load(tmp_path):
    """`load_documents` with a cache of the test's own."""
    return functools.partial(load_documents, cache_dir=tmp_path / "cache")


@pytest.fixture
def brat_corpus(tmp_path):
    """train, dev and test as brat folders below one with the list of types."""
    root = tmp_path / "brat"
    write_brat([IVAN], root / "train")
    write_brat([ANNA], root / "dev")
    write_brat([ANNA, IVAN], root / "test")
    (root / "annotation.conf").write_text("[entities]\nPERSON\nCITY\n")
    return root


@pytest.fixture
def jsonl_corpus(tmp_path):
    """The files of RuNNE's public_data."""
    root = tmp_path / "public_data"
    root.mkdir()
    write_runne([IVAN], root / "train.jsonl")
    (root / "dev.jsonl").write_text('{"id": 2, "sentences": "Анна"}\n', "utf-8")
    (root / "test.jsonl").write_text('{"id": 2, "sentences": "Анна"}\n{"id": 1, "sentences": "Иван"}\n', "utf-8")
    answers = [{"id": 1, "ners": [[0, 3, "PERSON"]]}, {"id": 2, "ners": []}]
    (root / "test_with_answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    (root / "ners.txt").write_text("CITY\nPERSON\n")
    return root


@pytest.fixture
def serve(tmp_path):
    """Serve zip archives shaped like GitHub's from localhost: `serve(name, corpus)` gives the address."""
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def publish(name, corpus, folder=None):
        source = SOURCES[name]
        top = f"{source.repository.split('/')[1]}-{source.commit}"
        with zipfile.ZipFile(served / f"{name}.zip", "w") as archive:
            archive.writestr(f"{top}/README.md", "a corpus")
            archive.writestr(f"{top}/NEREL-v1.0/train/old.txt", "an older version")
            for path in sorted(corpus.rglob("*")):
                if path.is_file():
                    archive.write(path, f"{top}/{folder or source.folder}/{path.relative_to(corpus)}")
        return f"http://127.0.0.1:{server.server_address[1]}/{name}.zip"

    yield publish
    server.shutdown()
    server.server_close()


# --- Local corpora --------------------------------------------------------------------------------------------------


def test_folder_of_brat_folders(load, brat_corpus):
    corpus = load(brat_corpus)
    assert isinstance(corpus, datasets.DatasetDict)
    assert {name: split.num_rows for name, split in corpus.items()} == {"train": 1, "dev": 1, "test": 2}
    assert list(corpus) == ["train", "dev", "test"]
    assert corpus["train"].features == FEATURES
    assert corpus["train"][0] == IVAN_ROW
    assert corpus["test"]["id"][:] == ["1", "2"]


def test_folder_of_jsonl_files_with_answers_apart(load, jsonl_corpus):
    corpus = load(jsonl_corpus)
    assert list(corpus) == ["train", "dev", "test"]
    assert corpus["train"][0] == IVAN_ROW
    assert corpus["dev"]["entities"][:] == [[]]
    assert corpus["test"]["entities"][:] == [[], [{"start": 0, "end": 4, "type": "PERSON"}]]


def test_single_files_and_flat_folders(load, brat_corpus, jsonl_corpus, tmp_path):
    assert list(load(brat_corpus / "dev")) == ["train"]
    assert list(load(jsonl_corpus / "dev.jsonl")) == ["dev"]
    write_runne([IVAN], tmp_path / "mine.jsonl")
    assert load(tmp_path / "mine.jsonl")["train"][0] == IVAN_ROW


def test_checkouts_of_the_public_repositories(brat_corpus, jsonl_corpus, tmp_path):
    for corpus, folder in ((brat_corpus, "NEREL-v1.1"), (jsonl_corpus, "public_data")):
        checkout = tmp_path / f"checkout of {folder}"
        checkout.mkdir()
        corpus.rename(checkout / folder)
        (checkout / folder / "LICENSE.txt").write_text("free")
        for path in (checkout, checkout / folder):
            assert list(find_splits(path)) == ["train", "dev", "test"]


def test_split_is_a_name_or_a_list(load, brat_corpus):
    assert list(load(brat_corpus, "dev")) == ["dev"]
    assert list(load(brat_corpus, ["test", "train"])) == ["test", "train"]
    with pytest.raises(CorpusError, match="no split 'valid'. There are train, dev, test"):
        load(brat_corpus, "valid")


@pytest.mark.parametrize("name", ["none", "empty", "a.csv"])
def test_what_is_no_corpus_is_named(load, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(CorpusError, match=f"{tmp_path / name}"):
        load(tmp_path / name)


@pytest.mark.parametrize("content", ["", "\n"])
def test_a_file_without_documents(load, tmp_path, content):
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(CorpusError, match=r"train.jsonl: no document"):
        load(tmp_path / "train.jsonl")


def test_a_name_that_cannot_be_a_split(load, tmp_path):
    write_runne([IVAN], tmp_path / "my-data.jsonl")
    with pytest.raises(CorpusError, match=r"my-data.jsonl: 'my-data' cannot name a split"):
        load(tmp_path)


# --- Strictness -----------------------------------------------------------------------------------------------------


def test_one_summary_also_from_the_cache(load, brat_corpus, caplog):
    for split in ("train", "dev"):
        with open(brat_corpus / split / f"{1 if split == 'train' else 2}.ann", "a") as file:
            file.write("nonsense\n")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "runne_coner.documents"):
            load(brat_corpus)
        (record,) = [record for record in caplog.records if record.name == "runne_coner.documents"]
        assert "2 x broken line" in record.message
    with pytest.raises(CorpusError, match=r"1.ann, line 3, document '1': broken line"):
        load(brat_corpus, strict=True)
    with pytest.raises(CorpusError):  # not cached by the failure before, either
        load(brat_corpus, strict=True)


def test_strictness_and_types_do_not_share_a_cache(load, jsonl_corpus):
    path = jsonl_corpus / "train.jsonl"
    with pytest.raises(CorpusError, match="unknown type"):
        load(path, types=["PERSON"])
    lenient = load(path, types=["PERSON"], strict=False)
    assert [entity["type"] for entity in lenient["train"][0]["entities"]] == ["PERSON"]
    assert len(load(path)["train"][0]["entities"]) == 2


# --- The cache ------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_read_again(load, tmp_path):
    path = tmp_path / "train.jsonl"
    write_runne([IVAN], path)
    stamp = path.stat().st_mtime_ns
    first = load(path)["train"]
    changed = path.read_bytes().replace("Иван".encode(), "Олег".encode())
    path.write_bytes(changed)
    os.utime(path, ns=(stamp, stamp))  # same size, same time: only the content tells
    second = load(path)["train"]
    assert second[0]["text"] == "Олег в Москве" and first[0]["text"] == "Иван в Москве"
    assert first._fingerprint != second._fingerprint


def test_folders_of_one_name_do_not_collide(load, tmp_path):
    write_brat([IVAN], tmp_path / "a" / "corpus")
    write_brat([ANNA], tmp_path / "b" / "corpus")
    assert load(tmp_path / "a" / "corpus")["train"]["id"][:] == ["1"]
    assert load(tmp_path / "b" / "corpus")["train"]["id"][:] == ["2"]


def test_new_documents_and_annotations_are_seen(load, brat_corpus):
    load(brat_corpus)
    (brat_corpus / "train" / "new.txt").write_text("Пётр", "utf-8")
    assert load(brat_corpus)["train"].num_rows == 2
    (brat_corpus / "train" / "new.ann").write_text("T1\tPERSON 0 4\tПётр\n", "utf-8")
    assert len(load(brat_corpus)["train"][1]["entities"]) == 1


def test_a_failure_leaves_no_dataset_in_the_cache(load, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"id": 1, "sentences": "а"}) + "\n{broken\n")
    with pytest.raises(CorpusError, match="line 2"):
        load(path)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".arrow", ".json")]


# --- Downloads ------------------------------------------------------------------------------------------------------


def test_nerel_is_downloaded(load, serve, brat_corpus, tmp_path):
    url = serve("nerel", brat_corpus)
    corpus = load("nerel", url=url)
    assert {name: split.num_rows for name, split in corpus.items()} == {"train": 1, "dev": 1, "test": 2}
    assert corpus["train"][0] == IVAN_ROW
    (tmp_path / "served" / "nerel.zip").unlink()
    assert load("nerel", "train", url=url)["train"][0] == IVAN_ROW  # from the cache


def test_runne_is_downloaded_from_the_address_in_the_environment(load, serve, jsonl_corpus, monkeypatch):
    monkeypatch.setenv("RUNNE_CONER_RUNNE_URL", serve("runne", jsonl_corpus))
    corpus = load("runne")
    assert list(corpus) == ["train", "dev", "test"]
    assert corpus["test"]["entities"][:] == [[], [{"start": 0, "end": 4, "type": "PERSON"}]]


def test_the_pinned_addresses(monkeypatch):
    for source in SOURCES.values():
        monkeypatch.delenv(source.variable, raising=False)
    nerel_commit, runne_commit = "8f07d3e410f322d5dbf6b68b13fbf4a4aa077fe9", "b595cff099db6fb1f45949eba7f9ba25f2882962"
    assert SOURCES["nerel"].url == f"https://github.com/nerel-ds/NEREL/archive/{nerel_commit}.zip"
    assert SOURCES["runne"].url == f"https://github.com/dialogue-evaluation/RuNNE/archive/{runne_commit}.zip"


def test_a_failed_download_names_the_address_and_the_way_out(load, serve, brat_corpus):
    url = serve("nerel", brat_corpus).replace("nerel.zip", "missing.zip")
    with pytest.raises(CorpusError, match=rf"{url}: cannot be downloaded .* give the path of its folder NEREL-v1.1"):
        load("nerel", url=url)


def test_an_archive_that_is_none_is_not_kept(load, serve, brat_corpus, tmp_path):
    url = serve("nerel", brat_corpus)
    archive = tmp_path / "served" / "nerel.zip"
    good = archive.read_bytes()
    for bad in (b"<html>log in</html>", good[: len(good) // 2]):
        archive.write_bytes(bad)
        with pytest.raises(CorpusError, match=f"{url}: is no complete zip archive"):
            load("nerel", url=url)
    archive.write_bytes(good)
    assert load("nerel", url=url)["train"][0] == IVAN_ROW


def test_an_archive_of_something_else(load, serve, brat_corpus):
    with pytest.raises(CorpusError, match="no folder NEREL-v1.1 in the archive"):
        load("nerel", url=serve("nerel", brat_corpus, folder="other"))


# --- Builder, sample, types -----------------------------------------------------------------------------------------


def test_the_builder_by_itself(tmp_path, brat_corpus):
    assert NerelBuilder.names() == ["nerel", "runne", "sample"]
    builder = NerelBuilder(config_name="nerel", data_dir=str(brat_corpus), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    assert builder.as_dataset(split="train")[0] == IVAN_ROW
    assert builder.read_report().summary() == ""


def test_the_sample_comes_from_the_package(load):
    assert Path(nerel.__file__).parent in nerel.SAMPLE.parents
    corpus = load("sample", strict=True, types=NEREL_TYPES)
    assert list(corpus) == ["train", "test"]
    assert read_entity_types(nerel.SAMPLE) == list(NEREL_TYPES)
    found = {entity["type"] for entities in corpus["train"]["entities"] for entity in entities}
    assert found == set(NEREL_TYPES)


def test_types_of_the_names():
    assert len(NEREL_TYPES) == 29 and list(NEREL_TYPES) == sorted(set(NEREL_TYPES))
    assert set(FEW_SHOT_TYPES) < set(NEREL_TYPES)
    for name in NerelBuilder.names():
        assert load_entity_types(name) == list(NEREL_TYPES)


def test_types_in_the_folder_above_it_or_in_the_data(load, brat_corpus, jsonl_corpus, monkeypatch):
    assert load_entity_types(brat_corpus) == ["PERSON", "CITY"]
    assert load_entity_types(brat_corpus / "train") == ["PERSON", "CITY"]
    assert load_entity_types(jsonl_corpus / "train.jsonl") == ["CITY", "PERSON"]
    (brat_corpus / "annotation.conf").unlink()
    assert load_entity_types(brat_corpus, load(brat_corpus)) == ["CITY", "PERSON"]
    with pytest.raises(CorpusError, match="no entity to take the types from"):
        (brat_corpus / "x.jsonl").write_text('{"id": 1, "sentences": "а"}')
        load_entity_types(brat_corpus / "x.jsonl", load(brat_corpus / "x.jsonl"))
    monkeypatch.chdir(brat_corpus / "train")
    (brat_corpus / "ners.txt").write_text("ABOVE\n")
    assert load_entity_types(".") == ["ABOVE"]


@needs_runne
def test_types_and_documents_of_runne(load):
    corpus = load(DATA / "runne")
    assert {name: split.num_rows for name, split in corpus.items()} == {"train": 461}
    assert load_entity_types(DATA / "runne" / "train.jsonl") == list(NEREL_TYPES)
    assert sum(map(len, corpus["train"]["entities"])) == 27_727  # distinct ones, counted by another program


@needs_nerel
def test_nerel_loads(load):
    corpus = load(DATA / "nerel")
    assert {name: split.num_rows for name, split in corpus.items()} == {"train": 746, "dev": 94}
    assert sorted(load_entity_types(DATA / "nerel" / "dev")) == list(NEREL_TYPES)
