"""Feature extractors: how pictures reach the networks, where weights come from, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_data import need_shared
from torch import Tensor

from anifast.data.folders import read_image, resize, scan, to_float, to_tensor
from anifast.errors import AnifastError
from anifast.metrics import extractor, features
from anifast.nn.backbones import SqueezeNet
from anifast.nn.inception import FIDInception

FILE = "squeezenet1_0_imagenet.npz"


@pytest.fixture(autouse=True)
def nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights but those that a test puts somewhere."""
    monkeypatch.delenv("ANIFAST_WEIGHTS", raising=False)
    monkeypatch.setenv("ANIFAST_SHARED", str(tmp_path / "no shared folder"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def squeeze_weights() -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    return {key: value.numpy() for key, value in SqueezeNet().state_dict().items()}


@pytest.fixture
def squeeze(tmp_path: Path) -> Path:
    np.savez(tmp_path / FILE, **squeeze_weights())
    return tmp_path / FILE


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the published file: with the classifier of 1008, without counts of batches."""
    torch.manual_seed(0)
    weights = {k: v for k, v in FIDInception().state_dict().items() if not k.endswith("num_batches_tracked")}
    weights |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(weights, path)
    return path


def refused(*args: object) -> str:
    with pytest.raises(AnifastError) as caught:
        extractor(*args)  # type: ignore[arg-type]
    return str(caught.value)


# --- how pictures get there


def test_squeezenet_input_is_caffes() -> None:
    red = torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(2, 3, 40, 50)
    out = features.squeezenet_input(red)
    assert out.shape == (2, 3, 227, 227)
    expected = torch.tensor([127.5 - 104, 0 - 117, 255 - 123])  # blue, green, red
    assert torch.allclose(out, expected[:, None, None].expand_as(out), atol=1e-4)


def test_squeezenet_input_is_antialiased() -> None:
    stripes = (torch.arange(454) % 2 * 2.0 - 1).expand(1, 3, 454, 454)  # finer than 227 can show
    inner = features.squeezenet_input(stripes)[:, :, 10:-10, 10:-10]
    assert float(inner.amax(dim=(0, 2, 3)).sub(inner.amin(dim=(0, 2, 3))).max()) < 1


def test_inception_input_is_pytorch_fids() -> None:
    """Bilinear, half-pixel centres, no antialiasing: each output looks at two inputs in each direction only."""
    line = torch.arange(598.0) % 2 * 2 - 1
    out = features.inception_input(line.expand(1, 3, 598, 598))
    assert out.shape == (1, 3, 299, 299)
    assert torch.allclose(out, torch.zeros(()), atol=1e-5)  # halfway between the two of each pair
    third = torch.zeros(897)
    third[1::3] = 1
    assert torch.allclose(features.inception_input(third.expand(1, 3, 897, 897)), torch.ones(()), atol=1e-3)
    whole = torch.rand(1, 3, 299, 299)
    assert features.inception_input(whole) is whole


@pytest.mark.parametrize("name", ["squeezenet", "inception"])
def test_features(name: str, squeeze: Path, inception: Path) -> None:
    measure = extractor(name, squeeze if name == "squeezenet" else inception)
    images = torch.rand(3, 3, 64, 48) * 2 - 1
    found = measure(images)
    assert found.shape == (3, measure.dim) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(measure(images[1:2]), found[1:2], atol=1e-5 * float(found.abs().max()))
    assert not torch.allclose(found[0], found[1], atol=1e-5 * float(found.abs().max()))
    assert torch.equal(measure(images.double()), found)
    assert measure(images[:0]).shape == (0, measure.dim)
    assert measure.name == name and measure.weights[:8] in measure.about
    for wrong in (images[0], images[:, :1], torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="images: expected"):
            measure(wrong)


def test_squeezenets_features_are_the_mean_of_the_last_block(squeeze: Path) -> None:
    net = SqueezeNet()
    net.load_state_dict({key: torch.from_numpy(value) for key, value in squeeze_weights().items()})
    images = torch.rand(2, 3, 227, 227) * 2 - 1
    pixels = (images + 1) * 127.5
    blue_first = torch.stack([pixels[:, 2] - 104, pixels[:, 1] - 117, pixels[:, 0] - 123], dim=1)
    with torch.no_grad():
        expected = net.features(blue_first).flatten(2).mean(dim=2) / 32
    assert torch.allclose(extractor("squeezenet", squeeze)(images), expected, rtol=1e-5, atol=1e-5)


def test_the_shared_weights_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    path: Path = need_shared("data", "weights", "squeezenet1_0", FILE)
    monkeypatch.setenv("ANIFAST_SHARED", str(path.parents[3]))
    measure = extractor()
    assert measure.name == "squeezenet" and measure.dim == 512
    faces = need_shared("data", "anime", "style_portraits_256")
    images = [to_float(to_tensor(resize(read_image(path), 256))) for path in scan(faces).paths[:4]]
    scale = float(measure(torch.stack(images)).square().mean().sqrt())
    assert 0.35 < scale < 0.7  # that of the features that KID's kernel was chosen for


# --- where weights come from


def test_the_inception_is_preferred_where_it_is(
    squeeze: Path, inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANIFAST_WEIGHTS", str(squeeze.parent))
    assert features.find_weights("inception") is None
    assert extractor().name == extractor("squeezenet").name == "squeezenet"
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / inception.name).symlink_to(inception)
    measure = extractor()
    assert measure.name == "inception" and measure.dim == 2048
    assert "not the published file 6726825d" in measure.about
    assert extractor("squeezenet").name == "squeezenet"


def test_a_file_alone_says_which_network(squeeze: Path, inception: Path) -> None:
    assert extractor(weights=squeeze).name == "squeezenet"
    assert extractor(weights=inception).name == "inception"
    assert extractor(weights=squeeze).weights != extractor(weights=inception).weights


def test_other_layouts_of_the_inception_are_understood(inception: Path, tmp_path: Path) -> None:
    """Without the classifier, or with counts of batches, the features are the same."""
    images = torch.rand(1, 3, 75, 75) * 2 - 1
    expected = extractor("inception", inception)(images)
    weights = torch.load(inception, weights_only=True)
    bare = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    norms = [key.removesuffix("running_var") for key in weights if key.endswith("running_var")]
    counted = weights | {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
    for i, other in enumerate((bare, counted)):
        torch.save(other, tmp_path / f"{i}.pth")
        assert torch.equal(extractor("inception", tmp_path / f"{i}.pth")(images), expected)


# --- what is refused


def test_no_weights_anywhere() -> None:
    for name, words in (
        ("inception", ["pt_inception-2015-12-05-6726825d.pth", "pytorch-fid"]),
        ("squeezenet", [FILE, "SqueezeNet 1.0"]),
        ("auto", ["pt_inception-2015-12-05-6726825d.pth", FILE]),
    ):
        said = refused(name)
        assert all(word in said for word in [*words, "--weights FILE", "ANIFAST_WEIGHTS"]), said
    assert "there are auto, inception, squeezenet" in refused("vgg")


def test_a_missing_file(tmp_path: Path) -> None:
    assert f"{tmp_path / 'x.pth'}: no such file" in refused("inception", tmp_path / "x.pth")
    assert f"{tmp_path}: no such file" in refused("squeezenet", tmp_path)


def drop(weights: dict[str, np.ndarray]) -> str:
    del weights["features.0.bias"]
    return "features.0.bias is missing"


def add(weights: dict[str, np.ndarray]) -> str:
    weights["features.99.bias"] = np.zeros(3, np.float32)
    return "features.99.bias is unknown"


def reshape(weights: dict[str, np.ndarray]) -> str:
    weights["features.0.weight"] = np.zeros((64, 3, 3, 3), np.float32)  # SqueezeNet 1.1's
    return "features.0.weight is (64, 3, 3, 3) and not (96, 3, 7, 7)"


def poison(weights: dict[str, np.ndarray]) -> str:
    weights["classifier.1.bias"][3] = np.nan
    return "classifier.1.bias holds other things than finite numbers"


def integers(weights: dict[str, np.ndarray]) -> str:
    weights["classifier.1.bias"] = np.zeros(1000, np.int32)
    return "classifier.1.bias holds other things than finite numbers"


@pytest.mark.parametrize("change", [drop, add, reshape, poison, integers], ids=lambda change: change.__name__)
def test_wrong_weights_are_named(change: Callable[[dict[str, np.ndarray]], str], tmp_path: Path) -> None:
    weights = squeeze_weights()
    expected = change(weights)
    np.savez(tmp_path / "w.npz", **weights)
    said = refused("squeezenet", tmp_path / "w.npz")
    assert expected in said and str(tmp_path / "w.npz") in said and "SqueezeNet 1.0" in said


def test_damaged_files(squeeze: Path, inception: Path, tmp_path: Path) -> None:
    for name, source in (("squeezenet", squeeze), ("inception", inception)):
        whole = source.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0xFF
        for content in (b"", b"text", whole[: len(whole) // 2]) + ((bytes(flipped),) if name == "squeezenet" else ()):
            (tmp_path / "broken").write_bytes(content)
            said = refused(name, tmp_path / "broken")
            assert str(tmp_path / "broken") in said and "damaged, or no" in said, said
    assert "damaged, or no" in refused("squeezenet", inception)
    np.save(tmp_path / "plain.npy", np.zeros(3))
    assert "damaged, or no .npz" in refused("squeezenet", tmp_path / "plain.npy")


def test_torchvisions_inception_is_refused_by_name(inception: Path, tmp_path: Path) -> None:
    weights = torch.load(inception, weights_only=True)
    weights |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(weights, tmp_path / "inception_v3_google-0cc3c7bd.pth")
    said = refused("inception", tmp_path / "inception_v3_google-0cc3c7bd.pth")
    assert "1000 classes" in said and "pt_inception-2015-12-05-6726825d.pth" in said


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], Tensor], tuple[str]]:
        raise_it = pytest.fail
        return raise_it, ("code of a weights file was run",)  # type: ignore[return-value]


def test_no_code_is_run(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert "is missing" in refused("inception", tmp_path / "other.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    assert "holds a list" in refused("inception", tmp_path / "list.pth")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), 2))
    assert "damaged, or no PyTorch weights" in refused("inception", tmp_path / "evil.pth")
    np.savez(tmp_path / "evil.npz", x=np.array([{}], dtype=object))
    assert "damaged, or no .npz" in refused("squeezenet", tmp_path / "evil.npz")
