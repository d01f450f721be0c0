"""What lies outside every entity, as spans of stage 1: which stretches of O words are compared with entities."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OUTSIDE_MODES = ("class", "negative", "none")
OUTSIDE_LENGTHS = ("runs", "entities")


@dataclass(frozen=True)
class OutsideSettings:
    """How O enters stage 1.

    Args:
        mode: `class`: O is a type like the others; `negative`: O spans are compared with entities, not with each other;
            `none`: there are no O spans.
        per_window: O spans of a window at most, drawn at random; 0 takes each run of O words once.
        lengths: `runs`: an O span is a whole run of words outside every entity; `entities`: a piece of such a run, as long
            in words as an entity drawn from the corpus (or as the run, if that is shorter).
        seed: of the draws; a window draws the same spans whatever the number of processes.
    Raises:
        ValueError: an option is unknown or out of range.
    """

    mode: str = "class"
    per_window: int = 0
    lengths: str = "runs"
    seed: int = 42

    def __post_init__(self):
        if self.mode not in OUTSIDE_MODES:
            raise ValueError(f"outside must be one of {OUTSIDE_MODES}, got {self.mode!r}")
        if self.per_window < 0:
            raise ValueError(f"outside_per_window must be 0 (every run) or more, got {self.per_window}")
        if self.lengths not in OUTSIDE_LENGTHS:
            raise ValueError(f"outside_lengths must be one of {OUTSIDE_LENGTHS}, got {self.lengths!r}")


EVERY_RUN = OutsideSettings()


def outside_spans(
    words: np.ndarray, inside: np.ndarray, settings: OutsideSettings, entity_words: Sequence[int], key: tuple[int, int]
) -> list[tuple[int, int]]:
    """O spans of a window.

    Args:
        words: `(tokens,)` word index of each sub-word, -1 for special tokens.
        inside: `(tokens,)` bool, True on sub-words of entities and on special tokens.
        entity_words: lengths in words to draw from, for `lengths="entities"`.
        key: numbers of the document and of the window, which with the seed fix the draw.
    Returns:
        Token spans (first, end), in order and each once.
    """
    if settings.mode == "none":
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[True], inside, [True]]).astype(np.int8)))
    runs = edges.reshape(-1, 2).tolist()
    if not runs or (settings.per_window == 0 and settings.lengths == "runs"):
        return [(first, end) for first, end in runs]
    rng = np.random.default_rng([settings.seed, *key])
    if settings.lengths == "runs":
        chosen = rng.permutation(len(runs))[: settings.per_window]
        return [tuple(runs[index]) for index in sorted(chosen.tolist())]
    # Longer runs hold more places for a piece; with no limit every run gives one.
    sizes = np.array([len(np.unique(words[first:end])) for first, end in runs])
    drawn = range(len(runs))
    if settings.per_window:
        drawn = rng.choice(len(runs), settings.per_window, p=sizes / sizes.sum()).tolist()
    return sorted({_piece(words, runs[index], entity_words, rng) for index in drawn})


def _piece(words: np.ndarray, run: tuple[int, int], entity_words: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """A stretch of whole words of a run, of a length drawn from `entity_words`."""
    first, end = run
    distinct = np.unique(words[first:end])
    length = min(int(rng.choice(entity_words)) if len(entity_words) else len(distinct), len(distinct))
    start = int(rng.integers(len(distinct) - length + 1))
    low = first + int(np.searchsorted(words[first:end], distinct[start]))
    high = first + int(np.searchsorted(words[first:end], distinct[start + length - 1], side="right"))
    return low, high


def surface_id(text: str) -> int:
    """A number of 63 bits for the words of a span, up to case and spaces; the same in every process and run."""
    words = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1
