"""Gradient caching: batches that are larger than memory (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size").

A contrastive loss needs the embeddings of the whole batch at once, but the activations of the encoder, which fill the memory,
only while the gradient passes through them. So windows are encoded chunk by chunk without keeping activations, the loss is
that of the whole batch, and on the way back each chunk is encoded again, to be back-propagated before the next. The chunks
are `torch.utils.checkpoint` regions: these replay the random state of dropout and the autocast of mixed precision, and their
gradients arrive in one backward pass, so gradient accumulation, loss scaling and several processes need no special case.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def embed_in_chunks(embed: Callable[..., Tensor], windows: dict[str, Tensor | None], spans: Tensor, chunk_size: int) -> Tensor:
    """Embeddings of spans from windows encoded a few at a time, whose activations are not kept.

    Args:
        embed: `embed(**windows, spans=spans)` gives the embeddings `(S, D)` of spans.
        windows: the encoder's inputs by name, each `(batch, tokens)` or None.
        spans: `(S, 3)` int64: window index in the batch, first token, end token (exclusive); in any order.
        chunk_size: windows encoded at a time, at least 1.
    Returns:
        `(S, D)`, in the order of `spans`. Windows without spans are not encoded, but for one chunk if there is no span.
    """
    batch = next(value for value in windows.values() if value is not None).shape[0]
    pieces, order = [], []
    for start in range(0, batch, chunk_size):
        inside = ((spans[:, 0] >= start) & (spans[:, 0] < start + chunk_size)).nonzero()[:, 0]
        # The gradients of a batch without any span are zeros, not missing: other processes may wait for them.
        if len(inside) or (len(spans) == 0 and start == 0):
            own = spans[inside] - spans.new_tensor([start, 0, 0])
            chunk = {name: None if value is None else value[start : start + chunk_size] for name, value in windows.items()}
            pieces.append(checkpoint(embed, **chunk, spans=own, use_reentrant=False))
            order.append(inside)
    return torch.cat(pieces)[torch.cat(order).argsort()]
