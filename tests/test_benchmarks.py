from __future__ import annotations

import copy
import functools
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anifast import backends, cli
from anifast.engine import acceleration
from anifast.engine.loop import run_step
from anifast.errors import AnifastError, DataError
from anifast.nn.backbones import load_backbone
from anifast.nn.perceptual import NETS, STYLE_LAYERS
from anifast.nn.stylegan2 import Generator
from anifast.systems.blendgan import config as blendgan_config
from anifast.systems.blendgan import inference as blendgan_inference
from anifast.systems.blendgan import psp
from anifast.systems.cyclegan.config import make
from anifast.systems.cyclegan.networks import build_discriminator, build_generator
from anifast.systems.disentangle import config as disentangle_config
from anifast.systems.disentangle import networks as disentangle_networks
from anifast.systems.disentangle import training as disentangle_training
from anifast.systems.gnr import config as gnr_config
from anifast.systems.gnr import networks as gnr_networks
from anifast.systems.gnr.training import GNR, Batch
from anifast.systems.twingan import config as twingan_config
from anifast.systems.twingan import networks as twingan_networks

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import environment, modulated_layers, report, results, run, timing  # noqa: E402
from benchmarks.bench import Aim, Call, Case, OpBench, Prepared, Tensors, Variant, WrongResult, all_benches  # noqa: E402
from benchmarks.ops import bench_gram, bench_lpips_layer  # noqa: E402
from benchmarks.shapes import (  # noqa: E402
    BIAS_LRELU,
    CONFIG_F,
    GRAM_MAPS,
    LPIPS_LAYER,
    MODULATED_CONV2D,
    SQRT2,
    ModulatedConv2d,
    stylegan2_layers,
)
from benchmarks.systems import (  # noqa: E402
    _authors_blendgan,
    _authors_disentangle,
    _authors_gnr,
    _sides,
    bench_blendgan,
    bench_cyclegan,
    bench_disentangle,
    bench_gnr,
    bench_lpips,
    bench_stylegan2,
    bench_twingan,
)


class Scale(OpBench):
    """y = 3 * x with a learned factor, and variants that are wrong in one way each."""

    name = "scale"
    forms = {"plain": "factor * x"}
    leaves = ("x", "factor")
    roles = {"good": "ours", "wrong": "ours", "chain": "rival", "absent": "rival"}
    aims = (Aim("forward", "cpu", "chain", 1.5, ("forward",)), Aim("forward", "cuda", "chain", 9.0, ("forward",)))

    def __init__(self, wrong: Callable[..., Tensor] = torch.mul) -> None:
        self.wrong = wrong

    def cases(self, device: str) -> list[Case]:
        return [
            Case("tiny", "plain", (2, 3), None, quick=True),
            Case("map", "plain", (1, 4, 33, 17), None),
            Case("map", "plain", (1, 4, 33, 17), None, dtype="bfloat16"),
        ]

    def tensors(self, case: Case, device: str, generator: torch.Generator) -> Tensors:
        dtype = getattr(torch, case.dtype)
        return {
            "x": torch.randn(case.shape, generator=generator).to(dtype),
            "factor": torch.full((1,), 3.0, dtype=dtype),
        }

    def reference(self, case: Case) -> Callable[..., Tensor]:
        return lambda x, factor: x * factor

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        return {
            "good": Variant(lambda x, factor: factor * x),
            "wrong": Variant(lambda x, factor: self.wrong(x, factor)),
            "chain": Variant(lambda x, factor: (x + x + x) * (factor / 3)),
            "absent": Variant(None, {"": "not on this machine"}),
        }

    def traffic(self, case: Case, work: str) -> int:
        return math.prod(case.shape) * 8

    def copies(self, case: Case, work: str, tensors: Tensors, grad: Tensor, second: Tensor) -> list[Tensor]:
        return [grad]


class Bounded(Scale):
    """With a bound of its own and operations, and a strategy beside ours and the rival."""

    roles = {"good": "ours", "chain": "rival", "slow": "rival", "forced": "strategy"}
    limits = ("convolution", "matrix")
    aims = (
        Aim("all", "cpu", ("chain", "slow"), 1.5, ("forward",)),
        Aim("all", "cpu", "convolution", 0.85, ("forward",), percent=True, each=True),
        Aim("map", "cpu", "matrix", 0.5, ("forward",), percent=True, cases=("map",), dtype="bfloat16"),
    )

    def variants(self, case: Case, device: str) -> dict[str, Variant]:
        good, chain = (super(Bounded, self).variants(case, device)[name] for name in ("good", "chain"))
        return {"good": good, "chain": chain, "slow": chain, "forced": good}

    def bounds(self, case: Case, work: str, tensors: Tensors, grad: Tensor) -> dict[str, Call]:
        return {"convolution": lambda: [grad + 1]}

    def operations(self, case: Case, work: str) -> int:
        return 10**9


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> timing.MatrixProduct:
    """A matrix product of 2e10 operations in 0.1 s instead of a measured one."""
    made = timing.MatrixProduct(2 * 10**10, timing.Timing(0.1, 0.2, 0.05, 9))
    monkeypatch.setattr(timing.MatrixProduct, "measure", lambda *_: made)
    return made


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return run.measure_op(Scale(), "cpu", seconds=0.002)


def test_each_use_of_bias_lrelu_is_listed_once() -> None:
    names = [use.name for use in BIAS_LRELU]
    assert len(set(names)) == len(names)
    uses = {(use.shape, use.form, use.slope) for use in BIAS_LRELU}
    assert len(uses) == len(BIAS_LRELU)
    assert {use.form for use in BIAS_LRELU} == {"noise", "bias", "plain", "residual"}
    for use in BIAS_LRELU:
        assert len(use.shape) in (2, 4) and all(side > 0 for side in use.shape), use
        assert len(use.shape) == 4 or not (use.noise or use.residual), use
        # (sqrt 2 * lrelu + skip) / sqrt 2 is what a residual block computes
        assert use.gain * (SQRT2 if use.residual else 1.0) in (1.0, SQRT2), use
    assert {use.name.split(".")[0] for use in BIAS_LRELU} == {"gnr", "blendgan", "twingan", "cyclegan"}
    assert {use.form for use in BIAS_LRELU if use.quick} == {"noise", "bias", "plain", "residual"}


def test_each_layer_of_modulated_conv2d_is_listed_once() -> None:
    assert len({use.name for use in MODULATED_CONV2D}) == len(MODULATED_CONV2D)
    assert len({(use.system, use.form, use.inputs, use.outputs, use.side) for use in MODULATED_CONV2D}) == len(
        MODULATED_CONV2D
    )
    for use in MODULATED_CONV2D:
        assert use.form == use.name.split(".")[0] and use.side * use.up == int(use.name.split(".")[2]), use
    # spec/blendgan.md 9: 148.13 GFLOP of 3 x 3 and 0.394 of 1 x 1 convolutions at 1024 px, 90.14 at 256 px
    for most, size, expected in ((1024, 3, 148.13), (1024, 1, 0.394), (256, 3, 90.14)):
        total = sum(
            modulated_layers.operations(use, 1, "forward")
            for use in MODULATED_CONV2D
            if use.system == "blendgan" and use.size == size and use.side * use.up <= most
        )
        assert total / 1e9 == pytest.approx(expected, abs=6e-3)
    # spec/gnr.md 9: 11.48 and 4.23 GMAC, of which the bottleneck's two are conv1's again
    gnr = [use for use in MODULATED_CONV2D if use.system == "gnr"]
    for form, expected in (("plain", 11.48), ("up", 4.23)):
        total = sum(modulated_layers.operations(use, 1, "forward") for use in gnr if use.form == form) / 2e9
        bottleneck = 2 * modulated_layers.operations(gnr[0], 1, "forward") / 2e9 if form == "plain" else 0.0
        assert total + bottleneck == pytest.approx(expected, abs=6e-3)


def test_the_maps_of_lpips_and_of_the_style_vector_are_those_of_the_networks() -> None:
    def maps(name: str, layers: tuple[int, ...]) -> list[tuple[int, int]]:
        with torch.device("meta"):
            net = load_backbone(name, pretrained=False)
            return [tuple(x.shape[1:3]) for x in net.taps(torch.empty(1, 3, 256, 256), layers)]

    assert len({use.name for use in LPIPS_LAYER}) == len(LPIPS_LAYER)
    assert len({(use.channels, use.side) for use in LPIPS_LAYER}) == len(LPIPS_LAYER)
    for net, shared in (("vgg", set()), ("squeeze", set()), ("alex", {(384, 15)})):
        listed = {(use.channels, use.side) for use in LPIPS_LAYER if use.net == net} | shared
        assert listed == set(maps(NETS[net].backbone, NETS[net].layers)), net
    assert list(GRAM_MAPS.values()) == maps("vgg19", STYLE_LAYERS["vgg19"])
    # spec/blendgan.md 9: 610,304 numbers, folded 305,888; 1,148.8 MFLOP an image for the upper triangles
    bench = bench_gram.BENCH
    case = {case.id: case for case in bench.cases("cpu")}["folded.b1"]
    whole = sum(channels**2 for channels, _ in GRAM_MAPS.values())
    assert (whole, len(bench_gram.positions(torch.device("cpu")))) == (610_304, 305_888)
    assert bench.operations(case, "forward") / 1e6 == pytest.approx(1148.8, abs=0.1)


@pytest.mark.parametrize("work", list(results.WORKS))
@pytest.mark.parametrize("form", ["plain", "up", "rgb"])
def test_the_convolutions_alone_are_those_of_the_work(form: str, work: str) -> None:
    """As many operations as are counted, and as many as plain PyTorch's own gradients of the layer take."""
    size, up = (1 if form == "rgb" else 3), (2 if form == "up" else 1)
    use = ModulatedConv2d(f"{form}.tiny.{6 * up}", 8, 3, 6, "", up=up, size=size)
    bench, case = all_benches()["modulated_conv2d"], Case("tiny", form, (2, 8, 6, 6), use)
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(3, 8, size, size, requires_grad=True)
    torch.manual_seed(1)
    call = modulated_layers.library(use, work, x, weight)
    with FlopCounterMode(display=False) as counter:
        found = [value for value in call() if value is not None]
    assert counter.get_total_flops() == bench.operations(case, work)
    out = modulated_layers.convolution(use, x, weight)
    torch.testing.assert_close(found[0], out)
    if work != "forward":
        torch.manual_seed(1)
        gx, gweight = torch.autograd.grad(out, (x, weight), torch.randn_like(out))
        at = modulated_layers.counts(use, work)[0]
        torch.testing.assert_close(found[at], gx)
        torch.testing.assert_close(found[at + 1], gweight.transpose(0, 1) if up > 1 else gweight)
    if form != "up":  # the reference's filter is a convolution too
        call = Prepared(bench, case, "cpu").call(work, "scaled")
        with FlopCounterMode(display=False) as counter:
            call()
        flops = counter.get_flop_counts()["Global"]
        of_convolutions = sum(count for op, count in flops.items() if "convolution" in str(op))
        assert of_convolutions == bench.operations(case, work)


@pytest.mark.parametrize("name", list(all_benches()))
def test_a_description_is_complete_and_its_variants_are_right(name: str) -> None:
    bench = all_benches()[name]
    assert (ROOT / "benchmarks" / "ops" / f"bench_{name}.py").exists()
    for device in ("cpu", "cuda"):
        cases = bench.cases(device)
        assert len({case.id for case in cases}) == len(cases)
        assert {case.form for case in cases} == set(bench.forms)
        assert any(case.quick for case in cases)
    for aim in bench.aims:
        assert set(aim.forms) <= set(bench.forms) and set(aim.works) <= set(results.WORKS)
        for against in [aim.against] if isinstance(aim.against, str) else aim.against:
            assert against in ("clone", *bench.limits) or bench.roles[against] == "rival"
        assert set(aim.cases) <= {case.name for case in bench.cases(aim.device)}
        assert (aim.dtype, aim.layout) in {(case.dtype, case.layout) for case in bench.cases(aim.device)}
    seen = set()
    for case in sorted(bench.cases("cpu"), key=lambda case: math.prod(case.shape)):
        if (case.form, case.dtype, case.layout) in seen:
            continue
        seen.add((case.form, case.dtype, case.layout))
        if math.prod(case.shape) > 2**20:
            continue
        prepared = Prepared(bench, case, "cpu")
        assert prepared.variants.keys() == bench.roles.keys()
        for work in results.WORKS:
            _, copied = prepared.bound(work)
            x = prepared.tensors[bench.leaves[0]]
            assert x is not None
            assert copied > 0 and bench.traffic(case, work) >= x.nbytes + prepared.grad.nbytes
            assert set(prepared.bounds(work)) == set(bench.limits) - {"matrix"}
            assert (bench.operations(case, work) > 0) == ("matrix" in bench.limits)
            for variant, built in prepared.variants.items():
                if built.function is not None and not built.compiled and not built.why_missing(work):
                    prepared.check(work, variant)


