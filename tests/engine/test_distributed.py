"""Several processes train as one: the same step, one writer, checkpoints that go on with any number of them.

Processes are real ones and talk through gloo. Weights after a step of two differ from those of one by the rounding of
sums over the batch only, so the exact comparison runs in float64.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_cyclegan import ROOT, command, data_folder, leftovers, own_cache, read, start, train

from anifast.engine import distributed
from anifast.engine.distributed import Team, alone
from anifast.engine.log import Meter
from anifast.engine.loop import run_step
from anifast.errors import AnifastError, ToldElsewhere
from anifast.systems.cyclegan.config import make
from anifast.systems.cyclegan.training import CycleGAN, Pictures

CPU = torch.device("cpu")
SMALL = {"size": 32, "blocks": 1, "width": 8, "d_width": 8, "batch": 4, "pool_size": 6, "ema": 100}
STEPS = 4

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    with own_cache(root / "cache"):
        yield data_folder(root / "faces")


def several(call: str, *words: object, world: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """`call(team, *words)` of this file in `world` processes that find each other by a file; how each ended."""
    processes = []
    folder = Path(str(words[0]))
    program = (
        "import sys, torch\n"
        "sys.path[:0] = ['tests', 'tests/engine']\n"
        "import test_distributed as tests, torch.distributed as dist\n"
        "from anifast.engine.distributed import Team\n"
        f"rank = int(sys.argv[1])\n"
        f"dist.init_process_group('gloo', init_method={f'file://{folder}/meeting'!r}, rank=rank, world_size={world})\n"
        f"tests.{call}(Team(tests.CPU, rank, {world}), *sys.argv[2:])\n"
        "dist.destroy_process_group()\n"
    )
    for rank in range(world):
        arguments = [sys.executable, "-c", program, str(rank), *command(*words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                arguments, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    ended = []
    for process in processes:
        said, errors = process.communicate(timeout=100)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, said, errors))
    return ended


def torchrun(data: Path, out: Path, *options: object, world: int = 2) -> list[str]:
    """The command line of a run with several processes."""
    sizes = ("--size", 32, "--blocks", 1, "--width", 8, "--d-width", 8) if "--resume" not in options else ()
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", world, "-m", "anifast")
    words = ("train", "cyclegan", "--data", data, "--out", out, "--device", "cpu", *sizes, *options)
    return [sys.executable, *command(*launcher, *words)]


def launch(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


# --- the step


def trained(team: Team, data: Path) -> dict[str, Any]:
    """Some steps in float64 on this process's part of each batch: the state, the losses, the pictures of the pools."""
    config = make("reference", SMALL)
    model = CycleGAN(config, CPU, team=team)
    for net in [*model.nets.values(), *model.ema.nets.values()] if model.ema else []:
        net.double()
    pictures = Pictures(data, config, CPU, team)
    meter = Meter()
    for step in range(STEPS):
        a, b = pictures.next()
        assert len(a) == SMALL["batch"] // team.world
        model.begin((a.double(), b.double()), 4 * step)
        meter.add(run_step(model.phases, step, CPU, team=team))
        assert model.ema is not None
        model.ema.update(config.batch)
    return {
        **model.state_dict(),
        "ema": model.ema.state_dict(),
        "meter": meter.take(team),
        "data": pictures.state_dict(),
    }


def step_and_write(team: Team, folder: str, data: str) -> None:
    state = trained(team, Path(data))
    torch.save(state, Path(folder) / f"{team.rank}.pt")


def flat(state: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, f"{name}.{key}").items()}
    if isinstance(state, list | tuple):
        return {k: v for i, value in enumerate(state) for k, v in flat(value, f"{name}.{i}").items()}
    return {name: state}


