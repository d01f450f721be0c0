"""Regularisation of stage 2 by second looks at a batch: with perturbed inputs (FGM), or with other dropout masks (R-Drop)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tagging import IGNORE_INDEX


class FastGradient:
    """Adversarial perturbation of the word embeddings of a batch (fast gradient method; Miyato, Dai and Goodfellow 2017).

    For each window, `r = epsilon * g / |g|` with g the gradient of the loss by its embeddings `(tokens, hidden)`, is added to
    them in a second forward pass. So it needs the gradient of this batch only, however gradients are accumulated.

        with attack.observed():
            loss(...).backward()
        with attack.applied():
            loss(...).backward()

    Args:
        embeddings: the layer that turns token ids into vectors.
        epsilon: length of the perturbation of a window, > 0.
    """

    def __init__(self, embeddings: nn.Module, epsilon: float):
        self.embeddings = embeddings
        self.epsilon = epsilon
        self._embedded: Tensor | None = None

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Forward and backward pass from which the direction is taken."""

        def keep(module, inputs, output):
            output.retain_grad()
            self._embedded = output

        with self.embeddings.register_forward_hook(keep):
            yield

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Forward and backward pass of the same batch on perturbed inputs."""
        gradient = self._embedded.grad.float()
        self._embedded = None
        length = gradient.flatten(1).norm(dim=1)[:, None, None]
        # A window without gradient stays as it is.
        shift = self.epsilon * gradient / length.clamp(min=torch.finfo(torch.float32).tiny)
        with self.embeddings.register_forward_hook(lambda module, inputs, output: output + shift.to(output.dtype)):
            yield


def rdrop_divergence(logits: Tensor, labels: Tensor) -> Tensor:
    """How far two forward passes of a batch with different dropout masks differ (R-Drop; Liang et al. 2021, eq. 2).

    `(KL(p || q) + KL(q || p)) / 2` of the tag distributions, averaged over real tokens and summed over heads, as the
    cross-entropy is.

    Args:
        logits: `(2 x batch, tokens, heads, 5)`, the second pass below the first.
        labels: `(2 x batch, tokens, heads)`; `IGNORE_INDEX` marks what takes no part.
    Returns:
        A scalar, >= 0.
    """
    real = (labels.chunk(2)[0] != IGNORE_INDEX).any(dim=-1)
    with torch.autocast(device_type=logits.device.type, enabled=False):
        first, second = (F.log_softmax(half[real].float(), dim=-1) for half in logits.chunk(2))
        divergence = ((first.exp() - second.exp()) * (first - second)).sum()
    return 0.5 * divergence / real.sum().clamp(min=1)
