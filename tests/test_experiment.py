"""The grid of experiments: its cells and their settings, stopping and going on, and one small grid run as a program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TYPES, make_documents

from runne_coner.arguments import DataArguments, UsageError, parse_settings
from runne_coner.documents import from_row, read_documents, write_runne
from runne_coner.metrics import score_documents
from runne_coner.report import ReportError

STAGE = """
per_device_train_batch_size: {batch}
num_train_epochs: {epochs}
learning_rate: 5e-3
logging_steps: 1
eval_strategy: "no"
save_strategy: "no"
report_to: none
"""


@pytest.fixture(scope="module")
def recipes():
    """The modules (experiment, grid) as a program that starts in recipes/ sees them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "recipes"))
        import experiment
        import grid
    return experiment, grid


@pytest.fixture
def config(tmp_path):
    """An experiment's YAML file with those of its stages beside it."""
    (tmp_path / "corpus").mkdir()
    for split, copies in (("train", 3), ("dev", 1)):
        write_runne([from_row(row) for row in make_documents(copies=copies)], tmp_path / "corpus" / f"{split}.jsonl")
    (tmp_path / "corpus" / "ners.txt").write_text("\n".join(TYPES), encoding="utf-8")
    for stage, batch, epochs in (("stage1", 8, 1), ("stage2", 4, 2)):
        text = STAGE.format(batch=batch, epochs=epochs) + f"output_dir: {tmp_path / stage}\n"
        (tmp_path / f"{stage}.yaml").write_text(text, encoding="utf-8")
    path = tmp_path / "experiment.yaml"
    content = {"encoders": ["org/name"], "seeds": [1, 2], "output_dir": str(tmp_path / "out")}
    content |= {"dataset": str(tmp_path / "corpus"), "eval_split": "dev", "few_shot_types": ["DISEASE"]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture
def make(recipes, config):
    """Makes the cells of a command line: `make(*argv)`; returns (settings, data, cells)."""
    _, grid = recipes

    def make(*argv):
        settings, data = parse_settings(
            ["--config", str(config), *argv], [grid.ExperimentArguments, DataArguments], config, "An experiment."
        )
        return settings, data, grid.make_grid(settings, data, config)

    return make


# -- The grid -----------------------------------------------------------------------------------------------------------


def test_cells_in_order_and_their_settings(make, tmp_path):
    _, _, cells = make("--stage2", '{"levels": 2}', "--max_length", "99")
    assert [(cell.seed, cell.scheme) for cell in cells] == [
        (seed, scheme) for seed in (1, 2) for scheme in ("standard", "coner", "standard-long")
    ]
    standard, coner, long = cells[:3]
    assert coner.folder == tmp_path / "out" / "org--name" / "coner" / "seed-1"
    assert list(standard.stages) == list(long.stages) == ["stage2"] and list(coner.stages) == ["stage1", "stage2"]
    assert coner.stages["stage1"]["model_name_or_path"] == standard.stages["stage2"]["model_name_or_path"] == "org/name"
    assert coner.stages["stage2"]["model_name_or_path"] == coner.stages["stage1"]["output_dir"] == str(coner.folder / "stage1")
    assert {cell.stages["stage2"]["seed"] for cell in cells} == {1, 2}
    assert all(content["max_length"] == 99 for cell in cells for content in cell.stages.values())
    # Stage 1 is all that the schemes differ in, and one epoch of standard-long for the one of stage 1.
    differing = [
        {key for key in a.stages["stage2"] if a.stages["stage2"][key] != b.stages["stage2"].get(key)}
        for a, b in ((standard, coner), (standard, long))
    ]
    assert differing == [{"model_name_or_path", "output_dir"}, {"num_train_epochs", "output_dir"}]
    assert standard.stages["stage2"]["levels"] == 2 and long.stages["stage2"]["num_train_epochs"] == 3


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--stage1", '{"num_train_epochs": 0.5}'], {"num_train_epochs": 2.5}),
        (["--long_epochs", "7"], {"num_train_epochs": 7.0, "max_steps": -1}),
        # A step of stage 1 sees twice as many windows here.
        (["--stage1", '{"max_steps": 3}', "--stage2", '{"max_steps": 5}'], {"max_steps": 11}),
    ],
)
def test_the_compute_of_stage_1_for_the_standard_model(make, argv, expected):
    _, _, cells = make(*argv, "--schemes", "standard-long")
    assert expected.items() <= cells[0].stages["stage2"].items()


