"""`anifast eval` of BlendGAN: each figure by hand, sheets, what is told, and one clear error for what cannot be."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_blendgan import tiny_config, write_run
from tiny_cyclegan import command, own_cache, the_error
from torch import Tensor

import anifast
from anifast import cli
from anifast.data.folders import read_image, resize, save_png, to_float, to_tensor, to_uint8
from anifast.data.lmdb import write_lmdb
from anifast.data.portraits import write_blendgan, write_gnr
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.metrics import FeatureSet, fid
from anifast.metrics.report import Options, Report
from anifast.nn.perceptual import LPIPS
from anifast.systems import evals
from anifast.systems.blendgan import evaluation
from anifast.systems.blendgan.evaluation import Settings, at_side, parse_indices, published
from anifast.systems.blendgan.figures import matrix
from anifast.systems.blendgan.styles import pooled
from anifast.systems.measures import opened

FACES, STYLES, SIDE, L = 5, 3, 32, 10


class Colours:
    """An extractor of three features: the mean of each colour."""

    name, dim, weights, about = "colours", 3, "0" * 64, "means of colours"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(2).mean(dim=2)


class Painter:
    """A model whose pictures are known: plain ones in the style's colour, or the face's where i = L, with noise."""

    size, n_latent, style_dim, precision, averaged = 64, L, 3, "fp32", True
    device = torch.device("cpu")

    def __init__(self, *held: str, nan: bool = False) -> None:
        self.held, self.nan, self.sides = held or ("G", "E_style"), nan, {"E_style": 16}
        self.released: list[str] = []
        self.painted: list[int] = []
        self.at_once: list[int] = []

    def require(self, *names: str) -> None:
        for name in names:
            if name not in self.held:
                raise CheckpointError(f"this file lacks {name}")

    def release(self, *names: str) -> None:
        self.released += names

    def random_faces(self, count: int, seed: int = 0) -> Tensor:
        return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 0.5

    def random_styles(self, count: int, seed: int = 0) -> Tensor:
        return self.random_faces(count, seed + 1000)

    def faces(self, z: Tensor, truncation: float | None = None) -> Tensor:
        assert truncation is not None
        return z * truncation

    def encode_styles(self, images: Tensor, batch: int = 8) -> Tensor:
        assert images.shape[1:] == (3, 16, 16) and len(images) <= batch
        self.released.clear()
        return images.mean(dim=(2, 3)) * (torch.nan if self.nan else 1)

    def paint(self, w: Tensor, z: Tensor | None, index: int) -> Tensor:
        return torch.cat(list(self.paintings(w, w if z is None else z, index)))

    def paintings(
        self, w: Tensor, z: Tensor, index: int, *, noise: int | None = None, first: int = 0, batch: int = 8
    ) -> Iterator[Tensor]:
        for start in range(0, len(w), batch):
            self.painted.append(index)
            colours = (w if index == L else z)[start : start + batch, :, None, None].expand(-1, -1, 64, 64)
            self.at_once.append(len(colours))
            maps = [self.noise(noise, first + start + k) for k in range(len(colours))]
            yield (colours + torch.stack(maps)).clamp(-1, 1) * (torch.nan if self.nan else 1)

    @staticmethod
    def noise(seed: int | None, number: int) -> Tensor:
        if seed is None:
            return torch.zeros(1, 64, 64)
        return torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(10**6 * seed + number)) * 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    with own_cache(root / "cache"):
        yield write_gnr(root / "faces", 7, 3, 64, progress=False)


@pytest.fixture(scope="module")
def distance() -> LPIPS:
    """A network that nobody trained, but whose maps do not die out as those of PyTorch's own weights would."""
    lpips = LPIPS("alex", pretrained=False)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in lpips.named_parameters():
            spread = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 and value.shape[0] > 1 else 0.0
            value.normal_(0, spread, generator=source) if spread else value.fill_(0.0 if "bias" in name else 0.1)
    return lpips


@pytest.fixture(autouse=True)
def known_distance(distance: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "load_lpips", lambda name, device: (None if name == "none" else distance, ""))


def run(painter: Painter, data: Path, batch: int = 4, **own: Any) -> Report:
    given = {"faces": FACES, "styles": STYLES, "side": SIDE, "seed": 5, "permutations": 20, "lpips": "none", **own}
    options = Options(Colours(), batch, None, ("train",), 50, None, Settings(**given))
    return evaluation.evaluate(painter, data, options)  # type: ignore[arg-type]


