"""The rules of the design that a reader of one file cannot see: imports, options, recipes, and what no file may hold."""

import ast
import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from runne_coner.arguments import DataArguments, EncoderArguments, UsageError, parse_settings
from runne_coner.metrics import flat_scores, score_documents
from runne_coner.training_args import ContrastiveTrainingArguments, NestedNerTrainingArguments

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "runne_coner"
RECIPES = ROOT / "recipes"

BRAT = {"checks", "brat"}
MAY_IMPORT = {
    "tagging": set(),
    "checks": set(),
    "files": set(),
    "encoders": set(),
    "training_args": {"losses", "metric_losses", "pair_weights"},
    "silhouette": set(),
    "samplers": set(),
    "brat": {"checks", "files"},
    "conll": {"checks"},
    "documents": {"tagging", "files", "conll"} | BRAT,
    "losses": {"tagging"},
    "metric_losses": {"losses"},
    "pair_weights": {"losses"},
    "outside": set(),
    "viterbi": {"tagging"},
    "span_scorer": {"tagging"},
    "decoding": {"configuration", "span_scorer", "tagging", "viterbi"},
    "configuration": {"tagging"},
    "nerel": {"documents", "tagging", "conll"} | BRAT,
    "corpora": {"documents"},
    "windows": set(),
    "sampling": {"tagging"},
    "search_space": set(),
    "idle_settings": set(),
    "optimization": {"files", "configuration"},
    "preprocessing": {"documents", "tagging", "windows", "outside"},
    "morphology": set(),
    "entity_swap": {"documents", "morphology", "preprocessing", "sampling"},
    "pairs": {"preprocessing"},
    "collators": {"preprocessing", "tagging"},
    "gradient_cache": set(),
    "gathering": set(),
    "modeling": {"configuration", "gradient_cache", "onnx_model", "span_scorer", "tagging"},
    "initialization": {"collators", "documents", "modeling", "tagging"},
    "onnx_model": {"configuration", "span_scorer"},
    "metrics": {"documents", "tagging"},
    "model_card": {"metrics", "configuration", "tagging", "files", "idle_settings"},
    "hub": {"model_card", "files"},
    "span_metrics": {"silhouette", "files"},
    "span_trainer": {
        *("training_args", "model_card", "hub", "files", "samplers", "optimization", "configuration", "search_space"),
    },
    "trainers": {
        *("span_trainer", "modeling", "losses", "viterbi", "collators", "metrics", "training_args", "tagging", "sampling"),
        *("optimization", "decoding", "span_scorer"),
    },
    "contrastive": {
        *(
            "span_trainer",
            "collators",
            "modeling",
            "metric_losses",
            "pair_weights",
            "training_args",
            "gathering",
            "samplers",
            "span_metrics",
        ),
    },
    "pipeline": {
        *("collators", "modeling", "onnx_model", "preprocessing", "decoding", "documents", "tagging", "windows"),
        "configuration",
    },
    "calibration": {"decoding", "documents", "pipeline", "preprocessing"},
    "export": {"pipeline", "onnx_model", "preprocessing", "documents", "nerel", "tagging", "files"},
    "significance": {"documents", "metrics"},
    "embeddings": {
        *("collators", "documents", "modeling", "preprocessing", "tagging", "windows"),
    },
    "figures": {"report"},
    "word_spaces": {
        *("documents", "embeddings", "encoders", "figures", "files", "report", "significance", "silhouette", "windows"),
    },
    "model_spaces": {
        *("configuration", "documents", "embeddings", "encoders", "figures", "report", "silhouette"),
        *("windows", "word_spaces"),
    },
    "experiment": {"documents", "errors", "figures", "report", "significance", "word_spaces"},
    "analysis": {"consistency", "embeddings", "errors", "model_spaces", "report", "significance", "silhouette", "taxonomy"},
    "taxonomy": {"documents", "metrics", "preprocessing"},
    "consistency": {"documents", "preprocessing"},
    "report": {"files"},
    "answers": {"documents", "metrics", "nerel"},
    "examples": {"consistency", "documents", "outputs", "report", "taxonomy"},
    "errors": {"consistency", "documents", "examples", "metrics", "report", "taxonomy"},
    "outputs": {"documents", "preprocessing", "tagging", "files"},
}
"""Local modules that each module may import (ARCHITECTURE, "Who may import whom")."""
MAY_IMPORT_ANYTHING = {"__init__", "cli", "analyze", "arguments"}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def local_imports(path):
    """Names of the modules of the package that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("runne_coner.")}
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level == 0 and parts[:1] == ["runne_coner"]:
                parts = parts[1:]
            elif node.level == 0:
                continue
            names = [parts[0]] if parts else [alias.name for alias in node.names]
            found |= {name for name in names if name in MODULES or parts}
    return found


def imported_roots(path):
    """Names of all packages that a file imports."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


