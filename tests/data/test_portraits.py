from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from anifast.data import portraits
from anifast.data.portraits import (
    ARTISTS,
    CHOICES,
    DOMAINS,
    TAGS,
    Content,
    Factors,
    Style,
    draw,
    landmarks,
    read_labels,
    sample_content,
    sample_factors,
    sample_style,
    tags,
    write_artists,
    write_blendgan,
    write_cyclegan,
    write_gnr,
    write_layouts,
    write_twingan,
)
from anifast.errors import AnifastError, DataError

Array = npt.NDArray[np.float64]


def pixels(image: Image.Image) -> Array:
    return np.asarray(image, dtype=np.float64) / 255


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def around(image: Array, point: tuple[float, float], radius: float) -> npt.NDArray[np.bool_]:
    """The pixels within `radius` (in parts of the side) of a point."""
    side = image.shape[0]
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side
    return np.asarray(np.hypot(x - point[0], y - point[1]) < radius)


# --- pictures


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_factors_give_the_same_bytes(domain: str) -> None:
    for seed in range(8):
        first, second = (sample_factors(seed, domain).draw(64).tobytes() for _ in range(2))
        assert first == second
    assert len({sample_factors(seed, domain).draw(64).tobytes() for seed in range(30)}) == 30


def test_another_process_draws_the_same() -> None:
    code = (
        "import hashlib; from anifast.data.portraits import *\n"
        "f = [sample_factors(s, d) for s in range(3) for d in DOMAINS]\n"
        "print(hashlib.sha256(b''.join(x.draw(48).tobytes() for x in f)).hexdigest(), repr(f))"
    )
    here: dict[str, object] = {}
    exec(code.replace("print(", "out = ("), here)
    root = Path(portraits.__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert told.strip() == " ".join(here["out"])


def test_factors_of_a_seed_never_change() -> None:
    """Data sets and labels are named by their seeds: these values are for good."""
    c = sample_content(7)
    assert (c.hair_cut, c.hair_color, c.bangs, c.eye_color, c.clothes) == ("long", "black", "swept", "aqua", "sailor")
    assert (c.turn, c.smile, c.detail) == (0.016, 0.8723, 929601353)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [16, 33, 64, 65, 97, 127, 128, 200, 256])
def test_sizes(domain: str, size: int) -> None:
    image = sample_factors(3, domain).draw(size)
    assert (image.mode, image.size) == ("RGB", (size, size))
    # the same picture in another size, not another picture
    small = pixels(image.resize((16, 16), Image.Resampling.BOX))
    other = pixels(sample_factors(3, domain).draw(256).resize((16, 16), Image.Resampling.BOX))
    assert np.abs(small - other).mean() < 0.06


def test_no_picture_is_flat_or_grey() -> None:
    for seed in range(40):
        for domain in DOMAINS:
            a = pixels(sample_factors(seed, domain).draw(64))
            assert a.std() > 0.08
            assert (a.max(2) - a.min(2)).mean() > 0.03


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [-1, 0, 15, 2049])
def test_a_size_out_of_range_is_refused(domain: str, size: int) -> None:
    with pytest.raises(ValueError, match=rf"size: expected 16 to 2048 pixels, got {size}"):
        draw(Content(), Style(), domain, size)


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="domain: expected one of drawn, photo; got 'oil'"):
        draw(Content(), Style(), "oil")
    with pytest.raises(ValueError, match="domain: expected one of drawn, photo; got 'oil'"):
        Factors(Content(), Style(), "oil")


@pytest.mark.parametrize("name", list(CHOICES))
def test_an_unknown_choice_is_refused_and_every_known_one_draws(name: str) -> None:
    kind: type[Content] | type[Style] = Content if name in {f.name for f in fields(Content)} else Style
    with pytest.raises(ValueError, match=f"{name}: expected one of .*; got 'other'"):
        kind(**{name: "other"})
    seen = set()
    for value in CHOICES[name]:
        given = {name: value, "hair_cut": "ponytail"} if name == "bangs" else {name: value}
        if name in ("gloss", "nose"):
            given["line"] = 1.2
        content = Content(**given) if kind is Content else Content(blush=1.0)
        style = Style(**given) if kind is Style else Style()
        seen.add(draw(content, style, "drawn", 128).tobytes())
        draw(content, style, "photo", 32)
    assert len(seen) == len(CHOICES[name])


