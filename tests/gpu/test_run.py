"""tests/gpu/run.py, as far as a machine without a GPU can tell."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("run.py")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_run", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(runner: ModuleType, tmp_path: Path) -> Any:
    (tmp_path / "target" / "anifast").mkdir(parents=True)
    return runner.Run(tmp_path, tmp_path, time.monotonic() + 60, {"capability": "9.0"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "all", "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("make gpu: error: torch") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_tests_need_the_golden_cases(run: Any, runner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIFAST_SHARED", str(run.out))
    with pytest.raises(runner.Failed, match="golden cases are not at .*set ANIFAST_SHARED"):
        runner.test(run)


@pytest.mark.parametrize("skipped", ["test_golden_ops", "everything", "test_another_device"])
def test_a_golden_case_that_did_not_run_fails(
    run: Any, runner: ModuleType, monkeypatch: pytest.MonkeyPatch, skipped: str
) -> None:
    (run.out / "golden").mkdir()
    (run.out / "golden" / "golden.py").touch()
    monkeypatch.setenv("ANIFAST_SHARED", str(run.out))

    def fake(self: object, *arguments: object, **options: object) -> str:
        cases = f'<testcase classname="gpu" name="{skipped}"><skipped message="why"/></testcase>'
        if skipped != "everything":
            cases += '<testcase classname="test_op_gpu" name="test_golden_op"/>'
        (run.out / "tests.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        return "1 skipped"

    monkeypatch.setattr(runner.Run, "run", fake)
    if "golden" in skipped:
        with pytest.raises(runner.Failed, match="golden cases were skipped: gpu::test_golden_ops"):
            runner.test(run)
    elif skipped == "everything":
        with pytest.raises(runner.Failed, match="no golden case ran on the GPU"):
            runner.test(run)
    else:
        assert runner.test(run)["skipped"] == {f"gpu::{skipped}": "why"}


def test_the_package_comes_first_and_the_repository_is_not_on_the_path(
    run: Any, runner: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("ANIFAST_BACKEND", "reference")
    environment = run.environment()
    assert environment["PYTHONPATH"] == str(run.target)
    assert "ANIFAST_BACKEND" not in environment and environment["ANIFAST_GPU_TARGET"] == str(run.target)


def test_a_command_that_fails_or_hangs_ends_its_part(run: Any, runner: ModuleType) -> None:
    def python(program: str) -> str:
        command = [sys.executable, "-c", program]
        return run.run("some.log", command, environment={}, cwd=run.out, what="step")

    assert python("print(5)") == "5\n"
    with pytest.raises(runner.Failed, match="anifast: error: no torch\n6\n"):
        python("print('anifast: error: no torch', *range(31), sep='\\n'); raise SystemExit(1)")
    with pytest.raises(runner.Failed, match=r"step: exit status 3; see .*some.log\nso it goes"):
        python("print('so it goes'); raise SystemExit(3)")
    run.end = time.monotonic() + 1.5
    with pytest.raises(runner.Failed, match="step: stopped after"):
        python("import time; time.sleep(60)")
    with pytest.raises(runner.Failed, match="step: no time is left"):
        python("print(5)")


@pytest.mark.parametrize("late", ["", "quick", "bench_twingan"])
def test_benchmarks_go_as_far_as_the_time_does(
    run: Any, runner: ModuleType, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """The ops' must come to their end; Twin-GAN's are the installed package's, with the repository's benchmarks."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    called: list[list[str]] = []

    def fake(self: Any, log: str, command: list[str], *, environment: dict[str, str], what: str, **_: Any) -> str:
        called.append(command)
        if "benchmarks.systems.bench_twingan" in command:
            assert environment["PYTHONPATH"] == f"{run.target}:{runner.ROOT}"
        if late and late in " ".join(command):
            raise runner.Failed(f"{what}: stopped after 5 s, the time of --minutes; see {log}")
        return ""

    monkeypatch.setattr(runner.Run, "run", fake)
    found = runner.bench(run)
    assert len(called) == 3 and "--quick" in called[1]
    assert found["quick"].startswith("not finished" if late == "quick" else "in bench.log")
    assert found["twingan"].startswith("not finished" if late == "bench_twingan" else "in bench.log")
    assert "at length: python -m benchmarks.systems.bench_twingan" in found["summary"]
    (rows,) = [command[command.index("--only") + 1 : command.index("--out")] for command in called if "-m" in command]
    from benchmarks.systems.bench_twingan import ROWS

    assert sorted(rows) == sorted(ROWS["cuda"])

    def wrong(*_: Any, what: str, **__: Any) -> str:
        raise runner.Failed(f"{what}: exit status 1")

    monkeypatch.setattr(runner.Run, "run", wrong)
    with pytest.raises(runner.Failed, match="exit status 1"):
        runner.as_far_as_time_goes(run, [], {}, "benchmark", "")


def test_parts_need_an_installed_package(run: Any, runner: ModuleType) -> None:
    run.work = run.out / "elsewhere"
    for part in (runner.test, runner.sanitize, runner.bench):
        with pytest.raises(runner.Failed, match="nothing is installed in .*: do `python tests/gpu/run.py build` first"):
            part(run)