def row(report: Report, style: str, index: int) -> dict[str, Any]:
    (found,) = [one for one in report.facts["rows"] if (one["style"], one["index"]) == (style, index)]
    return dict(found)


def saved(images: Tensor) -> Tensor:
    """By Pillow: what is written, and read again at the other side."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in to_uint8(images)]
    return torch.stack([to_float(to_tensor(resize(picture, SIDE))) for picture in pictures])


# --- the figures


def test_the_figures(data: Path, distance: LPIPS) -> None:
    """Each is what a few lines by hand give."""
    painter = Painter()
    report = run(painter, data, lpips="auto")
    faces, styles = painter.random_faces(FACES, 5), painter.random_styles(FACES * STYLES, 5)
    real = FeatureSet(3)
    for path in sorted((data / "trainB").glob("*.png")):
        real.update(Colours()(to_float(to_tensor(resize(read_image(path), SIDE)))[None]))
    noise = torch.stack([painter.noise(5, number) for number in range(FACES * STYLES)])
    for index in (0, 6, L):
        colours = faces.repeat_interleave(STYLES, 0) if index == L else styles
        images = saved((colours[:, :, None, None] + noise).clamp(-1, 1))
        made = FeatureSet(3)
        made.update(Colours()(images))
        found = row(report, "random", index)
        # The two ways of making pictures smaller differ by a level of 1/128 in some of 1024 pixels.
        assert found["trainB"]["fid"] == pytest.approx(fid(made.statistics, real.statistics), rel=1e-3, abs=1e-4)
        pairs = [(n + i, n + j) for n in range(0, 15, 3) for i, j in itertools.combinations(range(3), 2)]
        mean = torch.cat([distance(images[i : i + 1], images[j : j + 1]).flatten() for i, j in pairs]).mean()
        assert found["lpips"]["mean"] == pytest.approx(float(mean), rel=1e-2)
        assert (found["lpips"]["contents"], found["lpips"]["styles"], found["lpips"]["pairs"]) == (FACES, STYLES, 3)
        assert found["pictures"] == FACES * STYLES and found["images_per_second"] > 0
        assert found["trainB"]["pictures"] == 7
    facts = report.facts
    assert (facts["size"], facts["n_latent"], facts["side"], facts["averaged"]) == (64, L, SIDE, True)
    assert facts["settings"]["styles"] == STYLES and facts["lpips"]["name"] == distance.report_name
    assert "E_style" in painter.released  # before the generator comes


def test_without_a_style_only_noise_is_left(data: Path) -> None:
    """i = L is the same however styles are chosen, is painted once, and its diversity is that of noise."""
    painter = Painter()
    report = run(painter, data, lpips="auto")
    floor, other = row(report, "random", L), row(report, "reference", L)
    assert {**floor, "style": "reference"} == other
    assert 0 < floor["lpips"]["mean"] < row(report, "random", 0)["lpips"]["mean"]
    assert row(report, "random", 0)["lpips"] == row(report, "random", 6)["lpips"]  # as this painter knows no slots
    assert painter.painted.count(0) == 2 * painter.painted[1:].count(L)
    # one to warm up, and for each of 5 rows its 15 paintings by 4, whichever face they are of
    assert painter.at_once == [1, *5 * (4, 4, 4, 3)]


def test_references_are_the_styles_of_pictures(data: Path) -> None:
    """FID of paintings in the very colours of the style pictures is that of noise and rounding."""
    report = run(Painter(), data, style="reference", indices="0", faces=40, styles=7)
    found = row(report, "reference", 0)["trainB"]
    assert found["fid"] < 1e-3  # colours of 7 pictures, each as often: the same mean and nearly the same covariance
    assert [one["style"] for one in report.facts["rows"]] == ["reference"]
    assert "reference: styles of random pictures of trainB" in report.lines()
    few = run(Painter(), data, style="reference", indices="0", faces=2, styles=9)
    assert any("7 pictures in trainB for 9 styles" in note for note in few.notes)
    assert row(few, "reference", 0)["pictures"] == 18


@pytest.mark.parametrize("styles", [1, 9])
def test_references_differ_as_far_as_there_are_so_many(styles: int) -> None:
    codes = evaluation._Codes(torch.arange(6.0)[:, None], Path(), [], [])
    chosen = evaluation._chosen(codes, Settings(faces=20, styles=styles))
    assert chosen.shape == (20, styles)
    for face in chosen:
        assert face[:6].unique().numel() == min(styles, 6) and face[6:].unique().numel() == max(0, styles - 6)
    assert len({tuple(face.tolist()) for face in chosen}) > 4


def test_batches_and_times_change_nothing(data: Path) -> None:
    found = [run(Painter(), data, batch=batch, lpips="auto", indices="0", faces=3) for batch in (1, 2, 4, 7, 50)]
    for one, other in itertools.combinations(found, 2):
        for mine, theirs in zip(one.facts["rows"], other.facts["rows"], strict=True):
            for part, key in (("lpips", "mean"), ("trainB", "fid")):
                # Sums of float32 in another order.
                assert mine[part][key] == pytest.approx(theirs[part][key], rel=1e-4)


def test_seeds_truncation_and_limits(data: Path) -> None:
    one, other = (row(run(Painter(), data, seed=seed, style="random"), "random", 0) for seed in (5, 6))
    assert one["trainB"]["fid"] != other["trainB"]["fid"]
    alike = run(Painter(), data, truncation=0.0, style="random", indices="L")
    assert row(alike, "random", L)["trainB"]["fid"] != row(run(Painter(), data), "random", L)["trainB"]["fid"]
    options = Options(Colours(), 4, 2, ("test", "train"), 50, None, Settings(faces=2, styles=2, side=SIDE))
    report = evaluation.evaluate(Painter(), data, options)  # type: ignore[arg-type]
    found = row(report, "reference", 0)
    assert found["testB"]["pictures"] == found["trainB"]["pictures"] == 2
    assert [name for name, _ in report.rows][:2] == ["random, i = 0 (testB)", "random, i = 0 (trainB)"]


def test_pictures_become_smaller_as_by_pillow() -> None:
    """Pillow rounds between its two passes: half a level, by weights whose sizes add up to 1.3, and the last rounding.

    It also cuts there, so pictures that overshoot black or white would differ by more.
    """
    source = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(3, 3, 16, 16, generator=source) - 0.5, (96, 96), mode="bicubic")
    ours, theirs = to_uint8(at_side(images, SIDE)).int(), to_uint8(saved(images)).int()
    assert int((ours - theirs).abs().max()) <= 1
    same = to_uint8(torch.rand(2, 3, SIDE, SIDE, generator=source) * 2 - 1)
    assert torch.equal(to_uint8(at_side(to_float(same), SIDE)), same)


def test_indicators() -> None:
    assert parse_indices("0,6,L", 18) == [0, 6, 18] and parse_indices(" L, 3,3 ,0", 10) == [0, 3, 10]
    assert parse_indices("even", 18) == list(evaluation.PUBLISHED["random"])
    for text in ("", "0,", "-1", "11", "6,l", "1.5", "odd"):
        with pytest.raises(AnifastError, match=r"is no indicator; give numbers from 0 .* to 10 .*, L for 10"):
            parse_indices(text, 10)


def test_published_figures_stand_at_the_same_resolution() -> None:
    assert published("random", 6, 18) == published("random", 6, 10) == (23.17, 0.515)
    assert published("reference", 18, 18) == published("reference", 10, 10) == (76.97, 0.160)
    assert published("reference", 10, 18) == (51.49, 0.450) and published("random", 5, 18) is None
    assert published("random", 0, 14) == (8.97, 0.581) and published("random", 14, 14) == (76.73, 0.159)


# --- what is told


def test_the_tables(data: Path, distance: LPIPS) -> None:
    report = run(Painter(), data, lpips="auto", faces=2)
    lines = report.lines()
    assert report.columns[-4:] == ("LPIPS", "paper: FID", "paper: LPIPS", "images/s")
    assert "2 random faces (truncation 1) in 3 styles, with random noise; compared at 32 px" in lines[0]
    assert f"i = {L} paints no style" in lines[0] and distance.report_name in lines[1]
    head = next(number for number, line in enumerate(lines) if "KID x100" in line)
    assert lines[head + 1].startswith("random, i = 0 (trainB)") and " 8.97 " in lines[head + 1]
    # ours have stars, as neither network is the paper's; the paper's have none
    assert f" {row(report, 'random', 0)['trainB']['fid']:.2f}* " in lines[head + 1]
    assert f" {row(report, 'random', 0)['lpips']['mean']:.4f}* " in lines[head + 1]
    assert lines[head + 6].startswith(f"reference, i = {L} (trainB)") and "76.97" in lines[head + 6]
    text = "\n".join(lines)
    for method in ("AdaIN", "MUNIT", "FUNIT", "DRIT++", "StarGAN v2"):
        assert method in text
    assert "latent-guided (table 2 of the paper)" in text and "reference-guided (table 3 of the paper)" in text
    assert "this model, i = 6, trainB, n = 6" in text and "BlendGAN, i = 6, paper" in text
    assert "* taken with another network" in text  # colours are no Inception
    assert "FID by means of colours; LPIPS by " + distance.report_name in text
    assert report.facts["published"]["table1"][0] == {"style": "random", "index": 0, "fid": 8.97, "lpips": 0.581}
    assert any(line.startswith("published: arXiv 2110.11728") for line in lines)
    assert len(report.facts["published"]["table1"]) == 20 and len(report.facts["published"]["others"]) == 9


def test_without_any_weights(data: Path) -> None:
    own = Settings(faces=2, styles=2, lpips="none", style="random")
    report = evaluation.evaluate(Painter(), data, Options(own=own))  # type: ignore[arg-type]
    assert set(row(report, "random", 0)) == {"style", "index", "pictures", "images_per_second"}
    assert [name for name, _ in report.rows] == ["random, i = 0", "random, i = 6", f"random, i = {L}"]
    assert [line.partition(" ")[0] for line in report.below] == ["published:"]  # which stand in the table all the same
    alone = Options(own=replace(own, indices="5"))
    assert not evaluation.evaluate(Painter(), data, alone).below  # type: ignore[arg-type]


def test_stars_are_of_other_networks_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "is_standard", lambda extractor: True)
    report = run(Painter(), data, indices="0", style="random")
    assert "*" not in "\n".join(report.lines())


def test_ctrl_c_keeps_what_is_done(data: Path) -> None:
    class Stopped(Painter):
        def paintings(self, w: Tensor, z: Tensor, index: int, **options: Any) -> Iterator[Tensor]:
            if index == 6:
                raise KeyboardInterrupt
            return super().paintings(w, z, index, **options)

    report = run(Stopped(), data)
    assert report.interrupted and report.facts["interrupted"]
    assert [(one["style"], one["index"]) for one in report.facts["rows"]] == [("random", 0)]
    assert "interrupted: figures of 1 of 6 rows" in report.notes


def test_sheets_of_paintings(data: Path, tmp_path: Path) -> None:
    report = run(Painter(), data, figures=str(tmp_path / "sheets"), indices="0,L")
    assert [Path(path).name for path in report.facts["figures"]] == ["random.png", "reference.png"]
    with Image.open(tmp_path / "sheets" / "reference.png") as image:
        reference = image.size
    with Image.open(tmp_path / "sheets" / "random.png") as image:
        assert image.width < reference[0] and image.height == reference[1] > 4 * 128  # it shows the pictures too
    assert len(run(Painter(), data, figures=str(tmp_path / "many"), indices="even").facts["figures"]) == 2


# --- style codes


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain pictures of three painters, each with a colour, of several sizes, and a painter with one picture."""
    root, source = tmp_path_factory.mktemp("painters"), torch.Generator().manual_seed(0)
    for name, colour in (("red", (0.8, -0.6, -0.6)), ("green", (-0.6, 0.8, -0.6)), ("blue", (-0.6, -0.6, 0.8))):
        for number, (height, width) in enumerate(((16, 16), (40, 24), (9, 9), (33, 64))):
            shade = 0.2 * (torch.rand(3, 1, 1, generator=source) - 0.5)
            picture = (torch.tensor(colour)[:, None, None] + shade).expand(3, height, width)
            save_png(picture, root / name / f"{number}.png")
    save_png(torch.zeros(3, 16, 16) + 0.5, root / "alone" / "0.png")
    return root


