"""What `make gpu` does on a machine with a GPU: `python tests/gpu/run.py build|test|sanitize|bench|all [--out DIR]`.

    build     installs this source tree into a fresh folder with this python (no environment, no network), imports it
              outside the repository and looks for this GPU's machine code in the extension
    test      runs the GPU tests and the op tests against that folder; golden cases must not be skipped
    sanitize  runs small cases under compute-sanitizer, after a planted error has shown that it finds one
    bench     measures every op (benchmarks/run.py), and then Twin-GAN as far as the time goes; at length that is
              `OMP_WAIT_POLICY=ACTIVE python -m benchmarks.systems.bench_twingan --out benchmarks/results`
    all       the four in this order, within --minutes

Reports are left in --out (default build/gpu/report): gpu.json with what each part found, the logs, and results/ of the
benchmarks. Exit status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "anifast", "csrc", "kernels")
TOOLS = ("memcheck", "racecheck", "synccheck")
#: What is measured of Twin-GAN, the rows with aims first.
TWINGAN = ("4", "8", "16", "32", "256", "64", "32to64", "128", "translate-64", "translate-256", "search")


class Failed(Exception):
    """A part cannot be done or found something wrong; the text is one line."""


@dataclass
class Run:
    """The folders of a run, its GPU and its time."""

    out: Path
    work: Path
    end: float
    gpu: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> Path:
        """Where the package is installed."""
        return self.work / "target"

    def environment(self) -> dict[str, str]:
        """For programs that use the installed package and nothing of the repository."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANIFAST_", "PYTHONPATH"))}
        shared = os.environ.get("ANIFAST_SHARED") or str(ROOT.parent / "shared")
        own = {"ANIFAST_GPU_TARGET": str(self.target), "ANIFAST_SHARED": str(Path(shared).resolve())}
        paths = [str(self.target), os.environ.get("PYTHONPATH", "")]
        return kept | own | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}

    def run(self, log: str, command: list[str], *, environment: dict[str, str], cwd: Path, what: str) -> str:
        """Run a command into a log file and return its output; Failed where it fails or outlasts the time."""
        left = self.end - time.monotonic()
        if left < 1:
            raise Failed(f"{what}: no time is left (--minutes)")
        path = self.out / log
        with path.open("a", encoding="utf-8") as lines:
            lines.write(f"$ {' '.join(command)}\n")
            lines.flush()
            begin = lines.tell()
            try:
                done = subprocess.run(command, stdout=lines, stderr=lines, env=environment, cwd=cwd, timeout=left)
            except subprocess.TimeoutExpired:
                raise Failed(f"{what}: stopped after {left:.0f} s, the time of --minutes; see {path}") from None
            except OSError as problem:
                raise Failed(f"{what}: {problem}") from None
        text = path.read_bytes()[begin:].decode("utf-8", "replace")
        if done.returncode:
            said = text.splitlines()
            told = [line for line in said[:-25] if "anifast: error" in line]  # above what pip says about it
            tail = "\n".join([*told, *said[-25:]])
            raise Failed(f"{what}: exit status {done.returncode}; see {path}\n{tail}")
        return text


