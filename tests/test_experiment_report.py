"""The report on a grid, made from runs put together by hand: random models, known predictions."""

import json
import re
import statistics
import zlib

import numpy as np
import pytest
import torch
from browser import image_sizes, open_page
from conftest import TYPES, make_documents
from sklearn.metrics import silhouette_score

from runne_coner import word_spaces
from runne_coner.configuration import CoNERConfig
from runne_coner.documents import Document, from_row, write_runne
from runne_coner.embeddings import load_encoder, project, word_embeddings, word_membership
from runne_coner.experiment import ReportSettings, Run, experiment_sections
from runne_coner.figures import CURVES, Curve, Panel, learning_curves, projection_figure
from runne_coner.metrics import score_documents
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.preprocessing import load_tokenizer
from runne_coner.report import Figure, Table, write_report
from runne_coner.significance import document_counts, paired_bootstrap, paired_t_test, wilcoxon_test
from runne_coner.windows import DEFAULT_WINDOWS
from runne_coner.word_spaces import SpaceSettings, choose_words, default_figure_type

FEW_SHOT = ["DISEASE"]
REFERENCES = [from_row(row) for row in make_documents(copies=2)]
TRAINING = [from_row(row) for row in make_documents(copies=3)]
HISTORY = [{"epoch": 0.5, "loss": 2.0}, {"epoch": 1.0, "loss": 1.0}, {"epoch": 1.0, "eval_macro_f1": 0.5}]


def spoiled(share, seed):
    random = np.random.default_rng(seed)
    return [
        Document(document.id, document.text, tuple(e for e in document.entities if random.random() > share))
        for document in REFERENCES
    ]


def save_model(folder, encoder, noise, seed):
    torch.manual_seed(zlib.crc32(repr(seed).encode()))
    model = CoNERForTokenClassification.from_encoder(encoder, CoNERConfig(entity_types=TYPES))
    for parameter in model.encoder.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    model.save_pretrained(folder)
    load_tokenizer(encoder).save_pretrained(folder)
    return model.encoder


def make_run(folder, encoder, scheme, seed):
    """A finished run as the recipe leaves it."""
    share = {"standard": 0.5, "coner": 0.2, "standard-long": 0.4}[scheme]
    predictions = spoiled(share, seed)
    for name, documents in (("references", REFERENCES), ("predictions", predictions)):
        write_runne(documents, folder / f"{name}.jsonl")
    stages = ["stage1", "stage2"] if scheme == "coner" else ["stage2"]
    cost = {"seconds": 2.0 * seed, "resumed": seed == 2 and scheme == "coner", "flos": 1e12, "epochs": 1.0, "steps": 3}
    metrics = {
        "entity_types": TYPES,
        "few_shot_types": FEW_SHOT,
        "scores": score_documents(REFERENCES, predictions, TYPES, FEW_SHOT),
        "stages": {stage: cost | {"metrics": {}} for stage in stages},
    }
    for stage in stages:
        trained = save_model(folder / stage, encoder, 0.05, [scheme, stage, seed])
        if stage == "stage1":
            trained.save_pretrained(folder / stage)  # a plain encoder
        (folder / stage / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, wordpiece_encoder):
    """Two seeds of three schemes, of which standard-long of the second seed is missing."""
    root, found = tmp_path_factory.mktemp("grid"), []
    for seed in (1, 2):
        for scheme in ("standard", "coner", "standard-long"):
            name = f"tiny/{scheme}/seed-{seed}"
            folder = root / name
            folder.mkdir(parents=True)
            if (scheme, seed) != ("standard-long", 2):
                make_run(folder, wordpiece_encoder, scheme, seed)
            found.append(Run("tiny", wordpiece_encoder, scheme, seed, folder, name))
    return found


SETTINGS = ReportSettings(TRAINING, SpaceSettings(DEFAULT_WINDOWS, None, 40), resamples=200)


@pytest.fixture(autouse=True)
def quick_projections(monkeypatch):
    """UMAP takes long to start, and is tested with the embeddings."""
    monkeypatch.setattr(word_spaces, "project", lambda vectors, seed: project(vectors, method="pca"))


@pytest.fixture(scope="module")
def made(runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_spaces, "project", lambda vectors, seed: project(vectors, method="pca"))
        return experiment_sections(runs, SETTINGS)


def tables(sections):
    return {part.key or part.title: part for section in sections for part in section.parts if isinstance(part, Table)}


def column(table, name):
    return [row[list(table.columns).index(name)] for row in table.rows]