def test_style_codes_of_classes(painted: Path, tmp_path: Path) -> None:
    report = run(Painter("E_style"), tmp_path, faces=0, classes=str(painted), figures=str(tmp_path / "sheets"))
    found = report.facts["style_codes"]
    assert (found["names"], found["counts"]) == (["blue", "green", "red"], [4, 4, 4])
    assert found["nearest"] == 1.0 and found["chance"] == pytest.approx(3 / 11)
    assert found["within"] > 0.9 > found["between"] and found["ratio"] < 0.1 < found["ratio_shuffled"][0]
    assert found["permutations"] == 20
    assert any("fewer than 2 pictures: alone" in note for note in report.notes)
    text = "\n".join(report.lines())
    assert f"style codes of {painted}" in text
    assert any(
        line.split("%")[-1].split()[:2] == ["100.00", "27.27"] for line in text.splitlines() if "nearest" in line
    )
    assert f"{found['ratio']:.4f}" in text and "12 pictures, 3 classes, 20 permutations" in text
    assert not report.columns and not report.facts["rows"]
    assert [Path(path).name for path in report.facts["figures"]] == ["style_codes.png", "style_neighbours.png"]
    for path in report.facts["figures"]:
        with Image.open(path) as image:
            assert min(image.size) > 150


def test_classes_and_paintings_in_one_report(painted: Path, data: Path) -> None:
    report = run(Painter(), data, classes=str(painted), indices="0", style="random")
    lines = report.lines()
    tables = next(k for k, line in enumerate(lines) if "table 2" in line)
    assert tables < next(k for k, line in enumerate(lines) if line.startswith("style codes of"))
    assert report.facts["style_codes"]["pictures"] == 12 and report.facts["rows"]