def test_seeds_of_a_file_are_numbers(make, config):
    config.write_text(config.read_text(encoding="utf-8") + "seeds: [1, x]\n", encoding="utf-8")
    with pytest.raises(UsageError, match="seeds must be of the type.*int.*'x'"):
        make()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--schemes", "standart"], "standart"),
        (["--seeds", "1", "1"], "without repetitions"),
        (["--encoders", "./x", "x"], "share a folder"),
        (["--long_epochs", "0"], "long_epochs"),
        (["--max_hours", "-1"], "max_hours"),
        (["--resamples", "0"], "resamples"),
        (["--figure_words", "5"], "figure_words"),
        (["--stage1", "{"], "stage1 must be a JSON object"),
        (["--stage1", "[1]"], "stage1 must be a JSON object"),
        (["--stage1", '{"seed": 1}'], "seed is the experiment's"),
        (["--stage2", '{"dataset": "x"}'], "dataset is the experiment's"),
        (["--stage1", '{"pair_mode": "sampled"}'], "say long_epochs"),
        (["--stage1", '{"max_steps": 3}'], "one stage only"),
        (["--stage2_config", "missing.yaml"], "missing.yaml.*cannot be read"),
        (["--shemes", "coner"], "did you mean schemes"),
    ],
)
def test_grids_that_cannot_be_meant(make, argv, message):
    with pytest.raises(UsageError, match=message):
        make(*argv)


def test_a_stages_settings_are_checked_before_anything_runs(make, recipes, config):
    _, grid = recipes
    wrong = {
        '{"lerning_rate": 1}': "^stage2: unknown key 'lerning_rate'; did you mean learning_rate",
        '{"levels": 0}': "^stage2: .*levels must be",
        '{"levels": "two"}': "^stage2: .*two",
        '{"focal_gamma": 1.0}': "^stage2: focal_gamma 1.0 changes nothing with ce_form plain",
    }
    for setting, message in wrong.items():
        with pytest.raises(UsageError, match=message):
            grid.check_grid(make("--stage2", setting, "--schemes", "coner")[2])
    alone = {"pair_mode": "sampled", "outside": "negative"}
    with pytest.raises(UsageError, match="^stage1: .*outside must be class or none"):
        grid.check_grid(make("--stage1", json.dumps(alone), "--schemes", "standard", "coner")[2])
    stage = config.with_name("stage1.yaml")
    stage.write_text(stage.read_text(encoding="utf-8") + "max_length: 64\n", encoding="utf-8")
    with pytest.raises(UsageError, match="max_length is 64 there and 128 in the experiment"):
        make()
    assert len(make("--max_length", "64")[2]) == 6


# -- Stopping and going on ----------------------------------------------------------------------------------------------

STAND_IN = """
import json, os, pathlib, sys, time, yaml
settings = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
folder = pathlib.Path(settings["output_dir"])
(folder / "checkpoint-1").mkdir(parents=True, exist_ok=True)
print("stand-in of", folder, *sys.argv[2:])
if "LASTS" in os.environ:
    time.sleep(100)
if settings["seed"] == int(os.environ.get("FAILS", 0)):
    sys.exit("it fails")
for name in ("rng_state.pth", "trainer_state.json"):
    (folder / "checkpoint-1" / name).write_text("{}")
if settings["seed"] == int(os.environ.get("IS_KILLED", 0)):
    os.kill(os.getpid(), 9)
for name, content in {
    "train_results.json": {"train_runtime": 1.5}, "eval_results.json": {"eval_loss": 1.0},
    "trainer_state.json": {"total_flos": 10.0, "epoch": 1.0, "global_step": 3},
}.items():
    (folder / name).write_text(json.dumps(content))
"""


