"""`anifast eval` of GANs N' Roses: each figure by hand, what the file holds, and one clear error for what cannot be."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_cyclegan import command, leftovers, own_cache, the_error
from tiny_gnr import own_state, tiny_config
from torch import Tensor

import anifast
from anifast import cli, systems
from anifast.data.folders import read_image, resize, to_float, to_tensor, to_uint8
from anifast.data.portraits import write_gnr
from anifast.errors import AnifastError
from anifast.metrics import FeatureSet, extractor, fid, kid
from anifast.metrics.features import FID_WEIGHTS
from anifast.metrics.report import Options
from anifast.nn.backbones import SqueezeNet
from anifast.nn.perceptual import LPIPS
from anifast.systems import evals
from anifast.systems.cyclegan.config import make as cyclegan_config
from anifast.systems.cyclegan.networks import build_generator as cyclegan_generator
from anifast.systems.cyclegan.networks import initialise
from anifast.systems.gnr import evaluation
from anifast.systems.gnr.augmentation import augment
from anifast.systems.gnr.evaluation import Settings

Capture = pytest.CaptureFixture[str]
TRAIN, TEST, STYLES = 6, 3, 3
QUICK = ("--styles", STYLES, "--dfid-contents", 2, "--dfid-styles", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    with own_cache(root / "cache"):
        yield write_gnr(root, TRAIN, TEST, 64, progress=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "checkpoint.pt"
    torch.save(own_state(tiny_config()), path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of SqueezeNet: the figures mean nothing, but are figures (PyTorch's own would make them 1e-13)."""
    path, net = tmp_path_factory.mktemp("weights") / "squeezenet1_0_imagenet.npz", SqueezeNet()
    with torch.no_grad():
        for value in net.parameters():
            spread = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.0
            value.normal_(0, spread, generator=torch.Generator().manual_seed(value.numel()))
    np.savez(path, **{key: value.numpy() for key, value in net.state_dict().items() if "." in key})
    return path


