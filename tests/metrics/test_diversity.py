"""LPIPS diversity, style stability and DFID: values known beforehand, and that batches and order change nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_data import need_shared
from torch import Tensor

from anifast.data.augment import uniforms
from anifast.errors import AnifastError, DataError
from anifast.metrics import Statistics, dfid, fid, lpips_diversity, pairwise_lpips, style_stability
from anifast.metrics.diversity import average_fids, content_fids, load_lpips
from anifast.nn.backbones import AlexNet, SqueezeNet
from anifast.nn.perceptual import LPIPS

SIDE = 64


class Colours:
    """An extractor of three features: the mean of each colour."""

    name, dim, weights, about = "colours", 3, "0" * 64, "means"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(2).mean(dim=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def lpips_of_noise(net: str = "alex", seed: int = 0, dtype: torch.dtype | None = None) -> LPIPS:
    """A distance with random weights, heads included."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = LPIPS(net, pretrained=False, dtype=dtype)
        for head in found.heads:
            head.data.uniform_()
    return found


def plain(colours: Tensor) -> Tensor:
    """Pictures of one colour each: ...,3 -> ...,3,8,8."""
    return colours[..., None, None].expand(*colours.shape, 8, 8)


def l2(pictures: Tensor) -> Tensor:
    """A distance that can be worked out by hand: of the mean colours, squared."""
    means = pictures.flatten(2).mean(dim=2)
    pairs = list(itertools.combinations(range(len(means)), 2))
    return torch.stack([(means[i] - means[j]).square().sum() for i, j in pairs])


# --- LPIPS diversity


@pytest.mark.parametrize("net", ["alex", "squeezenet1_0"])
def test_pairs_are_those_of_lpips(net: str) -> None:
    """Features once for each picture give what LPIPS gives for each pair; float64, so that only rounding is between."""
    lpips, pictures = lpips_of_noise(net).double(), noise(5, 3, SIDE, SIDE).double()
    found = pairwise_lpips(lpips, pictures)
    pairs = [(i, i + apart) for apart in range(1, 5) for i in range(5 - apart)]
    assert sorted(pairs) == list(itertools.combinations(range(5), 2))
    want = torch.stack([lpips(pictures[i : i + 1], pictures[j : j + 1]).flatten() for i, j in pairs]).flatten()
    assert found.shape == (10,) and not found.requires_grad
    # Sums of a few thousand terms in float64, in another order: far from 1e-9.
    torch.testing.assert_close(found, want.detach(), rtol=1e-9, atol=0)
    assert float(found.min()) > 0


def test_ten_styles_are_forty_five_pairs_and_ten_features(monkeypatch: pytest.MonkeyPatch) -> None:
    lpips, seen = lpips_of_noise(), []
    features = lpips.features
    monkeypatch.setattr(lpips, "features", lambda x: seen.append(len(x)) or features(x))
    found = lpips_diversity([noise(1, 10, 3, SIDE, SIDE)], partial(pairwise_lpips, lpips))
    assert (found.contents, found.styles, found.pairs) == (1, 10, 45) and sum(seen) == 10
    assert found.mean > 0 and found.error != found.error
    assert found.as_dict()["error"] is None and found.as_dict()["pairs"] == 45


def test_the_same_picture_in_all_styles_has_no_diversity() -> None:
    same = noise(2, 1, 3, SIDE, SIDE).expand(-1, 4, -1, -1, -1)
    found = lpips_diversity([same], partial(pairwise_lpips, lpips_of_noise()))
    assert found.mean == 0 and found.error == 0 and found.contents == 2


def test_diversity_of_plain_colours() -> None:
    """Two contents in three grey levels each, the distance worked out by hand."""
    levels = torch.tensor([[0.0, 0.1, 0.3], [0.0, 0.0, 0.6]])
    found = lpips_diversity([plain(levels[..., None].expand(-1, -1, 3))], l2)
    each = [3 * (0.01 + 0.09 + 0.04) / 3, 3 * (0 + 0.36 + 0.36) / 3]
    assert found.mean == pytest.approx(sum(each) / 2, rel=1e-5)
    assert found.error == pytest.approx(np.std(each, ddof=1) / 2**0.5, rel=1e-5)
    assert (found.contents, found.styles, found.pairs) == (2, 3, 3)


def test_order_and_batches_do_not_change_diversity() -> None:
    pictures = noise(5, 3, 3, SIDE, SIDE)
    distances = partial(pairwise_lpips, lpips_of_noise())
    found = lpips_diversity([pictures], distances)
    mixed = pictures[[3, 0, 4, 1, 2]][:, [2, 0, 1]]
    for parts in (pictures.split(2), pictures.split(1), [pictures[:0], pictures], mixed.split(4)):
        other = lpips_diversity(parts, distances)
        # float32 distances, summed in float64; convolutions of other batches may round the last digits otherwise.
        assert other.mean == pytest.approx(found.mean, rel=1e-5)
        assert other.error == pytest.approx(found.error, rel=1e-3)