def test_pictures_that_cannot_be_read(painted: Path, tmp_path: Path) -> None:
    shutil.copytree(painted, tmp_path / "some")
    for name in ("blue/0.png", "green/0.png", "green/1.png", "green/2.png"):
        path = tmp_path / "some" / name
        path.write_bytes(path.read_bytes()[:40])
    report = run(Painter("E_style"), tmp_path, faces=0, classes=str(tmp_path / "some"))
    assert report.facts["style_codes"]["counts"] == [3, 4]
    assert sum(note.startswith(f"left out: {tmp_path / 'some'}") for note in report.notes) == 4
    assert any("fewer than 2 pictures: alone, green" in note for note in report.notes)
    for path in (tmp_path / "some").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="none of its pictures can be read"):
        run(Painter("E_style"), tmp_path, faces=0, classes=str(tmp_path / "some"))


def test_style_pictures_are_read_as_translate_reads_them(tmp_path: Path) -> None:
    """Those that are more than 8 times as large as the encoder's side are reduced before they are pooled."""
    seen: list[Tensor] = []

    class Seeing(Painter):
        def encode_styles(self, images: Tensor, batch: int = 8) -> Tensor:
            seen.extend(images)
            return super().encode_styles(images, batch)

    source = torch.Generator().manual_seed(0)
    save_png(2 * torch.rand(3, 200, 150, generator=source) - 1, tmp_path / "large.png")
    with opened(tmp_path) as pictures:
        evaluation._encoded(Seeing(), pictures, [0], 4, "styles", Report(()))  # type: ignore[arg-type]
    assert len(seen) == 1 and torch.equal(seen[0], pooled(tmp_path / "large.png", 16, "crop"))


