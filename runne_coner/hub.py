"""Publishing: what of a model's folder goes to the Hub, and how.

`push_model` is the only way to the Hub: `runne-coner push`, `--push_to_hub` of both recipes and `Trainer.push_to_hub` all end
here. It uploads a fixed list of files in one commit, so that a push that fails leaves the repository as it was, and it never
writes into the local folder.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from .files import write_text
from .model_card import FACTS_NAME, make_card, public_arguments, read_facts

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
VOCABULARIES = (
    "tokenizer.json vocab.txt vocab.json merges.txt added_tokens.json spiece.model sentencepiece.bpe.model tokenizer.model"
).split()
SETTINGS = (
    "tokenizer_config.json special_tokens_map.json preprocessor_config.json processor_config.json generation_config.json"
    " train_results.json eval_results.json"
).split()
"""With `config.json`, `training_args.json`, the card and the code these are all files that are ever uploaded."""

_CODE = Path(__file__).parent
_AUTO_MAP = {
    "AutoConfig": "configuration.CoNERConfig",
    "AutoModelForTokenClassification": "modeling.CoNERForTokenClassification",
}
_PIPELINES = {"nested-ner": {"impl": "pipeline.NestedNerPipeline", "pt": ["AutoModelForTokenClassification"], "type": "text"}}
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")
_PATH_BEGINS = rb"(?:(?<![A-Za-z0-9./])|(?<=file://)|(?<=\\[bfnrt])|(?<=-[A-Za-z]))"
"""Where a path may begin: not within another or an address, but after an escape of JSON and an option of one letter."""
_PACKAGE_NAMES = {"yaml": "pyyaml"}
# The client's HTTP library is httpx or its successor, depending on its version.
_HTTP_ERROR = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


class HubError(RuntimeError):
    """A model that cannot be pushed, or a Hub that does not take it; the message says what to change."""


# ---------------------------------------------------------------------------------------------------------------------
# What is uploaded


def code_files() -> list[Path]:
    """Modules of the package that a repository carries for `trust_remote_code`: model, configuration and pipeline."""
    entries = [str(_CODE / name) for name in ("configuration.py", "modeling.py", "pipeline.py")]
    return sorted({Path(file) for entry in entries for file in (entry, *get_relative_import_files(entry))})


def code_requirements() -> list[str]:
    """Packages that the code of a repository needs, as pip names them."""
    roots = {root for path in code_files() for root in get_imports(path)} - set(sys.stdlib_module_names)
    return sorted(_PACKAGE_NAMES.get(root, root) for root in roots)


def read_folder(folder: str | os.PathLike, repo_id: str | None = None, *, keep_card: bool = False) -> dict[str, Path | bytes]:
    """The files that a push of a model folder uploads, by their name in the repository.

    Weights, tokenizer, processor settings and metrics go as they are; `config.json` names the code beside it,
    `training_args.json` is freed of what concerns the machine, the card is written anew from the recorded facts (a card
    without facts goes as it is), and the code is the installed package's.

    Args:
        folder: written by stage 1 or stage 2.
        repo_id: where it will lie, for the card's usage block.
        keep_card: whether the folder's card goes as it is, though there are facts; for one with options of its own.
    Returns:
        Paths of files that go as they are, and contents of the others.
    Raises:
        HubError: no such folder, a file is missing or broken, or a file holds a token or a path of this machine.
    """
    folder = Path(folder)
    config = _read_config(folder)
    recognizer = config.get("model_type") == "coner"
    files: dict[str, Path | bytes] = {path.name: path for path in _weights(folder)}
    for name in (*VOCABULARIES, *SETTINGS):
        if (folder / name).is_file():
            files[name] = folder / name
    if not {"tokenizer.json", "tokenizer_config.json"} <= files.keys():
        raise HubError(f"{folder}: no tokenizer (tokenizer.json, tokenizer_config.json); save it into the folder first")
    config.pop("_name_or_path", None)
    if recognizer:
        config |= {"auto_map": _AUTO_MAP, "custom_pipelines": _PIPELINES}
        files |= {path.name: path.read_bytes() for path in code_files()}
    files["config.json"] = _json(config)
    if (folder / "training_args.json").is_file():
        files["training_args.json"] = _json(public_arguments(_read_json(folder / "training_args.json")))
    present = folder / "README.md"
    if present.is_file() and (keep_card or not _read_facts(folder)):
        files["README.md"] = present
    else:
        files["README.md"] = _card(folder, repo_id, config).encode("utf-8")
    _refuse_secrets(folder, files)
    return files


def write_card(folder: str | os.PathLike, repo_id: str | None = None, **options) -> None:
    """Write the card of a model into its folder, as `README.md`.

    Args:
        folder: written by stage 1 or stage 2.
        repo_id: where the model lies or will lie on the Hub.
        options: of `model_card.make_card` (`language`, `license`, `tags`).
    Raises:
        HubError: the folder holds no model.
    """
    folder = Path(folder)
    write_text(folder / "README.md", _card(folder, repo_id, _read_config(folder), **options))


def _card(folder: Path, repo_id: str | None, config: Mapping, **options) -> str:
    own = config if config.get("model_type") == "coner" else None
    return str(make_card(_read_facts(folder), model_id=repo_id, config=own, requirements=code_requirements(), **options))


def _read_facts(folder: Path) -> dict:
    try:
        return read_facts(folder)
    except ValueError as error:
        raise HubError(f"{folder / FACTS_NAME}: not a JSON file: {error}; remove it or train again") from error


def _json(content: Mapping) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HubError(f"{path}: not a JSON file: {error}; get the file again") from error
    if not isinstance(content, dict):
        raise HubError(f"{path}: expected a JSON object, found {type(content).__name__}; get the file again")
    return content


def _read_config(folder: Path) -> dict:
    if not folder.is_dir():
        raise HubError(f"{folder}: there is no such folder; give one that stage 1 or stage 2 wrote")
    if not (folder / "config.json").is_file():
        raise HubError(f"{folder}: no config.json: the folder holds no model; give one that stage 1 or stage 2 wrote")
    config = _read_json(folder / "config.json")
    if config.get("model_type") == "coner":
        if not config.get("entity_types"):
            raise HubError(f"{folder}: a checkpoint of stage 1, not a model; give the folder above it")
    elif "stage1" not in _read_facts(folder):
        raise HubError(
            f"{folder}: a {config.get('model_type')!r} model without {FACTS_NAME}, written by neither stage of runne-coner"
        )
    return config


def _weights(folder: Path) -> list[Path]:
    """The files of weights, each checked to be whole."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    else:
        raise HubError(f"{folder}: no model.safetensors: the folder holds no weights; give one that stage 1 or stage 2 wrote")
    for name in names:
        if not fnmatch(name, WEIGHTS[0]) and not fnmatch(name, WEIGHTS[1]):
            raise HubError(f"{index}: {name!r} cannot be a file of weights; expected model-*-of-*.safetensors")
        try:
            with safe_open(folder / name, framework="pt") as weights:
                noted = json.dumps(weights.metadata() or {}).encode()
        except (SafetensorError, OSError) as error:
            raise HubError(f"{folder / name}: the weights are missing or damaged: {error}; get the file again") from error
        _refuse(folder, name, noted)
    return [folder / name for name in names] + ([index] if len(names) > 1 or names != ["model.safetensors"] else [])


