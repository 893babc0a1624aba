"""Several processes train as one: the same step, one writer, checkpoints that go on with any number of them.

Processes are real ones and talk through gloo. Weights after a step of two differ from those of one by the rounding of
sums over the batch only, so the exact comparison runs in float64.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_cyclegan import ROOT, command, leftovers, read, resume, start, train

from anifast.engine import distributed
from anifast.engine.distributed import Team, alone
from anifast.engine.log import Meter
from anifast.engine.loop import Phase, run_step
from anifast.errors import AnifastError, ToldElsewhere
from anifast.files import atomic_path
from anifast.systems import runs
from anifast.systems.cyclegan.config import make
from anifast.systems.cyclegan.training import CycleGAN, Pictures

CPU = torch.device("cpu")
SMALL = {"size": 32, "blocks": 1, "width": 8, "d_width": 8, "batch": 4, "pool_size": 6, "ema": 100}
STEPS = 4

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def several(program: str, world: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Run `program`, in which `team` is known and `tests` is this file, in processes as torchrun starts them."""
    indented = "".join(f"    {line}\n" for line in program.splitlines())
    whole = (
        "import importlib, os, sys, torch\n"
        "sys.path[:0] = ['tests', 'tests/engine']\n"
        "import test_distributed as tests\n"
        "from anifast.engine import distributed\n"
        "threads = lambda: [open(f'/proc/self/task/{n}/comm').read() for n in os.listdir('/proc/self/task')] "
        "if os.path.exists('/proc/self/task') else []\n"
        f"with distributed.team('cpu') as team:\n{indented}"
        "assert not any('gloo' in name for name in threads()), threads()\n"
    )
    processes = []
    for place in places(world):
        environment = os.environ | place
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", whole],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    ended = []
    for process in processes:
        said, errors = process.communicate(timeout=100)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, said, errors))
    return ended


def places(world: int = 2) -> list[dict[str, str]]:
    """The environment that torchrun gives to each process."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def words_of(data: Path, out: Path, resumed: bool = False) -> tuple[object, ...]:
    sizes = ("--resume",) if resumed else ("--size", 32, "--blocks", 1, "--width", 8, "--d-width", 8)
    return ("train", "cyclegan", "--data", data, "--out", out, "--device", "cpu", *sizes)


def torchrun(data: Path, out: Path, *options: object, resumed: bool = False) -> subprocess.CompletedProcess[str]:
    """A run of two processes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "anifast")
    words = command(*launcher, *words_of(data, out, resumed), *options)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


# --- the step


def trained(team: Team, data: Path, steps: range, begun: dict[str, Any] | None = None) -> dict[str, Any]:
    """Steps in float64 on this process's part of each batch: networks, optimisers, pools, averages, losses, place."""
    config = make("reference", SMALL)
    model = CycleGAN(config, CPU, team=team)
    assert model.ema is not None
    for net in [*model.nets.values(), *model.ema.nets.values()]:
        net.double()
    pictures, meter = Pictures(data, config, CPU, team), Meter()
    if begun is not None:
        model.load_state_dict(begun)
        model.ema.load_state_dict(begun["ema"])
        pictures.load_state_dict(begun["data"])
        meter.load_state_dict(begun["meter"], CPU)
    for step in steps:
        a, b = pictures.next()
        assert len(a) == config.batch // team.world
        model.begin((a.double(), b.double()), config.batch * step)
        meter.add(run_step(model.phases, step, CPU, team=team))
        model.ema.update(config.batch)
    state = {"ema": model.ema.state_dict(), "meter": meter.state_dict(team), "data": pictures.state_dict()}
    return {**copy.deepcopy(model.state_dict()), **state}


