"""`runne-coner analyze`: its report from JSONL and brat, its options and errors, and its page in a real browser."""

import io
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
from browser import image_sizes, open_page
from sklearn.metrics import silhouette_score
from transformers import AutoModel

from runne_coner.brat import write_brat
from runne_coner.cli import main
from runne_coner.configuration import CoNERConfig
from runne_coner.documents import Document, Entity, write_runne
from runne_coner.embeddings import load_encoder, project, word_embeddings
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.onnx_model import OnnxModel
from runne_coner.preprocessing import load_tokenizer
from runne_coner.report import Figure, Section, Table, write_report

TEXT = "Мэр Казани Ольга Калинина лечит грипп в Казани."
GOLD = [
    Document("1", TEXT, (Entity(0, 10, "PROFESSION"), Entity(4, 10, "CITY"), Entity(11, 25, "PERSON"))),
    Document("2", TEXT, (Entity(32, 37, "DISEASE"), Entity(40, 46, "CITY"))),
]
SYSTEM = [
    Document("2", TEXT, (Entity(32, 37, "DISEASE"), Entity(40, 46, "COUNTRY"))),
    Document("1", TEXT, (Entity(0, 3, "PROFESSION"), Entity(4, 10, "CITY"), Entity(26, 31, "EVENT"))),
]
EXPECTED = {"correct": 2, "confusion": 1, "too long": 0, "too short": 1, "shifted": 0, "missed": 1, "spurious": 1}


@pytest.fixture
def files(tmp_path):
    write_runne(GOLD, tmp_path / "gold.jsonl")
    write_runne(SYSTEM, tmp_path / "system.jsonl")
    return ["--references", tmp_path / "gold.jsonl", "--predictions", tmp_path / "system.jsonl"]


def analyze(output, *argv) -> dict:
    main(["analyze", *map(str, argv), "--output", str(output)])
    return json.loads((output / "report.json").read_text(encoding="utf-8"))


def failure(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", *map(str, argv)])
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_the_report_of_runne_files(files, tmp_path, capsys):
    data = analyze(tmp_path / "new" / "report", *files)
    assert data["outcomes"] == EXPECTED
    assert data["scores"]["micro"]["correct"] == 2 and data["few_shot_types"] == ["DISEASE", "PENALTY", "WORK_OF_ART"]
    assert {"document": "2", "kind": "confusion", "gold": [40, 46, "CITY"], "predicted": [40, 46, "COUNTRY"]} in data["errors"]
    assert capsys.readouterr().out == f"wrote {tmp_path / 'new' / 'report' / 'report.html'}\n"
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == ["report.html", "report.json", "report.md"]


def test_brat_folders_and_predictions_without_texts(tmp_path):
    write_brat(GOLD, tmp_path / "gold")
    write_brat(SYSTEM, tmp_path / "system")
    data = analyze(tmp_path / "r", "--references", tmp_path / "gold", "--predictions", tmp_path / "system")
    assert data["outcomes"] == EXPECTED
    bare = [{"id": int(d.id), "ners": [[e.start, e.end - 1, e.type] for e in d.entities]} for d in SYSTEM]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare), encoding="utf-8")
    again = analyze(tmp_path / "r", "--references", tmp_path / "gold", "--predictions", tmp_path / "bare.jsonl")
    assert again["errors"] == data["errors"]


def test_options(files, tmp_path):
    training = [Document("t", "Казань и Томск", (Entity(0, 6, "CITY"), Entity(9, 14, "CITY")))]
    write_runne(training, tmp_path / "train.jsonl")
    types = tmp_path / "types.txt"
    types.write_text("EVENT\nCITY\nCOUNTRY\nPERSON\nPROFESSION\nDISEASE\n", encoding="utf-8")
    options = ["--training", tmp_path / "train.jsonl", "--few-shot", "CITY,EVENT", "--types", types]
    data = analyze(tmp_path / "r", *files, *options)
    rows = {row[0]: row for row in data["tables"]["by_type"]["rows"]}
    assert list(rows) == ["EVENT", "CITY", "COUNTRY", "PERSON", "PROFESSION", "DISEASE"]
    assert rows["CITY"][1:3] == ["*", 2] and rows["PERSON"][1:3] == ["", 0]
    assert data["few_shot_types"] == ["EVENT", "CITY"] and "training texts" in (tmp_path / "r" / "report.md").read_text("utf-8")
    without = analyze(tmp_path / "r", *files)
    assert {row[0]: row[2] for row in without["tables"]["by_type"]["rows"]}["CITY"] == 2  # in the references


def test_types_that_only_the_system_knows_are_spurious(tmp_path):
    write_runne(GOLD, tmp_path / "gold.jsonl")
    write_runne([Document("1", TEXT, (Entity(0, 3, "MAYOR"),)), Document("2", TEXT)], tmp_path / "system.jsonl")
    data = analyze(tmp_path / "r", "--references", tmp_path / "gold.jsonl", "--predictions", tmp_path / "system.jsonl")
    assert data["outcomes"]["spurious"] == 1 and data["entity_types"][-1] == "MAYOR"


