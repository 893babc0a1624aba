"""`anifast translate` and `anifast blendgan` with a BlendGAN: what they do, and one clear error for what cannot be."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_blendgan import tiny_config, write_run
from tiny_cyclegan import command, leftovers, picture, the_error
from tiny_gnr import own_state
from tiny_gnr import tiny_config as gnr_config

import anifast
from anifast import cli
from anifast.data.folders import to_uint8
from anifast.systems import runs
from anifast.systems.blendgan import checkpoints, inference, sheets, styles, video
from anifast.systems.blendgan.inference import Model
from anifast.systems.blendgan.networks import Generator
from anifast.systems.blendgan.psp import PSPEncoder

Capture = pytest.CaptureFixture[str]
CONFIG = tiny_config()
L, D = CONFIG.n_latent, CONFIG.style_dim


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the encoder of photos."""
    return write_run(tmp_path_factory.mktemp("whole"), tiny_config(psp=True))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, size in enumerate([(64, 64), (90, 70)]):
        picture(folder / f"face{i}.png", i, size)
    with Image.open(folder / "face1.png") as image:
        image.convert("L").save(folder / "face1.png")
    return folder


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("art")
    for name, seed in (("ink", 10), ("oil", 11)):
        picture(folder / f"{name}.png", seed, (80, 50 + seed))
    return folder


def translate(*words: object) -> int:
    return cli.main(command("translate", *words, "--device", "cpu"))


def blendgan(*words: object) -> int:
    return cli.main(command("blendgan", *words, "--device", "cpu"))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(np.int64)