def find_gpu() -> dict[str, Any]:
    """The GPU that torch sees, asked in a process of its own."""
    program = (
        "import json, torch\n"
        "found = {'torch': torch.__version__, 'cuda': torch.version.cuda, 'gpu': None}\n"
        "if torch.cuda.is_available():\n"
        "    found['gpu'] = torch.cuda.get_device_name()\n"
        "    found['capability'] = '.'.join(map(str, torch.cuda.get_device_capability()))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Failed(f"{sys.executable} has no usable torch ({reason}); name one that has: make gpu PYTHON=...")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["gpu"] is None:
        raise Failed(f"torch {found['torch']} sees no GPU here; it takes an NVIDIA GPU and a CUDA build of torch")
    found["python"] = sys.version.split()[0]
    return found


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the path, in CUDA_HOME, or brought by Triton."""
    nvcc = shutil.which("nvcc")
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    homes += [Path(nvcc).resolve().parents[1]] if nvcc else []
    folders = [home / name for home in homes for name in ("bin", "compute-sanitizer")]
    script = "import triton.backends.nvidia as n; print(n.__path__[0])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    folders += [Path(found.stdout.strip()) / "bin"] if found.returncode == 0 else []
    return shutil.which(name) or next((str(f / name) for f in folders if (f / name).is_file()), None)


def build(run: Run) -> dict[str, Any]:
    """Install into a fresh folder, import there, and look into the binary."""
    source = run.work / "source"
    for folder in (source, run.target):
        shutil.rmtree(folder, ignore_errors=True)
    source.mkdir(parents=True)
    unwanted = shutil.ignore_patterns("*.so", "_build.json", "__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=unwanted)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    environment = os.environ | {
        "ANIFAST_BUILD": "cuda",
        "TORCH_CUDA_ARCH_LIST": run.gpu["capability"],
        "MAX_JOBS": os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1),
    }
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-v"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--target", str(run.target), str(source)]
    start = time.monotonic()
    run.run("build.log", command, environment=environment, cwd=source, what="pip install")
    seconds = time.monotonic() - start

    program = (
        "import json, anifast, anifast.ops\n"
        "from anifast import _native, backends\n"
        "import anifast.kernels\n"
        "print(json.dumps({'file': anifast.__file__, 'kernels': anifast.kernels.__file__, 'reason': _native.reason,\n"
        "    'devices': sorted(_native.devices), 'build': _native.build_info,\n"
        "    'backends': [row[:3] + (row[3],) for row in backends.report('cuda')]}))\n"
    )
    with tempfile.TemporaryDirectory() as elsewhere:
        command = [sys.executable, "-c", program]
        text = run.run("build.log", command, environment=run.environment(), cwd=Path(elsewhere), what="import")
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    for key in ("file", "kernels"):
        if not Path(found[key]).resolve().is_relative_to(run.target.resolve()):
            raise Failed(f"import: {found[key]} is not below {run.target}")
    if (run.target / "kernels").exists():
        raise Failed(f"import: a top-level package `kernels` was installed into {run.target}")
    if "cuda" not in found["devices"]:
        raise Failed(f"import: no CUDA kernels: {found['reason'] or found['build']}")

    extensions = sorted((run.target / "anifast").glob("_C*.so"))
    program_path = tool("cuobjdump")
    if program_path is None:
        raise Failed("cuobjdump was not found (CUDA_HOME/bin, the path, Triton's folder) to look into the binary")
    command = [program_path, "--list-elf", str(extensions[0])]
    listed = run.run("build.log", command, environment=dict(os.environ), cwd=run.work, what="cuobjdump")
    wanted = "sm_" + run.gpu["capability"].replace(".", "")
    archs = sorted(set(re.findall(r"sm_\d+[af]?", listed)))
    if wanted not in archs:
        raise Failed(f"{extensions[0].name} holds no machine code for this GPU ({wanted}), only {archs}")
    return {"seconds": round(seconds), "architectures": archs, "backends": found["backends"], "build": found["build"]}


def need_target(run: Run) -> None:
    """Failed where `build` has not been done."""
    if not (run.target / "anifast").is_dir():
        raise Failed(f"nothing is installed in {run.target}: do `python tests/gpu/run.py build` first")


def test(run: Run) -> dict[str, Any]:
    """The GPU tests and the op tests; golden cases must be there."""
    need_target(run)
    environment = run.environment()
    golden = Path(environment["ANIFAST_SHARED"]) / "golden" / "golden.py"
    if not golden.exists():
        raise Failed(f"golden cases are not at {golden.parent}: set ANIFAST_SHARED to the folder that holds golden/")
    report = run.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-q"]
    # the repository's own root must not come before the installed package
    command += ["-o", f"pythonpath={ROOT / 'tests'}", "--durations=10", f"--junitxml={report}"]
    command += ["-m", "not heavy"]  # the interpreter and the sanitizers of a machine without a GPU
    command += [str(ROOT / "tests" / "gpu"), str(ROOT / "tests" / "ops")]
    with tempfile.TemporaryDirectory() as elsewhere:
        text = run.run("test.log", command, environment=environment, cwd=Path(elsewhere), what="pytest")
    skipped, ran = {}, []
    for case in ElementTree.parse(report).iter("testcase"):
        name, mark = f"{case.get('classname')}::{case.get('name')}", case.find("skipped")
        if mark is None:
            ran.append(name)
        else:
            skipped[name] = mark.get("message", "")
    without = [name for name in skipped if "golden" in name]
    if without:
        raise Failed(f"golden cases were skipped: {', '.join(without)}")
    if not any("_gpu" in name and "golden" in name for name in ran):
        raise Failed(f"no golden case ran on the GPU; skipped: {skipped}")
    return {"summary": text.strip().splitlines()[-1].strip("= "), "skipped": skipped}


def sanitize(run: Run) -> dict[str, Any]:
    """Small cases under compute-sanitizer."""
    need_target(run)
    program, nvcc = tool("compute-sanitizer"), tool("nvcc")
    if program is None or nvcc is None:
        return {"unavailable": f"{'nvcc' if program else 'compute-sanitizer'} was not found"}
    options = ["--error-exitcode", "99", "--report-api-errors", "no"]
    planted = run.work / "planted"
    arch = "sm_" + run.gpu["capability"].replace(".", "")
    command = [nvcc, f"-arch={arch}", "-o", str(planted), str(HERE / "planted.cu")]
    run.run("sanitize.log", command, environment=dict(os.environ), cwd=run.work, what="nvcc planted.cu")
    # torch's own kernels need no check, if this version can leave them out
    for only in (["--kernel-name", "kns=anifast"], []):  # the namespace of all our kernels
        checked = subprocess.run([program, *options, *only, str(planted)], capture_output=True, text=True)
        said = checked.stdout + checked.stderr
        with (run.out / "sanitize.log").open("a", encoding="utf-8") as log:
            log.write(said)
        if checked.returncode == 99:
            options += only
            break
    else:
        lines = [line.strip("= ") for line in said.splitlines() if "rror" in line or "not supported" in line]
        return {
            "unavailable": f"compute-sanitizer does not find a planted error here: {(lines or ['it says nothing'])[0]}"
        }
    environment = run.environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor a block of its own
    found = {}
    for name in TOOLS:
        command = [program, "--tool", name, *options, sys.executable, str(HERE / "sanitized.py")]
        text = run.run("sanitize.log", command, environment=environment, cwd=run.work, what=name)
        summaries = [line.strip("= ") for line in text.splitlines() if "SUMMARY" in line]
        found[name] = (summaries or ["no summary"])[-1]
        if "sanitized cases ran" not in text:
            raise Failed(f"{name}: the cases did not run; see sanitize.log")
    return found


def bench(run: Run) -> dict[str, Any]:
    """All benchmarks of all ops, briefly; the few quick cases against torch.compile too; Twin-GAN, briefly."""
    need_target(run)
    script = ROOT / "benchmarks" / "run.py"
    if not script.exists():
        raise Failed(f"{script} is missing")
    environment = run.environment() | {"OMP_WAIT_POLICY": "ACTIVE"}
    results = run.out / "results"
    base = [sys.executable, str(script), "--device", "cuda"]
    command = [*base, "--skip", "compile", "--seconds", "0.12", "--out", str(results)]
    run.run("bench.log", command, environment=environment, cwd=run.work, what="benchmarks")
    found: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*/*.json"))}
    quick = [*base, "--quick"]
    found["quick"] = as_far_as_time_goes(run, quick, environment, "quick benchmarks", "with torch.compile")
    # the repository, which has the benchmarks, behind the installed package
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    module = "benchmarks.systems.bench_twingan"
    command = [sys.executable, "-m", module, "--device", "cuda", "--precision", "bf16", "--seconds", "1"]
    command += ["--only", *TWINGAN, "--out", str(results)]
    told = as_far_as_time_goes(run, command, environment, "Twin-GAN's benchmark", "bf16, a second a row")
    found["twingan"] = told
    found["summary"] = f"Twin-GAN {told.split(':')[0]}; at length: python -m {module} --out benchmarks/results"
    return found


def as_far_as_time_goes(run: Run, command: list[str], environment: dict[str, str], what: str, how: str) -> str:
    """Run a command into bench.log; whether it has come to its end. What it has printed by then is there either way."""
    try:
        run.run("bench.log", command, environment=environment, cwd=run.work, what=what)
    except Failed as problem:
        if "--minutes" not in str(problem):
            raise
        return f"not finished: {problem}"
    return f"in bench.log: {how}"


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu" / "report", help="folder of the reports")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", help="folder of the installation")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything together")
    chosen = parser.parse_args()
    try:
        gpu = find_gpu()
    except Failed as problem:
        print(f"make gpu: error: {problem}", file=sys.stderr)
        return 1
    out, work = chosen.out.resolve(), chosen.work.resolve()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    run = Run(out, work, time.monotonic() + chosen.minutes * 60, gpu)
    arch = "sm_" + gpu["capability"].replace(".", "")
    print(f"{gpu['gpu']} ({arch}), torch {gpu['torch']}, python {gpu['python']}", flush=True)
    record: dict[str, Any] = {"machine": gpu, "parts": {}}
    failed = False
    for name in PARTS if chosen.part == "all" else [chosen.part]:
        (out / f"{name}.log").unlink(missing_ok=True)
        start = time.monotonic()
        try:
            part: dict[str, Any] = PARTS[name](run)
            part["state"] = "unavailable" if "unavailable" in part else "passed"
        except Failed as problem:
            part = {"state": "failed", "reason": str(problem)}
        part["seconds_in_all"] = round(time.monotonic() - start)
        record["parts"][name] = part
        temporary = out / "gpu.json.part"
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        temporary.replace(out / "gpu.json")
        about = part.get("reason") or part.get("unavailable") or part.get("summary") or ""
        print(f"{name:<9} {part['state']:<12} {part['seconds_in_all']:>4} s  {about}", flush=True)
        failed |= part["state"] == "failed"
        if name == "build" and failed:
            break
    print(f"report: {out / 'gpu.json'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
