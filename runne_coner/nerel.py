"""The corpora as datasets: NEREL, RuNNE, the bundled sample, and anybody's own brat folders or RuNNE files.

`load_documents` is what recipes and users call; `NerelBuilder` is the `datasets` builder behind it.
"""

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from .conll import CONLL_SUFFIXES, read_conll
from .documents import (
    FEATURES,
    CorpusError,
    Document,
    ReadReport,
    brat_texts,
    read_brat,
    read_entity_types,
    read_runne,
    to_row,
)

NEREL_TYPES = (
    "AGE",
    "AWARD",
    "CITY",
    "COUNTRY",
    "CRIME",
    "DATE",
    "DISEASE",
    "DISTRICT",
    "EVENT",
    "FACILITY",
    "FAMILY",
    "IDEOLOGY",
    "LANGUAGE",
    "LAW",
    "LOCATION",
    "MONEY",
    "NATIONALITY",
    "NUMBER",
    "ORDINAL",
    "ORGANIZATION",
    "PENALTY",
    "PERCENT",
    "PERSON",
    "PRODUCT",
    "PROFESSION",
    "RELIGION",
    "STATE_OR_PROVINCE",
    "TIME",
    "WORK_OF_ART",
)
"""The 29 entity types of NEREL and RuNNE."""

FEW_SHOT_TYPES = ("DISEASE", "PENALTY", "WORK_OF_ART")
"""The types RuNNE keeps rare in training and scores apart."""

SAMPLE = Path(__file__).parent / "data" / "sample"
"""The bundled sample: `train.jsonl`, `test.jsonl` and `ners.txt`."""


class Source(NamedTuple):
    """Where a public corpus comes from: a GitHub repository at a pinned commit, and its folder with the splits."""

    repository: str
    commit: str
    folder: str
    variable: str

    @property
    def url(self) -> str:
        """The archive's address; the environment variable `variable` overrides it."""
        return os.environ.get(self.variable) or f"https://github.com/{self.repository}/archive/{self.commit}.zip"


SOURCES = {
    "nerel": Source("nerel-ds/NEREL", "8f07d3e410f322d5dbf6b68b13fbf4a4aa077fe9", "NEREL-v1.1", "RUNNE_CONER_NEREL_URL"),
    "runne": Source(
        "dialogue-evaluation/RuNNE", "b595cff099db6fb1f45949eba7f9ba25f2882962", "public_data", "RUNNE_CONER_RUNNE_URL"
    ),
}

_ANSWERS = "_with_answers"
_SPLIT_ORDER = ("train", "dev", "validation", "test")
_READERS_VERSION = "1.0.0"  # raise it when a reader gives other documents for the same files: caches depend on it


class SplitFiles(NamedTuple):
    """What one split is read from: a brat folder, a file of columns, or a RuNNE file and perhaps its answers."""

    path: Path
    answers: Path | None = None

    def files(self) -> list[Path]:
        """Every file that is read."""
        if self.path.is_dir():
            texts = brat_texts(self.path)
            return sorted([*texts, *(path for path in self.path.glob("*.ann") if not path.name.startswith("."))])
        return [self.path, self.answers] if self.answers else [self.path]

    def documents(self, strict: bool | None, types: Iterable[str] | None, report: ReadReport) -> Iterator[Document]:
        """Read the split; `strict` None is the format's default."""
        if self.path.is_dir():
            return read_brat(self.path, strict=bool(strict), types=types, report=report)
        if self.path.suffix in CONLL_SUFFIXES:
            return read_conll(self.path, strict=strict, types=types, report=report)
        return read_runne(self.path, strict=strict, types=types, answers=self.answers, report=report)


# --- Splits of a folder ---------------------------------------------------------------------------------------------


