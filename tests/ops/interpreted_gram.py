"""The Triton kernels of gram in Triton's interpreter; test_gram_triton.py runs this file.

A file of its own, because TRITON_INTERPRET must be set before Triton is imported and must not reach other tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from gram_cases import CASE, CASES, Case, call, check, make, maps
from torch import Tensor

import anifast
from anifast.ops import gram
from anifast.reference.gram import gram as reference

pytestmark = pytest.mark.usefixtures("launched")

TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[::4] for dtype in (torch.float16, torch.bfloat16)],
]
# a launch takes 8 maps
NINE = [(1 + i % 3, 1 + i, 2) for i in range(9)]
LAYOUTS = {"contiguous": (), "channels_last": (0, 1, 2), "mixed": (1,)}


@pytest.fixture
def kernels() -> ModuleType:
    return importlib.import_module("anifast.kernels.gram")


@pytest.fixture
def small_tiles(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 16 and splits of 32 pixels, so that small maps have several of both."""
    for name in ("TILES", "BACKWARD_TILES"):
        tiles = {key: tile._replace(rows=16, columns=16, depth=16) for key, tile in getattr(kernels, name).items()}
        monkeypatch.setattr(kernels, name, tiles)
    monkeypatch.setattr(kernels, "_PIXELS", 32)
    kernels._cut.cache_clear()
    yield
    kernels._cut.cache_clear()


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers: their products and sums are exact in float32, whatever the order."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def lay(shapes: list[tuple[int, ...]], last: tuple[int, ...], batch: int) -> list[Tensor]:
    """Maps of whole numbers; those in `last` are channels_last."""
    formats = [torch.channels_last if i in last else torch.contiguous_format for i in range(len(shapes))]
    return [
        whole(batch, *shape, seed=i).contiguous(memory_format=form)
        for i, (shape, form) in enumerate(zip(shapes, formats, strict=True))
    ]


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(launched: list[str], case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "triton")
    if case.batch == 0:
        assert not launched
        return
    # all maps and images at once; the gradient, and the gradient's own
    split = ["gram_sums_kernel"] if max(rows * columns for _, rows, columns in case.maps) > 512 else []
    assert launched == ["gram_kernel", *split, "gram_backward_kernel", "gram_backward_kernel"]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("folded", [False, True], ids=["full", "folded"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("products", ["ieee", "half"])
def test_tiles_and_splits_are_exact(
    kernels: ModuleType,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    products: str,
    layout: str,
    folded: bool,
) -> None:
    monkeypatch.setattr(kernels, "_products", lambda x: products)  # the gradient's products, whole or in two
    shapes, divisors = [(18, 5, 23), (33, 2, 3), (5, 9, 4)], [1, 2, 4]
    scales = [1.0 / divisor for divisor in divisors]
    # 115 pixels in 4 splits are 8 steps of 16, of which the last has 3 pixels; the second map isn't split
    cut = kernels._cut(2, tuple((c, h * w) for c, h, w in shapes), 16, 16)
    assert cut == (16, 32, 3 * 4 + 6 + 2, 3 * 4 + 2, 2 * (3 + 1))
    features = [x.requires_grad_() for x in lay(shapes, LAYOUTS[layout], 2)]
    expected = reference(features, divisors, folded)
    grad = whole(*expected.shape, seed=9)
    forms = [torch.channels_last if i in LAYOUTS[layout] else torch.contiguous_format for i in range(3)]
    given = [x.detach() for x in features]
    assert torch.equal(kernels.gram(given, scales, folded, forms), expected)
    assert launched == ["gram_kernel", "gram_sums_kernel"]
    found = kernels.gram_backward(grad, given, scales, folded, [True] * 3, forms)
    for value, first, x in zip(found, torch.autograd.grad(expected, features, grad), given, strict=True):
        assert torch.equal(value, first) and value.stride() == x.stride()


@pytest.mark.parametrize("folded", [False, True], ids=["full", "folded"])
def test_more_maps_than_a_launch_takes(launched: list[str], folded: bool) -> None:
    features = [x.requires_grad_() for x in lay(NINE, (2, 8), 2)]
    out = gram(features, normalize="none", folded=folded, backend="triton")
    expected = reference(features, [1] * 9, folded)
    assert torch.equal(out, expected)
    grad = whole(*out.shape, seed=10)
    got, wanted = torch.autograd.grad(out, features, grad), torch.autograd.grad(expected, features, grad)
    assert all(torch.equal(value, other) for value, other in zip(got, wanted, strict=True))
    assert launched == ["gram_kernel"] * 2 + ["gram_backward_kernel"] * 2


@pytest.mark.parametrize("asked", [(0,), (1, 2), (2,)], ids=str)
def test_only_wanted_gradients_are_made(kernels: ModuleType, asked: tuple[int, ...]) -> None:
    features = lay([(4, 3, 2), (3, 2, 2), (2, 3, 3)], (1,), 2)
    for i in asked:
        features[i].requires_grad_()
    leaves = [features[i] for i in asked]
    out = gram(features, normalize="none", backend="triton")
    grad = whole(*out.shape, seed=5)
    expected = torch.autograd.grad(reference(features, [1.0] * 3, False), leaves, grad)
    found = torch.autograd.grad(out, leaves, grad)
    assert all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))
    forms = [torch.contiguous_format, torch.channels_last, torch.contiguous_format]
    given = [x.detach() for x in features]
    raw = kernels.gram_backward(grad, given, [1.0] * 3, False, [i in asked for i in range(3)], forms)
    assert [value.numel() > 0 for value in raw] == [i in asked for i in range(3)]


