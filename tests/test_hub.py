"""Pushing to a stand-in for the Hub through the real client, and pulling with and without the package."""

import hashlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import ROOT, SENTENCES, TYPES
from datasets import Dataset
from hub_server import HubServer
from huggingface_hub import metadata_load
from safetensors.torch import load_file, save_file
from transformers import pipeline

from runne_coner import CoNERConfig, CoNERForTokenClassification
from runne_coner.cli import main
from runne_coner.hub import HubError, code_files, code_requirements, push_model, read_folder
from runne_coner.model_card import public_arguments, record_facts, stage_facts
from runne_coner.preprocessing import load_tokenizer
from runne_coner.trainers import NestedNerTrainer
from runne_coner.training_args import NestedNerTrainingArguments

TOKEN = "hf_" + "AliceMayWriteHere" * 2
OTHER_TOKEN = "hf_" + "BobMayNotWriteThere" * 2
ACCOUNTS = {TOKEN: "alice", OTHER_TOKEN: "bob"}

LISTED = {
    "README.md",
    "config.json",
    "eval_results.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_results.json",
    "training_args.json",
}
CODE = {path.name for path in code_files()}


@pytest.fixture(scope="module")
def model(tmp_path_factory, wordpiece_encoder, documents) -> Path:
    """Folder of a random recognizer as stage 2 leaves it, with all that a working folder gathers."""
    folder = tmp_path_factory.mktemp("work") / "model"
    torch.manual_seed(1)
    network = CoNERForTokenClassification.from_encoder(
        wordpiece_encoder, CoNERConfig(entity_types=TYPES, levels=2, max_length=48)
    )
    # With small logits the random heads would find nothing.
    network.classifier.weight.data *= 60
    network.save_pretrained(folder)
    load_tokenizer(wordpiece_encoder).save_pretrained(folder)
    training = NestedNerTrainingArguments(str(folder), run_name=str(folder), hub_token=TOKEN, report_to="none")
    training.resume_from_checkpoint = str(folder / "checkpoint-1")
    arguments = training.to_dict() | {"hub_token": TOKEN, "a_setting_of_tomorrow": str(folder / "cache")}
    (folder / "training_args.json").write_text(json.dumps(arguments), encoding="utf-8")
    metrics = {"eval_micro_f1": 0.5, "eval_macro_f1": 0.25, "eval_f1_CITY": 0.75}
    (folder / "eval_results.json").write_text(json.dumps(metrics), encoding="utf-8")
    (folder / "train_results.json").write_text(json.dumps({"train_runtime": 1.5}), encoding="utf-8")
    record_facts(folder, "stage2", facts_of(documents, training, metrics))
    rubbish = ["checkpoint-1/model.safetensors", "checkpoint-1/optimizer.pt", "runs/events.out", "optimizer.pt", "scheduler.pt"]
    rubbish += ["predictions-test.jsonl", "trainer_state.json", "all_results.json", ".env", "train.log", "pytorch_model.bin"]
    rubbish += [
        "training_args.bin",
        "train.jsonl",
        "rng_state.pth",
        "notes.txt",
        "model.onnx",
        "evil.py",
        "model.safetensors.bak",
    ]
    for name in rubbish:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{TOKEN} {folder} {SENTENCES[0]}", encoding="utf-8")
    return folder


class Settings:
    """Arguments of a recipe, as far as the facts need them."""

    def __init__(self, **values):
        self.__dict__.update(values)


def facts_of(documents: Dataset, training, metrics: dict) -> dict:
    recipe = recipe_module("stage2")
    corpus = Settings(train=documents, evaluation=documents, entity_types=TYPES, few_shot_types=["DISEASE"])
    data = recipe.DataArguments(dataset=training.output_dir)
    network = recipe.Stage2Arguments(model_name_or_path="owner/encoder")
    card = recipe.CardArguments(license="mit")
    return stage_facts(corpus, data, network, training, card, lost={}, windows=7, seconds=1.5, metrics=metrics)