def shown(images: torch.Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Images beside each other, as they are written."""
    found: np.ndarray[Any, np.dtype[np.int64]] = (
        torch.cat(list(to_uint8(images)), 2).permute(1, 2, 0).numpy().astype(np.int64)
    )
    return found


def test_the_readme_s_commands() -> None:
    """They are ones that there are, and train on pictures that the first has drawn or that are named as others."""
    section = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split("\n## BlendGAN\n")[1]
    lines = [shlex.split(line, comments=True)[1:] for line in section.split("```")[1].strip().splitlines()]
    found = [cli.build_parser(words[0]).parse_args(words) for words in lines]
    (drawn,) = [args for args in found if args.command == "portraits"]
    assert {str(args.data) for args in found if hasattr(args, "data")} == {f"{drawn.out}/blendgan", "ffhq-aahq"}
    assert {args.verb for args in found if args.command == "blendgan"} >= {"pairs", "sweep", "grid", "video", "align"}


# --- translate


def test_faces_by_styles(
    whole: Path, photos: Path, art: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[set[str]] = []
    built = Model._net

    def watched(self: Model, name: str) -> torch.nn.Module:
        net = built(self, name)
        there.append(set(self._nets))
        return net

    monkeypatch.setattr(Model, "_net", watched)
    (tmp_path / "faces").mkdir()
    for name in ("face0.png", "face1.png"):
        (tmp_path / "faces" / name).write_bytes((photos / name).read_bytes())
    (tmp_path / "faces" / "broken.png").write_bytes((photos / "face0.png").read_bytes()[:80])
    (tmp_path / "faces" / "note.jpg").write_text("hello")
    words = ("--style", art, "random", "--index", 3, "--batch", 4, "--seed", 2)
    assert translate(whole, tmp_path / "faces", "--out", tmp_path / "out", *words) == 1
    said = capsys.readouterr()
    assert all(len(nets) == 1 for nets in there), "never are two networks in the memory at once"
    assert said.out.splitlines()[0].startswith("memory, weights + maps of 4 pictures: style encoder ")
    assert "2 pictures -> 3 styles, index 3, averaged weights, device cpu" in said.out and "6 pictures in" in said.out
    assert "2 of 4" in the_error(said.err)
    failed = [line for line in said.err.splitlines() if line.startswith("anifast: failed: ")]
    assert len(failed) == 2 and any("broken.png: the PNG cannot be decoded" in line for line in failed)
    names = [f"face{i}_v_{style}.png" for i in range(2) for style in ("ink", "oil", "random-2-00")]
    assert files(tmp_path / "out") == [*names, "styles.pt"] and not leftovers(tmp_path / "out")
    model = anifast.load(whole, "cpu")
    faces = torch.stack([styles.pooled(photos / f"face{i}.png", 32, "crop") for i in range(2)])
    pictures = torch.stack([styles.pooled(art / f"{name}.png", 32, "crop") for name in ("ink", "oil")])
    codes = torch.cat([model.encode_styles(pictures), model.random_styles(1, 2)])
    painted = model.paint(model.invert(faces).repeat_interleave(3, 0), codes.repeat(2, 1), 3)
    for name, expected in zip(names, painted, strict=True):
        difference = np.abs(pixels(tmp_path / "out" / name) - shown(expected[None]))
        assert difference.max() <= 1, "in batches of another size a value may be rounded to the neighbour"


def test_triptychs_in_saved_styles(whole: Path, photos: Path, art: Path, tmp_path: Path, capsys: Capture) -> None:
    assert blendgan("encode", whole, art, "--out", tmp_path / "codes.pt") == 0
    assert "style codes of 2 pictures" in capsys.readouterr().out
    assert [style.name for style in styles.load(tmp_path / "codes.pt", 512)] == ["ink", "oil"]
    for name, words in (
        ("a", ["--style", art / "oil.png", "--triptych"]),
        ("b", ["--style", f"{tmp_path}/codes.pt#1"]),
    ):
        out = tmp_path / name
        words += ["--parity", "--noise", 3, "--resize", "crop"]
        assert translate(whole, photos / "face0.png", "--out", out, *words) == 0
        assert files(out) == ["face0_v_oil.png"]
    wide = pixels(tmp_path / "a" / "face0_v_oil.png")
    assert wide.shape == (64, 192, 3) and np.array_equal(wide[:, :64], pixels(photos / "face0.png"))
    assert np.abs(wide[:, 128:] - pixels(tmp_path / "b" / "face0_v_oil.png")).max() <= 1


def with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let noise have strength, which it has not before training."""
    built = Model._net

    def noisy(self: Model, name: str) -> torch.nn.Module:
        net = built(self, name)
        for key, value in net.named_parameters():
            if key.endswith("noise.weight"):
                value.fill_(0.5)
        return net

    monkeypatch.setattr(Model, "_net", noisy)


def with_memory(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    """Let the machine have so many bytes."""
    monkeypatch.setattr(inference, "free_memory", lambda device: free / inference._FILLED)


def test_as_many_at_once_as_the_memory_holds(
    run: Path, whole: Path, photos: Path, art: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that a command does not use take no room."""
    with_memory(monkeypatch, max(map(sum, anifast.load(whole, "cpu").memory(4).values())))
    assert translate(whole, photos, "--out", tmp_path / "four", "--style", art) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("memory, weights + maps of 4 pictures: style encoder "), first
    assert len(files(tmp_path / "four")) == 4
    assert translate(whole, photos, "--out", tmp_path / "given", "--batch", 3) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("memory, weights + maps of 3 pictures: encoder of photos ") and "generator" in first
    with_memory(monkeypatch, sum(anifast.load(run, "cpu").memory(2)["G"]))
    assert blendgan("pairs", run, "--out", tmp_path / "pairs", "--count", 1) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("memory, weights + maps of 2 pictures: generator ")
    with_memory(monkeypatch, 0)
    assert blendgan("encode", run, art, "--out", tmp_path / "codes.pt") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("memory, weights + maps of 1 pictures: style encoder ")


def test_parity_squeezes(
    run: Path, whole: Path, photos: Path, art: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the authors bring pictures to squares; --resize says otherwise."""
    found: list[str] = []
    pooled = styles.pooled
    monkeypatch.setattr(styles, "pooled", lambda path, side, how: found.append(how) or pooled(path, side, how))
    words = ("--style", art / "ink.png", "--index", L)
    assert translate(whole, photos / "face1.png", "--out", tmp_path / "all", *words, "--parity") == 0
    assert found == ["stretch", "stretch"], "the style and the face"
    for more, how in (((), "crop"), (("--parity",), "stretch"), (("--parity", "--resize", "crop"), "crop")):
        found.clear()
        assert blendgan("pairs", run, "--out", tmp_path / "pairs", "--count", 1, *words, *more) == 0
        assert found == [how]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "128"), "--size 128: {run} gives pictures of 64x64 pixels and no others"),
        (("--index", "11"), "--index 11: 0 (all of the style) to 10 (none of it: the natural face)"),
        (("--index", "-1"), "--index -1"),
        (("--truncation", "-0.5"), "--truncation -0.5: a number from 0 (all the mean face)"),
        (("--noise", "-1"), "--noise -1"),
        (("--styles", "0"), "--styles 0"),
        (("--style", "{art}/ink.png", "--seed", "1"), "--seed 1: is the seed of random styles"),
        (("--style", "{art}/nowhere.png"), "nowhere.png: no such file"),
        (("--style", "{art}/nowhere.pt"), "nowhere.pt: no such file"),
        (("--artist", "x"), "--artist: {run} holds a model of another kind"),
        (("--to", "B"), "--to B: {run} holds a model without domains"),
        (("--keep-size",), "--keep-size"),
        (("--batch", "0"), "--batch 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_cannot_be(
    whole: Path, photos: Path, art: Path, tmp_path: Path, capsys: Capture, words: tuple[str, ...], said: str
) -> None:
    names = {"art": art, "run": whole}
    assert translate(whole, photos, "--out", tmp_path / "out", *(word.format(**names) for word in words)) == 1
    assert said.format(**names) in the_error(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_what_is_missing(run: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    assert translate(run, photos, "--out", tmp_path / "out") == 1
    error = the_error(capsys.readouterr().err)
    assert error.startswith(f"{run}: this file lacks the encoder that inverts photos (pSp)") and "--psp" in error
    torch.save(own_state(gnr_config()), tmp_path / "gnr.pt")
    assert translate(tmp_path / "gnr.pt", photos, "--out", tmp_path / "out", "--index", 3) == 1
    assert "--index" in the_error(capsys.readouterr().err)
    assert translate(tmp_path / "gnr.pt", photos, "--out", tmp_path / "out", "--psp", run) == 1
    assert "GANs N' Roses has no option psp" in the_error(capsys.readouterr().err)
    assert blendgan("grid", tmp_path / "gnr.pt", "--out", tmp_path / "grid.png") == 1
    assert "a model of another system; `anifast blendgan` takes BlendGANs" in the_error(capsys.readouterr().err)


def test_too_little_memory(
    whole: Path, photos: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PSPEncoder, "forward", full)
    assert translate(whole, photos, "--out", tmp_path / "out") == 1
    said = the_error(capsys.readouterr().err)
    assert "for 8 pictures at once of side 32" in said and said.endswith("take a smaller --batch")


# --- pairs


def test_pairs(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert blendgan("pairs", run, "--out", tmp_path, "--count", 3, "--seed", 4, "--batch", 4, "--index", 2) == 0
    assert "3 pictures: natural | random-4-00, index 2" in capsys.readouterr().out
    assert files(tmp_path) == ["000000.png", "000001.png", "000002.png"]
    model = anifast.load(run, "cpu")
    w, z = model.faces(model.random_faces(3, 4)), model.random_styles(1, 4)
    natural, stylized = model.paint(w), model.paint(w, z, 2)
    for k in range(3):
        found = pixels(tmp_path / f"00000{k}.png")
        assert np.abs(found - shown(torch.stack([natural[k], stylized[k]]))).max() <= 1


def test_pairs_of_given_faces_in_several_styles(run: Path, art: Path, tmp_path: Path) -> None:
    model = anifast.load(run, "cpu")
    z = model.random_faces(5, 9)
    torch.save(z[:, None], tmp_path / "faces.pt")
    words = ("--faces", tmp_path / "faces.pt", "--count", 2, "--style", art, "--truncation", 0.5, "--parity", "--jpg")
    assert blendgan("pairs", run, "--out", tmp_path / "out", *words) == 0
    assert files(tmp_path / "out") == ["000000.jpg", "000001.jpg"]
    pictures = torch.stack([styles.pooled(art / f"{name}.png", 32, "stretch") for name in ("ink", "oil")])
    painted = model.paint(model.faces(z[1:2], 0.5).expand(2, -1), model.encode_styles(pictures))
    natural = model.paint(model.faces(z[1:2], 0.5))
    found = pixels(tmp_path / "out" / "000001.jpg")
    assert found.shape == (64, 192, 3)
    # JPEG of quality 95 keeps smooth pictures to a few of 255 steps in the mean
    assert np.abs(found - shown(styles.truncated(torch.cat([natural, painted])))).mean() < 4


def test_the_truncation_of_the_file(run: Path, tmp_path: Path) -> None:
    found = checkpoints.gather(run)
    assert found is not None
    torch.save({**found["parts"]["gan"], "truncation": 0.25}, tmp_path / "gan.pt")
    assert blendgan("pairs", tmp_path / "gan.pt", "--out", tmp_path / "a", "--count", 1) == 0
    assert blendgan("pairs", run, "--out", tmp_path / "b", "--count", 1, "--truncation", 0.25) == 0
    assert blendgan("pairs", run, "--out", tmp_path / "c", "--count", 1) == 0
    first, second, third = ((tmp_path / name / "000000.png").read_bytes() for name in "abc")
    assert first == second != third


def test_codes_that_are_truncated_to_the_mean_face(run: Path, tmp_path: Path) -> None:
    torch.save(torch.randn(2, L, D), tmp_path / "faces.pt")
    for psi in (0, 1):
        words = ("--faces", tmp_path / "faces.pt", "--truncation", psi)
        assert blendgan("pairs", run, "--out", tmp_path / str(psi), *words) == 0
    mean, plain = ([pixels(tmp_path / psi / f"00000{k}.png") for k in range(2)] for psi in "01")
    assert np.abs(mean[0] - mean[1]).max() <= 1 < np.abs(plain[0] - plain[1]).max()
    model = anifast.load(run, "cpu")
    assert np.abs(mean[0][:, :64] - shown(model.paint(model.mean_latent()))).max() <= 1


def test_noise_is_a_face_s(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a face that are alike but for their noise, in whatever batches, have the same."""
    with_noise(monkeypatch)
    words = ("--count", 2, "--styles", 2, "--index", L, "--noise", 5, "--batch", 4)
    assert blendgan("pairs", run, "--out", tmp_path, *words) == 0
    rows = [np.split(pixels(tmp_path / f"00000{k}.png"), 3, axis=1) for k in range(2)]
    model = anifast.load(run, "cpu")
    natural = model.paint(model.faces(model.random_faces(2)), noise=5)
    for row, face in zip(rows, natural, strict=True):
        for picture_of in row:
            assert np.abs(picture_of - shown(face[None])).max() <= 1
    painted: list[torch.Tensor] = []
    collected = sheets.collected

    def watched(parts: Any, *rest: Any) -> torch.Tensor:
        parts = list(parts)
        painted.append(torch.cat(parts))
        return collected(iter(parts), *rest)

    monkeypatch.setattr(sheets, "collected", watched)
    words = ("--count", 2, "--noise", 5, "--batch", 4)
    assert blendgan("sweep", run, "--out", tmp_path / "sweep.png", "--indices", f"{L},{L},{L}", *words) == 0
    assert blendgan("grid", run, "--out", tmp_path / "grid.png", "--styles", 2, "--index", L, *words) == 0
    for found in painted:  # float32 sums of a few hundred terms in batches of another size, through 10 layers
        torch.testing.assert_close(found, natural.repeat_interleave(3, 0), rtol=0, atol=2e-4)


# --- sheets


def test_a_sweep(run: Path, art: Path, tmp_path: Path, capsys: Capture) -> None:
    assert blendgan("sweep", run, "--out", tmp_path / "a.png", "--style", art / "ink.png", "--count", 2) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a.png")
    height, width, _ = pixels(tmp_path / "a.png").shape
    assert (height - 58) // 132 == 2 and (width - 64) // 132 == 1 + L + 1, "the style, and a column for 0 to L"
    assert blendgan("sweep", run, "--out", tmp_path / "b.png", "--indices", "0,6,10", "--count", 1) == 0
    assert (pixels(tmp_path / "b.png").shape[1] - 64) // 132 == 3


def test_sheets_of_photos(whole: Path, photos: Path, art: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ("--faces", photos, "random", "--count", 1, "--style", art, "--index", 5)
    assert blendgan("grid", whole, "--out", tmp_path / "grid.png", *words) == 0
    height, width, _ = pixels(tmp_path / "grid.png").shape
    assert (height - 58) // 132 == 4 and (width - 100) // 132 == 4, "references and faces; photo, inverted, two styles"
    (tmp_path / "broken.png").write_bytes((photos / "face0.png").read_bytes()[:80])
    words = ("--faces", photos / "face0.png", tmp_path / "broken.png")
    assert blendgan("sweep", whole, "--out", tmp_path / "sweep.png", "--indices", "6", *words) == 1
    said = capsys.readouterr().err
    assert "broken.png: the PNG cannot be decoded" in said and "1 could not be used" in the_error(said)
    assert (pixels(tmp_path / "sweep.png").shape[0] - 58) // 132 == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sweep", "{run}", "--out", "a.jpg"), "--out a.jpg: give it a name that ends with .png"),
        (("sweep", "{run}", "--out", "a.png", "--indices", "0,11"), "--indices 11: 0 (all of the style) to 10"),
        (("sweep", "{run}", "--out", "a.png", "--indices", "0-5"), "--indices 0-5: whole numbers with commas"),
        (("sweep", "{run}", "--out", "a.png", "--style", "{art}"), "--style {art}: gives 2 styles"),
        (("grid", "{run}", "--out", "a.png", "--count", "0"), "--count 0: at least 1"),
        (("grid", "{run}", "--out", "a.png", "--faces", "{art}/ink.png"), "lacks the encoder that inverts photos"),
        (("grid", "{run}", "--out", "a.png", "--faces", "{art}/ink.png", "--count", "2"), "--count 2: is the number"),
        (("grid", "{run}", "--out", "a.png", "--seed", "-1"), "--seed -1"),
        (("pairs", "{run}", "--out", "a", "--index", "11"), "--index 11"),
        (("pairs", "{run}", "--out", "a", "--faces", "{short}"), "another size"),
        (("pairs", "{run}", "--out", "a", "--truncation", "nan"), "--truncation nan"),
        (("encode", "{run}", "{art}", "--out", "a.json"), "--out a.json: give it a name that ends with .pt"),
        (("encode", "{run}", "{art}/none", "--out", "a.pt"), "none: no such file"),
        (("encode", "{run}", "{broken}", "--out", "a.pt"), "{broken}: the PNG cannot be decoded"),
        (("encode", "{run}", "{broken}", "{short}", "--out", "a.pt"), "no picture could be read (named above)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_verbs_that_cannot_be(
    run: Path,
    art: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    short, broken = tmp_path / "short.pt", tmp_path / "broken.png"
    torch.save(torch.zeros(2, L + 2, D), short)
    broken.write_bytes((art / "ink.png").read_bytes()[:80])
    names = {"run": run, "art": art, "short": short, "broken": broken}
    assert blendgan(*(word.format(**names) for word in words)) == 1
    assert said.format(**names) in the_error(capsys.readouterr().err)
    assert not any(path.is_file() for path in tmp_path.rglob("a*"))


def test_results_that_are_not_finite(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = Generator.render
    monkeypatch.setattr(Generator, "render", lambda self, *args, **kw: render(self, *args, **kw) * torch.nan)
    assert blendgan("pairs", run, "--out", tmp_path / "pairs", "--count", 1) == 1
    assert "not finite (NaN)" in the_error(capsys.readouterr().err) and not files(tmp_path)


# --- video


def frames(path: Path) -> tuple[float, list[np.ndarray[Any, np.dtype[np.uint8]]]]:
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return rate, [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_video(run: Path, art: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("av")
    words = ("--style", art, "--draw", 0, "--seed", 3)
    assert blendgan("video", run, "random", "--out", tmp_path / "a.mp4", *words) == 0
    said = capsys.readouterr()
    assert "41 frames through ink, oil" in said.out and "41/41" in said.err
    rate, found = frames(tmp_path / "a.mp4")
    assert rate == 30 and len(found) == 31 + 10 and found[0].shape == (64, 192, 3)
    model = anifast.load(run, "cpu")
    w = model.faces(model.random_faces(1, 3))
    codes = model.encode_styles(
        torch.stack([styles.pooled(art / f"{name}.png", 32, "crop") for name in ("ink", "oil")])
    )
    for frame, code in ((found[0], codes[:1]), (found[-1], codes[1:])):
        expected = shown(torch.cat([model.paint(w), model.paint(w, code, 7)]))
        # what H.264 in 4:2:0 leaves of a picture of a few pixels' detail: far from another picture's
        assert np.abs(frame[:, :64] - expected[:, :64]).mean() < 16
        assert np.abs(frame[:, 128:] - expected[:, 64:]).mean() < 16
    assert files(tmp_path) == ["a.mp4"]


def test_videos_of_several_faces(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    words = ("--count", 2, "--styles", 3, "--draw", 8, "--slerp", "--rate", 24, "--batch", 64)
    assert blendgan("video", run, "random", "--out", tmp_path / "out", *words) == 0
    assert files(tmp_path / "out") == ["face_0.mp4", "face_1.mp4"]
    rate, found = frames(tmp_path / "out" / "face_1.mp4")
    assert rate == 24 and len(found) == 227 and found[0].shape == (64, 128, 3), "no pictures of random styles"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "a.avi"), "a.avi: give a name that ends in .mp4"),
        (("--out", "a.mp4", "--count", "2"), "2 faces make as many videos; give a folder"),
        (("--out", "a.mp4", "--draw", "1"), "--draw 1"),
        (("--out", "a.mp4", "--draw", "0", "--styles", "1"), "--styles 1: one style is no way"),
        (("--out", "a.mp4", "--style", "{art}/ink.png"), "--style {art}/ink.png: one style is no way"),
        (("--out", "a.mp4", "--rate", "0"), "--rate 0"),
        (("--out", "a.mp4", "--index", "11"), "--index 11"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_videos_that_cannot_be(
    run: Path,
    art: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    assert blendgan("video", run, "random", *(word.format(art=art) for word in words)) == 1
    assert said.format(art=art) in the_error(capsys.readouterr().err) and not files(tmp_path)


def test_the_face_of_a_video_is_painted_as_the_rest(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its noise, and cut to 8 bits alike."""
    pytest.importorskip("av")
    found: list[Any] = []
    monkeypatch.setattr(video, "write", lambda *_, face, **__: found.append(face) or 0)
    words = ("--seed", 3, "--noise", 5, "--parity")
    with_noise(monkeypatch)
    assert blendgan("video", run, "random", "--out", tmp_path / "a.mp4", *words) == 0
    model = anifast.load(run, "cpu")
    natural = model.paint(model.faces(model.random_faces(1, 3)), noise=5)
    assert np.array_equal(found[0], shown(styles.truncated(natural)))


def test_a_folder_of_videos_may_have_a_dot(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "out.v2").mkdir()
    words = ("--count", 2, "--styles", 2, "--draw", 0, "--batch", 64)
    assert blendgan("video", run, "random", "--out", tmp_path / "out.v2", *words) == 0
    assert files(tmp_path / "out.v2") == ["face_0.mp4", "face_1.mp4"]


# --- faces as FFHQ's


def test_align_is_reached(photos: Path, tmp_path: Path) -> None:
    eyes = {"eye_left": [25, 28], "eye_right": [40, 28], "mouth_left": [27, 45], "mouth_right": [38, 45]}
    (tmp_path / "points.json").write_text(json.dumps({"face0.png": eyes}))
    words = ("--landmarks", tmp_path / "points.json", "--out", tmp_path / "out", "--size", 32)
    assert cli.main(command("blendgan", "align", photos / "face0.png", *words)) == 0
    assert pixels(tmp_path / "out" / "face0.png").shape == (32, 32, 3)


# --- one-shot styles


def test_finetune_has_no_option_that_says_the_same_twice(run: Path, art: Path, capsys: Capture) -> None:
    """Steps are of one picture each; numbers of pictures would be those of --iterations again."""
    with pytest.raises(SystemExit):
        blendgan("finetune", run, art / "ink.png", "--data", "x", "--out", "y", "--images", 5)
    assert "unrecognized arguments: --images" in capsys.readouterr().err


def given(monkeypatch: pytest.MonkeyPatch, words: Sequence[object]) -> dict[str, Any]:
    """What `finetune` asks of training."""
    found: dict[str, Any] = {}

    def train(system: str, data: Path, out: Path, **rest: Any) -> bool:
        found.update(system=system, data=data, out=out, **rest)
        return True

    monkeypatch.setattr(runs, "train", train)
    assert blendgan("finetune", *words) == 0
    return found


def test_finetune_asks_training(run: Path, art: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (run, art / "ink.png", "--data", tmp_path / "data", "--out", tmp_path / "two")
    found = given(monkeypatch, [*words, "--iterations", 7])
    values = found["values"]
    assert found["system"] == "blendgan" and found["data"] == tmp_path / "data" and found["out"] == tmp_path / "two"
    assert not found["resume"] and found["device"] == "cpu"
    assert values["start_from"] == str(run) and values["one_shot"] == str(art / "ink.png")
    assert (values["iterations"], values["batch"], values["psp_iterations"]) == (7, 1, 0)
    assert values["size"] == 64 and values["style_dim"] == 32 and values["n_mlp"] == 2, "the run's architecture"
    config = checkpoints.config_of({**checkpoints.header(CONFIG)})
    assert {key: values[key] for key in ("queue", "r1", "latent_loss")} == {
        "queue": config.queue,
        "r1": config.r1,
        "latent_loss": config.latent_loss,
    }
    assert given(monkeypatch, words)["values"]["iterations"] == 1000
    again = given(monkeypatch, [*words, "--resume", "--iterations", 9])
    assert again["resume"] and again["values"] == {"iterations": 9}
    json.dumps(values)


def test_finetune_refuses(run: Path, art: Path, tmp_path: Path, capsys: Capture) -> None:
    words = (art / "ink.png", "--data", tmp_path, "--out", tmp_path / "two")
    style = write_run(tmp_path / "style", stages=("style",))
    assert blendgan("finetune", style, *words) == 1
    assert f"{style}: this file lacks the generator" in the_error(capsys.readouterr().err)
    torch.save(own_state(gnr_config()), tmp_path / "gnr.pt")
    assert blendgan("finetune", tmp_path / "gnr.pt", *words) == 1
    assert "gnr.pt: no BlendGAN is in it" in the_error(capsys.readouterr().err)
    assert blendgan("finetune", run, *words, "--resume", "--lr", 0.1) == 1
    assert "--lr: a resumed run keeps it" in the_error(capsys.readouterr().err)
