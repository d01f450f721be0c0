"""Batches of both views: padding to the longest window of the batch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .tagging import IGNORE_INDEX, SPECIAL


def pad_windows(tokenizer: PreTrainedTokenizerBase, windows: list[Any], pad_to_multiple_of: int | None = None) -> dict:
    """`input_ids`, `attention_mask` (and `token_type_ids` where the encoder has them) of windows, `(batch, tokens)`."""
    # `tokenizer.pad` wants lists, and looks at each of their numbers: it takes longer than Viterbi.
    lengths = torch.tensor([len(ids) for ids in windows])
    multiple = pad_to_multiple_of or 1
    tokens = -(-int(lengths.max()) // multiple) * multiple
    batch = {"input_ids": _pad_rows(windows, tokens, tokenizer.pad_token_id)}
    if "token_type_ids" in tokenizer.model_input_names:
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    batch["attention_mask"] = (torch.arange(tokens) < lengths[:, None]).long()
    return batch


def _pad_rows(rows: list[np.ndarray], tokens: int, value: int) -> Tensor:
    shape = (len(rows), tokens, *np.asarray(rows[0]).shape[1:])
    padded = np.full(shape, value, dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)


@dataclass
class BilouCollator:
    """Batches of `bilou_view`: `input_ids`, `attention_mask`, `subword_cases` (batch, tokens), and, where the rows have
    them, `labels` (batch, tokens, heads). Padding has the case SPECIAL and the label -100."""

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = pad_windows(self.tokenizer, [row["input_ids"] for row in rows], self.pad_to_multiple_of)
        tokens = batch["input_ids"].shape[1]
        batch["subword_cases"] = _pad_rows([row["subword_cases"] for row in rows], tokens, SPECIAL)
        if "labels" in rows[0]:
            batch["labels"] = _pad_rows([row["labels"] for row in rows], tokens, IGNORE_INDEX)
        return batch


@dataclass
class EntityCollator:
    """Batches of `entity_view`: the windows, `spans` (S, 3) of window, first token, end token, and `types` (S,); where the
    rows have them also `surfaces` (S,) and the `corpora` (S,) that the spans' windows are of."""

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        batch = pad_windows(self.tokenizer, [row["input_ids"] for row in rows], self.pad_to_multiple_of)
        found = [np.asarray(row["spans"], dtype=np.int64).reshape(-1, 3) for row in rows]
        windows = np.repeat(np.arange(len(rows)), [len(spans) for spans in found])
        flat = np.concatenate(found)
        batch["spans"] = torch.from_numpy(np.column_stack([windows, flat[:, :2]]))
        batch["types"] = torch.from_numpy(flat[:, 2].copy())
        if "surfaces" in rows[0]:
            batch["surfaces"] = torch.from_numpy(np.concatenate([np.asarray(row["surfaces"], dtype=np.int64) for row in rows]))
        if "corpus" in rows[0]:
            batch["corpora"] = torch.from_numpy(np.array([row["corpus"] for row in rows], dtype=np.int64)[windows])
        return batch


@dataclass
class EntityPairCollator:
    """Batches of `entity_pair_view`: the windows of both sides one below the other, one span each, and `same` (P,).

    Row `i` of `spans` is the first side of pair `i`, row `P + i` its second side.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        sides = [(row[f"{side}_input_ids"], row[f"{side}_mask"]) for side in ("first", "second") for row in rows]
        batch = pad_windows(self.tokenizer, [ids for ids, _ in sides], self.pad_to_multiple_of)
        spans = []
        for window, (_, mask) in enumerate(sides):
            inside = np.flatnonzero(mask)
            spans.append((window, inside[0], inside[-1] + 1))
        batch["spans"] = torch.tensor(spans, dtype=torch.long)
        batch["same"] = torch.tensor([bool(row["same"]) for row in rows])
        return batch
