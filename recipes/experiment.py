"""The experiments of the paper (Bondarenko 2022, section 4) on any corpus: encoders x schemes x seeds.

    accelerate launch recipes/experiment.py                                    # the bundled sample
    accelerate launch recipes/experiment.py --config recipes/runne/e5-small-ru/experiment.yaml --dataset FOLDER
    accelerate launch recipes/experiment.py --max_hours 2                      # starts no cell later; again to go on
    accelerate launch recipes/experiment.py --help                             # all settings

A cell of the grid is a run of recipes/stage1.py and recipes/stage2.py under one of the schemes

    standard        stage 2 from the bare encoder
    coner           stage 1, then stage 2
    standard-long   stage 2 from the bare encoder, longer by what stage 1 costs: one epoch for each of stage 1, as both stages
                    go forward and backward over the windows of the same texts (`long_epochs` says otherwise)

and lies in `output_dir`/ENCODER/SCHEME/seed-SEED: stage1.yaml and stage2.yaml (the settings that ran), log.txt, metrics.json,
predictions.jsonl and references.jsonl of the evaluated split, and the models. Finished cells are skipped, interrupted ones go
on from their last checkpoint, failed ones are reported and tried again by the next start. Seeds are the outermost loop, so
that whatever stops the grid leaves whole seeds. At the end, `output_dir`/report holds tables 1-3, figure 3, learning curves
and an error analysis of what is finished; `--report_only true` makes it again.

`accelerate launch` may start several processes: the first one runs the grid and starts as many for every stage (by torchrun,
with the settings that `accelerate` put into the environment); the others end at once.
"""

import contextlib
import difflib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from grid import (
    DEFAULT_CONFIG,
    Cell,
    ExperimentArguments,
    check_grid,
    config_path,
    make_grid,
    shown_name,
    stage_parts,
    stage_yaml,
)
from tqdm import tqdm

from runne_coner.arguments import DataArguments, UsageError, load_corpus, parse_settings
from runne_coner.cli import exit_on_input_error, predict_documents
from runne_coner.documents import from_row, write_runne
from runne_coner.experiment import ReportSettings, Run, experiment_sections
from runne_coner.files import write_text
from runne_coner.metrics import score_documents
from runne_coner.pipeline import load_pipeline
from runne_coner.report import check_report_folder, write_report
from runne_coner.word_spaces import SpaceSettings

OF_THE_LAUNCHER = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME"),
}
"""Environment variables by which torchrun tells a process its place."""

# -- A cell -------------------------------------------------------------------------------------------------------------


class CellError(RuntimeError):
    """A cell that could not be finished; the message says why, and where its log lies."""


def run_cell(cell: Cell, data: DataArguments, processes: int, bar: tqdm) -> None:
    """Run what is left of a cell: its stages, then the predictions and scores of the evaluated documents.

    Raises:
        CellError: a stage failed, or another process is at work on the cell.
    """
    with _locked(cell) as lock:
        for stage, content in cell.stages.items():
            if not cell.results(stage).exists():
                _run_stage(cell, stage, content, processes, bar, lock)
        bar.set_postfix_str("predicting", refresh=True)
        with open(cell.log, "a", encoding="utf-8") as log:
            try:
                _predict(cell, data)
            except Exception as error:
                traceback.print_exc(file=log)
                raise CellError(f"{cell.name}: predicting: {type(error).__name__}: {error}; see {cell.log}") from error
    for stage in cell.stages:
        for checkpoint in (cell.folder / stage).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)