# --- what the factors mean

BASE = Content(hair_cut="ponytail", bangs="parted", mouth_open=0.5, smile=0.6, clothes="tee")
CHANGES: dict[str, object] = {
    "detail": 12, "turn": 20.0, "nod": 10.0, "tilt": 12.0, "scale": 1.1, "offset_x": 0.05, "offset_y": 0.03,
    "face_width": 1.0,
    "jaw": 1.0, "chin": 1.0, "skin": 4, "hair_cut": "long", "bangs": "none", "hair_color": "green", "parting": -0.5,
    "ahoge": True,
    "eye_open": 0.0, "wink": 1, "gaze_x": 1.0, "gaze_y": 1.0, "eye_spacing": 1.0, "eye_slant": 1.0, "eye_color": "red",
    "lashes": 1.0, "brow_raise": 1.0, "brow_angle": 1.0, "brow_weight": 1.0, "smile": -0.6, "mouth_open": 0.0,
    "blush": 1.0,
    "glasses": "round", "accessory": "ribbon", "clothes": "sailor", "clothes_color": "yellow", "background_hue": 0.1,
    "background_light": 0.3,
}  # fmt: skip


def test_every_factor_of_content_is_tried() -> None:
    assert set(CHANGES) == {field.name for field in fields(Content)}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", list(CHANGES))
def test_every_factor_of_content_shows_in_every_domain(name: str, domain: str) -> None:
    # "detail" is what carries no meaning: in a clean drawing of a plain fringe there is little of it
    style = replace(Style(), grain=0.5)
    a, b = (pixels(draw(c, style, domain, 128)) for c in (BASE, replace(BASE, **{name: CHANGES[name]})))
    assert (np.abs(a - b).max(2) > 0.04).sum() >= 20


def changed(domain: str, name: str) -> tuple[Array, dict[str, tuple[float, float]]]:
    style = Style()
    a, b = (pixels(draw(c, style, domain, 128)) for c in (BASE, replace(BASE, **{name: CHANGES[name]})))
    return np.abs(a - b).max(2), landmarks(BASE, style, domain)


@pytest.mark.parametrize("domain", DOMAINS)
def test_factors_change_the_part_they_are_about(domain: str) -> None:
    moved, points = changed(domain, "eye_color")
    eyes = around(moved, points["eye_left"], 0.10) | around(moved, points["eye_right"], 0.10)
    assert moved[eyes].sum() > 0.95 * moved.sum()
    moved, points = changed(domain, "wink")
    assert moved[around(moved, points["eye_right"], 0.16)].sum() > 0.95 * moved.sum()
    moved, points = changed(domain, "mouth_open")
    mouth = (points["mouth_left"][0] + points["mouth_right"][0]) / 2, points["mouth_left"][1]
    assert moved[around(moved, mouth, 0.16)].sum() > 0.95 * moved.sum()
    moved, _ = changed(domain, "clothes_color")
    assert moved[:80].sum() < 0.05 * moved.sum()
    moved, points = changed(domain, "hair_color")
    face = (points["eye_left"][0] + points["eye_right"][0]) / 2, points["mouth_left"][1] - 0.06
    assert moved[around(moved, face, 0.07)].sum() < 0.02 * moved.sum()
    assert (moved > 0.1).sum() > 1000
    moved, points = changed(domain, "background_hue")
    assert (moved[:12, :12] > 0.04).all()
    assert moved[around(moved, face, 0.12)].max() < 0.02


