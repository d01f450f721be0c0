"""The `runne-coner` command: outputs, exit codes, one-line errors."""

import errno
import json
import os
import shutil

import pytest
from rule_model import build_rule_model

from runne_coner.brat import write_brat
from runne_coner.cli import main
from runne_coner.documents import Document, Entity, read_annotations, read_documents, write_runne

TEXT = "Мэр Казани Ольга Калинина."


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_rule_model(tmp_path_factory.mktemp("rule"))


def failure(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(item) for item in argv])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def failure_after_loading(capsys, *argv) -> str:
    with pytest.raises(SystemExit, match="2"):
        main([str(item) for item in argv])
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_predict_keeps_ids_and_order_and_writes_sorted_entities(model, tmp_path):
    source, output = tmp_path / "texts.jsonl", tmp_path / "found.jsonl"
    lines = [
        {"id": 7, "sentences": TEXT},
        {"id": "b", "sentences": ""},
        {"id": 3, "sentences": "Казани 😀 Казани\u2028Казани", "ners": [[0, 2, "PERSON"]]},
    ]
    source.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    main(["predict", "--model", str(model), "--input", str(source), "--output", str(output)])
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n") if line]
    assert [line["id"] for line in found] == [7, "b", 3]
    assert [line["sentences"] for line in found] == [line["sentences"] for line in lines]
    assert found[0]["ners"] == [[0, 9, "PROFESSION"], [4, 9, "CITY"], [11, 24, "PERSON"]]
    assert found[1]["ners"] == []
    assert found[2]["ners"] == [[0, 5, "CITY"], [9, 14, "CITY"], [16, 21, "CITY"]]


def test_predict_reads_brat_folders_and_text_files(model, tmp_path):
    write_brat([Document("one", TEXT), Document("two", "Казани")], tmp_path / "corpus")
    for source, ids in ((tmp_path / "corpus", ["one", "two"]), (tmp_path / "corpus" / "one.txt", ["one"])):
        output = tmp_path / f"{len(ids)}.jsonl"
        main(["predict", "--model", str(model), "--input", str(source), "--output", str(output), "--batch-size", "1"])
        assert [document.id for document in read_annotations(output)] == ids