@pytest.fixture
def tiny_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The style vector of five maps of 3 to 7 channels."""
    monkeypatch.setattr(bench_gram, "GRAM_MAPS", {name: (3 + i, 6 - i) for i, name in enumerate(GRAM_MAPS)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("form", list(bench_gram.BENCH.forms))
def test_the_variants_of_the_style_vector_are_right(form: str, layout: str, dtype: str, tiny_maps: None) -> None:
    """Its real maps are too large for the test of all descriptions above."""
    bench = bench_gram.BENCH
    prepared = Prepared(bench, Case("tiny", form, (2, 3, 6, 6), form == "folded", dtype, layout), "cpu")
    assert prepared.variants.keys() == bench.roles.keys()
    for work in results.WORKS:
        assert set(prepared.bounds(work)) == set(bench.limits) - {"matrix"}
        for variant, built in prepared.variants.items():
            if built.function is not None and not built.compiled and not built.why_missing(work):
                prepared.check(work, variant)


@pytest.mark.parametrize("work", list(results.WORKS))
def test_the_whole_style_vector_gives_the_gradients_of_the_folded_one(work: str, tiny_maps: None) -> None:
    bench = bench_gram.BENCH
    prepared = Prepared(bench, Case("tiny", "folded", (2, 3, 6, 6), True), "cpu")
    whole, folded = prepared.bounds(work)["whole"](), prepared.call(work, "plain")()
    at = bench_gram.positions(torch.device("cpu"))
    assert len(at) == sum(c * (c + 1) // 2 for c in range(3, 8)) == prepared.grad.shape[1]
    assert whole[0] is not None and whole[0].shape[1] == sum(c * c for c in range(3, 8))
    torch.testing.assert_close(whole[0][:, at], folded[0])
    if work == "forward_backward":
        assert len(whole) == 6
        for gradient, expected in zip(whole[1:], folded[1:], strict=True):
            torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("folded", [False, True])
def test_a_wrong_style_vector_is_not_timed(
    folded: bool, tiny_maps: None, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    prepared = Prepared(bench_gram.BENCH, Case("tiny", "folded" if folded else "full", (2, 3, 6, 6), folded), "cpu")
    right = bench_gram.plain

    def wrong(*, folded: bool, **maps: Tensor) -> Tensor:
        out = right(folded=folded, **maps)
        # only the whole vector in float32 is wrong, by a part in ten thousand of one number
        if not folded and out.dtype == torch.float32:
            out[-1, -1] *= 1 + 1e-4
        return out

    prepared.bounds("forward")
    monkeypatch.setattr(bench_gram, "plain", wrong)
    with pytest.raises(WrongResult, match="tiny, whole"):
        prepared.bounds("forward")


@pytest.mark.parametrize("work", ["forward", "forward_backward"])
@pytest.mark.parametrize("form", ["one", "both"])
def test_a_wrong_distance_is_refused(form: str, work: str) -> None:
    """The sum over a whole map is so long that only terms of the size 1 make its check a sharp one."""
    bench = bench_lpips_layer.BENCH
    case = {case.id: case for case in bench.cases("cpu")}[f"{form}.vgg.512x16.b1"]
    prepared = Prepared(bench, case, "cpu")
    assert len(prepared.call("forward_backward", "formula")()) == (2 if form == "one" else 3)
    right = prepared.variants["formula"].function
    prepared.check(work, "formula")
    assert right is not None
    prepared.variants["formula"] = Variant(lambda **given: right(**given) * (1 + 1e-5))
    with pytest.raises(WrongResult):
        prepared.check(work, "formula")


def _forgets_last(x: Tensor, factor: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out.view(-1)[:-1] = (x * factor).view(-1)[:-1]
    return out


class _NoSecondOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(x, factor)
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, factor = ctx.saved_tensors
        with torch.no_grad():
            return grads[0] * factor, (grads[0] * x).sum().reshape(1)


@pytest.mark.parametrize(
    ("wrong", "work"),
    [
        (lambda x, factor: x * factor * 1.0001, "forward"),
        (lambda x, factor: (x * factor)[..., :-1], "forward"),
        (lambda x, factor: (x * factor).double(), "forward"),
        (lambda x, factor: x * factor + float("nan"), "forward"),
        (_forgets_last, "forward"),
        (lambda x, factor: x * factor.detach(), "forward_backward"),
        (_NoSecondOrder.apply, "double_backward"),
    ],
    ids=["scale", "shape", "dtype", "nan", "element never written", "no gradient", "no second order"],
)
def test_a_wrong_variant_is_refused(wrong: Callable[..., Tensor], work: str) -> None:
    bench = Scale(wrong)
    prepared = Prepared(bench, bench.cases("cpu")[1], "cpu")
    prepared.check(work, "good")
    with pytest.raises((WrongResult, RuntimeError)):
        prepared.check(work, "wrong")


def test_a_refused_variant_has_no_time_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Scale(lambda x, factor: x * factor + 1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr("benchmarks.bench.all_benches", lambda: {"scale": bench})
    arguments = ["--device", "cpu", "--quick", "--seconds", "0.001", "--works", "forward", "--out", str(tmp_path)]
    assert run.main(arguments) == 1
    printed = capsys.readouterr()
    assert "REFUSED tiny forward wrong: WrongResult" in printed.err
    (path,) = tmp_path.glob("*/scale.json")
    (row,) = results.load(path)["rows"]
    assert "wrong" not in row["us"] and "error" in row["refused"]["wrong"]
    assert set(row["us"]) == {"good", "chain", "clone"}
    assert "**Refused** tiny forward wrong" in report.document(tmp_path, tmp_path)


def test_a_result_says_what_was_measured_on_what(result: dict[str, Any]) -> None:
    results.validate(result)
    assert len(result["rows"]) == 9
    assert result["unavailable"] == {"absent": "not on this machine"}
    assert result["variants"] == {**Scale.roles, "clone": "bound"}
    for row in result["rows"]:
        assert set(row["us"]) == {"good", "wrong", "chain", "clone"}
        counts = {statistics[3] for statistics in row["us"].values()}
        assert len(counts) == 1 and min(counts) >= 7
        assert row["output"] == math.prod(row["shape"]) * (2 if row["dtype"] == "bfloat16" else 4)
    quick = [row for row in result["rows"] if "memory" in row]
    assert {row["case"] for row in quick} == {"tiny"}
    forward = next(row for row in quick if row["work"] == "forward")
    assert forward["memory"]["good"][1] == 24 and forward["memory"]["chain"][0] > 48
    (aim,) = result["aims"]
    assert aim["aim"] == 1.5 and set(aim["measured"]) == {"good", "wrong"}
    found = result["environment"]
    for name in ("date", "torch", "cpu", "cores", "threads", "build", "settings", "commit", "python"):
        assert name in found
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()


def test_a_result_has_bounds_of_operations_and_of_its_own(product: timing.MatrixProduct, tmp_path: Path) -> None:
    found = run.measure_op(Bounded(), "cpu", works=["forward", "forward_backward"], seconds=0.002)
    results.validate(found)
    assert found["variants"] == {**Bounded.roles, "clone": "bound", "convolution": "bound", "matrix": "bound"}
    assert found["environment"]["matrix product, GFLOP/s"] == {"float32": 200.0, "bfloat16": 200.0}
    for row in found["rows"]:
        assert row["operations"] == 10**9 and row["us"]["matrix"] == [5000.0, 10000.0, 2500.0, 9]
        assert row["us"]["convolution"][3] == row["us"]["good"][3]
        # factor * x keeps both, which are given; x + x + x is thrown away, and only factor / 3 is new
        assert ("kept" in row) == (row["work"] == "forward_backward")
        if "kept" in row:
            assert row["kept"]["good"] == 0 and row["kept"]["chain"] > row["output"]
    one, other, last = found["aims"]
    forward = [row for row in found["rows"] if row["work"] == "forward" and row["dtype"] == "float32"]
    fastest = [min(row["us"][name][0] for name in ("chain", "slow")) / row["us"]["good"][0] for row in forward]
    assert one["measured"]["good"][0] == pytest.approx(math.sqrt(fastest[0] * fastest[1]), abs=1e-3)
    shares = [row["us"]["convolution"][0] / row["us"]["good"][0] for row in forward]
    assert other["each"] and other["measured"]["good"][0] == pytest.approx(min(shares), abs=1e-3)
    (half,) = (row for row in found["rows"] if row["work"] == "forward" and row["dtype"] == "bfloat16")
    assert last["measured"]["good"][0] == pytest.approx(5000.0 / half["us"]["good"][0], abs=1e-3)
    results.save(found, tmp_path)
    text = report.document(tmp_path, tmp_path)
    for line in (
        "| factor * x (2) | its strategy `forced` | ",
        "| factor * x (2) | share of the library's convolution alone | ",
        "| factor * x (2) | share of a matrix product's rate | ",
        "| good | all | the fastest of chain, slow | 1.50x | ",
        "| good | all, each shape | share of the library's convolution alone | 85 % | ",
        "| kept for backward beyond the inputs, in outputs (at most) | good | chain | slow | forced |",
        "| factor * x, float32 (2) | 0.00 (0.00) | ",
    ):
        assert line in text, line


def test_what_a_forward_keeps_is_counted_once_and_without_what_was_given() -> None:
    x, weight = torch.randn(10, 100, requires_grad=True), torch.randn(100, requires_grad=True)
    assert timing.saved_for_backward(lambda: x * weight, [x, weight]) == 0
    assert timing.saved_for_backward(lambda: x * weight, [weight]) == 4000
    assert timing.saved_for_backward(lambda: x[:2] * weight, [weight]) == 4000  # the whole storage stays
    assert timing.saved_for_backward(lambda: (x * weight).exp(), [x, weight]) == 4000
    assert timing.saved_for_backward(lambda: (x * weight).exp().square(), [x, weight]) == 4000  # the same tensor
    assert timing.saved_for_backward(lambda: (x * weight).exp().sin().cos(), [x, weight]) == 8000
    with torch.no_grad():  # what is measured is a forward with a gradient
        assert timing.saved_for_backward(lambda: x.exp(), [x]) == 4000


def test_the_rate_of_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half:
        shortest = 0.0

        def __call__(self, call: Callable[[], Any], repeat: int) -> float:
            return 0.5

    found = timing.MatrixProduct.measure(torch.float32, "cpu", Half(), 1.0)  # type: ignore[arg-type]
    assert found.rate == 2 * 2048**3 / 0.5
    assert found.time_of(2048**3) == timing.Timing(0.25, 0.25, 0.25, found.timing.count)


def test_ratios_and_geometric_means() -> None:
    rows = [
        {"us": {"a": [10.0, 11.0, 9.0, 7], "b": [40.0, 0, 0, 7], "clone": [5.0, 0, 0, 7]}, "bytes": 300, "copied": 200},
        {"us": {"a": [10.0, 11.0, 9.0, 7], "b": [90.0, 0, 0, 7]}, "bytes": 2 << 20, "copied": 200},
        {"us": {"b": [90.0, 0, 0, 7]}, "bytes": 3 << 20, "copied": 200},
    ]
    assert results.ratio(rows[0], "a", "b") == 4.0
    assert results.ratio(rows[0], "a", "clone") == pytest.approx(0.5 * 300 / 200)
    assert results.ratio(rows[2], "a", "b") is None
    assert results.ratio(rows[0], "a", ("b", "clone", "absent")) == 0.5
    assert results.ratio(rows[0], "a", ("absent",)) is None
    value, large, count = results.mean_ratio(rows, "a", "b", lambda row: True)
    assert (value, large, count) == (pytest.approx(6.0), pytest.approx(9.0), 2)
    assert results.mean_ratio(rows, "a", "b", lambda row: False) == (None, None, 0)
    assert results.mean_ratio(rows, "a", "b", lambda row: True, results.least) == (4.0, 9.0, 2)
    assert results.mean_ratio(rows, "a", "b", lambda row: False, results.least) == (None, None, 0)


def test_calls_are_timed_in_changing_turns_after_all_are_warm() -> None:
    log: list[str] = []

    def clock(call: Callable[[], Any], repeat: int) -> float:
        call()
        return len(log) * 1e-3

    clock.shortest = 0.0  # type: ignore[attr-defined]
    calls = {name: (lambda name=name: log.append(name)) for name in "abc"}
    times = timing.interleave(calls, clock, seconds=0.0, rounds=(24, 24))  # type: ignore[arg-type]
    text = "".join(log)
    assert text.startswith("aaabbbccc" + "abc")
    rounds = [text[at : at + 3] for at in range(12, len(text), 3)]
    assert len(rounds) == 24 and all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) == 6
    assert {found.count for found in times.values()} == {24}
    assert times["a"].minimum <= times["a"].p25 <= times["a"].p75
    samples = timing.Timing.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert samples == timing.Timing(2.0, 4.0, 1.0, 5)


def test_memory_counts_what_a_call_allocates() -> None:
    x = torch.randn(1000)
    peak, held = timing.memory(lambda: x + x, "cpu")
    assert held == 4000 and 4000 <= peak < 4100
    peak, held = timing.memory(lambda: (x * x).sin(), "cpu")
    assert held == 4000 and 8000 <= peak < 8100


def test_saving_replaces_the_file_of_the_same_op_only(result: dict[str, Any], tmp_path: Path) -> None:
    other = {**result, "op": "another"}
    path = results.save(result, tmp_path)
    assert results.save(other, tmp_path).parent == path.parent
    again = copy.deepcopy(result)
    again["environment"]["date"] = "2001-01-01 00:00 UTC"
    assert results.save(again, tmp_path) == path
    assert results.load(path) == json.loads(json.dumps(again))
    assert [found["op"] for _, found in results.load_all(tmp_path)] == ["another", "scale"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["another.json", "scale.json"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("anifast.benchmark/1", "anifast.benchmark/0"),
        lambda text: text.replace('"bytes":', '"bites":'),
        lambda text: text.replace('"form":"plain"', '"form":"unheard of"'),
    ],
)
def test_a_spoilt_results_file_is_named(
    spoil: Callable[[str], str], result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results.save(result, tmp_path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=path.name):
        results.load(path)
    assert report.main(["--results", str(tmp_path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_report_writes_tables_between_the_markers_and_sees_stale_ones(result: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "results"
    results.save(result, folder)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    at = ["--results", str(folder)]
    assert report.main([*at, "--check", str(readme)]) == 1
    assert "old" in readme.read_text()
    assert report.main([*at, "--write", str(readme)]) == 0
    text = readme.read_text()
    assert (
        text.startswith(f"before\n{report.BEGIN}\n") and text.endswith(f"{report.END}\nafter\n") and "old" not in text
    )
    assert f"(results/{environment.slug('cpu')}/scale.json)" in text
    assert "| `good` (shapes) | against | forward | " in text
    assert "| factor * x (2) | chain | " in text and "| bfloat16, contiguous (1) | chain | " in text
    assert "| good | forward | chain | 1.50x | " in text
    assert report.main([*at, "--check", str(readme)]) == 0
    faster = copy.deepcopy(result)
    for row in faster["rows"]:
        row["us"]["chain"][:2] = [row["us"]["chain"][0] * 2, row["us"]["chain"][1] * 2]
    results.save(faster, folder)
    assert report.main([*at, "--check", str(readme)]) == 1


def test_report_shows_every_row_and_the_memory_on_request(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = copy.deepcopy(result)
    large["rows"][0]["bytes"] = 1 << 20
    results.save(large, tmp_path)
    assert report.main(["--results", str(tmp_path), "--rows"]) == 0
    text = capsys.readouterr().out
    assert "| map-bfloat16 | 1x4x33x17 | double backward | " in text
    assert "| tiny | forward | 0.0 MiB | 1.00 | " in text


def test_report_tells_sizes_in_mib_where_an_output_is_a_few_numbers(result: dict[str, Any]) -> None:
    found = copy.deepcopy(result)
    for row in found["rows"]:
        row["bytes"] = 1 << 20
        if "kept" in row:
            row["kept"] = {"good": 1 << 19, "chain": 3 << 20}
    assert "in outputs (at most)" in report.kept(found) and "peaks in outputs" in report.memory(found)
    for row in found["rows"]:
        row["output"] = 8
    assert "beyond the inputs, in MiB (at most) | good | chain |" in report.kept(found)
    assert "| factor * x, float32 (2) | 0.50 (0.50) | 3.00 (3.00) |" in report.kept(found)
    assert "peaks in MiB" in report.memory(found)


@pytest.mark.parametrize("text", ["no markers", f"{report.BEGIN}\n", f"{report.END}\n{report.BEGIN}\n", None])
def test_report_needs_its_markers(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "PAGE.md"
    if text is not None:
        target.write_text(text)
    assert report.main(["--results", str(tmp_path), "--write", str(target)]) == 1
    assert str(target) in capsys.readouterr().err
    assert text is None or target.read_text() == text


def test_the_verb_measures_and_writes_only_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiled(Scale):
        roles = {**Scale.roles, "compile": "rival"}

        def variants(self, case: Case, device: str) -> dict[str, Variant]:
            return {**super().variants(case, device), "compile": Variant(None, {"": "must not be asked for"})}

    bench = Compiled(lambda x, factor: x * factor)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr("benchmarks.bench.all_benches", lambda: {"scale": bench})
    before = sorted((ROOT / "benchmarks").rglob("*.json"))
    for options in ([], ["--out", str(tmp_path)]):
        assert cli.main(["bench", "scale", "--device", "cpu", "--quick", *options]) == 0
        said = capsys.readouterr().out
        assert "must not be asked for" not in said and "tiny" in said
        assert ("not written" in said) == (not options)
    (path,) = tmp_path.glob("*/scale.json")
    assert results.load(path)["selection"] == "quick, without compile"
    assert sorted((ROOT / "benchmarks").rglob("*.json")) == before
    assert cli.main(["bench", "nothing", "--device", "cpu"]) == 1
    assert "anifast: error: --op nothing: there is no such benchmark; there are scale" in capsys.readouterr().err


def test_report_has_the_systems(tmp_path: Path) -> None:
    row = {"work": "translation", "size": 128, "precision": "bf16", "images": 8, "convolutions_ms": 60.4}
    row["ms"] = {"anifast": [100.0, 101.0, 99.0, 7], "plain": [250.0, 260.0, 240.0, 7]}
    about = {"cpu": "Some CPU", "cores": 2, "threads": 1, "cpu_capability": "AVX2", "build": {"isa": "avx2"}}
    about |= {"settings": {}, "torch": "2.13.0", "commit": "0123456789abcdef", "uncommitted_changes": False}
    result = {"format": bench_cyclegan.FORMAT, "system": "cyclegan", "rows": [row]}
    result["environment"] = {**about, "date": "2001-01-01 00:00 UTC"}
    path = tmp_path / "results" / "some-cpu" / "systems" / "cyclegan.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result))
    title, line, table = report.document(tmp_path / "results", tmp_path).split("\n\n")
    assert title == "#### `cyclegan` on Some CPU"
    assert line.startswith("1 threads on 2 cores of Some CPU (AVX2)")
    assert line.endswith(
        "commit 0123456789, 2001-01-01 00:00 UTC ([all figures](results/some-cpu/systems/cyclegan.json))."
    )
    header, _, cells = table.splitlines()
    assert header.count("|") == cells.count("|")
    # 8 pictures in 100 ms are 80 a second, 250 ms are 2.5 times as long, 60.4 of 100 ms are convolutions
    assert cells == "| translation, 128 px, 8 at once | bf16 | 100 ms | 80 | 250 ms | 2.50x | 60 ms (60 %) |"


def test_a_system_is_measured_against_the_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench_cyclegan.measure(32, "fp32", torch.device("cpu"), seconds=0.05, blocks=1, width=8)
    assert [(row["work"], row["images"]) for row in rows] == [
        ("training step", 1),
        ("translation", 1),
        ("translation", 8),
    ]
    for row in rows:
        ours, plain = row["ms"]["anifast"], row["ms"]["plain"]
        assert min(*ours[:3], *plain[:3], row["convolutions_ms"]) > 0 and ours[3] == plain[3] >= 7
        assert ours[2] <= ours[0] <= ours[1]
    assert len(capsys.readouterr().out.splitlines()) == 3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_the_plain_networks_are_the_same_as_ours(kind: str) -> None:
    """As many parameters, and with the same weights the same result.

    In float64 they agree to less than half a unit in the last place of float32 at 1, so that in float32 nothing but
    rounding is between them.
    """
    config = make("reference", {"blocks": 2, "width": 4, "d_width": 4})
    if kind == "generator":
        ours, plain = build_generator(config).double(), bench_cyclegan.plain_generator(2, 4).double()
    else:
        ours, plain = build_discriminator(config).double(), bench_cyclegan.plain_discriminator(4).double()
    weights, source = ours.state_dict(), torch.Generator().manual_seed(0)
    for value in weights.values():
        value.copy_(torch.randn(value.shape, generator=source) * 0.1)
    assert sum(p.numel() for p in plain.parameters()) == sum(value.numel() for value in weights.values())
    assert [p.shape for p in plain.parameters()] == [value.shape for value in weights.values()]
    plain.load_state_dict(dict(zip(plain.state_dict(), weights.values(), strict=True)))
    images = (torch.rand(2, 3, 32, 32, generator=source) * 2 - 1).double()
    found, expected = ours(images), plain(images)
    assert found.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=2**-24, atol=2**-24)


@pytest.fixture
def tiny_generator() -> Generator:
    torch.manual_seed(0)
    net = Generator(16, 512, 2, base_channels=8).double()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return net


def test_the_vendored_generator_is_ours(tiny_generator: Generator) -> None:
    """Image, gradients and the second gradients of path length, in float64 (see the plain networks above)."""
    state, z = tiny_generator.state_dict(keep_vars=True), torch.randn(3, 512, dtype=torch.float64)
    parameters = [value for value in state.values() if value.requires_grad]
    assert len(parameters) == len(list(tiny_generator.parameters()))
    found = []
    for image, latents in (
        tiny_generator([z], return_latents=True, randomize_noise=False),
        bench_stylegan2.vendored(state, z),
    ):
        assert image.shape == (3, 3, 16, 16) and latents is not None and latents.shape == (3, 6, 512)
        loss = (image * image.detach().sin()).sum()
        first = torch.autograd.grad(loss, parameters, retain_graph=True)
        (slope,) = torch.autograd.grad(image.square().sum(), latents, create_graph=True)
        second = torch.autograd.grad(slope.square().sum(), parameters, allow_unused=True, materialize_grads=True)
        found.append([image.detach(), *first, *second])
    for ours, vendored in zip(*found, strict=True):
        scale = float(vendored.abs().max())
        torch.testing.assert_close(ours, vendored, rtol=2**-24, atol=2**-24 * scale)
    assert found[0][0].std() > 0.05


def test_a_generator_is_measured_against_the_vendored_one(
    product: timing.MatrixProduct, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_stylegan2, "Generator", functools.partial(Generator, base_channels=8))
    channels = {side: min(8, count) for side, count in CONFIG_F.items()}
    rows = bench_stylegan2.measure(
        16, "fp32", torch.device("cpu"), 0.02, ((1, 2), 2, 1), channels=channels, copied=2**16
    )
    expected = [("forward", 1), ("forward", 2), ("forward + backward", 2), ("path length step", 1)]
    assert [(row["work"], row["images"]) for row in rows] == expected
    layers = stylegan2_layers("generator", {4: 8, 8: 8, 16: 8}, noise=True)
    for row in rows:
        ours, plain = row["ms"]["anifast"], row["ms"]["plain"]
        assert min(*ours[:3], *plain[:3], row["convolutions_ms"]) > 0 and ours[3] == plain[3] >= 7
        least = sum(
            modulated_layers.operations(use, row["images"], bench_stylegan2.WORKS[row["work"]]) for use in layers
        )
        assert row["roofline_ms"] >= least / product.rate * 1e3 - 1e-4
    assert "kept" not in rows[0] and rows[2]["kept"]["plain"] > rows[2]["kept"]["anifast"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    about = {"cpu": "Some CPU", "cores": 2, "threads": 1, "cpu_capability": "AVX2", "build": {"isa": "avx2"}}
    about |= {"settings": {}, "torch": "2.13.0", "commit": None, "uncommitted_changes": False, "date": "2001-01-01"}
    rows[0]["aim"] = 1.5
    text = report.system_section(
        {"system": "stylegan2", "rival": bench_stylegan2.RIVAL, "environment": about, "rows": rows}, "file"
    )
    header, _, first, _, third, _ = text.splitlines()[-6:]
    assert bench_stylegan2.RIVAL in header and "kept for backward" in header
    assert header.count("|") == first.count("|") == third.count("|")
    assert "(aim 1.5x)" in first and "MiB" not in first and "aim" not in third and third.count("MiB") == 4


def test_a_wrong_image_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_stylegan2, "Generator", functools.partial(Generator, base_channels=8))
    pair = bench_stylegan2.Pair(16, torch.device("cpu"), "fp32", 2, 2)
    pair.check()
    right = pair.networks["anifast"]
    for wrong in (1 + 1e-4, float("nan")):
        pair.networks["anifast"] = lambda z, wrong=wrong: (right(z)[0] * wrong, z)  # type: ignore[misc]
        with pytest.raises(bench_stylegan2.WrongImage, match="16 px, fp32"):
            pair.check()


@pytest.fixture(scope="module")
def perceptual() -> list[bench_lpips.Pair]:
    """LPIPS and the style vector beside their rivals, at the smallest size."""
    return bench_lpips.pairs(16, torch.device("cpu"), "fp32", 2)


def test_lpips_is_measured_against_the_formula(
    perceptual: list[bench_lpips.Pair],
    product: timing.MatrixProduct,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_lpips, "pairs", lambda *_: perceptual)
    monkeypatch.setattr(bench_lpips, "convolutions_alone", lambda *_: (0.25, 0.5))
    rows = bench_lpips.measure(16, "fp32", torch.device("cpu"), 0.0, 2)
    assert [row["work"] for row in rows] == list(bench_lpips.PASSES)
    # forward of both images and backward of one; with a frozen target of one
    assert [row["convolutions_ms"] for row in rows] == [500.0, 1000.0, 750.0, 250.0, 250.0]
    for row in rows:
        ours, plain = row["ms"]["anifast"], row["ms"]["plain"]
        assert min(*ours[:3], *plain[:3]) > 0 and ours[3] == plain[3] >= 7
        assert ("kept" in row) == ("backward" in row["work"]) and min(row["peak"].values()) > 0 and "aim" not in row
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net = perceptual[0].plain.net
        net(perceptual[0].inputs[0])
    assert rows[0]["roofline_ms"] == pytest.approx(2 * counter.get_total_flops() / product.rate * 1e3, abs=1e-4)
    assert counter.get_total_flops() == bench_lpips.operations(net, 16, 2)
    # a frozen target's features are memory of ours too; the rival keeps its own maps of both images
    features = sum(x.nbytes for x in perceptual[0].ours[bench_lpips.FROZEN].features(perceptual[0].inputs[1]).maps)
    frozen, backward = (rows[i]["kept"] for i in (2, 1))
    assert features < frozen["anifast"] <= backward["anifast"] + features and backward["anifast"] <= backward["plain"]
    without, _ = timing.memory(perceptual[0].call(bench_lpips.FROZEN, "anifast"), "cpu")
    assert rows[2]["peak"]["anifast"] == without + features
    assert len(capsys.readouterr().out.splitlines()) == 5
    about = {"cpu": "Some CPU", "cores": 2, "threads": 1, "cpu_capability": "AVX2", "build": {"isa": "avx2"}}
    about |= {"settings": {}, "torch": "2.13.0", "commit": None, "uncommitted_changes": False, "date": "2001-01-01"}
    rows[1]["aim"] = 1.25
    text = report.system_section(
        {"system": "lpips", "rival": bench_lpips.RIVAL, "environment": about, "rows": rows}, "file"
    )
    assert "(aim 1.25x)" in text and bench_lpips.RIVAL in text


@pytest.mark.parametrize("slower", ["plain", "plain in bf16, channels_last"])
def test_the_faster_rival_of_lpips_counts(slower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = bench_lpips.pairs(16, torch.device("cpu"), "bf16", 1)
    for pair in pairs:
        first, other = (pair.rivals[name].net.features[0].weight for name in pair.rivals)
        assert first.dtype == torch.float32 and other.dtype == torch.bfloat16
        assert other.is_contiguous(memory_format=torch.channels_last)
        pair.check()
    monkeypatch.setattr(bench_lpips, "pairs", lambda *_: pairs)
    monkeypatch.setattr(bench_lpips, "convolutions_alone", lambda *_: (0.25, 0.5))
    times = {name: timing.Timing(*[2.0 if name == slower else 1.0] * 3, 7) for name in ("anifast", *pairs[0].rivals)}
    monkeypatch.setattr(bench_lpips, "interleave", lambda calls, *_, **__: {name: times[name] for name in calls})
    monkeypatch.setattr(timing.MatrixProduct, "measure", lambda *_: timing.MatrixProduct(1, times["anifast"]))
    for row in bench_lpips.measure(16, "bf16", torch.device("cpu"), 0.0, 1):
        assert row["ms"]["plain"][0] == 1000.0
        assert row["rivals_ms"] == {name: 2000.0 if name == slower else 1000.0 for name in pairs[0].rivals}


def test_lpips_has_a_rival_in_channels_last() -> None:
    plain = bench_lpips.PlainDistance()
    (other,) = bench_lpips.other_rivals(plain, "tf32").values()
    weight = other.net.features[2].weight
    assert weight.dtype == torch.float32 and weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(2, 1, 3, 16, 16)
    maps = other.net(images[0])
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    torch.testing.assert_close(other(*images), plain(*images))


def test_the_convolutions_of_a_vgg_are_timed_by_themselves(perceptual: list[bench_lpips.Pair]) -> None:
    images, net = perceptual[0].inputs[0], perceptual[0].plain.net
    counted: list[int] = []

    def clock(call: Callable[[], Any], repeat: int) -> float:
        with FlopCounterMode(display=False) as counter:
            call()
        counted.append(counter.get_total_flops())
        return 1.0

    clock.shortest = 0.0  # type: ignore[attr-defined]
    found = bench_lpips.convolutions_alone(net, images, "fp32", clock, 0.0)  # type: ignore[arg-type]
    assert found == (13.0, 13.0)
    # each is called equally often, forward and backward, which take as much
    per_pass = bench_lpips.operations(net, 16, 2)
    assert sum(counted) == len(counted) / 26 * 2 * per_pass


class _Scaled:
    """A network whose result, or whose gradient alone, is some times too large."""

    def __init__(self, net: Any, factor: float, of_gradient: float = 1.0) -> None:
        self.net, self.factor, self.of_gradient = net, factor, of_gradient
        self.features = getattr(net, "features", None)

    def __call__(self, images: Tensor, *others: Any) -> Tensor:
        fixed = images.detach()
        return self.net(fixed + self.of_gradient * (images - fixed), *others) * self.factor


def test_a_wrong_distance_or_style_vector_is_not_timed(
    perceptual: list[bench_lpips.Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pair in perceptual:
        pair.check()
        for work, right in pair.ours.items():
            for wrong in (1.001, float("nan")):
                monkeypatch.setitem(pair.ours, work, _Scaled(right, wrong))
                with pytest.raises(WrongResult, match="result: relative error"):
                    pair.check()
            if bench_lpips.PASSES[work][1]:
                monkeypatch.setitem(pair.ours, work, _Scaled(right, 1.0, of_gradient=1.1))
                with pytest.raises(WrongResult, match="gradient: relative error"):
                    pair.check()
            monkeypatch.setitem(pair.ours, work, right)


AUTHORS_MODEL = """
import torchvision
from torchvision import transforms
from op import LOADED_FROM
from anifast.systems.gnr import networks