@pytest.mark.parametrize("name", ["mixed_layouts", "long", "wider_folded"])
def test_addresses_of_64_bits(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("anifast.kernels._common.REACH", 0)
    check(CASE[name], torch.float32, "triton")


@pytest.mark.usefixtures("small_tiles")
def test_sums_are_the_same_bits_each_time_and_symmetric() -> None:
    x = torch.randn(2, 35, 13, 11, generator=torch.Generator().manual_seed(0))
    first, second = gram(x, backend="triton"), gram(x, backend="triton")
    assert torch.equal(first, second) and torch.equal(first, first.mT)


def test_the_five_maps_of_vgg19_fill_a_gpu(kernels: ModuleType) -> None:
    sizes = ((64, 65536), (128, 16384), (256, 4096), (512, 1024), (512, 256))
    for kind, tile in kernels.TILES.items():
        cut = kernels._cut(1, sizes, tile.rows, tile.depth)
        assert cut.programs >= 2 * 132, kind  # two for each multiprocessor of an H100
        many = kernels._cut(16, sizes, tile.rows, tile.depth)
        assert many.longest > cut.longest and many.parts < cut.parts, kind


def test_products_of_float32_are_as_exact_as_those_of_pytorch(kernels: ModuleType) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for precision, products in (("ieee", "ieee"), ("tf32", "tf32")):
            torch.backends.cuda.matmul.fp32_precision = precision
            assert kernels._products(torch.empty(1)) == products
            assert kernels._products(torch.empty(1, dtype=torch.float16)) == "half"
            assert kernels._products(torch.empty(1, dtype=torch.float64)) == "float64"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_compiles_into_one_graph_where_the_backend_was_chosen_before(launched: list[str]) -> None:
    case = CASE["mixed_layouts"]
    tensors = make(case, torch.float32)

    def function(*features: Tensor) -> Tensor:
        return gram(features) + 1.0

    with anifast.use_backend("triton"):
        out = torch.compile(function, fullgraph=True, backend="aot_eager")(*maps(tensors))
        got = torch.autograd.grad(out.sum(), maps(tensors))
    expected = call(case, tensors, "reference") + 1.0
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), maps(tensors)))
    assert launched == ["gram_kernel", "gram_backward_kernel"]


@pytest.mark.parametrize("folded", [False, True], ids=["full", "folded"])
def test_opcheck(folded: bool) -> None:
    features = [x.requires_grad_() for x in lay([(4, 3, 2), (3, 2, 3)], (1,), 2)]
    torch.library.opcheck(torch.ops.anifast.gram_triton, (features, [2, 1], folded))
    width = 10 + 6 if folded else 16 + 9
    grad = torch.randn(2, width, requires_grad=True)
    for wanted in ([True, True], [False, True]):
        arguments = (grad, features, [2, 1], folded, wanted)
        torch.library.opcheck(torch.ops.anifast.gram_backward_triton, arguments)
