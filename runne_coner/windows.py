"""Windows of whole sentences: where a text is cut so that a network can read it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class WindowSettings:
    """How documents are cut; the fields of `CoNERConfig` of the same names."""

    max_length: int = 128
    max_sentences: int = 1
    stride: int = 32

    def within(self, limit: int | None) -> "WindowSettings":
        """These settings, for windows of `limit` sub-words if they are for longer ones; None is no limit."""
        if limit is None or self.max_length <= limit:
            return self
        return replace(self, max_length=limit, stride=min(self.stride, limit // 4))


DEFAULT_WINDOWS = WindowSettings()


@dataclass(frozen=True)
class Window:
    """Words `[first, end)` of a text; it answers for entities that start in its core `[core_first, core_end)`."""

    first: int
    end: int
    core_first: int
    core_end: int


def training_windows(
    lengths: np.ndarray, sentences: np.ndarray, capacity: int, max_sentences: int, entities: Iterable[tuple[int, int]]
) -> list[Window]:
    """Windows of whole sentences that cut no entity which fits into a window.

    Sentences that share an entity are joined. A sentence (or joined sentences) longer than a window is cut before the
    entity that would be cut; where entities interlock so that there is no such place, windows overlap instead.

    Args:
        lengths: sub-words of each word, `(words,)`.
        sentences: word index at which each sentence starts.
        capacity: sub-words of a window, without special tokens.
        max_sentences: sentences of a window at most, 0 for no limit.
        entities: word spans `(first, end)`.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    spans = [(first, end) for first, end in entities if ends[end] - ends[first] <= capacity]
    crossed = {int(s) for first, end in spans for s in sentences[(sentences > first) & (sentences < end)]}
    # For each place between words, the first word of the entities that a cut there would cut; itself if there is none.
    reach = np.arange(len(lengths) + 1)
    for first, end in spans:
        reach[first + 1 : end] = np.minimum(reach[first + 1 : end], first)
    units = _units(np.array([s for s in sentences.tolist() if s not in crossed], dtype=np.int64), len(lengths))
    windows = []
    for first, end in _packed(units, ends, capacity, max_sentences):
        while ends[end] - ends[first] > capacity:
            cut = max(int(np.searchsorted(ends, ends[first] + capacity, side="right")) - 1, first + 1)
            free = cut
            while first < free != reach[free]:
                free = int(reach[free])
            if free > first:
                windows.append(Window(first, free, first, free))
                first = free
            else:
                windows.append(Window(first, cut, first, cut))
                first = int(reach[cut])
        windows.append(Window(first, end, first, end))
    return windows


def inference_windows(
    lengths: np.ndarray, sentences: np.ndarray, capacity: int, max_sentences: int, stride: int
) -> list[Window]:
    """Windows of whole sentences; pieces of a sentence longer than a window share about `stride` sub-words.

    Two overlapping windows meet in the middle of what they share: each answers for the entities that start on its side.
    Arguments as `training_windows`.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    stride = min(stride, capacity // 2)
    windows = []
    for first, end in _packed(_units(sentences, len(lengths)), ends, capacity, max_sentences):
        core = first
        while ends[end] - ends[first] > capacity:
            cut = max(int(np.searchsorted(ends, ends[first] + capacity, side="right")) - 1, first + 1)
            # So far on that the next word fits as well: the next window must see something new.
            base = max(ends[cut] - stride, ends[cut + 1] - capacity)
            following = min(int(np.searchsorted(ends, base, side="left")), cut)
            seam = (following + cut + 1) // 2
            windows.append(Window(first, cut, core, seam))
            first, core = following, seam
        windows.append(Window(first, end, core, end))
    return windows


def with_neighbours(windows: list[Window], lengths: np.ndarray, capacity: int, context: int) -> list[Window]:
    """Each window together with up to `context` windows before and after it, the nearest first, as far as they fit.

    Args:
        windows: of a text, in order.
        lengths: sub-words of each word, `(words,)`.
        capacity: sub-words of a window, without special tokens.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    widened = []
    for index, window in enumerate(windows):
        low = high = index
        for _ in range(context):
            reached = low, high
            for left, right in ((1, 0), (0, 1)):
                before, after = low - left, high + right
                inside = before >= 0 and after < len(windows)
                if inside and ends[windows[after].end] - ends[windows[before].first] <= capacity:
                    low, high = before, after
            if (low, high) == reached:
                break
        widened.append(Window(windows[low].first, windows[high].end, window.core_first, window.core_end))
    return widened


def _units(sentences: np.ndarray, num_words: int) -> list[tuple[int, int]]:
    if num_words == 0:
        return []
    starts = sorted({0, *sentences.tolist()})
    return list(zip(starts, [*starts[1:], num_words], strict=True))


def _packed(units: list, ends: np.ndarray, capacity: int, max_sentences: int) -> list[tuple[int, int]]:
    packed: list[list[int]] = []
    count = 0
    for first, end in units:
        fits = packed and ends[end] - ends[packed[-1][0]] <= capacity
        if fits and (max_sentences == 0 or count < max_sentences):
            packed[-1][1] = end
            count += 1
        else:
            packed.append([first, end])
            count = 1
    return [(first, end) for first, end in packed]