channels = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}

class Generator(networks.Generator):
    def __init__(self, size, num_down, latent_dim, n_mlp, n_res, channel_multiplier=1, lr_mlp=0.01):
        assert channel_multiplier == 1 and channels[64] * 2 == channels[32]
        super().__init__(size, num_down, latent_dim, n_mlp, n_res, lr_mlp, channels[4] / 512)

class Discriminator(networks.Discriminator):
    def __init__(self, size):
        super().__init__(size, channels[4] / 512, "v1")

class LatDiscriminator(networks.LatentDiscriminator):
    def forward(self, x):
        return [super().forward(x)]
"""


@pytest.fixture(scope="module")
def authors_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What bench_gnr needs of the authors' repository, with our networks under their names."""
    root = tmp_path_factory.mktemp("authors")
    (root / "model.py").write_text(AUTHORS_MODEL)
    (root / "op").mkdir()
    (root / "op" / "__init__.py").write_text("LOADED_FROM = __file__\n")
    return root


def tiny_gnr(**values: Any) -> gnr_config.Config:
    tiny = {"size": 64, "batch": 2, "channel_multiplier": 1 / 64, "lpips_net": "none"}
    return gnr_config.make("main", {**tiny, **values})


@pytest.fixture(scope="module")
def gnr_sides(authors_checkout: Path) -> bench_gnr.Sides:
    return bench_gnr.Sides(tiny_gnr(), torch.device("cpu"), authors_checkout)