def test_predict_in_context(model, tmp_path, capsys):
    write_runne([Document(1, f"{TEXT} {TEXT}")], tmp_path / "in.jsonl")
    argv = ["predict", "--model", str(model), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    found = []
    for context in ("0", "2"):
        main([*argv, "--context", context])
        found.append(read_documents(tmp_path / "out.jsonl")[0].entities)
    assert found[0] == found[1] and len(found[0]) == 6
    capsys.readouterr()
    assert "--context" in failure(capsys, *argv, "--context=-1")


def test_predict_says_before_it_begins_what_brat_cannot_hold(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("runne_coner.cli.predict_documents", lambda *args, **options: pytest.fail("it has begun"))
    argv = ["predict", "--model", model, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "new", "--format", "brat"]
    write_runne([Document(1, TEXT), Document("a/b", TEXT)], tmp_path / "in.jsonl")
    assert "document 'a/b': the id cannot be a file name" in failure_after_loading(capsys, *argv)
    write_runne([Document(1, TEXT)], tmp_path / "in.jsonl")
    shutil.copytree(model, tmp_path / "spaced")
    config = json.loads((model / "config.json").read_text())
    config["entity_types"][0] = "BIG CITY"
    (tmp_path / "spaced" / "config.json").write_text(json.dumps(config))
    argv[2] = tmp_path / "spaced"
    assert "brat cannot hold a type with white space: 'BIG CITY'" in failure_after_loading(capsys, *argv)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["runne", "brat", "html"])
def test_predict_says_before_it_begins_that_nothing_can_be_written(model, tmp_path, capsys, monkeypatch, kind):
    def refuse(**options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("runne_coner.cli.load_pipeline", lambda *args, **options: pytest.fail("it has begun"))
    # A superuser, as whom tests may run, is not held off by permissions.
    monkeypatch.setattr("runne_coner.files.tempfile.NamedTemporaryFile", refuse)
    write_runne([Document(1, TEXT)], tmp_path / "in.jsonl")
    argv = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--format", kind]
    assert "out: cannot be written (Permission denied)" in failure(capsys, "predict", "--model", model, *argv)


def test_predict_threshold(model, tmp_path):
    write_runne([Document(1, TEXT)], tmp_path / "in.jsonl")
    argv = ["predict", "--model", str(model), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    main([*argv, "--threshold", "1"])
    assert read_documents(tmp_path / "out.jsonl")[0].entities == ()


@pytest.mark.parametrize("threshold", ["1.01", "-1", "nan", "much"])
def test_predict_refuses_a_threshold_that_is_no_probability(tmp_path, capsys, threshold):
    message = failure(capsys, "predict", "--model", "m", "--input", "i", "--output", "o", f"--threshold={threshold}")
    assert "--threshold" in message and threshold in message


def test_predict_stops_at_a_defect_or_skips_it(model, tmp_path, capsys):
    source, output = tmp_path / "texts.jsonl", tmp_path / "found.jsonl"
    good = json.dumps({"id": 1, "sentences": TEXT}, ensure_ascii=False)
    source.write_text(f"{good}\n{{broken\n{good}\n", encoding="utf-8")
    argv = ["predict", "--model", str(model), "--input", str(source), "--output", str(output)]
    message = failure(capsys, *argv)
    assert "texts.jsonl, line 2" in message and "--lenient" in message and not output.exists()
    main([*argv, "--lenient"])
    assert [document.id for document in read_annotations(output)] == [1]


def test_predict_reads_texts_without_any_letter(model, tmp_path):
    texts = ["", " \n\t", "😀😀", "\u200b\u200b", "\ufeff", "\u00ad", "\x00", "e\u0301", "\u2028"]
    write_runne([Document(n, text) for n, text in enumerate(texts)], tmp_path / "in.jsonl")
    main(["predict", "--model", str(model), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")])
    found = read_documents(tmp_path / "out.jsonl")
    assert [(document.text, document.entities) for document in found] == [(text, ()) for text in texts]


def test_predict_errors(model, tmp_path, capsys):
    write_runne([Document(1, TEXT)], tmp_path / "in.jsonl")
    good = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    assert "no such folder" in failure(capsys, "predict", "--model", tmp_path / "no" / "model", *good)
    assert "config.json" in failure(capsys, "predict", "--model", tmp_path, *good)
    assert "nowhere.jsonl" in failure(
        capsys, "predict", "--model", model, "--input", tmp_path / "nowhere.jsonl", "--output", tmp_path / "out.jsonl"
    )
    assert "existing folder" in failure(
        capsys, "predict", "--model", model, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "no" / "out.jsonl"
    )
    assert "--model" in failure(capsys, "predict", *good)
    for device in ("abacus", "cuda:99", "meta"):
        assert "--device" in failure(capsys, "predict", "--model", model, *good, "--device", device)
    before = (tmp_path / "in.jsonl").read_bytes()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    for same in ("in.jsonl", "link.jsonl"):
        message = failure(capsys, "predict", "--model", model, *good[:2], "--output", tmp_path / same)
        assert f"{same}: is the input too" in message and (tmp_path / "in.jsonl").read_bytes() == before
    write_brat([Document("a", TEXT, (Entity(4, 10, "CITY"),))], tmp_path / "corpus")
    for source, target in (("corpus/a.txt", "corpus/a.ann"), ("corpus", "corpus/a.ann"), ("corpus", "corpus/new.txt")):
        message = failure(capsys, "predict", "--model", model, "--input", tmp_path / source, "--output", tmp_path / target)
        assert f"{target}: is the input too" in message
    assert "CITY" in (tmp_path / "corpus" / "a.ann").read_text(encoding="utf-8")
    assert "batch-size" in failure(capsys, "predict", "--model", model, *good, "--batch-size", "0")
    (tmp_path / "broken.jsonl").write_text('{"id": 1, "sentences": "a"}\n{"id": 2\n', encoding="utf-8")
    message = failure(
        capsys, "predict", "--model", model, "--input", tmp_path / "broken.jsonl", "--output", tmp_path / "out.jsonl"
    )
    assert "broken.jsonl" in message and "line 2" in message
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def answers(tmp_path):
    gold = [
        Document(1, TEXT, (Entity(0, 10, "PROFESSION"), Entity(4, 10, "CITY"))),
        Document(2, TEXT, (Entity(11, 25, "PERSON"), Entity(4, 10, "CITY"))),
    ]
    system = [
        Document(2, TEXT, (Entity(11, 25, "PERSON"), Entity(4, 9, "CITY"))),
        Document(1, TEXT, (Entity(0, 10, "PROFESSION"), Entity(4, 10, "CITY"), Entity(0, 3, "DISEASE"))),
    ]
    write_runne(gold, tmp_path / "gold.jsonl")
    write_runne(system, tmp_path / "system.jsonl")
    return ["score", "--references", str(tmp_path / "gold.jsonl"), "--predictions", str(tmp_path / "system.jsonl")]


def test_score_json_is_one_object_with_the_task_s_figures(answers, capsys):
    main([*answers, "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["micro"]["precision"] == 3 / 5 and scores["micro"]["recall"] == 3 / 4
    assert scores["micro"]["f1"] == pytest.approx(2 / 3)
    # PROFESSION 1, PERSON 1, CITY 1/2; DISEASE is few-shot, as are the absent PENALTY and WORK_OF_ART.
    assert scores["macro"]["f1"] == pytest.approx(2.5 / 3) and scores["macro"]["types"] == 3
    assert scores["few_shot"]["f1"] == 0.0 and scores["few_shot"]["types"] == 3
    assert len(scores["per_type"]) == 29 and scores["per_type"]["CITY"]["f1"] == 0.5


def test_score_options(answers, tmp_path, capsys):
    main([*answers, "--few-shot", "CITY, PERSON", "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["few_shot"]["f1"] == 0.75 and scores["macro"]["f1"] == 1.0
    main([*answers, "--few-shot", "", "--json"])
    assert json.loads(capsys.readouterr().out)["few_shot"] is None
    types = tmp_path / "types.txt"
    types.write_text("PROFESSION\nCITY\nPERSON\nDISEASE\n", encoding="utf-8")
    main([*answers, "--types", str(types)])
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[1:5]] == ["PROFESSION", "CITY", "PERSON", "DISEASE"]


def test_few_shot_types_that_do_not_occur_are_not_scored(answers, tmp_path, capsys):
    write_runne([Document(1, TEXT), Document(2, TEXT, (Entity(4, 10, "CITY"),))], tmp_path / "system.jsonl")
    main([*answers, "--json"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["few_shot"] is None and scores["macro"]["types"] == 3
    main([*answers, "--few-shot", "DISEASE", "--json"])
    assert json.loads(capsys.readouterr().out)["few_shot"]["types"] == 1


def test_score_finds_the_types_of_a_corpus_above_its_split(tmp_path, capsys):
    write_brat([Document("a", TEXT, (Entity(4, 10, "GENE"),))], tmp_path / "corpus" / "dev")
    write_brat([Document("a", TEXT, (Entity(4, 10, "GENE"), Entity(0, 3, "DRUG")))], tmp_path / "found")
    argv = ["score", "--references", str(tmp_path / "corpus" / "dev"), "--predictions", str(tmp_path / "found"), "--json"]
    (tmp_path / "corpus" / "dev" / "annotation.conf").unlink(missing_ok=True)
    assert "DRUG" in failure(capsys, *argv)
    (tmp_path / "corpus" / "ners.txt").write_text("DRUG\nGENE\n", encoding="utf-8")
    main(argv)
    assert json.loads(capsys.readouterr().out)["per_type"]["DRUG"]["predicted"] == 1


def test_score_errors_name_the_culprit(answers, tmp_path, capsys):
    types = tmp_path / "types.txt"
    types.write_text("PROFESSION\nCITY\nPERSON\n", encoding="utf-8")
    assert "DISEASE" in failure(capsys, *answers, "--types", types)
    assert "FISH" in failure(capsys, *answers, "--few-shot", "FISH")
    references, predictions = answers[:3], tmp_path / "less.jsonl"
    predictions.touch()
    message = failure(capsys, "score", "--references", predictions, "--predictions", predictions)
    assert "less.jsonl: holds no document" in message
    predictions.write_text('{"id": 1, "ners": []}\n', encoding="utf-8")
    assert "document 2" in failure(capsys, *references, "--predictions", predictions)
    predictions.write_text('{"id": 1, "ners": []}\n{"id": 2, "ners": []}\n{"id": 2, "ners": []}\n', encoding="utf-8")
    assert "2" in failure(capsys, *references, "--predictions", predictions)
    predictions.write_text('{"id": 1, "ners": [[0, 2, "FISH"]]}\n{"id": 2, "ners": []}\n', encoding="utf-8")
    assert "FISH" in failure(capsys, *references, "--predictions", predictions)


def test_unknown_commands_are_usage_errors(capsys):
    assert "predict" in failure(capsys, "predct")
    assert "command" in failure(capsys)
