"""`anifast eval` of Twin-GAN: each figure by hand, what the file holds, the sheets, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_cyclegan import command, leftovers, own_cache, the_error
from tiny_twingan import stage_state, tiny_config, write_run
from torch import Tensor

from anifast import cli
from anifast.data.folders import read_image, resize, to_float, to_tensor, to_uint8
from anifast.data.portraits import read_labels, write_twingan
from anifast.data.tags import TAGS, TagList, chosen, read_tags
from anifast.engine import state as files
from anifast.engine.sheets import Block
from anifast.errors import AnifastError, DataError
from anifast.metrics import FeatureSet, fid, kid, swd
from anifast.metrics.report import Options, Report
from anifast.systems.twingan import evaluation, sheets
from anifast.systems.twingan.evaluation import Settings
from anifast.systems.twingan.inference import Model

Capture = pytest.CaptureFixture[str]
CPU = torch.device("cpu")
TRAIN, VAL, SIDE = 8, 7, 16
WORDS = ("source", "target")


@pytest.fixture
def no_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """SWD, which takes the time of all the rest, is looked at elsewhere."""
    monkeypatch.setattr(evaluation, "levels", lambda size: [])


class Corners:
    """An extractor without weights: means of a picture's parts."""

    name, dim, weights, about = "corners", 12, "none", "means of 2x2 parts of each channel"

    def __call__(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float(), 2).flatten(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    with own_cache(root / "cache"):
        yield write_twingan(root / "faces", TRAIN, VAL, 32, progress=False)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(stage_state(tiny_config(), "16"), CPU)


@pytest.fixture(scope="module")
def report(model: Model, data: Path) -> Report:
    """Of everything that a plain model has."""
    return evaluation.evaluate(model, data, Options(Corners(), batch=3, against=("train", "test"), subset_size=3))


def pictures(data: Path, folder: str) -> Tensor:
    """N,3,16,16 in [-1, 1]."""
    paths = sorted((data / folder).glob("*.png"))
    return torch.stack([to_float(to_tensor(resize(read_image(path), SIDE))) for path in paths])


@torch.no_grad()
def painted(model: Model, images: Tensor, there: int, here: int, condition: Tensor | None = None) -> Tensor:
    """The networks as they are, in [0, 1] but for what lies beyond."""
    latent = model.net("E")((images + 1) / 2, (here,), 1.0)
    found: Tensor = model.net("G")(latent.z, latent.skips, (there,), 1.0, condition)[0]
    return found


@torch.no_grad()
def latents(model: Model, images01: Tensor, here: int) -> Tensor:
    found: Tensor = model.net("E")(images01, (here,), 1.0).z
    return found


def embedded(z: Tensor) -> Tensor:
    """As galleries keep it, in float16."""
    return F.normalize(z.flatten(1), dim=1).half().double()


def directions(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = report.facts["directions"]
    return found


# --- the figures of a model


def test_losses(report: Report, model: Model, data: Path) -> None:
    assert list(directions(report)) == ["A -> B", "B -> A"]
    for here, there in ((0, 1), (1, 0)):
        found = list(directions(report).values())[here]
        images = pictures(data, f"{WORDS[here]}/val")
        x, same, translated = (images + 1) / 2, painted(model, images, here, here), painted(model, images, there, here)
        z, again = latents(model, x, here), latents(model, translated, there)
        back = model.paint(model.encode(translated, "AB"[there], painted=True), "AB"[here])
        assert found["pictures"] == VAL
        # float32 networks on batches of another size
        assert found["rec_l1"] == pytest.approx(float((same - x).abs().mean()), rel=1e-4)
        assert found["sem_l1"] == pytest.approx(float((again - z).abs().mean()), rel=1e-4)
        assert found["cycle_l1"] == pytest.approx(float((back - x).abs().mean()), rel=1e-4)
        assert report.facts["rec_l1"][WORDS[here]] == found["rec_l1"]


def test_distances_to_real_pictures(report: Report, model: Model, data: Path) -> None:
    measure = Corners()
    for here, there in ((0, 1), (1, 0)):
        found = list(directions(report).values())[here]
        images = pictures(data, f"{WORDS[here]}/val")
        saved = to_uint8((painted(model, images, there, here) * 2 - 1).clamp(-1, 1))
        for which, split in (("train", "train"), ("test", "val")):
            sets = [FeatureSet(12) for _ in range(3)]
            real = pictures(data, f"{WORDS[there]}/{split}")
            for one, shown in zip(sets, (to_float(saved), real, images), strict=True):
                one.update(measure(shown))
            expected = fid(sets[0].statistics, sets[1].statistics)
            # Rounding in batches of another size moves few of the values by a level.
            assert found[which]["fid"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
            mean = kid(sets[0].features, sets[1].features, subset_size=3).mean
            assert found[which]["kid"]["mean"] == pytest.approx(mean, rel=1e-3, abs=1e-5)
            untouched = fid(sets[2].statistics, sets[1].statistics)
            assert found[which]["untranslated"]["fid"] == pytest.approx(untouched, rel=1e-4)
            assert found[which]["pictures"] == len(real)
        real = to_uint8(pictures(data, f"{WORDS[there]}/train"))
        patches = found["swd"]
        assert (patches["against"], patches["pictures"], patches["real_pictures"]) == ("train", VAL, TRAIN)
        held = to_uint8(pictures(data, f"{WORDS[there]}/val"))
        for key, made in (("levels", saved), ("untranslated", to_uint8(images)), ("held_out", held)):
            # Places follow from all bytes of a picture: one level elsewhere moves the patches of that picture.
            assert patches[key].keys() == {"16"} and patches[key]["16"] == pytest.approx(swd(made, real)[16], rel=0.1)
            assert patches[f"{key}_mean"] == patches[key]["16"]


def nearest(query: Tensor, among: Tensor, count: int) -> list[int]:
    return sorted(range(len(among)), key=lambda k: -float(query @ among[k]))[:count]


def test_search(report: Report, model: Model, data: Path) -> None:
    """Loops over all pairs."""
    for here, there in ((0, 1), (1, 0)):
        found = list(directions(report).values())[here]["search"]
        images, others = pictures(data, f"{WORDS[here]}/val"), pictures(data, f"{WORDS[there]}/val")
        own = embedded(latents(model, (images + 1) / 2, here))
        other = embedded(latents(model, (others + 1) / 2, there))
        back = embedded(latents(model, painted(model, images, there, here), there))

        hits, near = [nearest(one, own, 5) for one in back], [nearest(one, other, 5) for one in own]
        again = [nearest(one, other, 5) for one in back]
        assert found["retrieval@1"] == pytest.approx(sum(k == row[0] for k, row in enumerate(hits)) / VAL)
        assert found["retrieval@5"] == pytest.approx(sum(k in row for k, row in enumerate(hits)) / VAL)
        common = [len(set(a) & set(b)) / 5 for a, b in zip(near, again, strict=True)]
        assert found["nn_agree@5"] == pytest.approx(sum(common) / VAL)
        mutual = [nearest(other[row[0]], own, 1)[0] == k for k, row in enumerate(near)]
        assert found["mutual_nn"] == pytest.approx(sum(mutual) / VAL)
        chance = {"retrieval@1": 1 / VAL, "retrieval@5": 5 / VAL, "nn_agree@5": 5 / VAL, "mutual_nn": 1 / VAL}
        assert found["chance"] == pytest.approx(chance)
        assert (found["gallery"], found["other_gallery"]) == (VAL, VAL)


def test_true_factors_of_portraits(report: Report, model: Model, data: Path) -> None:
    labels = read_labels(data)
    contents = [[labels[f"{word}/val/{k:05d}.png"].content for k in range(VAL)] for word in WORDS]
    own, other = (embedded(latents(model, (pictures(data, f"{w}/val") + 1) / 2, d)) for d, w in enumerate(WORDS))
    near = (own @ other.T).topk(5, dim=1).indices
    found = directions(report)["A -> B"]["factors"]
    assert len(found) == len(evaluation._SAME) + len(evaluation._THIRDS) + 1

    def share(same: Any, order: list[int]) -> float:
        pairs = [same(contents[0][order[k]], contents[1][j]) for k in range(VAL) for j in near[k].tolist()]
        return sum(pairs) / len(pairs)

    def colour(a: Any, b: Any) -> bool:
        return bool(a.hair_color == b.hair_color)

    turns = sorted(content.turn for part in contents for content in part)
    low, high = np.quantile(turns, [1 / 3, 2 / 3])

    def turned(a: Any, b: Any) -> bool:
        return [int(v > low) + int(v > high) for v in (a.turn, b.turn)] in ([0, 0], [1, 1], [2, 2])

    inorder = list(range(VAL))
    for name, same in (("hair_color", colour), ("turn", turned)):
        assert found[name]["share"] == pytest.approx(share(same, inorder))
        # Every query stands in every place once: their mean is that of all permutations.
        turns_of = [inorder[k:] + inorder[:k] for k in inorder]
        assert found[name]["chance"] == pytest.approx(sum(share(same, order) for order in turns_of) / VAL)
        low_end, high_end = found[name]["shuffled"]
        assert low_end <= found[name]["chance"] <= high_end
    rest = [value for name, value in found.items() if name != "mean"]
    assert found["mean"]["share"] == pytest.approx(np.mean([one["share"] for one in rest]))


def test_neighbours_that_know_a_factor_share_it(data: Path) -> None:
    """Embeddings that are the skin's colour find it, far more often than chance does."""
    labels = read_labels(data)
    sides = [evaluation._Side(k, data / word / "val", True, f"{word}/val") for k, word in enumerate(WORDS)]
    for side in sides:
        side.names = [path.name for path in sorted(side.folder.iterdir())]
        skins = [labels[f"{side.label}/{name}"].content.skin for name in side.names]
        side.own = torch.eye(6)[skins].half()
    factors = evaluation._factors(data, sides, Report(()))
    assert factors is not None
    found = evaluation._shared(sides[0], sides[1], factors, Settings(permutations=50))["skin"]
    photos, drawn = ([labels[f"{side.label}/{name}"].content.skin for name in side.names] for side in sides)
    best = sum(min(5, drawn.count(skin)) for skin in photos) / (5 * len(photos))
    assert found["share"] == pytest.approx(best) and best > found["shuffled"][1] > found["chance"]


@pytest.mark.usefixtures("no_patches")
def test_gap_between_training_and_use(model: Model, data: Path, report: Report, tmp_path: Path) -> None:
    """By hand; smaller where statistics have been taken anew."""
    images = pictures(data, "source/val")
    batched: list[Tensor] = []
    running: list[Tensor] = []
    norms = [model.net(name).norms for name in ("E", "G")]
    for first in range(0, VAL - 1, 2):
        for source, kept in (("batch", batched), ("running", running)):
            for one in norms:
                one.source = source  # type: ignore[union-attr]
            kept.append(painted(model, images[first : first + 2], 1, 0).clamp(0, 1))
    found = directions(report)["A -> B"]["train_eval_gap"]
    expected = float((torch.cat(batched) - torch.cat(running)).abs().mean())
    assert (found["batch"], found["pictures"], found["recalibrated"]) == (2, VAL - 1, None)
    assert found["running"] == pytest.approx(expected, rel=1e-4)

    state = stage_state(tiny_config(), "16")
    anew = Model(state, CPU)
    anew.recalibrate(images.split(VAL), pictures(data, "target/val").split(VAL))
    again = Model(anew.recalibrated_state(state), CPU)
    for facts in directions(evaluation.evaluate(again, data, Options())).values():
        assert facts["train_eval_gap"]["recalibrated"] < facts["train_eval_gap"]["running"]


@pytest.mark.usefixtures("no_patches")
def test_norms_without_statistics_have_no_gap(data: Path) -> None:
    plain = Model(stage_state(tiny_config(norm="instance_norm"), "16"), CPU)
    report = evaluation.evaluate(plain, data, Options(to="B"))
    assert directions(report)["A -> B"]["train_eval_gap"] is None
    assert not any("train_eval_gap (" in line for line in report.lines())


# --- conditions


@pytest.mark.usefixtures("no_patches")
def test_tags(data: Path) -> None:
    """Picture i is painted with the tags of target picture i; shares and what chance gives."""
    model = Model(stage_state(tiny_config(tags=True), "16"), CPU)
    report = evaluation.evaluate(model, data, Options(to="B", batch=4))
    facts = directions(report)["A -> B"]
    told = read_tags(data / "target" / "tags.tsv")
    tags = torch.from_numpy(np.stack([chosen(told[f"val/{k:05d}.png"]) for k in range(VAL)]))
    images, others = pictures(data, "source/val"), pictures(data, "target/val")
    translated = painted(model, images, 1, 0, tags)
    sem = (latents(model, translated, 1) - latents(model, (images + 1) / 2, 0)).abs().mean()
    assert facts["sem_l1"] == pytest.approx(float(sem), rel=1e-4)
    same = painted(model, others, 1, 1, tags)
    assert report.facts["rec_l1"]["target"] == pytest.approx(float((same - (others + 1) / 2).abs().mean()), rel=1e-4)

    scores = model.recognise(to_float(to_uint8((translated * 2 - 1).clamp(-1, 1))))
    for word, number in (("hair", 2), ("eyes", 3)):
        group = [place for place, (_, _, one) in enumerate(TAGS) if one == number]
        wanted, seen = tags[:, group].argmax(1), scores[:, group].argmax(1)
        has = tags[:, group].amax(1) > 0
        found = facts["tags"]["requested"][word]
        assert found["pictures"] == int(has.sum()) > 0
        assert found["share"] == pytest.approx(float((wanted == seen)[has].float().mean()))
        pairs = (wanted[has][:, None] == seen[has][None]).float().mean()
        assert found["chance"] == pytest.approx(float(pairs))
        real = model.recognise(others)[:, group].argmax(1)
        assert facts["tags"]["real"][word]["share"] == pytest.approx(float((wanted == real)[has].float().mean()))
    hair = [place for place, (_, _, one) in enumerate(TAGS) if one == 2]
    other = embedded(latents(model, (others + 1) / 2, 1))
    near = (embedded(latents(model, translated, 1)) @ other.T).argmax(1)
    known = tags[near][:, hair].amax(1) > 0
    agree = (tags[near][:, hair].argmax(1) == scores[:, hair].argmax(1))[known]
    assert facts["tags"]["tag_agree"]["share"] == pytest.approx(float(agree.float().mean()))
    assert any("D_t's own head" in line for line in report.lines())
    line = json.loads(report.lines()[-1])
    assert {"tag_agree", "requested_hair", "requested_eyes"} <= line.keys()


def test_groups_are_those_of_the_usual_list() -> None:
    model = Model(stage_state(tiny_config(tags=True), "16"), CPU)
    groups = evaluation._groups(model)
    names = TagList.DEFAULT.names
    assert len(groups["hair"]) == 15 and len(groups["eyes"]) == 12
    assert all(names[k].endswith("_hair") for k in groups["hair"]) and "long_hair" not in map(
        names.__getitem__, groups["hair"]
    )


@pytest.mark.usefixtures("no_patches")
def test_tags_that_are_missing_are_told(data: Path, tmp_path: Path) -> None:
    model = Model(stage_state(tiny_config(tags=True), "16"), CPU)
    own = Path(shutil.copytree(data, tmp_path / "faces"))
    rows = (own / "target" / "tags.tsv").read_text().splitlines()
    kept = [row for row in rows if not row.startswith("val/00000.png")]
    (own / "target" / "tags.tsv").write_text("\n".join(kept) + "\n")
    report = evaluation.evaluate(model, own, Options(to="B"))
    assert any("no row for 1 picture" in note for note in report.notes)
    (own / "target" / "tags.tsv").unlink()
    report = evaluation.evaluate(model, own, Options(to="B"))
    assert any("no tags.tsv" in note for note in report.notes)
    facts = directions(report)["A -> B"]["tags"]
    assert facts["requested"] == {"hair": None, "eyes": None} and facts["tag_agree"] is None
    state = stage_state(tiny_config(tags=True), "16")
    del state["nets"]["D_t"]
    report = evaluation.evaluate(Model(state, CPU), own, Options(to="B"))
    assert "tags" not in directions(report)["A -> B"]
    assert any("no discriminator of the target" in note for note in report.notes)


@pytest.mark.usefixtures("no_patches")
def test_styles_follow_from_seed_and_number(data: Path) -> None:
    """Batches change nothing, the seed does; reconstructions have their own pictures' styles."""
    model = Model(stage_state(tiny_config(style=3), "16"), CPU)
    found = [
        directions(evaluation.evaluate(model, data, Options(batch=batch, own=Settings(seed=seed), to="B")))["A -> B"]
        for batch, seed in ((1, 0), (5, 0), (5, 1))
    ]
    assert found[0]["sem_l1"] == pytest.approx(found[1]["sem_l1"], rel=1e-4)
    assert abs(found[2]["sem_l1"] / found[1]["sem_l1"] - 1) > 1e-3
    assert found[2]["rec_l1"] == found[1]["rec_l1"]
    images = pictures(data, "source/val")
    same = painted(model, images, 0, 0, model.styles_of(images, "A"))
    assert found[0]["rec_l1"] == pytest.approx(float((same - (images + 1) / 2).abs().mean()), rel=1e-4)


# --- what is told


def test_command(data: Path, tmp_path: Path, capsys: Capture) -> None:
    """A line of JSON for the checkpoint, the file beside it, and three sheets."""
    run = write_run(tmp_path / "run", stages=("8", "16"))
    words = ("eval", run, "--data", data, "--features", "none", "--device", "cpu", "--figures", tmp_path / "sheets")
    assert cli.main(command(*words)) == 0
    said = capsys.readouterr()
    facts = json.loads((run / "evaluation.json").read_text())
    assert (facts["system"], facts["stage"], facts["size"], facts["averaged"]) == ("twingan", "16", 16, True)
    (row,) = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
    assert row["checkpoint"] == str(run) and row["phase"] == "16"
    # what must be the same in rows that are compared
    assert (row["norm_mode"], row["features"], row["against"]) == ("running", None, "train")
    assert (row["pictures_s"], row["pictures_t"], row["swd_against_t"]) == (VAL, VAL, f"{TRAIN} of train")
    assert (facts["norm_mode"], facts["against"]) == ("running", ["train"])
    assert facts["pictures"] == {"source": VAL, "target": VAL} and "norms by running statistics" in said.out
    way, back = facts["directions"]["A -> B"], facts["directions"]["B -> A"]
    shown = {
        "rec_l1_s": way["rec_l1"],
        "rec_l1_t": back["rec_l1"],
        "sem_l1_st": way["sem_l1"],
        "sem_l1_ts": back["sem_l1"],
        "cycle_l1_s": way["cycle_l1"],
        "retrieval@1_st": way["search"]["retrieval@1"],
        "retrieval@5_st": way["search"]["retrieval@5"],
        "nn_agree@5_ts": back["search"]["nn_agree@5"],
        "mutual_nn_st": way["search"]["mutual_nn"],
        "train_eval_gap_st": way["train_eval_gap"]["running"],
        "factors_st": way["factors"]["mean"]["share"],
        "factors_chance_st": way["factors"]["mean"]["chance"],
    }
    assert {key: row[key] for key in shown} == pytest.approx(shown, rel=1e-4)  # five figures
    assert row["swd_t"]["16"] == pytest.approx(way["swd"]["levels"]["16"], rel=1e-4)
    assert row["fid_t"] is None and row["kid_s"] is None
    assert "by chance" in said.out and "untranslated" in said.out and "permuted queries" in said.out
    assert [Path(name).name for name in facts["figures"]] == [
        "translations.png",
        "neighbours_st.png",
        "neighbours_ts.png",
    ]
    for name in facts["figures"]:
        with Image.open(name) as image:
            assert min(image.size) > 200
    assert not leftovers(tmp_path)

    # A phase of the run is a checkpoint too; below 16 px there are no levels.
    assert cli.main(command("eval", run / "8", *words[2:-2], "--max", 5)) == 0
    early = json.loads((run / "8" / "evaluation.json").read_text())
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert (row["pictures_s"], row["swd_t"], row["swd_against_t"]) == (5, None, None)
    assert early["stage"] == "8" and "swd" not in early["directions"]["A -> B"]
    assert early["directions"]["A -> B"]["pictures"] == 5 and early["figures"] == []


@pytest.mark.usefixtures("no_patches")
def test_statistics_that_norms_normalise_by(data: Path, tmp_path: Path, capsys: Capture) -> None:
    """Those of the file, or those that are asked for; and what was taken stands in the line."""
    state = stage_state(tiny_config(ema=0.0), "16")
    anew = Model(state, CPU)
    anew.recalibrate([pictures(data, "source/train")], [pictures(data, "target/train")])
    files.save(tmp_path / "first.pt", state)
    files.save(tmp_path / "anew.pt", anew.recalibrated_state(state))
    kept = ("--data", data, "--features", "none", "--device", "cpu", "--to", "B")

    def row(name: str, *words: str) -> dict[str, Any]:
        assert cli.main(command("eval", tmp_path / name, *kept, *words)) == 0
        (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        return dict(found)

    first, usual = row("first.pt"), row("anew.pt")
    running, recalibrated = (row("anew.pt", "--norm-mode", mode) for mode in ("running", "recalibrated"))
    modes = [one["norm_mode"] for one in (first, usual, running, recalibrated)]
    assert modes == ["running", "recalibrated", "running", "recalibrated"]
    figures = [one["sem_l1_st"] for one in (first, usual, running, recalibrated)]
    assert figures[0] == figures[2] != figures[1] == figures[3]
    assert cli.main(command("eval", tmp_path / "first.pt", *kept, "--norm-mode", "recalibrated")) == 1
    assert "have not been recalibrated" in the_error(capsys.readouterr().err)
    plain = Model(stage_state(tiny_config(norm="instance_norm"), "16"), CPU)
    report = evaluation.evaluate(plain, data, Options(to="B"))
    assert report.facts["norm_mode"] is None and not any("norms by" in line for line in report.lines())


@pytest.mark.usefixtures("no_patches")
def test_real_pictures_are_scaled_as_the_model_scales_its_own(data: Path) -> None:
    """By the author's TensorFlow for a model of his: FID of its own held-out pictures to themselves is 0."""
    made = {}
    for way in ("tf1", "antialias"):
        model = Model(stage_state(tiny_config(resize=way), "16"), CPU)
        seen: list[Tensor] = []

        class Seeing(Corners):
            def __call__(self, images: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(images)
                return super().__call__(images)

        Seeing.name = f"corners for {way}"
        evaluation.evaluate(model, data, Options(Seeing(), against=("train",), to="B", batch=VAL + TRAIN))
        translated, before, real = seen
        for shown, folder in ((before, "source/val"), (real, "target/train")):
            paths = sorted((data / folder).glob("*.png"))
            own = torch.stack([model.prepared(read_image(path)) for path in paths])
            assert torch.equal(shown, to_float(to_uint8(own)))
        made[way] = real
        assert len(translated) == VAL
    assert not torch.equal(made["tf1"], made["antialias"])


def test_pictures_for_swd_wait_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = evaluation._Kept(16)
    for part in (given[:2], given[2:2], given[2:].to(memory_format=torch.channels_last)):
        kept.add(part)
    found = kept.images()
    assert torch.equal(found, given) and not list(tmp_path.iterdir())
    files_of = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert files_of, "mapped from a file"
    assert evaluation._Kept(8).images().shape == (0, 3, 8, 8)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = evaluation._Kept(16)
    monkeypatch.setattr(kept._file, "write", full)
    with pytest.raises(AnifastError, match="cannot keep pictures for SWD in .*: No space left on device. .*TMPDIR"):
        kept.add(given)


@pytest.mark.usefixtures("no_patches")
def test_one_direction(model: Model, data: Path, report: Report) -> None:
    for to, name in (("B", "A -> B"), ("A", "B -> A")):
        found = evaluation.evaluate(model, data, Options(batch=3, to=to))
        assert list(directions(found)) == [name]
        both = directions(report)[name]
        assert directions(found)[name]["search"] == both["search"]
        assert found.facts["rec_l1"] == report.facts["rec_l1"]


@pytest.mark.usefixtures("no_patches")
def test_sheets(model: Model, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on them: the pictures, what is painted of them, and the nearest ones with their distances."""
    drawn: list[list[Block]] = []

    def caught(blocks: Sequence[Block], **_: Any) -> Image.Image:
        drawn.append(list(blocks))
        return Image.new("RGB", (9, 9))

    for module in (evaluation, sheets):
        monkeypatch.setattr(module, "sheet", caught)
    evaluation.evaluate(model, data, Options(own=Settings(figures=str(tmp_path))))
    (source, target), to_target, to_source = drawn
    images = pictures(data, "source/val")
    for label, expected in (
        ("real", images),
        ("translated", painted(model, images, 1, 0) * 2 - 1),
        ("repainted", painted(model, images, 0, 0) * 2 - 1),
    ):
        shown = dict(source.rows)[label]
        # A value at the border of two levels may be rounded either way in batches of another size.
        assert int((shown.int() - to_uint8(expected.clamp(-1, 1)).int()).abs().max()) <= 1
    assert [label for label, _ in target.rows] == ["real", "translated", "repainted"]
    own = embedded(latents(model, (images + 1) / 2, 0))
    others = pictures(data, "target/val")
    scores, near = (own @ embedded(latents(model, (others + 1) / 2, 1)).T).topk(5, dim=1)

    def thumbnails(folder: str, places: Sequence[int]) -> Tensor:
        paths = [data / folder / f"{k:05d}.png" for k in places]
        return torch.stack([to_tensor(resize(read_image(path), sheets.TILE)) for path in paths])

    queries, found = to_target
    assert torch.equal(torch.cat([row for _, row in queries.rows]), thumbnails("source/val", range(VAL)))
    for k, (_, row) in enumerate(found.rows):
        assert torch.equal(row, thumbnails("target/val", near[k].tolist()))
        assert [float(note) for note in found.notes[k]] == pytest.approx((1 - scores[k]).tolist(), abs=6e-4)
    assert [label for label, _ in to_source[0].rows] == [f"{k:05d}.png" for k in range(VAL)]


@pytest.mark.usefixtures("no_patches")
def test_folders_of_other_systems(model: Model, data: Path, report: Report, tmp_path: Path) -> None:
    names = {"source/train": "trainA", "target/train": "trainB", "source/val": "testA", "target/val": "testB"}
    for ours, theirs in names.items():
        shutil.copytree(data / ours, tmp_path / theirs)
    found = evaluation.evaluate(model, tmp_path, Options(Corners(), batch=3))
    for name, facts in directions(found).items():
        assert facts["search"] == directions(report)[name]["search"] and "factors" not in facts
    assert any("testA untranslated" in line for line in found.lines())


# --- what cannot be


@pytest.mark.usefixtures("no_patches")
def test_missing_folders(model: Model, data: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(data, tmp_path / "faces"))
    shutil.rmtree(own / "target" / "train")
    with pytest.raises(DataError, match=r"no pictures in target/train or trainB.*--against test"):
        evaluation.evaluate(model, own, Options(Corners(), against=("train",)))
    evaluation.evaluate(model, own, Options(Corners(), against=("test",)))
    evaluation.evaluate(model, own, Options(Corners(), against=("train",), to="A"))
    shutil.rmtree(own / "target" / "val")
    with pytest.raises(DataError, match=r"no pictures in target/val or testB"):
        evaluation.evaluate(model, own, Options(Corners(), against=("test",)))


@pytest.mark.usefixtures("no_patches")
def test_damaged_weights_and_pictures(data: Path, tmp_path: Path, capsys: Capture) -> None:
    state = stage_state(tiny_config(ema=0.0), "16")
    state["nets"]["G"]["to_rgb.16.weight"] = state["nets"]["G"]["to_rgb.16.weight"] * torch.nan
    files.save(tmp_path / "bad.pt", state)
    words = ("eval", tmp_path / "bad.pt", "--data", data, "--features", "none", "--device", "cpu")
    assert cli.main(command(*words)) == 1
    told = the_error(capsys.readouterr().err)
    assert "gives NaN for pictures of" in told and "its weights are damaged" in told and "--precision" not in told
    assert cli.main(command(*words, "--precision", "bf16")) == 1
    assert "try --precision fp32; its weights may be damaged" in the_error(capsys.readouterr().err)

    # Colours of the target alone: pictures of it are repainted where they are not translated.
    state = stage_state(tiny_config(ema=0.0), "16")
    state["nets"]["G"]["norms.beta"][1] = torch.nan
    with pytest.raises(AnifastError, match="gives NaN for pictures of .*target"):
        evaluation.evaluate(Model(state, CPU), data, Options(to="A"))

    own = Path(shutil.copytree(data, tmp_path / "faces"))
    (own / "source/val/00001.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    model = Model(stage_state(tiny_config(), "16"), CPU)
    report = evaluation.evaluate(model, own, Options())
    assert directions(report)["A -> B"]["pictures"] == VAL - 1
    assert [note for note in report.notes if "left out" in note and "00001.png" in note]


def test_settings() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} <= set(cli._EVAL_OF_SOME)
