"""Two processes on the CPU train and are evaluated as one with the larger batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import TYPES, make_documents
from datasets import concatenate_datasets
from safetensors.torch import load_file

from runne_coner.gathering import SPAN_COLUMNS, gather_spans
from runne_coner.preprocessing import bilou_view, entity_view, load_tokenizer

SCRIPT = Path(__file__).parent / "distributed.py"
# One after the other, so that both arrangements see the same windows; evaluation sees the weights as they were.
SETTINGS = {"train_sampling_strategy": "sequential", "max_steps": 1, "logging_steps": 1, "learning_rate": 1e-12, "seed": 1}
SETTINGS |= {"save_strategy": "no", "max_grad_norm": 0.0}
TAGGED = {"entity_types": TYPES, "levels": 2, "head_dropout": 0.0}
CASES = {
    "matrix": (1, "full", {"span_pooling": "masked_matrix"}, {}),
    # A process without any span neither stops the other nor changes the result.
    "uneven": (1, "uneven", {}, {}),
    # Caching and accumulation on top of it.
    "cached": (1, "full", {}, {"gradient_cache_chunk": 1, "gradient_accumulation_steps": 3}),
    # Windows of stage 2 have other numbers of tokens in one process than in the other.
    "tagged": (2, "tagged", TAGGED, {"rare_type_share": 0.0}),
    "accumulated": (2, "tagged", TAGGED, {"rare_type_share": 0.0, "gradient_accumulation_steps": 3}),
}


@pytest.fixture(scope="module")
def views(wordpiece_encoder, tmp_path_factory):
    """Views of six windows, of which none or the last three have no span, and one of seven to evaluate on.

    No text comes twice: spans at no distance, where the slope of the loss is infinite, would make noise of its gradient.
    """
    folder = tmp_path_factory.mktemp("views")
    view = entity_view(make_documents(), load_tokenizer(wordpiece_encoder), TYPES)
    assert len(view) == 7
    empty = view.select(range(3, 6)).map(lambda row: {"spans": row["spans"][:0]}, load_from_cache_file=False)
    concatenate_datasets([view.select(range(3)), empty]).save_to_disk(folder / "uneven")
    view.select(range(6)).save_to_disk(folder / "full")
    view.save_to_disk(folder / "evaluation-1")
    tagged = bilou_view(make_documents(), load_tokenizer(wordpiece_encoder), TYPES, 2)
    assert len(tagged) == 7 and sum(tagged["length"][:3]) != sum(tagged["length"][3:6])
    tagged.select(range(6)).save_to_disk(folder / "tagged")
    tagged.save_to_disk(folder / "evaluation-2")
    return folder


def launch(folder, processes, encoder, environment):
    """Runs all cases with six training and four evaluation windows in a batch of all processes together."""
    cases = []
    for name, (stage, view, network, args) in CASES.items():
        own = {"per_device_train_batch_size": 6 // args.get("gradient_accumulation_steps", 1) // processes}
        own |= {"per_device_eval_batch_size": 4 // processes}
        # One process is the plain reference.
        kept = {key: value for key, value in args.items() if processes > 1 or key != "gradient_cache_chunk"}
        case = {"name": name, "stage": stage, "network": network, "args": own | kept}
        cases.append(case | {"view": str(folder / view), "evaluation": str(folder / f"evaluation-{stage}")})
    output = folder / str(processes)
    output.mkdir()
    settings = {"encoder": encoder, "args": SETTINGS, "cases": cases}
    (output / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(SCRIPT), str(output / "settings.json"), str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: (load_file(output / f"{name}.safetensors"), json.loads((output / f"{name}.json").read_text(encoding="utf-8")))
        for name in CASES
    }


def test_two_processes_equal_one_with_the_larger_batch(views, wordpiece_encoder, quiet_environment):
    alone = launch(views, 1, wordpiece_encoder, quiet_environment)
    together = launch(views, 2, wordpiece_encoder, quiet_environment)
    for name in CASES:
        (one, one_metrics), (two, two_metrics) = alone[name], together[name]
        assert one.keys() == two.keys() and len(one["losses"]) == 1
        # The loss is logged with four digits, the gradients are those that the optimiser sees.
        assert one.pop("losses").item() == pytest.approx(two.pop("losses").item(), abs=2e-4), name
        assert max((one[key] - two[key]).abs().max() for key in one) < 1e-5, name
        assert max(value.abs().max() for value in one.values()) > 1e-2, name
        # Evaluation looks at each of the 7 windows once, whoever had it.
        stage, _, network, _ = CASES[name]
        # The loss of stage 1 is one of pairs within a batch.
        timings = ("runtime", "per_second", "preparation_time", *(["eval_loss"] if stage == 1 else []))
        scores = [key for key in one_metrics if not key.endswith(timings)]
        assert len(scores) >= (9 if stage == 1 else 2) and {key for key in two_metrics if not key.endswith(timings)} == set(
            scores
        )
        if network.get("span_pooling") == "masked_matrix":
            # Spans at other positions of their windows are all equally far: which are nearest is a matter of rounding.
            scores.remove("eval_neighbour_accuracy")
        assert [two_metrics[key] for key in scores] == pytest.approx([one_metrics[key] for key in scores], abs=1e-4), name


def test_one_process_gathers_nothing():
    embeddings = torch.randn(3, 4, requires_grad=True)
    columns = {"types": torch.tensor([0, 1, 1]), "spans": torch.zeros(3, 3, dtype=torch.long)}
    assert columns.keys() < set(SPAN_COLUMNS)
    found, same = gather_spans(Accelerator(cpu=True), embeddings, columns, 2)
    assert found is embeddings and same is columns