@contextlib.contextmanager
def _locked(cell: Cell) -> Iterator[int]:
    """A lock on the cell that its stages inherit: a stage that outlives a killed experiment keeps it."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with open(cell.folder / ".lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CellError(f"{cell.name}: another process is at work in {cell.folder}; wait for it or end it") from error
        yield file.fileno()


def _run_stage(cell: Cell, stage: str, content: dict, processes: int, bar: tqdm, lock: int) -> None:
    resumed = bool(cell.checkpoints(stage))
    write_text(cell.config(stage), stage_yaml(content))
    command = stage_command(cell, stage, processes)
    command += ["--resume_from_checkpoint", "last"] if resumed else []
    with open(cell.log, "a", encoding="utf-8") as log:
        print(f"\n=== {' '.join(command)}", file=log, flush=True)
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            pass_fds=(lock,),
        )
        try:
            # A terminal shows the stage's own bar; a file need not grow by a line every other second.
            while _still_runs(child, seconds=2 if sys.stderr.isatty() else 60):
                bar.set_postfix_str(f"{stage}: {_last_line(cell.log)[:70]}", refresh=True)
        finally:
            # Reached with a running child only if the experiment itself is stopped.
            if child.poll() is None:
                child.terminate()
                child.wait()
    if child.returncode:
        raise CellError(f"{cell.name}: {stage} ended with exit code {child.returncode}: {_last_line(cell.log)}; see {cell.log}")
    write_text(cell.results(stage), json.dumps(_stage_results(cell.folder / stage, resumed), indent=2))


def stage_command(cell: Cell, stage: str, processes: int) -> list[str]:
    """Command line of a stage of a cell."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    return [sys.executable, *launcher, str(Path(__file__).with_name(f"{stage}.py")), "--config", str(cell.config(stage))]


def _still_runs(child: subprocess.Popen, seconds: float) -> bool:
    try:
        child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _last_line(log: Path) -> str:
    """Last line of a log, where a progress bar rewrites its own."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = [line.strip() for line in re.split(r"[\r\n]+", file.read().decode("utf-8", "replace"))]
    return next((line for line in reversed(lines) if line), "")


def _stage_results(folder: Path, resumed: bool) -> dict:
    """What a stage cost, from the Trainer's files: training seconds (since the last resumption), FLOPs, epochs, steps."""
    train, evaluation, state = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("train_results.json", "eval_results.json", "trainer_state.json")
    )
    return {
        "seconds": train["train_runtime"],
        "resumed": resumed,
        "flos": state["total_flos"],
        "epochs": state["epoch"],
        "steps": state["global_step"],
        "metrics": evaluation,
    }


def _predict(cell: Cell, data: DataArguments) -> None:
    """Leave predictions, references and scores; metrics.json, written last, marks the cell as finished."""
    training = stage_parts("stage2", cell.stages["stage2"])[2]
    training.use_cpu_threads()
    references = [from_row(row) for row in load_corpus(data, cell.seed).evaluation]
    recognizer = load_pipeline(str(cell.folder / "stage2"))
    config = recognizer.model.config
    predictions = predict_documents(recognizer, references, batch_size=training.per_device_eval_batch_size)
    write_runne(references, cell.folder / "references.jsonl")
    write_runne(predictions, cell.folder / "predictions.jsonl")
    content = {
        "encoder": cell.encoder,
        "scheme": cell.scheme,
        "seed": cell.seed,
        "entity_types": config.entity_types,
        "few_shot_types": config.few_shot_types,
        "scores": score_documents(references, predictions, config.entity_types, config.few_shot_types),
        "stages": {stage: json.loads(cell.results(stage).read_text(encoding="utf-8")) for stage in cell.stages},
    }
    write_text(cell.metrics, json.dumps(content, indent=2, ensure_ascii=False))


# -- All cells ----------------------------------------------------------------------------------------------------------


def run_grid(cells: list[Cell], data: DataArguments, processes: int, max_hours: float | None) -> list[str]:
    """Run the cells that are not finished.

    Returns:
        What failed, a line a cell.
    """
    started = time.monotonic()
    todo = [cell for cell in cells if not cell.metrics.exists()]
    failures = []
    with tqdm(total=len(cells), initial=len(cells) - len(todo), unit="cell", desc="cells") as bar:
        for number, cell in enumerate(todo):
            hours = (time.monotonic() - started) / 3600
            if max_hours is not None and hours >= max_hours:
                left = len(todo) - number
                bar.write(
                    f"stopped after {hours:.2f} hours (max_hours {max_hours}) with {left} cells left; start again to go on"
                )
                break
            bar.write(f"{cell.name}: log in {cell.log}")
            try:
                run_cell(cell, data, processes, bar)
            except CellError as error:
                failures.append(str(error))
                bar.write(f"failed: {error}")
            else:
                bar.write(f"{cell.name}: {_summary(json.loads(cell.metrics.read_text(encoding='utf-8')))}")
            bar.update()
    return failures


