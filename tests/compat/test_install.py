"""Putting the modules in place, in a process and around a program, beside the repositories' own folders."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import anifast
from anifast import compat
from anifast.errors import AnifastError

ROOT = Path(__file__).resolve().parent.parent.parent
COMPILES = "raise RuntimeError('the vendored folder was run')\n"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Somebody's repository, whose op folders compile when they are imported."""
    return write(
        tmp_path / "repository",
        {
            "op/__init__.py": COMPILES,
            "op/fused_act.py": COMPILES,
            "op/upfirdn2d.py": COMPILES,
            "op/extra.py": "from op import upfirdn2d\nANSWER = 42\n",
            "models/__init__.py": "",
            "models/net.py": "from .stylegan2.op import FusedLeakyReLU\n",
            "models/stylegan2/__init__.py": "",
            "models/stylegan2/op/__init__.py": COMPILES,
            "torch_utils/__init__.py": "",
            "torch_utils/misc.py": "MISC = 'their own'\n",
            "torch_utils/custom_ops.py": "verbosity = 'brief'\n",
            "torch_utils/ops/__init__.py": "",
            "torch_utils/ops/bias_act.py": COMPILES,
            "torch_utils/ops/upfirdn2d.py": COMPILES,
            "torch_utils/ops/filtered_lrelu.py": "from . import bias_act, upfirdn2d\nfrom .. import misc\n",
        },
    )


@pytest.fixture
def inside(repository: Path, clean_imports: None) -> Path:
    """The repository on this process's path."""
    sys.path.insert(0, str(repository))
    return repository


# In a process


def test_op_is_ours_in_every_form_of_import(inside: Path) -> None:
    compat.install("rosinality")
    op = importlib.import_module("op")
    submodule = importlib.import_module("op.upfirdn2d")
    space: dict[str, object] = {}
    exec(
        "from op import FusedLeakyReLU, fused_leaky_relu, upfirdn2d, conv2d_gradfix\n"
        "from op.fused_act import FusedLeakyReLU as layer, fused_leaky_relu as function\n"
        "from op.upfirdn2d import upfirdn2d as again\n"
        "from op.conv2d_gradfix import conv2d, no_weight_gradients\n",
        space,
    )
    assert space["again"] is space["upfirdn2d"] is op.upfirdn2d is submodule.upfirdn2d
    assert space["layer"] is space["FusedLeakyReLU"] and space["function"] is space["fused_leaky_relu"]
    assert op.__file__ == str(Path(compat.__file__).parent / "rosinality" / "__init__.py")
    assert importlib.import_module("op.extra").ANSWER == 42, "what the folder has beyond ours is still there"


def test_pickled_layers_name_the_repositorys_class(inside: Path) -> None:
    compat.install("rosinality")
    layer = importlib.import_module("op").FusedLeakyReLU(3)
    stored = pickle.dumps(layer)
    assert b"op.fused_act" in stored and b"anifast" not in stored, "to be loaded where anifast is not"
    assert pickle.loads(stored).state_dict().keys() == {"bias"}


def test_only_ops_of_torch_utils_are_ours(inside: Path) -> None:
    compat.install("nvlabs")
    space: dict[str, object] = {}
    exec(
        "from torch_utils import misc, custom_ops\n"
        "from torch_utils.ops import bias_act, upfirdn2d, conv2d_gradfix, grid_sample_gradfix, conv2d_resample, fma\n"
        "from torch_utils.ops import filtered_lrelu\n",
        space,
    )
    ours = str(Path(compat.__file__).parent / "nvlabs")
    for name in ("bias_act", "upfirdn2d", "conv2d_gradfix", "grid_sample_gradfix", "conv2d_resample", "fma"):
        module = space[name]
        assert module.__name__ == f"torch_utils.ops.{name}" and module.__file__ == f"{ours}/{name}.py"
    for name in ("misc", "custom_ops", "filtered_lrelu"):
        assert space[name].__file__.startswith(str(inside))
    assert space["filtered_lrelu"].bias_act is space["bias_act"] and space["filtered_lrelu"].misc.MISC == "their own"


def test_package_inside_packages(inside: Path) -> None:
    compat.install("rosinality", package="models.stylegan2.op")
    net = importlib.import_module("models.net")
    assert net.FusedLeakyReLU.__module__ == "models.stylegan2.op.fused_act"
    with pytest.raises(RuntimeError, match="the vendored folder was run"):
        importlib.import_module("op")  # nothing else is replaced


