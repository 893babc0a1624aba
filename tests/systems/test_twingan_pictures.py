"""Pictures that Twin-GAN learns from: found, scaled, cropped, shared out, resumed; and tags that go with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cyclegan import own_cache, picture
from tiny_twingan import make_data, tiny_config
from torch import Tensor

from anifast.data import packed as packing
from anifast.data.augment import color_jitter
from anifast.data.folders import read_image, resize, resize_tf1, to_tensor
from anifast.data.packed import PackedImages
from anifast.data.tags import TagList
from anifast.engine.distributed import Team
from anifast.errors import AnifastError, DataError
from anifast.systems.twingan.pictures import Batch, Pictures, find, preprocess, share_of, tags_file, whole

CPU = torch.device("cpu")
#: Whatever changes a picture is off: a batch has the packed pixels.
PLAIN: dict[str, Any] = {"crop": 1.0, "flip": False, "jitter": "none"}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """6 + 6 training pictures, 2 + 2 to show, tags, and a cache of their own."""
    root = tmp_path_factory.mktemp("twingan")
    with own_cache(root / "cache"):
        yield make_data(root / "faces", tags=True)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """The same, for tests that change something."""
    with own_cache(tmp_path / "cache"):
        yield make_data(tmp_path / "faces", tags=True)


def pictures(root: Path, side: int = 16, team: Team | None = None, stage: str | None = None, **values: Any) -> Pictures:
    return Pictures(root, tiny_config(**values), side, CPU, team, stage=stage)


def rows_of(images: Tensor, packed: PackedImages) -> list[int]:
    """Which of the packed pictures each of a batch is, that was not changed."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [next(row for row, one in enumerate(packed.images) if np.array_equal(one, image)) for image in pixels]


def same(a: Batch, b: Batch) -> bool:
    return all(
        x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in zip(a, b, strict=True)
    )


# Batches


