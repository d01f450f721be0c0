"""Orders of the training windows that depend on seed and epoch alone: by length, and by type (`by_type`, stage 1)."""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

SPANS_PER_TYPE = 2
"""Spans of a drawn type that a batch holds at least: with fewer it has no positive pair."""
TYPED_SHARE = 0.5
"""Share of a batch that is drawn by type; the rest are windows that the epoch has not had yet."""
SHORTEST = 0.8
"""Windows that join a batch for their type are at least this long, in terms of its longest: padding stays low."""
CANDIDATES = 64
"""Windows that are looked at when one is drawn by its type, so that large corpora cost no more than small ones."""


def count_types(view: Dataset) -> np.ndarray:
    """Spans of each type in each window of an `entity_view`, `(windows, types)` int32; the last type is O if it occurs."""
    spans = [np.asarray(found).reshape(-1, 3)[:, 2] for found in view["spans"][:]]
    window = np.repeat(np.arange(len(spans)), [len(found) for found in spans])
    types = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
    counts = np.zeros((len(spans), int(types.max(initial=-1)) + 1), dtype=np.int32)
    np.add.at(counts, (window, types), 1)
    return counts


class SamplerEpochs(TrainerCallback):
    """Tells the samplers of training their epoch.

    The Trainer does not reach them through what skips the batches of a resumed epoch and deals batches out to processes.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))
            sampler = getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))


class LengthSampler(LengthGroupedSampler):
    """Windows of about one length side by side (`group_by_length`), in an order that follows from `seed` and the epoch.

    That of transformers follows from the state of torch, which a run resumed in the middle of an epoch does not have: it would
    train on some windows twice and leave others out.

    Args:
        batch_size: windows of a batch of one process, of all its accumulated steps.
        lengths: `(windows,)` tokens.
        seed: of the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iterator is for."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        (state,) = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        self.generator = torch.Generator().manual_seed(int(state))
        return super().__iter__()


class TypeBatchSampler(Sampler[list[int]]):
    """Batches of windows of about one length that hold at least two spans of each of the types drawn for them.

    For one batch, of all processes together:

    1. A length is chosen: with probability 1/2 that of a window of one type, all types having the same chance, else that
       of a window which the epoch has not had yet. So every type with two spans has a chance in every batch, and so has
       every length.
    2. The types are gone through in random order, and of each that has not two spans in the batch yet, windows of about
       the chosen length are drawn until it has: first those whose *rarest* type it is, those drawn least often before the
       others. Types that cannot reach two spans are passed over. This goes on until half the batch is full.
    3. The rest are windows that the epoch has not had yet, the nearest in length.

    An epoch has as many windows as the corpus. As those of rare types come several times in it, some others come only in a
    later epoch. Windows without any span train nothing and are left out, unless there are no others.

    Each epoch depends on `seed` and its number alone, so a resumed run goes on with the batches that it has not had. All
    processes draw the same batches; `accelerate` deals out the pieces: batch `i` of process `p` is number
    `i * num_processes + p` of this iterator.

    Args:
        counts: `(windows, types)` spans of each type, see `count_types`.
        lengths: `(windows,)` tokens.
        batch_size: windows of a batch of one process. A corpus with fewer windows makes smaller batches.
        num_processes: processes that train together.
        seed: of the order.
        drop_last: leave out the batch that the windows of an epoch do not fill; else it is filled with windows drawn before.
    Raises:
        ValueError: there is no window, or the shapes do not fit.
    """

    def __init__(
        self,
        counts: np.ndarray,
        lengths: np.ndarray,
        batch_size: int,
        *,
        num_processes: int = 1,
        seed: int = 42,
        drop_last: bool = False,
    ):
        counts, lengths = np.asarray(counts), np.asarray(lengths)
        if counts.ndim != 2 or lengths.shape != counts.shape[:1]:
            raise ValueError(f"expected counts (windows, types) and lengths (windows,), got {counts.shape}, {lengths.shape}")
        if len(lengths) == 0:
            raise ValueError("there is no window to train on; give training documents with text")
        if batch_size < 1 or num_processes < 1:
            raise ValueError(f"batch_size {batch_size} and num_processes {num_processes} must be at least 1")
        self.num_processes, self.seed, self.epoch = num_processes, seed, 0
        useful = np.flatnonzero(counts.any(axis=1)) if counts.any() else np.arange(len(lengths))
        # Sorted by length, windows of about one length are a slice.
        self.windows = useful[np.argsort(lengths[useful], kind="stable")]
        self.counts, self.lengths = counts[self.windows], lengths[self.windows]
        self.global_size = min(batch_size * num_processes, len(self.windows))
        whole, rest = divmod(len(self.windows), self.global_size)
        self.global_batches = whole + (rest > 0 and not drop_last)
        totals = self.counts.sum(axis=0)
        self.drawable = np.flatnonzero(totals >= SPANS_PER_TYPE)
        held = self.counts > 0
        rarest = np.where(held, totals, totals.max(initial=0) + 1).argmin(axis=1) if counts.shape[1] else None
        # Positions in `windows`, which ascend with the length.
        self.holders = {kind: np.flatnonzero(held[:, kind]) for kind in self.drawable}
        self.own = {kind: np.flatnonzero(held[:, kind] & (rarest == kind)) for kind in self.drawable}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iterator is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.global_batches * self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        draw = _Epoch(self, np.random.default_rng([self.seed, self.epoch]))
        for _ in range(self.global_batches):
            batch = self.windows[draw.batch()]
            # Fewer windows than processes: some process gets one that another has as well.
            batch = np.resize(batch, max(len(batch), self.num_processes))
            for piece in np.array_split(batch, self.num_processes):
                yield piece.tolist()