@pytest.mark.parametrize("name", ["saturation", "temperature", "lightness", "shade_depth", "light", "backdrop"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_style_colours_both_domains(name: str, domain: str) -> None:
    values = {"saturation": 0.5, "temperature": 1.0, "lightness": 0.4, "shade_depth": 1.0, "light": 1}
    other = {**values, "backdrop": "stripes"}
    a, b = (pixels(draw(BASE, s, domain, 64)) for s in (Style(), replace(Style(), **{name: other[name]})))
    assert np.abs(a - b).mean() > 0.004


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("line", 2.0), ("line_color", "blue"), ("wobble", 1.0), ("contrast", 0.7), ("tint_amount", 0.3),
        ("shade_hue", 1.0),
        ("eye_size", 1.2), ("eye_height", 0.06), ("face_width", 1.1), ("chin", 0.08), ("strands", 1.0), ("grain", 1.0),
    ],
)  # fmt: skip
def test_style_shows_in_drawings(name: str, value: object) -> None:
    a, b = (pixels(draw(BASE, s, "drawn", 128)) for s in (Style(), replace(Style(), **{name: value})))
    assert (np.abs(a - b).max(2) > 0.03).sum() > 60


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_eyes_are_where_the_landmarks_say(domain: str) -> None:
    """An iris is darker than the skin around it, wherever the head is turned."""
    for seed in range(20):
        content = replace(
            sample_content(seed), eye_open=1.0, wink=0, gaze_x=0.0, gaze_y=0.0, skin=0, bangs="none", hair_cut="bun",
            glasses="none", eye_color="brown"
        )  # fmt: skip
        a = pixels(draw(content, Style(), domain, 128)).mean(2)
        points = landmarks(content, Style(), domain)
        mouth = points["mouth_left"], points["mouth_right"]
        cheek = tuple(np.mean([*mouth, *mouth, points["eye_left"], points["eye_right"]], axis=0) - (0.0, 0.03))
        for eye in ("eye_left", "eye_right"):
            assert a[around(a, points[eye], 0.02)].mean() < 0.75 * a[around(a, cheek, 0.02)].mean()
        assert points["eye_left"][0] < points["eye_right"][0]
        assert max(points["eye_left"][1], points["eye_right"][1]) < min(p[1] for p in mouth)


# --- statistics of the whole


def statistics(image: Image.Image) -> Array:
    a = pixels(image)
    grey = a.mean(2)
    x, y = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    saturation = a.max(2) - a.min(2)
    parts = [a.mean((0, 1)), a.std((0, 1)), [x.mean(), y.mean(), (x > 0.15).mean(), (y > 0.15).mean()]]
    parts.append([saturation.mean(), saturation.std(), (grey < 0.12).mean(), (grey > 0.93).mean()])
    return np.concatenate(parts)


def nearest_centroid(groups: list[list[Image.Image]]) -> float:
    """How often a picture of the second half of a group is nearest to the mean of its group's first half."""
    rows = np.array([[statistics(image) for image in group] for group in groups])
    half = rows.shape[1] // 2
    train, test = rows[:, :half], rows[:, half:]
    mean, std = train.mean((0, 1)), train.std((0, 1)) + 1e-6
    centroids = ((train - mean) / std).mean(1)
    distance = ((((test - mean) / std)[:, :, None] - centroids) ** 2).sum(3)
    return float((distance.argmin(2) == np.arange(len(groups))[:, None]).mean())


def test_domains_can_be_told_apart() -> None:
    groups = [[sample_factors(seed, domain).draw(64) for seed in range(80)] for domain in DOMAINS]
    assert nearest_centroid(groups) > 0.85


def test_artists_can_be_told_apart() -> None:
    groups = [
        [draw(sample_content(30 * i + seed), artist, "drawn", 64) for seed in range(24)]
        for i, artist in enumerate(ARTISTS)
    ]
    assert nearest_centroid(groups) > 0.45  # chance: 0.06


def test_a_character_is_found_again_in_the_other_domain() -> None:
    drawn, photo = [], []
    for seed in range(60):
        content = sample_content(seed)
        for rows, domain, style in ((drawn, "drawn", ARTISTS[0]), (photo, "photo", sample_style(seed))):
            rows.append(pixels(draw(content, style, domain, 48).resize((12, 12), Image.Resampling.BOX)).ravel())
    a, b = ((np.array(rows) - np.mean(rows, 0)) / np.std(rows, 0) for rows in (drawn, photo))
    distance = ((a[:, None] - b) ** 2).sum(2)
    assert (distance.argmin(1) == np.arange(60)).mean() > 0.85  # chance: 0.02