def test_scores_and_what_is_missing(made, runs):
    sections, data = made
    found = tables(sections)
    assert "missing: tiny/standard-long/seed-2." in sections[0].parts[1]
    assert column(found["runs"], "state") == ["finished"] * 5 + ["missing"]
    for metric in ("macro", "few_shot", "micro"):
        values = [run.metrics["scores"][metric]["f1"] for run in runs if run.scheme == "coner"]
        row = found[metric].rows[0]
        assert row[4:7] == [pytest.approx(statistics.mean(values)), pytest.approx(statistics.stdev(values)), 2]
        assert row[8:] == [None, 1]  # no deviation of a single seed
    assert [run["finished"] for run in data["runs"]] == [True] * 5 + [False]


def test_wilcoxon_over_the_pairs_of_both_tables(made, runs):
    table = tables(made[0])["wilcoxon"]
    sides = [
        [run.metrics["scores"][metric]["f1"] for metric in ("macro", "few_shot") for run in runs if run.scheme == scheme]
        for scheme in ("standard", "coner")
    ]
    expected = wilcoxon_test(*sides)
    assert table.rows[0][:3] == ["standard", "coner", 4]
    assert table.rows[0][4:6] == [expected.statistic, expected.pvalue]
    assert [row[2] for row in table.rows] == [4, 2, 2]  # standard-long has one seed


def test_bootstrap_of_each_pair_of_models(made, runs):
    table = tables(made[0])["bootstrap"]
    assert [row[:3] for row in table.rows] == [
        ["1", "tiny/standard", "tiny/coner"],
        ["1", "tiny/standard", "tiny/standard-long"],
        ["1", "tiny/coner", "tiny/standard-long"],
        ["2", "tiny/standard", "tiny/coner"],
        ["mean of 2", "tiny/standard", "tiny/coner"],
    ]
    counts = [document_counts(run.references, run.predictions, TYPES) for run in runs[:2]]
    expected = paired_bootstrap(*counts, np.array([name == "DISEASE" for name in TYPES]), resamples=200)
    by_name = expected["macro"], expected["few_shot"], expected["micro"]
    assert table.rows[0][3:] == [value for i in by_name for value in (i.difference, i.low, i.high)]
    means = [np.mean([table.rows[row][3] for row in (0, 3)]), table.rows[4][3]]
    assert means[0] == pytest.approx(means[1])


def test_cost(made):
    table = tables(made[0])["cost"]
    assert column(table, "compute / standard") == [1.0, 2.0, 1.0]
    assert column(table, "stage 1 seconds") == [None, 3.0, None] and "resumed" in table.note
    cost = next(section for section in made[0] if section.title == "Cost")
    assert cost.parts[0] == "tiny: coner took 2.00 times the compute (FLOPs) of standard."


def silhouettes(folder):
    """Of each type, by scikit-learn."""
    words = word_embeddings(*load_encoder(str(folder)), [document.text for document in REFERENCES])
    member = word_membership(words.document, words.spans, REFERENCES, TYPES)
    return [silhouette_score(words.vectors, labels) for labels in member.T]


def test_table_3_against_sklearn(made, runs, wordpiece_encoder):
    table, test = tables(made[0])["table 3: tiny"], tables(made[0])["t-test: tiny"]
    models = {
        "standard NER": [runs[0].folder / "stage2", runs[3].folder / "stage2"],
        "CoNER": [runs[1].folder / "stage2", runs[4].folder / "stage2"],
        "pre-trained": [wordpiece_encoder],
        "after stage 1": [runs[1].folder / "stage1"],
    }
    for name, folders in models.items():
        np.testing.assert_allclose(column(table, name), np.mean([silhouettes(folder) for folder in folders], axis=0), atol=1e-5)
    assert column(table, "type") == [*TYPES[:-1], "DISEASE*"]
    assert column(table, "words in training texts")[-1] == 3
    expected = paired_t_test(column(table, "standard NER"), column(table, "CoNER"))
    assert test.rows[0][-2:] == [expected.statistic, expected.pvalue] and test.rows[0][2] == 5


def test_silhouettes_are_kept(runs, made, monkeypatch):
    """Made again, the report embeds the words of Figure 3 only; of other windows, all of them."""
    calls = []
    monkeypatch.setattr(word_spaces, "load_encoder", lambda model: (calls.append(model), load_encoder(model))[1])
    again, _ = experiment_sections(runs, SETTINGS)
    assert len(calls) == 4
    assert tables(again)["table 3: tiny"] == tables(made[0])["table 3: tiny"]


