"""Spans of all processes in one loss, with gradient to those of one's own."""

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

SPAN_COLUMNS = ["types", "spans", "surfaces", "corpora"]
"""Columns of a batch with one row per span, which go through the processes with the embeddings. `spans` (S, 3) begins with
the window's number in its batch, which is made one of all processes."""


def gather_spans(
    accelerator: Accelerator, embeddings: Tensor, columns: dict[str, Tensor], windows: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The spans of the batches of all processes, as if they were of one large batch.

    Every process then computes the same loss, and its gradient reaches the embeddings that the process made itself. The
    processes' gradients have to be summed, and `DistributedDataParallel` averages them; so the gradient is multiplied here
    by the number of processes. A process without any span takes part like the others and gets a gradient of zeros.

    Args:
        embeddings: `(S, D)`; both numbers may differ between processes: with the pooling `masked_matrix`, D grows with the
            longest window of a batch, and zeros make up for it.
        columns: of `SPAN_COLUMNS`, `(S,)` or `(S, k)`.
        windows: windows in the batch of this process.
    Returns:
        Embeddings `(sum of all S, largest D)` and columns of all processes, in the order of their ranks.
    """
    if accelerator.num_processes == 1:
        return embeddings, columns
    shape = torch.tensor([[*embeddings.shape, windows]], device=embeddings.device)
    rows, widths, window_counts = accelerator.gather(shape).unbind(-1)
    rank = accelerator.process_index
    embeddings = F.pad(embeddings, (0, int(widths.max()) - embeddings.shape[1]))
    pieces = _gather_ragged(accelerator, embeddings.detach(), rows)
    pieces[rank] = _scale_gradient(embeddings, accelerator.num_processes)
    # Windows are numbered on from process to process, so that those of different processes stay different.
    first_window = window_counts.cumsum(0)[rank] - windows
    gathered = {}
    for name, column in columns.items():
        if name == "spans":
            column = torch.cat([column[:, :1] + first_window, column[:, 1:]], dim=1)
        gathered[name] = torch.cat(_gather_ragged(accelerator, column, rows))
    return torch.cat(pieces), gathered


def _gather_ragged(accelerator: Accelerator, values: Tensor, rows: Tensor) -> list[Tensor]:
    """Tensors of all processes that differ in the number of rows, given those numbers."""
    most = int(rows.max())
    if most == 0:
        return [values for _ in rows]
    padded = F.pad(values, (*(0, 0) * (values.dim() - 1), 0, most - len(values)))
    gathered = accelerator.gather(padded[None])
    return [piece[:count] for piece, count in zip(gathered, rows.tolist(), strict=True)]


def _scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied on its way back."""
    same = values.view_as(values)
    if same.requires_grad:
        same.register_hook(lambda gradient: gradient * factor)
    return same