def test_artists() -> None:
    assert len(ARTISTS) >= 12
    assert len({artist.name for artist in ARTISTS}) == len(ARTISTS)
    assert len(set(ARTISTS)) == len(ARTISTS)


def test_sampling_covers_the_choices() -> None:
    contents = [sample_content(seed) for seed in range(400)]
    styles = [sample_style(seed) for seed in range(400)]
    for name, values in CHOICES.items():
        rows = contents if hasattr(contents[0], name) else styles
        seen = {getattr(row, name) for row in rows}
        assert seen >= set(values) - ({"none"} if name == "nose" else set()), name


def test_factors_go_through_json() -> None:
    for domain in DOMAINS:
        factors = sample_factors(5, domain)
        row = json.loads(json.dumps({"path": "x.png", **factors.to_dict()}))
        assert Factors.from_dict(row) == factors


# --- tags


def test_tags() -> None:
    table = {tag: group for _, tag, group in TAGS}
    assert len(TAGS) == len(table) == 51
    for seed in range(200):
        content, style = sample_content(seed), ARTISTS[seed % len(ARTISTS)]
        found = tags(content, style)
        assert set(found) <= set(table)
        assert all(0 < score <= 1 for score in found.values())
        groups = [table[tag] for tag in found if table[tag] in (1, 2, 3, 8)]
        assert len(groups) == len(set(groups))
        assert {1, 2, 3} <= set(groups)
    odd = Content(
        hair_cut="twintails", hair_color="pink", eye_color="red", eye_open=0.0, ahoge=True, glasses="round", skin=5
    )
    found = tags(odd, ARTISTS[0])
    assert {"long_hair", "twintails", "pink_hair", "closed_eyes", "ahoge", "glasses", "dark_skin"} <= set(found)
    assert "red_eyes" not in found


# --- layouts


def test_cyclegan_layout(tmp_path: Path) -> None:
    out = write_cyclegan(tmp_path / "data", train=5, test=2, size=32, seed=3, progress=False)
    names = {
        f"{folder}/{i:05d}.png"
        for folder, n in (("trainA", 5), ("trainB", 5), ("testA", 2), ("testB", 2))
        for i in range(n)
    }
    assert files(out) == names | {portraits.MARK, portraits.LABELS}
    labels = read_labels(out)
    assert set(labels) == names
    for name, factors in labels.items():
        with Image.open(out / name) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))
            assert image.tobytes() == factors.draw(32).tobytes()
        assert factors.domain == ("photo" if name[-11] == "A" else "drawn")
        assert factors.domain == "photo" or factors.style == ARTISTS[0]
    assert len({factors.content for factors in labels.values()}) == len(labels)


def test_labels_hold_landmarks(tmp_path: Path) -> None:
    out = write_blendgan(tmp_path / "data", 2, 16, progress=False)
    for line in (out / portraits.LABELS).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        f = Factors.from_dict(row)
        assert {k: tuple(v) for k, v in row["landmarks"].items()} == landmarks(f.content, f.style, f.domain)


def test_a_sample_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = write_cyclegan(tmp_path / "few", 2, 1, 16, seed=9, progress=False)
    many = write_cyclegan(tmp_path / "many", 6, 3, 16, seed=9, progress=False)
    other = write_cyclegan(tmp_path / "other", 2, 1, 16, seed=10, progress=False)
    for name in read_labels(few):
        assert (few / name).read_bytes() == (many / name).read_bytes()
        assert (few / name).read_bytes() != (other / name).read_bytes()


def test_gnr_has_many_artists(tmp_path: Path) -> None:
    out = write_gnr(tmp_path / "data", 12, 1, 16, progress=False)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"trainA", "trainB", "testA", "testB"}
    assert len({f.style.name for f in read_labels(out).values() if f.domain == "drawn"}) > 5


def test_artists_layout(tmp_path: Path) -> None:
    out = write_artists(tmp_path / "data", 2, 16, progress=False)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [artist.name for artist in ARTISTS]
    for name, factors in read_labels(out).items():
        assert name.split("/")[0] == factors.style.name
        assert factors.domain == "drawn"


