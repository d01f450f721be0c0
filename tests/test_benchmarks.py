"""The benchmarks still run: their measurements themselves are for a quiet machine, not for the tests."""

import importlib.util
import re
from argparse import Namespace
from pathlib import Path

import pytest

from runne_coner.nerel import SAMPLE

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stage1():
    return benchmark("stage1")


def test_stage1_compares_pair_modes_and_padding(stage1, wordpiece_encoder, capsys):
    view, tokenizer, model, num_types = stage1.load(Namespace(documents=str(SAMPLE / "train.jsonl"), model=wordpiece_encoder))
    stage1.compare_modes(view, tokenizer, model, num_types, steps=2)
    stage1.compare_padding(view)
    printed = capsys.readouterr().out
    rates = {mode: float(re.search(rf"^  {mode} +([\d.]+)$", printed, re.M)[1]) for mode in ("in_batch", "sampled")}
    # Every span against every other, from as many windows as make 16 drawn pairs.
    assert rates["in_batch"] > 10 * rates["sampled"] > 0
    shares = [float(share) for share in re.findall(r"([\d.]+) %", printed)]
    assert all(0 < share < 100 for share in shares)


@pytest.mark.parametrize("chunk_size", [0, 4])
def test_stage1_measures_the_memory_of_a_step(stage1, wordpiece_encoder, chunk_size, capsys):
    stage1.measure_memory(Namespace(documents=str(SAMPLE / "train.jsonl"), model=wordpiece_encoder, memory=(8, chunk_size)))
    megabytes, seconds = map(float, capsys.readouterr().out.split())
    assert megabytes >= 0 and seconds > 0
