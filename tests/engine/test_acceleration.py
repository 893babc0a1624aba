"""torch.compile of the networks and recorded phases: the same numbers, the same checkpoints, or one clear error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_blendgan import tiny_config as tiny_blendgan
from tiny_cyclegan import read, resume, the_error, train
from tiny_disentangle import statistics
from tiny_disentangle import tiny_config as tiny_disentangle
from tiny_gnr import tiny_config
from torch import nn

from anifast.engine import acceleration
from anifast.engine.acceleration import WARM_UP, Graphs
from anifast.engine.loop import NotFinite, run_step
from anifast.errors import AnifastError
from anifast.nn import perceptual
from anifast.systems.blendgan import psp
from anifast.systems.blendgan.contrast import Style
from anifast.systems.blendgan.inversion import Inversion
from anifast.systems.blendgan.networks import build_generator
from anifast.systems.blendgan.training import Batch as Portraits
from anifast.systems.blendgan.training import Gan
from anifast.systems.cyclegan.config import make
from anifast.systems.cyclegan.training import CycleGAN
from anifast.systems.disentangle import training as disentangle
from anifast.systems.gnr.training import GNR, Batch

CPU = torch.device("cpu")
Capture = pytest.CaptureFixture[str]


def test_compiled_networks_keep_their_names(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's tracing and without its code generator, which alone takes a minute here."""
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        seen.append(len(list(graph.graph.nodes)))
        return graph.forward

    monkeypatch.setattr(acceleration, "COMPILER", backend)
    torch._dynamo.reset()
    torch.manual_seed(0)
    assert train(data, tmp_path / "compiled", "--images", 3, "--compile") == 0
    assert len(seen) >= 4 and max(seen) > 10
    torch.manual_seed(0)
    assert train(data, tmp_path / "plain", "--images", 3) == 0
    one, other = (read(tmp_path / name / "checkpoint.pt") for name in ("compiled", "plain"))
    assert one["config"] == other["config"] | {"compile": True}
    for name, net in other["nets"].items():
        assert list(one["nets"][name]) == list(net)
        for key, value in net.items():
            torch.testing.assert_close(one["nets"][name][key], value, rtol=0, atol=1e-5)
    assert resume(data, tmp_path / "compiled", "--images", 4, "--no-compile") == 0


def test_no_compiler_is_one_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert train(data, tmp_path / "run", "--images", 1, "--compile") == 1
    error = the_error(capsys.readouterr().err)
    assert "no no-such-compiler" in error and "--compile" in error
    with pytest.raises(AnifastError, match="Triton"):
        monkeypatch.setattr(acceleration.importlib.util, "find_spec", lambda name: None)
        acceleration.compile_nets([], torch.device("cuda"))


def test_a_compiler_that_fails_is_one_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        raise RuntimeError("the linker is gone")

    monkeypatch.setattr(acceleration, "COMPILER", backend)
    torch._dynamo.reset()
    assert train(data, tmp_path / "run", "--images", 1, "--compile") == 1
    error = the_error(capsys.readouterr().err)
    assert "torch.compile has failed" in error and "the linker is gone" in error and "--compile" in error


def test_cuda_graphs_need_a_gpu(data: Path, tmp_path: Path, capsys: Capture) -> None:
    assert train(data, tmp_path / "run", "--images", 1, "--cuda-graphs") == 1
    assert "--cuda-graphs needs a GPU" in the_error(capsys.readouterr().err)