def test_twingan_layout(tmp_path: Path) -> None:
    out = write_twingan(tmp_path / "data", 4, 2, 16, progress=False)
    counts = {
        f"{domain}/{split}": len(files(out / domain / split))
        for domain in ("source", "target")
        for split in ("train", "val")
    }
    assert counts == {"source/train": 4, "source/val": 2, "target/train": 4, "target/val": 2}
    labels = read_labels(out)
    taglist = [line.split("\t") for line in (out / "target/taglist.tsv").read_text(encoding="utf-8").splitlines()]
    assert [(int(number), tag, int(group)) for number, tag, group in taglist] == list(TAGS)
    rows = dict(line.split("\t") for line in (out / "target/tags.tsv").read_text(encoding="utf-8").splitlines())
    assert set(rows) == files(out / "target") - {"tags.tsv", "taglist.tsv"}
    for name, told in rows.items():
        parsed = {}
        for part in told.split(", "):
            tag, _, score = part.partition(":")
            parsed[tag] = float(score or 1.0)
        factors = labels[f"target/{name}"]
        assert parsed == tags(factors.content, factors.style)


def test_blendgan_layout(tmp_path: Path) -> None:
    out = write_blendgan(tmp_path / "data", 6, 64, progress=False)
    assert {name.split("/")[0] for name in read_labels(out)} == {"faces", "styles"}
    for name, f in read_labels(out).items():
        assert f.domain == ("photo" if name.startswith("faces") else "drawn")
        points = landmarks(f.content, f.style, f.domain)
        assert abs(points["eye_left"][1] - points["eye_right"][1]) < 0.06  # level, but for the turn of a nodding head


def test_all_layouts(tmp_path: Path) -> None:
    made = write_layouts(tmp_path, count=1, size=16, progress=False)
    assert [path.name for path in made] == ["cyclegan", "gnr", "disentangle", "twingan", "blendgan"]
    for path in made:
        assert len([name for name in files(path) if name.endswith(".png")]) == len(read_labels(path))
    assert not (set(read_labels(made[0]).values()) & set(read_labels(made[1]).values()))


def test_an_interrupted_run_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_twingan(tmp_path / "whole", 3, 1, 16, progress=False)
    drawn = 0
    real = Factors.draw

    def stop(self: Factors, size: int = 64) -> Image.Image:
        nonlocal drawn
        drawn += 1
        if drawn == 3:
            raise KeyboardInterrupt
        return real(self, size)

    monkeypatch.setattr(Factors, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        write_twingan(tmp_path / "cut", 3, 1, 16, progress=False)
    cut = tmp_path / "cut"
    assert files(cut) == {portraits.MARK, "source/train/00000.png", "source/train/00001.png"}
    first = (cut / "source/train/00000.png").stat().st_mtime_ns
    write_twingan(cut, 3, 1, 16, progress=False)
    assert drawn == 3 + 6
    assert (cut / "source/train/00000.png").stat().st_mtime_ns == first
    assert files(cut) == files(whole)
    assert all((cut / name).read_bytes() == (whole / name).read_bytes() for name in files(whole))


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "trainA").mkdir()
    (tmp_path / "trainA/00000.png").write_bytes(b"mine")
    with pytest.raises(DataError, match="has files in it that are not portraits; choose a new or empty folder"):
        write_cyclegan(tmp_path, 2, 1, 16, progress=False)
    assert files(tmp_path) == {"trainA/00000.png"}
    assert (tmp_path / "trainA/00000.png").read_bytes() == b"mine"


def test_portraits_with_other_settings_are_left_alone(tmp_path: Path) -> None:
    write_cyclegan(tmp_path, 2, 1, 16, seed=1, progress=False)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(DataError, match=r"other settings \(seed 1 there, 2 asked for; size 16 there, 32 asked for\)"):
        write_cyclegan(tmp_path, 2, 1, 32, seed=2, progress=False)
    with pytest.raises(DataError, match="other settings"):
        write_cyclegan(tmp_path, 2, 1, 16, seed=1, artists=ARTISTS[1:2], progress=False)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_what_stands_in_a_written_folder_is_never_overwritten(tmp_path: Path) -> None:
    write_twingan(tmp_path, 1, 1, 16, progress=False)
    (tmp_path / "target/tags.tsv").write_text("mine", encoding="utf-8")
    (tmp_path / "target/train/00000.png").write_bytes(b"mine")
    write_twingan(tmp_path, 1, 1, 16, progress=False)
    assert (tmp_path / "target/tags.tsv").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "target/train/00000.png").read_bytes() == b"mine"