def test_a_limit_is_of_each_class(painted: Path, tmp_path: Path) -> None:
    own = Settings(faces=0, classes=str(painted), permutations=1)
    report = evaluation.evaluate(Painter("E_style"), tmp_path, Options(limit=2, own=own))  # type: ignore[arg-type]
    assert report.facts["style_codes"]["counts"] == [2, 2, 2]


@pytest.mark.parametrize("count", [3, 60])
def test_the_matrix_shows_its_values(count: int) -> None:
    """Cells are the darker the larger their values; names that the font lacks become numbers."""
    values = torch.linspace(-0.2, 0.9, count * count).view(count, count)
    names = ["\u6f2b\u753b", *("a name that is too long to stand beside a row of cells" for _ in range(count - 1))]
    image = matrix(values, names, title="codes", about="of some pictures")
    cell = 46 if count == 3 else 15
    right, bottom = image.width - 17, image.height - 17
    last, first = (image.getpixel((right - k * cell - 3, bottom - k * cell - 3)) for k in (0, count - 1))
    assert sum(last) < 300 and sum(first) > 700


# --- folders


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blendgan(tmp_path_factory.mktemp("drawn") / "blendgan", 7, 64, progress=False)


def test_folders_as_training_reads_them(data: Path, drawn: Path) -> None:
    report = run(Painter(), drawn, indices="0", faces=2)
    assert row(report, "random", 0)["styles"]["pictures"] == row(report, "reference", 0)["styles"]["pictures"] == 7
    assert [name for name, _ in report.rows] == ["random, i = 0 (styles)", "reference, i = 0 (styles)"]
    assert "reference: styles of random pictures of styles" in report.lines()
    held = Options(Colours(), against=("test",), own=Settings(faces=1, styles=2, side=SIDE, lpips="none"))
    with pytest.raises(
        DataError, match=r"no folder testB\. Expected .*testB .*; --against train takes styles or trainB"
    ):
        evaluation.evaluate(Painter(), drawn, held)  # type: ignore[arg-type]
    shutil.copytree(data / "testB", drawn / "testB")
    found = evaluation.evaluate(Painter(), drawn, held)  # type: ignore[arg-type]
    assert row(found, "reference", 0)["testB"]["pictures"] == 3