def test_a_recorded_phase_works_on_memory_that_does_not_move() -> None:
    """Work that writes in place repeats on the CPU as a CUDA graph does."""
    out, seen = torch.zeros(2), []

    def work(x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen.append(x)
        return out.copy_(2 * x), {"out": out}

    graphs = Graphs(CPU, record=lambda work: (work(), work)[1])
    for step in range(WARM_UP + 3):
        given = torch.full((2,), float(step))
        loss, values = graphs.run("phase", work, (given,))
        graphs.finished += 1
        assert loss is out and values["out"] is out and out.tolist() == [2.0 * step] * 2
        assert (seen[-1] is given) == (step < WARM_UP)
    assert len({id(x) for x in seen[WARM_UP:]}) == 1


def test_a_phase_that_cannot_be_recorded_is_one_error() -> None:
    def record(work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = Graphs(CPU, record=record)
    work = lambda x: (x, {})  # noqa: E731
    for _ in range(WARM_UP):
        graphs.run("phase", work, (torch.zeros(1),))
        graphs.finished += 1
    with pytest.raises(AnifastError, match="phase phase cannot be recorded.*capturing. Leave --cuda-graphs out"):
        graphs.run("phase", work, (torch.zeros(1),))


def played(work: Callable[[], None], nets: Sequence[nn.Module]) -> Callable[[], None]:
    """What repeats `work`, done once here as if recorded: its gradients land in the memory they had then.

    Where `.grad` points is not touched, as a replay of a CUDA graph runs no Python.
    """
    parameters = [p for net in nets for p in net.parameters()]
    before = [p.grad for p in parameters]
    work()
    places = {p: p.grad for p, old in zip(parameters, before, strict=True) if p.grad is not old and p.grad is not None}

    def replay() -> None:
        pointed = [p.grad for p in parameters]
        work()
        for p, place in places.items():
            assert p.grad is not None
            place.copy_(p.grad)
        for p, old in zip(parameters, pointed, strict=True):
            p.grad = old

    return replay


def test_phases_of_cyclegan_take_everything_from_their_inputs() -> None:
    """What a recorded phase would find in the system itself is that of the recording, here NaN."""
    config = make("reference", {"size": 32, "blocks": 1, "width": 8, "d_width": 8, "batch": 2, "pool_size": 3})
    plain, recorded = CycleGAN(config, CPU), CycleGAN(config, CPU)
    hidden = ("real_a", "real_b", "fake_a", "fake_b")

    def record(work: Callable[[], None]) -> Callable[[], None]:
        again = played(work, list(recorded.nets.values()))

        def replay() -> None:
            kept = {name: getattr(recorded, name) for name in hidden}
            for name in hidden:
                setattr(recorded, name, torch.full_like(kept[name], float("nan")))
            again()
            for name in hidden:  # what the phase has not made stays
                if getattr(recorded, name).isnan().any():
                    setattr(recorded, name, kept[name])

        return replay

    graphs = Graphs(CPU, record)
    source = torch.Generator().manual_seed(5)
    for step in range(WARM_UP + 4):
        a, b = (torch.rand(2, 3, 32, 32, generator=source) * 2 - 1 for _ in "AB")
        for model, how in ((plain, None), (recorded, graphs)):
            model.begin((a, b), 2 * step)
            run_step(model.phases, step, CPU, graphs=how)
    for name, net in plain.nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(recorded.nets[name].state_dict()[key], value), f"{name}.{key}"
    assert torch.equal(plain.pools["A"].held, recorded.pools["A"].held)


def test_phases_of_gnr_take_everything_from_their_inputs() -> None:
    """All but what the first phase has painted, which lies where it was recorded."""
    config = tiny_config(r1_every=4)
    plain, recorded = GNR(config, CPU), GNR(config, CPU)
    generator = recorded.phases[-1].name

    def record(work: Callable[[], None]) -> Callable[[], None]:
        first, again = True, played(work, list(recorded.nets.values()))

        def replay() -> None:
            nonlocal first
            if not first:  # recording has computed on the CPU, which it does not on a GPU
                kept = recorded.batch, recorded._draws
                recorded.batch = Batch(*(torch.full_like(x, float("nan")) for x in kept[0]))
                recorded._draws = {}
                again()
                recorded.batch, recorded._draws = kept
            first = False

        return replay

    graphs = Graphs(CPU, record)
    source = torch.Generator().manual_seed(5)
    for step in range(1, WARM_UP + 9):  # with penalties in steps 4, not yet recorded, 8 and so on
        batch = Batch(*(torch.rand(2, 3, 64, 64, generator=source) * 2 - 1 for _ in range(4)))
        for model, how in ((plain, None), (recorded, graphs)):
            model.begin(batch, 2 * step)
            run_step(model.phases, step, CPU, graphs=how)
    assert generator in graphs._recorded
    for name, net in plain.nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(recorded.nets[name].state_dict()[key], value), f"{name}.{key}"


def test_a_skipped_step_while_warming_up_does_not_part_the_phases() -> None:
    """The generators' gradient goes through what the first phase has recorded: both are recorded in the same step."""
    config = tiny_config(r1=0.0)
    system = GNR(config, CPU)
    recorded: list[str] = []
    graphs = Graphs(CPU, lambda work: (work(), lambda: None)[1])
    source = torch.Generator().manual_seed(5)
    for step in range(WARM_UP + 3):
        batch = Batch(*(torch.rand(2, 3, 64, 64, generator=source) * 2 - 1 for _ in range(4)))
        if step == 1:
            batch = batch._replace(aug_a=batch.aug_a * float("nan"))
        system.begin(batch, 2 * step)
        try:
            run_step(system.phases, step, CPU, graphs=graphs)
        except NotFinite:
            assert step == 1
        recorded.append(",".join(sorted(graphs._recorded)))
        if graphs._recorded:
            break
    assert recorded == ["", "", "", "", "discriminators,generators,translations"]


class Artists:
    """What a stage of the disentangling network asks of pictures."""

    classes = ["one", "two", "three"]
    counts = torch.tensor([2, 1, 1])
    labels = torch.tensor([0, 0, 1, 2])


def stage(kind: type[disentangle.Trained], **changes: Any) -> Any:
    config = tiny_disentangle(size=16, features="4,6", fc=8, **changes)
    more = {"statistics": statistics(config)} if kind is disentangle.Stage2 else {}
    return kind(config, Artists(), CPU, **more)  # type: ignore[arg-type]


def batch_of(system: Any, step: int) -> disentangle.Batch:
    """Noise, and codes as stage 2 has them."""
    source = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (4, 4, 16, 16), generator=source, dtype=torch.uint8)
    codes = torch.rand(2, 4, system.config.content_size, generator=source)
    labels = torch.tensor([0, 1, 0, 2])[torch.randperm(4, generator=source)]
    return disentangle.Batch(images, torch.empty(0), labels, codes[0], codes[1])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (disentangle.Stage1, {"augment": True, "nested": True, "other_artist": "random"}),
        (disentangle.Pretraining, {"augment": True}),
        (disentangle.Stage2, {"augment": True, "other_artist": "random"}),
        (disentangle.Stage2, {"force_d": 2.0, "stage2_lr": 3e-3, "warm_up": 1}),
    ],
    ids=["stage 1", "pre-training", "stage 2", "stage 2 with waiting"],
)
def test_phases_of_the_disentangling_network_take_everything_from_their_inputs(
    kind: type[disentangle.Trained], changes: dict[str, Any]
) -> None:
    """Pictures, labels, codes and draws; all but what the first phase has painted, which lies where it was recorded."""
    plain, recorded = stage(kind, **changes), stage(kind, **changes)

    def record(work: Callable[[], None]) -> Callable[[], None]:
        first, again = True, played(work, list(recorded.nets.values()))

        def replay() -> None:
            nonlocal first
            if not first:  # recording has computed on the CPU, which it does not on a GPU
                kept = recorded.batch, recorded._numbers
                recorded.batch, recorded._numbers = disentangle.Batch(*[torch.empty(0)] * 5), torch.empty(0)
                again()
                recorded.batch, recorded._numbers = kept
            first = False

        return replay

    graphs, waited = Graphs(CPU, record), 0
    for step in range(WARM_UP + 12):
        found = []
        for system, how in ((plain, None), (recorded, graphs)):
            system.begin(batch_of(system, step), 4 * step)
            found.append(run_step(system.phases, step, CPU, graphs=how))
        assert found[0].keys() == found[1].keys()
        waited += kind is disentangle.Stage2 and "g_d" not in found[0]
    assert set(graphs._recorded) == {phase.name for phase in plain.phases}
    assert (waited > 0) == ("force_d" in changes)
    for name, net in plain.nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(recorded.nets[name].state_dict()[key], value), f"{name}.{key}"