def recipe_module(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def use(server: HubServer, patch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
    """Make the client of this process talk to the server."""
    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", server.endpoint)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    if token is not None:
        patch.setenv("HF_TOKEN", token)


@pytest.fixture
def server(monkeypatch):
    """A Hub where alice owns `alice` and belongs to `org`, and bob has a model; the client is alice."""
    with HubServer(ACCOUNTS, {"alice": ["org"]}) as running:
        running.create("bob/model")
        use(running, monkeypatch)
        yield running


@pytest.fixture(scope="module")
def published(model):
    """The model, pushed once to `org/some-model.v1`, for the tests that only pull."""
    with HubServer(ACCOUNTS, {"alice": ["org"]}) as running, pytest.MonkeyPatch.context() as patch:
        use(running, patch)
        push_model(model, "org/some-model.v1")
        yield running


def refusal(capsys, *argv: str) -> str:
    """The one line that a failing command prints; its exit code is 2."""
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    output = capsys.readouterr()
    # The client's progress bars also go to standard error.
    lines = [line for line in output.err.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert stop.value.code == 2 and len(lines) == 1 and "Traceback" not in output.err, repr(output.err)
    assert not any(token in output.err + output.out for token in ACCOUNTS)
    return lines[0]


# -- what is uploaded -----------------------------------------------------------------------------------------------------


def test_a_push_uploads_the_listed_files_in_one_commit_and_nothing_else(model, server, capsys):
    before = digest(model)
    main(["push", str(model), "org/name"])
    assert f"pushed to {server.endpoint}/org/name" in capsys.readouterr().out
    repository = server.repositories["org/name"]
    assert set(repository.files) == LISTED | CODE | {".gitattributes"}
    assert len(repository.commits) == 2 and not repository.private
    assert repository.files["model.safetensors"].content == (model / "model.safetensors").read_bytes()
    assert repository.files["model.safetensors"].large
    assert digest(model) == before


def test_private_repositories_stay_hidden_from_others(model, server, monkeypatch):
    main(["push", str(model), "org/name", "--private"])
    assert server.repositories["org/name"].private
    api = huggingface_hub.HfApi()
    assert api.model_info("org/name").private
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.model_info("org/name")


def test_uploaded_bytes_hold_no_token_no_place_and_no_training_text(model, server, monkeypatch, documents):
    monkeypatch.setenv("USER", "somebodys-login")
    monkeypatch.setenv("HOME", str(model.parent / "somebodys-home"))
    monkeypatch.setenv("A_SECRET_OF_THE_ENVIRONMENT", "secret-of-the-environment")
    monkeypatch.setattr("socket.gethostname", lambda: "somebodys-host")
    monkeypatch.setattr("platform.node", lambda: "somebodys-host")
    push_model(model, "org/name")
    sent = b"\n".join(server.received) + b"\n".join(blob.content for blob in server.repositories["org/name"].files.values())
    secrets = [*ACCOUNTS, "hf_", "somebodys", "secret-of-the-environment", str(model), str(model.parent), str(Path.cwd())]
    secrets += [str(Path(__file__).parent), os.path.realpath(sys.prefix), "/tmp" + "/"]
    # Of the training texts no more than one mention a type: no sentence, and no run of words that is not a mention.
    secrets += [text for text in documents["text"]] + ["Министр иностранных дел Сергей", "прибыл в Париж", "Иван Петров живёт"]
    for secret in secrets:
        assert secret.encode() not in sent, secret
        assert json.dumps(secret)[1:-1].encode() not in sent, secret


def test_training_arguments_keep_what_can_be_repeated(model):
    arguments = json.loads(read_folder(model)["training_args.json"])
    assert arguments["learning_rate"] == 5e-5 and arguments["seed"] == 42 and arguments["head_learning_rate"] == 3e-3
    assert arguments["a_setting_of_tomorrow"] is None
    hidden = {"output_dir", "run_name", "hub_token", "hub_model_id", "local_rank", "resume_from_checkpoint", "push_to_hub"}
    assert not hidden & arguments.keys()
    assert public_arguments(arguments) == arguments


@pytest.mark.parametrize("name", ["README.md", "eval_results.json", "tokenizer_config.json"])
@pytest.mark.parametrize("secret", ["token", "path"])
def test_files_with_a_secret_are_refused_by_name(model, server, tmp_path, capsys, name, secret):
    folder = copy_model(model, tmp_path)
    (folder / "training_facts.json").unlink()  # so that README.md goes as it is
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    text = (folder / name).read_text(encoding="utf-8")
    held = "hf_" + "x" * 34 if secret == "token" else str(folder)
    changed = text + held if name == "README.md" else json.dumps(json.loads(text) | {"held": f"{held}/data"})
    (folder / name).write_text(changed, encoding="utf-8")
    message = refusal(capsys, "push", str(folder), "org/name")
    assert name in message and ("token" if secret == "token" else "path of this machine") in message
    assert "org/name" not in server.repositories and server.uploads == []


@pytest.mark.parametrize("form", ["plain", "JSON", "ASCII JSON"])
@pytest.mark.parametrize("place", ["project", "проект", 'a "b"'])
def test_paths_are_found_in_every_spelling(model, tmp_path, place, form):
    (tmp_path / place).mkdir()
    folder = copy_model(model, tmp_path / place)
    (folder / "training_facts.json").unlink()  # so that README.md goes as it is
    name, text = "README.md", f"trained on {folder}/corpus\n"
    if form != "plain":
        name = "eval_results.json"
        text = json.dumps({"data": f"{folder}/corpus"}, ensure_ascii=form == "ASCII JSON")
    (folder / "README.md").write_text("nothing\n", encoding="utf-8")
    assert "README.md" in read_folder(folder)
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(HubError, match=f"{name}: holds a path of this machine"):
        read_folder(folder)


@pytest.mark.parametrize(
    "text, refused",
    [
        ("see https://huggingface.co/intfloat/multilingual-e5-small", False),
        ("runs/intfloat/x, ./intfloat/x and //intfloat/x", False),
        ("/intfloat/corpus", True),
        ("data=/intfloat/corpus", True),
        ("(/intfloat/)", True),
        ("file:///intfloat/corpus", True),
        (json.dumps("see:\n/intfloat/corpus"), True),
        ("-I/intfloat/include", True),
        ("путь:/intfloat/corpus", True),
        ("host:/intfloat", True),
    ],
)
def test_a_path_is_none_within_an_address_or_another_path(model, tmp_path, monkeypatch, text, refused):
    folder = copy_model(model, tmp_path)
    (folder / "training_facts.json").unlink()  # so that README.md goes as it is
    (folder / "README.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(Path, "cwd", lambda: Path("/intfloat"))
    if refused:
        with pytest.raises(HubError, match="README.md: holds a path of this machine"):
            read_folder(folder)
    else:
        assert "README.md" in read_folder(folder)


def test_a_place_whose_name_is_no_text_is_found_as_well(model, tmp_path, monkeypatch):
    """File names of Unix are bytes; Python has a lone surrogate for each that is not UTF-8."""
    here, folder = tmp_path / "\udcff", copy_model(model, tmp_path)
    here.mkdir()
    monkeypatch.chdir(here)
    assert "README.md" in read_folder(folder)
    (folder / "eval_results.json").write_bytes(os.fsencode(here) + b"/corpus\n")
    with pytest.raises(HubError, match="eval_results.json: holds a path of this machine"):
        read_folder(folder)


def test_the_code_needs_few_packages():
    assert {"configuration.py", "modeling.py", "pipeline.py", "tagging.py"} <= CODE
    # What is imported anywhere in these files, also within functions, everybody without the package has to install.
    assert set(code_requirements()) == {"datasets", "numpy", "razdel", "safetensors", "torch", "transformers"}
    for path in code_files():
        assert not re.search(r"^\s*(from \. import|import runne_coner|from runne_coner)", path.read_text(), re.MULTILINE)


# -- faults ---------------------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_one_clear_line(model, server, monkeypatch, capsys):
    before = digest(model)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "NobodyKnowsThis" * 2)
    assert "refuses the access token (401)" in refusal(capsys, "push", str(model), "org/name")
    monkeypatch.delenv("HF_TOKEN")
    assert "no access token" in refusal(capsys, "push", str(model), "org/name")
    assert digest(model) == before and set(server.repositories) == {"bob/model"}


@pytest.mark.parametrize("name", ["bob/model", "bob/another", "strangers/model"])
def test_names_of_others_are_refused_before_anything_is_sent(model, server, capsys, name):
    before = digest(model)
    message = refusal(capsys, "push", str(model), name)
    assert name in message and "somebody else's" in message
    assert server.uploads == [] and set(server.repositories) == {"bob/model"}
    assert len(server.repositories["bob/model"].commits) == 1 and digest(model) == before


def test_a_repository_of_one_s_own_is_updated(model, server):
    server.create("alice/model")
    assert push_model(model, "model") == f"{server.endpoint}/alice/model"
    assert len(server.repositories["alice/model"].commits) == 2


@pytest.mark.parametrize("name", ["a/b/c", "owner/na me", "owner/..", ""])
def test_malformed_names_are_refused(model, server, capsys, name):
    assert "give owner/name" in refusal(capsys, "push", str(model), name)
    assert server.requests == []


@pytest.fixture
def no_waiting(monkeypatch):
    """The client waits between attempts; here it need not."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def test_a_dropped_upload_is_sent_again(model, server, no_waiting):
    server.drop_uploads = 2
    push_model(model, "org/name")
    assert server.repositories["org/name"].files["model.safetensors"].content == (model / "model.safetensors").read_bytes()
    assert sum(request.startswith("PUT") for request in server.requests) == 3 and server.drop_uploads == 0


def test_an_upload_that_never_gets_through_changes_nothing(model, server, no_waiting, capsys):
    before = digest(model)
    server.drop_uploads = math.inf
    message = refusal(capsys, "push", str(model), "org/name")
    assert "connection to the Hub failed" in message and "push again" in message
    assert set(server.repositories["org/name"].files) == {".gitattributes"}
    assert digest(model) == before
    assert pipeline("nested-ner", model=str(model))(SENTENCES[0]) is not None
    server.drop_uploads = 0
    push_model(model, "org/name")
    assert set(server.repositories["org/name"].files) == LISTED | CODE | {".gitattributes"}


def test_a_hub_that_is_not_there(model, server, capsys, monkeypatch, no_waiting):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "connection to the Hub failed" in refusal(capsys, "push", str(model), "org/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(capsys, "push", str(model), "org/name")


def test_a_second_push_sends_only_what_changed(model, server, tmp_path):
    folder = copy_model(model, tmp_path)
    push_model(folder, "org/name")
    weights = (folder / "model.safetensors").read_bytes()
    assert server.uploads == [hashlib.sha256(weights).hexdigest()]
    push_model(folder, "org/name")
    repository = server.repositories["org/name"]
    assert len(server.uploads) == 1 and len(repository.commits) == 2
    (folder / "eval_results.json").write_text('{"eval_micro_f1": 0.625}', encoding="utf-8")
    push_model(folder, "org/name")
    assert len(server.uploads) == 1 and len(repository.commits) == 3
    old, new = (files for _, files in repository.commits[1:])
    assert {name for name in new if new[name].content != old[name].content} == {"eval_results.json"}


def test_weights_of_an_earlier_push_do_not_linger(model, server, tmp_path):
    folder = copy_model(model, tmp_path)
    push_model(folder, "org/name")
    shard(folder)
    push_model(folder, "org/name")
    files = server.repositories["org/name"].files
    # `from_pretrained` would prefer the old model.safetensors to the new shards.
    assert {name for name in files if "safetensors" in name} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }


@pytest.mark.parametrize("tags", ["letters", ["letters", "news"], ("letters",), None])
def test_a_trainer_pushes_the_card_with_its_options(model, server, tmp_path, tags):
    """The facts of the folder know another license and no tags."""
    folder = copy_model(model, tmp_path)
    trainer = NestedNerTrainer(
        CoNERForTokenClassification.from_pretrained(folder),
        NestedNerTrainingArguments(str(folder), hub_model_id="org/name", hub_token=TOKEN, report_to="none"),
        processing_class=load_tokenizer(str(folder)),
    )
    trainer.push_to_hub(language="de", license="apache-2.0", tags=tags)
    pushed = server.repositories["org/name"].files["README.md"].content
    assert pushed == (folder / "README.md").read_bytes() and b'model="org/name"' in pushed
    data = huggingface_hub.ModelCard(pushed.decode()).data
    given = [tags] if isinstance(tags, str) else [*(tags or ())]
    assert data.tags == ["nested-ner", "named-entity-recognition", "coner", *given]
    assert (data.language, data.license) == ("de", "apache-2.0")
    # A later push without them has what is recorded.
    push_model(folder, "org/name")
    data = huggingface_hub.ModelCard(server.repositories["org/name"].files["README.md"].content.decode()).data
    assert data.tags == ["nested-ner", "named-entity-recognition", "coner"] and data.license == "mit"


# -- folders that are no models -------------------------------------------------------------------------------------------


def copy_model(model: Path, target: Path) -> Path:
    folder = target / "copy"
    folder.mkdir()
    for path in model.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def shard(folder: Path) -> None:
    tensors = sorted(load_file(folder / "model.safetensors").items())
    weight_map = {}
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(dict(part), folder / name, {"format": "pt"})
        weight_map |= {key: name for key, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def damaged(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut_in_half(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def lose_a_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def other_model(folder):
    without("training_facts.json")(folder)
    damaged("config.json", b'{"model_type": "bert"}')(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without("config.json"), "no config.json"),
        (without("model.safetensors"), "no weights"),
        (without("tokenizer.json"), "no tokenizer"),
        (cut_in_half("model.safetensors"), "model.safetensors: the weights are missing or damaged"),
        (damaged("model.safetensors", b"no tensors"), "model.safetensors: the weights are missing or damaged"),
        (lose_a_shard, "model-00002-of-00002.safetensors: the weights are missing or damaged"),
        (damaged("config.json", b"{"), "config.json: not a JSON file"),
        (damaged("config.json", b"[]"), "expected a JSON object"),
        (damaged("config.json", b'{"model_type": "coner"}'), "a checkpoint of stage 1"),
        (damaged("training_facts.json", b"{"), "training_facts.json: not a JSON file"),
        (other_model, "written by neither stage"),
    ],
)
def test_unusable_folders_are_refused_before_a_repository_is_made(model, server, tmp_path, capsys, spoil, words):
    folder = copy_model(model, tmp_path)
    spoil(folder)
    assert words in refusal(capsys, "push", str(folder), "org/name")
    assert server.requests == []


def test_a_folder_that_is_none_is_refused(server, tmp_path, capsys):
    assert "no such folder" in refusal(capsys, "push", str(tmp_path / "nothing"), "org/name")
    with pytest.raises(HubError, match="no config.json"):
        push_model(tmp_path, "org/name")


# -- pulling --------------------------------------------------------------------------------------------------------------

PULL = """
import hashlib, json, re, sys
{prologue}
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

name, options = "org/some-model.v1", {options}
model = AutoModelForTokenClassification.from_pretrained(name, **options).eval()
ids = AutoTokenizer.from_pretrained(name)({text!r}, return_tensors="pt")
with torch.no_grad():
    logits = model(**ids).logits
recognize = pipeline("nested-ner", model=name, **options)
found = recognize({texts!r})
card = open(__import__("huggingface_hub").hf_hub_download(name, "README.md"), encoding="utf-8").read()
blocks = re.findall(r"```python\\n(.*?)```", card, re.DOTALL)
exec(blocks[{block}])
print("ANSWER", json.dumps(dict(
    logits=hashlib.sha256(logits.numpy().tobytes()).hexdigest(), found=found, config=type(model.config).__module__,
    classes=[type(model).__module__, type(recognize).__module__], imported="runne_coner" in sys.modules)))
"""
BLOCK = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "runne_coner":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
try:
    import runne_coner
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is not blocked")
"""


def pull(server, tmp_path, *, with_package: bool) -> dict:
    """What a fresh process with an empty cache gets; it has no token, cannot be asked anything, and runs the card's example."""
    script = PULL.format(
        prologue="import runne_coner" if with_package else BLOCK,
        options={} if with_package else {"trust_remote_code": True},
        text=SENTENCES[0],
        texts=list(SENTENCES),
        block=0 if with_package else 1,
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS"))}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT) if with_package else ""}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("ANSWER ")[1])


def local_answer(model: Path) -> tuple[str, list]:
    network = CoNERForTokenClassification.from_pretrained(model).eval()
    ids = load_tokenizer(str(model))(SENTENCES[0], return_tensors="pt")
    with torch.no_grad():
        logits = network(**ids).logits
    found = pipeline("nested-ner", model=str(model))(list(SENTENCES))
    return hashlib.sha256(logits.numpy().tobytes()).hexdigest(), found


@pytest.fixture(scope="module")
def one_thread():
    """Sums depend on the number of threads in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_what_is_pulled_gives_the_same_bits(model, published, tmp_path, one_thread):
    answer = pull(published, tmp_path, with_package=True)
    logits, found = local_answer(model)
    assert answer["logits"] == logits
    assert answer["found"] == found and any(found)
    assert answer["classes"] == ["runne_coner.modeling", "runne_coner.pipeline"]
    assert answer["config"] == "runne_coner.configuration"


def test_without_the_package_the_repository_s_code_gives_the_same_bits(model, published, tmp_path, one_thread):
    answer = pull(published, tmp_path, with_package=False)
    logits, found = local_answer(model)
    assert answer["logits"] == logits
    assert answer["found"] == found
    assert not answer["imported"]
    assert all(name.startswith("transformers_modules.org.") for name in [*answer["classes"], answer["config"]])


def test_the_hub_reads_the_card(published):
    repository = published.repositories["org/some-model.v1"]
    info = huggingface_hub.HfApi(endpoint=published.endpoint).model_info("org/some-model.v1", token=TOKEN)
    assert info.pipeline_tag == "token-classification" and info.library_name == "runne-coner"
    card = huggingface_hub.ModelCard(repository.files["README.md"].content.decode())
    assert {result.metric_name: result.metric_value for result in card.data.eval_results}["Micro F1"] == 0.5
    assert 'model="org/some-model.v1"' in card.text


# -- the recipes ----------------------------------------------------------------------------------------------------------


def run_recipe(stage: str, server: HubServer, tmp_path: Path, environment: dict, *options: str):
    environment = environment | {"HF_ENDPOINT": server.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "CUDA_VISIBLE_DEVICES": ""}
    quick = ["--dataset", "sample", "--max_documents", "6", "--max_steps", "2", "--per_device_train_batch_size", "2"]
    quick += ["--max_length", "64", "--output_dir", str(tmp_path / stage), "--bf16", "false"]
    # Checkpoints with the Trainer's default `hub_strategy`, which uploads at each of them.
    quick += ["--save_strategy", "steps", "--save_steps", "1", "--push_to_hub", "--hub_model_id", f"org/{stage}"]
    command = [sys.executable, str(ROOT / "recipes" / f"{stage}.py"), *quick, *options]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_both_recipes_push_once_and_the_card_tells_of_both(wordpiece_encoder, tmp_path, quiet_environment):
    with HubServer(ACCOUNTS, {"alice": ["org"]}) as server:
        for stage, encoder in (("stage1", wordpiece_encoder), ("stage2", str(tmp_path / "stage1"))):
            options = ["--model_name_or_path", encoder, "--license", "apache-2.0"]
            done = run_recipe(stage, server, tmp_path, quiet_environment, *options)
            assert done.returncode == 0, done.stderr
            assert f"pushed to {server.endpoint}/org/{stage}" in done.stdout
        first, second = server.repositories["org/stage1"], server.repositories["org/stage2"]
        assert set(first.files) == LISTED | {".gitattributes"}
        assert set(second.files) == LISTED | CODE | {".gitattributes"}
        assert len(first.commits) == len(second.commits) == 2
        assert (tmp_path / "stage2" / "checkpoint-2").is_dir()
        sent = b"\n".join(server.received)
        for secret in (TOKEN, str(tmp_path), wordpiece_encoder, str(ROOT)):
            assert secret.encode() not in sent
    card = tmp_path / "card.md"
    card.write_bytes(second.files["README.md"].content)
    data, text = metadata_load(card), card.read_text(encoding="utf-8")
    assert data["language"] == "ru" and data["license"] == "apache-2.0" and data["datasets"] == ["sample"]
    assert "base_model" not in data  # a folder without facts: nobody knows
    assert data["model-index"][0]["results"][0]["dataset"]["split"] == "test"
    for fact in ("### Stage 1", "`margin`", "`pair_mode`", "### Stage 2", "`head_learning_rate`", "6 documents", "CPU cores"):
        assert fact in text, fact
    # The local card is the one that was pushed.
    assert (tmp_path / "stage2" / "README.md").read_bytes() == second.files["README.md"].content


def test_a_recipe_stops_before_training_if_it_could_not_push(wordpiece_encoder, tmp_path, quiet_environment):
    with HubServer({OTHER_TOKEN: "bob"}) as server:
        done = run_recipe("stage1", server, tmp_path, quiet_environment, "--model_name_or_path", wordpiece_encoder)
    assert done.returncode == 2 and "error: org/stage1: the Hub refuses the access token (401)" in done.stderr
    assert "Traceback" not in done.stderr and TOKEN not in done.stderr
    assert not (tmp_path / "stage1" / "checkpoint-1").exists()
