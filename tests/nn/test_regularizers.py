"""R1 and path length on functions whose gradients are known. The authors' numbers are in test_stylegan2_golden.py."""

from __future__ import annotations

import torch

from anifast.nn.regularizers import PathLength, path_lengths, r1_penalty


def test_r1() -> None:
    """Of the score a |x|^2 / 2 the gradient is a x and the penalty a^2 |x|^2, whose gradient to a is 2 a |x|^2."""
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 4).double().requires_grad_()
    a = torch.tensor(0.7).double().requires_grad_()
    scores = a * x.square().flatten(1).sum(1, keepdim=True) / 2
    penalty = r1_penalty(scores, x)
    square = x.detach().square().flatten(1).sum(1)
    torch.testing.assert_close(penalty, (a**2 * square).mean())
    torch.testing.assert_close(torch.autograd.grad(penalty, a)[0], 2 * a * square.mean())
    scores = a * x.square().flatten(1).sum(1, keepdim=True) / 2
    torch.testing.assert_close(r1_penalty(scores.mean(), x), (a**2 * square).mean() / 25)


def test_path_lengths() -> None:
    """Images that are sums of slots times a direction: the gradient of <image, y> to each slot is the same."""
    torch.manual_seed(0)
    latents = torch.randn(2, 3, 4).double().requires_grad_()
    directions = torch.randn(4, 2, 5, 6).double().requires_grad_()
    images = torch.einsum("nld,dchw->nchw", latents, directions)
    noise = torch.randn(2, 2, 5, 6).double()
    gradient = torch.einsum("nchw,dchw->nd", noise, directions) / (5 * 6) ** 0.5
    found = path_lengths(images, latents, noise)
    torch.testing.assert_close(found, gradient.norm(dim=1))
    torch.autograd.grad(found.sum(), directions)
    torch.manual_seed(1)
    drawn = path_lengths(images, latents)
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, path_lengths(images, latents, torch.randn_like(images)))


def test_path_length() -> None:
    regularizer = PathLength(decay=0.25).double()
    lengths = torch.tensor([1.0, 3.0]).double().requires_grad_()
    penalty = regularizer(lengths)
    assert regularizer.mean == 0.5  # 0 + (2 - 0) / 4
    torch.testing.assert_close(penalty, ((lengths - 0.5) ** 2).mean())
    # a moves with the lengths: d/dl of mean (l - a)^2 is (l - a) - mean(l - a) / 4
    expected = (lengths - 0.5) - (lengths - 0.5).mean() / 4
    torch.testing.assert_close(torch.autograd.grad(penalty, lengths)[0], expected)
    regularizer(lengths.detach())
    assert regularizer.mean == 0.875  # 0.5 + (2 - 0.5) / 4
    other = PathLength()
    other.load_state_dict(regularizer.state_dict())
    assert other.mean == 0.875