def test_no_folder_is_needed_where_none_is_read(tmp_path: Path) -> None:
    own = Settings(faces=1, styles=2, side=SIDE, lpips="none", style="random")
    assert len(evaluation.evaluate(Painter(), tmp_path, Options(own=own)).rows) == 3  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no folder testB"):
        evaluation.evaluate(Painter(), tmp_path, Options(own=replace(own, style="reference")))  # type: ignore[arg-type]


# --- LMDBs


def test_an_lmdb_gives_the_figures_of_its_pictures(data: Path, tmp_path: Path) -> None:
    """Style pictures are taken from the size that is next to what is needed, and are JPEGs there."""
    pytest.importorskip("lmdb", reason="the extra lmdb is not installed")
    write_lmdb(data / "trainB", tmp_path / "trainB", sizes=(64, 128))
    found, whole = (row(run(Painter(), folder, indices="0"), "reference", 0)["trainB"] for folder in (tmp_path, data))
    assert found["pictures"] == whole["pictures"] == 7
    # The root of a Frechet distance is a distance. Mean colours of JPEGs of quality 100 are off by less than a half of
    # a level of 1/128: in three of them, for both sets, by 0.014.
    assert abs(found["fid"] ** 0.5 - whole["fid"] ** 0.5) < 0.014


# --- what cannot be


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"indices": "12"}, "--indices 12: '12' is no indicator"),
        ({"faces": 0}, "--faces 0 leaves nothing to evaluate"),
        ({"styles": 1, "lpips": "alex"}, "--lpips alex with --styles 1"),
    ],
)
def test_wrong_values(data: Path, own: dict[str, Any], told: str) -> None:
    with pytest.raises(AnifastError, match=told):
        run(Painter(), data, **own)


def test_domains_are_refused(data: Path) -> None:
    options = replace(Options(own=Settings(faces=1)), to="B")
    with pytest.raises(AnifastError, match="--to B: a model of blendgan translates between no two domains"):
        evaluation.evaluate(Painter(), data, options)  # type: ignore[arg-type]