def test_a_checkout_is_imported_and_leaves_nothing_behind(
    authors_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = types.ModuleType("op")
    monkeypatch.setitem(sys.modules, "op", other)
    path, finders, before = list(sys.path), list(sys.meta_path), set(sys.modules)
    first, second = (_authors_gnr.load_model(authors_checkout) for _ in range(2))
    assert first is not second and first.LOADED_FROM == str(authors_checkout / "op" / "__init__.py")
    assert sys.modules["op"] is other and (sys.path, sys.meta_path) == (path, finders)
    if "torchvision" not in before and importlib.util.find_spec("torchvision") is None:
        assert first.torchvision is not None
        assert set(sys.modules) == before  # the empty packages are gone too


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.py": ""}, "no op/__init__.py; expected a checkout of https://github.com/mchong6/GANsNRoses"),
        ({"op/__init__.py": "", "model.py": "import no_such_package"}, "No module named 'no_such_package'"),
        ({"op/__init__.py": "raise OSError('no CUDA')", "model.py": "import op"}, "OSError: no CUDA"),
    ],
)
def test_a_checkout_that_cannot_be_used_is_one_clear_error(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    path, finders, before = list(sys.path), list(sys.meta_path), set(sys.modules)
    with pytest.raises(AnifastError, match=re.escape(said)):
        _authors_gnr.load_model(tmp_path)
    assert (sys.path, sys.meta_path) == (path, finders) and set(sys.modules) == before


def test_networks_of_another_version_are_refused(authors_checkout: Path) -> None:
    config = tiny_gnr(discriminator="v1.1")
    nets = gnr_networks.networks(config)
    with pytest.raises(AnifastError, match="not those of this preset.*the branch main is the preset main"):
        _authors_gnr.Authors(_authors_gnr.load_model(authors_checkout), config, nets)


@pytest.mark.parametrize(("preset", "index"), [("main", 0), ("new", 1)])
def test_the_iteration_of_the_authors_is_ours(
    preset: str, index: int, authors_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All gradients of a step with R1 and of one without, in float64 (see the plain networks above).

    Adam's eps of 1 makes updates proportional to gradients, so that rounding stays rounding where those are 0.
    """
    losses = {k: v for k, v in gnr_config.PRESETS[preset].items() if k.startswith(("lambda", "cycle", "style_"))}
    config, cpu = tiny_gnr(batch=3, lr=0.1, **losses), torch.device("cpu")
    ours = GNR(config, cpu)
    bench_gnr.as_after_training(ours.nets.values())
    theirs = _authors_gnr.Authors(_authors_gnr.load_model(authors_checkout), config, ours.nets)
    assert ours.ema is not None
    for name, average in ours.ema.nets.items():
        average.load_state_dict(ours.nets[name].state_dict())
    for net in (*ours.nets.values(), *ours.ema.nets.values(), *theirs.nets.values()):
        net.double()
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # in which losses are computed
    theirs.begin_training()
    for optimizer in (*ours.optimizers.values(), *theirs.optimizers.values()):
        optimizer.param_groups[0]["eps"] = 1.0
    batch = Batch(*(torch.rand(4, 3, 3, 64, 64, dtype=torch.float64) * 2 - 1))
    ours.begin(batch, index * config.batch)
    for name in ("z_a", "z_b"):
        ours._draws[name] = ours._draws[name].double()
    theirs.step(batch, index, ours._draws)
    run_step(ours.phases, index, cpu)
    for kind, optimizer in ours.optimizers.items():
        other = theirs.optimizers[kind]
        states = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
        for own, parameter in zip(states, other.param_groups[0]["params"], strict=True):
            expected = other.state[parameter]["exp_avg"]  # the gradient: the first beta is 0
            torch.testing.assert_close(own["exp_avg"], expected, rtol=0, atol=2**-24 * float(expected.abs().max()))
    ours.ema.update(config.batch)
    for name, average in theirs.averages.items():
        own = ours.ema.nets[name].state_dict()
        for key, value in average.state_dict().items():
            torch.testing.assert_close(own[key], value, rtol=2**-24, atol=2**-24)
        assert not torch.equal(average.conv1.conv.weight, ours.nets[name].conv1.conv.weight)


def test_gnr_is_measured_against_the_authors(
    authors_checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = bench_gnr.Sides(tiny_gnr(), torch.device("cpu"), authors_checkout)
    taken = {"anifast": 1.0, "authors": 3.0, "reference": 1.5}

    def interleave(calls: dict[str, Any], *_: Any, **__: Any) -> dict[str, timing.Timing]:
        """One call of each, at a time that depends on the name; of each convolution 1 ms."""
        for call in calls.values():
            call()
        return {name: timing.Timing(*[taken.get(name, 1e-3)] * 3, 7) for name in calls}

    counted = bench_gnr.convolutions_alone
    alone: list[float] = []

    def convolutions_alone(*given: Any) -> float:
        alone.append(counted(*given))
        return alone[-1]

    for module in (bench_gnr, _sides):
        monkeypatch.setattr(module, "interleave", interleave)
    monkeypatch.setattr(bench_gnr, "convolutions_alone", convolutions_alone)
    monkeypatch.setattr(bench_gnr, "memory", lambda call, device: (1000, call()))
    monkeypatch.setattr(bench_gnr, "Sides", lambda *_: sides)
    aims = {(bench_gnr.TRANSLATE, 3): 1.5, (bench_gnr.AVERAGE, 2): 2.0}
    rows = bench_gnr.measure(sides.config, torch.device("cpu"), 0.0, (1, 3), Path("there"), aims)
    works = [bench_gnr.TRANSLATE] * 2 + [bench_gnr.R1, bench_gnr.WITHOUT, bench_gnr.WITH, bench_gnr.AVERAGE]
    assert [row["work"] for row in rows] == works and [row["images"] for row in rows] == [1, 3, 2, 2, 2, 2]
    assert [row.get("aim") for row in rows] == [None, 1.5, None, None, None, 2.0]
    # one encoder without its style head has 1 + 3 * 3 + 2 + 2 convolutions, a decoder 2 + 1 + 3 * 2 and 4 to RGB
    assert [round(seconds * 1e3) for seconds in alone[:2]] == [27, 27]
    assert rows[3]["convolutions_ms"] < rows[4]["convolutions_ms"]
    assert rows[5]["convolutions_ms"] == pytest.approx((15 * alone[3] + alone[4]) / 16 * 1e3, abs=1e-3)
    for row in rows:
        assert row["ms"] == {name: [seconds * 1e3] * 3 + [7] for name, seconds in taken.items()}
        assert ("peak" in row) == (row["work"] != bench_gnr.R1) and "peak_aim" not in row
    # networks, the gradients' two moments and a count, and the generators' averages
    nets = sides.system.nets
    sizes = {name: sum(x.numel() for x in net.state_dict().values()) for name, net in nets.items()}
    learned = sum(2 * p.numel() + 1 for net in nets.values() for p in net.parameters())
    held = 4 * (sum(sizes.values()) + learned + sizes["G_A2B"] + sizes["G_B2A"])
    assert rows[3]["peak"] == rows[5]["peak"] == dict.fromkeys(taken, held + 1000)
    assert rows[0]["peak"] == dict.fromkeys(taken, 4 * sizes["G_A2B"] + 1000)  # and those of a translation
    assert all(p.grad is None for p in nets["G_A2B"].parameters())
    rows[5]["peak"]["anifast"] = held // 4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and f"authors   3000.0 ms, 3.00x (aim 1.50x, bound {3 / alone[1]:.2f}x)" in lines[1]
    about = {"cpu": "Some CPU", "cores": 2, "threads": 1, "cpu_capability": "AVX2", "build": {"isa": "avx2"}}
    about |= {"settings": {}, "torch": "2.13.0", "commit": None, "uncommitted_changes": False, "date": "2001-01-01"}
    rows[5]["peak_aim"] = 0.5
    result = {"system": "gnr", "note": "Preset `main`.", "rivals": bench_gnr.RIVALS, "rows": rows}
    title, line, table = report.system_section({**result, "environment": about}, "file").split("\n\n")
    assert title == "#### `gnr` on Some CPU" and line.endswith(" ([all figures](file)). Preset `main`.")
    header, _, *cells = table.splitlines()
    assert len(cells) == 6 and {text.count("|") for text in cells} == {header.count("|")}
    assert header.count("the authors' code") == 2 and header.count("ours on `reference`") == 2
    assert f"| 3000 ms | 3.00x (aim 1.5x, bound {3 / alone[1]:.2f}x) | 1500 ms | 1.50x (bound " in cells[1]
    share = rows[5]["peak"]["anifast"] / rows[5]["peak"]["authors"]
    assert cells[5].endswith(f", {share * 100:.0f} % of the first (aim 50 %) |") and "MiB" not in cells[2]


def test_gnr_is_measured_without_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = bench_gnr.Sides(tiny_gnr(precision="bf16"), torch.device("cpu"), None)
    sides.check()
    assert sides.names == ["anifast", "reference"]
    called: list[str] = []
    monkeypatch.setattr(
        bench_gnr, "interleave", lambda calls, *_, **__: dict.fromkeys(calls, timing.Timing(1, 1, 1, 1))
    )
    monkeypatch.setattr(bench_gnr, "convolutions_alone", lambda call, *_: called.append("once") or 0.5)
    monkeypatch.setattr(bench_gnr, "Sides", lambda *_: sides)
    monkeypatch.setattr(sides, "peak", lambda *_: 1)
    rows = bench_gnr.measure(sides.config, torch.device("cpu"), 0.0, (1,), None, {(bench_gnr.TRANSLATE, 1): 1.5})
    # the penalty is in float32 in every training, so that bf16 has no row of its own
    assert [row["work"] for row in rows] == [bench_gnr.TRANSLATE, bench_gnr.WITHOUT, bench_gnr.WITH, bench_gnr.AVERAGE]
    assert len(called) == 3 and all("aim" not in row and set(row["ms"]) == set(sides.names) for row in rows)


def test_a_wrong_network_of_gnr_is_not_timed(gnr_sides: bench_gnr.Sides) -> None:
    gnr_sides.check()
    faults = [("G_B2A", "to_rgb1.bias", 1e-4), ("D_A", "g_adv.0.bias", 1e-4), ("D_L", "fc.5.bias", math.nan)]
    for name, key, wrong in faults:
        value = dict(gnr_sides.system.nets[name].named_parameters())[key].data
        right = value.clone()
        value += wrong
        with pytest.raises(bench_gnr.WrongResult, match=f"{name}, 64 px, fp32: relative error"):
            gnr_sides.check()
        value.copy_(right)


@pytest.mark.parametrize("what", ["R1 of D_A", "gradients of R1"])
def test_a_wrong_penalty_is_not_timed(what: str, gnr_sides: bench_gnr.Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_gnr.gradient_penalty

    def wrong(scores: list[Tensor], images: Tensor) -> Tensor:
        penalty = right(scores, images)
        return penalty * 1.2 if what == "R1 of D_A" else penalty.detach() + 1.2 * (penalty - penalty.detach())

    monkeypatch.setattr(bench_gnr, "gradient_penalty", wrong)
    with pytest.raises(bench_gnr.WrongResult, match=f"{what}, 64 px"):
        gnr_sides.check()


def test_the_convolutions_of_a_work_are_all_that_it_calls() -> None:
    """Forward, backward and double backward; but not the filters, which have one channel for each of their groups."""
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    weights = [torch.randn(shape, requires_grad=True) for shape in ((6, 4, 3, 3), (6, 5, 3, 3), (1, 5, 1, 1))]

    def work(filtered: bool = False) -> Any:
        y = F.conv2d(x, weights[0], torch.randn(6), stride=2)
        if filtered:
            y = F.conv2d(y, torch.ones(6, 1, 1, 1), groups=6)
        y = F.conv2d(F.conv_transpose2d(y, weights[1], stride=2).square(), weights[2])
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weights)

    with FlopCounterMode(display=False) as counter:
        work()
    cpu, seen = torch.device("cpu"), []
    for filtered in (False, True):
        with _sides.Convolutions() as mode:
            work(filtered)
        seen.append(mode.seen)
    assert seen[0] == seen[1] and any(key[0] for key in seen[0])
    with FlopCounterMode(display=False) as alone:
        for key, count in seen[0].items():
            for _ in range(count):
                _sides.repeated(key, cpu)()
    assert alone.get_total_flops() == counter.get_total_flops() > 0
    transposed = torch.randn(3, 5).t()
    like = _sides.alike((tuple(transposed.shape), transposed.stride(), torch.bfloat16), cpu)
    assert (like.shape, like.stride(), like.dtype) == (transposed.shape, transposed.stride(), torch.bfloat16)


def test_the_command_for_gnr_writes_its_file_or_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(_sides, "steady_allocator", lambda: False)  # which lasts as long as the process
    options = ["--device", "cpu", "--size", "64", "--channel-multiplier", str(1 / 64), "--out", str(tmp_path)]
    assert bench_gnr.main([*options, "--authors", str(tmp_path)]) == 1
    assert f"bench_gnr: error: --authors {tmp_path}: no model.py" in capsys.readouterr().err
    assert bench_gnr.main([*options, "--batch", "1"]) == 1 and "setting batch: 1" in capsys.readouterr().err
    given: list[Any] = []

    def measure(*arguments: Any) -> list[dict[str, Any]]:
        given.append(arguments)
        row = {"work": bench_gnr.TRANSLATE, "size": 64, "precision": "fp32", "images": 1, "convolutions_ms": 60.4}
        return [{**row, "ms": {"anifast": [100.0, 101.0, 99.0, 7], "reference": [250.0, 260.0, 240.0, 7]}}]

    monkeypatch.setattr(bench_gnr, "measure", measure)
    assert bench_gnr.main([*options, "--precision", "fp32", "bf16"]) == 0
    assert [arguments[0].precision for arguments in given] == ["fp32", "bf16"]
    config, _, _, counts, checkout, aims = given[0]
    assert (config.size, config.batch, counts, checkout, aims) == (64, 2, (1, 8), None, {})
    assert bench_gnr.main(["--device", "cpu", "--seconds", "0"]) == 0
    assert given[-1][0].size == 128 and given[-1][5][bench_gnr.AVERAGE, 2] == 2.0
    (path,) = tmp_path.glob("*/systems/gnr.json")
    result = json.loads(path.read_text())
    assert result["rivals"] == {"reference": "ours on `reference`"} and len(result["rows"]) == 2
    assert "authors" not in result
    text = report.document(tmp_path, tmp_path)
    assert f" Preset `main`, 0.015625 times the channels; {bench_gnr.NOTE}\n" in text
    assert "| translate, 64 px, 1 at once | fp32 | 100 ms | 10 | 250 ms | 2.50x (bound 4.14x) | 60 ms (60 %) |" in text


def test_the_command_for_gnr_takes_batches_and_tells_what_it_measured(
    authors_checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(_sides, "steady_allocator", lambda: False)
    options = ["--device", "cpu", "--size", "64", "--channel-multiplier", str(1 / 64), "--out", str(tmp_path)]
    assert bench_gnr.main([*options, "--translate", "2", "0"]) == 1
    assert "bench_gnr: error: --translate 0: at least 1" in capsys.readouterr().err
    assert bench_gnr.main([*options, "--cuda-graphs"]) == 1
    assert "bench_gnr: error: --cuda-graphs needs a GPU" in capsys.readouterr().err
    given: list[Any] = []

    def measure(*arguments: Any) -> list[dict[str, Any]]:
        given.append(arguments)
        row = {"work": bench_gnr.TRANSLATE, "size": 64, "precision": "fp32", "images": 2, "convolutions_ms": 60.4}
        return [{**row, "ms": {"anifast": [100.0, 101.0, 99.0, 7], "authors": [250.0, 260.0, 240.0, 7]}}]

    monkeypatch.setattr(bench_gnr, "measure", measure)
    words = ["--translate", "2", "5", "2", "--cuda-graphs", "--authors", str(authors_checkout)]
    assert bench_gnr.main([*options, *words]) == 0
    assert given[0][0].cuda_graphs and given[0][3] == (2, 5)
    (path,) = tmp_path.glob("*/systems/gnr.json")
    result = json.loads(path.read_text())
    assert result["authors"] == _authors_gnr.describe(authors_checkout)
    assert bench_gnr.GRAPHS_NOTE in result["note"] and "The authors' code: networks v1, sha256 " in result["note"]


@pytest.mark.parametrize("version", ["v1", "v1.1", "v2"])
def test_which_code_of_the_authors_it_is(version: str, tmp_path: Path) -> None:
    generator = "v2" if version == "v2" else "v1"
    text = AUTHORS_MODEL.replace('"v1"', repr(version)).replace(
        "channels[4] / 512)", f"channels[4] / 512, {generator!r})", 1
    )
    root = tmp_path / "authors"
    (root / "op").mkdir(parents=True)
    (root / "model.py").write_text(text)
    (root / "op" / "__init__.py").write_text("LOADED_FROM = __file__\n")
    plain = _authors_gnr.describe(root)
    assert set(plain) == {"version", "sha256"} and plain["version"] == version and len(plain["sha256"]) == 64
    assert _authors_gnr.describe(root) == plain  # whatever importing it has left there
    (root / "op" / "fused.cu").write_text("// kernels\n")
    assert _authors_gnr.describe(root)["sha256"] != plain["sha256"]
    if shutil.which("git") is None:
        pytest.skip("no git")

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", "-C", str(root), *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)  # around it: not its own
    assert "sha256" in _authors_gnr.describe(root)
    git("init", "-q")
    assert "sha256" in _authors_gnr.describe(root)  # nothing is committed
    git("add", "model.py", "op/__init__.py", "op/fused.cu")
    git("commit", "-q", "-m", "all")
    expected = {"version": version, "commit": git("rev-parse", "HEAD"), "uncommitted_changes": False}
    assert _authors_gnr.describe(root) == expected
    (root / "op" / "fused.cu").write_text("// other kernels\n")
    assert _authors_gnr.describe(root) == {**expected, "uncommitted_changes": True}


def test_recorded_iterations_are_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording is played on the CPU: all phases of both kinds of steps are recorded before anything is timed."""
    recorded: list[Any] = []

    def graphs(device: torch.device) -> acceleration.Graphs:
        return acceleration.Graphs(device, lambda work: (recorded.append(1), work(), lambda: None)[2])

    monkeypatch.setattr(bench_gnr, "Graphs", graphs)
    sides = bench_gnr.Sides(tiny_gnr(cuda_graphs=True, r1_every=2), torch.device("cpu"), None)
    assert sides.recorded is not None and sides.recorded is not sides.system
    for name, net in sides.system.nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(sides.recorded.nets[name].state_dict()[key], value)
    before = {name: net.state_dict()["fc.0.weight"].clone() for name, net in sides.system.nets.items() if name == "D_L"}
    without = sides.iteration("anifast", False)
    assert len(recorded) == 3
    regularised = sides.iteration("anifast", True)
    assert len(recorded) == 4  # the penalised phase; translations and generators are repeated
    for call in (without, regularised):
        call()
    assert len(recorded) == 4 and torch.equal(sides.system.nets["D_L"].state_dict()["fc.0.weight"], before["D_L"])
    sides.iteration("reference", False)()
    assert len(recorded) == 4 and not torch.equal(sides.system.nets["D_L"].state_dict()["fc.0.weight"], before["D_L"])
    monkeypatch.setattr(
        bench_gnr, "interleave", lambda calls, *_, **__: dict.fromkeys(calls, timing.Timing(1, 1, 1, 1))
    )
    monkeypatch.setattr(bench_gnr, "convolutions_alone", lambda *_: 0.5)
    monkeypatch.setattr(bench_gnr, "memory", lambda call, device: (1000, None))
    monkeypatch.setattr(bench_gnr, "Sides", lambda *_: sides)
    rows = bench_gnr.measure(sides.config, torch.device("cpu"), 0.0, (1,))
    assert [row["work"] for row in rows if "peak" in row] == [bench_gnr.TRANSLATE]


#: What bench_disentangle needs of the authors' repository: the eager step under their names, with what they log.
AUTHORS_OF_DISENTANGLE = {
    "modules/__init__.py": """
import torch
from torch import nn

class Regularization(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.pre_mean = nn.Parameter(torch.zeros(features))
        self.register_buffer("real_w", torch.ones(()))

    def forward(self, x):
        return x
""",
    "models/__init__.py": """
import modules
from torch import nn
from anifast.systems.disentangle.config import make
from benchmarks.systems import _eager_disentangle as eager

def config(size, features, blocks, content=4):
    assert set(blocks[:-1]) == {"cc"} and blocks[-1] == "f" and len(blocks) == len(features)
    words = ",".join(map(str, features[:-1]))
    return make("paper", {"size": size, "features": words, "fc": features[-1], "content_size": content})

class Encoder(eager.Encoder):
    def __init__(self, width, height, features, blocks, adain_features, adain_blocks, content):
        super().__init__(config(width, features, blocks, content))

class TwoPartNestedDropoutGenerator(eager.Generator):
    def __init__(self, width, height, features, blocks, adain_features, adain_blocks, content, style):
        super().__init__(config(width, features, blocks), content + style)

class ClassifierOrDiscriminator(eager.Trunk):
    def __init__(self, width, height, features, blocks, adain_features, adain_blocks, classes=-1):
        super().__init__(config(width, features, blocks))
        self.fc = nn.Sequential(self.fc[0], modules.Regularization(features[-1]), self.fc[1])
        if classes > 0:
            self.cla = nn.Linear(features[-1], classes)
        else:
            self.dis = nn.Linear(features[-1], 1)

    def forward(self, x):
        h = self.features(x)
        return self.cla(h) if hasattr(self, "cla") else self.dis(h).squeeze(1)

class NormalizedStyleBank(eager.StyleBank):
    def __init__(self, classes, size, frequency):
        super().__init__(frequency, size)
""",
    "utils.py": """
import torch
import torchvision

def one_hot(labels, classes):
    return torch.eye(classes)[labels]

def gaussian_noise(rows, size):
    return torch.randn(rows, size)

def sample_noise(std):
    return gaussian_noise(*std)

def generate_aug_params(rows):
    return torch.rand(rows, 4)
""",
    "datasets.py": """
import torchvision

class ImageFolder(torchvision.datasets.DatasetFolder):
    pass
""",
    "trainers/__init__.py": """
import dataclasses
import torch
import torchvision.transforms as T
from anifast.systems.disentangle.config import make
from benchmarks.systems import _eager_disentangle as eager
from datasets import ImageFolder

NAMES = {"enc": "E", "gen": "G", "sty": "S", "dis": "D"}

class Trainer:
    def __init__(self, options):
        raise AssertionError("reads data and writes folders")

    def eager(self, cla, frequency):
        one = object.__new__(eager.Eager)
        one.config = dataclasses.replace(
            make("paper"), adv_cap=True, nlu_form="eps", warm_up=self.lr_ramp, lambda_kl_style=self.sty_weight,
            **({"lambda_c1": self.cla_weight, "lambda_kl_content": self.con_weight} if cla == "C1" else {}),
        )
        names = {**NAMES, "cla": cla}
        one.device, one.precision, one.dtype, one.frequency = self.device, "fp32", torch.float32, frequency
        one.nets = {own: getattr(self, name) for name, own in names.items() if hasattr(self, name)}
        one.optimizers = {
            own: getattr(self, name + "_optim") for name, own in names.items() if hasattr(self, name + "_optim")
        }
        one.rates = {name: self.sty_lr if name == "S" else self.lr for name in one.optimizers}
        one.steps = self.state.iter - 1
        one.keep_content, one.keep_style = self.con_drop_prob, self.sty_drop_prob
        return one

    def tell(self, losses, names):
        print("Iteration", self.state.iter)
        for own, name in names.items():
            self.logs.setdefault(name, []).append((self.state.iter, losses[own].item()))

def as_bytes(images):
    return torch.cat([(images[:, :3] + 1) * 127.5, images[:, 3:] * 255], 1).round().to(torch.uint8)
""",
    "trainers/stage1.py": """
import torch
from utils import *
from . import Trainer, as_bytes

class Stage1Trainer(Trainer):
    def iter_func(self):
        images, weights, ones = self.next_batch()
        draws = {"content_level": torch.rand(self.batch_size), "style_level": torch.rand(self.batch_size)}
        sizes = {"content": len(self.con_drop_prob), "style": len(self.sty_drop_prob)}
        draws |= {name: sample_noise((self.batch_size, size)) for name, size in sizes.items()}
        losses = self.eager("C1", self.class_freq).stage1(as_bytes(images), ones.argmax(1), draws)
        names = {"rec": "rec", "rec_other": "rec-shift", "c1": "cla", "kl_content": "con", "kl_style": "sty"}
        self.tell(losses, names)
""",
    "trainers/stage2.py": """
import torch
from utils import *
from . import Trainer, as_bytes

class Stage2Trainer(Trainer):
    def iter_func(self):
        images, ones, mean, std = self.next_batch()
        draws = {"content": sample_noise(std.shape)}
        generate_aug_params(self.batch_size)
        draws["style_level"] = torch.rand(self.batch_size)
        draws["style"] = sample_noise((self.batch_size, len(self.sty_drop_prob)))
        one = self.eager("C2", self.sty.class_freq)
        one.statistics = {"std": self.con_full_std, "weight": self.dim_weight}
        self.enc.requires_grad_(False)
        losses = one.stage2(as_bytes(images), ones.argmax(1), mean, std, draws)
        names = {"d_real": "dis-real", "d_fake": "dis-fake", "c2_real": "cla-real", "c2_fake": "cla-fake"}
        self.tell(losses, names | {"g_d": "gen-dis", "g_c2": "gen-cla", "content": "con", "kl_style": "sty"})
""",
}


@pytest.fixture(scope="module")
def authors_of_disentangle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("authors_of_disentangle")
    for name, text in AUTHORS_OF_DISENTANGLE.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def tiny_disentangle(preset: str = "nist_fast", **values: Any) -> disentangle_config.Config:
    tiny = {"batch": 4, "stage2_batch": 4, "content_size": 6, "style_size": 5, "features": "4,6,8", "fc": 16}
    return disentangle_config.make(preset, {**tiny, **({"size": 32} if preset == "small" else {}), **values})


@pytest.mark.parametrize("stage", bench_disentangle.STAGES)
@pytest.mark.parametrize("preset", ["nist_fast", "small"])
def test_the_eager_step_of_the_disentangling_network_is_ours(
    preset: str, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, gradients and weights after three steps, in float64 (see the plain networks above).

    An eps of 1 makes updates proportional to gradients, so that rounding stays rounding where those are 0.
    """
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # in which losses are computed
    rates = {"lr": 0.1, "lr_style": 0.2, "stage2_lr": 0.3, "stage2_lr_style": 0.4, "warm_up": 2}
    sides = bench_disentangle.Sides(tiny_disentangle(preset, **rates), stage, torch.device("cpu"))
    ours, exact = sides.system, sides._exact
    for net in ours.nets.values():
        net.double()
    for optimizer in (*ours.optimizers.values(), *exact.optimizers.values()):
        for group in optimizer.param_groups:
            group["eps"] = 1.0
    sides.batch = disentangle_training.Batch(*(x.double() if x.is_floating_point() else x for x in sides.batch))
    before = {name: copy.deepcopy(net.state_dict()) for name, net in ours.nets.items()}
    for step in range(3):
        ours.begin(sides.batch, step * sides.count)
        draws = ours.draw(ours.inputs()[-1])._asdict()
        found = bench_disentangle._results(ours.nets, sides._ours())
        expected = bench_disentangle._results(exact.nets, sides._run(exact, sides.batch.images, draws))
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=2**-24 * float(value.abs().max()), msg=name)
    for name, net in exact.nets.items():
        moved = False
        for key, value in net.state_dict().items():
            own, was = ours.nets[name].state_dict()[key], before[name][key]
            torch.testing.assert_close(own - was, value - was, rtol=2**-24, atol=2**-24 * float(value.abs().max()))
            moved = moved or not torch.equal(own, was)
        assert moved == (name != "E" or stage == 1)


@pytest.mark.parametrize("stage", bench_disentangle.STAGES)
@pytest.mark.parametrize("preset", ["nist_fast", "small"])
def test_a_wrong_step_of_the_disentangling_network_is_not_timed(
    preset: str, stage: int, authors_of_disentangle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sides() -> bench_disentangle.Sides:
        return bench_disentangle.Sides(tiny_disentangle(preset), stage, torch.device("cpu"), authors_of_disentangle)

    sides().check()
    assert capsys.readouterr().out == ""  # what theirs prints in every step
    faults = [("G", "levels.0.0.residue_ratio", 1e-2), ("S", "pstd", 1e-2), ("E", "mean.bias", math.nan)]
    for name, key, wrong in faults:
        for side in ("anifast", "authors"):
            made = sides()
            assert made.authors is not None
            nets = made.system.nets if side == "anifast" else made.authors.nets
            dict(nets[name].named_parameters())[key].data += wrong
            with pytest.raises(
                (bench_disentangle.WrongResult, FloatingPointError),
                match=rf"{side}, stage {stage}, .*px|not finite|is nan",
            ):
                made.check()


@pytest.mark.parametrize("stage", bench_disentangle.STAGES)
def test_the_disentangling_network_is_measured_against_both(
    stage: int, authors_of_disentangle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"anifast": 4e-3, "eager": 6e-3, "authors": 12e-3}
    sides = bench_disentangle.Sides(tiny_disentangle(), stage, torch.device("cpu"), authors_of_disentangle)

    def interleave(calls: dict[str, Any], *_: Any, **__: Any) -> dict[str, timing.Timing]:
        for call in calls.values():
            call()
        return {name: timing.Timing(*[taken.get(name, 1e-4)] * 3, 7) for name in calls}

    for module in (bench_disentangle, _sides):
        monkeypatch.setattr(module, "interleave", interleave)
    monkeypatch.setattr(bench_disentangle, "memory", lambda call, device: (1000, call()))
    monkeypatch.setattr(bench_disentangle, "Sides", lambda *_: sides)
    row = bench_disentangle.measure(
        "nist_fast", sides.config, stage, sides.device, 0.0, Path("there"), {(stage, 4): 1.4}
    )
    assert row["ms"] == {name: [seconds * 1e3] * 3 + [7] for name, seconds in taken.items()} and row["aim"] == 1.4
    # Each network has 9 convolutions, with one call each on the way back. A product has two there, or one where weights
    # learn nothing: stage 1: E 3, G 2, C1 2; stage 2: G 2, D 1 (its head gives one number), C2 2, and then D 1, C2 2, E
    # 3, of which one is not used.
    expected = {1: 2 * 27 + 3 * 7, 2: 2 * 54 + 3 * 5 + 2 * (1 + 2 + 3) - 1}
    assert round(row["convolutions_ms"] * 10) == expected[stage]
    for name, nets, optimizers in (
        ("anifast", sides.system.nets, sides.system.optimizers),
        ("eager", sides.eager.nets, sides.eager.optimizers),
    ):
        held = sum(x.nbytes for net in nets.values() for x in net.state_dict().values())
        moments = sum(x.nbytes for one in optimizers.values() for state in one.state.values() for x in state.values())
        assert row["peak"][name] == held + moments + 1000 and moments > 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "anifast     4.00 ms (250 it/s, +0 %)  eager     6.00 ms (166.7 it/s), 1.50x (aim 1.40x, bound " in line
    about = {"cpu": "Some CPU", "cores": 2, "threads": 1, "cpu_capability": "AVX2", "build": {"isa": "avx2"}}
    about |= {"settings": {}, "torch": "2.13.0", "commit": None, "uncommitted_changes": False, "date": "2001-01-01"}
    result = {"system": "disentangle", "note": "Widths.", "rivals": bench_disentangle.RIVALS, "rows": [row]}
    table = report.system_section({**result, "environment": about}, "file").split("\n\n")[2]
    start = (
        f"| stage {stage} of nist_fast, 28 px, 4 at once | fp32 | 4.00 ms | 1000 | 6.00 ms | 1.50x (aim 1.4x, bound "
    )
    assert start in table and "| 12 ms | 3.00x (bound " in table
    assert f"| {'7.50' if stage == 1 else '13'} ms (" in table


@pytest.mark.parametrize("stage", bench_disentangle.STAGES)
def test_the_products_of_a_step_are_all_that_it_calls(stage: int) -> None:
    sides = bench_disentangle.Sides(tiny_disentangle("small"), stage, torch.device("cpu"))
    with bench_disentangle.use_backend("reference"), _sides.Products() as mode:
        sides.step("anifast")()

    def flops(call: Callable[[], Any]) -> tuple[int, int]:
        """Of convolutions and of matrix products."""
        with bench_disentangle.use_backend("reference"), FlopCounterMode(display=False) as counter:
            call()
        found = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
        convolutions = sum(count for op, count in found.items() if "convolution" in op)
        return convolutions, sum(found.values()) - convolutions

    def each() -> None:
        for key, count in mode.seen.items():
            for _ in range(count):
                _sides.repeated(key, sides.device)()

    alone, ours, eager = flops(each), flops(sides.step("anifast")), flops(sides.step("eager"))
    assert alone[0] == ours[0] > 0
    # What is not counted is the bank's: 1139 artists' styles, and D's head.
    assert 0 < alone[1] < ours[1] <= alone[1] + 2 * (12 * 1139 * 5 + 5 * 8 * 16)
    # The eager step of stage 1 asks C1 once more for the gradient of what it sees; that of stage 2 convolves the same.
    assert eager[0] == ours[0] if stage == 2 else ours[0] < eager[0] < 1.15 * ours[0]


def test_recorded_steps_of_the_disentangling_network_are_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording is played on the CPU: all phases are recorded before anything is timed, and after the comparison."""
    recorded: list[Any] = []

    def graphs(device: torch.device) -> acceleration.Graphs:
        return acceleration.Graphs(device, lambda work: (recorded.append(1), work(), lambda: None)[2])

    monkeypatch.setattr(bench_disentangle, "Graphs", graphs)
    for stage, phases in ((1, 1), (2, 3)):
        sides = bench_disentangle.Sides(tiny_disentangle(cuda_graphs=True), stage, torch.device("cpu"))
        recorded.clear()
        sides.check()
        assert not recorded
        sides.record()
        assert len(recorded) == phases
        for name in sides.names:
            sides.step(name)()
        assert len(recorded) == phases


def test_the_command_for_the_disentangling_network_writes_its_file_or_one_clear_error(
    authors_of_disentangle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(_sides, "steady_allocator", lambda: False)  # which lasts as long as the process
    options = ["--device", "cpu", "--channel-multiplier", str(1 / 16), "--preset", "nist", "--out", str(tmp_path)]

    def error(*words: str) -> str:
        assert bench_disentangle.main([*options, *words]) == 1
        return capsys.readouterr().err

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("")
    assert f"bench_disentangle: error: --authors {tmp_path}: no modules/__init__.py and no " in error(
        "--authors", str(tmp_path)
    )
    assert "setting batch: 1 has no other artist" in error("--batch", "1")
    assert "setting batch: 540 pictures are more than 539 artists" in error("--batch", "540")
    assert "--cuda-graphs needs a GPU" in error("--cuda-graphs")
    given: list[Any] = []

    def measure(preset: str, *arguments: Any) -> dict[str, Any]:
        given.append((preset, *arguments))
        row = {"work": f"stage {arguments[1]} of {preset}", "size": 28, "precision": "fp32", "images": 8}
        row |= {"ms": {"anifast": [1.0, 1.1, 0.9, 7], "eager": [2.0, 2.1, 1.9, 7], "authors": [3.0, 3.1, 2.9, 7]}}
        return {**row, "convolutions_ms": 0.5, "peak": {"anifast": 2**20, "eager": 2**21, "authors": 2**22}}

    monkeypatch.setattr(bench_disentangle, "measure", measure)
    assert bench_disentangle.main([*options, "--stage", "2", "--batch", "5"]) == 0
    ((preset, config, stage, _, _, checkout, aims),) = given
    assert (preset, stage, checkout, aims) == ("nist", 2, None, {})
    assert (config.features, config.fc, config.batch, config.stage2_batch) == ("4,8,16", 32, 5, 5)
    assert not config.cuda_graphs
    given.clear()
    words = ["--device", "cpu", "--out", str(tmp_path), "--authors", str(authors_of_disentangle)]
    assert bench_disentangle.main(words) == 0
    assert [(preset, stage) for preset, _, stage, *_ in given] == [
        (preset, stage) for preset in ("nist_fast", "nist", "small") for stage in (1, 2)
    ]
    assert given[0][-1] == {(1, 64): 1.5} and given[0][1].widths == (64, 128, 256)
    (path,) = tmp_path.glob("*/systems/disentangle.json")
    result = json.loads(path.read_text())
    assert result["rivals"] == bench_disentangle.RIVALS and len(result["rows"]) == 6
    assert result["authors"] == _authors_disentangle.describe(authors_of_disentangle)
    assert f"{bench_disentangle.AUTHORS_NOTE} (sha256 {result['authors']['sha256'][:10]})." in result["note"]
    assert bench_disentangle.NOTE in report.document(tmp_path, tmp_path)


def test_the_authors_of_the_disentangling_network_leave_nothing_behind(
    authors_of_disentangle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "utils", types.ModuleType("utils"))
    state = list(sys.path), list(sys.meta_path), sys.modules["utils"]
    before = set(sys.modules)
    modules = _authors_disentangle.load(authors_of_disentangle)
    assert set(modules) == set(_authors_disentangle.MODULES) and modules["utils"].one_hot is not None
    assert (sys.path, sys.meta_path, sys.modules["utils"]) == state
    if "torchvision" not in before and importlib.util.find_spec("torchvision") is None:
        assert set(sys.modules) == before
    copied = tmp_path / "authors"
    shutil.copytree(authors_of_disentangle, copied, ignore=shutil.ignore_patterns("__pycache__"))
    first = _authors_disentangle.describe(copied)
    assert set(first) == {"sha256"} and first == _authors_disentangle.describe(authors_of_disentangle)
    (copied / "utils.py").write_text("import no_such_package\n")
    assert _authors_disentangle.describe(copied) != first
    with pytest.raises(AnifastError, match="utils cannot be imported .*No module named 'no_such_package'"):
        _authors_disentangle.load(copied)
    with pytest.raises(AnifastError, match="not those of this preset .E: fc.0.weight"):
        config = tiny_disentangle("small")
        frequency = torch.full((1139,), 1 / 1139)
        nets = disentangle_networks.networks(config, frequency, "stage1")
        weights = {name: net.state_dict() for name, net in nets.items()}
        other = tiny_disentangle("small", fc=17)
        _authors_disentangle.Authors(modules, other, frequency, weights, torch.device("cpu"), 4)


#: What bench_blendgan needs of the authors' repository, with our networks under their names.
AUTHORS_OF_BLENDGAN = {
    "op/__init__.py": "",
    "utils.py": """
import torch

def cv2ten(img, device):
    return (torch.from_numpy(img[..., ::-1].copy()).permute(2, 0, 1).float() / 127.5 - 1)[None].to(device)

def ten2cv(image):
    return ((image[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()[..., ::-1]
""",
    "model_encoder.py": """
import torchvision.models.vgg as vgg
from torch import nn
from anifast.systems.blendgan import networks

print("running on cpu")
VGG19 = vgg.vgg19

class StyleEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        own = networks.StyleEncoder("random", 32, 16, 4, folded=False)
        self.embedder = nn.Module()
        self.embedder.feature_extractor = nn.Module()
        self.embedder.feature_extractor.vgg_layers = own.embedder.net.features
        self.embedder_mlp = own.embedder_mlp
        self.__dict__["own"] = own

    def forward(self, images):
        return self.own(images)
""",
    "model.py": """
import op
import torch
from anifast.systems.blendgan import networks
from model_encoder import VGG19, StyleEncoder

class Generator(networks.Generator):
    def __init__(self, size, style_dim, n_mlp, channel_multiplier=2, load_pretrained_vgg=True):
        assert not load_pretrained_vgg and isinstance(channel_multiplier, int)
        super().__init__(size, style_dim, n_mlp, channel_multiplier, base_channels=8)
        self.embedder = StyleEncoder()

    def get_z_embed(self, images):
        with torch.no_grad():
            return self.embedder(images)

    def forward(self, styles, z_embed=None, add_weight_index=None, **how):
        return super().forward(styles, z_embed, add_weight_index, **how)
""",
    "psp_encoder/__init__.py": "",
    "psp_encoder/psp_encoders.py": """
from torch import nn
from anifast.systems.blendgan import psp
from model import Generator

class GradualStyleEncoder(psp.PSPEncoder):
    def __init__(self, num_layers, mode, n_styles):
        assert (num_layers, mode) == (50, "ir_se")
        super().__init__(n_styles)
        del self._buffers["latent_avg"]

    def forward(self, images):
        return self.offsets(images)

class PSPEncoder(nn.Module):
    def __init__(self, path):
        raise AssertionError("reads a file")

    def forward(self, images):
        return self.encoder(self.face_pool(images)) + self.latent_avg.repeat(len(images), 1, 1)
""",
}


@pytest.fixture(scope="module")
def authors_of_blendgan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("authors_of_blendgan")
    for name, text in AUTHORS_OF_BLENDGAN.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


def tiny_blendgan(**values: Any) -> blendgan_config.Config:
    tiny = {"size": 64, "base_channels": 8, "style_dim": 16, "n_mlp": 2, "backbone": "random", "style_side": 32}
    tiny |= {"psp_side": 32, "psp_iterations": 0, "batch": 2, "lpips_net": "none"}
    return blendgan_config.make(None, {**tiny, **values})


@pytest.fixture
def narrow_psp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos' encoders of 16 channels behind the first layer, and codes of 16 numbers."""
    narrow = tuple((16, count) for _, count in psp.GROUPS)
    for module in (psp, blendgan_inference):
        monkeypatch.setattr(module, "GROUPS", narrow)


def sides_of_blendgan(checkout: Path | None, *works: str, **values: Any) -> bench_blendgan.Sides:
    return bench_blendgan.Sides(tiny_blendgan(**values), torch.device("cpu"), works, checkout)


def test_blendgan_is_measured_against_the_authors(
    authors_of_blendgan: Path, narrow_psp: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"anifast": 1.0, "authors": 3.0, "reference": 1.5}
    sides = sides_of_blendgan(authors_of_blendgan, *bench_blendgan.WORKS)

    def interleave(calls: dict[str, Any], *_: Any, **__: Any) -> dict[str, timing.Timing]:
        for call in calls.values():
            call()
        return {name: timing.Timing(*[taken.get(name, 1e-3)] * 3, 7) for name in calls}

    for module in (bench_blendgan, _sides):
        monkeypatch.setattr(module, "interleave", interleave)
    monkeypatch.setattr(bench_blendgan, "memory", lambda call, device: (1000, call()))
    monkeypatch.setattr(bench_blendgan, "Sides", lambda *_: sides)
    pairs, average = (bench_blendgan.PAIRS, 64, 2), (bench_blendgan.AVERAGE, 64, 2)
    aims = {pairs: 2.0, average: 1.2}
    batches = bench_blendgan.Batches((3,), (2,), (1,), (1,), {64: 2}, 2, 3, 2)
    rates = _sides.Rates({torch.float32: 1e9}, 1e9)
    rows = bench_blendgan.measure(
        sides.config, sides.device, 0.0, bench_blendgan.WORKS, batches, authors_of_blendgan, rates, aims, {pairs: 2.5}
    )
    b = bench_blendgan
    works = [b.FORWARD, b.PAIRS, b.FULL, b.FOLDED, b.PSP, b.transfer_of(2, 3), b.PLAIN, b.PATH, b.BOTH, b.AVERAGE]
    assert [row["work"] for row in rows] == works
    assert [row["images"] for row in rows] == [3, 2, 1, 1, 1, 6, 2, 2, 2, 2]
    assert [row["size"] for row in rows] == [64, 64, 32, 32, 32, *[64] * 5]
    for row in rows[:6]:
        factor = 3 if "transfer" in row["work"] else 1  # 2 of 6 pairs
        expected = {name: [1e3 * seconds] * 3 + [7] for name, seconds in taken.items()}
        expected["authors"] = [3e3 * factor] * 3 + [7]
        assert row["ms"] == expected and set(row["peak"]) == set(taken)
    for row in rows[6:]:
        assert set(row["ms"]) == {"anifast", "reference"} and "peak" not in row
    for key in ("convolutions_ms", "roofline_ms"):
        plain, path, both, mean = (row[key] for row in rows[6:])
        assert plain < path < both and mean == pytest.approx((12 * plain + 3 * path + both) / 16, abs=2e-3)
    assert all(row["convolutions_ms"] > 0 and row["roofline_ms"] > 0 for row in rows)
    # a pair is two pictures; the folded form has half of the columns
    assert rows[1]["convolutions_ms"] == rows[0]["convolutions_ms"]
    assert rows[1]["aim"] == 2.0 and rows[1]["aimed"] == "authors" and rows[1]["roofline_aim"] == 2.5
    assert rows[9]["aim"] == 1.2 and not any("aim" in row for row in (rows[0], *rows[2:9]))
    first = sides.weights["E_style"]["embedder_mlp.0.weight"]
    less = 4 * 16 * (610304 - 305888)
    assert first.shape[1] == 610304 and rows[2]["peak"]["anifast"] - rows[3]["peak"]["anifast"] == less
    assert rows[2]["peak"]["authors"] == rows[3]["peak"]["authors"] == rows[2]["peak"]["anifast"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and "authors   3000.0 ms, 3.00x (aim 2.00x, bound " in lines[1]
    assert "reference   1500.0 ms, 1.50x (aim 1.20x, bound " in lines[9]
    about = {"cpu": "Some CPU", "cores": 2, "threads": 1, "cpu_capability": "AVX2", "build": {"isa": "avx2"}}
    about |= {"settings": {}, "torch": "2.13.0", "commit": None, "uncommitted_changes": False, "date": "2001-01-01"}
    result = {"system": "blendgan", "note": "Notes.", "rivals": b.RIVALS, "rows": rows, "environment": about}
    header, _, *cells = report.system_section(result, "file").split("\n\n")[2].splitlines()
    assert len(cells) == 10 and {text.count("|") for text in cells} == {header.count("|")}
    assert "| 3000 ms | 3.00x (aim 2.0x, bound " in cells[1] and "times (aim 2.5) |" in cells[1]
    assert "| – | – | 1500 ms | 1.50x (aim 1.2x, bound " in cells[9]


def test_peaks_of_a_training_iteration_count_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = sides_of_blendgan(None, "training")
    monkeypatch.setattr(bench_blendgan, "memory", lambda call, device: (1000, call()))
    system = sides.begin_training()
    peak = sides.peak("anifast", sides.iteration("anifast", 0))
    assert system.ema is not None
    sizes = {name: sum(x.nbytes for x in net.state_dict().values()) for name, net in system.nets.items()}
    moments = sum(8 * p.numel() + 4 for net in system.nets.values() for p in net.parameters())
    averages = sum(x.nbytes for x in system.ema.nets["G"].state_dict().values())
    assert peak == sum(sizes.values()) + moments + averages + 1000
    assert all(p.grad is None for net in system.nets.values() for p in net.parameters())


def test_folder_transfer_gives_what_the_authors_program_gives(authors_of_blendgan: Path, narrow_psp: None) -> None:
    sides = sides_of_blendgan(authors_of_blendgan, "transfer")
    ours, theirs = (sides.transfer(name, 2, 3)() for name in ("anifast", "authors"))
    assert ours.shape == (6, 3, 64, 192) and len(theirs) == 6
    expected = torch.stack([torch.from_numpy(one[..., ::-1].copy()).permute(2, 0, 1) for one in theirs])
    assert torch.equal(ours[..., :128], expected[..., :128])  # faces and styles, in this order and these colours
    assert int((ours[..., 128:].int() - expected[..., 128:].int()).abs().max()) <= 1
    assert int(ours[..., 128:].float().std()) > 8
    for sample, count in ((2, 2), (4, 6)):  # whole rows of styles from the second face on
        some = sides.transfer("authors", 2, 3, sample)()
        assert len(some) == count and all((a == b).all() for a, b in zip(some, theirs, strict=False))


def test_a_wrong_network_of_blendgan_is_not_timed(
    authors_of_blendgan: Path, narrow_psp: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = sides_of_blendgan(authors_of_blendgan, "pairs", "style", "psp")
    sides.check()
    for name, what in (("paint", "pair"), ("encode_styles", "style encoder"), ("invert", "pSp")):
        for wrong in (1.001, math.nan):
            right = getattr(sides.model, name)
            with monkeypatch.context() as patch:
                patch.setattr(sides.model, name, lambda *a, of=right, by=wrong, **k: of(*a, **k) * by)
                with pytest.raises(bench_blendgan.WrongResult, match=f"{what}, 64 px, fp32: anifast: relative error"):
                    sides.check()
    assert sides.authors is not None
    monkeypatch.setattr(sides.authors, "encode_styles", lambda images: sides.model.encode_styles(images) * 1.001)
    with pytest.raises(bench_blendgan.WrongResult, match="style encoder, 64 px, fp32: authors: relative error"):
        sides.check()
    halves = sides_of_blendgan(None, "pairs", precision="bf16")
    assert halves.names == ["anifast", "reference"]
    halves.check()


def test_operations_and_bytes_of_what_was_counted() -> None:
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    weights = [torch.randn(shape, requires_grad=True) for shape in ((6, 4, 3, 3), (6, 5, 3, 3), (7, 5))]

    def work() -> Any:
        y = F.conv_transpose2d(F.conv2d(x, weights[0], stride=2), weights[1], stride=2)
        return torch.autograd.grad((y.mean((2, 3)) @ weights[2].t()).square().sum(), [x, *weights])

    with FlopCounterMode(display=False) as counter:
        work()
    with _sides.Products(vectors=True) as mode:
        work()
    costs = {key: _sides.cost(key) for key in mode.seen}
    assert sum(count * costs[key][0] for key, count in mode.seen.items()) == counter.get_total_flops() > 0
    maps = {"x": 2 * 4 * 81, "middle": 2 * 6 * 16, "out": 2 * 5 * 81, "first": 6 * 4 * 9, "second": 6 * 5 * 9}
    one, two = maps["x"] + maps["first"] + maps["middle"], maps["middle"] + maps["second"] + maps["out"]
    product = 2 * 5 + 5 * 7 + 2 * 7
    found = sorted(nbytes for _, nbytes in costs.values())
    assert found == sorted(4 * n for n in (one, 2 * one, two, 2 * two, product, product, product))
    with _sides.Convolutions() as grouped:
        F.conv2d(x.detach(), weights[0][:, :2].detach(), stride=2, groups=2)
    (key,) = grouped.seen
    assert _sides.cost(key) == (2 * maps["middle"] * 2 * 9, 4 * (maps["x"] + maps["first"] // 2 + maps["middle"]))
    rates = _sides.Rates({torch.float32: 1.0}, math.inf)
    assert _sides.roofline(mode.seen, rates) == counter.get_total_flops()
    fast = _sides.Rates({torch.float32: math.inf}, 2.0)
    assert _sides.roofline(mode.seen, fast) == sum(count * costs[key][1] for key, count in mode.seen.items()) / 2


def test_a_checkout_of_blendgan(
    authors_of_blendgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model", types.ModuleType("model"))
    state = list(sys.path), list(sys.meta_path), sys.modules["model"]
    before = set(sys.modules)
    modules = _authors_blendgan.load(authors_of_blendgan)
    assert (sys.path, sys.meta_path, sys.modules["model"]) == state and capsys.readouterr().out == ""
    if "torchvision" not in before and importlib.util.find_spec("torchvision") is None:
        assert set(sys.modules) == before
        layers = modules["model"].VGG19(pretrained=False).features
        own = load_backbone("vgg19", pretrained=False).features
        shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (layers, own)]
        assert shapes[0] == shapes[1]
        assert [type(one) for one in layers] == [type(one) for one in own]
    copied = tmp_path / "authors"
    shutil.copytree(authors_of_blendgan, copied, ignore=shutil.ignore_patterns("__pycache__"))
    first = _authors_blendgan.describe(copied)
    assert set(first) == {"sha256"} and first == _authors_blendgan.describe(authors_of_blendgan)
    (copied / "psp_encoder" / "psp_encoders.py").write_text("import no_such_package\n")
    assert _authors_blendgan.describe(copied) != first
    with pytest.raises(AnifastError, match="cannot be imported .*No module named 'no_such_package'"):
        _authors_blendgan.load(copied)
    (copied / "utils.py").unlink()
    with pytest.raises(AnifastError, match="no utils.py; expected a checkout of https://github.com/onion-liu/BlendGAN"):
        _authors_blendgan.load(copied)
    for values in ({"base_channels": 16}, {"style_mlp": 5}):  # other shapes, and other layers
        with pytest.raises(
            AnifastError, match="--authors: the networks are not BlendGAN's .G: .*(size|embedder_mlp.4)"
        ):
            sides_of_blendgan(authors_of_blendgan, "style", **values)


def test_the_command_for_blendgan_writes_its_file_or_one_clear_error(
    authors_of_blendgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(_sides, "steady_allocator", lambda: False)  # which lasts as long as the process
    rates = _sides.Rates({torch.float32: 1e9}, 1e9)
    monkeypatch.setattr(_sides.Rates, "measure", staticmethod(lambda *_: rates))
    options = ["--device", "cpu", "--seconds", "0", "--out", str(tmp_path)]
    (tmp_path / "op").mkdir()
    assert bench_blendgan.main([*options, "--quick", "--authors", str(tmp_path)]) == 1
    assert f"bench_blendgan: error: --authors {tmp_path}: no model.py and no " in capsys.readouterr().err
    assert bench_blendgan.main([*options, "--quick", "--batch", "0"]) == 1
    assert "bench_blendgan: error: setting batch: 0" in capsys.readouterr().err
    given: list[Any] = []

    def measure(*arguments: Any) -> list[dict[str, Any]]:
        given.append(arguments)
        row = {"work": bench_blendgan.PLAIN, "size": 64, "precision": "fp32", "images": 2, "convolutions_ms": 60.4}
        return [{**row, "ms": {"anifast": [100.0, 101.0, 99.0, 7], "reference": [250.0, 260.0, 240.0, 7]}}]

    monkeypatch.setattr(bench_blendgan, "measure", measure)
    assert bench_blendgan.main([*options, "--quick"]) == 0
    (config, _, _, works, batches, checkout, *_) = given.pop()
    assert (config.size, config.batch, config.base_channels, checkout) == (64, 2, 64, None)
    assert tuple(works) == bench_blendgan.WORKS and batches is bench_blendgan.BATCHES["quick"]
    assert bench_blendgan.main([*options, "--quick", "--authors", str(authors_of_blendgan)]) == 0
    config = given.pop()[0]
    assert (config.base_channels, config.backbone, config.style_side) == (512, "vgg19", 256)
    words = ["--precision", "fp32", "bf16", "--work", "style", "training", "--authors", str(authors_of_blendgan)]
    assert bench_blendgan.main([*options, *words]) == 0
    # what does not depend on the size is measured with the first alone
    assert given[0][7] == bench_blendgan.AIMS["cpu", "fp32"] and given[2][7] == {}
    called = [(c.precision, c.size, c.batch, tuple(works)) for c, _, _, works, *_ in given]
    both, training = ("style", "training"), ("training",)
    assert called == [(p, s, n, w) for p in ("fp32", "bf16") for s, n, w in ((256, 2, both), (1024, 1, training))]
    (path,) = tmp_path.glob("*/systems/blendgan.json")
    result = json.loads(path.read_text())
    assert result["rivals"] == {"reference": "ours on `reference`"} and len(result["rows"]) == 4
    assert result["authors"] == _authors_blendgan.describe(authors_of_blendgan)
    assert f"its time is that of 4 of them, multiplied (sha256 {result['authors']['sha256'][:10]})." in result["note"]
    assert bench_blendgan.NOTE in report.document(tmp_path, tmp_path)


def tiny_twingan(**values: Any) -> twingan_config.Config:
    return twingan_config.make("fast", {"size": 32, "max_channels": 8, "batch": 3, **values})


@pytest.mark.parametrize("stage", ["8", "4to8"])
def test_a_wrong_step_of_twingan_is_not_timed(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = bench_twingan.Sides(tiny_twingan(), stage, torch.device("cpu"))
    sides.check()
    right = sides._system
    for name, key, wrong in (
        ("G", "norms.beta", 1e-3),
        ("E", f"blocks.{sides.side}.0.weight", 1e-3),
        ("D_t", "out.bias", 1e-3),
        ("D_s", "head.0.bias", math.nan),
    ):

        def faulty(side: str, net: str = name, key: str = key, wrong: float = wrong, **changes: Any) -> Any:
            system = right(side, **changes)
            if side == "anifast":
                system.nets[net].get_parameter(key).data += wrong
            return system

        monkeypatch.setattr(sides, "_system", faulty)
        with pytest.raises(
            (bench_twingan.WrongResult, FloatingPointError), match=rf"phase {stage}, fp32|not finite|nan"
        ):
            sides.check()


def test_the_rivals_of_twingan_are_plain() -> None:
    """Ops on the reference, contiguous maps, a call for each set of pictures; ours has channels_last and stacks."""
    sides = bench_twingan.Sides(tiny_twingan(rec_gan_from=32), "16to32", torch.device("cpu"))
    calls = {}
    for name, system in sides.systems.items():
        layouts: list[tuple[bool, bool]] = []
        passes = dict.fromkeys(system.nets, 0)

        def seen(_: Any, __: Any, out: Any, layouts: list[tuple[bool, bool]] = layouts) -> None:
            if isinstance(out, Tensor) and out.dim() == 4 and min(out.shape[1:]) > 1:
                layouts.append((out.is_contiguous(), out.is_contiguous(memory_format=torch.channels_last)))

        for net_name, net in system.nets.items():

            def count(*_: Any, net_name: str = net_name, passes: dict[str, int] = passes) -> None:
                passes[net_name] += 1

            net.register_forward_pre_hook(count)
            for module in net.modules():
                module.register_forward_hook(seen)
        sides.step(name)()
        assert layouts and all(one[0 if name != "anifast" else 1] for one in layouts), name
        calls[name] = passes
    # E: real, painted; G: all four; D for the generator: painted, repainted, and for itself: real too; penalty apart
    assert calls["eager"] == {"E": 4, "G": 4, "D_s": 2 + 3, "D_t": 2 + 3}  # the penalty calls forward itself
    assert calls["anifast"] == {"E": 2, "G": 1, "D_s": 1 + 1, "D_t": 1 + 1}
    # the author paints a further batch for the discriminators, and judges what is repainted from 64 px on
    assert calls["tg2018"] == {"E": 4 + 2, "G": 4 + 4, "D_s": 1 + 2, "D_t": 1 + 2}
    assert sides.configs["tg2018"].fade_skip == "code" and sides.systems["tg2018"].ema is None


def test_the_products_of_twingan_are_counted() -> None:
    """Those of each network in its specification, of the author's further batch, and what ours leaves out."""

    def products(work: Callable[[], Any]) -> tuple[Any, float]:
        with bench_twingan.use_backend("reference"), torch.no_grad(), _sides.Products() as mode:
            made = work()
        return made, sum(_sides.cost(key)[0] * count for key, count in mode.seen.items()) / 2

    config = twingan_config.make("tg2018", {"stacked": False, "split_up": False})
    for size, expected in ((64, [1.28, 2.10, 1.29]), (256, [2.19, 3.61, 2.20])):
        nets, x = twingan_networks.build(config, str(size)), torch.rand(1, 3, size, size)
        latent, of_e = products(functools.partial(nets["E"], x, (0,)))
        _, of_g = products(functools.partial(nets["G"], latent.z, latent.skips, (1,)))
        _, of_d = products(functools.partial(nets["D_t"], x))
        assert [round(count / 1e9, 2) for count in (of_e, of_g, of_d)] == expected
    sides = bench_twingan.Sides(tiny_twingan(), "16", torch.device("cpu"))
    counts = sides.check()
    # with 8 channels everywhere, at 16 and 8 px: E 3 -> 8, and 8 -> 8 twice at each; G twice at 4, 16 -> 8, 8 -> 8
    encoder = 3 * 8 * 256 + 2 * 9 * 64 * (256 + 64)
    generator = 2 * 9 * 64 * 16 + 9 * (128 + 64) * (256 + 64) + 8 * 3 * 256
    assert round((counts["tg2018"] - counts["eager"]) * 1e9) == 2 * encoder + 4 * generator
    # Doubled maps take 4 products of 9, the encoder's and the first are convolved once for two groups; and so on the
    # way back, to maps and to weights. And our leaky ReLU has no second derivative, where PyTorch's has zeros, which
    # both penalties send back through a head: 9 -> 8 and, to one pixel, 8 -> 8.
    fewer = 3 * ((4 * (9 - 4) + 2 * 9) * 64 * (256 + 64) + 2 * 9 * 64 * 16)
    if not backends.why_not("bias_lrelu", "native", "cpu"):
        fewer += 2 * 2 * (9 * 9 * 8 * 16 + 64 * 16)
    assert round((counts["eager"] - counts["anifast"]) * 1e9) == fewer


def interleaved(taken: dict[str, float]) -> Callable[..., dict[str, timing.Timing]]:
    """One call of each, at a time that depends on the name; of all else 0.1 ms."""

    def interleave(calls: dict[str, Any], *_: Any, **__: Any) -> dict[str, timing.Timing]:
        for call in calls.values():
            call()
        return {name: timing.Timing(*[taken.get(name, 1e-4)] * 3, 7) for name in calls}

    return interleave


def test_twingan_is_measured_against_plain_pytorch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"anifast": 0.04, "eager": 0.08, "tg2018": 0.12, "chunks": 0.05, "whole": 0.2}
    cpu = torch.device("cpu")
    rates = _sides.Rates({torch.float32: 1e9}, 1e9)
    for module in (bench_twingan, _sides):
        monkeypatch.setattr(module, "interleave", interleaved(taken))
    monkeypatch.setattr(bench_twingan, "memory", lambda call, device: (1000, call()))
    held = [bench_twingan.Sides(tiny_twingan(), "8", cpu)]
    monkeypatch.setattr(bench_twingan, "Sides", lambda *_: held[0])
    row = bench_twingan.steps(held[0].configs["anifast"], "8", cpu, 0.0, rates, False, {"8": 1.5, "16": 9.0})
    assert row["ms"] == {name: [taken[name] * 1e3] * 3 + [7] for name in ("anifast", "eager", "tg2018")}
    assert (row["work"], row["size"], row["images"], row["aim"]) == ("step of phase 8", 8, 3, 1.5)
    assert 0 < row["roofline_ms"] and 0 < row["convolutions_ms"] and row["gmac"]["anifast"] < row["gmac"]["eager"]
    for name, system in held[0].systems.items():
        averages = {} if system.ema is None else system.ema.nets
        nets = [*system.nets.values(), *averages.values()]
        state = sum(x.nbytes for net in nets for x in net.state_dict().values())
        # two moments and a count; weights that a phase doesn't use have no state
        moments = [p for one in system.optimizers.values() for p in one.state]
        assert row["peak"][name] == state + sum(2 * p.nbytes + 4 for p in moments) + 1000
    translated = bench_twingan.translations(tiny_twingan(), 8, cpu, 0.0, rates, (1, 2))
    assert [one["images"] for one in translated] == [1, 2] and set(translated[0]["ms"]) == {"anifast", "eager"}
    searched = bench_twingan.searches(300, cpu, 0.0, 1e9, (2,), 16)
    assert set(searched[0]["ms"]) == {"anifast", "chunks", "whole"}
    assert searched[0]["convolutions_ms"] == round(300 * 16 * 2 / 1e9 * 1e3, 3) and "size" not in searched[0]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "anifast    40.00 ms (25 it/s, +0 %)  eager    80.00 ms (12.5 it/s), 2.00x (aim 1.50x, bound " in lines[0]
    assert "tg2018   120.00 ms (8.333 it/s), 3.00x (bound " in lines[0] and "GMAC a pair: anifast " in lines[0]
    assert lines[3].startswith("search, 5 nearest of 300       x2 fp16: anifast    40.00 ms (25 it/s, +0 %)")
    about = {"cpu": "Some CPU", "cores": 2, "threads": 1, "cpu_capability": "AVX2", "build": {"isa": "avx2"}}
    about |= {"settings": {}, "torch": "2.13.0", "commit": None, "uncommitted_changes": False, "date": "2001-01-01"}
    rows = [row, *translated, *searched]
    result = {"system": "twingan", "note": "Phases.", "rivals": bench_twingan.RIVALS, "rows": rows}
    table = report.system_section({**result, "environment": about}, "file").split("\n\n")[2]
    header, _, *cells = table.splitlines()
    assert {text.count("|") for text in cells} == {header.count("|")}
    assert cells[0].startswith(
        "| step of phase 8, 8 px, 3 at once | fp32 | 40 ms | 75 | 80 ms | 2.00x (aim 1.5x, bound"
    )
    assert cells[3].startswith("| search, 5 nearest of 300, 2 at once | fp16 | 40 ms | 50 | – | – | – | – | – | – | 50")
    assert "| 50 ms | 1.25x (bound " in cells[3] and "| 200 ms | 5.00x (bound " in cells[3]


def test_a_wrong_translation_or_search_of_twingan_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = bench_twingan.Translation(tiny_twingan(), 16, torch.device("cpu"))
    sides.check()
    sides.model.net("G").get_parameter("norms.beta").data += 1e-3
    with pytest.raises(bench_twingan.WrongResult, match="translation, 16 px, fp32: relative error"):
        sides.check()
    right = bench_twingan.gallery.topk
    for wrong, what in ((0, "of a score"), (1, "of a row's score")):

        def topk(*given: Any, wrong: int = wrong) -> list[Tensor]:
            found = list(right(*given))
            found[wrong] = found[wrong] + (1e-5 if wrong == 0 else 1)
            return found

        monkeypatch.setattr(bench_twingan.gallery, "topk", topk)
        with pytest.raises(bench_twingan.WrongResult, match=what):
            bench_twingan.searches(64, torch.device("cpu"), 0.0, 1e9, (1,), 16)


def test_rivals_of_a_search_find_the_same() -> None:
    held = np.random.default_rng(0).standard_normal((2 * bench_twingan.gallery.CHUNK + 5, 8)).astype(np.float16)
    queries = bench_twingan.queries_of(3, 8)
    scores, rows = bench_twingan.gallery.topk(queries, held, 4)
    for rival in (bench_twingan.chunked_topk, bench_twingan.plain_topk):
        found = rival(queries, held, 4)
        torch.testing.assert_close(found[0], scores)
        assert torch.equal(found[1], rows)


@pytest.mark.skipif(timing.own_memory() is None, reason="this system does not tell a process's own memory")
def test_memory_of_a_process_of_its_own(tmp_path: Path) -> None:
    """Its peak, while it is there, and no page of a file; in a process that has nothing to give back meanwhile."""
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    program = f"""
import time, numpy as np, torch
from benchmarks import timing
before, much = timing.own_memory(), 64 << 20
highest = timing.highest_own_memory(lambda: time.sleep(0.1 * int(torch.ones(much, dtype=torch.uint8)[-1])))
mapped = timing.highest_own_memory(lambda: int(np.memmap({str(path)!r}, np.uint8, "r").max()))
# what else happens in these pages: other threads' and the allocator's, far less than the tensor
assert before + 0.9 * much < highest < before + 1.5 * much, (before, highest)
assert mapped < before + 0.5 * much, (before, mapped)
"""
    root = Path(timing.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_recorded_steps_of_twingan_are_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording is played on the CPU: all phases are recorded before anything is timed, and after the comparison."""
    recorded: list[Any] = []

    def graphs(device: torch.device) -> acceleration.Graphs:
        return acceleration.Graphs(device, lambda work: (recorded.append(1), work(), lambda: None)[2])

    monkeypatch.setattr(bench_twingan, "Graphs", graphs)
    sides = bench_twingan.Sides(tiny_twingan(), "8", torch.device("cpu"), graphs=True)
    assert sides.names == ["anifast", "eager", "tg2018", "unrecorded"]
    sides.check()
    for name in sides.names:
        sides.step(name)()
    assert not recorded
    sides.record()
    assert len(recorded) == 2  # the generator's phase and the discriminators'
    for name in sides.names:
        sides.step(name)()
    assert len(recorded) == 2


def test_the_command_for_twingan_writes_its_file_or_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(_sides, "steady_allocator", lambda: False)  # which lasts as long as the process
    rates = _sides.Rates({torch.float32: 1e9}, 1e9)
    monkeypatch.setattr(_sides.Rates, "measure", staticmethod(lambda *_: rates))
    options = ["--device", "cpu", "--seconds", "0", "--out", str(tmp_path)]

    def error(*words: str) -> str:
        assert bench_twingan.main([*options, *words]) == 1
        return capsys.readouterr().err

    assert "bench_twingan: error: setting batch: 1 picture has no statistics" in error("--batch", "1")
    assert "bench_twingan: error: --gallery 0: at least 1" in error("--gallery", "0")
    if not torch.cuda.is_available():
        assert "bench_twingan: error: --cuda-graphs needs a GPU" in error("--cuda-graphs", "--only", "4")
    for word in ("65", "translate", "translate-65", "64to32", "searches"):
        with pytest.raises(SystemExit):
            bench_twingan.main([*options, "--only", word])
        assert f"{word!r}: there are phases (4, 4to8, " in capsys.readouterr().err
    given: list[Any] = []

    def row(work: str, **more: Any) -> dict[str, Any]:
        ms = {"anifast": [1.0, 1.1, 0.9, 7], "eager": [2.0, 2.1, 1.9, 7]}
        return {"work": work, "precision": "fp32", "images": 2, "ms": ms, "convolutions_ms": 0.5, **more}

    def steps(*arguments: Any) -> dict[str, Any]:
        given.append(arguments)
        return row(f"step of phase {arguments[1]}", size=8)

    monkeypatch.setattr(bench_twingan, "steps", steps)
    monkeypatch.setattr(
        bench_twingan, "translations", lambda c, size, *_: [row(f"translate {c.max_channels}", size=size)]
    )
    monkeypatch.setattr(bench_twingan, "searches", lambda count, *_: [row(f"search {count}")])
    monkeypatch.setattr(bench_twingan, "searching_alone", lambda *_: (200 << 20, 230 << 20))
    assert bench_twingan.main([*options, "--only", "search", "8to16", "translate-64", "--max-channels", "8"]) == 0
    ((config, stage, _, _, _, recorded, aims),) = given
    assert (config.max_channels, config.batch, config.size, stage, recorded, aims) == (8, 0, 16, "8to16", False, {})
    (path,) = tmp_path.glob("*/systems/twingan.json")
    result = json.loads(path.read_text())
    assert [one["work"] for one in result["rows"]] == ["step of phase 8to16", "translate 8", "search 160000"]
    assert result["rivals"] == {"eager": bench_twingan.RIVALS["eager"]} and "authors" not in result
    assert result["note"].startswith("At most 8 channels. Steps begin with a batch of pictures, as many as the author")
    assert "measured half way, of them 8to16 here. A search" in result["note"]
    assert (
        "for 10 pictures at once, has at most 230 MiB of memory of its own, Python's and PyTorch's 200 MiB"
        in (result["note"])
    )
    assert result["note"] in report.document(tmp_path, tmp_path)
    given.clear()
    assert bench_twingan.main([*options, "--gallery", "7"]) == 0
    phases = [("4", 4), ("8", 8), ("16", 16), ("32", 32), ("32to64", 64), ("64", 64), ("128", 128), ("256", 256)]
    assert [(stage, config.size) for config, stage, *_ in given] == phases
    assert all(aims == {"64": 1.6} for *_, aims in given)
    assert [one["work"] for one in json.loads(path.read_text())["rows"]][-3:] == ["translate 256"] * 2 + ["search 7"]


def test_report_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--results", str(tmp_path)]) == 0
    assert "python benchmarks/run.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--op", "unheard_of"], "unheard_of"),
        (["--cases", "unheard.*"], "unheard.*"),
        (["--skip", "unheard"], "unheard"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "no GPU")]),
    ],
)
def test_run_names_a_wrong_choice(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert run.main(["--device", "cpu", *arguments]) == 1
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--works", "sideways"], ["--seconds", "-1"], ["--unheard"]])
def test_run_ends_with_2_on_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2


def test_a_result_that_cannot_be_written_is_one_clear_error(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AnifastError, match="cannot write"):
        results.save(result, tmp_path / "file")


def test_the_command_measures_a_real_op_with_spinning_threads(tmp_path: Path) -> None:
    usual = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--op", "bias_lrelu", "--device", "cpu", "--quick"]
    command += ["--cases", "gnr.mapping", "--skip", "compile", "--seconds", "0.001", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, env=usual, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("*/bias_lrelu.json")
    found = results.load(path)
    assert found["environment"]["settings"]["OMP_WAIT_POLICY"] == "ACTIVE"
    assert found["selection"] == "quick, cases gnr.mapping, without compile"
    assert [row["work"] for row in found["rows"]] == list(results.WORKS)
    assert path.stat().st_size < 100_000 and str(path) in done.stdout
