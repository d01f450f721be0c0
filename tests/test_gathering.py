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
from runne_coner.preprocessing import entity_view, load_tokenizer

SCRIPT = Path(__file__).parent / "distributed.py"
# One after the other, so that both arrangements see the same windows; the second process' first batch has no span.
SETTINGS = {"train_sampling_strategy": "sequential", "max_steps": 1, "logging_steps": 1, "learning_rate": 1e-2, "seed": 1}


@pytest.fixture(scope="module")
def views(wordpiece_encoder, tmp_path_factory):
    """A view of eight windows of which four have no span, an evaluation view of an odd number, and where they lie."""
    folder = tmp_path_factory.mktemp("views")
    view = entity_view(make_documents(copies=2), load_tokenizer(wordpiece_encoder), TYPES)
    rows = list(range(8))
    empty = view.select(rows[4:]).map(lambda row: {"spans": row["spans"][:0]}, load_from_cache_file=False)
    concatenate_datasets([view.select(rows[:4]), empty]).save_to_disk(folder / "uneven")
    view.select(rows).save_to_disk(folder / "full")
    view.select(range(11)).save_to_disk(folder / "evaluation")
    return folder


def run(folder, name, processes, encoder, environment, view="full", pooling="mean", **args):
    settings = {"encoder": encoder, "view": str(folder / view), "evaluation": str(folder / "evaluation"), "pooling": pooling}
    file, output = folder / f"{name}.json", folder / f"{name}.safetensors"
    file.write_text(json.dumps(settings | {"args": SETTINGS | args}), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(SCRIPT), str(file), str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-4000:]
    found = load_file(output)
    return found.pop("losses"), found, json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(
    ("view", "pooling", "args"),
    [
        ("full", "masked_matrix", {}),
        # A process without any span neither stops the other nor changes the result.
        ("uneven", "mean", {}),
        # Caching and accumulation on top of it.
        ("full", "mean", {"gradient_cache_chunk": 1, "gradient_accumulation_steps": 2}),
    ],
)
def test_two_processes_equal_one_with_the_larger_batch(views, wordpiece_encoder, quiet_environment, view, pooling, args):
    size = 8 // args.get("gradient_accumulation_steps", 1)
    sizes = {"per_device_train_batch_size": size, "per_device_eval_batch_size": 4}
    halves = {"per_device_train_batch_size": size // 2, "per_device_eval_batch_size": 2}
    plain = {name: value for name, value in args.items() if name != "gradient_cache_chunk"}
    common = (wordpiece_encoder, quiet_environment, view, pooling)
    one_loss, one, one_metrics = run(views, f"one-{view}-{pooling}", 1, *common, **sizes, **plain)
    two_loss, two, two_metrics = run(views, f"two-{view}-{pooling}", 2, *common, **halves, **args)
    assert two_loss.tolist() == pytest.approx(one_loss.tolist(), abs=1e-5) and len(two_loss) == 1
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-5
    assert max(value.abs().max() for value in one.values()) > 1e-2
    # Evaluation looks at each of the 11 windows once, whoever had it.
    timings = ("runtime", "per_second", "preparation_time", "eval_loss")
    names = [name for name in one_metrics if not name.endswith(timings)]
    assert len(names) >= 9 and one_metrics.keys() == two_metrics.keys()
    assert [two_metrics[name] for name in names] == pytest.approx([one_metrics[name] for name in names], abs=1e-4)


def test_one_process_gathers_nothing():
    embeddings = torch.randn(3, 4, requires_grad=True)
    columns = {"types": torch.tensor([0, 1, 1]), "spans": torch.zeros(3, 3, dtype=torch.long)}
    assert list(columns) == SPAN_COLUMNS
    found, same = gather_spans(Accelerator(cpu=True), embeddings, columns, 2)
    assert found is embeddings and same is columns