@pytest.fixture(autouse=True)
def no_other_weights(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIFAST_WEIGHTS", str(weights.parent))
    monkeypatch.setenv("ANIFAST_SHARED", str(tmp_path / "no shared folder"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def evaluate(*words: object) -> int:
    return cli.main(command("eval", *words, "--device", "cpu"))


def facts_of(*words: object, out: Path) -> dict[str, Any]:
    assert evaluate(*words, "--out", out) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def pictures(folder: Path) -> Tensor:
    """The pictures of a folder, N,3,64,64."""
    return torch.stack([to_float(to_tensor(resize(read_image(path), 64))) for path in sorted(folder.glob("*.png"))])


# --- the figures of a model


def test_the_figures(model: Path, data: Path, weights: Path, tmp_path: Path, capsys: Capture) -> None:
    """Each is what a few lines by hand give."""
    facts = facts_of(model, "--data", data, *QUICK, "--seed", 5, "--batch", 4, out=tmp_path / "e.json")
    said = capsys.readouterr()
    net, measure, lpips = anifast.load(model, "cpu"), extractor("squeezenet", weights), LPIPS("squeezenet1_0")
    assert (facts["system"], facts["size"], facts["averaged"]) == ("gnr", 64, True)
    assert (facts["seed"], facts["styles"], facts["style"], facts["batch"]) == (5, STYLES, "random", 4)
    assert facts["features"]["name"] == "squeezenet" and facts["images_seen"] == 4 and not facts["interrupted"]
    assert facts["lpips"] == {"net": "squeezenet1_0", "name": lpips.report_name}
    assert set(facts["protocols"]) == {"fid", "lpips", "dfid", "stability"}
    assert (facts["dfid_contents"], facts["dfid_styles"]) == (2, 4)
    assert list(facts["directions"]) == ["A -> B", "B -> A"]
    for to, source in (("B", "A"), ("A", "B")):
        found = facts["directions"][f"{source} -> {to}"]
        images, against = pictures(data / f"test{source}"), FeatureSet(512)
        against.update(measure(pictures(data / f"train{to}")))
        assert (found["contents"], found["styles"], found["pictures"]) == (TEST, STYLES, TEST * STYLES)
        assert found["images_per_second"] > 0

        codes = net.random_styles(TEST * STYLES, 5)
        painted = net.translate(images.repeat_interleave(STYLES, 0), to=to, styles=codes)
        painted, made = to_float(to_uint8(painted)), FeatureSet(512)
        made.update(measure(painted))
        assert set(found) & {"testA", "testB"} == set() and found[f"train{to}"]["pictures"] == TRAIN
        # Rounding in batches of another size moves few of the 12,288 values of a picture by a level of 1/128.
        assert found[f"train{to}"]["fid"] == pytest.approx(fid(made.statistics, against.statistics), rel=1e-3)
        want = kid(made.features, against.features, subset_size=3)
        assert found[f"train{to}"]["kid"]["mean"] == pytest.approx(want.mean, rel=1e-3)

        pairs = [(i + n, j + n) for n in (0, 3, 6) for i, j in itertools.combinations(range(STYLES), 2)]
        mean = float(torch.cat([lpips(painted[i : i + 1], painted[j : j + 1]).flatten() for i, j in pairs]).mean())
        assert found["lpips"]["mean"] == pytest.approx(mean, rel=1e-3)
        assert (found["lpips"]["contents"], found["lpips"]["styles"], found["lpips"]["pairs"]) == (TEST, STYLES, 3)

        codes = net.random_styles(2 * 4, 5).unflatten(0, (2, 4))
        fids = []
        for image, styles in zip(images[:2], codes, strict=True):
            one = FeatureSet(512)
            one.update(measure(to_float(to_uint8(net.grid(image[None], styles, to=to)[0]))))
            fids.append(fid(one.statistics, against.statistics))
        dfid = found[f"train{to}"]["dfid"]
        assert dfid["values"] == pytest.approx(fids, rel=1e-3) and dfid["mean"] == pytest.approx(
            np.mean(fids), rel=1e-3
        )
        assert (dfid["contents"], dfid["styles"]) == (2, 4)

        stability = found["stability"]
        assert (stability["pictures"], stability["augmentations"]) == (TEST, 7)
        assert 0 < stability["variance"] and 0 < stability["between"]
        untouched = FeatureSet(512)
        untouched.update(measure(images))
        between = fid(untouched.statistics, against.statistics)
        assert found[f"train{to}"]["untranslated"]["fid"] == pytest.approx(between, rel=1e-4)

    table = said.out.splitlines()
    assert (
        table[0].startswith("features: SqueezeNet 1.0") and lpips.report_name in table[1] and "of 3 pairs" in table[1]
    )
    assert table[3] == "DFID: mean over 2 pictures of the FID of each in 4 styles"
    head = next(i for i, line in enumerate(table) if "diversity" in line and "DFID" in line and "KID x100" in line)
    assert table[head + 1].startswith("A -> B (trainB)") and table[head + 2].startswith("testA untranslated (trainB)")
    assert table[head + 3].startswith("B -> A (trainA)")
    assert f"{facts['directions']['A -> B']['lpips']['mean']:.4f}" in table[head + 1]
    assert f"{facts['directions']['A -> B']['trainB']['dfid']['mean']:.2f}" in table[head + 1]
    assert "compare with its own only" in said.err and "DFID of 4 styles, not more than the 512 features" in said.err
    assert "6 pictures are not more than the 512 features" in said.err
    assert "DFID: 2 x 4 pictures A -> B and 2 x 4 pictures B -> A, about 0:0" in said.err
    assert "DFID [####################] 16/16" in said.err and "A -> B, 3 styles [####################] 9/9" in said.err
    assert not leftovers(tmp_path)


def test_style_stability_is_of_the_painted_domain(model: Path, data: Path, tmp_path: Path) -> None:
    """Styles of B are read by the encoder of the other generator, and the augmentations are those of training."""
    net, images = anifast.load(model, "cpu"), pictures(data / "testB")
    seen: list[Tensor] = []
    want = evaluation.style_stability(
        lambda x: seen.append(net.styles_of(x, "B")) or seen[-1],
        partial(augment, config=net.config),
        [images],
        batch=21,
    )
    codes = seen[0].double().unflatten(0, (TEST, 7))
    assert want.variance == pytest.approx(float(codes.var(1, correction=0).mean()), rel=1e-9)
    options = ("--features", "none", "--lpips", "none", "--to", "B", "--styles", 1)
    facts = facts_of(model, "--data", data, *options, out=tmp_path / "e.json")
    found = facts["directions"]["A -> B"]["stability"]
    # Codes of float32 networks in batches of another size: a few last digits of values of about 1.
    assert found["variance"] == pytest.approx(want.variance, rel=1e-3)
    assert found["between"] == pytest.approx(want.between, rel=1e-3)


def test_batches_change_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for batch in (1, 8):
        options = (*QUICK, "--to", "B", "--batch", batch)
        found.append(facts_of(model, "--data", data, *options, out=tmp_path / f"{batch}.json")["directions"]["A -> B"])
    for part, key in (("trainB", "fid"), ("lpips", "mean"), ("stability", "variance"), ("stability", "between")):
        assert found[0][part][key] == pytest.approx(found[1][part][key], rel=1e-3), (part, key)
    assert found[0]["trainB"]["dfid"]["values"] == pytest.approx(found[1]["trainB"]["dfid"]["values"], rel=1e-3)


def test_seeds_and_limits(model: Path, data: Path, tmp_path: Path) -> None:
    options = ("--data", data, "--features", "none", "--to", "B", "--styles", 2)
    one, again, other, fewer = (
        facts_of(model, *options, *more, out=tmp_path / "e.json")["directions"]["A -> B"]
        for more in ((), (), ("--seed", 1), ("--max", 2))
    )
    assert one["lpips"] == again["lpips"] and one["stability"] == again["stability"]
    assert one["lpips"]["mean"] != other["lpips"]["mean"] and one["stability"] != other["stability"]
    assert fewer["contents"] == fewer["stability"]["pictures"] == 2 and fewer["pictures"] == 4


def test_sets_to_compare_with(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    """The training pictures unless told otherwise; DFID is taken against each set."""
    options = (*QUICK, "--to", "B", "--against", "both")
    found = facts_of(model, "--data", data, *options, out=tmp_path / "e.json")["directions"]["A -> B"]
    assert found["testB"]["pictures"] == TEST and found["trainB"]["pictures"] == TRAIN
    for key in ("fid", "dfid"):
        assert found["testB"][key] != found["trainB"][key]
    rows = [
        line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if "(testB)" in line or "trainB)" in line
    ]
    assert rows[:2] == ["A -> B (testB)", "A -> B (trainB)"]
    only = write_gnr(tmp_path / "other", 2, 2, 64, progress=False)
    shutil.rmtree(only / "trainB")
    assert evaluate(model, "--data", only, "--to", "B", *QUICK) == 1
    message = the_error(capsys.readouterr().err)
    assert "no folder trainB" in message and "--against test" in message
    found = facts_of(model, "--data", only, "--to", "B", *QUICK, "--against", "test", out=tmp_path / "e.json")
    assert list(found["directions"]["A -> B"])[-1] == "testB"


# --- models whose figures are known beforehand


class Colours:
    """An extractor of three features: the mean of each colour."""

    name, dim, weights, about = "colours", 3, "0" * 64, "means"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(2).mean(dim=2)


class Painter:
    """A model that paints plain pictures: in the colour of the style, or, a copy machine, in that of the content."""

    size, precision, averaged, held, both, latent_dim = 64, "fp32", False, ("B",), False, 3
    device = torch.device("cpu")

    def require(self, to: str) -> None:
        assert to in self.held

    def __init__(self, copies: bool, nan: bool = False) -> None:
        self.config, self.copies, self.nan = tiny_config(), copies, nan
        self.largest = 0

    def contents(self, images: Tensor, to: str) -> Tensor:
        return images.mean(dim=(2, 3), keepdim=True)

    def random_styles(self, count: int, seed: int = 0) -> Tensor:
        return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 0.5

    def latents(self, styles: Tensor, to: str) -> Tensor:
        return styles

    def paint(self, content: Tensor, w: Tensor, to: str) -> Tensor:
        self.largest = max(self.largest, len(w))
        colour = content.expand(len(w), -1, 1, 1) if self.copies else w[:, :, None, None]
        return colour.expand(-1, -1, 64, 64) * (torch.nan if self.nan else 1)

    def paint_all(self, content: Tensor, w: Tensor, to: str, batch: int) -> Iterator[Tensor]:
        for part in w.split(batch):
            yield self.paint(content.expand(len(part), -1, 1, 1), part, to)


def run(painter: Painter, data: Path, **own: Any) -> dict[str, Any]:
    settings = Settings(**{"styles": 20, "dfid_contents": 3, "dfid_styles": 50, **own})
    report = evaluation.evaluate(painter, data, Options(Colours(), 8, None, ("train",), 50, None, settings))  # type: ignore[arg-type]
    found: dict[str, Any] = report.facts["directions"]["A -> B"]
    return found


def test_a_copy_machine_has_no_diversity(data: Path) -> None:
    copies, diverse = Painter(True), Painter(False)
    copied, varied = run(copies, data), run(diverse, data)
    assert copied["lpips"]["mean"] == 0 < varied["lpips"]["mean"]
    assert copied["lpips"]["pairs"] == 190 and copies.largest == diverse.largest == 8
    # One content in one colour: the FID of it is how far its colour is from the mean, and the real ones' variance.
    real = Colours()(pictures(data / "trainB")).double()
    colours = Colours()(pictures(data / "testA"))
    rounded = to_float(to_uint8(colours)).double()
    want = [float((colour - real.mean(0)).square().sum() + real.var(0).sum()) for colour in rounded]
    # Colours are averages of float32: about 1e-7 of 1.
    assert copied["trainB"]["dfid"]["values"] == pytest.approx(want, rel=1e-5)
    assert "stability" not in copied  # it reads no styles


def test_nan_is_told(data: Path) -> None:
    with pytest.raises(AnifastError, match="gives NaN for pictures of .*testA"):
        run(Painter(False, nan=True), data)


def test_ctrl_c_during_dfid_keeps_the_rest(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    whole = evaluation.content_fids

    def interrupted(*given: Any) -> Iterator[Any]:
        yield next(whole(*given))
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "content_fids", interrupted)
    assert evaluate(model, "--data", data, *QUICK, "--out", tmp_path / "e.json") == 130
    facts = json.loads((tmp_path / "e.json").read_text())
    assert facts["interrupted"] is True
    assert facts["directions"]["A -> B"]["trainB"]["dfid"]["contents"] == 1
    assert facts["directions"]["B -> A"]["trainA"]["fid"] > 0 and "dfid" not in facts["directions"]["B -> A"]["trainA"]
    said = capsys.readouterr()
    assert "DFID was interrupted" in said.err and "published for selfie2anime" in said.out


# --- published figures


def test_published_figures_stand_beside_ours(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    facts = facts_of(model, "--data", data, *QUICK, "--to", "B", out=tmp_path / "e.json")
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("published for selfie2anime, A -> B"))
    assert lines[start].split()[-3:] == ["DFID", "FID", "LPIPS"]
    assert lines[start + 1].split() == ["GNR", "35.6", "34.4", "0.505"]
    assert lines[start + 4].split() == ["DRIT++", "94.6", "63.8", "0.201"]
    found = facts["directions"]["A -> B"]
    ours = [
        f"{found['trainB']['dfid']['mean']:.1f}*",
        f"{found['trainB']['fid']:.1f}*",
        f"{found['lpips']['mean']:.3f}*",
    ]
    assert lines[start + 5].startswith("this model, trainB, n = 9 (DFID 2 x 4) ")
    assert lines[start + 5].split()[-3:] == ours
    assert lines[start + 6].startswith("* taken with another network")
    by = (facts["features"]["about"], facts["lpips"]["name"])
    assert lines[start + 7] == "this model: FID and DFID by {}; diversity by {}".format(*by)
    assert facts["published"]["data"] == "selfie2anime" and len(facts["published"]["rows"]) == 4
    assert facts["published"]["rows"][0] == {"method": "GNR", "dfid": 35.6, "fid": 34.4, "lpips": 0.505}

    quick = ("--features", "none", "--lpips", "none", "--styles", 1, "--max", 1)
    facts = facts_of(model, "--data", data, *quick, "--published", "cat2dog", out=tmp_path / "e.json")
    said = capsys.readouterr().out
    assert "published for cat2dog" in said and "DRIT++" in said and "0.201" not in said and "*" not in said
    assert "this model" not in said and "DFID: " not in said  # of which nothing was measured
    assert facts["published"]["rows"][0]["lpips"] is None and facts["features"] is None and facts["lpips"] is None
    quick = ("--features", "none", "--styles", 2, "--max", 1, "--against", "both")
    facts = facts_of(model, "--data", data, *quick, out=tmp_path / "e.json")
    said = capsys.readouterr().out
    ours = [line.split("  ")[0] for line in said.splitlines() if line.startswith("this model")]
    assert ours == ["this model, n = 2", f"this model: diversity by {facts['lpips']['name']}"]
    facts = facts_of(model, "--data", data, *quick, "--published", "none", out=tmp_path / "e.json")
    assert facts["published"] is None and "published for" not in capsys.readouterr().out
    facts = facts_of(model, "--data", data, *quick, "--to", "A", out=tmp_path / "e.json")
    assert facts["published"] is None and "published for" not in capsys.readouterr().out  # they are of A -> B


def test_figures_of_the_published_networks_have_no_mark(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inception(Colours):
        name, weights = "inception", FID_WEIGHTS + "0" * 56

    class Alex(LPIPS):
        report_name = "LPIPS (alex)"  # type: ignore[assignment]

    monkeypatch.setattr(evaluation, "load_lpips", lambda *_: (Alex("squeezenet1_0"), ""))
    options = Options(Inception(), 8, None, ("train",), 50, None, Settings(styles=2, dfid_contents=1, dfid_styles=2))
    lines = evaluation.evaluate(Painter(False), data, options).lines()  # type: ignore[arg-type]
    assert any(line.startswith("this model, trainB, n = 6 (DFID 1 x 2)") for line in lines)
    assert "this model: FID and DFID by means; diversity by LPIPS (alex)" in lines
    assert not any("*" in line for line in lines)


# --- reference styles


def test_reference_styles(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    """Those of test pictures of the painted domain; there are no more of them than pictures."""
    options = ("--data", data, "--style", "reference", "--to", "B", "--dfid-contents", 2)
    facts = facts_of(model, *options, out=tmp_path / "e.json")
    said = capsys.readouterr()
    assert "A -> B: 3 reference styles and not 10 (--styles): testB has no more" in said.err
    assert "A -> B: 3 reference styles and not 1000 (--dfid-styles): testB has no more" in said.err
    assert "styles: of random test pictures" in said.out
    found = facts["directions"]["A -> B"]
    assert facts["style"] == "reference" and found["styles"] == found["trainB"]["dfid"]["styles"] == 3
    # All three styles of each content: their order does not matter for the pairs.
    net, lpips = anifast.load(model, "cpu"), LPIPS("squeezenet1_0")
    codes = net.styles_of(pictures(data / "testB"), "B")
    grid = to_float(to_uint8(net.grid(pictures(data / "testA"), codes)))
    pairs = [(n, i, j) for n in range(TEST) for i, j in itertools.combinations(range(3), 2)]
    mean = float(torch.cat([lpips(grid[n, i][None], grid[n, j][None]).flatten() for n, i, j in pairs]).mean())
    assert found["lpips"]["mean"] == pytest.approx(mean, rel=1e-3)


def test_reference_styles_differ_from_content_to_content(data: Path, model: Path) -> None:
    way = evaluation._Way("B", codes=torch.arange(40.0)[:, None])
    found = evaluation._styles(anifast.load(model, "cpu"), way, 5, 8, 0)
    assert found.shape == (5, 8, 1) and all(len(row.unique()) == 8 for row in found)
    assert len({tuple(row.flatten().tolist()) for row in found}) == 5
    assert torch.equal(evaluation._styles(anifast.load(model, "cpu"), way, 3, 8, 0), found[:3])


# --- what cannot be


def test_a_file_of_one_generator(data: Path, tmp_path: Path, capsys: Capture) -> None:
    state = own_state(tiny_config())
    torch.save({"G_A2B_ema": state["ema"]["G_A2B"]}, tmp_path / "one.pt")
    facts = facts_of(tmp_path / "one.pt", "--data", data, *QUICK, "--features", "none", out=tmp_path / "e.json")
    assert list(facts["directions"]) == ["A -> B"] and "stability" not in facts["directions"]["A -> B"]
    assert facts["directions"]["A -> B"]["lpips"]["mean"] > 0
    assert "holds one generator, taken as A -> B; styles of pictures" in capsys.readouterr().err
    assert evaluate(tmp_path / "one.pt", "--data", data, "--style", "reference") == 1
    message = the_error(capsys.readouterr().err)
    assert message.startswith(str(tmp_path / "one.pt")) and "encoder of G_B2A" in message
    assert evaluate(tmp_path / "one.pt", "--data", data, "--to", "A") == 1
    message = the_error(capsys.readouterr().err)
    assert message.startswith(str(tmp_path / "one.pt"))
    assert message.endswith("this model translates to B only; G_B2A, which paints A, is in another file")


def test_options_of_styles_are_refused_for_other_systems(data: Path, tmp_path: Path, capsys: Capture) -> None:
    net = cyclegan_generator(cyclegan_config(values={"size": 64, "blocks": 1, "width": 8}))
    initialise(net, "normal", torch.Generator().manual_seed(0))
    torch.save(net.state_dict(), tmp_path / "latest_net_G_A.pth")
    quick = ("--data", data, "--features", "none")
    assert evaluate(tmp_path / "latest_net_G_A.pth", *quick, "--styles", 3, "--dfid-styles", 5) == 1
    message = the_error(capsys.readouterr().err)
    assert "--styles, --dfid-styles: no option for cyclegan" in message and "none of its own" in message
    assert evaluate(tmp_path / "latest_net_G_A.pth", *quick, "--out", tmp_path / "e.json") == 0
    facts = json.loads((tmp_path / "e.json").read_text())
    assert facts["system"] == "cyclegan" and "published" not in facts


def test_options_of_other_systems_are_refused(model: Path, data: Path) -> None:
    with pytest.raises(AnifastError, match="--cycle-l1: no option for gnr, .* its own are --styles, --style, --lpips"):
        evals.evaluate(model, data, device="cpu", cycle_l1=True)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--styles", 0), "--styles: 0 is below 1"),
        (("--dfid-styles", 1), "--dfid-styles 1: at least 2, or 0"),
        (("--dfid-contents", 0), "--dfid-contents: 0 is below 1"),
        (("--seed", -1), "--seed: -1 is below 0"),
        (("--styles", 1, "--lpips", "alex"), "--lpips alex with --styles 1"),
        (("--batch", 0), "--batch 0: at least 1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_values(model: Path, data: Path, words: tuple[object, ...], named: str, capsys: Capture) -> None:
    assert evaluate(model, "--data", data, *words) == 1
    assert named in the_error(capsys.readouterr().err)


def test_help_names_what_the_settings_are(capsys: Capture) -> None:
    """The command's options and the settings: the same names, defaults and choices."""
    with pytest.raises(SystemExit):
        cli.main(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for field in dataclasses.fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        assert f" {flag} " in text and (f"[{field.default}]" in text or f"[gnr: {field.default}" in text), flag
        assert field.name in cli._EVAL_OF_SOME
        if field.metadata["choices"]:  # another system may have more
            found = re.search(rf"{flag} {{([^}}]*)}}", text)
            assert found is not None and set(field.metadata["choices"]) <= set(found[1].split(",")), flag
    kinds = [getattr(systems.module(name, "evaluation"), "Settings", None) for name in systems.SYSTEMS]
    assert set(cli._EVAL_OF_SOME) == {field.name for kind in kinds if kind for field in dataclasses.fields(kind)}


def test_one_picture_and_one_style(model: Path, tmp_path: Path, capsys: Capture) -> None:
    few = write_gnr(tmp_path / "few", 2, 1, 64, progress=False)
    options = ("--data", few, "--to", "B", "--styles", 1, "--dfid-styles", 3)
    found = facts_of(model, *options, out=tmp_path / "e.json")["directions"]["A -> B"]
    captured = capsys.readouterr()
    said = captured.err
    row = next(line for line in captured.out.splitlines() if line.startswith("A -> B (trainB)"))
    assert row.split()[-2] == "-"  # the variance of pictures
    assert "one style of each picture: no diversity" in said and "need at least 2 pictures" in said
    assert "DFID of 1 pictures and not 20: there are no more" in said
    assert found["trainB"]["fid"] is None and found["trainB"]["dfid"]["mean"] > 0
    assert found["trainB"]["dfid"]["error"] is None and "lpips" not in found
    assert found["stability"]["error"] is None and found["stability"]["between"] is None
    options = ("--data", few, "--to", "B", "--style", "reference")
    found = facts_of(model, *options, out=tmp_path / "e.json")["directions"]["A -> B"]
    assert "lpips" not in found and "dfid" not in found["trainB"] and found["styles"] == 1
    assert "DFID needs at least 2 styles" in capsys.readouterr().err


def test_pictures_that_cannot_be_read(model: Path, tmp_path: Path, capsys: Capture) -> None:
    faces = write_gnr(tmp_path / "faces", 2, 3, 64, progress=False)
    first, *others = sorted((faces / "testA").glob("*.png"))
    first.write_bytes(first.read_bytes()[:300])
    found = facts_of(model, "--data", faces, "--to", "B", *QUICK, out=tmp_path / "e.json")["directions"]["A -> B"]
    assert found["contents"] == 2 and found["pictures"] == 2 * STYLES and found["trainB"]["dfid"]["contents"] == 2
    assert capsys.readouterr().err.count(f"left out: {first}: ") == 1
    for path in others:
        path.write_bytes(path.read_bytes()[:300])
    assert evaluate(model, "--data", faces, "--to", "B", *QUICK) == 1
    assert "none of its pictures can be read" in the_error(capsys.readouterr().err)
    for path in (first, *others):
        path.unlink()
    assert evaluate(model, "--data", faces, "--to", "B", *QUICK) == 1
    assert "no picture found" in the_error(capsys.readouterr().err)
    shutil.rmtree(faces / "testA")
    assert evaluate(model, "--data", faces, "--to", "B", *QUICK) == 1
    assert "no folder testA" in the_error(capsys.readouterr().err)


def test_damaged_weights(data: Path, tmp_path: Path, capsys: Capture) -> None:
    state = own_state(tiny_config())
    state["ema"]["G_A2B"]["conv1.conv.weight"][:] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    assert evaluate(tmp_path / "nan.pt", "--data", data, *QUICK, "--features", "none", "--to", "B") == 1
    assert "the model gives NaN for pictures of" in the_error(capsys.readouterr().err)
    state["ema"]["G_B2A"]["encoder.stem.0.0.weight"][:] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    assert evaluate(tmp_path / "nan.pt", "--data", data, *QUICK, "--features", "none", "--to", "B") == 1
    assert "the model gives NaN for styles of" in the_error(capsys.readouterr().err)


def test_without_any_weights(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.delenv("ANIFAST_WEIGHTS")
    facts = facts_of(model, "--data", data, "--to", "B", out=tmp_path / "e.json")
    said = capsys.readouterr().err
    assert "no FID, no KID: no weights" in said and "no LPIPS diversity: no weights are here" in said
    found = facts["directions"]["A -> B"]
    assert facts["features"] is None and facts["lpips"] is None
    assert set(found) == {"stability", "contents", "styles", "pictures", "images_per_second"}


def test_the_python_face(model: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"features": "none", "device": "cpu", "styles": 2, "to": "B"}
    report = evals.evaluate(model, data, out=tmp_path / "e.json", **options)
    assert report.facts == json.loads((tmp_path / "e.json").read_text())
    half = evals.evaluate(model, data, precision="bf16", **options)
    assert half.facts["precision"] == "bf16" and half.file is None
    found, other = (one.facts["directions"]["A -> B"]["lpips"]["mean"] for one in (report, half))
    assert found != other
