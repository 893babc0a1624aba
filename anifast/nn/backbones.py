"""Small published classification networks whose features are used elsewhere, with torchvision's parameter names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 convolution that squeezes, then 1x1 and 3x3 ones side by side that expand."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,H,W -> N,2*expanded,H,W, not negative."""
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 (Iandola et al. 2016): 1,248,424 parameters, of which 735,424 make the features.

    Parameters carry the names of `torchvision.models.squeezenet1_0`. Nothing in it depends on train() or eval().
    """

    #: Channels of the features.
    channels = 512

    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), pool(),
            Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), pool(),
            Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), pool(),
            Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1))  # dropout at 0: a key is named after 1

    def pooled(self, x: Tensor) -> Tensor:
        """Images as the weights want them, N,3,H,W with sides of at least 17 -> N,512: the last block's mean."""
        features: Tensor = self.features(x)
        return features.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images as the weights want them, N,3,H,W with sides of at least 17 -> N,1000 ImageNet class scores."""
        return F.relu(self.classifier(self.features(x))).mean(dim=(2, 3))
