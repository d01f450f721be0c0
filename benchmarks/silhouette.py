"""Silhouettes of all types at once, against scikit-learn called once per type.

    python benchmarks/silhouette.py                       # 10,000 words of 384 dimensions, 29 types
    python benchmarks/silhouette.py --words 2000 --types 5

Both work on the same random words in one run; printed are the largest difference and how many times faster the one pass is.
"""

import argparse
import time

import numpy as np
from sklearn.metrics import silhouette_score
from tqdm import tqdm

from runne_coner.silhouette import type_silhouettes


def make_words(words: int, types: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings `(words, size)` float32 and membership `(words, types)`: types of 0.2% to 5% of the words, overlapping."""
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(words, size)).astype(np.float32)
    membership = random.random((words, types)) < np.geomspace(0.002, 0.05, types)
    membership[: types + 1] = np.eye(types + 1, types, dtype=bool)
    return embeddings + (membership @ random.normal(size=(types, size))).astype(np.float32), membership


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--types", type=int, default=29)
    parser.add_argument("--size", type=int, default=384, help="dimensions of the embeddings")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    embeddings, membership = make_words(arguments.words, arguments.types, arguments.size, arguments.seed)

    def seconds(work) -> tuple[float, np.ndarray]:
        # Wall and processor time: other programs on the machine disturb the first one.
        started = time.perf_counter(), time.process_time()
        values = work()
        return time.perf_counter() - started[0], time.process_time() - started[1], values

    wall, busy, ours = seconds(lambda: type_silhouettes(embeddings, membership))
    columns = tqdm(membership.T, desc="sklearn", unit="type")
    their_wall, their_busy, theirs = seconds(lambda: np.array([silhouette_score(embeddings, column) for column in columns]))
    print(f"{arguments.words} words, {arguments.types} types, {arguments.size} dimensions")
    print(f"{'':24}{'wall s':>10}{'CPU s':>10}")
    print(f"{'one pass for all types':24}{wall:10.2f}{busy:10.2f}")
    print(f"{'scikit-learn, per type':24}{their_wall:10.2f}{their_busy:10.2f}")
    print(f"times faster: {their_wall / wall:.1f} (wall), {their_busy / busy:.1f} (CPU)")
    print(f"largest difference: {np.abs(ours - theirs).max():.1e}")


if __name__ == "__main__":
    main()