def test_pictures(made, runs, wordpiece_encoder):
    figures = [part for section in made[0] for part in section.parts if isinstance(part, Figure)]
    space, curves = figures
    assert "PCA projections of 40 words" in space.title and "tiny" in space.title
    panels = {
        "pre-trained": wordpiece_encoder,
        "standard NER": runs[0].folder / "stage2",
        "after stage 1": runs[1].folder / "stage1",
        "after stage 2 (CoNER)": runs[1].folder / "stage2",
    }
    found = re.findall(r"(?:: |, )([^:,]+) \(silhouette (-?\d\.\d{4})\)", space.alt)
    assert space.alt.startswith("4 panels") and [name for name, _ in found] == list(panels)
    expected = [silhouettes(folder)[TYPES.index("ORGANIZATION")] for folder in panels.values()]
    assert [float(value) for _, value in found] == pytest.approx(expected, abs=1e-4)
    assert all(figure.png.startswith(b"\x89PNG") and "</svg>" in figure.svg for figure in figures)
    assert curves.alt.startswith("3 panels") and "(seeds 1, 2)" in curves.title


def test_without_matplotlib_the_report_says_so(runs, monkeypatch):
    monkeypatch.setattr("runne_coner.word_spaces.can_draw", lambda: False)
    monkeypatch.setattr("runne_coner.experiment.can_draw", lambda: False)
    sections, _ = experiment_sections(runs, SETTINGS)
    assert not any(isinstance(part, Figure) for section in sections for part in section.parts)
    assert sum("matplotlib" in str(part) for section in sections for part in section.parts if isinstance(part, str)) == 2


def test_the_report_of_a_beginning(runs, tmp_path):
    """A single finished run: no pairs, no spaces, and its own errors."""
    sections, data = experiment_sections([runs[0], runs[5]], SETTINGS)
    page = write_report(tmp_path / "report", "A title", sections, data)
    text = page.read_text(encoding="utf-8")
    assert "need a standard and a CoNER model" in text and "tiny/standard/seed-1" in text
    content = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert content["tables"]["wilcoxon"]["rows"] == [] and "bootstrap" not in content["tables"]
    assert content["runs"][0]["scores"]["micro"]["f1"] == runs[0].f1("micro")


def test_a_browser_shows_the_report_of_the_grid(made, tmp_path):
    page = write_report(tmp_path / "report", "A title", *made)
    assert page.stat().st_size < 5e6
    space, curves = image_sizes(page, tmp_path)
    assert space["loaded"] and space["alt"].startswith("4 panels") and min(space["width"], space["height"]) > 800
    assert curves["loaded"] and curves["alt"].startswith("3 panels")
    assert open_page(page).console == []


def test_errors_of_chosen_runs(runs, made):
    def analysed(sections):
        return {section.title.split(":")[0] for section in sections if section.title.startswith("tiny/")}

    assert analysed(made[0]) == {"tiny/coner/seed-1"}
    settings = ReportSettings(TRAINING, SETTINGS.spaces, ["tiny/standard/seed-2", "tiny/coner/seed-2"], 200)
    sections, data = experiment_sections(runs, settings)
    assert analysed(sections) == {"tiny/standard/seed-2", "tiny/coner/seed-2"}


def test_words_of_figure_3():
    member = np.zeros(1000, dtype=bool)
    member[::4] = True
    chosen = choose_words(member, 90, seed=1)
    assert len(set(chosen.tolist())) == 90 and member[chosen].sum() == 30
    assert np.array_equal(chosen, choose_words(member, 90, seed=1))
    assert choose_words(member, 2000, seed=1).tolist() == list(range(1000))
    assert len(choose_words(~member, 900, seed=1)) == 900  # few other words: all of them, and more of the type
    words = np.array([[1, 0, 1], [1, 0, 0]], dtype=bool)
    assert default_figure_type(["A", "B", "MONEY"], words) == "MONEY"
    assert default_figure_type(["A", "MONEY", "B"], words) == "A"


def test_dollars_in_names_make_no_formula():
    panels = [Panel("runs/$x^$", np.random.default_rng(0).normal(size=(4, 2)), 0.5)]
    figure = projection_figure(panels, np.array([True, False, True, False]), "$a^$", "pca", "")
    assert "$a^$" in figure.alt and "words of $a^$" in figure.svg and "runs/$x^$" in figure.svg


def test_a_report_of_runs_without_logs_says_so(runs, monkeypatch):
    monkeypatch.setattr("runne_coner.experiment._history", lambda stage: [{"epoch": 1.0, "train_loss": 0.5}])
    (section,) = [section for section in experiment_sections(runs, SETTINGS)[0] if section.title == "Learning curves"]
    assert section.parts == ["tiny: the logs hold no losses and no scores over epochs; see logging_strategy and eval_strategy."]


def test_learning_curves_show_what_was_logged():
    curve = Curve("coner", 1, "stage1", [{"epoch": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}, {"epoch": 2, "eval_pair_auc": 1}])
    assert curve.values("loss").tolist() == [[1, 3]] and curve.values("nothing").shape == (0, 2)
    figure = learning_curves([curve], "tiny")
    assert figure.alt.startswith("2 panels") and CURVES[0][2] in figure.svg.replace("<!--", "").replace("-->", "")
    assert figure.png == learning_curves([curve], "tiny").png