def test_both_flavours_and_several_packages_at_once(inside: Path) -> None:
    compat.install("rosinality")
    compat.install("rosinality", package="models.stylegan2.op")
    compat.install("nvlabs")
    names = ("op", "models.stylegan2.op", "torch_utils.ops")
    assert all(hasattr(importlib.import_module(name), "upfirdn2d") for name in names)


def test_install_twice_is_once(inside: Path) -> None:
    compat.install("rosinality")
    before = list(sys.meta_path)
    compat.install("rosinality")
    assert sys.meta_path == before
    op = importlib.import_module("op")
    compat.install("rosinality")  # also where it is imported by now
    assert importlib.import_module("op") is op
    with pytest.raises(AnifastError, match="op is installed as rosinality already and cannot be nvlabs too"):
        compat.install("nvlabs", package="op")


def test_what_is_imported_already_cannot_be_replaced(inside: Path) -> None:
    (inside / "op" / "__init__.py").write_text("")
    importlib.import_module("op")
    with pytest.raises(AnifastError) as found:
        compat.install("rosinality")
    message = str(found.value)
    assert str(inside / "op" / "__init__.py") in message, "where it came from"
    assert "before anything imports it" in message and "python -m anifast.compat rosinality --" in message


@pytest.mark.parametrize("package", ["", ".op", "op.", "a b", "op-1", 3])
def test_names_that_no_import_has_are_refused(package: object, clean_imports: None) -> None:
    with pytest.raises(ValueError, match="package must be a dotted name such as 'models.stylegan2.op', got"):
        compat.install("rosinality", package=package)


def test_unknown_flavour(clean_imports: None) -> None:
    with pytest.raises(ValueError, match="unknown flavour 'stylegan'; there are rosinality, nvlabs"):
        compat.install("stylegan")


def test_installing_imports_neither_torch_nor_the_ops() -> None:
    program = "import sys, anifast; anifast.compat.install('rosinality'); assert not {'torch', 'op'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert anifast.compat is compat


# Around a program


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def under(flavour: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "anifast.compat", flavour, *arguments, cwd=cwd)


ABOUT = """import sys
main = sys.modules["__main__"].__dict__ is globals()
print([__name__, __file__, sys.argv, sys.path[0], __package__, main])
"""


@pytest.mark.parametrize(
    "program", [["tool.py", "a", "--", "-b"], ["sub/tool.py"], ["-m", "sub.tool", "--package", "x"]]
)
def test_program_sees_what_it_sees_under_python(repository: Path, program: list[str]) -> None:
    write(repository, {"tool.py": ABOUT, "sub/tool.py": ABOUT})
    ours, theirs = under("rosinality", "--", *program, cwd=repository), python(*program, cwd=repository)
    assert theirs.returncode == 0 and theirs.stdout.startswith("['__main__'"), theirs.stderr
    assert (ours.returncode, ours.stdout, ours.stderr) == (0, theirs.stdout, theirs.stderr)


@pytest.mark.parametrize(
    "text",
    [
        "import os\n\n\ndef f():\n    return 1 / 0\n\n\nf()\n", "x = (\n", "import sys\nsys.exit(7)\n",
        "import nothing_of_that\n", "import sys\nsys.exit('enough')\n",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError(1)\n",
    ],
)  # fmt: skip
def test_program_ends_as_under_python(repository: Path, text: str) -> None:
    write(repository, {"ends.py": text})
    theirs = python("ends.py", cwd=repository)
    assert theirs.returncode != 0
    ours = under("rosinality", "--", "ends.py", cwd=repository)
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


def test_what_a_package_lacks_is_told(repository: Path) -> None:
    write(repository, {"lacking/__init__.py": "import nothing_of_that\n", "lacking/tool.py": ""})
    done = under("rosinality", "--", "-m", "lacking.tool", cwd=repository)
    assert done.returncode != 0 and "No module named 'nothing_of_that'" in done.stderr


def test_safe_path_stays_safe(repository: Path) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("-P came with Python 3.11")
    write(repository, {"tool.py": "import sys\nprint(sys.path)\n"})
    ours = python("-P", "-m", "anifast.compat", "rosinality", "--", "tool.py", cwd=repository)
    assert (ours.returncode, ours.stdout) == (0, python("-P", "tool.py", cwd=repository).stdout), ours.stderr