def test_a_phase_that_has_waited_does_not_run_through_what_was_recorded() -> None:
    """G's gradient goes through the graph that painting has left, which is there once as soon as it is recorded: by
    then G's phase has run often enough to be recorded when its next turn comes."""
    system = stage(disentangle.Stage2)
    turns = [True, False, False, True, False, True, False, False, True, True]
    graphs = Graphs(CPU, lambda work: (work(), lambda: None)[1])
    system.phases[-1].ready = iter(turns).__next__
    plainly = []
    run = graphs.run

    def watched(name: str, *rest: Any) -> Any:
        if name == "painters" and "pictures" in graphs._recorded and name not in graphs._recorded:
            plainly.append(run(name, *rest))
            assert name in graphs._recorded
            return plainly[-1]
        return run(name, *rest)

    graphs.run = watched  # type: ignore[method-assign]
    for step in range(len(turns)):
        system.begin(batch_of(system, step), 4 * step)
        run_step(system.phases, step, CPU, graphs=graphs)
        if "painters" in graphs._recorded:
            break
    assert len(plainly) <= 1 and set(graphs._recorded) == {"pictures", "judges", "painters"}


#: Networks as small as they can be, penalties in every second step.
NARROW: dict[str, Any] = {
    "style_dim": 16,
    "base_channels": 8,
    "queue": 5,
    "r1_every": 2,
    "path_every": 2,
    "style_lr": 1e-2,
    "psp_lr": 1e-3,
}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gram matrices of two layers, and an encoder of photos with few channels."""
    monkeypatch.setitem(perceptual.STYLE_LAYERS, "random", (3, 8))
    monkeypatch.setattr(psp, "GROUPS", ((16, 3), (16, 4), (16, 14), (16, 3)))


def blendgan(kind: type[Any], **changes: Any) -> Any:
    """A stage of BlendGAN, the same each time."""
    config = tiny_blendgan(**NARROW | changes)
    torch.manual_seed(0)
    if kind is Gan:
        system = Gan(config, CPU, torch.randn(9, config.style_dim))
        system.nets["G"].add_weight.data.fill_(0.5)  # type: ignore[operator]
        return system
    if kind is Style:
        return Style(config, config.style_batch, CPU)
    return Inversion(config, build_generator(config), CPU, latent_avg=torch.zeros(config.n_latent, config.style_dim))


def begin(system: Any, step: int) -> None:
    """Noise for pictures."""
    c = system.config
    source = torch.Generator().manual_seed(step)
    if isinstance(system, Gan):
        faces, art = (torch.rand(c.batch, 3, c.size, c.size, generator=source) * 2 - 1 for _ in range(2))
        system.begin(Portraits(faces, art, torch.randn(c.batch, c.style_dim, generator=source)), step * c.batch)
    else:
        count, side = (2 * c.style_batch, c.style_side) if isinstance(system, Style) else (c.psp_batch, c.psp_side)
        images = torch.rand(count, 3, side, side, generator=source) * 2 - 1
        system.begin(images, step * (c.style_batch if isinstance(system, Style) else c.psp_batch))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Gan, {}),
        (Gan, {"latent_loss": "matching", "warm_up": 2}),
        (Gan, {"lambda_latent": 0.0, "checkpointing": True, "path_length": 0.0}),
        (Style, {}),
        (Inversion, {}),
    ],
    ids=["gan", "gan with waiting", "gan with checkpointing", "style", "psp"],
)
def test_phases_of_blendgan_take_everything_from_their_inputs(kind: type[Any], changes: dict[str, Any]) -> None:
    """All but what phases before them have left, which lies where it was recorded."""
    plain, recorded = blendgan(kind, **changes), blendgan(kind, **changes)
    hidden = [name for name in ("batch", "queue", "views", "photos", "steps", "_others") if hasattr(recorded, name)]
    assert len(hidden) >= 2

    def record(work: Callable[[], None]) -> Callable[[], None]:
        first, again = True, played(work, list(recorded.nets.values()))

        def replay() -> None:
            nonlocal first
            if not first:  # recording has computed on the CPU, which it does not on a GPU
                kept = {name: getattr(recorded, name) for name in hidden}
                for name in hidden:
                    delattr(recorded, name)
                again()
                for name, value in kept.items():
                    setattr(recorded, name, value)
            first = False

        return replay

    graphs = Graphs(CPU, record)
    for step in range(WARM_UP + (10 if kind is Gan else 4)):
        found = []
        for system, how in ((plain, None), (recorded, graphs)):
            begin(system, step)
            found.append(run_step(system.phases, step, CPU, graphs=how))
        assert found[0].keys() == found[1].keys()
    assert set(graphs._recorded) == {phase.name for phase in plain.phases}
    for name, net in plain.nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(recorded.nets[name].state_dict()[key], value), f"{name}.{key}"
    if kind is Gan:
        assert torch.equal(plain.queue.codes, recorded.queue.codes)
        assert all(torch.equal(path.mean, recorded.paths[name].mean) for name, path in plain.paths.items())


@pytest.mark.parametrize("bad", [(0,), (2,), (0, 2, 4), (10,)], ids=str)
def test_a_skipped_penalty_does_not_part_its_phases(bad: tuple[int, ...]) -> None:
    """The penalty's gradient goes through the graph that the lengths have left, which it would free where only these
    are recorded."""
    system = blendgan(Gan, r1=0.0, lambda_latent=0.0)
    graphs = Graphs(CPU, lambda work: (work(), lambda: None)[1])
    lengths = next(phase for phase in system.phases if phase.name == "path lengths")
    first: dict[str, int] = {}
    given = lengths.inputs
    for step in range(2 * WARM_UP + 8):
        lengths.inputs = lambda step=step: tuple(x * float("nan") if step in bad and x.is_floating_point() else x
                                                 for x in given())  # fmt: skip
        begin(system, step)
        try:
            run_step(system.phases, step, CPU, graphs=graphs)
        except NotFinite as error:
            assert step in bad and error.phase is lengths
        for name in graphs._recorded:
            first.setdefault(name, step)
        if "path length penalty" in graphs._recorded:
            break
    assert first["path lengths"] == first["path length penalty"] == 2 * (WARM_UP + sum(step < 10 for step in bad))
    whole = [step for step in range(2 * WARM_UP + 8) if step not in bad]
    assert first["generator"] == whole[WARM_UP - 1] + 1


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", [Style, pytest.param(Inversion, marks=pytest.mark.heavy)])
def test_compiled_stages_of_blendgan(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's tracing alone: the same losses, up to what moves with the order of sums."""
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        seen.append(len(list(graph.graph.nodes)))
        return graph.forward

    monkeypatch.setattr(acceleration, "COMPILER", backend)
    check_compiled(kind)
    assert seen


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["paper", "matching"])
def test_compiled_blendgan_trains_with_its_penalties(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile makes has no gradients of second order, so penalties and path lengths go without it."""
    monkeypatch.setattr(acceleration, "COMPILER", "aot_eager")
    found, compiled = check_compiled(Gan, latent_loss=mode)
    assert "path_style" in found and any(name.startswith("r1") for name in found)
    # in place of the methods that training calls
    assert {"render"} <= set(vars(compiled.nets["G"])) and {"summed"} <= set(vars(compiled.nets["D_latent"]))


def check_compiled(kind: type[Any], **changes: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Two steps with and without torch.compile; the losses of the first one, which are the same, and the system."""
    torch._dynamo.reset()
    plain, compiled = blendgan(kind, **changes), blendgan(kind, **changes)
    acceleration.compile_nets(list(compiled.nets.values()), CPU)
    first: dict[str, torch.Tensor] = {}
    for step in (0, 1):
        found = []
        for system in (plain, compiled):
            begin(system, step)
            found.append(run_step(system.phases, step, CPU))
        assert found[0].keys() == found[1].keys()
        assert all(bool(value.isfinite()) for value in found[1].values())
        for name in found[0] if step == 0 else ():  # behind Adam's first step rounding is a step of its own
            torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-3, atol=1e-4)
        first = first or found[0]
    for name, net in plain.nets.items():
        assert list(net.state_dict()) == list(compiled.nets[name].state_dict())
    return first, compiled


@pytest.mark.heavy
def test_compiled_gnr_trains_with_its_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile makes has no gradients of second order, so the penalised pass goes without it."""
    monkeypatch.setattr(acceleration, "COMPILER", "aot_eager")
    config = tiny_config(size=64, num_down=3)
    plain, compiled = GNR(config, CPU), GNR(config, CPU)
    acceleration.compile_nets(list(compiled.nets.values()), CPU)
    source = torch.Generator().manual_seed(5)
    for step in (0, 1):
        batch = Batch(*(torch.rand(2, 3, 64, 64, generator=source) * 2 - 1 for _ in range(4)))
        found = []
        for model in (plain, compiled):
            model.begin(batch, 2 * step)
            found.append(run_step(model.phases, step, CPU))
        assert found[0].keys() == found[1].keys() and ("r1" in found[0]) == (step == 0)
        for name in found[0] if step == 0 else ():  # behind Adam's first step rounding is a step of its own
            torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-3, atol=1e-4)
