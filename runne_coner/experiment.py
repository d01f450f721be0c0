"""The report on a grid of experiments: scores and their tests, cost, word spaces, learning curves, errors.

It reads what the cells of `recipes/experiment.py` leave in their folders, and is made from whichever are finished.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .documents import Document, read_documents
from .errors import error_sections
from .figures import Curve, can_draw, curve_panels, learning_curves
from .report import Section, Table
from .significance import RESAMPLES, document_counts, paired_bootstrap, wilcoxon_test
from .word_spaces import SpaceSettings, space_sections

METRICS = {"macro": "macro F1", "few_shot": "few-shot macro F1", "micro": "micro F1"}
NO_PICTURES = "matplotlib is not installed, so there are no pictures: install the extra `analysis` and make the report again."


@dataclass(frozen=True)
class Run:
    """A cell of the grid: `encoder` and `name` as they are shown, `model` that it starts from, `folder` of its files."""

    encoder: str
    model: str
    scheme: str
    seed: int
    folder: Path
    name: str

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").is_file()

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json of a finished cell says."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))

    @cached_property
    def references(self) -> list[Document]:
        return read_documents(self.folder / "references.jsonl")

    @cached_property
    def predictions(self) -> list[Document]:
        return read_documents(self.folder / "predictions.jsonl")

    @cached_property
    def counts(self) -> np.ndarray:
        """`significance.document_counts` of the predictions."""
        return document_counts(self.references, self.predictions, self.metrics["entity_types"])

    def f1(self, metric: str) -> float | None:
        row = self.metrics["scores"][metric]
        return None if row is None else row["f1"]


@dataclass(frozen=True)
class ReportSettings:
    """What the report is made of beside the runs.

    Attributes:
        training: documents of the training corpus.
        spaces: settings of Table 3 and Figure 3.
        error_runs: names of the runs whose errors are analysed; None is the CoNER model (else any) of the first seed.
        resamples, seed: of the bootstrap.
    """

    training: Sequence[Document]
    spaces: SpaceSettings
    error_runs: Sequence[str] | None = None
    resamples: int = RESAMPLES
    seed: int = field(default=0)


def experiment_sections(runs: Sequence[Run], settings: ReportSettings) -> tuple[list[Section], dict[str, Any]]:
    """Sections and data for `report.write_report`.

    Args:
        runs: all runs of the grid, in its order; at least one of them finished.
        settings: see `ReportSettings`.
    """
    finished = [run for run in runs if run.finished]
    sections = [
        _runs_section(runs),
        _scores_section(finished, settings),
        _cost_section(finished),
        *space_sections(finished, settings.training, settings.spaces),
        _curves_section(finished),
    ]
    for run in _runs_with_errors(finished, settings.error_runs):
        types, few_shot = run.metrics["entity_types"], run.metrics["few_shot_types"]
        sections += error_sections(run.references, run.predictions, types, few_shot, settings.training, label=run.name)
    data = {
        "runs": [
            {"encoder": run.encoder, "scheme": run.scheme, "seed": run.seed, "finished": run.finished}
            | ({"scores": run.metrics["scores"], "stages": run.metrics["stages"]} if run.finished else {})
            for run in runs
        ]
    }
    return sections, data


def _runs_section(runs: Sequence[Run]) -> Section:
    missing = [run.name for run in runs if not run.finished]
    state = (
        f"Of {len(runs)} runs {len(runs) - len(missing)} are finished; missing: {', '.join(missing)}. Everything below is from"
        " the finished ones."
        if missing
        else f"All {len(runs)} runs are finished."
    )
    rows = [
        [run.name, "finished", *(run.f1(name) for name in METRICS)] if run.finished else [run.name, "missing", None, None, None]
        for run in runs
    ]
    few_shot = next((run.metrics["few_shot_types"] for run in runs if run.finished), [])
    note = f"Few-shot types: {', '.join(few_shot)}; macro leaves them out." if few_shot else "There are no few-shot types."
    return Section(
        "Runs",
        [
            "standard: stage 2 from the bare encoder. coner: stage 1, then stage 2. standard-long: as standard, longer by what"
            " stage 1 costs. All else is equal between them.",
            state,
            Table("Runs", ["run", "state", *METRICS.values()], rows, note, "runs"),
        ],
        "runs",
    )


# -- Scores -------------------------------------------------------------------------------------------------------------


def _scores_section(runs: Sequence[Run], settings: ReportSettings) -> Section:
    schemes = list(dict.fromkeys(run.scheme for run in runs))
    parts: list = []
    for number, metric in enumerate(METRICS, 1):
        if any(run.f1(metric) is not None for run in runs):
            title = f"Table {number}: {METRICS[metric]}" if number < 3 else METRICS[metric]
            parts.append(_score_table(runs, schemes, metric, title))
    parts.append(_wilcoxon_table(runs, schemes))
    if bootstrap := _bootstrap_table(runs, settings):
        parts.append(bootstrap)
    return Section("Scores", parts, "scores")


def _score_table(runs: Sequence[Run], schemes: Sequence[str], metric: str, title: str) -> Table:
    rows = []
    for encoder in dict.fromkeys(run.encoder for run in runs):
        row: list = [encoder]
        for scheme in schemes:
            values = [run.f1(metric) for run in runs if (run.encoder, run.scheme) == (encoder, scheme)]
            row += [
                float(np.mean(values)) if values else None,
                float(np.std(values, ddof=1)) if len(values) > 1 else None,
                len(values),
            ]
        rows.append(row)
    columns = ["encoder", *(name for scheme in schemes for name in (scheme, "sd", "seeds"))]
    note = "Mean and standard deviation (n - 1) over the seeds of the finished runs."
    return Table(title, columns, rows, note, metric)


def _pairs(runs: Sequence[Run], first: str, second: str) -> list[tuple[Run, Run]]:
    """Runs of two schemes with the same encoder and seed."""
    of_first = {(run.encoder, run.seed): run for run in runs if run.scheme == first}
    return [
        (of_first[run.encoder, run.seed], run) for run in runs if run.scheme == second and (run.encoder, run.seed) in of_first
    ]


def _wilcoxon_table(runs: Sequence[Run], schemes: Sequence[str]) -> Table:
    rows = []
    for first, second in combinations(schemes, 2):
        pairs = _pairs(runs, first, second)
        values = [
            (one.f1(metric), other.f1(metric))
            for metric in ("macro", "few_shot")
            for one, other in pairs
            if one.f1(metric) is not None
        ]
        if values:
            result = wilcoxon_test(*zip(*values, strict=True))
            least = 2.0 ** (1 - result.pairs) if result.pairs else 1.0
            better = sum(other > one for one, other in values)
            rows.append([first, second, len(values), better, result.statistic, result.pvalue, least])
    return Table(
        "Wilcoxon signed-rank test, two-sided, exact",
        ["first", "second", "pairs", "second better", "statistic", "p", "least possible p"],
        rows,
        "As in section 4.1 of the paper: the pairs are the macro F1 and the few-shot macro F1 of each encoder (and seed) under"
        " both schemes. With n pairs p cannot fall below 2^(1 - n)."
        + ("" if rows else " No two schemes share an encoder and seed."),
        "wilcoxon",
    )


def _bootstrap_table(runs: Sequence[Run], settings: ReportSettings) -> Table | None:
    """Rows for each pair of models of a seed, and for their means where several seeds share the evaluated documents."""
    compared = []
    for seed in dict.fromkeys(run.seed for run in runs):
        for first, second in combinations([run for run in runs if run.seed == seed], 2):
            compared.append((str(seed), [first], [second]))
    models = list(dict.fromkeys((run.encoder, run.scheme) for run in runs))
    for one, other in combinations(models, 2):
        seeds = {run.seed for run in runs if (run.encoder, run.scheme) == one}
        seeds &= {run.seed for run in runs if (run.encoder, run.scheme) == other}
        sides = [[run for run in runs if (run.encoder, run.scheme) == model and run.seed in seeds] for model in (one, other)]
        if len(seeds) > 1 and all(_same_gold(side[0], run) for side in sides for run in side):
            compared.append((f"mean of {len(seeds)}", *sides))
    if not compared:
        return None
    rows, metrics = [], [name for name in METRICS if runs[0].f1(name) is not None]
    for label, first, second in tqdm(compared, desc="bootstrap", unit="pair"):
        types, few_shot = first[0].metrics["entity_types"], set(first[0].metrics["few_shot_types"])
        counts = [np.stack([run.counts for run in side]) for side in (first, second)]
        marks = np.array([name in few_shot for name in types])
        intervals = paired_bootstrap(*counts, marks, resamples=settings.resamples, seed=settings.seed)
        row = [label, _model_name(first[0]), _model_name(second[0])]
        for name in metrics:
            row += [intervals[name].difference, intervals[name].low, intervals[name].high]
        rows.append(row)
    columns = [name for metric in metrics for name in (METRICS[metric], "from", "to")]
    return Table(
        "Differences (second minus first) with 95% intervals",
        ["seed", "first", "second", *columns],
        rows,
        f"Paired bootstrap over the evaluated documents, {settings.resamples} resamples, seed {settings.seed}. A difference"
        " whose interval is without 0 does not hang on the choice of documents; that of one seed may still hang on the seed.",
        "bootstrap",
    )


def _same_gold(first: Run, second: Run) -> bool:
    gold = [{str(d.id): set(d.entities) for d in run.references} for run in (first, second)]
    return gold[0] == gold[1]


def _model_name(run: Run) -> str:
    return run.name.rsplit("/", 1)[0]


# -- Cost ---------------------------------------------------------------------------------------------------------------


def _cost_section(runs: Sequence[Run]) -> Section:
    rows, resumed = [], False
    for encoder in dict.fromkeys(run.encoder for run in runs):
        base = None
        for scheme in sorted(dict.fromkeys(run.scheme for run in runs), key=lambda scheme: scheme != "standard"):
            stages = [run.metrics["stages"] for run in runs if (run.encoder, run.scheme) == (encoder, scheme)]
            if not stages:
                continue
            resumed |= any(stage["resumed"] for found in stages for stage in found.values())
            row: list = [encoder, scheme]
            for stage in ("stage1", "stage2"):
                for key in ("epochs", "seconds", "flos"):
                    values = [found[stage][key] for found in stages if stage in found]
                    row.append(float(np.mean(values)) if values else None)
            flos = sum(value for value in (row[4], row[7]) if value is not None)
            base = flos if scheme == "standard" else base
            rows.append([*row[:4], _tera(row[4]), *row[5:7], _tera(row[7]), flos / base if base else None])
    columns = ["encoder", "scheme"]
    columns += [f"{stage} {what}" for stage in ("stage 1", "stage 2") for what in ("epochs", "seconds", "TFLOPs")]
    note = "Means over seeds; seconds of training, evaluations within it included; FLOPs as the Trainer counts them, padding"
    note += " included. standard-long has one epoch of stage 2 more for each of stage 1, or what `long_epochs` says."
    note += " Some stages were resumed: their seconds are those since the last resumption." if resumed else ""
    table = Table("What stage 1 costs", [*columns, "compute / standard"], rows, note, "cost")
    sentences = [
        f"{encoder}: {scheme} took {ratio:.2f} times the compute (FLOPs) of standard."
        for encoder, scheme, *_, ratio in rows
        if ratio is not None and scheme != "standard"
    ]
    return Section("Cost", [*sentences, table], "cost")


def _tera(value: float | None) -> float | None:
    return None if value is None else value / 1e12


# -- Learning curves and errors -----------------------------------------------------------------------------------------


def _curves_section(runs: Sequence[Run]) -> Section:
    if not can_draw():
        return Section("Learning curves", [NO_PICTURES], "learning-curves")
    parts = []
    for encoder in dict.fromkeys(run.encoder for run in runs):
        curves = [
            Curve(run.scheme, run.seed, stage, _history(run.folder / stage))
            for run in runs
            if run.encoder == encoder
            for stage in run.metrics["stages"]
        ]
        nothing = f"{encoder}: the logs hold no losses and no scores over epochs; see logging_strategy and eval_strategy."
        parts.append(learning_curves(curves, encoder) if curve_panels(curves) else nothing)
    return Section("Learning curves", parts, "learning-curves")


def _history(stage: Path) -> list[dict]:
    return json.loads((stage / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


def _runs_with_errors(runs: Sequence[Run], names: Sequence[str] | None) -> list[Run]:
    if names is not None:
        return [run for run in runs if run.name in names]
    first = sorted(runs, key=lambda run: run.scheme != "coner")  # stable: the first encoder and seed come first
    return first[:1]