def _refuse_secrets(folder: Path, files: Mapping[str, Path | bytes]) -> None:
    """Stop if a text that is about to be uploaded holds an access token or a path of this machine."""
    code = {path.name for path in code_files()}
    for name, content in files.items():
        # Weights are checked above, the code is the package's, and vocabularies may hold anything as a piece of a word.
        if name not in code and name not in VOCABULARIES and not name.endswith(".safetensors"):
            _refuse(folder, name, content if isinstance(content, bytes) else content.read_bytes())


def _refuse(folder: Path, name: str, content: bytes) -> None:
    token = get_token()
    if _TOKEN.search(content) or (token and len(token) > 8 and token.encode() in content):
        raise HubError(f"{folder / name}: holds an access token; remove it (and revoke the token), then push again")
    for place in (folder.absolute(), folder.resolve(), Path.cwd(), Path.home()):
        spellings = b"|".join(map(re.escape, _spellings(f"{place}{os.sep}")))
        if len(place.parts) > 1 and re.search(_PATH_BEGINS + b"(" + spellings + b")", content + os.sep.encode()):
            raise HubError(f"{folder / name}: holds a path of this machine ({place}); remove it, then push again")


def _spellings(path: str) -> set[bytes]:
    """A path as texts hold it: as it is, and as JSON with and without escapes for letters beyond ASCII."""
    forms = (path, *(json.dumps(path, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)))
    # Names of files need not be UTF-8.
    return {form.encode("utf-8", "surrogateescape") for form in forms}


