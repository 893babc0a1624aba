"""`anifast demo`: everything it promises is there, it can be run again, and it spares other people's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import anifast
from anifast import cli, demo
from anifast.demo import blendgan, cyclegan, gnr, shared, twingan
from anifast.engine import lock
from anifast.systems import runs
from anifast.systems.blendgan.contrast import Style
from anifast.systems.blendgan.inference import Model
from anifast.systems.blendgan.networks import networks as blendgan_networks
from anifast.systems.cyclegan.training import networks
from anifast.systems.gnr.inference import Translator
from anifast.systems.gnr.styles import load as load_styles
from anifast.systems.gnr.training import networks as gnr_networks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of a few steps on a few faces, over an earlier one, parts of which stay if they are made anew."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANIFAST_CACHE", str(out.parent / "cache"))
        patch.setattr(shared, "HELD", 3)
        for name, value in (("blocks", 1), ("width", 8), ("d_width", 8)):
            patch.setitem(cyclegan.SETTINGS, name, value)
        patch.setitem(gnr.SETTINGS, "channel_multiplier", 1 / 32)
        for name, value in (("base_channels", 8), ("style_dim", 8), ("style_batch", 2)):
            patch.setitem(blendgan.SETTINGS, name, value)
        patch.setattr(blendgan, "_COUNTED", 6)
        patch.setitem(twingan.SETTINGS, "max_channels", 8)
        for part in ("run", "gnr/run", "blendgan/run", "twingan/run"):
            (out / part).mkdir(parents=True)
            (out / part / "stale").touch()
        (out / "losses.png").touch()
        (out / "demo.txt").touch()
        assert cli.main(["demo", "--out", str(out), "--images", "17", "--device", "cpu"]) == 0
    return out


def test_everything_is_there(made: Path) -> None:
    for part in (made, *(made / name for name in ("gnr", "blendgan", "twingan"))):
        for name in ("trainA", "trainB"):
            assert len(list((part / "faces" / name).glob("*.png"))) == 17
        for picture in ("sheet.png", "losses.png", *(["sweep.png"] if part.name == "blendgan" else [])):
            with Image.open(part / picture) as image:
                assert min(image.size) > 200
        settings = json.loads((part / "run" / "config.json").read_text())
        assert settings["minutes"] is not None
    for there, back in (("B", "A"), ("A", "B")):
        inputs = sorted(path.name for path in (made / "faces" / f"test{back}").iterdir())
        assert inputs == sorted(path.name for path in (made / "translated" / there).iterdir())
        assert len(inputs) == 3
    assert json.loads((made / "run" / "config.json").read_text())["images"] == 17


def test_photos_are_painted_in_several_styles(made: Path) -> None:
    painted = sorted(path.name for path in (made / "gnr" / "translated").glob("*.png"))
    assert painted == [f"{photo:04d}-s{style:02d}.png" for photo in range(3) for style in range(3)]
    codes = load_styles(made / "gnr" / "translated" / "styles.json", to="B", latent_dim=8)
    assert len({style.code for style in codes}) == 3


def test_running_again_replaces_the_earlier_demo(made: Path) -> None:
    assert not list(made.rglob("stale"))


def test_no_character_is_in_two_folders(made: Path) -> None:
    """Nor is there a picture twice in a folder; parts may have the same photos."""
    for part in (made, *(made / name for name in ("gnr", "blendgan", "twingan"))):
        pictures = [path.read_bytes() for path in (part / "faces").rglob("*.png")]
        assert len(set(pictures)) == len(pictures) == 40


def test_artists_take_turns() -> None:
    count = len(gnr.ARTISTS)
    assert count > 2 and len(set(gnr.ARTISTS)) == count


def test_before_is_what_the_run_began_with(made: Path) -> None:
    model = anifast.load(made / "run", "cpu")
    first = networks(model.config)["G_AB"]
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = first(images).clamp(-1, 1)
    before = cyclegan._untrained(model, torch.device("cpu")).translate(images, to="B")
    torch.testing.assert_close(before, expected)
    assert not torch.allclose(before, model.translate(images, to="B"), atol=1e-4)


def test_before_is_what_the_run_of_gnr_began_with(made: Path) -> None:
    model = anifast.load(made / "gnr" / "run", "cpu")
    assert isinstance(model, Translator)
    images, styles = torch.rand(1, 3, 64, 64) * 2 - 1, model.random_styles(1)
    with torch.no_grad():
        expected = gnr_networks(model.config)["G_A2B"](images, styles)[0].clamp(-1, 1)
    before = gnr._untrained(model, torch.device("cpu")).translate(images, styles=styles)
    torch.testing.assert_close(before, expected)
    assert not torch.allclose(before, model.translate(images, styles=styles), atol=1e-4)


def test_before_is_what_the_run_of_blendgan_began_with(made: Path) -> None:
    model = anifast.load(made / "blendgan" / "run", "cpu")
    assert isinstance(model, Model)
    z, images = model.random_faces(1), torch.rand(2, 3, 64, 64) * 2 - 1
    first, style = blendgan_networks(model.config)["G"], Style(model.config, 2, torch.device("cpu")).encoder
    with torch.no_grad():
        codes = style(images)
        expected = first([z], codes[:1], 0, randomize_noise=False)[0].clamp(-1, 1)
    before = blendgan._untrained(model, torch.device("cpu"))
    torch.testing.assert_close(before.encode_styles(images), codes)
    torch.testing.assert_close(before.paint(before.faces(z, 1.0), codes[:1], 0), expected)
    assert not torch.allclose(model.encode_styles(images), codes, atol=1e-4)
    assert not torch.allclose(model.paint(model.faces(z, 1.0), codes[:1], 0), expected, atol=1e-4)


def test_faces_from_nothing_are_plain() -> None:
    """They differ less from one another than others do."""
    plain, other = (
        torch.stack([shared.face("photo", number, "photo", gnr.ARTISTS[0], kind) for number in range(8)])
        for kind in (True, False)
    )
    assert float(plain.std(0).mean()) < float(other.std(0).mean())


def test_other_files_are_spared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "out" / "faces" / "mine.png"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--images", "16"]) == 1
    assert "choose another --out" in capsys.readouterr().err
    assert kept.exists() and list((tmp_path / "out").iterdir()) == [kept.parent]


def test_a_folder_takes_one_demo_at_a_time(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From before the folder is emptied to the end; what the first has drawn stays."""
    out = tmp_path / "deep" / "out"
    words, codes = ["demo", "--out", str(out), "--images", "16", "--device", "cpu"], []

    def drawn(folder: Path, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        folder.mkdir(parents=True)
        (folder / "0.png").touch()
        return torch.empty(0), torch.empty(0)

    def train(*_: object, **__: object) -> bool:
        codes.append(cli.main(words))
        assert len(list(out.rglob("0.png"))) == 4
        return False

    monkeypatch.setattr(shared, "drawn", drawn)
    monkeypatch.setattr(runs, "train", train)
    assert cli.main(words) == 130 and codes == [1]
    assert f"{out}: another run is writing here" in capsys.readouterr().err
    assert not (out / lock.NAME).exists()
    before = sorted(made.rglob("*"))
    with lock.hold(made):
        assert cli.main([*words, "--out", str(made)]) == 1
    assert sorted(made.rglob("*")) == before


@pytest.mark.parametrize("only", [None, *demo.PARTS])
def test_parts_run_in_order_or_one_alone(
    only: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins with all threads, without its own leftovers, and leaves the other's alone."""
    ran, threads = [], torch.get_num_threads()
    for name, module in demo.PARTS.items():

        def run(out: Path, device: torch.device, images: int | None, name: str = name) -> list[tuple[str, str]]:
            assert torch.get_num_threads() == threads
            torch.set_num_threads(threads + 1)
            ran.append((name, device.type, images, sorted(path.name for path in out.iterdir())))
            return [(f"{name}.png", f"made by {name}")]

        monkeypatch.setattr(module, "run", run)
    out = tmp_path / "out"
    for name in ("faces", "run", "translated", "gnr", "blendgan", "twingan", "others"):
        (out / name / "deep").mkdir(parents=True)
    for name in ("losses.png", "sheet.png", "demo.txt"):
        (out / name).touch()
    words = ["demo", "--out", str(out), "--images", "5", "--device", "cpu", *(["--only", only] if only else [])]
    try:
        assert cli.main(words) == 0
    finally:
        torch.set_num_threads(threads)
    always = [lock.NAME, "demo.txt", "others"]
    first = ["faces", "run", "translated", "losses.png", "sheet.png"]
    left = {
        None: always,
        "cyclegan": [*always, "gnr", "blendgan", "twingan"],
        "gnr": [*always, *first, "blendgan", "twingan"],
        "blendgan": [*always, *first, "gnr", "twingan"],
        "twingan": [*always, *first, "gnr", "blendgan"],
    }
    assert ran == [(name, "cpu", 5, sorted(left[only])) for name in demo.PARTS if only in (None, name)]
    told = capsys.readouterr().out
    for name in demo.PARTS:
        assert (f"{out / name}.png  made by {name}" in told) == (only in (None, name))


def test_a_file_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--images", "16"]) == 1
    assert "is a file; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_patch_distance() -> None:
    source = torch.Generator().manual_seed(0)
    rough = torch.rand(4, 3, 32, 32, generator=source) * 2 - 1
    smooth = torch.nn.functional.avg_pool2d(rough, 5, 1, 2)
    assert shared.patch_distance(rough, rough.flip(0)) == pytest.approx(0.0, abs=1e-6)
    half = shared.patch_distance(rough, (rough + smooth) / 2)
    assert 0.0 < half < shared.patch_distance(rough, smooth)


def test_spread() -> None:
    """The mean over pairs of two different styles."""
    painted = torch.tensor([0.0, 1.0, 3.0])[None, :, None, None, None].expand(2, 3, 3, 4, 4)
    assert gnr._spread(painted) == pytest.approx(2.0)
    assert gnr._spread(painted[:, :1].expand(-1, 3, -1, -1, -1)) == 0.0


def test_the_artist_is_told_by_what_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of models that paint photos as the artist of the drawing whose style is read, and as the next one."""
    monkeypatch.setattr(shared, "HELD", len(gnr.ARTISTS))
    count = len(gnr.ARTISTS)

    class Known:
        """Paints a held-out photo, which it knows by its number, as artist `style + shift`."""

        def __init__(self, shift: int) -> None:
            self.shift = shift

        def random_styles(self, many: int) -> torch.Tensor:
            return torch.arange(many) % count

        def styles_of(self, images: torch.Tensor, to: str = "B") -> torch.Tensor:
            return torch.arange(len(images))

        def translate(self, images: torch.Tensor, to: str = "B", styles: torch.Tensor | None = None) -> torch.Tensor:
            if to == "A":
                return photos
            chosen = self.random_styles(count) if styles is None else styles
            return torch.stack([as_by(n, int(style) + self.shift) for n, style in enumerate(chosen)])

        def grid(self, images: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.stack([as_by(n, int(s)) for s in styles]) for n in range(len(images))])

    def as_by(number: int, artist: int) -> torch.Tensor:
        return shared.face("photo", shared.HELD_FROM + number, "drawn", gnr.ARTISTS[artist % count])

    photos = torch.stack([shared.face("photo", shared.HELD_FROM + n, "photo", gnr.ARTISTS[0]) for n in range(count)])
    drawings = torch.stack([shared.face("drawn", shared.HELD_FROM + n, "drawn", gnr.ARTISTS[n]) for n in range(count)])
    lines = gnr._compared(Known(1), Known(0), photos, drawings)  # type: ignore[arg-type]
    assert "0.000 -> 0.000" in lines[0]
    likeness, likest = lines[3], lines[4]
    assert "-> 0.000" in likeness and "0.000 ->" not in likeness
    assert "0 % -> 100 %" in likest and f"{100 / count:.0f} %)" in likest


def test_the_search_is_told_by_who_is_found() -> None:
    """The figures of a model that knows everybody, and of one that takes each for the next."""
    numbers = torch.arange(8)
    photos = torch.linspace(-1, 0, 8).view(8, 1, 1, 1).expand(-1, 3, 32, 32)
    drawings = photos + 0.5  # the same characters in the other domain

    class Known:
        """Tells a character by its brightness; photos of it for `shift` characters further."""

        def __init__(self, shift: int) -> None:
            self.shift = shift

        def embed(self, images: torch.Tensor, domain: str) -> torch.Tensor:
            among = photos if domain == "A" else drawings
            who = (images[:, 0, 0, 0, None] - among[None, :, 0, 0, 0]).abs().argmin(1)
            return torch.eye(8)[(who + self.shift * (domain == "A")) % len(numbers)]

    found = {
        shift: twingan._compared(Known(shift), photos, drawings, drawings, drawings, "B")  # type: ignore[arg-type]
        for shift in (0, 1)
    }
    assert "0.000   (untranslated 0.500)" in found[0][1]
    assert "found    100 %   (by chance 12 %, by pixels" in found[0][2] and "100 %   (by chance 62 %, by" in found[0][3]
    assert "found    0 %" in found[1][2]