@pytest.fixture
def run(make, recipes, tmp_path, monkeypatch):
    """Runs a grid whose stages and predictions are stand-ins: `run(*argv)`; returns (failures, cells, cells that predicted)."""
    experiment, grid = recipes
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(
        experiment, "stage_command", lambda cell, stage, processes: [sys.executable, str(script), str(cell.config(stage))]
    )

    def run(*argv):
        predicted = []
        scores = score_documents([], [], ["A"])

        def predict(cell, data):
            predicted.append(cell.name)
            cell.metrics.write_text(json.dumps({"scores": scores}), encoding="utf-8")

        monkeypatch.setattr(experiment, "_predict", predict)
        settings, data, cells = make(*argv)
        grid.check_grid(cells)
        return experiment.run_grid(cells, data, 1, settings.max_hours), cells, predicted

    return run


def test_finished_cells_are_skipped_and_failed_ones_tried_again(run, monkeypatch, capsys):
    monkeypatch.setenv("FAILS", "1")
    failures, cells, predicted = run("--schemes", "coner", "standard")
    assert len(failures) == 2 and all("stage" in text and "it fails" in text and "log.txt" in text for text in failures)
    assert predicted == [cell.name for cell in cells if cell.seed == 2]
    assert not list(cells[2].folder.glob("*/checkpoint-*")) and not cells[0].metrics.exists()
    results = json.loads(cells[2].results("stage1").read_text(encoding="utf-8"))
    assert results == {
        "seconds": 1.5,
        "resumed": False,
        "flos": 10.0,
        "epochs": 1.0,
        "steps": 3,
        "metrics": {"eval_loss": 1.0},
    }
    assert "log in " + str(cells[0].log) in capsys.readouterr().out
    monkeypatch.delenv("FAILS")
    failures, cells, predicted = run("--schemes", "coner", "standard")
    assert failures == [] and predicted == [cell.name for cell in cells if cell.seed == 1]
    assert "--resume_from_checkpoint" not in cells[0].log.read_text(encoding="utf-8")  # a broken checkpoint is no checkpoint
    assert run("--schemes", "coner", "standard")[2] == []


def test_an_interrupted_stage_resumes_and_other_settings_are_refused(run, monkeypatch):
    monkeypatch.setenv("IS_KILLED", "1")
    failures, cells, _ = run("--schemes", "standard", "--seeds", "1")
    assert "exit code -9" in failures[0] and cells[0].checkpoints("stage2")
    monkeypatch.delenv("IS_KILLED")
    with pytest.raises(UsageError, match=r"learning_rate was '5e-3', is 1e-05.*delete these cells' folders"):
        run("--schemes", "standard", "--seeds", "1", "--stage2", '{"learning_rate": 1e-5}')
    assert run("--schemes", "standard", "--seeds", "1")[0] == []
    log = cells[0].log.read_text(encoding="utf-8")
    assert log.count("stand-in of") == 2 and log.rstrip().endswith("--resume_from_checkpoint last")
    assert json.loads(cells[0].results("stage2").read_text(encoding="utf-8"))["resumed"] is True
    # Where the encoder is kept changes nothing; a finished cell with another length does.
    run("--schemes", "standard", "--seeds", "1", "--encoder_cache", str(cells[0].folder))
    with pytest.raises(UsageError, match="num_train_epochs was 2, is 5"):
        run("--schemes", "standard", "--seeds", "1", "--stage2", '{"num_train_epochs": 5}')


def test_max_hours_stops_before_the_next_cell(run, recipes, monkeypatch, capsys):
    clock = iter([0, 100, 3700])
    monkeypatch.setattr(recipes[0].time, "monotonic", lambda: next(clock))
    failures, cells, predicted = run("--max_hours", "1")
    assert failures == [] and predicted == [cells[0].name]
    assert "stopped after 1.03 hours (max_hours 1.0) with 5 cells left" in capsys.readouterr().out


def test_two_experiments_do_not_share_a_cell(run, recipes):
    _, cells, _ = run("--max_hours", "0")
    with recipes[0]._locked(cells[0]):
        failures, _, predicted = run("--seeds", "1")
    assert len(failures) == 1 and "another process is at work" in failures[0]
    assert predicted == [cell.name for cell in cells[1:3]]


def test_a_stopped_experiment_ends_its_stage(run, recipes, monkeypatch):
    experiment, _ = recipes
    monkeypatch.setenv("LASTS", "1")
    children = []

    def stopped(child, seconds):
        children.append(child)
        sys.exit(143)  # as the handler of SIGTERM does

    monkeypatch.setattr(experiment, "_still_runs", stopped)
    with pytest.raises(SystemExit):
        run("--seeds", "1")
    assert children[0].returncode == -15