def test_vendored_folder_is_not_run(repository: Path) -> None:
    write(
        repository,
        {
            "train.py": """
                import sys
                import torch
                from op import FusedLeakyReLU, conv2d_gradfix, upfirdn2d
                x = torch.ones(1, 2, 4, 4, requires_grad=True)
                y = upfirdn2d(FusedLeakyReLU(2)(x), torch.ones(4, 4) / 16, pad=(2, 1))
                with conv2d_gradfix.no_weight_gradients():
                    (g,) = torch.autograd.grad((y ** 2).sum(), x, create_graph=True)
                (g ** 2).sum().backward()
                print(tuple(y.shape), x.grad.isfinite().all().item(), sys.argv[1:])
            """,
        },
    )
    done = python("train.py", cwd=repository)
    assert done.returncode == 1 and "the vendored folder was run" in done.stderr
    done = under("rosinality", "--", "train.py", "--batch", "4", cwd=repository)
    assert (done.returncode, done.stdout) == (0, "(1, 2, 4, 4) True ['--batch', '4']\n"), done.stderr


def test_package_of_the_command_line(repository: Path) -> None:
    write(
        repository,
        {"use.py": "import models.net, op\nprint(models.net.FusedLeakyReLU.__module__, op.upfirdn2d.__module__)\n"},
    )
    done = under("rosinality", "--package", "models.stylegan2.op", "--package", "op", "--", "use.py", cwd=repository)
    assert (done.returncode, done.stdout) == (0, "models.stylegan2.op.fused_act op.upfirdn2d\n"), done.stderr


@pytest.mark.parametrize("program", [["work.py"], ["-m", "models.work"]], ids=["script", "module"])
def test_processes_that_start_anew_have_them_too(repository: Path, program: list[str]) -> None:
    text = """
        import multiprocessing
        from op import upfirdn2d

        def where(queue):
            queue.put(upfirdn2d.__module__)

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=where, args=(queue,))
            process.start()
            process.join()
            print(process.exitcode, queue.get(timeout=30) if process.exitcode == 0 else None)
    """
    write(repository, {"work.py": text, "models/work.py": "from . import net_name\n" + textwrap.dedent(text)})
    write(repository, {"models/net_name.py": ""})
    done = under("rosinality", "--", *program, cwd=repository)
    assert (done.returncode, done.stdout) == (0, "0 op.upfirdn2d\n"), done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: FLAVOUR"),
        (["stylegan", "--", "x.py"], "invalid choice: 'stylegan'"),
        (
            ["rosinality"],
            "what is to run? It stands behind --, as in `python -m anifast.compat rosinality -- train.py`",
        ),
        (["rosinality", "--"], "what is to run?"),
        (["rosinality", "--", "-m"], "what is to run?"),
        (["rosinality", "--", "missing.py"], "there is no script 'missing.py' here"),
        (["rosinality", "--", "op"], "there is no script 'op' here; it is a folder"),
        (["rosinality", "--", "-m", "missing.module"], "there is no module 'missing.module' to be run here"),
        (["rosinality", "--", "-m", ""], "there is no module '' to be run here"),
        (["rosinality", "--", "-m", "models"], "there is no module 'models' to be run here"),
        (["rosinality", "--package", "a b", "--", "x.py"], "package must be a dotted name"),
        (["rosinality", "train.py"], "unrecognized arguments: train.py"),
    ],
)
def test_wrong_usage(repository: Path, arguments: list[str], message: str) -> None:
    done = python("-m", "anifast.compat", *arguments, cwd=repository)
    assert done.returncode == 2 and message in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr


def test_package_that_is_imported_already_on_the_command_line(repository: Path) -> None:
    done = under("rosinality", "--package", "anifast", "--", "x.py", cwd=repository)
    assert done.returncode == 1 and done.stderr.startswith("anifast: error: anifast is imported already")
    assert "Traceback" not in done.stderr


def test_help_tells_the_packages(repository: Path) -> None:
    done = under("--help", cwd=repository)
    assert done.returncode == 0 and "torch_utils.ops" in done.stdout and "SCRIPT ARGS" in done.stdout