def test_what_is_missing(data: Path, painted: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder styles \(nor trainB\)\. Expected .*styles .*--style random"):
        run(Painter(), tmp_path)
    with pytest.raises(CheckpointError, match="lacks E_style"):
        run(Painter("G"), data)
    with pytest.raises(CheckpointError, match="lacks E_style"):
        run(Painter("G"), data, style="random", classes=str(painted))
    with pytest.raises(CheckpointError, match="lacks G"):
        run(Painter("E_style"), data)
    report = run(Painter("G"), data, style="random", indices="0")  # which reads no picture's style
    assert row(report, "random", 0)["trainB"]["fid"] is not None
    with pytest.raises(DataError, match="stands in no class folder"):
        run(Painter(), data, faces=0, classes=str(painted / "red"))
    shutil.copytree(painted / "red", tmp_path / "one" / "red")
    with pytest.raises(DataError, match="pictures of one class only"):
        run(Painter(), data, faces=0, classes=str(tmp_path / "one"))


def test_nan_is_told(data: Path) -> None:
    with pytest.raises(AnifastError, match="gives NaN for paintings"):
        run(Painter(nan=True), data, style="random")
    with pytest.raises(AnifastError, match="gives NaN for style codes"):
        run(Painter(nan=True), data, style="reference")


def test_one_style_has_no_diversity(data: Path) -> None:
    report = run(Painter(), data, styles=1, indices="0", style="random", lpips="auto")
    assert "lpips" not in row(report, "random", 0) and report.facts["lpips"] is None
    assert any("one style of each face: no diversity" in note for note in report.notes)


# --- a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), tiny_config())


def test_a_run_is_evaluated(trained: Path, data: Path, painted: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"features": "none", "device": "cpu", "batch": 4, "classes": str(painted)}
    own = {"faces": 3, "styles": 2, "side": SIDE, "permutations": 5, "figures": str(tmp_path / "sheets")}
    report = evals.evaluate(trained, data, out=tmp_path / "e.json", lpips="auto", **options, **own)
    assert report.facts == json.loads((tmp_path / "e.json").read_text())
    assert report.facts["system"] == "blendgan" and report.facts["averaged"] and report.facts["n_latent"] == L
    means = {(one["style"], one["index"]): one["lpips"]["mean"] for one in report.facts["rows"]}
    assert len(means) == 6 and means["random", L] == means["reference", L]
    assert len({means["random", 0], means["reference", 0], means["random", 6], means["random", L]}) == 4
    assert report.facts["style_codes"]["pictures"] == 12
    names = {path.name for path in (tmp_path / "sheets").iterdir()}
    assert names == {"random.png", "reference.png", "style_codes.png", "style_neighbours.png"}


def test_the_command_takes_every_setting(
    trained: Path, drawn: Path, painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command line gives is what the evaluation is done with, and it has all that `Settings` has."""
    given: dict[str, Any] = {
        "indices": "0,4", "style": "random", "faces": 3, "styles": 2, "side": 16, "truncation": 0.5, "lpips": "none",
        "classes": str(painted), "permutations": 7, "figures": str(tmp_path / "sheets"), "seed": 3,
    }  # fmt: skip
    assert set(given) == {field.name for field in fields(Settings)}
    assert not any(getattr(Settings(), name) == value for name, value in given.items())
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    fixed = ("--data", drawn, "--features", "none", "--device", "cpu")
    assert cli.main(command("eval", trained, *fixed, "--out", tmp_path / "e.json", *words)) == 0
    facts = json.loads((tmp_path / "e.json").read_text())
    assert facts["settings"] == given and facts["side"] == 16
    assert [(one["style"], one["index"], one["pictures"]) for one in facts["rows"]] == [
        ("random", k, 6) for k in (0, 4)
    ]
    assert facts["style_codes"]["permutations"] == 7
    assert "random, i = 4" in capsys.readouterr().out
    assert cli.main(command("eval", trained, *fixed, "--indices", "99")) == 1
    assert "--indices 99: '99' is no indicator" in the_error(capsys.readouterr().err)
    assert cli.main(command("eval", trained, *fixed, "--dfid-styles", "2")) == 1
    assert "--dfid-styles: no option for blendgan" in the_error(capsys.readouterr().err)


def test_paintings_have_noise_of_their_own(trained: Path, data: Path) -> None:
    """Where no style takes part all paintings of a face differ, and are those of any batch."""
    model = anifast.load(trained, "cpu")
    for weight in (value for key, value in model._net("G").named_parameters() if key.endswith("noise.weight")):
        weight.fill_(0.5)
    found = []
    for batch in (1, 8):
        own = Settings(faces=2, styles=2, side=64, style="random", indices="L")
        report = evaluation.evaluate(model, data, Options(Colours(), batch, None, ("train",), 50, None, own))
        found.append(row(report, "random", L))
    assert found[0]["lpips"]["mean"] > 0
    # Sums of float32 in another order move few of the 12,288 values of a picture by a level.
    assert found[0]["lpips"]["mean"] == pytest.approx(found[1]["lpips"]["mean"], rel=1e-3)


def test_a_run_without_a_generator_has_style_codes(painted: Path, data: Path, tmp_path: Path) -> None:
    only = write_run(tmp_path / "run", tiny_config(), stages=("style",))
    options: dict[str, Any] = {"features": "none", "device": "cpu", "permutations": 5}
    report = evals.evaluate(only, data, faces=0, classes=str(painted), **options)
    assert report.facts["style_codes"]["classes"] == 3
    assert report.file == only / "evaluation.json"
    with pytest.raises(CheckpointError, match="stage gan"):
        evals.evaluate(only, data, **options)