class _Epoch:
    """Draws the batches of one epoch, as positions in `sampler.windows`."""

    def __init__(self, sampler: TypeBatchSampler, rng: np.random.Generator):
        self.sampler, self.rng = sampler, rng
        windows = len(sampler.windows)
        self.drawn = np.zeros(windows, dtype=np.int64)
        # In the order of length, and in random order within one length.
        self.order = np.lexsort((rng.random(windows), sampler.lengths))

    def batch(self) -> np.ndarray:
        self.taken = np.zeros(len(self.drawn), dtype=bool)
        self.held = np.zeros(self.sampler.counts.shape[1], dtype=np.int64)
        self.size = 0
        length = self._length()
        room = max(int(TYPED_SHARE * self.sampler.global_size), min(SPANS_PER_TYPE, self.sampler.global_size))
        for kind in self.rng.permutation(self.sampler.drawable):
            if self.size >= room:
                break
            found = self._complete(kind, SHORTEST * length, length)
            if self.size + len(found) <= room:
                self._take(found)
        self._fill(length)
        chosen = np.flatnonzero(self.taken)
        self.drawn[chosen] += 1
        return self.rng.permutation(chosen)

    def _length(self) -> float:
        """Tokens of the longest window that the batch should have; a type that decides it is in the batch already."""
        if len(self.sampler.drawable) and self.rng.random() < 0.5:
            kind = self.rng.choice(self.sampler.drawable)
            own = self.sampler.own[kind] if len(self.sampler.own[kind]) else self.sampler.holders[kind]
            length = self.sampler.lengths[self.rng.choice(own)]
            # Of a type with few windows the second span may be in a window of quite another length.
            near = self._complete(kind, SHORTEST * length, length)
            found = near or self._complete(kind, 0, np.inf)
            if len(found) <= self.sampler.global_size:
                self._take(found)
                return max([length, *self.sampler.lengths[found]]) if near else self.sampler.lengths[found].max()
        unseen = np.flatnonzero(self.drawn == 0)
        return self.sampler.lengths[self.rng.choice(unseen if len(unseen) else len(self.drawn))]

    def _take(self, positions: list[int]) -> None:
        self.taken[positions] = True
        self.size += len(positions)
        self.held += self.sampler.counts[positions].sum(axis=0)

    def _complete(self, kind: int, shortest: float, longest: float) -> list[int]:
        """Windows between two lengths that bring a type to two spans; none if it has them, or if they cannot."""
        missing = SPANS_PER_TYPE - self.held[kind]
        found: list[int] = []
        for windows in (self.sampler.own[kind], self.sampler.holders[kind]):
            if missing <= 0:
                break
            lengths = self.sampler.lengths[windows]
            low, high = np.searchsorted(lengths, shortest), np.searchsorted(lengths, longest, side="right")
            if high - low > CANDIDATES:
                low = self.rng.integers(low, high - CANDIDATES + 1)
                high = low + CANDIDATES
            windows = windows[low:high]
            windows = windows[~self.taken[windows]]
            for position in windows[np.lexsort((self.rng.random(len(windows)), self.drawn[windows]))]:
                if missing > 0 and position not in found:
                    found.append(int(position))
                    missing -= self.sampler.counts[position, kind]
        return found if missing <= 0 else []

    def _fill(self, length: float) -> None:
        """Fill up with the windows nearest in length, those that the epoch has not had yet first."""
        for allowed in (self.drawn == 0, self.drawn > 0):
            missing = self.sampler.global_size - self.size
            pool = self.order[(allowed & ~self.taken)[self.order]]
            if missing and len(pool):
                end = np.searchsorted(self.sampler.lengths[pool], length, side="right")
                start = np.clip(end - missing, 0, max(len(pool) - missing, 0))
                self._take(pool[start : start + missing].tolist())
