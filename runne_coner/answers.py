"""What the commands `score` and `analyze` compare: gold documents, a system's predictions, and the types to count."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from .documents import CorpusError, Document, read_annotations, read_documents, read_entity_types
from .metrics import ScoreError, paired_documents
from .nerel import FEW_SHOT_TYPES, NEREL_TYPES, folder_of_types


def read_answers(path: str) -> list[Document]:
    """Annotations of a brat folder or a RuNNE file, whose lines may lack the text.

    Raises:
        CorpusError: a defect, or there is no document at all.
    """
    return _some(read_documents(path) if Path(path).is_dir() else read_annotations(path), path)


def read_texts(path: str) -> list[Document]:
    """Annotated documents with their texts: a brat folder or a RuNNE file.

    Raises:
        CorpusError: a text is missing, a defect, or there is no document at all.
    """
    return _some(read_documents(path) if Path(path).is_dir() else read_annotations(path, texts=True), path)


def _some(documents: list[Document], path: str) -> list[Document]:
    if not documents:
        raise CorpusError(f"{path}: holds no document.")
    return documents


def counted_types(types: str | None, references_path: str, documents: Iterable[Document]) -> list[str]:
    """All types that may occur.

    Args:
        types: a file that names them (`read_entity_types`); None: `ners.txt` or `annotation.conf` where `load_entity_types`
            looks for them, NEREL's types if they suffice, else those that occur.
        references_path: where the references were read from.
        documents: those whose types count as known.
    """
    if types is not None:
        return read_entity_types(types)
    folder = folder_of_types(references_path)
    if folder is not None:
        return read_entity_types(folder)
    found = {entity.type for document in documents for entity in document.entities}
    return list(NEREL_TYPES) if found <= set(NEREL_TYPES) else sorted(found)


def few_shot_types(names: str | None, types: Sequence[str], documents: Iterable[Document]) -> list[str]:
    """The few-shot types, in the order of `types`.

    Args:
        names: `A,B`; None: the shared task's, if all of them are among `types` and some entity has one of them.
        types: all types that may occur.
        documents: references and predictions, in which the entities are looked for.
    """
    if names is None:
        occur = any(entity.type in FEW_SHOT_TYPES for document in documents for entity in document.entities)
        return list(FEW_SHOT_TYPES) if occur and set(FEW_SHOT_TYPES) <= set(types) else []
    named = [name for name in map(str.strip, names.split(",")) if name]
    return [name for name in types if name in named] + [name for name in named if name not in types]


def check_same_texts(references: Sequence[Document], predictions: Sequence[Document]) -> None:
    """Make sure that predictions, where they bring a text, were made on that of the references: mentions are the same words.

    Raises:
        ScoreError: a document is missing or unexpected, or a predicted mention reads otherwise in the references.
    """
    for reference, prediction in paired_documents(references, predictions):
        for start, end, name in prediction.entities if prediction.text not in ("", reference.text) else ():
            there, here = (document.text[start:end] for document in (prediction, reference))
            if there.casefold().split() != here.casefold().split():
                raise ScoreError(
                    f"document {reference.id!r}: the {name} at [{start}, {end}) is {there[:60]!r} in the predictions and"
                    f" {here[:60]!r} in the references; the offsets must be those of the references' text"
                )