def test_errors_are_one_line(files, tmp_path, capsys):
    output = ["--output", tmp_path / "r"]
    assert "nowhere.jsonl" in failure(capsys, "--references", tmp_path / "nowhere.jsonl", *files[2:], *output)
    assert "nowhere.jsonl" in failure(capsys, *files, "--training", tmp_path / "nowhere.jsonl", *output)
    assert "FISH" in failure(capsys, *files, "--few-shot", "FISH", *output)
    types = tmp_path / "types.txt"
    types.write_text("CITY\n", encoding="utf-8")
    assert "unknown type" in failure(capsys, *files, "--types", types, *output)
    assert "--output" in failure(capsys, *files)
    bad = tmp_path / "bad.jsonl"
    for content, message in (
        ("", "holds no document"),
        ('{"id": 1, "ners": []}\n', "lack document '2'"),
        ('{"id": 1, "ners": [[40, 99, "CITY"]]}\n{"id": 2, "ners": []}\n', "does not lie in the text"),
        ('{"id": 1, "sentences": "Мэр Омска", "ners": [[4, 8, "CITY"]]}\n{"id": 2, "ners": []}\n', "is 'Омска' in the pred"),
        ('{"id": 1, "ners": []}\n{"id": 2\n', "line 2"),
    ):
        bad.write_text(content, encoding="utf-8")
        assert message in failure(capsys, *files[:2], "--predictions", bad, *output)
    message = failure(capsys, "--references", bad, *files[2:], *output)
    assert "'sentences'" in message and "Correct the file." in message and "strict" not in message
    bad.write_text("", encoding="utf-8")
    assert "holds no document" in failure(capsys, "--references", bad, *files[2:], *output)
    assert not (tmp_path / "r").exists()
    assert "bad.jsonl, which is no part of a report" in failure(capsys, *files, "--output", tmp_path)
    assert "is a file" in failure(capsys, *files, "--output", tmp_path / "gold.jsonl")


@pytest.fixture
def one_method(monkeypatch):
    """Projections by PCA: UMAP compiles for a long time."""
    monkeypatch.setattr("runne_coner.model_spaces.project", partial(project, method="pca"))


def silhouettes_by_hand(encoder: str, documents: list[Document], name: str) -> float:
    network, tokenizer = load_encoder(encoder)
    words = word_embeddings(network, tokenizer, [document.text for document in documents])
    labels = [
        any(e.type == name and start < e.end and end > e.start for e in documents[number].entities)
        for number, (start, end) in zip(words.document, words.spans.tolist(), strict=True)
    ]
    return silhouette_score(words.vectors, labels)


def test_models_are_compared_on_the_references(files, one_method, wordpiece_encoder, bpe_encoder, tmp_path):
    # A model of stage 2, an encoder with another tokenizer, and the same encoder four times over: two figures.
    model = tmp_path / "stage2"
    CoNERForTokenClassification.from_encoder(wordpiece_encoder, CoNERConfig(entity_types=["CITY"])).save_pretrained(model)
    load_tokenizer(wordpiece_encoder).save_pretrained(model)
    more = [str(shutil.copytree(bpe_encoder, tmp_path / f"copy{number}")) for number in range(3)]
    models = [str(model), bpe_encoder, *more]
    training = ["--training", files[1]]
    data = analyze(tmp_path / "r", *files, *training, "--model", *models[:2], "--model", *models[2:], "--figure-type", "CITY")
    table = data["tables"]["silhouettes"]
    assert table["columns"] == ["type", "words", "words in training texts", *models] and data["models"] == models
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert set(rows) == {"PROFESSION", "CITY", "PERSON", "DISEASE"} and rows["PROFESSION"][:2] == [2, 2]
    for name in rows:
        assert rows[name][2] == pytest.approx(silhouettes_by_hand(wordpiece_encoder, GOLD, name), abs=1e-5)
        assert rows[name][3] == rows[name][4] == pytest.approx(silhouettes_by_hand(bpe_encoder, GOLD, name), abs=1e-5)
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    descriptions = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]*)"', page)
    assert [text[:8] for text in descriptions] == ["4 panels", "1 panels"]
    assert f"silhouette {rows['CITY'][2]:.4f}" in descriptions[0] and "words of CITY" in descriptions[0]
    names = sorted(path.name for path in (tmp_path / "r" / "figures").iterdir())
    assert len(names) == 4 and {name[-4:] for name in names} == {".png", ".svg"}


def test_without_money_the_figure_is_of_the_type_with_most_words(files, one_method, wordpiece_encoder, tmp_path):
    analyze(tmp_path / "r", *files, "--model", wordpiece_encoder)
    # PROFESSION, PERSON and CITY have two words each, DISEASE one.
    assert "words, 2 of " in (tmp_path / "r" / "report.md").read_text(encoding="utf-8")