def find_splits(path: str | os.PathLike) -> dict[str, SplitFiles]:
    """Find the splits of a local corpus.

    Args:
        path: one `.jsonl`, `.conll`, `.bio` or `.tsv` file (the split of its name if that is train, dev, validation or
            test, else "train"); a folder of `.jsonl` files (a split each; `X_with_answers.jsonl` answers `X.jsonl`); a
            flat brat folder ("train"); a folder of brat folders (a split each); a folder of files of columns (a split
            each); or a checkout of the NEREL or RuNNE repository.
    Returns:
        The splits by name, train, dev, validation and test first.
    Raises:
        CorpusError: nothing there, or nothing of these kinds.
    """
    path = Path(path)
    if path.is_file() and path.suffix in (".jsonl", *CONLL_SUFFIXES):
        return {path.stem if path.stem in _SPLIT_ORDER else "train": SplitFiles(path)}
    if not path.is_dir():
        kinds = ", ".join((".jsonl", *CONLL_SUFFIXES))
        problem = f"is no file of a kind that is read ({kinds}) and no folder" if path.exists() else "no such file or folder"
        raise CorpusError(f"{path}: {problem}. Give a path, or one of the names {', '.join(NerelBuilder.names())}.")
    checkouts = [path / source.folder for source in SOURCES.values() if (path / source.folder).is_dir()]
    splits = _splits_of_folder(checkouts[0] if checkouts else path)
    if not splits:
        raise CorpusError(
            f"{path}: no corpus in the folder. Expected *.jsonl files, .txt and .ann files, or subfolders of them,"
            f" or files of columns ({', '.join(CONLL_SUFFIXES)})."
        )
    for name in splits:
        if not re.fullmatch(r"\w+(\.\w+)*", name) or name == "all":
            raise CorpusError(f"{splits[name].path}: {name!r} cannot name a split. Use letters, digits and _ only.")
    return dict(sorted(splits.items(), key=lambda item: (_rank(item[0]), item[0])))


def _rank(split: str) -> int:
    return _SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER)


def _splits_of_folder(folder: Path) -> dict[str, SplitFiles]:
    jsonl = {path.stem: path for path in folder.glob("*.jsonl") if not path.name.startswith(".")}
    if jsonl:
        answers = {stem: path for stem, path in jsonl.items() if stem.removesuffix(_ANSWERS) in jsonl.keys() - {stem}}
        return {stem: SplitFiles(path, answers.get(stem + _ANSWERS)) for stem, path in jsonl.items() if stem not in answers}
    subfolders = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    splits = {name: SplitFiles(path) for name, path in subfolders.items() if brat_texts(path)}
    columns = [path for path in sorted(folder.iterdir()) if path.suffix in CONLL_SUFFIXES and not path.name.startswith(".")]
    # A note such as README.txt beside the split folders does not make the parent a flat brat folder; an .ann does. Nor
    # does a table beside brat files make it a corpus in columns.
    if any(folder.glob("*.ann")) or (not splits and not columns and brat_texts(folder)):
        return {"train": SplitFiles(folder)}
    return splits or _one_file_a_split(columns)


def _one_file_a_split(files: list[Path]) -> dict[str, SplitFiles]:
    splits: dict[str, SplitFiles] = {}
    for path in files:
        if path.stem in splits:
            raise CorpusError(f"{path}: {splits[path.stem].path.name} is the split {path.stem!r} as well. Keep one of them.")
        splits[path.stem] = SplitFiles(path)
    return splits