def test_what_diversity_refuses() -> None:
    with pytest.raises(ValueError, match="at least 2 to compare, got 1"):
        pairwise_lpips(lpips_of_noise(), noise(1, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="S at least 2, got"):
        lpips_diversity([noise(2, 1, 3, 8, 8)], l2)
    with pytest.raises(ValueError, match="N,S,3,H,W"):
        lpips_diversity([noise(2, 3, 8, 8)], l2)
    with pytest.raises(ValueError, match="with S 3"):
        lpips_diversity([noise(1, 3, 3, 8, 8), noise(1, 2, 3, 8, 8)], l2)
    with pytest.raises(DataError, match="at least one content"):
        lpips_diversity([], l2)
    with pytest.raises(DataError, match="not finite"):
        lpips_diversity([torch.full((1, 2, 3, 8, 8), torch.nan)], l2)


def test_half_precision_networks_serve_too() -> None:
    pictures = noise(3, 3, SIDE, SIDE)
    half = pairwise_lpips(lpips_of_noise(dtype=torch.bfloat16), pictures)
    assert half.dtype == torch.float32 and half.shape == (3,) and float(half.min()) > 0
    assert not torch.equal(half, pairwise_lpips(lpips_of_noise(), pictures))


# --- which network


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with weights; downloads fail the test."""

    def download(*_: object) -> None:
        raise AssertionError("downloads")

    monkeypatch.setenv("ANIFAST_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("ANIFAST_SHARED", str(tmp_path / "no shared folder"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr("anifast.metrics.diversity.importlib.util.find_spec", lambda name: None)
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def put_squeezenet(folder: Path) -> None:
    torch.manual_seed(0)
    state = {key: value.numpy() for key, value in SqueezeNet(classifier=False).state_dict().items() if "." in key}
    np.savez(folder / "squeezenet1_0_imagenet.npz", **state)


def test_the_first_network_whose_files_are_here_is_taken(weights: Path) -> None:
    found, told = load_lpips()
    assert found is None and "no LPIPS diversity: no weights are here" in told and "--lpips alex" in told
    put_squeezenet(weights)
    found, told = load_lpips()
    assert found is not None and found.net_name == "squeezenet1_0"
    assert found.report_name in told and "compare with its own only" in told and "LPIPS (alex)" in told
    torch.save(AlexNet().state_dict(), weights / "alexnet-owt-7be5be79.pth")
    found, _ = load_lpips()
    assert found is not None and found.net_name == "squeezenet1_0"  # for alex lacks its heads
    assert load_lpips("none") == (None, "")


def test_alex_is_preferred(weights: Path) -> None:
    put_squeezenet(weights)
    torch.save(AlexNet().state_dict(), weights / "alexnet-owt-7be5be79.pth")
    heads = need_shared("data", "weights", "lpips_heads_v0.1", "alex.pth")
    (weights / "alex.pth").write_bytes(heads.read_bytes())
    found, told = load_lpips()
    assert found is not None and found.net_name == "alex"
    assert found.report_name.startswith("LPIPS heads on AlexNet, weights ")  # nobody published these
    assert found.report_name in told
    (weights / "alexnet-owt-7be5be79.pth").write_bytes(b"nothing")  # damaged: named, and the next is taken
    found, told = load_lpips()
    assert found is not None and found.net_name == "squeezenet1_0" and "alexnet-owt-7be5be79.pth" in told


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(AnifastError, match="unknown distance 'vgg19'"):
        load_lpips("vgg19")


# --- style stability


def shifted(images: Tensor, seeds: Tensor) -> Tensor:
    """Pictures brightened by what their seeds say: uniform in [0, 1)."""
    return images + uniforms(seeds, 1)[:, :, None, None]


def colour(images: Tensor) -> Tensor:
    """A style code of two numbers: the mean, and ten times it."""
    mean = images.flatten(1).mean(dim=1)
    return torch.stack([mean, 10 * mean], dim=1)


def test_style_stability_is_the_variance_of_codes() -> None:
    pictures = plain(torch.tensor([[0.0] * 3, [1.0] * 3, [5.0] * 3]))
    seen: list[Tensor] = []

    def brighter(images: Tensor, seeds: Tensor) -> Tensor:
        assert seeds.dtype == torch.int64 and len(seeds) == len(images)
        seen.append(uniforms(seeds, 1).flatten())
        return shifted(images, seeds)

    found = style_stability(colour, brighter, [pictures], batch=4)
    draws = torch.cat(seen).double().unflatten(0, (3, 7)).numpy()
    assert len(np.unique(draws)) == 21
    each = draws.var(axis=1) * (1 + 100) / 2
    assert found.variance == pytest.approx(each.mean(), rel=1e-5)
    assert found.error == pytest.approx(each.std(ddof=1) / 3**0.5, rel=1e-4)
    means = draws.mean(axis=1) + np.array([0.0, 1.0, 5.0])
    assert found.between == pytest.approx(means.var() * (1 + 100) / 2, rel=1e-5)
    assert (found.pictures, found.augmentations) == (3, 7)


def test_codes_that_no_augmentation_changes_are_stable() -> None:
    pictures = plain(torch.tensor([[0.0] * 3, [1.0] * 3]))
    found = style_stability(colour, lambda images, seeds: images, [pictures])
    assert found.variance == 0 and found.error == 0
    assert found.between == pytest.approx(0.25 * (1 + 100) / 2)
    alike = style_stability(lambda x: torch.ones(len(x), 8), shifted, [pictures])
    assert alike.variance == 0 and alike.between == 0
    one = style_stability(colour, lambda images, seeds: images, [pictures[:1]])
    assert one.variance == 0 and np.isnan(one.between) and one.as_dict()["between"] is None


def test_batches_do_not_change_stability_and_seeds_do() -> None:
    pictures = noise(6, 3, 8, 8)
    found = style_stability(colour, shifted, [pictures])
    for parts, batch in ((pictures.split(1), 1), (pictures.split(4), 3), ([pictures[:0], pictures], 100)):
        other = style_stability(colour, shifted, parts, batch=batch)
        assert other.variance == pytest.approx(found.variance, rel=1e-6)
        assert other.between == pytest.approx(found.between, rel=1e-6)
    assert style_stability(colour, shifted, [pictures], seed=1).variance != found.variance
    assert style_stability(colour, shifted, [pictures], augmentations=3).augmentations == 3


def test_what_stability_refuses() -> None:
    pictures = noise(2, 3, 8, 8)
    with pytest.raises(ValueError, match="at least 2 and 1, got 1 and 8"):
        style_stability(colour, shifted, [pictures], augmentations=1)
    with pytest.raises(ValueError, match="encode: expected 8,D"):
        style_stability(lambda x: x.flatten(), shifted, [pictures])
    with pytest.raises(DataError, match="at least one picture"):
        style_stability(colour, shifted, [])
    with pytest.raises(DataError, match="not finite"):
        style_stability(lambda x: torch.full((len(x), 8), torch.nan), shifted, [pictures])


# --- DFID


def of_colours(colours: Tensor) -> Statistics:
    found = Statistics(3)
    found.update(colours)
    return found


def test_dfid_of_one_that_copies_and_one_that_varies() -> None:
    """Real pictures have many colours: a model with all of them for each content has a low DFID, one that paints each
    content in its own colour has the whole variance as its DFID, though both cover all colours over all contents."""
    real = noise(400, 3).double()
    statistics = of_colours(real)
    diverse = [plain(real[torch.randperm(400, generator=torch.Generator().manual_seed(k))]).split(64) for k in range(4)]
    found = dfid(diverse, Colours(), statistics)
    # Differences of float64 traces of about 1, each a sum of a few hundred terms.
    assert found.mean == pytest.approx(0, abs=1e-12) and (found.contents, found.styles) == (4, 400)
    own = real[:4]
    copies = dfid([plain(colour.expand(400, 3)).split(64) for colour in own], Colours(), statistics)
    total = float(statistics.covariance.trace())
    want = [float((colour - statistics.mean).square().sum()) + total for colour in own]
    assert copies.values == pytest.approx(want, rel=1e-9)
    assert copies.mean == pytest.approx(np.mean(want), rel=1e-9)
    assert copies.error == pytest.approx(np.std(want, ddof=1) / 2, rel=1e-9)
    assert copies.as_dict()["values"] == copies.values


def test_batches_and_order_do_not_change_dfid() -> None:
    painted, statistics = noise(3, 20, 3, seed=1).double(), of_colours(noise(50, 3))
    found = dfid([plain(content).split(20) for content in painted], Colours(), statistics)
    assert found.values[0] == pytest.approx(fid(of_colours(painted[0]), statistics), rel=1e-9)
    for size, order in ((1, [0, 1, 2]), (7, [2, 0, 1])):
        other = dfid([plain(painted[i].flip(0)).split(size) for i in order], Colours(), statistics)
        assert other.mean == pytest.approx(found.mean, rel=1e-9)
        assert other.values == pytest.approx([found.values[i] for i in order], rel=1e-9)


def test_contents_come_one_by_one() -> None:
    """Nothing is painted before it is needed."""
    painted = []

    def content(k: int) -> Iterator[Tensor]:
        for part in plain(noise(6, 3, seed=k)).split(3):
            painted.append(k)
            yield part

    sets = [of_colours(noise(9, 3)), of_colours(noise(9, 3, seed=8))]
    stream = content_fids((content(k) for k in range(3)), Colours(), sets)
    count, values = next(stream)
    assert painted == [0, 0] and count == 6 and len(values) == 2 and values[0] != values[1]
    assert len(list(stream)) == 2 and painted == [0, 0, 1, 1, 2, 2]


def test_what_dfid_refuses() -> None:
    statistics = of_colours(noise(9, 3))
    with pytest.raises(DataError, match="at least one content"):
        dfid([], Colours(), statistics)
    with pytest.raises(DataError, match="at least 2 pictures, there are 1"):
        dfid([[plain(noise(1, 3))]], Colours(), statistics)
    with pytest.raises(DataError, match="as many styles of each content, there are 2 to 3"):
        average_fids([2, 3], [1.0, 2.0])
    with pytest.raises(DataError, match="not finite"):
        dfid([[torch.full((2, 3, 8, 8), torch.nan)]], Colours(), statistics)