def _summary(metrics: dict) -> str:
    parts = {
        "micro": metrics["scores"]["micro"],
        "macro": metrics["scores"]["macro"],
        "few-shot": metrics["scores"]["few_shot"],
    }
    return "F1 " + ", ".join(f"{name} {row['f1']:.4f}" for name, row in parts.items() if row is not None)


# -- The report ---------------------------------------------------------------------------------------------------------


def check_report(cells: list[Cell], settings: ExperimentArguments, types: list[str]) -> None:
    """Refuse settings of the report before anything runs.

    Args:
        types: entity types of the corpus.
    Raises:
        UsageError, report.ReportError
    """
    names = [cell.name for cell in cells]
    for name in settings.error_cells or ():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise UsageError(f"error_cells: there is no cell {name!r}{f'; did you mean {near[0]}?' if near else f': {names}'}")
    if settings.figure_type is not None and settings.figure_type not in types:
        raise UsageError(f"figure_type {settings.figure_type!r} is not among the types {types}")
    if settings.report_only and not any(cell.metrics.exists() for cell in cells):
        raise UsageError(f"{settings.output_dir} holds no finished cell of this grid: run it without report_only first")
    check_report_folder(Path(settings.output_dir) / "report")


def make_report(cells: list[Cell], settings: ExperimentArguments, data: DataArguments) -> None:
    """Write the report on the cells that are finished, if there are any."""
    runs = [Run(shown_name(cell.encoder), cell.encoder, cell.scheme, cell.seed, cell.folder, cell.name) for cell in cells]
    first = next((run for run in runs if run.finished), None)
    if first is None:
        print("no cell is finished, so there is no report yet")
        return
    training = stage_parts("stage2", cells[0].stages["stage2"])[2]
    training.use_cpu_threads()
    documents = [from_row(row) for row in load_corpus(data, first.seed).train]
    spaces = SpaceSettings(
        data.windows, settings.figure_type, settings.figure_words, settings.encoder_cache, training.per_device_eval_batch_size
    )
    report = ReportSettings(documents, spaces, settings.error_cells, settings.resamples)
    sections, content = experiment_sections(runs, report)
    page = write_report(Path(settings.output_dir) / "report", "CoNER against standard NER", sections, content)
    print(f"the report lies in {page}")


# -- Start --------------------------------------------------------------------------------------------------------------


def take_over_processes() -> int:
    """How many processes were launched for the experiment, if this is the first of them; the others end here.

    What the launcher said about ranks leaves the environment: this process is no part of a process group.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size != int(os.environ.get("LOCAL_WORLD_SIZE", size)):
        raise UsageError("the experiment runs on one machine: launch it with --num_machines 1")
    if int(os.environ.get("RANK", "0")) != 0:
        sys.exit(0)
    for name in [name for name in os.environ if name in OF_THE_LAUNCHER or name.startswith("TORCHELASTIC_")]:
        del os.environ[name]
    return size


def main(argv: list[str]) -> None:
    processes = take_over_processes()
    settings, data = parse_settings(argv, [ExperimentArguments, DataArguments], DEFAULT_CONFIG, __doc__)
    # Ended by a signal, the experiment ends its running stage too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cells = make_grid(settings, data, config_path(argv))
    # A corpus that cannot be read is one error here, and would be one in every cell.
    check_report(cells, settings, load_corpus(data, settings.seeds[0]).entity_types)
    failures = []
    if not settings.report_only:
        check_grid(cells)
        failures = run_grid(cells, data, processes, settings.max_hours)
    make_report(cells, settings, data)
    if failures:
        print(f"{len(failures)} of {len(cells)} cells failed; start again to try them once more:", file=sys.stderr)
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