def test_one_bad_folder_stops_all_layouts_before_the_first(tmp_path: Path) -> None:
    (tmp_path / "blendgan").mkdir()
    (tmp_path / "blendgan/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="blendgan has files"):
        write_layouts(tmp_path, count=1, size=16, progress=False)
    assert files(tmp_path) == {"blendgan/notes.txt"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="out is no folder"):
        write_cyclegan(tmp_path / "out", 1, 1, 16, progress=False)
    with pytest.raises(AnifastError, match="cannot write"):
        write_cyclegan(tmp_path / "out/deeper", 1, 1, 16, progress=False)


def test_a_damaged_mark(tmp_path: Path) -> None:
    (tmp_path / portraits.MARK).write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot read .*portraits.json"):
        write_cyclegan(tmp_path, 1, 1, 16, progress=False)
    (tmp_path / portraits.MARK).write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="other settings"):
        write_cyclegan(tmp_path, 1, 1, 16, progress=False)


def test_labels_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no labels there"):
        read_labels(tmp_path)
    (tmp_path / portraits.LABELS).write_text('{"path": "a.png"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"factors.jsonl is damaged"):
        read_labels(tmp_path)


def test_bad_numbers_and_names_write_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(ValueError, match="size: expected 16 to 2048 pixels, got 8"):
        write_cyclegan(out, 1, 1, 8)
    with pytest.raises(ValueError, match="number of pictures for trainA: expected at least 0, got -1"):
        write_cyclegan(out, -1, 1, 16)
    with pytest.raises(ValueError, match="at least one style"):
        write_artists(out, 1, 16, artists=())
    with pytest.raises(ValueError, match="names.*must differ"):
        write_artists(out, 1, 16, artists=(Style(), Style(line=2.0)))
    with pytest.raises(ValueError, match="'../up' cannot be the name of a folder"):
        write_artists(out, 1, 16, artists=(Style("../up"),))
    with pytest.raises(ValueError, match="layout: expected one of cyclegan, .*; got 'pix2pix'"):
        write_layouts(out, ["cyclegan", "pix2pix"])
    with pytest.raises(ValueError, match="count: expected at least 1, got -3"):
        write_layouts(out, count=-3)
    assert not out.exists()


# --- command line


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    portraits.add_cli(parser)
    return parser.parse_args(words)


def test_the_command_writes_what_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path), "--count", "11", "--size", "16", "--seed", "4", "--layout", "cyclegan", "blendgan"]
    assert portraits.main(parse(*words)) == 0
    told = capsys.readouterr()
    assert told.out.split() == [str(tmp_path / "cyclegan"), str(tmp_path / "blendgan")]
    assert "portraits cyclegan" in told.err
    assert "24/24" in told.err
    direct = write_cyclegan(tmp_path / "direct", 11, 1, 16, seed=4, progress=False)
    assert all((tmp_path / "cyclegan" / name).read_bytes() == (direct / name).read_bytes() for name in files(direct))


def test_the_command_writes_all_layouts_by_default(tmp_path: Path) -> None:
    args = parse("--out", str(tmp_path))
    assert (args.count, args.size, args.seed, tuple(args.layout)) == (200, 64, 0, tuple(portraits.LAYOUTS))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--out"),
        (("--out", "x", "--size", "8"), "8: 16 to 2048"),
        (("--out", "x", "--count", "-1"), "-1: at least 1"),
        (("--out", "x", "--count", "some"), "'some' is no whole number"),
        (("--out", "x", "--layout", "pix2pix"), "invalid choice: 'pix2pix'"),
        (("--out", "x", "--what", "1"), "unrecognized arguments: --what"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_drawing_needs_no_torch() -> None:
    code = "import sys, anifast.data.portraits; print('torch' in sys.modules)"
    root = Path(portraits.__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert told.strip() == "False"