def test_a_failed_prediction_is_reported_and_logged(run, recipes, monkeypatch):
    experiment, _ = recipes
    _, cells, _ = run("--max_hours", "0")

    def broken(cell, data):
        raise ValueError("no memory")

    monkeypatch.setattr(experiment, "_predict", broken)
    failures = experiment.run_grid(cells[:1], None, 1, None)
    assert failures == [f"{cells[0].name}: predicting: ValueError: no memory; see {cells[0].log}"]
    assert "Traceback" in cells[0].log.read_text(encoding="utf-8")


def test_what_the_report_cannot_be_made_of(make, recipes, tmp_path):
    experiment, _ = recipes
    settings, _, cells = make("--error_cells", "org--name/conr/seed-1")
    with pytest.raises(UsageError, match="no cell 'org--name/conr/seed-1'; did you mean org--name/coner/seed-1"):
        experiment.check_report(cells, settings, TYPES)
    with pytest.raises(UsageError, match="holds no finished cell"):
        settings, _, cells = make("--report_only", "true")
        experiment.check_report(cells, settings, TYPES)
    (tmp_path / "out" / "report").mkdir(parents=True)
    (tmp_path / "out" / "report" / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(ReportError, match="thesis.tex"):
        experiment.check_report(cells, make()[0], TYPES)
    with pytest.raises(UsageError, match="figure_type 'MONY' is not among"):
        experiment.check_report(cells, make("--figure_type", "MONY")[0], TYPES)


def test_names_of_encoders(recipes, tmp_path):
    _, grid = recipes
    assert (grid.shown_name("org/name"), grid.folder_name("org/name")) == ("org/name", "org--name")
    assert (grid.shown_name("e5-small-ru"), grid.folder_name("e5-small-ru")) == ("e5-small-ru", "e5-small-ru")
    (tmp_path / "my encoder").mkdir()
    for path in (str(tmp_path / "my encoder"), f"{tmp_path}/my encoder/"):
        assert (grid.shown_name(path), grid.folder_name(path)) == ("my encoder", "my_encoder")


def test_processes_of_the_launcher(recipes, monkeypatch):
    experiment, _ = recipes
    for name in list(os.environ):
        if name in experiment.OF_THE_LAUNCHER:
            monkeypatch.delenv(name)
    assert experiment.take_over_processes() == 1
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        experiment.take_over_processes()
    assert end.value.code == 0
    monkeypatch.setenv("RANK", "0")
    assert experiment.take_over_processes() == 2
    assert not {"WORLD_SIZE", "RANK", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one machine"):
        experiment.take_over_processes()


# -- As a program -------------------------------------------------------------------------------------------------------


def test_a_small_grid_as_a_program(config, tmp_path, wordpiece_encoder, quiet_environment):
    """One cell of real stages: the scores are those of the predictions, and the report those of the cell."""
    command = [sys.executable, str(ROOT / "recipes" / "experiment.py"), "--config", str(config), "--seeds", "1"]
    command += ["--encoders", wordpiece_encoder, "--schemes", "coner"]
    steps = json.dumps({"max_steps": 2, "cpu_threads": 1})
    command += ["--stage1", steps, "--stage2", steps]
    folder = tmp_path / "out" / Path(wordpiece_encoder).name / "coner" / "seed-1"
    done = subprocess.run(command, env=quiet_environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["scheme"], metrics["seed"], list(metrics["stages"])) == ("coner", 1, ["stage1", "stage2"])
    assert all(stage["flos"] > 0 and stage["seconds"] > 0 for stage in metrics["stages"].values())
    references, predictions = (read_documents(folder / f"{name}.jsonl") for name in ("references", "predictions"))
    assert [document.text for document in predictions] == [row["text"] for row in make_documents()]
    assert metrics["scores"] == score_documents(references, predictions, metrics["entity_types"], ["DISEASE"])
    assert (folder / "stage1" / "model.safetensors").is_file() and (folder / "stage2" / "model.safetensors").is_file()
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["tables"]["runs"]["rows"][0][2] == metrics["scores"]["macro"]["f1"]
    assert str(tmp_path) not in (tmp_path / "out" / "report" / "report.html").read_text(encoding="utf-8")
