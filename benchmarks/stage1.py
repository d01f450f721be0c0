"""What stage 1 costs: all pairs of a batch against pairs drawn in advance, and where time and memory go, from one run.

    python benchmarks/stage1.py [--model e5-small-ru] [--documents FILE] [--steps N] [--threads N]

With one encoder and the same windows it prints (a) pairs a second of `in_batch` and of `sampled` at equal batch memory, that is
with as many windows in a batch, (b) the share of a training step that the loss and the making of pairs take, (c) the share of
padding in batches drawn by_type, by length and at random, and (d) the peak memory of a step, each in a process of its own, with
32 windows, 256 in chunks of 32, and 256 at once if that fits. Both pair modes take turns, so a slower machine slows both.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from runne_coner.collators import EntityCollator, EntityPairCollator
from runne_coner.configuration import CoNERConfig
from runne_coner.documents import FEATURES, read_documents, to_row
from runne_coner.encoders import resolve_encoder
from runne_coner.gathering import SPAN_COLUMNS
from runne_coner.losses import DistanceBasedLogisticLoss
from runne_coner.modeling import EntityEncoder
from runne_coner.nerel import SAMPLE
from runne_coner.pairs import entity_pair_view
from runne_coner.preprocessing import entity_view, load_tokenizer
from runne_coner.samplers import TypeBatchSampler, count_types

WINDOWS = 32
LARGE = 256


class PeakMemory:
    """How much resident memory is added within the context at most, in bytes, looked at every 2 ms by a thread.

    The peak that the system keeps of a process is no measure: making the view may have needed more than a step does.
    """

    def __enter__(self):
        self._process, self._done, self.added = psutil.Process(), threading.Event(), 0
        before = self._process.memory_info().rss

        def watch() -> None:
            while not self._done.wait(0.002):
                self.added = max(self.added, self._process.memory_info().rss - before)

        self._thread = threading.Thread(target=watch)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._done.set()
        self._thread.join()


class Step:
    """Training steps of one encoder, with the time that the loss takes of them."""

    def __init__(self, model: EntityEncoder):
        self.model, self.loss = model, DistanceBasedLogisticLoss()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def __call__(self, batch: dict, chunk_size: int = 0) -> dict[str, float]:
        """One step; seconds in all, and of the loss with its backward pass down to the embeddings; pairs compared."""
        start = time.perf_counter()
        windows = {name: value for name, value in batch.items() if name not in SPAN_COLUMNS and name != "same"}
        embeddings = self.model(**windows, spans=batch["spans"], chunk_size=chunk_size).span_embeddings
        encoded = time.perf_counter()
        # The embeddings' gradient is made apart from the encoder's, so that the clock can stand between them.
        leaf = embeddings.detach().requires_grad_()
        if "same" in batch:
            loss = self.loss.forward_pairs(*leaf.chunk(2), batch["same"])["loss"]
        else:
            _, identity = torch.unique(batch["spans"], dim=0, return_inverse=True)
            loss = self.loss(leaf, batch["types"], identity)["loss"]
        loss.backward()
        lost = time.perf_counter()
        embeddings.backward(leaf.grad)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        taken = time.perf_counter() - start
        pairs = len(batch["same"]) if "same" in batch else int((torch.triu(identity[:, None] != identity, diagonal=1)).sum())
        return {"seconds": taken, "loss": lost - encoded, "pairs": pairs}


def load(arguments: argparse.Namespace):
    """The view, its tokenizer, a new network, and the number of types."""
    rows = [to_row(document) for document in read_documents(arguments.documents)]
    types = sorted({entity["type"] for row in rows for entity in row["entities"]})
    encoder = resolve_encoder(arguments.model, None)
    tokenizer = load_tokenizer(encoder)
    view = entity_view(Dataset.from_list(rows, features=FEATURES), tokenizer, types)
    torch.manual_seed(0)
    return view, tokenizer, EntityEncoder.from_encoder(encoder, CoNERConfig()).train(), len(types)


def compare_modes(view, tokenizer, model, num_types: int, steps: int) -> None:
    # As many windows in a batch, two to a pair: the same memory. Both read windows of the whole corpus in random order.
    pairs = entity_pair_view(view, num_types, steps * WINDOWS // 2, seed=0)
    order = np.random.default_rng(0).permutation(len(view))
    collate, collate_pairs, step = EntityCollator(tokenizer), EntityPairCollator(tokenizer), Step(model)
    found: dict[str, list[dict]] = {"in_batch": [], "sampled": []}
    for number in range(-1, steps - 1):
        rows = np.take(order, range(number * WINDOWS, (number + 1) * WINDOWS), mode="wrap")
        pair_rows = range((number + 1) * WINDOWS // 2, (number + 2) * WINDOWS // 2)
        for mode, maker, rows_of in (
            ("in_batch", collate, [view[int(row)] for row in rows]),
            ("sampled", collate_pairs, [pairs[row] for row in pair_rows]),
        ):
            found[mode].append(step(maker(rows_of)))
    rates = {}
    print(f"(a) pairs a second, {WINDOWS} windows in a batch, medians of {steps - 1} steps after the first")
    for mode, measured in found.items():
        rates[mode] = statistics.median(entry["pairs"] / entry["seconds"] for entry in measured[1:])
        print(f"  {mode:<10}{rates[mode]:12.1f}")
    print(f"  in_batch / sampled: {rates['in_batch'] / rates['sampled']:.0f} times (target: at least 2000)")
    share = statistics.median(entry["loss"] / entry["seconds"] for entry in found["in_batch"][1:])
    print(f"(b) loss and pairs: {100 * share:.2f} % of a training step of in_batch (target: at most 5 %)")


def compare_padding(view) -> None:
    lengths = np.asarray(view["length"][:])

    def padding(batches) -> float:
        return 100 * (1 - sum(lengths[b].sum() for b in batches) / sum(len(b) * lengths[b].max() for b in batches))

    def cut(order) -> list[np.ndarray]:
        return [np.asarray(order[start : start + WINDOWS]) for start in range(0, len(order), WINDOWS)]

    print(f"(c) padding, {WINDOWS} windows in a batch, {len(view)} windows (target of by_type: under 10 %)")
    print(f"  by_type         {padding(list(TypeBatchSampler(count_types(view), lengths, WINDOWS))):6.1f} %")
    print(f"  group_by_length {padding(cut(list(LengthGroupedSampler(WINDOWS, lengths=lengths.tolist())))):6.1f} %")
    print(f"  random          {padding(cut(np.random.default_rng(0).permutation(len(view)))):6.1f} %")


def measure_memory(arguments: argparse.Namespace) -> None:
    """Print the megabytes that one step adds to the peak memory of this process, and the seconds it takes."""
    windows, chunk_size = arguments.memory
    view, tokenizer, model, _ = load(arguments)
    # The same lengths for all: those of the longest windows, repeated as need be.
    longest = np.argsort(np.asarray(view["length"][:]))[::-1][:WINDOWS]
    batch = EntityCollator(tokenizer)([view[int(row)] for row in np.resize(longest, windows)])
    step = Step(model)
    with PeakMemory() as memory:
        taken = step(batch, chunk_size)["seconds"]
    print(memory.added / 2**20, taken)


def step_memory(arguments: argparse.Namespace, windows: int, chunk_size: int) -> float:
    """Print and return the MiB that one step of the longest windows adds, in a process of its own."""
    command = [sys.executable, __file__, "--model", arguments.model, "--documents", arguments.documents]
    command += ["--threads", str(arguments.threads), "--memory", str(windows), str(chunk_size)]
    # Without a fixed threshold glibc keeps freed tensors of up to 32 MiB as holes in its heap, and these would be counted.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    megabytes, seconds = map(float, done.stdout.split())
    name = f"{windows} windows" + (f" in chunks of {chunk_size}" if chunk_size else "")
    print(f"  {name:<30}{megabytes:8.0f} MiB {seconds:8.1f} s")
    return megabytes


def compare_memory(arguments: argparse.Namespace) -> None:
    print("(d) peak memory that one step adds (weights' gradients and optimiser included), each in its own process")
    small = step_memory(arguments, WINDOWS, 0)
    chunked = step_memory(arguments, LARGE, WINDOWS)
    print(f"  {LARGE} in chunks / {WINDOWS}: {chunked / small:.2f} times")
    needed, free = small * LARGE / WINDOWS, psutil.virtual_memory().available / 2**20
    if needed < free:
        step_memory(arguments, LARGE, 0)
    else:
        print(f"  {LARGE} windows at once would need about {needed:.0f} MiB, and {free:.0f} MiB are free: not tried")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="e5-small-ru", help="encoder: Hub id, folder, or e5-small-ru")
    parser.add_argument("--documents", default=str(SAMPLE / "train.jsonl"), help="RuNNE JSONL file or brat folder")
    parser.add_argument("--steps", type=int, default=6, help="steps of each pair mode, the first of which does not count")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", type=int, nargs=2, metavar=("WINDOWS", "CHUNK"), help="only measure one step's memory")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        measure_memory(arguments)
        return
    view, tokenizer, model, num_types = load(arguments)
    print(f"{arguments.model}, {len(view)} windows, {num_types} types, {arguments.threads} threads")
    compare_modes(view, tokenizer, model, num_types, arguments.steps)
    compare_padding(view)
    compare_memory(arguments)


if __name__ == "__main__":
    main()