# -- imports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [name for name in MODULES if name not in MAY_IMPORT_ANYTHING])
def test_modules_import_in_one_direction(module):
    assert module in MAY_IMPORT, f"{module} is new: say in ARCHITECTURE and here which modules it may import"
    assert local_imports(PACKAGE / f"{module}.py") <= MAY_IMPORT[module]


def test_nothing_imports_the_command_line():
    assert [name for name in MODULES if "cli" in local_imports(PACKAGE / f"{name}.py") and name != "cli"] == []


def test_the_allowed_imports_have_no_cycle():
    seen = set()
    while left := {name: allowed - seen for name, allowed in MAY_IMPORT.items() if name not in seen}:
        free = {name for name, allowed in left.items() if not allowed}
        assert free, f"cycle among {sorted(left)}"
        seen |= free


def test_the_package_imports_nothing_of_recipes_tests_or_benchmarks():
    for module in MODULES:
        assert not imported_roots(PACKAGE / f"{module}.py") & {"recipes", "tests", "benchmarks", "pytest", "hypothesis"}


def test_any_module_may_be_imported_first():
    """Registration waits for modules that are being imported, and takes place all the same."""
    code = (
        "import runne_coner.{} as module, transformers, runne_coner;"
        "auto = transformers.AutoModelForTokenClassification;"
        "assert auto._model_mapping[runne_coner.CoNERConfig] is runne_coner.CoNERForTokenClassification"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code.format(name)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name in ("configuration", "modeling")
    ]
    for process in started:
        assert process.communicate(timeout=300)[1] == "" and process.returncode == 0


def test_imports_are_seen_in_every_spelling(tmp_path):
    # The rules above are only as good as `local_imports`.
    spellings = {
        "from .tagging import O": {"tagging"},
        "from . import losses, __version__": {"losses"},
        "import runne_coner.viterbi as v": {"viterbi"},
        "from runne_coner.checks import Place": {"checks"},
        "from runne_coner import modeling": {"modeling"},
        "def f():\n    from .cli import main": {"cli"},
        "import numpy\nfrom torch import nn": set(),
    }
    for code, expected in spellings.items():
        path = tmp_path / "module.py"
        path.write_text(code, encoding="utf-8")
        assert local_imports(path) == expected


# -- what no file may hold ----------------------------------------------------------------------------------------------


def test_the_package_unpickles_nothing():
    for module in MODULES:
        path = PACKAGE / f"{module}.py"
        assert not imported_roots(path) & {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}, module
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {keyword.arg for keyword in node.keywords}
                assert called not in ("torch.load", "eval", "exec"), f"{path}:{node.lineno}"
                assert "allow_pickle" not in options and "trust_remote_code" not in options, f"{path}:{node.lineno}"


def repository_files():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in files if path.is_file()]


# Written so that this file does not hold them itself.
FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.<{}])/" + r"(?:work|root|home/\w+|Users/\w+|mnt|tmp/helper_\w+)" + "/",
    "a package index of its own": r"index[-_]url\s*[= ]\s*\S*:" + "//",
    "a private package registry": r"(?i)https?://[^\s/\"']*(?:artifactory|nexus|jfrog|devpi|codeartifact|pkg\.dev)",
    "an address of a private network": r"https?://(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\." + r"\d",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_of_the_repository_is_about_one_machine(what):
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and the like
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in pattern.finditer(text)]
    assert found == []


def test_no_file_names_the_folder_of_this_checkout():
    # Whatever it is called, unless it is one that means nothing, such as a container's `/src`.
    if len(ROOT.parts) < 3:
        pytest.skip(f"the checkout lies in {ROOT}, too short a name to look for")
    folder = str(ROOT)
    assert [path for path in repository_files() if folder.encode() in path.read_bytes()] == []