def test_a_step_of_two_is_a_step_of_one_on_the_joined_batch(data: Path, tmp_path: Path) -> None:
    for process in several("step_and_write", tmp_path, data):
        assert process.returncode == 0, process.stderr
    one = flat(trained(alone(), data))
    first, second = (flat(read(tmp_path / f"{rank}.pt")) for rank in range(2))
    assert one[".pools.A.count"] == 6 and one[".pools.A.images"].dtype == torch.float64
    for name, value in first.items():  # bit for bit
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name], name
    assert list(one) == list(first)
    moved = 0
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                first[name], value, rtol=1e-7, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
            )
            moved += name.startswith(".nets")
        elif isinstance(value, float):
            assert first[name] == pytest.approx(value, rel=1e-9), name
        else:
            assert first[name] == value, name
    assert moved > 20


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


def test_collectives(tmp_path: Path) -> None:
    first, second = several("collectives", tmp_path)
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


def assert_close(run: Path, straight: Path) -> None:
    """The same run but for rounding: float32 sums over other parts of a batch, and Adam's first steps enlarge it."""
    one, other = flat(read(run / "checkpoint.pt")), flat(read(straight / "checkpoint.pt"))
    assert list(one) == list(other)
    for name, value in other.items():
        if name.startswith((".rng", ".config.images")):
            continue
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert one[name].shape == value.shape and one[name].dtype == value.dtype, name
            difference = (one[name] - value).abs().max().item() if value.numel() else 0.0
            assert difference < 2e-3 * max(1.0, value.abs().max().item()), (name, difference)
        elif not isinstance(value, torch.Tensor):
            assert one[name] == value, name


def test_a_run_saved_by_two_goes_on_with_one(data: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = launch(torchrun(data, out, "--images", 8, *INTERVALS))
    assert done.returncode == 0, done.stderr
    # Only the first process has written and talked.
    assert done.stdout.count("train cyclegan") == (out / "log.txt").read_text().count("train cyclegan") == 1
    assert "2 processes, 1 of a batch's 2 images each" in done.stdout
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [4, 8]
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["0000000.png", "0000008.png"]
    assert not leftovers(out) and read(out / "checkpoint.pt")["images"] == 8
    assert train_on(data, out, "--images", 16) == 0
    assert_close(out, straight)
    one, other = ((path / "metrics.jsonl").read_text().splitlines() for path in (out, straight))
    for mine, theirs in zip(map(json.loads, one), map(json.loads, other), strict=True):
        for name in set(theirs) - {"images_per_second", "data_wait"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name


def train_on(data: Path, out: Path, *options: object) -> int:
    from tiny_cyclegan import resume

    return resume(data, out, *options)


def test_a_run_saved_by_one_goes_on_with_two(data: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    torch.manual_seed(0)
    assert train(data, out, "--images", 8, *INTERVALS) == 0
    done = launch(torchrun(data, out, "--resume", "--images", 16))
    assert done.returncode == 0, done.stderr
    assert_close(out, straight)


def test_sigterm_to_one_ends_all_at_the_same_step(data: Path, tmp_path: Path) -> None:
    """The second process is told; the first one saves, and nobody is left waiting."""
    out = tmp_path / "run"
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    words = torchrun(data, out, "--images", 2000, *INTERVALS)[7:]
    processes = [start(*words, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)]
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
    assert images < 2000 and f"stopped at image {images} of 2000; saved" in said[0][0]


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_errors_of_several_processes_are_told_once(data: Path, straight: Path, tmp_path: Path) -> None:
    cases = [
        (data, tmp_path / "odd", ("--batch", 3), "3 cannot be shared out evenly over 2 processes"),
        (data, straight, (), "already holds a run"),
    ]
    for faces, out, options, words in cases:
        done = launch(torchrun(faces, out, "--images", 4, *options))
        lines = [line for line in done.stderr.splitlines() if "anifast: error: " in line]
        assert done.returncode != 0 and len(lines) == 1 and words in lines[0], done.stderr
    assert not (tmp_path / "odd").exists()
