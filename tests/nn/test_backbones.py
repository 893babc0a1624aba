"""SqueezeNet 1.0 and FID's Inception-v3: published sizes, names and habits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from shared_data import need_shared
from torch import Tensor, nn

from anifast.data.folders import read_image, resize, scan, to_float, to_tensor
from anifast.metrics.features import squeezenet_input
from anifast.nn.backbones import SqueezeNet
from anifast.nn.inception import BlockA, BlockC, BlockE, FIDInception


def count(net: nn.Module) -> int:
    return sum(value.numel() for value in net.parameters())


def test_published_parameter_counts() -> None:
    squeeze, inception = SqueezeNet(), FIDInception()
    assert count(squeeze) == 1_248_424
    assert count(squeeze.features) == 735_424
    # torchvision documents 27,161,264; 3,326,696 of them are the auxiliary classifier's, 2,049,000 the classifier's.
    assert count(inception) == 27_161_264 - 3_326_696 - 2_049_000
    assert len([m for m in inception.modules() if isinstance(m, nn.Conv2d)]) == 94


def test_names_of_the_inception() -> None:
    shapes = {key: tuple(value.shape) for key, value in FIDInception().state_dict().items()}
    assert len(shapes) == 94 * 6  # weight of a convolution, five of its norm and the count of batches, less the bias
    for key, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6c.branch7x7_3.conv.weight": (192, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    }.items():
        assert shapes[key] == shape, key


def test_features_of_the_inception() -> None:
    torch.manual_seed(0)
    net = FIDInception().eval()
    sizes: list[tuple[int, ...]] = []
    for name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"):
        net.get_submodule(name).register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        out = net(torch.rand(1, 3, 299, 299) * 2 - 1)
    assert out.shape == (1, 2048)
    assert sizes == [(64, 147, 147), (192, 71, 71), (288, 35, 35), (768, 17, 17), (2048, 8, 8)]
    with torch.no_grad():
        small = torch.rand(3, 3, 75, 75) * 2 - 1
        assert torch.allclose(net(small)[1:2], net(small[1:2]), atol=1e-6)


def identity_pool(block: BlockA | BlockC | BlockE, channels: int) -> None:
    """Make the pooled branch pass its first channels through."""
    branch = block.get_submodule("branch_pool")
    with torch.no_grad():
        weight = branch.get_parameter("conv.weight")
        weight.zero_()
        weight[torch.arange(len(weight)), torch.arange(len(weight))] = (1 + 0.001) ** 0.5  # undoes the norm's eps
    assert weight.shape[1] == channels


def test_average_pools_do_not_count_the_padding() -> None:
    """In a constant picture the mean is the constant, at the border too."""
    for block, channels, out in ((BlockA(64, 32), 64, 32), (BlockC(192, 8), 192, 192), (BlockE(192, False), 192, 192)):
        identity_pool(block, channels)
        with torch.no_grad():
            pooled = block.eval()(torch.full((1, channels, 5, 5), 0.75))[:, -out:]
        assert torch.allclose(pooled, torch.tensor(0.75)), type(block)


def test_the_last_block_pools_by_the_maximum() -> None:
    block = BlockE(192, True).eval()
    identity_pool(block, 192)
    x = torch.zeros(1, 192, 5, 5)
    x[:, :, 2, 3] = 1
    with torch.no_grad():
        pooled = block(x)[0, -1]
    expected = torch.zeros(5, 5)
    expected[1:4, 2:5] = 1
    assert torch.allclose(pooled, expected)
    assert FIDInception().Mixed_7c.maximum and not FIDInception().Mixed_7b.maximum


def test_squeezenet() -> None:
    torch.manual_seed(0)
    net = SqueezeNet()
    x = torch.randn(2, 3, 227, 227)
    with torch.no_grad():
        assert net.features(x).shape == (2, 512, 13, 13)
        assert net(x).shape == (2, 1000)
        pooled = net.pooled(x)
        assert pooled.shape == (2, 512) and float(pooled.min()) >= 0
        assert torch.allclose(net.pooled(x[1:]), pooled[1:], atol=1e-6)
    keys = [key for key in net.state_dict() if key.startswith("classifier")]
    assert keys == ["classifier.1.weight", "classifier.1.bias"]
    assert "features.12.expand3x3.bias" in net.state_dict()


# ImageNet's classes: cats and big cats 281 to 293, dogs and wild dogs 151 to 275.
@pytest.mark.parametrize(("kind", "classes"), [("cat", (281, 293)), ("dog", (151, 275))])
def test_squeezenet_sees_what_pictures_show(kind: str, classes: tuple[int, int]) -> None:
    """The weights, the channel order and the means fit together: real animals are seen as what they are."""
    folder = need_shared("data", "faces", "animals_afhq_512", kind)
    weights: Path = need_shared("data", "weights", "squeezenet1_0", "squeezenet1_0_imagenet.npz")
    net = SqueezeNet()
    with np.load(weights) as stored:
        net.load_state_dict({key: torch.from_numpy(stored[key]) for key in stored.files})
    paths = scan(folder).paths
    images: Tensor = torch.stack([to_float(to_tensor(resize(read_image(path), 256))) for path in paths])
    with torch.no_grad():
        seen = net(squeezenet_input(images)).argmax(dim=1)
    right = int(((seen >= classes[0]) & (seen <= classes[1])).sum())
    assert right >= len(paths) - 1, seen.tolist()