# -- options ------------------------------------------------------------------------------------------------------------


def recipe(name):
    """A recipe's module, from its file."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipes():
    """Per configuration file: the recipe's module and the classes of its settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPES))  # where a recipe that runs as a program finds the others
        stage1, stage2, grid, search = recipe("stage1"), recipe("stage2"), recipe("grid"), recipe("search")
    return {
        "search": (search, [search.SearchArguments]),
        "experiment": (grid, [DataArguments, grid.ExperimentArguments]),
        "stage1": (stage1, [DataArguments, stage1.Stage1Arguments, ContrastiveTrainingArguments]),
        "stage2": (stage2, [DataArguments, stage2.Stage2Arguments, NestedNerTrainingArguments]),
    }


def test_every_option_is_used(recipes):
    read = set()
    for path in [*PACKAGE.glob("*.py"), *RECIPES.rglob("*.py")]:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    classes = [EncoderArguments, *(cls for _, all_classes in recipes.values() for cls in all_classes)]
    unused = {
        f"{cls.__name__}.{field.name}"
        for cls in classes
        for field in dataclasses.fields(cls)
        if field.name not in inherited and field.name not in read
    }
    assert unused == set()


def test_every_option_has_a_help_text_and_one_owner(recipes):
    for _, classes in recipes.values():
        names = [field.name for cls in classes for field in dataclasses.fields(cls)]
        assert len(names) == len(set(names))
        for cls in classes:
            for field in dataclasses.fields(cls):
                if field.init:
                    assert field.metadata.get("help"), f"{cls.__name__}.{field.name}"


CONFIGS = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.y*ml"))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_parses(config, recipes):
    path = RECIPES / config
    _, classes = recipes[path.stem]
    settings = parse_settings(["--config", str(path)], classes, path, "")
    assert [type(part) for part in settings] == classes
    # Stage 2 takes what stage 1 of the same corpus and encoder leaves, or an encoder as it is.
    if path.stem == "stage2":
        first_path = path.with_name("stage1.yaml")
        _, network, training = settings
        _, _, first = parse_settings(["--config", str(first_path)], recipes["stage1"][1], first_path, "")
        assert network.model_name_or_path == first.output_dir
        assert first.output_dir != training.output_dir


@pytest.mark.parametrize("config", [name for name in CONFIGS if Path(name).stem.startswith("stage")])
def test_the_best_checkpoint_is_chosen_by_a_metric_that_exists(config, recipes):
    path = RECIPES / config
    _, _, training = parse_settings(["--config", str(path)], recipes[path.stem][1], path, "")
    if training.load_best_model_at_end:  # else the last one is taken
        known = {"loss", "pair_auc", "positive_distance", "negative_distance", "silhouette", "neighbour_accuracy"}
        if path.stem == "stage2":
            known = {"loss", "seqeval_micro_f1", "seqeval_macro_f1", *flat_scores(score_documents([], [], ["A"], ["A"]))}
        name = training.metric_for_best_model.removeprefix("eval_")
        assert name in known
        assert training.greater_is_better == (name not in ("loss", "positive_distance"))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_recipe_without_arguments_takes_the_sample(stage, recipes):
    module, classes = recipes[stage]
    assert module.DEFAULT_CONFIG == RECIPES / "sample" / "e5-small-ru" / f"{stage}.yaml"
    data, _, training = parse_settings([], classes, module.DEFAULT_CONFIG, "")
    assert data.dataset == "sample"
    # An override on the command line goes before the file.
    data, _, training = parse_settings(["--max_length", "99", "--learning_rate=0.5"], classes, module.DEFAULT_CONFIG, "")
    assert data.max_length == 99 and training.learning_rate == 0.5


def test_unknown_keys_suggest_the_nearest(recipes, tmp_path):
    module, classes = recipes["stage2"]
    with pytest.raises(UsageError, match="did you mean levels"):
        parse_settings(["--level", "2"], classes, module.DEFAULT_CONFIG, "")
    (tmp_path / "wrong.yaml").write_text("dice_wieght: 1.0\n", encoding="utf-8")
    with pytest.raises(UsageError, match="did you mean dice_weight"):
        parse_settings(["--config", str(tmp_path / "wrong.yaml")], classes, module.DEFAULT_CONFIG, "")