def steps_of_two(team: Team, folder: str, data: str) -> None:
    """The first half from the start, and the second half of what one process has begun."""
    half = trained(team, Path(data), range(STEPS // 2))
    torch.save(half, Path(folder) / f"half of {team.rank}.pt")
    whole = trained(team, Path(data), range(STEPS // 2, STEPS), read(Path(folder) / "half of one.pt"))
    torch.save(whole, Path(folder) / f"whole of {team.rank}.pt")


def flat(state: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{name}.{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{name}.{i}").items()}
    return {name: state}


def assert_equal(one: dict[str, Any], other: dict[str, Any], rtol: float = 0.0, atol: float = 0.0) -> None:
    """Two states, tensors within a tolerance."""
    one, other = flat(one), flat(other)
    assert list(one) == list(other)
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(one[name], value, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")
        else:
            assert one[name] == value, name


def test_steps_of_two_are_steps_of_one_on_the_joined_batch(data: Path, tmp_path: Path) -> None:
    """And what two have saved goes on with one, and the other way round, as if nothing had happened."""
    start, end = range(STEPS // 2), range(STEPS // 2, STEPS)
    half = trained(alone(), data, start)
    torch.save(half, tmp_path / "half of one.pt")
    for process in several(f"tests.steps_of_two(team, {str(tmp_path)!r}, {str(data)!r})"):
        assert process.returncode == 0, process.stderr
    found = {path.stem: read(path) for path in tmp_path.glob("*.pt")}
    whole = trained(alone(), data, range(STEPS))
    assert whole["pools"]["A"]["count"] == 6 and whole["pools"]["A"]["images"].dtype == torch.float64
    assert_equal(found["half of 1"], found["half of 0"])  # bit for bit
    assert_equal(found["whole of 1"], found["whole of 0"])
    # Rounding of float64, enlarged by Adam's division by the root of small second moments.
    close = {"rtol": 1e-7, "atol": 1e-10}
    assert_equal(found["half of 0"], half, **close)
    assert_equal(found["whole of 0"], whole, **close)
    assert_equal(trained(alone(), data, end, found["half of 0"]), whole, **close)
    with pytest.raises(AssertionError):  # the comparison sees a step more
        assert_equal(half, whole, **close)


def bad_steps(team: Team) -> None:
    """A loss that is not finite in the second process only, then one in the first, then none."""
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(net.weight)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for bad, what in ((1, "inf"), (0, "nan"), (None, "0")):
        x = torch.ones(1, 2) * (1.0 + team.rank)

        def loss(x: torch.Tensor, bad: int | None = bad, what: str = what) -> Any:
            value = net(x).mean() + (float(what) if team.rank == bad else 0.0)  # its gradient is finite
            return value, {"loss": value.detach()}

        phase = Phase("fit", loss, optimizer, [net], lambda x=x: (x,))  # type: ignore[misc]
        before = net.weight.detach().clone()
        if bad is not None:
            with pytest.raises(FloatingPointError, match=f"the loss of phase fit is {what}"):
                run_step([phase], 0, CPU, team=team)
            assert torch.equal(net.weight, before)
        else:
            run_step([phase], 0, CPU, team=team)
            torch.testing.assert_close(net.weight.detach(), before - 0.1 * 1.5)


def test_a_bad_loss_in_one_process_stops_the_step_in_all() -> None:
    for process in several("tests.bad_steps(team)"):
        assert process.returncode == 0, process.stderr


def test_processes_get_their_parts_of_the_joined_batch(data: Path) -> None:
    for pairing in ("unaligned", "paired"):
        config = make("reference", SMALL | {"pairing": pairing})
        whole = Pictures(data, config, CPU)
        parts = [Pictures(data, config, CPU, Team(CPU, rank, 2)) for rank in range(2)]
        for _ in range(3):
            joined = whole.next()
            pieces = [part.next() for part in parts]
            for domain in range(2):
                assert torch.equal(torch.cat([piece[domain] for piece in pieces]), joined[domain])
        assert whole.state_dict() == parts[0].state_dict() == parts[1].state_dict()


# --- what processes say to each other


def collectives(team: Team, folder: str) -> None:
    rank = team.rank
    tensors = [
        torch.full((3, 2), float(rank)),
        torch.full((5,), 3.0 - rank),
        torch.full((2,), rank, dtype=torch.float64),
    ]
    tensors.append(torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) * (rank + 1))
    distributed.BUCKET = 32  # several buckets, one of them a tensor larger than that
    team.average(tensors)
    for tensor, mean in zip(tensors, (0.5, 2.5, 0.5), strict=False):
        assert torch.equal(tensor, torch.full_like(tensor, mean))
    assert torch.equal(tensors[3], torch.arange(24.0).view(1, 2, 3, 4) * 1.5)
    joined = team.gather(torch.full((2, 1), float(rank)))
    assert joined.flatten().tolist() == [0, 0, 1, 1] and team.share(joined).flatten().tolist() == [rank, rank]
    weights = [torch.full((4, 4), float(rank)).t(), torch.arange(3) + rank]
    team.broadcast(weights)
    assert not weights[0].any() and weights[1].tolist() == [0, 1, 2]
    assert team.largest(3 + 4 * rank) == 7
    done: list[int] = []
    team.lead(lambda: done.append(rank))
    assert done == [0] * (rank == 0)
    path = Path(folder) / "first"
    assert team.in_turn(lambda: path.exists() or path.touch()) == (None if rank == 0 else True)
    team.check_same({"lr": 1.0}, "its settings")
    for failing, error in ((0, AnifastError("no")), (1, ValueError("no")), (1, KeyboardInterrupt())):

        def work(failing: int = failing, error: BaseException = error) -> None:
            if rank == failing:
                raise error

        with pytest.raises(type(error) if rank == failing else ToldElsewhere):
            team.together(work)
    # What fails everywhere is told once; what is no error of the user's keeps its own traceback.
    with pytest.raises(AnifastError) as found:
        team.together(lambda: (_ for _ in ()).throw(AnifastError("all")))
    assert isinstance(found.value, ToldElsewhere) == (rank == 1)
    with pytest.raises(AnifastError, match="differs from process 0 in its settings"):
        team.check_same({"lr": rank}, "its settings")
    with pytest.raises(AnifastError, match="3 cannot be shared out evenly over 2 processes"):
        team.portion(3)
    if rank == 1:
        os._exit(7)
    with pytest.raises(AnifastError, match="another process of this run has ended"):
        for _ in range(100):
            team.largest(0)
    os._exit(0)  # there is nobody left to part from


def test_collectives(tmp_path: Path) -> None:
    first, second = several(f"tests.collectives(team, {str(tmp_path)!r})")
    assert first.returncode == 0, first.stderr
    assert second.returncode == 7, second.stderr


def test_alone_nothing_is_communicated() -> None:
    team = alone()
    x = torch.ones(2)
    assert team.gather(x) is x and team.share(x) is x and team.portion(3) == 3 and team.largest(4) == 4
    team.average([x])
    team.broadcast([x])
    team.check_same(1, "x")
    assert team.in_turn(lambda: 5) == 5
    error = AnifastError("x")
    assert team.told(error) is error


@pytest.mark.parametrize(
    ("name", "words"), [("cuda:0", "not here|leave --device out"), ("tpu", "unknown|not supported"), ("cuda", "no GPU")]
)
def test_devices_of_processes(monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for key, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(key, str(value))
    with pytest.raises(AnifastError, match=words), distributed.team(name):
        pass


# --- runs


INTERVALS = ("--log-every", 4, "--save-every", 6, "--sheet-every", 8, "--pool-size", 3, "--batch", 2, "--ema", 50)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 pictures in one process, without interruption."""
    out = tmp_path_factory.mktemp("straight") / "run"
    torch.manual_seed(0)
    assert train(data, out, "--images", 16, *INTERVALS) == 0
    return out


def assert_goes_on(run: Path, straight: Path) -> None:
    """The same place, decisions and settings, and weights no further off than steps of Adam lead.

    In float32 rounding alone parts two runs within a few steps; that they are the same is shown in float64 above.
    """
    one, other = flat(read(run / "checkpoint.pt")), flat(read(straight / "checkpoint.pt"))
    assert list(one) == list(other)
    for name, value in other.items():
        if not isinstance(value, torch.Tensor):
            assert one[name] == value, name
        else:
            assert one[name].shape == value.shape and one[name].dtype == value.dtype, name
            if name.startswith((".nets", ".ema")):
                assert (one[name] - value).abs().max() < 8 * 2e-4, name


def test_a_run_saved_by_two_goes_on_with_one(data: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = torchrun(data, out, "--images", 8, *INTERVALS)
    assert done.returncode == 0, done.stderr
    # Only the first process has written and talked.
    assert done.stdout.count("train cyclegan") == (out / "log.txt").read_text().count("train cyclegan") == 1
    assert "2 processes, 1 of a batch's 2 images each" in done.stdout
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [4, 8]
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["0000000.png", "0000008.png"]
    assert not leftovers(out) and read(out / "checkpoint.pt")["images"] == 8
    assert resume(data, out, "--images", 16) == 0
    assert_goes_on(out, straight)
    one, other = ((path / "metrics.jsonl").read_text().splitlines() for path in (out, straight))
    for mine, theirs in zip(map(json.loads, one), map(json.loads, other), strict=True):
        for name in set(theirs) - {"images_per_second", "data_wait"}:
            assert mine[name] == pytest.approx(theirs[name], rel=2e-2), name


def test_a_run_saved_by_one_goes_on_with_two(data: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    torch.manual_seed(0)
    assert train(data, out, "--images", 8, *INTERVALS) == 0
    done = torchrun(data, out, "--images", 16, resumed=True)
    assert done.returncode == 0, done.stderr
    assert_goes_on(out, straight)


def test_sigterm_to_one_ends_all_at_the_same_step(data: Path, tmp_path: Path) -> None:
    """The second process is told; the first one saves, and nobody is left waiting."""
    out = tmp_path / "run"
    words = (*words_of(data, out), "--images", 1000, *INTERVALS)
    processes = [start(*words, **place) for place in places()]
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.pt").exists():
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [130, 130], said
    assert "SIGTERM: stopped at image" in said[0][0] and said[1] == ("", "")
    images = read(out / "checkpoint.pt")["images"]
    assert images < 1000 and f"stopped at image {images} of 1000; saved" in said[0][0]


def run_of(team: Team, data: str, out: str, images: int) -> bool:
    """A training run in a process that is one of a team already."""
    values = {key: value for key, value in SMALL.items() if key != "batch"}
    values |= {"images": images, "batch": 2, "log_every": 2, "save_every": 4, "sheet_every": 4}
    return runs._train(team, "cyclegan", Path(data), Path(out), None, values, resume=False)


def signalled_twice(team: Team, data: str, out: str) -> None:
    """Each process gets SIGTERM in its third step and again in the last save."""
    pictures, meter = Pictures.next, Meter.state_dict
    seen: list[int] = []

    def next_one(self: Pictures) -> Any:
        seen.append(1)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        return pictures(self)

    def again(self: Meter, team: Team | None = None) -> dict[str, Any]:
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        return meter(self, team)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictures, "next", next_one)
        patch.setattr(Meter, "state_dict", again)
        assert not run_of(team, data, out, 100)


def test_a_second_signal_does_not_end_the_last_save(data: Path, tmp_path: Path) -> None:
    """One Ctrl-C comes to the processes of torchrun from the terminal and from torchrun."""
    out = tmp_path / "run"
    for process in several(f"tests.signalled_twice(team, {str(data)!r}, {str(out)!r})"):
        assert process.returncode == 0, process.stderr
    assert read(out / "checkpoint.pt")["images"] == 6 and not leftovers(out)


def forbid_writing(folder: str) -> list[str]:
    """From now on this process cannot write below a folder; gives the list of what it has tried."""
    tried: list[str] = []

    def look(event: str, words: tuple[Any, ...]) -> None:
        if event == "open":
            mode, flags = words[1:3]
            writes = any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
        if writes and any(isinstance(word, str | os.PathLike) and os.fspath(word).startswith(folder) for word in words):
            tried.append(f"{event} {words}")
            raise PermissionError(f"only the first process writes: {event} {words}")

    sys.addaudithook(look)
    return tried


def first_writes(team: Team, data: str, out: str) -> None:
    """A run in which the second process cannot write into the run folder, and does not try to."""

    def refuse(*_: object) -> None:
        raise PermissionError("only the first process writes")

    tried: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        if team.rank > 0:
            patch.setattr(torch, "save", refuse)  # it opens files without asking Python
            tried = forbid_writing(out)
            with pytest.raises(PermissionError, match="first"):  # the check can see
                open(out + "/x", "w")
            with pytest.raises(AnifastError, match="first"), atomic_path(Path(out, "x")):
                pass
            assert len(tried) >= 2
            tried.clear()
        assert run_of(team, data, out, 8)
    assert tried == []


def test_only_the_first_process_writes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for process in several(f"tests.first_writes(team, {str(data)!r}, {str(out)!r})"):
        assert process.returncode == 0, process.stderr
    assert read(out / "checkpoint.pt")["images"] == 8
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["0000000.png", "0000004.png", "0000008.png"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc on this system")
def test_no_thread_of_the_group_outlives_it() -> None:
    """One that did would abort the process at its exit, now and then; imports that come late used to keep the group."""
    program = (
        "importlib.import_module('torch.distributed.nn.functional')\n"
        "team.average([torch.ones(3)])\n"
        "assert any('gloo' in name for name in threads()), threads()"
    )
    for process in several(program):  # which looks again when the team has parted
        assert process.returncode == 0, process.stderr


def test_errors_of_several_processes_are_told_once(data: Path, straight: Path, tmp_path: Path) -> None:
    cases = [
        (data, tmp_path / "odd", ("--batch", 3), "3 cannot be shared out evenly over 2 processes"),
        (data, straight, (), "already holds a run"),
    ]
    for faces, out, options, words in cases:
        done = torchrun(faces, out, "--images", 4, *options)
        lines = [line for line in done.stderr.splitlines() if "anifast: error: " in line]
        assert done.returncode != 0 and len(lines) == 1 and words in lines[0], done.stderr
    assert not (tmp_path / "odd").exists()
