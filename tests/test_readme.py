"""Every command block and every Python block of the README runs, in a copy of the repository, with tiny settings."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from hub_server import HubServer
from transformers import AutoModel, TrainingArguments

from runne_coner.arguments import DataArguments, EncoderArguments
from runne_coner.brat import write_brat
from runne_coner.documents import read_documents, write_runne
from runne_coner.encoders import resolve_encoder
from runne_coner.nerel import SAMPLE, SOURCES
from runne_coner.training_args import ContrastiveTrainingArguments, NestedNerTrainingArguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = (
    "--max_documents 3 --max_steps 2 --per_device_train_batch_size 4 --num_train_epochs 1 --encoder_cache {cache}"
    " --logging_steps 1"
)
"""What keeps a training of the README short; everything else of the command stays as it is written."""
TINY_STAGE = '{"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4}'
TINY_GRID = (
    f"--max_documents 3 --seeds 42 --schemes coner --encoder_cache {{cache}} --stage1 '{TINY_STAGE}' --stage2 '{TINY_STAGE}'"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_every_option_of_the_recipes_is_in_the_tables():
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        import grid
        import search
        import stage1
        import stage2
    finally:
        sys.path.remove(str(ROOT / "recipes"))
    named = set(re.findall(r"`([a-z_0-9]+)`", README))
    recipes = (stage1.Stage1Arguments, stage2.Stage2Arguments, grid.ExperimentArguments, search.SearchArguments)
    classes = (DataArguments, EncoderArguments, *recipes)
    own = {item.name for cls in classes for item in fields(cls)}
    inherited = {item.name for item in fields(TrainingArguments)}
    for cls in (ContrastiveTrainingArguments, NestedNerTrainingArguments):
        own |= {item.name for item in fields(cls)} - inherited
    assert own <= named


def _archives(folder: Path) -> None:
    """Archives of the shape of the corpora's repositories, with documents of the sample."""
    documents = read_documents(SAMPLE / "train.jsonl")
    for split, part in (("train", documents[:6]), ("dev", documents[6:9])):
        write_brat(part, folder / "nerel" / split)
    (folder / "runne").mkdir()
    write_runne(documents[:6], folder / "runne" / "train.jsonl")
    for name in ("nerel", "runne"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as packed:
            for file in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
                packed.write(file, Path("pinned") / SOURCES[name].folder / file.relative_to(folder / name))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Environment in which both public corpora are downloaded from localhost."""
    folder = tmp_path_factory.mktemp("archives")
    _archives(folder)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {SOURCES[name].variable: f"{address}/{name}.zip" for name in ("nerel", "runne")}
    server.shutdown()


@pytest.fixture(scope="module")
def hub(tmp_path_factory, cache):
    """Environment in which the Hub is the stand-in server, where `org` may be written to and a small encoder lies."""
    with HubServer({"hf_reader": "reader"}, {"reader": ["org", "FacebookAI"]}) as server:
        settings = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": "hf_reader", "HF_HUB_DISABLE_XET": "1"}
        settings["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))
        folder = resolve_encoder("e5-small-ru", cache)
        upload = ["upload", "FacebookAI/xlm-roberta-base", folder, ".", "--exclude=README.md"]
        subprocess.run([Path(sys.executable).parent / "hf", *upload], env=os.environ | settings, check=True)
        yield settings


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository's files, and beside them what a reader would have: a corpus of one's own and texts."""
    folder = tmp_path_factory.mktemp("readme") / "runne_coner"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    write_brat(read_documents(SAMPLE / "train.jsonl")[:12], folder / "my_corpus")
    write_runne(read_documents(SAMPLE / "test.jsonl")[:20], folder / "texts.jsonl")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of encoders whose `e5-small-ru` has two of its twelve layers, so that a training takes seconds."""
    folder = tmp_path_factory.mktemp("encoders")
    path = resolve_encoder("e5-small-ru", folder)
    encoder = AutoModel.from_pretrained(path)
    encoder.encoder.layer = encoder.encoder.layer[:2]
    encoder.config.num_hidden_layers = 2
    # What is loaded may still lie in the file, which is therefore not written over.
    (Path(path) / "model.safetensors").unlink()
    encoder.save_pretrained(path)
    return folder


def tiny(line: str, cache: Path) -> str:
    """A README line with what keeps it short."""
    if "recipes/experiment.py" in line:
        return f"{line} {TINY_GRID.replace('{cache}', str(cache))}"
    setting = TINY.format(cache=cache)
    if "recipes/search.py" in line:
        return f"{line} {setting} --trials 1"
    if line == "make demo":
        return f'make demo VENV={sys.prefix} STAMP= SETTINGS="{setting}"'
    if line == "make test":
        return f"make test VENV={sys.prefix} STAMP= TESTS='-n 0 tests/test_readme.py -k tables'"
    return f"{line} {setting}" if line.startswith("accelerate launch") else line


def test_the_commands_run_as_written(checkout, corpora, hub, cache):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment |= corpora | hub
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    assert len(lines) >= 14
    for line in lines:
        run = subprocess.run(
            tiny(line, cache), shell=True, cwd=checkout, env=environment, capture_output=True, text=True, timeout=900
        )
        assert run.returncode == 0, f"{line}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    assert (checkout / "predictions.jsonl").read_text(encoding="utf-8").count("\n") == 20
    assert (checkout / "runs/nerel/e5-small-ru/standard/model.safetensors").is_file()
    facts = json.loads((checkout / "runs/own/xlmr/stage2/training_facts.json").read_text(encoding="utf-8"))
    assert facts["stage1"]["base_model"] == "FacebookAI/xlm-roberta-base"
    for block in blocks("python"):
        run = subprocess.run(
            [sys.executable, "-c", block], cwd=checkout, env=environment, capture_output=True, text=True, timeout=600
        )
        assert run.returncode == 0, f"{block}\n{run.stderr[-4000:]}"