def test_errors_of_models_are_one_line(files, tmp_path, wordpiece_encoder, capsys, monkeypatch):
    output = ["--output", tmp_path / "r"]
    assert "no such folder" in failure(capsys, *files, *output, "--model", tmp_path / "no" / "model")
    assert "config.json" in failure(capsys, *files, *output, "--model", tmp_path)
    assert "need" in failure(capsys, *files, *output, "--figure-type", "CITY")
    assert "no such entity" in failure(capsys, *files, *output, "--model", wordpiece_encoder, "--figure-type", "FISH")
    damaged = shutil.copytree(wordpiece_encoder, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be loaded" in failure(capsys, *files, *output, "--model", damaged)
    (damaged / "model.safetensors").unlink()
    assert "cannot be loaded" in failure(capsys, *files, *output, "--model", damaged)
    (damaged / "config.json").write_text("{}", encoding="utf-8")
    assert "cannot be loaded" in failure(capsys, *files, *output, "--model", damaged)
    # What `runne-coner export` leaves is recognised by its names.
    export = tmp_path / "export"
    CoNERForTokenClassification.from_encoder(wordpiece_encoder, CoNERConfig(entity_types=["CITY"])).save_pretrained(export)
    (export / "model.safetensors").rename(export / "model.onnx")
    monkeypatch.setattr(OnnxModel, "from_pretrained", lambda folder: OnnxModel.__new__(OnnxModel))
    capsys.readouterr()
    message = failure(capsys, *files, *output, "--model", export)
    assert f"{export}: an export holds no encoder for torch; give the folder of the model it was made from" in message
    assert not (tmp_path / "r").exists()


def test_a_model_that_has_diverged_is_named(files, tmp_path, wordpiece_encoder, capsys):
    folder = shutil.copytree(wordpiece_encoder, tmp_path / "diverged")
    encoder = AutoModel.from_pretrained(folder)
    encoder.embeddings.word_embeddings.weight.data.fill_(float("nan"))
    encoder.save_pretrained(folder)
    with pytest.raises(SystemExit, match="2"):
        analyze(tmp_path / "r", *files, "--model", folder)
    assert f"\nerror: {folder}: embeddings are not finite" in capsys.readouterr().err.replace("\r", "\n")


PANELS = {"pre-trained": "#0072b2", "standard": "#d55e00", "stage 1": "#009e73", "stage 2": "#cc79a7"}


def four_panels() -> Figure:
    """A figure of four panels, each filled with a colour of its own."""
    from matplotlib.figure import Figure as Canvas

    canvas, png, svg = Canvas(figsize=(8, 8)), io.BytesIO(), io.StringIO()
    for axes, (name, colour) in zip(canvas.subplots(2, 2).flat, PANELS.items(), strict=True):
        axes.set_title(name)
        axes.set_facecolor(colour)
    canvas.savefig(png, format="png", dpi=100)
    canvas.savefig(svg, format="svg")
    return Figure("Four panels", png.getvalue(), svg.getvalue(), "four panels: " + ", ".join(PANELS))


def pixels(picture: bytes) -> np.ndarray:
    from matplotlib.image import imread

    return np.round(imread(io.BytesIO(picture), format="png")[..., :3] * 255).astype(int)


def test_a_browser_shows_the_four_panels_of_a_figure(tmp_path):
    sections = [Section("Figure", [four_panels()], "figure"), Section("Table", [Table("T", ["a", "b"], [["x", 1]])], "table")]
    page = write_report(tmp_path / "r", "Report", sections, {})
    assert image_sizes(page, tmp_path) == [
        {"alt": "four panels: pre-trained, standard, stage 1, stage 2", "loaded": True, "width": 800, "height": 800}
    ]
    opened = open_page(page, height=1400)
    assert opened.console == []
    shown = pixels(opened.picture)
    for name, colour in PANELS.items():
        wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
        assert (np.abs(shown - wanted).max(axis=-1) <= 3).sum() > 50_000, name


def test_a_browser_opens_the_report_without_script_errors(files, tmp_path):
    analyze(tmp_path / "r", *files)
    opened = open_page(tmp_path / "r" / "report.html")
    assert opened.console == []
    assert opened.dom.count('class="error"') == 4 and "Казани" in opened.dom
    shown = pixels(opened.picture)
    assert shown.shape == (1000, 1200, 3)
    assert 0.01 < (np.abs(shown - shown[0, 0]).max(axis=-1) > 60).mean() < 0.9  # neither blank nor black


def test_the_browser_tells_of_script_errors(tmp_path):
    (tmp_path / "bad.html").write_text("<!DOCTYPE html><script>nothing.there()</script>", encoding="utf-8")
    assert "ReferenceError" in "".join(open_page(tmp_path / "bad.html").console)