def _fingerprint(splits: dict[str, SplitFiles]) -> str:
    """A hash of the names and contents of everything that is read, so that a changed file is never served stale."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        for path in split.files():
            try:
                content = path.read_bytes()
            except OSError as error:
                raise CorpusError(f"{path}: cannot be read ({error.strerror or error}).") from error
            digest.update(f"{name}/{path.name}:{len(content)}:".encode(errors="surrogateescape"))
            digest.update(content)
    return digest.hexdigest()


# --- Builder --------------------------------------------------------------------------------------------------------


@dataclass
class NerelConfig(datasets.BuilderConfig):
    """One way to a corpus.

    Args:
        data_dir: a local folder or file (see `find_splits`); None downloads the corpus (`nerel`, `runne`) or takes the
            one in the package (`sample`).
        url: the address of the archive to download instead of the pinned one.
        strict: raise on defects (True), repair or skip them (False), or the format's default (None).
        types: the entity types allowed, or None for any.
    """

    url: str | None = None
    strict: bool | None = None
    types: Sequence[str] | None = None

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """The name of the cache: it changes with the content of local files, the address and every option."""
        path = self.local_path()
        content = f"url:{self.archive_url()}" if path is None else _fingerprint(find_splits(path))
        types = None if self.types is None else sorted(self.types)
        key = json.dumps([_READERS_VERSION, content, self.strict, types, repr(custom_features)])
        return f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}"

    def local_path(self) -> Path | None:
        """The folder or file to read, or None if the corpus has to be downloaded."""
        if self.data_dir is None and self.name == "sample":
            return SAMPLE
        return None if self.data_dir is None else Path(self.data_dir)

    def archive_url(self) -> str:
        """The address the corpus is downloaded from."""
        return self.url or SOURCES[self.name].url


class NerelBuilder(datasets.GeneratorBasedBuilder):
    """Builds datasets of documents: `NerelBuilder(config_name="runne", data_dir=...)`.

    Configurations: `nerel` (brat folders), `runne` (RuNNE files) and `sample` (bundled); arguments as in `NerelConfig`
    and `datasets.DatasetBuilder`. After `download_and_prepare`, `read_report()` tells what was repaired or skipped.
    """

    VERSION = datasets.Version(_READERS_VERSION)
    BUILDER_CONFIG_CLASS = NerelConfig
    BUILDER_CONFIGS = [
        NerelConfig(name="nerel", version=VERSION, description="NEREL v1.1, nested entities in Russian news (brat)"),
        NerelConfig(name="runne", version=VERSION, description="RuNNE-2022, few-shot nested entities (JSONL)"),
        NerelConfig(name="sample", version=VERSION, description="Generated documents that ship with the package"),
    ]

    @classmethod
    def names(cls) -> list[str]:
        """The names of the configurations."""
        return [config.name for config in cls.BUILDER_CONFIGS]

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=self.config.description or "", features=FEATURES)

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """As in `datasets`, but a defect of the corpus comes out as the `CorpusError` it is."""
        try:
            super().download_and_prepare(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, CorpusError):
                raise error.__cause__ from None
            raise

    def _download_and_prepare(self, dl_manager: Any, verification_mode: Any, **kwargs: Any) -> None:
        # The archive is unpacked here, for as long as it is read: the download manager would unpack it into its cache
        # and, when interrupted, take the half-unpacked folder for the corpus ever after.
        self._report = ReadReport()
        with tempfile.TemporaryDirectory(prefix="runne-coner-") as self._unpacked:
            super()._download_and_prepare(dl_manager, verification_mode, **kwargs)
        defects = [[reason, path, count] for (reason, path), count in self._report.defects.items()]
        Path(self._output_dir, "read_report.json").write_text(json.dumps(defects), encoding="utf-8")

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        path = self.config.local_path() or self._download(dl_manager)
        return [datasets.SplitGenerator(name=name, gen_kwargs={"files": files}) for name, files in find_splits(path).items()]

    def _generate_examples(self, files: SplitFiles) -> Iterator[tuple[int, dict[str, Any]]]:
        documents = files.documents(self.config.strict, self.config.types, self._report)
        number = -1
        for number, document in enumerate(documents):
            yield number, to_row(document)
        if number < 0:
            raise CorpusError(f"{files.path}: no document that can be used.")

    def _download(self, dl_manager: Any) -> Path:
        """Download the archive and unpack the corpus out of it."""
        url, source = self.config.archive_url(), SOURCES[self.config.name]
        remedy = f"Download it by hand and give the path of its folder {source.folder} instead of {self.config.name!r}."
        try:
            archive = Path(dl_manager.download(url))
        except Exception as error:  # the file systems behind `datasets` raise errors of many libraries
            raise CorpusError(f"{url}: cannot be downloaded ({type(error).__name__}: {error}). {remedy}") from error
        try:
            with zipfile.ZipFile(archive) as content:
                members = [name for name in content.namelist() if source.folder in Path(name).parts[:2]]
                content.extractall(self._unpacked, members)
        except (zipfile.BadZipFile, EOFError) as error:
            archive.unlink()  # a page such as a login form must not stand in the cache for the corpus
            raise CorpusError(f"{url}: is no complete zip archive ({error}). {remedy}") from error
        folders = [path for path in Path(self._unpacked).rglob(source.folder) if path.is_dir()]
        if not folders:
            raise CorpusError(f"{url}: there is no folder {source.folder} in the archive. {remedy}")
        return folders[0]

    def read_report(self) -> ReadReport:
        """What was repaired or left out when the dataset was built, now or at the time it went into the cache."""
        path = Path(self.cache_dir, "read_report.json")
        defects = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return ReadReport(Counter({(reason, file): count for reason, file, count in defects}))


# --- What recipes call ----------------------------------------------------------------------------------------------


def load_documents(
    name_or_path: str | os.PathLike,
    split: str | Sequence[str] | None = None,
    *,
    strict: bool | None = None,
    types: Iterable[str] | None = None,
    url: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> datasets.DatasetDict:
    """Load a corpus as datasets with the columns `id`, `text` and `entities` (`FEATURES`).

    What lenient reading repaired or left out is reported in one warning of the logger `runne_coner.documents`, also
    when the datasets come from the cache.

    Args:
        name_or_path: "nerel" or "runne" (downloaded), "sample" (bundled), or a local path (see `find_splits`). A
            folder that has one of these names is meant by "./nerel".
        split: the split or splits to return, None for all.
        strict: raise on defects (True), repair or skip them (False), or the format's default (None): brat lenient,
            RuNNE strict but for entities given twice, columns strict but for entities that start with `I-`.
        types: the entity types allowed, or None for any.
        url: the address of the archive of "nerel" or "runne"; also the environment variables
            `RUNNE_CONER_NEREL_URL` and `RUNNE_CONER_RUNNE_URL`.
        cache_dir: where the datasets and downloads are kept; None is the cache of `datasets`.
    Returns:
        The datasets by the name of their split.
    Raises:
        CorpusError: nothing there, a failed download, a split that does not exist, or a defect.
    """
    name = os.fspath(name_or_path)
    options: dict[str, Any] = {"strict": strict, "types": None if types is None else sorted(types)}
    if name in SOURCES:
        options["url"] = url
    elif name != "sample":
        options["data_dir"] = name
        name = "nerel" if all(files.path.is_dir() for files in find_splits(name).values()) else "runne"
    builder = NerelBuilder(config_name=name, cache_dir=None if cache_dir is None else os.fspath(cache_dir), **options)
    builder.download_and_prepare()
    builder.read_report().log()
    available = list(builder.info.splits)
    wanted = available if split is None else [split] if isinstance(split, str) else list(split)
    for missing in [name for name in wanted if name not in available]:
        raise CorpusError(f"{name_or_path}: no split {missing!r}. There are {', '.join(available)}.")
    return datasets.DatasetDict({name: builder.as_dataset(split=name) for name in wanted})


def folder_of_types(name_or_path: str | os.PathLike) -> Path | None:
    """Where `ners.txt` or `annotation.conf` of a local corpus lies: in the folder or one level above; for a file, beside it."""
    path = Path(os.path.abspath(name_or_path))
    folders = [path, path.parent] if path.is_dir() else [path.parent]
    named = (folder for folder in folders if (folder / "ners.txt").is_file() or (folder / "annotation.conf").is_file())
    return next(named, None)


def load_entity_types(name_or_path: str | os.PathLike, documents: datasets.DatasetDict | None = None) -> list[str]:
    """The entity types of a corpus.

    They come from `ners.txt` or `annotation.conf` in the folder (for a file: beside it) or one level above; for the
    names "nerel", "runne" and "sample" they are `NEREL_TYPES`; else they are the types found in the data, sorted.

    Args:
        name_or_path: as for `load_documents`.
        documents: the loaded corpus, to spare loading it again where the data has to be searched.
    Returns:
        The names of the types.
    Raises:
        CorpusError: the path does not exist, or no type is named and no entity found.
    """
    if os.fspath(name_or_path) in NerelBuilder.names():
        return list(NEREL_TYPES)
    folder = folder_of_types(name_or_path)
    if folder is not None:
        return read_entity_types(folder)
    found: set[str] = set()
    for dataset in (documents or load_documents(name_or_path)).values():
        found.update(entity["type"] for entities in dataset["entities"] for entity in entities)
    if not found:
        raise CorpusError(f"{name_or_path}: no ners.txt, no annotation.conf and no entity to take the types from.")
    return sorted(found)