# ---------------------------------------------------------------------------------------------------------------------
# The upload


def push_model(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    keep_card: bool = False,
) -> str:
    """Upload a model folder to the Hub (see `read_folder` for what goes there), creating the repository if need be.

    The client resends what a broken connection cut off, up to five times. Files that the repository already has are not
    sent again; weights of an earlier push that this one does not replace are deleted from it.

    Args:
        folder: written by stage 1 or stage 2; it is only read.
        repo_id: `owner/name`, or `name` for one's own account.
        private: whether a new repository is private; None leaves it to the Hub's setting.
        token: access token; by default the one of `hf auth login` or `HF_TOKEN`.
        revision: branch to commit to, by default the main one.
        keep_card: as `read_folder`.
    Returns:
        Address of the repository.
    Raises:
        HubError: the folder cannot be pushed, or the Hub refuses or cannot be reached.
    """
    read_folder(folder, keep_card=keep_card)  # before there is a repository to regret
    repo_id = create_repository(repo_id, private=private, token=token)
    files = read_folder(folder, repo_id, keep_card=keep_card)
    api = HfApi(library_name="runne-coner", token=token)
    with _hub_errors(repo_id):
        present = api.list_repo_files(repo_id, revision=revision)
        operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        operations += [
            CommitOperationDelete(name)
            for name in present
            if name not in files and any(fnmatch(name, pattern) for pattern in WEIGHTS)
        ]
        try:
            api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
        except Exception:
            # The client leaves the progress bar of a failed upload open: what follows would stand in its line.
            if not are_progress_bars_disabled():
                print(file=sys.stderr)
            raise
    return f"{api.endpoint}/{repo_id}"


def create_repository(repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Make sure that a model repository exists and that the account may write to it.

    Args: as `push_model`.
    Returns:
        Its full id.
    Raises:
        HubError: the id is malformed, the token is refused, the name belongs to somebody else, or the Hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} cannot name a repository; give owner/name ({error})") from error
    api = HfApi(library_name="runne-coner", token=token)
    with _hub_errors(repo_id):
        try:
            return api.create_repo(repo_id, private=private, exist_ok=False).repo_id
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in (403, 409):
                raise
            account = api.whoami()
            owner, _, name = repo_id.rpartition("/")
            owner = owner or account["name"]
            # Names in use are reported for one's own accounts only; 403 may also mean a token for existing repositories.
            if status == 403 and owner not in (account["name"], *(group["name"] for group in account.get("orgs", []))):
                raise HubError(
                    f"{repo_id}: the account {account['name']!r} may not write there: {owner!r} is somebody else's;"
                    " choose a name under your own account or organization"
                ) from error
            if not api.repo_exists(f"{owner}/{name}"):
                raise
            return f"{owner}/{name}"


@contextlib.contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what the client raises into one line each."""
    try:
        yield
    except HubError:
        raise
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to reach the Hub") from error
    except HfHubHTTPError as error:
        raise HubError(_refusal(repo_id, error)) from error
    except _HTTP_ERROR as error:
        raise HubError(_broken(repo_id, error)) from error
    except (RuntimeError, ValueError) as error:
        # The client wraps what goes wrong with one of several files, and reports invalid metadata of the card.
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise HubError(_refusal(repo_id, cause)) from error
        if isinstance(cause, _HTTP_ERROR):
            raise HubError(_broken(repo_id, cause)) from error
        raise HubError(f"{repo_id}: cannot be pushed: {error}") from error


def _refusal(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401:
        if get_token() is None:
            return f"{repo_id}: there is no access token; run `hf auth login` or set HF_TOKEN"
        return f"{repo_id}: the Hub refuses the access token (401); run `hf auth login`, or correct HF_TOKEN or hub_token"
    if status == 403:
        return f"{repo_id}: the access token may not write there (403); use one with write permission, or another name"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo_id}: there is no such repository, or the account may not see it ({status})"
    return f"{repo_id}: the Hub answers {status}: {error.server_message or error}"


def _broken(repo_id: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{repo_id}: the connection to the Hub failed ({reason}); nothing was changed there, push again"
