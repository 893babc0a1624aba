"""The losses of the disentangling network (specification, section 4). All are computed in float32 from half types."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _full(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def pixel_weights(alpha: Tensor | None, maps: Tensor | None = None) -> Tensor | None:
    """How much each pixel counts: alpha times weight map, brought to sum 1 in each picture.

    Args:
        alpha: N,H,W in [0, 1], or None: 1.
        maps: N,H,W, or None: 1.

    Returns:
        N,H,W, or None: all alike. Pictures of which nothing is left count nothing.
    """
    if alpha is None and maps is None:
        return None
    weights = alpha if maps is None else maps if alpha is None else alpha * maps
    assert weights is not None
    return weights / weights.sum((1, 2), keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def reconstruction(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over pictures of a (weighted) mean over pixels of the distance of two colours, sqrt(|x - y|^2 + 1e-8).

    Args:
        x, y: N,C,H,W.
        weights: of `pixel_weights`.
    """
    distance = ((_full(x) - _full(y)).square().sum(1) + 1e-8).sqrt()
    return distance.mean() if weights is None else (distance * weights).sum((1, 2)).mean()


def divergence(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of each number of a code, a mean over the batch: N,D -> D."""
    return ((mean.square() + std.square()) * 0.5 - std.log() - 0.5).mean(0)


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of the label, for each row: N,K -> N."""
    return F.cross_entropy(_full(logits), labels, reduction="none")


def nlu(logits: Tensor, labels: Tensor, form: str = "stable") -> Tensor:
    """Negative log-unlikelihood -log(1 - p) of the label, for each row: N,K -> N.

    Args:
        logits: N,K.
        labels: N.
        form: "stable": logsumexp of all logits less that of all others, whose gradient stays up to p = 1 and is bounded
            by 1; "eps": -log(1 - p + 1e-6), as the authors compute it, whose gradient vanishes there.
    """
    logits = _full(logits)
    if form == "eps":
        p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        return -(1 - p + 1e-6).log()
    return logits.logsumexp(1) - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)


def push(logits: Tensor, labels: Tensor, kind: str, frequency: Tensor | None) -> Tensor:
    """How strongly each picture's gradient by C1's loss NLL, turned round, drives the encoder and the generator: N.

    They raise NLL (1), or lower NLU, whose gradient is -p / (1 - p) times NLL's. Where C1 gives the artist less than
    his frequency f, max(log p, log f) no longer depends on what is shown (0).

    Args:
        logits: N,K.
        labels: N.
        kind: "nll" or "nlu".
        frequency: f [K], or None: no such cap.
    """
    log_p = _full(logits.detach()).log_softmax(1).gather(1, labels[:, None])[:, 0]
    found = torch.ones_like(log_p)
    if kind == "nlu":
        # Bounded where float32 no longer knows 1 - p, of which a factor in NLL's gradient makes it 1 again.
        p = log_p.exp()
        found = p / (1 - p).clamp(min=torch.finfo(p.dtype).eps)
    if frequency is not None:
        found = found * (log_p > frequency.to(log_p.dtype).log()[labels])
    return found


class Reversal:
    """Gives what it is given, and turns the gradient round on the way back: -strength for each row.

    One pass through a classifier then serves both players: its own weights get the gradient of its loss, what it
    was shown that of the opposite. The strength can depend on the result, as it is asked for on the way back only.

    Attributes:
        strength: [N], to be set before backward.
    """

    def __init__(self) -> None:
        self.strength: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """N,... -> the same."""
        if not x.requires_grad:
            return x
        y = x.view_as(x)
        y.register_hook(self._turned)
        return y

    def _turned(self, grad: Tensor) -> Tensor:
        assert self.strength is not None, "the strength is set before backward"
        return grad * -self.strength.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1))
