"""The Triton kernels of gated_residual in Triton's interpreter; test_gated_residual_triton.py runs this file.

A file of its own, because TRITON_INTERPRET must be set before Triton is imported and must not reach other tests.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import pytest
import torch
from gated_residual_cases import CASE, CASES, NAMES, Case, call, check, make, results
from torch import Tensor

import anifast

pytestmark = pytest.mark.usefixtures("launched")

TYPES = [
    *[(case, torch.float32) for case in CASES],
    *[(case, dtype) for case in CASES[::3] for dtype in (torch.float16, torch.bfloat16)],
]
FORMS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
KERNELS = ["gated_residual_kernel", "gated_residual_backward_kernel"]


@pytest.fixture
def kernels() -> ModuleType:
    return importlib.import_module("anifast.kernels.gated_residual")


def maps(shape: tuple[int, ...], form: str, up: int = 1, crop: int = 0) -> list[Tensor]:
    """A gradient and the six inputs of a call, in the layout `form`."""
    generator = torch.Generator().manual_seed(0)
    low = shape if up == 1 else (*shape[:2], *((size + 2 * crop) // 2 for size in shape[2:]))
    found = [
        torch.randn(each, generator=generator).contiguous(memory_format=FORMS[form]) for each in (shape, shape, low)
    ]
    return found + [torch.randn(shape[1], generator=generator) for _ in range(4)]


@pytest.mark.parametrize(("case", "dtype"), TYPES, ids=lambda value: str(value).removeprefix("torch."))
def test_agrees_with_the_reference(launched: list[str], case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, "triton")
    assert launched == ([] if 0 in case.shape else KERNELS)  # all gradients in one pass


@pytest.mark.parametrize(
    "case",
    [CASE[name] for name in ("vectors_and_rest", "short_planes", "nhwc_odd", "up_vectors_and_rest", "up_crop_vectors")]
    + [CASE["up_nhwc_crop_2"], Case("wide_matrix", (7, 37)), Case("wide_nhwc", (1, 37, 2, 6), True, up=2, crop=1)],
    ids=str,
)
def test_tiles_and_walks(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(kernels, "_TILE", 32)
    plan = kernels._plan
    cuts: list[tuple[int, ...]] = []
    monkeypatch.setattr(kernels, "_plan", lambda *cut: cuts.append(cut) or plan(*cut))
    results(case, make(case, torch.float32), "triton")
    assert len(cuts) == 2, "one forward and one backward"

    def is_uneven(programs: int) -> bool:
        monkeypatch.setattr(kernels, "_PROGRAMS", programs)
        found = plan(*cuts[1])
        return found.grid[1] > 1 and found.each > 1 and found.each * found.grid[1] > found.steps

    assert any(is_uneven(programs) for programs in range(1, 200)), "the last program shall end before the others"
    check(case, torch.float32, "triton")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("up", "crop"), [(1, 0), (2, 0), (2, 1)])
def test_only_wanted_gradients_are_made(kernels: ModuleType, form: str, up: int, crop: int) -> None:
    how = (0.3, 0.7, up, crop)
    given = maps((2, 5, 4, 6), form, up, crop)
    together = kernels.gated_residual_backward(*given, *how, [True] * 6, FORMS[form])
    for i in range(len(NAMES)):
        wanted = [i == other for other in range(len(NAMES))]
        # the shortcut is needed for its gate's gradient alone
        own = [value if NAMES[i] == "shortcut_gate" or at != 2 else None for at, value in enumerate(given)]
        found = kernels.gated_residual_backward(*own, *how, wanted, FORMS[form])
        assert torch.equal(found[i], together[i]), NAMES[i]
        assert [value.numel() > 0 for value in found] == wanted
    assert not any(value.numel() for value in kernels.gated_residual_backward(*given, *how, [False] * 6, FORMS[form]))
    with pytest.raises(ValueError, match="gated_residual: the shortcut is missing"):
        kernels.gated_residual_backward(*given[:2], None, *given[3:], *how, [True] * 6, FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_pixels_of_the_shortcut_that_are_cut_off_get_no_gradient(kernels: ModuleType, form: str) -> None:
    grad, *given = maps((2, 3, 2, 4), form, 2, 4)  # 5 by 6 pixels, of which 1 by 2 are seen whole
    _, found, *_ = kernels.gated_residual_backward(grad, *given, 0.0, 1.0, 2, 4, [True] * 6, FORMS[form])
    seen = torch.zeros(5, 6, dtype=torch.bool)
    seen[2, 2:4] = True
    assert found[..., ~seen].eq(0).all() and found[..., seen].ne(0).all()
    empty, *given = maps((2, 3, 0, 4), form, 2, 4)
    _, found, *sums = kernels.gated_residual_backward(empty, *given, 0.0, 1.0, 2, 4, [True] * 6, FORMS[form])
    assert found.shape == (2, 3, 4, 6) and found.eq(0).all() and all(value.eq(0).all() for value in sums)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_passes_as_in_the_reference(form: str, up: int) -> None:
    grad, *given = maps((2, 5, 4, 6), form, up)
    for channel, value in enumerate((math.nan, math.inf, -math.inf)):
        given[0][1, channel, 2, 3] = value
        grad[0, channel + 1, 1, 2] = value
    leaves = [value.requires_grad_() for value in given]
    found = []
    for backend in ("triton", "reference"):
        out = anifast.ops.gated_residual(*leaves, mean=0.3, std=0.7, up=up, backend=backend)
        found.append([out, *torch.autograd.grad(out, leaves, grad)])
    for name, got, expected in zip(("out", *NAMES), *found, strict=True):
        assert expected.isfinite().logical_not().any(), name
        torch.testing.assert_close(got, expected, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", ["vectors_and_rest", "nhwc_odd", "up_crop", "up_nhwc_crop"])
def test_addresses_of_64_bits(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("anifast.kernels._common.REACH", 0)
    check(CASE[name], torch.float32, "triton")


@pytest.mark.parametrize("form", FORMS)
def test_sums_are_the_same_bits_each_time(kernels: ModuleType, form: str) -> None:
    given = maps((4, 9, 24, 16), form, 2)
    first, second = (kernels.gated_residual_backward(*given, 0.3, 0.7, 2, 0, [True] * 6, FORMS[form]) for _ in range(2))
    assert all(torch.equal(value, other) for value, other in zip(first, second, strict=True))


def test_compiles_into_one_graph_where_the_backend_was_chosen_before(launched: list[str]) -> None:
    case = CASE["up_crop"]
    tensors = make(case, torch.float32)
    inputs = [tensors[name] for name in NAMES]

    def function(*values: Tensor) -> Tensor:
        return call(case, dict(zip(NAMES, values, strict=True)), None) + 1.0

    with anifast.use_backend("triton"):
        out = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
        got = torch.autograd.grad(out.sum(), inputs)
    expected = call(case, tensors, "reference") + 1.0
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), inputs))
    assert launched == KERNELS


@pytest.mark.parametrize(("form", "up"), [("contiguous", 2), ("channels_last", 1)])
def test_opcheck(form: str, up: int) -> None:
    grad, *given = (value.requires_grad_() for value in maps((2, 3, 4, 6), form, up))
    how = (0.3, 0.7, up, 0)
    torch.library.opcheck(torch.ops.anifast.gated_residual_triton, (*given, *how))
    torch.library.opcheck(torch.ops.anifast.gated_residual_triton, (*given[:4], None, None, *how))
    for wanted in ([True] * 6, [True, False, False, True, False, True], [False, True, True, False, True, False]):
        torch.library.opcheck(torch.ops.anifast.gated_residual_backward_triton, (grad, *given, *how, wanted))