@pytest.mark.parametrize("preset", ["fast", "tg2018"])
@pytest.mark.parametrize("side", [4, 8, 16])
def test_a_batch(faces: Path, preset: str, side: int) -> None:
    data = Pictures(faces, tiny_config(preset, batch=3), side, CPU)
    assert (len(data.source), len(data.target)) == (6, 6)
    assert data.source.images.shape == (6, side * 5 // 4, side * 5 // 4, 3)  # int(hw / 0.8)
    for _ in range(5):
        batch = data.next()
        assert batch.tags is None and data.tags is None
        for images in batch[:2]:
            assert images.shape == (3, 3, side, side) and images.dtype == torch.float32
            assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.02


def test_pictures_are_those_packed(faces: Path) -> None:
    data = pictures(faces, batch=6, **PLAIN)
    batch = data.next()
    for images, packed in ((batch.source, data.source), (batch.target, data.target)):
        assert sorted(rows_of(images, packed)) == list(range(6))
        # Half a grey level is 1/510; float32 is far finer than that.
        assert ((images * 255) - (images * 255).round()).abs().max() < 1e-3


def test_an_epoch_repeats_no_picture_and_domains_go_their_own_ways(faces: Path) -> None:
    data = pictures(faces, batch=2, **PLAIN)
    orders: list[tuple[list[int], list[int]]] = []
    for _ in range(4):
        batches = [data.next() for _ in range(3)]
        source = [row for batch in batches for row in rows_of(batch.source, data.source)]
        target = [row for batch in batches for row in rows_of(batch.target, data.target)]
        assert sorted(source) == sorted(target) == list(range(6))
        orders.append((source, target))
    assert len({tuple(source) for source, _ in orders}) > 1
    assert any(source != target for source, target in orders)


def test_seeds_and_phases_have_orders_of_their_own(faces: Path) -> None:
    def drawn(seed: int, stage: str | None) -> list[int]:
        data = pictures(faces, stage=stage, batch=2, seed=seed, **PLAIN)
        return [row for _ in range(9) for row in rows_of(data.next().source, data.source)]

    assert drawn(1, "16") == drawn(1, "16") == drawn(1, None)
    assert drawn(1, "8to16") != drawn(1, "16") and drawn(2, "16") != drawn(1, "16")


def test_augmentation_of_phases_differs(faces: Path) -> None:
    one, other = (pictures(faces, stage=stage, batch=6, jitter="none").next() for stage in ("8to16", "16"))
    sums = [sorted(batch.source.flatten(1).sum(1).tolist()) for batch in (one, other)]
    assert sums[0] != pytest.approx(sums[1])  # the same six pictures, cropped otherwise


@pytest.mark.parametrize(
    ("jitter", "changed"), [("none", (False, False)), ("source", (True, False)), ("both", (True, True))]
)
def test_colours_change_in_the_domains_of_the_setting(faces: Path, jitter: str, changed: tuple[bool, bool]) -> None:
    plain, data = (pictures(faces, batch=6, **{**PLAIN, "jitter": how}) for how in ("none", jitter))
    before, after = plain.next(), data.next()
    for domain in (0, 1):
        assert torch.equal(before[domain], after[domain]) is not changed[domain]
    if changed[0]:  # brightness by up to 32/255, saturation by 0.5 to 1.5 (the mean of a grey part stays where it is)
        value, shifted = (batch.source.amax(1).flatten(1).mean(1) for batch in (before, after))
        assert 0 < (shifted - value).abs().max() <= 32 / 255 + 1e-6


def test_flips_and_crops_are_drawn_for_each_picture(faces: Path) -> None:
    flipped = pictures(faces, batch=6, **{**PLAIN, "flip": True})
    plain = pictures(faces, batch=6, **PLAIN)
    mirrored = 0
    for _ in range(4):
        for a, b in zip(plain.next().source, flipped.next().source, strict=True):
            mirror = torch.equal(a.flip(2), b)
            assert mirror or torch.equal(a, b)
            mirrored += mirror
    assert 0 < mirrored < 24
    cropped, again = (pictures(faces, batch=6, flip=False, jitter="none", crop=0.5) for _ in range(2))
    first = cropped.next()
    assert same(first, again.next()) and not same(first, cropped.next())


def test_the_order_of_the_steps(faces: Path) -> None:
    """Colours change behind crop and flip, by a picture's own draws."""
    plain, jittered = (pictures(faces, batch=4, jitter=how) for how in ("none", "both"))
    seeds = []
    original = color_jitter

    def spied(images: Tensor, numbers: Tensor) -> Tensor:
        seeds.append(numbers)
        return original(images, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anifast.systems.twingan.pictures.color_jitter", spied)
        got = jittered.next(), jittered.next()
    for batch, numbers in zip(got, seeds, strict=True):
        want = original(torch.cat(plain.next()[:2]), numbers)
        assert torch.equal(torch.cat(batch[:2]), want)
    assert len(torch.cat(seeds).unique()) == 16  # no two pictures share one


def test_the_authors_resize_is_not_averaged(faces: Path) -> None:
    for side in (4, 8, 16):
        data = pictures(faces, side, preset="tg2018")
        for name, image in zip(data.target.paths, data.target.images, strict=True):
            read = read_image(faces / "target/train" / name)
            assert np.array_equal(image, np.asarray(resize(read, side * 5 // 4, "tf1")))


@pytest.mark.parametrize("resize", ["antialias", "tf1"])
def test_the_authors_crops_begin_at_a_pixel(faces: Path, resize: str) -> None:
    """On his grid the first pixel is the window's own; on the other it lies between pixels."""
    data = pictures(faces, batch=6, resize=resize, crop=0.5, flip=False, jitter="none")
    first = torch.cat([data.next().source[:, :, 0, 0] for _ in range(3)]) * 255
    away = (first - first.round()).abs()
    assert away.max() < 1e-3 if resize == "tf1" else away.max() > 0.1


def test_pictures_are_decoded_once_for_all_phases(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = packing._decode

    def counted(job: Any, path: Path) -> bytes:
        decoded.append((path, job.height))
        return decode(job, path)

    monkeypatch.setattr(packing, "_decode", counted)
    by_side = {side: pictures(own, side) for side in (4, 8, 16)}
    assert len(decoded) == 12 and {height for _, height in decoded} == {20}
    for side in (8, 4):
        above = by_side[2 * side].source.images.astype(np.float64)
        blocks = above.reshape(6, side * 5 // 4, 2, side * 5 // 4, 2, 3).mean((2, 4))
        assert np.abs(by_side[side].source.images - blocks).max() <= 0.5


@pytest.mark.parametrize(("crop", "sides"), [(1.0, (4, 8, 16)), (0.7, (5, 11, 22)), (0.5, (8, 16, 32))])
def test_other_crops(faces: Path, crop: float, sides: tuple[int, ...]) -> None:
    """Sides that do not double (0.7) are decoded for themselves."""
    for side, loaded in zip((4, 8, 16), sides, strict=True):
        data = pictures(faces, side, crop=crop)
        assert data.source.images.shape[1:3] == (loaded, loaded)
        assert data.next().source.shape[2:] == (side, side)


# Several processes, and going on


def test_a_batch_is_shared_out(faces: Path) -> None:
    alone = pictures(faces, batch=4, tags=True)
    parts = [pictures(faces, team=Team(CPU, rank, 2), batch=4, tags=True) for rank in range(2)]
    for _ in range(4):
        want, got = alone.next(), [part.next() for part in parts]
        assert len(got[0].source) == 2
        for i in range(3):
            assert torch.equal(torch.cat([batch[i] for batch in got]), want[i])
    assert parts[0].state_dict() == parts[1].state_dict() == alone.state_dict()


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_goes_on_bit_for_bit(faces: Path, world: int) -> None:
    """Also with another number of processes than before."""
    data = pictures(faces, batch=4, tags=True)
    for _ in range(3):
        data.next()
    state = data.state_dict()
    want = [data.next() for _ in range(3)]
    parts = [pictures(faces, team=Team(CPU, rank, world), batch=4, tags=True) for rank in range(world)]
    for part in parts:
        part.load_state_dict(state)
    for batch in want:
        got = [part.next() for part in parts]
        assert all(torch.equal(torch.cat([one[i] for one in got]), batch[i]) for i in range(3))


def test_other_pictures_or_tags_than_before(own: Path) -> None:
    def state() -> dict[str, Any]:
        return pictures(own, tags=True).state_dict()

    before = state()
    pictures(own, tags=True).load_state_dict(before)
    table = own / "target/tags.tsv"
    text = table.read_text()
    table.write_text(text.replace("0.9", "0.7"))
    with pytest.raises(DataError, match=r"tags\.tsv says other things than when this phase began"):
        pictures(own, tags=True).load_state_dict(before)
    table.write_text(text)
    picture(own / "source/train/0.png", 77, (40, 40))
    with pytest.raises(DataError, match="source/train holds other pictures under the same names than when this phase"):
        pictures(own, tags=True).load_state_dict(before)
    picture(own / "source/train/new.png", 78, (40, 40))
    with pytest.raises(DataError, match="source/train holds other pictures than when this phase"):
        pictures(own, tags=True).load_state_dict(before)


@pytest.mark.parametrize("norm", ["batch_renorm", "batch_norm"])
def test_one_picture_has_no_statistics(faces: Path, norm: str) -> None:
    with pytest.raises(
        AnifastError, match=rf"setting batch: 2 at 16 px leaves 1 picture to each of 2 processes, .*{norm}.* --batch 4"
    ):
        pictures(faces, team=Team(CPU, 0, 2), batch=2, norm=norm)
    config = tiny_config(batch=2, norm=norm)
    with pytest.raises(AnifastError, match=r"setting batch: 1 at 4 px: 1 picture has no statistics"):
        Pictures(faces, config, 4, CPU, batch=1)
    for free in ("instance_norm", "layer_norm", "none"):
        assert len(pictures(faces, team=Team(CPU, 0, 2), batch=2, norm=free).next().source) == 1


def test_the_authors_batches_and_processes(faces: Path) -> None:
    config = tiny_config(batch=0, size=128)
    team = Team(CPU, 1, 4)
    assert [share_of(config, side, team) for side in (4, 64)] == [2, 2] and share_of(config, 128, team, batch=12) == 3
    with pytest.raises(AnifastError, match="setting batch: 4 at 128 px leaves 1 picture to each of 4 processes"):
        share_of(config, 128, team)
    assert share_of(tiny_config(batch=0, size=128, norm="none"), 128, team) == 1
    with pytest.raises(AnifastError, match="setting batch: 4 at 128 px leaves 1 picture to each of 4 processes"):
        Pictures(faces, config, 128, CPU, Team(CPU, 0, 4))
    with pytest.raises(AnifastError, match="setting batch: 4 cannot be shared out evenly over 3 processes"):
        Pictures(faces, config, 128, CPU, Team(CPU, 0, 3))


def test_fewer_pictures_than_a_batch(own: Path) -> None:
    with pytest.raises(DataError, match="source/train: 6 pictures that can be read, and a batch has 8 .* --batch 6"):
        pictures(own, batch=8)
    for number in range(1, 6):
        (own / f"target/train/{number}.png").unlink()
    with pytest.raises(
        DataError, match="target/train: 1 picture that can be read, and a batch has 2 different"
    ) as told:
        pictures(own)
    assert "--batch" not in str(told.value)  # of one there are no statistics


# Folders


def test_where_pictures_are_looked_for(own: Path, tmp_path: Path) -> None:
    assert find(own, "source") == own / "source/train" and find(own, "t", "val") == own / "target/val"
    letters = tmp_path / "letters"
    for ours, theirs in (("source", "A"), ("target", "B")):
        shutil.copytree(own / ours / "train", letters / f"train{theirs}")
        shutil.copytree(own / ours / "val", letters / f"test{theirs}")
    assert find(letters, "A") == letters / "trainA" and find(letters, "target", "val") == letters / "testB"
    ours, theirs = pictures(own), pictures(letters)
    assert same(ours.next(), theirs.next())
    assert all(torch.equal(a, b) for a, b in zip(ours.shown(3), theirs.shown(3), strict=True))
    with pytest.raises(AnifastError, match="domain 'human': there are source"):
        find(own, "human")
    with pytest.raises(ValueError, match="split is 'test'; expected train or val"):
        find(own, "source", "test")


def test_layouts_are_not_mixed_within_a_domain(own: Path) -> None:
    """The other layout's pictures and tags do not count beside those to train on."""
    shutil.copytree(own / "target/train", own / "trainB")
    shutil.copytree(own / "target/val", own / "testB")
    (own / "tags.tsv").write_text("nonsense")
    shutil.rmtree(own / "target/val")
    assert find(own, "target", "val") is None and tags_file(own) == own / "target/tags.tsv"
    shutil.rmtree(own / "target/train")
    assert find(own, "target", "val") == own / "testB" and tags_file(own) == own / "tags.tsv"
    shutil.rmtree(own / "trainB")
    assert find(own, "target") is None and find(own, "target", "val") == own / "testB"
    assert tags_file(own) == own / "tags.tsv"  # to evaluate on
    shutil.rmtree(own / "testB")
    assert tags_file(own) is None


def test_missing_folders(own: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder source/train or trainA, and no folder target/train or trainB"):
        pictures(tmp_path)
    shutil.rmtree(own / "target/train")
    with pytest.raises(DataError, match=r"faces: no folder target/train or trainB\. Expected source/train"):
        pictures(own)
    (own / "target/train").mkdir()
    with pytest.raises(DataError, match="target/train: no picture found"):
        pictures(own)


def test_bad_pictures_are_named(own: Path) -> None:
    (own / "source/train/cut.png").write_bytes((own / "source/train/0.png").read_bytes()[:100])
    (own / "target/train/sub").mkdir()
    (own / "target/train/sub/text.jpg").write_text("text")
    data = pictures(own, 4)
    assert set(data.skipped()) == {"source/train/cut.png", "target/train/sub/text.jpg"}
    assert len(data.source) == 6


# What is shown


@pytest.mark.parametrize("preset", ["fast", "tg2018"])
def test_pictures_that_are_shown(faces: Path, preset: str) -> None:
    """Those to test with, whole, whatever has been drawn before."""
    data = Pictures(faces, tiny_config(preset), 16, CPU)
    shown = data.shown(6)
    data.next()
    for word, images, again in zip(("source", "target"), shown, data.shown(6), strict=True):
        assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32 and torch.equal(images, again)
        for number, image in enumerate(images):
            read = read_image(faces / word / f"val/{number}.png")
            if preset == "fast":
                assert torch.equal(image, to_tensor(resize(read, 16)).float() / 255)
            else:
                assert torch.equal(image, resize_tf1(to_tensor(read), 16) / 255)
    assert data.shown(1)[0].shape[0] == 1


@pytest.mark.parametrize("empty", [False, True])
def test_without_pictures_to_show_training_pictures_are(own: Path, empty: bool) -> None:
    shutil.rmtree(own / "source/val")
    if empty:
        (own / "source/val").mkdir()
    source, target = pictures(own).shown(3)
    assert len(source) == 3 and len(target) == 2
    for image, name in zip(source, ("0.png", "2.png", "4.png"), strict=True):
        assert torch.equal(image, whole(read_image(own / "source/train" / name), 16))


def test_a_shown_picture_that_cannot_be_read(own: Path) -> None:
    shutil.rmtree(own / "source/val")
    for number in (0, 5):
        (own / f"source/train/{number}.png").write_bytes((own / f"source/train/{number}.png").read_bytes()[:90])
    data = pictures(own)
    got = data.shown(6)[0]
    want = [whole(read_image(own / f"source/train/{number}.png"), 16) for number in (1, 2, 3, 4)]
    assert torch.equal(got, torch.stack(want))
    for path in (own / "target/val").iterdir():
        path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(DataError, match="target/val: none of its pictures can be read"):
        data.shown(2)


# Scaling for inference


def test_scaling_is_pillows_up_to_its_rounding() -> None:
    rng = np.random.default_rng(0)
    for shape in ((40, 61), (9, 12), (16, 50), (100, 16)):
        values = rng.integers(64, 192, (*shape, 3), dtype=np.uint8)  # nothing to be clipped
        image = Image.fromarray(values)
        got = preprocess(to_tensor(image)[None], 16)[0]
        assert got.dtype == torch.float32 and got.shape == (3, 16, 16)
        # Pillow rounds to 8 bits between its passes and after them; the second's weights add up to 1.3 in size at most.
        assert (got - whole(image, 16)).abs().max() < (0.5 * 1.3 + 0.5 + 0.01) / 255


@pytest.mark.parametrize("how", ["antialias", "tf1"])
def test_scaling(how: str) -> None:
    u8 = torch.randint(0, 256, (3, 3, 24, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    got = preprocess(u8, 8, how)
    assert got.shape == (3, 3, 8, 8) and got.min() >= 0 and got.max() <= 1
    # float32 rounds a value about as often as it has weights: 13 x 17 of them here at the most.
    torch.testing.assert_close(preprocess(u8.float() / 255, 8, how), got, atol=1e-5, rtol=0)
    torch.testing.assert_close(preprocess(u8[1:2], 8, how), got[1:2], atol=1e-6, rtol=0)
    same_size = preprocess(u8[..., :24], 24, how)
    assert torch.equal(same_size, u8[..., :24].float() / 255)
    if how == "tf1":
        torch.testing.assert_close(got, resize_tf1(u8, 8) / 255, atol=0, rtol=0)
        assert torch.equal(got[..., 0, 0], u8[..., 0, 0] / 255)


def test_scaling_stays_in_range() -> None:
    edges = torch.zeros(1, 3, 40, 40)
    edges[..., 20:] = 1
    wide = torch.nn.functional.interpolate(edges, size=(16, 16), mode="bicubic", antialias=True)
    assert wide.min() < 0 and wide.max() > 1  # the filter overshoots
    got = preprocess(edges, 16)
    assert got.min() == 0 and got.max() == 1


# Tags


def test_tags_go_with_their_pictures(faces: Path) -> None:
    data = pictures(faces, batch=4, tags=True, **PLAIN)
    assert data.tags == TagList.DEFAULT and data.untagged == 0
    for _ in range(3):
        batch = data.next()
        assert batch.tags is not None and batch.tags.shape == (4, 51) and batch.tags.dtype == torch.float32
        for row, told in zip(rows_of(batch.target, data.target), batch.tags, strict=True):
            number = int(data.target.paths[row].split(".")[0])
            hair, eyes = (places[number] for places in data.tags.colours)
            assert told.count_nonzero() == 2
            assert told[hair] == np.float32(0.9) and told[eyes] == np.float32(0.8)


def test_the_threshold_and_groups(own: Path) -> None:
    (own / "target/tags.tsv").write_text(
        "train/0.png\tgreen_hair:0.5,blue_hair:0.6,red_eyes:0.5\ntrain/1.png\tgreen_hair:0.5,red_eyes:0.3,smile\n"
        "train/2.png\tsmile\ntrain/3.png\t\n"
    )
    data = pictures(own, tags=True, tag_threshold=0.4)
    assert data.untagged == 5  # 1: eyes not sure, 2: no colours, 3: no tags, 4 and 5: no row
    data = pictures(own, batch=6, tags=True, **PLAIN)
    assert data.untagged == 4 and data.tags is not None
    batch = data.next()
    assert batch.tags is not None
    found = {
        data.target.paths[row]: tags for row, tags in zip(rows_of(batch.target, data.target), batch.tags, strict=True)
    }
    names = [data.tags.names[place] for place in found["0.png"].nonzero()[:, 0]]
    assert sorted(names) == ["blue_hair", "red_eyes"]


def test_a_taglist_of_ones_own(own: Path) -> None:
    (own / "target/taglist.tsv").write_text("0\ttabby\t1\n1\twhite\t1\n2\tfluffy\t2\n")
    (own / "target/tags.tsv").write_text("".join(f"train/{i}.png\twhite:0.1,fluffy\n" for i in range(6)))
    data = pictures(own, tags=True)
    assert data.tags == TagList(("tabby", "white", "fluffy"), (1, 1, 2), (0, 1, 2))
    assert data.next().tags == pytest.approx(torch.tensor([[0, 0.1, 1.0]] * 2))


def test_tags_beside_the_folders_of_other_systems(own: Path, tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    for ours, theirs in (("source", "A"), ("target", "B")):
        shutil.copytree(own / ours / "train", letters / f"train{theirs}")
        shutil.copytree(own / ours / "val", letters / f"test{theirs}")
    with pytest.raises(DataError, match=r"setting tags: no .*letters/tags\.tsv; write one .* or leave --tags out"):
        pictures(letters, tags=True)
    text = (own / "target/tags.tsv").read_text()
    (letters / "tags.tsv").write_text(text.replace("train/", "trainB/").replace("val/", "testB/"))
    assert same(pictures(letters, tags=True).next(), pictures(own, tags=True).next())


def test_tags_that_do_not_fit(own: Path) -> None:
    table = own / "target/tags.tsv"
    rows = table.read_text()
    (own / "target/train/cut.png").write_bytes((own / "target/train/0.png").read_bytes()[:90])
    table.write_text(rows + "train/cut.png\tsmile\n")  # there, if unreadable, as are those of val
    assert pictures(own, tags=True).untagged == 0

    table.write_text(rows + "train/gone.png\tsmile\n")
    with pytest.raises(DataError, match=r"tags\.tsv: 1 of its 9 pictures is not in .*target: train/gone\.png\. Paths"):
        pictures(own, tags=True)
    table.write_text(rows + "".join(f"{i}.png\tsmile\n" for i in range(5)))
    with pytest.raises(DataError, match=r"5 of its 13 pictures are not in .*: 0\.png, 1\.png, 2\.png and 2 more\. "):
        pictures(own, tags=True)
    table.write_text("".join(row for row in rows.splitlines(True) if row.startswith("val/")))
    with pytest.raises(DataError, match=r"no row for any picture of .*target/train; theirs begin with train/"):
        pictures(own, tags=True)
    table.write_text(rows.replace("blonde_hair", "blond_hair"))
    with pytest.raises(DataError, match=r"tags\.tsv: 1 tag is not among the 51 known ones: blond_hair \(row 1\)"):
        pictures(own, tags=True)
    table.write_text(rows)
    with pytest.raises(DataError, match=r"colours of hair and eyes reach a score of 0\.95, .* lower --tag-threshold"):
        pictures(own, tags=True, tag_threshold=0.95)
    table.unlink()
    with pytest.raises(DataError, match=r"setting tags: no .*target/tags\.tsv; write one"):
        pictures(own, tags=True)
    assert pictures(own).tags is None
