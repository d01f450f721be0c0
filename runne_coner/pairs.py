"""The entity-pair view: pairs of spans drawn in advance, the training set of the paper's stage 1 (section 3.1)."""

import logging
from collections import defaultdict

import numpy as np
from datasets import Dataset, Features, List, Value

from .preprocessing import ViewError

logger = logging.getLogger(__name__)


def check_pairs(train: Dataset, evaluation: Dataset, loss: str = "dbl", negatives_only: int | None = None) -> None:
    """Stop before a training that could learn nothing, or that could not be evaluated.

    Args:
        train, evaluation: from `entity_view`.
        loss: the loss's name, see `metric_losses.LOSSES`.
        negatives_only: a type whose spans are no positives of each other.
    Raises:
        ViewError: the evaluation documents have no window, or the training documents not the pairs that the loss needs.
    """
    if len(evaluation) == 0:
        raise ViewError("the evaluation documents hold no word: there is nothing to evaluate on; choose another eval_split")
    distinct: dict[int, int] = defaultdict(int)
    for spans in train["spans"][:]:
        kinds, counts = np.unique(np.asarray(spans, dtype=np.int64).reshape(-1, 3)[:, 2], return_counts=True)
        for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            distinct[kind] += count
    plural = sum(count >= 2 for kind, count in distinct.items() if kind != negatives_only)
    positive, negative = plural >= 1, len(distinct) >= 2
    possible = {
        "supcon": (positive and negative, "two spans of one type and one of another"),
        "n_pairs": (plural >= 2, "two spans of each of two types"),
    }.get(loss, (positive or negative, "two spans"))
    if not possible[0]:
        raise ViewError(
            f"the training documents have {sum(distinct.values())} spans of {len(distinct)} types (with O, where it takes"
            f" part): loss {loss} needs at least {possible[1]}; give more documents or choose another loss"
        )


def entity_pair_view(view: Dataset, num_types: int, num_pairs: int, positive_share: float = 0.3, seed: int = 42) -> Dataset:
    """Pairs of spans drawn in advance, the training set of the paper's stage 1 (section 3.1).

    As in the reference, a pair is positive with probability `positive_share`; the type of its first span is uniform over
    the types (with O) that occur, that of the second the same or uniform over the others; the spans are uniform within
    their types. No span is paired with itself, also not under another type, and no pair is drawn twice: of a small corpus
    there may be fewer than `num_pairs`, and fewer positive ones than asked for (a warning says so). Types with a single span
    take part in negative pairs only.

    Args:
        view: from `entity_view`.
        num_types: number of entity types; O comes after them.
        num_pairs: pairs to draw.
    Returns:
        One row a pair: `first_input_ids`, `first_mask`, `second_input_ids`, `second_mask` (tokens,) with the mask 1 on the
        span's sub-words, `same` (1 = one type), `length` (tokens of both windows).
    Raises:
        ViewError: the corpus has fewer than two spans, so that there is no pair.
    """
    spans = view["spans"][:]
    window_of = np.repeat(np.arange(len(spans)), [len(found) for found in spans])
    flat = np.concatenate([np.zeros((0, 3), dtype=np.int32), *(np.asarray(found).reshape(-1, 3) for found in spans)])
    pairs = draw_pairs(np.column_stack([window_of, flat]), num_types, num_pairs, positive_share, seed)
    first, second = pairs[:, 0], pairs[:, 1]
    index = Dataset.from_dict({"first": first, "second": second, "same": flat[first, 2] == flat[second, 2]})
    input_ids = view["input_ids"][:]

    def look_up(batch: dict) -> dict:
        columns = defaultdict(list)
        for left, right, same in zip(batch["first"], batch["second"], batch["same"], strict=True):
            for side, span in (("first", left), ("second", right)):
                ids = input_ids[int(window_of[span])]
                mask = np.zeros(len(ids), dtype=np.int8)
                mask[flat[span, 0] : flat[span, 1]] = 1
                columns[f"{side}_input_ids"].append(ids)
                columns[f"{side}_mask"].append(mask)
            columns["same"].append(int(same))
            columns["length"].append(len(columns["first_input_ids"][-1]) + len(columns["second_input_ids"][-1]))
        return columns

    ids_feature, mask_feature = List(Value("int32")), List(Value("int8"))
    features = Features(
        {"first_input_ids": ids_feature, "first_mask": mask_feature}
        | {"second_input_ids": ids_feature, "second_mask": mask_feature}
        | {"same": Value("int8"), "length": Value("int32")}
    )
    return index.map(
        look_up, batched=True, remove_columns=["first", "second"], features=features, desc=f"{len(pairs)} entity pairs"
    ).with_format("numpy")


def draw_pairs(spans: np.ndarray, num_types: int, num_pairs: int, positive_share: float = 0.3, seed: int = 42) -> np.ndarray:
    """Indices `(pairs, 2)` of spans; see `entity_pair_view` for the rule.

    Args:
        spans: `(S, 4)` window, first token, end token, type (O = `num_types`).
    """
    rng = np.random.default_rng(seed)
    types = spans[:, 3]
    order = np.argsort(types, kind="stable")
    counts = np.bincount(types, minlength=num_types + 1)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    present, plural = np.flatnonzero(counts), np.flatnonzero(counts >= 2)
    if len(spans) < 2 or (len(plural) == 0 and len(present) < 2):
        raise ViewError(f"{len(spans)} spans make no pair: stage 1 needs at least two spans in the training documents")
    # A corpus of one type has positive pairs only, one of single mentions negative pairs only.
    share = 1.0 if len(present) < 2 else 0.0 if len(plural) == 0 else positive_share
    positives = rng.binomial(num_pairs, share)
    chosen = np.empty((0, 2), dtype=np.int64)
    for _ in range(100):
        missing = num_pairs - len(chosen)
        if missing == 0:
            break
        # What was rejected is drawn anew as the same kind: rare types run out of positive pairs, and the share would fall.
        found = (types[chosen[:, 0]] == types[chosen[:, 1]]).sum()
        same = rng.permutation(np.arange(missing) < positives - found)
        first_type = np.where(same, rng.choice(plural if share else present, missing), rng.choice(present, missing))
        shift = rng.integers(1, max(len(present), 2), missing)
        other = present[(np.searchsorted(present, first_type) + shift) % len(present)]
        second_type = np.where(same, first_type, other)
        drawn = np.column_stack(
            [order[starts[kind] + (rng.random(missing) * counts[kind]).astype(int)] for kind in (first_type, second_type)]
        )
        drawn = drawn[(spans[drawn[:, 0], :3] != spans[drawn[:, 1], :3]).any(axis=1)]
        chosen = np.concatenate([chosen, drawn])
        _, kept = np.unique(np.sort(chosen, axis=1), axis=0, return_index=True)
        chosen = chosen[np.sort(kept)]
    if len(chosen) == 0:
        raise ViewError("every span of the training documents is the same words: there is no pair of distinct spans")
    if len(chosen) < num_pairs:
        found = (types[chosen[:, 0]] == types[chosen[:, 1]]).mean()
        logger.warning(
            f"num_pairs {num_pairs}: the training documents gave {len(chosen)} distinct pairs, {found:.0%} of them positive"
            f" (asked for: {share:.0%})"
        )
    return chosen
