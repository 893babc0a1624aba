"""The command line and the Python API behind it: what they do, and one clear error for whatever cannot be done."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import ROOT, command, leftovers, own_cache, picture, read, start, the_error, train

import anifast
from anifast import cli, systems
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.cyclegan.config import PRESETS, Config
from anifast.systems.cyclegan.inference import Translator
from anifast.systems.cyclegan.networks import Generator

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert train(data, out, "--images", 4) == 0
    return out


def translate(*words: object) -> int:
    return cli.main(command("translate", *words, "--device", "cpu"))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def usage_error(capsys: Capture, *words: object) -> str:
    """The message of a command that is not understood: exit code 2, the usage first."""
    with pytest.raises(SystemExit) as end:
        cli.main(command(*words))
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("usage: anifast") and "Traceback" not in said.err
    return said.err.splitlines()[-1]


# --- usage


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"anifast {anifast.__version__}\n"


@pytest.mark.parametrize("words", [[], *([name] for name in cli.COMMANDS), ["train", "cyclegan"]], ids=" ".join)
def test_help(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith(" ".join(["usage: anifast", *words])) and said.err == ""
    for name in () if words else cli.COMMANDS:
        assert name in said.out


def test_help_of_train_lists_every_setting_and_preset(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "cyclegan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        assert f" {flag}" in text
        assert " ".join(field.metadata["help"].split()).split(",")[0] in text.replace("- ", "-"), flag
    assert all(f"{name}: " in text for name in PRESETS)
    for words in ("--data", "--out", "--resume", "--device", "--preset"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "COMMAND"),
        (("fly",), "'fly'"),
        (("--fly",), "COMMAND"),
        (("train",), "SYSTEM"),
        (("train", "stargan", "--data", "x", "--out", "y"), "'stargan'"),
        (("train", "cyclegan", "--data", "x"), "--out"),
        (("train", "cyclegan", "--data", "x", "--out", "y", "--colour", "red"), "--colour red"),
        (("train", "cyclegan", "--data", "x", "--out", "y", "--batch", "many"), "'many'"),
        (("train", "cyclegan", "--data", "x", "--out", "y", "--gan", "hinge"), "'hinge'"),
        (("train", "cyclegan", "--data", "x", "--out", "y", "--preset", "huge"), "'huge'"),
        (("translate", "run", "--out", "y"), "INPUT"),
        (("translate", "run", "in", "--out", "y", "--to", "C"), "'C'"),
        (("translate", "run", "in", "--out", "y", "--keep-size", "--size", "64"), "--keep-size"),
        (("translate", "run", "in", "--out", "y", "--precision", "fp8"), "'fp8'"),
        (("portraits", "--out", "y", "--size", "5000"), "5000"),
        (("portraits", "--out", "y", "--layout", "stargan"), "'stargan'"),
        (("train", "cyclegan", "--dat", "x", "--out", "y"), "--data"),
        (("train", "cyclegan", "--data", "x", "--out", "y", "--resu"), "--resu"),
        (("translate", "run", "in", "--out", "y", "--keep"), "--keep"),
        (("--versio", "doctor"), "--versio"),
        (("eval", "run"), "--data"),
        (("eval", "run", "--data", "x", "--features", "vgg"), "'vgg'"),
        (("eval", "run", "--data", "x", "--against", "all"), "'all'"),
        (("doctor", "--loud"), "--loud"),
        (("demo", "--loud"), "--loud"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage(words: tuple[str, ...], named: str, capsys: Capture) -> None:
    assert named in usage_error(capsys, *words)


def test_help_and_usage_need_no_torch() -> None:
    code = (
        "import contextlib, sys\n"
        "from anifast.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(['train', 'cyclegan', '--help'])\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--lambda-identity" in said and said.splitlines()[-1] == "[]"


# --- doctor, backends, portraits


def test_doctor(capsys: Capture) -> None:
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for words in (f" {anifast.__version__} from ", torch.__version__, "\nbackends\n", "bias_lrelu on cpu: "):
        assert words in said


def test_nobody_reads_the_output() -> None:
    process = start("doctor")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_an_explicit_backend_that_is_absent_is_one_error(data: Path, tmp_path: Path) -> None:
    words = command("train", "cyclegan", "--data", data, "--out", tmp_path / "run", "--size", 32, "--device", "cpu")
    process = start(*words, ANIFAST_BACKEND="triton")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    error = the_error(errors)
    assert "bias_lrelu: backend 'triton' (environment ANIFAST_BACKEND) cannot run on cpu: " in error
    assert not (tmp_path / "run").exists()


def test_doctor_tells_about_an_unknown_backend_and_goes_on() -> None:
    process = start("doctor", ANIFAST_BACKEND="fpga")
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and errors == ""
    assert "ANIFAST_BACKEND  fpga" in said
    assert "unknown backend 'fpga'; there are auto, reference, native, triton" in said


def test_portraits(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "faces"
    assert cli.main(command("portraits", "--out", out, "--count", 2, "--size", 64)) == 0
    layouts = {"cyclegan", "gnr", "disentangle", "twingan", "blendgan"}
    assert {path.name for path in out.iterdir()} == layouts
    assert set(capsys.readouterr().out.splitlines()) == {str(out / name) for name in layouts}
    for folder, count in (("trainA", 2), ("trainB", 2), ("testA", 1), ("testB", 1)):
        pictures = list((out / "cyclegan" / folder).glob("*.png"))
        assert len(pictures) == count
        with Image.open(pictures[0]) as image:
            assert image.size == (64, 64)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cyclegan").mkdir()
    (tmp_path / "other" / "cyclegan" / "mine.txt").write_text("mine")
    assert cli.main(command("portraits", "--out", tmp_path / "other", "--count", 2, "--layout", "cyclegan")) == 1
    assert str(tmp_path / "other" / "cyclegan") in the_error(capsys.readouterr().err)
    assert files(tmp_path / "other") == ["cyclegan/mine.txt"]


# --- train and translate


def test_portraits_train_translate(tmp_path: Path, capsys: Capture) -> None:
    """What the README shows, one command after the other."""
    with own_cache(tmp_path / "cache"):
        assert (
            cli.main(command("portraits", "--out", tmp_path, "--count", 3, "--size", 64, "--layout", "cyclegan")) == 0
        )
        faces = tmp_path / "cyclegan"
        words = ("--preset", "small", "--images", 3, "--blocks", 1, "--width", 8, "--d-width", 8, "--device", "cpu")
        assert cli.main(command("train", "cyclegan", "--data", faces, "--out", tmp_path / "run", *words)) == 0
    assert {"checkpoint.pt", "losses.png", "metrics.jsonl", "log.txt"} <= set(files(tmp_path / "run"))
    assert "preset small" in (tmp_path / "run" / "log.txt").read_text()
    capsys.readouterr()
    assert translate(tmp_path / "run", faces / "testA", "--out", tmp_path / "drawn") == 0
    said = capsys.readouterr().out
    assert "device cpu" in said and "precision fp32" in said and "images/s" in said
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == [p.name for p in (faces / "testA").iterdir()]
    with Image.open(next((tmp_path / "drawn").iterdir())) as image:
        assert image.size == (64, 64) and image.mode == "RGB" and image.format == "PNG"


def test_the_result_is_the_generators(run: Path, data: Path, tmp_path: Path) -> None:
    """From the picture to the PNG: resized, scaled to [-1, 1], translated, rounded."""
    assert translate(run, data / "testA", "--out", tmp_path / "b") == 0
    assert translate(run / "checkpoint.pt", data / "testA", "--out", tmp_path / "a", "--to", "A", "--batch", 1) == 0
    model = anifast.load(run, "cpu")
    for name in ("0.png", "1.png"):
        with Image.open(data / "testA" / name) as image:
            pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
        x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        for to, folder in (("B", "b"), ("A", "a")):
            with Image.open(tmp_path / folder / name) as image:
                result = np.asarray(image).astype(int)
            expected = (model.translate(x, to=to)[0].permute(1, 2, 0).numpy() + 1) * 127.5
            assert np.abs(result - expected).max() <= 0.51
    assert files(tmp_path / "a") == files(tmp_path / "b") == ["0.png", "1.png"]
    assert (tmp_path / "a" / "0.png").read_bytes() != (tmp_path / "b" / "0.png").read_bytes()


def test_names_are_kept(run: Path, tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    for i, name in enumerate(("x.png", "deep/er/x.png", "deep/y.bmp", "same.jpg", "same.png", "no ending.tiff")):
        picture(faces / name, i)
    (faces / "readme.txt").write_text("not meant to be a picture")
    assert translate(run, faces, "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out") == [
        "deep/er/x.png",
        "deep/y.png",
        "no ending.png",
        "same.jpg.png",
        "same.png.png",
        "x.png",
    ]


def test_several_folders_and_single_files(run: Path, tmp_path: Path) -> None:
    for name in ("one/x.png", "two/x.png", "alone.png"):
        picture(tmp_path / name, len(name))
    assert translate(run, tmp_path / "one", tmp_path / "two", tmp_path / "alone.png", "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["alone.png", "one/x.png", "two/x.png"]


def test_mixed_sizes_come_in_one_size(run: Path, tmp_path: Path) -> None:
    sizes = [(40, 40), (13, 57), (64, 64), (300, 20), (40, 40), (1, 1), (40, 40)]
    for i, size in enumerate(sizes):
        picture(tmp_path / "faces" / f"{i}.png", i, size)
    for words, side in ((("--resize", "stretch"), 32), (("--size", 48), 48)):
        out = tmp_path / f"out{side}"
        assert translate(run, tmp_path / "faces", "--out", out, "--batch", 3, *words) == 0
        for name in files(out):
            with Image.open(out / name) as image:
                assert image.size == (side, side)
        assert len(files(out)) == len(sizes)


def test_keep_size(run: Path, tmp_path: Path) -> None:
    sizes = [(37, 53), (40, 40), (9, 8), (101, 33), (7, 11)]
    for i, size in enumerate(sizes):
        picture(tmp_path / "faces" / f"{i}.png", i, size)
    assert translate(run, tmp_path / "faces", "--out", tmp_path / "out", "--keep-size") == 0
    for i, size in enumerate(sizes):
        with Image.open(tmp_path / "out" / f"{i}.png") as image:
            assert image.size == size


def test_keep_size_of_a_picture_that_is_too_small(run: Path, tmp_path: Path, capsys: Capture) -> None:
    picture(tmp_path / "faces" / "dot.png", 0, (1, 1))
    picture(tmp_path / "faces" / "face.png", 0)
    assert translate(run, tmp_path / "faces", "--out", tmp_path / "out", "--keep-size") == 1
    said = capsys.readouterr().err
    assert "1 of 2" in the_error(said) and f"{tmp_path / 'faces' / 'dot.png'}: 1x1 is too small" in said
    assert files(tmp_path / "out") == ["face.png"]


def test_bf16(run: Path, data: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        assert translate(run, data / "testA", "--out", tmp_path / precision, "--precision", precision) == 0
    with Image.open(tmp_path / "fp32" / "0.png") as one, Image.open(tmp_path / "bf16" / "0.png") as other:
        difference = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))
    assert 0 <= difference.mean() < 4


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with pictures, one of them damaged and one a text."""
    faces = tmp_path / "faces"
    for i in range(5):
        picture(faces / f"{i}.png", i, (64, 64))
    whole = (faces / "2.png").read_bytes()
    (faces / "2.png").write_bytes(whole[: len(whole) // 2])
    (faces / "note.jpg").write_text("hello")
    return faces


def test_damaged_pictures_are_named_and_the_others_translated(
    run: Path, broken: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert translate(run, broken, "--out", tmp_path / "out", "--batch", 2) == 1
    said = capsys.readouterr().err
    assert "2 of 6" in the_error(said)
    failed = [line for line in said.splitlines() if line.startswith("anifast: failed: ")]
    assert len(failed) == 2 and str(broken / "2.png") in failed[0] and str(broken / "note.jpg") in failed[1]
    assert files(tmp_path / "out") == ["0.png", "1.png", "3.png", "4.png"]
    assert not leftovers(tmp_path / "out")


def test_results_that_are_not_finite_are_not_written(
    run: Path, data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Translator.translate

    def spoilt(self: Translator, images: torch.Tensor, to: str = "B") -> torch.Tensor:
        results = original(self, images, to)
        results[-1, 0, 0, 0] = float("nan")
        return results

    monkeypatch.setattr(Translator, "translate", spoilt)
    assert translate(run, data / "trainA", "--out", tmp_path / "out", "--batch", 3) == 1
    said = capsys.readouterr()
    assert "2 of 5" in the_error(said.err) and "3 pictures in" in said.out
    failed = [line for line in said.err.splitlines() if line.startswith("anifast: failed: ")]
    for name, line in zip(("2.png", "4.png"), failed, strict=True):
        assert str(data / "trainA" / name) in line and "not finite" in line
    assert "5/5" in said.err
    assert files(tmp_path / "out") == ["0.png", "1.png", "3.png"]


def test_a_single_damaged_picture(run: Path, broken: Path, tmp_path: Path, capsys: Capture) -> None:
    assert translate(run, broken / "2.png", "--out", tmp_path / "out") == 1
    assert "1 of 1" in the_error(capsys.readouterr().err)
    assert translate(run, broken / "note.jpg", "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "1 of 1" in the_error(said) and "a text file" in said


# --- translate: what cannot be


@pytest.mark.parametrize("kind", ["missing", "empty", "no picture"])
def test_nothing_to_translate(run: Path, tmp_path: Path, capsys: Capture, kind: str) -> None:
    faces = tmp_path / "faces"
    if kind != "missing":
        faces.mkdir()
    if kind == "no picture":
        (faces / "notes.txt").write_text("text")
    assert translate(run, faces, "--out", tmp_path / "out") == 1
    assert str(faces) in the_error(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
def test_an_output_folder_that_cannot_be_written(run: Path, data: Path, capsys: Capture) -> None:
    """/proc takes no files, not even the superuser's."""
    assert translate(run, data / "testA", "--out", "/proc/self/out") == 1
    error = the_error(capsys.readouterr().err)
    assert "cannot write /proc/self/out" in error and "another output folder" in error


@pytest.mark.parametrize("which", ["model", "input", "out"])
def test_a_folder_that_must_not_be_looked_into(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, which: str
) -> None:
    """Its files cannot even be asked whether they exist; the superuser can, so the refusal is played."""
    closed = tmp_path / "closed"
    look = Path.stat

    def refuse(path: Path, **options: Any) -> Any:
        if closed in (path, *path.parents):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)

    for name in ("exists", "is_dir", "is_file"):
        known = getattr(Path, name)

        def asked(path: Path, known: Any = known) -> bool:
            if closed in (path, *path.parents):
                refuse(path)
            return bool(known(path))

        monkeypatch.setattr(Path, name, asked)
    monkeypatch.setattr(Path, "stat", refuse)
    places = {"model": run, "input": data / "testA", "out": tmp_path / "out"} | {which: closed / "x"}
    assert translate(places["model"], places["input"], "--out", places["out"]) == 1
    error = the_error(capsys.readouterr().err)
    assert str(closed / "x") in error and "Permission denied" in error


@pytest.mark.parametrize("under", [False, True])
def test_the_output_folder_is_a_file(run: Path, data: Path, tmp_path: Path, capsys: Capture, under: bool) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out" if under else tmp_path / "file"
    assert translate(run, data / "testA", "--out", out) == 1
    error = the_error(capsys.readouterr().err)
    assert str(out) in error and "output folder" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_results_never_replace_inputs(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    source = picture(tmp_path / "faces" / "x.png", 0)
    before = source.read_bytes()
    assert translate(run, tmp_path / "faces", "--out", tmp_path / "faces") == 1
    assert "overwrite" in the_error(capsys.readouterr().err)
    assert source.read_bytes() == before
    other = picture(tmp_path / "more" / "x.png", 1)
    assert translate(run, source, other, "--out", tmp_path / "out") == 1
    error = the_error(capsys.readouterr().err)
    assert str(source) in error and str(other) in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "30"), "multiple of 4"),
        (("--size", "4"), "at least 8"),
        (("--size", "0"), "at least 8"),
        (("--size", "100000000"), "--size"),
        (("--batch", "0"), "at least 1"),
        (("--device", "tpu"), "tpu"),
    ],
)
def test_options_that_cannot_be(
    run: Path, data: Path, tmp_path: Path, capsys: Capture, options: tuple[str, str], words: str
) -> None:
    assert cli.main(command("translate", run, data / "testA", "--out", tmp_path / "out", *options)) == 1
    error = the_error(capsys.readouterr().err)
    assert words in error and options[1] in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")])
def test_too_little_memory(
    run: Path, data: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Generator, "forward", full)
    assert translate(run, data / "testA", "--out", tmp_path / "out", "--size", 64) == 1
    said = the_error(capsys.readouterr().err)
    assert "of side 64" in said and "--size" in said and "--batch" in said
    assert files(tmp_path / "out") == []


class Bomb:
    """Pickled code that leaves a file where it is run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def checkpoint(folder: Path, kind: str, run: Path) -> tuple[Path, str]:
    """A file that is no checkpoint for us, and what its error says beside its name."""
    path = folder / "model.pt"
    own = read(run / "checkpoint.pt")
    if kind == "missing":
        return path, "no such checkpoint"
    if kind == "folder":
        path.mkdir()
        return path, "no checkpoint.pt in this folder"
    if kind in ("text", "empty", "picture"):
        content = {"text": b"just a note\n", "empty": b"", "picture": (run / "losses.png").read_bytes()}
        path.write_bytes(content[kind])
        return path, "not a checkpoint"
    if kind == "truncated":
        content = (run / "checkpoint.pt").read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        return path, "damaged"
    if kind == "code":
        torch.save({"format": "anifast.cyclegan/1", "nets": Bomb(folder / "code-was-run")}, path)
        return path, "refused"
    if kind == "old code":
        path.write_bytes(pickle.dumps({"nets": Bomb(folder / "code-was-run")}))
        return path, "refused"
    others: dict[str, tuple[Any, str]] = {
        "tensor": (torch.zeros(3), "holds a Tensor"),
        "other": ({"generator": {"conv1.weight": torch.zeros(3)}}, "no checkpoint of a known system"),
        "newer": (own | {"format": "anifast.cyclegan/9"}, "anifast.cyclegan/9"),
        "other architecture": (own | {"config": own["config"] | {"blocks": 2}}, "another architecture"),
        "without networks": ({k: v for k, v in own.items() if k != "nets"}, "nets is missing"),
        "unknown setting": (own | {"config": own["config"] | {"colour": 1}}, "unknown setting 'colour'"),
    }
    content, words = others[kind]
    torch.save(content, path)
    return path, words


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "folder",
        "text",
        "empty",
        "picture",
        "truncated",
        "code",
        "old code",
        "tensor",
        "other",
        "newer",
        "other architecture",
        "without networks",
        "unknown setting",
    ],
)
def test_a_file_that_is_no_checkpoint(run: Path, data: Path, tmp_path: Path, capsys: Capture, kind: str) -> None:
    path, words = checkpoint(tmp_path, kind, run)
    capsys.readouterr()
    assert translate(path, data / "testA", "--out", tmp_path / "out") == 1
    error = the_error(capsys.readouterr().err)
    assert str(path) in error and words in error, error
    assert not (tmp_path / "out").exists() and not (tmp_path / "code-was-run").exists()


def test_a_direction_that_the_file_lacks(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "latest_net_G_B.pth"
    torch.save(read(run / "checkpoint.pt")["nets"]["G_BA"], path)
    assert translate(path, data / "testA", "--out", tmp_path / "out") == 1
    assert f"{path}: this model translates to A only" in the_error(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert translate(path, data / "testA", "--out", tmp_path / "out", "--to", "A", "--size", 32) == 0


# --- Python


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_translate_keeps_shape_type_and_range(run: Path, dtype: torch.dtype) -> None:
    model = anifast.load(run, "cpu")
    x = (torch.rand(3, 3, 40, 32) * 2 - 1).to(dtype).requires_grad_()
    for to in ("A", "B"):
        y = model.translate(x, to=to)
        assert y.shape == x.shape and y.dtype == dtype and y.device == x.device and not y.requires_grad
        assert y.is_contiguous() and y.abs().max() <= 1
    torch.testing.assert_close(model.translate(x), model.translate(x, to="B"))
    assert not torch.equal(model.translate(x), model.translate(x, to="A"))


def test_translate_is_the_same_image_by_image_and_from_any_layout(run: Path) -> None:
    model = anifast.load(run / "checkpoint.pt", "cpu")
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    y = model.translate(x)
    torch.testing.assert_close(torch.cat([model.translate(image) for image in x.split(1)]), y, rtol=0, atol=1e-5)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.translate(last), y, rtol=0, atol=1e-5)


def test_translate_of_no_images(run: Path) -> None:
    x = torch.empty(0, 3, 32, 32, requires_grad=True)
    y = anifast.load(run, "cpu").translate(x)
    assert y.shape == x.shape and not y.requires_grad


def test_translate_stays_in_range_with_skip(data: Path, tmp_path: Path) -> None:
    """The change of a picture, added to a white or black one, may lead beyond."""
    assert train(data, tmp_path / "run", "--images", 2, "--skip", "--lr", 0.02) == 0
    model = anifast.load(tmp_path / "run", "cpu")
    x = torch.where(torch.rand(4, 3, 32, 32) < 0.5, -1.0, 1.0)
    assert model.translate(x).abs().max() == 1


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (torch.zeros(3, 32, 32), {}, "N,3,H,W"),
        (torch.zeros(1, 4, 32, 32), {}, "N,3,H,W"),
        (torch.zeros(1, 3, 32, 30), {}, "32x30"),
        (torch.zeros(1, 3, 4, 32), {}, "4x32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), {}, "uint8"),
        (torch.zeros(1, 3, 32, 32), {"to": "C"}, "'C'"),
    ],
)
def test_translate_refuses(run: Path, images: torch.Tensor, options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        anifast.load(run, "cpu").translate(images, **options)


def test_load_refuses(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        anifast.load(tmp_path / "nowhere")
    with pytest.raises(AnifastError, match="colour"):
        anifast.load(run, "cpu", colour="red")
    with pytest.raises(AnifastError, match="'fp17': there are fp32, bf16"):
        anifast.load(run, "cpu", precision="fp17")
    with pytest.raises(AnifastError, match="cuda:99"):
        anifast.load(run, "cuda:99")
    with pytest.raises(AnifastError, match="unknown system 'stargan'; there are cyclegan"):
        systems.module("stargan", "config")
