"""`anifast eval` of disentangling networks: each table by hand, what the file holds, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_cyclegan import command, own_cache, the_error
from tiny_disentangle import run_state, tiny_config, write_artists, write_digits

from anifast import cli
from anifast.data.labelled import load_artists, load_digits_by
from anifast.data.portraits import read_labels
from anifast.engine.sheets import Block
from anifast.metrics.disentanglement import decode, naive_bayes
from anifast.systems.disentangle import checkpoints, codes, evaluation, figures
from anifast.systems.disentangle.augmentation import prepare, seen
from anifast.systems.disentangle.inference import Model
from anifast.systems.disentangle.networks import networks
from anifast.systems.disentangle.sheets import shown

Capture = pytest.CaptureFixture[str]
CPU = torch.device("cpu")
ARTISTS, EACH, WRITERS = 3, 10, 6


@pytest.fixture(scope="module")
def artists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("artists")
    with own_cache(root / "cache"):
        yield write_artists(root / "data", ARTISTS, EACH)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "data", 120, WRITERS)


def artists_state(stage: str, data: Path, **changes: Any) -> dict[str, Any]:
    """Untrained, of the artists of the data; `counts` are uneven, so that frequencies matter."""
    state = run_state(tiny_config(**changes), stage, ARTISTS, seed=changes.get("seed", 0))
    state["classes"] = load_artists(data, 32, min_images=2).classes
    state["counts"] = torch.tensor([9, 5, 16])
    return state


def digits_state(data: Path, **changes: Any) -> dict[str, Any]:
    config = tiny_config(dataset="digits", **changes)
    classes = load_digits_by(data, config.label).classes
    return {**run_state(config, "stage1", len(classes)), "classes": classes}


def saved(folder: Path, state: dict[str, Any]) -> Path:
    """A run folder with this stage alone."""
    (folder / state["stage"]).mkdir(parents=True)
    torch.save(state, folder / state["stage"] / "checkpoint.pt")
    return folder


def evaluate(run: Path, data: Path, *words: object) -> tuple[int, Any]:
    code = cli.main(command("eval", run, "--data", data, "--device", "cpu", *words))
    file = run / "evaluation.json"
    return code, json.loads(file.read_text()) if file.exists() else None


@pytest.mark.parametrize(("label", "name"), [("writer", "E_w"), ("digit", "E_d")])
def test_tables_of_digits(digits: Path, tmp_path: Path, capsys: Capture, label: str, name: str) -> None:
    state = digits_state(digits, label=label)
    run = saved(tmp_path / "run", state)
    code, facts = evaluate(run, digits, "--seed", 3, "--prior", "uniform")
    assert code == 0 and facts["encoder"] == name and not facts["codes_stored"]
    pictures = load_digits_by(digits, "digit")
    mean, std = Model(state, CPU).encode(prepare(pictures.batch(range(len(pictures)))[0]))
    z = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    writer = load_digits_by(digits, "writer").labels
    for factor, labels in (("digit", pictures.labels), ("writer", writer)):
        for k in (2, 8):
            wanted = naive_bayes(z[:, :k], labels, prior="uniform")
            found = facts["scores"]["codes"]["bayes"][factor][str(k)]
            # encoded in other batches, which may round otherwise
            assert found["probability"] == pytest.approx(wanted.probability, abs=1e-4)
            assert found["chance"] == vars(wanted.chance)
    text = capsys.readouterr().out
    assert f"{name}, paper" in text and "chance, ours" in text and "shuffled labels, ours" in text
    assert "features" not in text and "prior uniform" in text
    assert "no table 8" in " ".join(facts["notes"])


def test_a_plain_vae_of_few_numbers(digits: Path, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", digits_state(digits, style_size=0, content_size=5))
    code, facts = evaluate(run, digits, "--codes", "mean", "--figures", tmp_path / "f")
    assert code == 0 and facts["encoder"] == "VAE"
    assert list(facts["scores"]["codes"]["bayes"]["writer"]) == ["2", "5"]
    drawn = {path.name for path in (tmp_path / "f").iterdir()}
    assert drawn == {"scatter.png", "scatter_by_digit.png", "reconstructions.png"}


def test_figures_of_digits(digits: Path, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", digits_state(digits))
    code, facts = evaluate(run, digits, "--figures", tmp_path / "f")
    assert code == 0
    assert {Path(file).name for file in facts["figures"]} == {path.name for path in (tmp_path / "f").iterdir()}
    assert {"digits_by_writers.png", "one_writer.png"} <= {path.name for path in (tmp_path / "f").iterdir()}
    with Image.open(tmp_path / "f" / "digits_by_writers.png") as image:
        assert image.width > WRITERS * 56 and image.height > 10 * 56


def test_stored_codes_are_taken_where_they_fit(artists: Path, tmp_path: Path) -> None:
    state = artists_state("stage1", artists)
    run = saved(tmp_path / "run", state)
    model, pictures = Model(state, CPU), load_artists(artists, 32, min_images=2)
    made = codes.encode(model.encoder, pictures, CPU)
    made["mean"] = made["mean"] + 1  # to be known again
    torch.save(made, run / codes.NAME)
    for place in (run, run / "stage1"):
        found = evaluation.coded(model, pictures, place, 8)
        assert found["stored"] and torch.equal(found["mean"], made["mean"])
    torch.save({**made, "encoder": "another"}, run / codes.NAME)
    found = evaluation.coded(model, pictures, run, 8)
    assert not found["stored"]
    torch.testing.assert_close(found["mean"], made["mean"] - 1)
    torch.save({**made, "data": {**made["data"], "pixels": "others"}}, run / codes.NAME)
    assert not evaluation.coded(model, pictures, run, 8)["stored"]


def test_random_contents_go_to_artists_as_often_as_in_training() -> None:
    model = Model(run_state(tiny_config(), "stage2", ARTISTS), CPU)
    counts = torch.tensor([900, 0, 2100])
    for total, wanted in ((3000, [900, 0, 2100]), (30, [9, 0, 21]), (6000, [1800, 0, 4200])):
        parts = list(evaluation._random(model, None, counts, total, 1))
        assert torch.bincount(torch.cat([labels for _, labels in parts]), minlength=3).tolist() == wanted
        contents = torch.cat([content for content, _ in parts])
        assert contents.shape == (total, model.content_size)
    assert len(contents.unique(dim=0)) == total  # parts do not repeat one another
    known = model.statistics
    assert known is not None
    spread = contents.double().std(0, correction=0)
    # the deviation of a normal sample's deviation is sigma / sqrt(2 N)
    assert ((spread - known["std"]).abs() < 5 * known["std"] / (2 * 6000) ** 0.5).all()


def test_table_8(artists: Path, tmp_path: Path, capsys: Capture) -> None:
    states = {
        "adversarial": artists_state("stage2", artists),
        "plain": artists_state("stage2", artists, c2_fake="none", seed=5),
    }
    counts = torch.tensor([9, 5, 16])
    wanted = torch.arange(3).repeat_interleave(counts)
    painted, judges = {}, {}
    for kind, state in states.items():
        model = Model(state, CPU)
        noise = torch.randn(30, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        contents = codes.random_contents(state["statistics"], noise).float()
        painted[kind] = seen(model.paint(contents, model.styles(wanted.tolist())), None, 4)
        judges[kind] = checkpoints.build("C2", model.config, ARTISTS)
        weights = state["nets"]["C2"]
        judges[kind].load_state_dict(weights, assign=True)
        # As it is drawn C2 takes all pictures for one artist's: its outputs are brought about their mean.
        (bias,) = (name for name, value in weights.items() if value.shape == (ARTISTS,))
        with torch.no_grad():
            weights[bias] -= judges[kind](painted[kind]).mean(0)
    runs = {kind: saved(tmp_path / kind, state) for kind, state in states.items()}
    code, facts = evaluate(runs["adversarial"], artists, "--plain", runs["plain"], "--batch", 1)
    assert code == 0
    found = {(one["generator"], one["scored_by"]): one["top1"] for one in facts["generated"]["top1"]}
    for kind, images in painted.items():
        for scorer, net in judges.items():
            with torch.no_grad():
                top1 = (net(images).argmax(1) == wanted).double().mean()
            assert found[kind, scorer] == pytest.approx(float(top1), abs=1e-12)
    assert len(set(found.values())) > 1
    text = capsys.readouterr().out
    assert "14.37 %" in text and "against plain, ours" in text and facts["generated"]["pictures"] == 30
    code, facts = evaluate(runs["plain"], artists, "--samples", 7)
    assert code == 0 and facts["generated"]["pictures"] == 7
    assert [one["generator"] for one in facts["generated"]["top1"]] == ["plain"]
    code, facts = evaluate(runs["plain"], artists, "--samples", 0)
    assert facts["generated"] is None


def test_probes_of_portraits(artists: Path, tmp_path: Path, capsys: Capture) -> None:
    state = artists_state("stage1", artists)
    for value in state["nets"]["E"].values():
        value.mul_(1.5)  # not what the seed draws
    run = saved(tmp_path / "run", state)
    code, facts = evaluate(run, artists, "--codes", "mean")
    assert code == 0
    probes = {(one["code"], one["factor"]): one for one in facts["decoded"]["probes"]}
    pictures, labels = load_artists(artists, 32, min_images=2), read_labels(artists)
    x = prepare(pictures.batch(range(len(pictures)))[0])
    turn = torch.tensor([labels[name].content.turn for name in pictures.names], dtype=torch.float64)
    model = Model(state, CPU)
    fresh = networks(model.config, pictures.counts / len(pictures), "stage1")["E"]
    with torch.no_grad():
        for when, z in (("trained", model.contents(x)), ("untrained", fresh(x)[0])):
            for factor, values in (("turn", turn), ("artist", pictures.labels)):
                wanted = decode(z, values)
                assert probes["content", factor][when]["score"] == pytest.approx(wanted.score, abs=1e-3)
    assert probes["content", "turn"]["trained"] != probes["content", "turn"]["untrained"]
    assert probes["content", "turn"]["trained"]["measure"] == "r2"
    assert probes["content", "hair_color"]["trained"]["measure"] == "accuracy"
    assert probes["style", "artist"]["trained"]["score"] == 1.0  # three codes far apart
    assert not any(factor == "detail" for _, factor in probes)
    assert "untrained" in probes["style", "artist"]
    assert facts["decoded"]["naive_bayes"]["hair_color"]["2"]["bayes"]["top1"] > 0
    text = capsys.readouterr().out
    assert "turn from content" in text and "styles are looked up by the artist" in text


def test_pictures_by_artists_that_the_model_does_not_know(artists: Path, tmp_path: Path) -> None:
    state = artists_state("stage1", artists)
    state["classes"] = ["x", "y", "z"]
    run = saved(tmp_path / "run", state)
    code, facts = evaluate(run, artists, "--figures", tmp_path / "f")
    assert code == 0 and "no probes of styles" in " ".join(facts["notes"])
    assert {path.name for path in (tmp_path / "f").iterdir()} == {
        *("codes.png", "artists.png", "styles.png", "transfer.png", "contents.png", "reconstructions.png")
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--features", "squeezenet"), "--features squeezenet: a model of disentangle translates between no two"),
        (("--to", "A", "--kid-subset", 3), "--to A, --kid-subset 3: a model"),
        (("--max", 3), "--max 3: a model of disentangle is evaluated on all pictures; leave it out"),
        (("--against", "both"), "leave it out"),
        (("--styles", 3), "--styles: no option for disentangle"),
        (("--floor", 0), "--floor"),
        (("--plain", "nowhere"), "nowhere: no such checkpoint"),
    ],
)
def test_refusals(artists: Path, tmp_path: Path, capsys: Capture, words: tuple[object, ...], told: str) -> None:
    run = saved(tmp_path / "run", artists_state("stage1", artists))
    code, facts = evaluate(run, artists, *words)
    assert code == 1 and facts is None
    assert told in the_error(capsys.readouterr().err)


def test_help_names_what_the_settings_are(capsys: Capture) -> None:
    """The command's options and the settings: the same names, defaults and choices."""
    with pytest.raises(SystemExit):
        cli.main(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for field in dataclasses.fields(evaluation.Settings):
        flag = "--" + field.name.replace("_", "-")
        assert f" {flag} " in text and field.name in cli._EVAL_OF_SOME
        if field.default is not None:
            assert f"[{field.default}]".replace("e-06", "e-6") in text
        if field.metadata["choices"]:
            assert f"{flag} {{{','.join(field.metadata['choices'])}}}" in text


def test_runs_that_table_8_cannot_compare(artists: Path, tmp_path: Path, capsys: Capture) -> None:
    first = saved(tmp_path / "first", artists_state("stage2", artists))
    others = {
        "both runs' classifiers are adversarial": artists_state("stage2", artists, seed=2),
        "holds none": artists_state("stage1", artists, c2_fake="none"),
        "there are no statistics of contents": {
            **artists_state("stage2", artists, c2_fake="none"),
            "statistics": None,
        },
        "of other artists": {**artists_state("stage2", artists, c2_fake="none"), "classes": ["x", "y", "z"]},
    }
    for number, (told, state) in enumerate(others.items()):
        other = saved(tmp_path / str(number), state)
        assert evaluate(first, artists, "--plain", other) == (1, None)
        error = the_error(capsys.readouterr().err)
        assert told in error and str(other) in error


def test_a_scatter_shows_points_where_they_are() -> None:
    side = 100
    limits = figures._Limits((0.0, 1.0), 2.0)
    counts = figures._density(torch.tensor([[1.0, 2.0], [9.0, 9.0]]), limits, side)
    # x = 1 of -2..2 is at 3/4 of the width; y = 2 of -1..3 at 1/4 of the height from the top; the other is outside
    assert counts.argmax() == 25 * side + 75
    assert counts.sum() == pytest.approx(1.0)
    numbers, names = figures.colours_of(
        torch.tensor([0] * 3 + [1] + [2] * 2 + list(range(3, 12)) * 2), list("abcdefghijkl")
    )
    assert names == list("acdefghijk") and numbers[3] == -1 and numbers[0] == 0 and numbers[4] == 1


def test_a_scatter_of_nothing_and_of_one_point() -> None:
    none = figures.Cloud("none", torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    one = figures.Cloud("one", torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    broken = figures.Cloud("broken", torch.full((3, 2), float("nan")), torch.zeros(3, dtype=torch.int64))
    image = figures.scatter([none, one, broken], ["a"], caption="nothing much")
    # Plots stand beside each other, 380 pixels with 38 for numbers and a gap of 20; in the middle is the point 0.
    middles = [image.getpixel((16 + k * 438 + 34 + 190, 16 + 52 + 24 + 190)) for k in range(3)]
    assert middles == [(255, 255, 255), figures.COLOURS[0], (255, 255, 255)]


@pytest.mark.parametrize("label", ["writer", "digit"])
def test_figures_of_digits_show_what_is_painted(digits: Path, monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    model = Model(digits_state(digits, label=label), CPU)
    drawn: list[tuple[str, list[Block]]] = []

    def sheet(blocks: list[Block], *, caption: str, **_: object) -> Image.Image:
        drawn.append((caption, blocks))
        return Image.new("RGB", (1, 1))

    def same(tiles: torch.Tensor, contents: torch.Tensor, styles: torch.Tensor) -> None:
        # another batch may round otherwise, which is at most one step of 8 bits
        difference = tiles.int() - shown(model.paint(contents, styles)).int()
        assert int(difference.abs().max()) <= 1

    monkeypatch.setattr(figures, "sheet", sheet)
    sets = evaluation.digit_sets(digits, CPU)
    found = codes.encode(model.encoder, sets[label], CPU)
    made = evaluation.painted_figures(model, sets, found, 0, 16)
    next(made)
    ((_, (block,)),) = drawn  # figures 5 and 7: rows are digits, columns writers
    tiles = dict(block.rows)["digit 3"]
    content, style = ("digit", "writer") if label == "writer" else ("writer", "digit")
    place = {"digit": 3, "writer": 4}
    mean = found["mean"][sets[content].labels == place[content]].mean(0, keepdim=True)
    same(tiles[4:5], mean, model.styles([sets[style].classes[place[style]]]))
    assert int((tiles[4].int() - tiles[3].int()).abs().max()) > 1  # writers differ
    if label == "writer":  # figure 8: real ones, and painted ones with noise
        next(made)
        caption, (real, painted) = drawn[-1]
        writer = caption.split()[1].rstrip(",")
        digit = sets["digit"].labels
        whose = sets["writer"].labels == sets["writer"].classes.index(writer)
        row = torch.nonzero(whose & (digit == 0))[0]
        assert torch.equal(real.rows[0][1][0, :1], sets["writer"].images.batch(row)[0])
        noise = torch.randn(10, model.content_size, generator=torch.Generator().manual_seed(0))
        moved = found["mean"][digit == 0].mean(0) + evaluation.NOISE * noise
        same(painted.rows[0][1], moved, model.styles([writer]))
    images = prepare(sets[label].batch([5, 7])[0])  # figure 10
    names = [sets[label].classes[k] for k in sets[label].labels[[5, 7]].tolist()]
    figures.reconstructions({"E": model}, images, {"E": names})
    rows = dict(drawn[-1][1][0].rows)
    assert torch.equal(rows["picture"], shown(images))
    same(rows["E, own style"], model.contents(images), model.styles(names))
    same(rows["E, no style"], model.contents(images), model.neutral())


def test_names_of_the_paper_are_of_its_settings_only() -> None:
    usual: dict[str, Any] = {"dataset": "digits", "nested": True, "lambda_c1": 0.1, "c1_input": "image"}
    for changes, name in (
        ({}, "E_w"),
        ({"label": "digit"}, "E_d"),
        ({"style_size": 0}, "VAE"),
        ({"style_size": 0, "nested": False}, "VAE (not nested)"),
        ({"c1_input": "code"}, "E_w (c1_input code)"),
        ({"lambda_c1": 0.0, "nested": False}, "E_w (lambda_c1 0, not nested)"),
    ):
        assert evaluation.name_of(tiny_config(**{**usual, **changes})) == name


def test_sheets_of_artists(artists: Path, tmp_path: Path) -> None:
    runs = [
        saved(tmp_path / kind, artists_state("stage2", artists, c2_fake=kind, seed=seed))
        for kind, seed in (("nlu", 0), ("none", 5))
    ]
    code, facts = evaluate(runs[0], artists, "--plain", runs[1], "--samples", 0, "--figures", tmp_path / "f")
    assert code == 0
    names = [Path(file).name for file in facts["figures"]]
    assert names == [
        *("codes.png", "artists.png", "artists_plain.png", "styles.png", "transfer.png", "contents.png"),
        "reconstructions.png",
    ]
    pictures = []
    for name in names:
        with Image.open(tmp_path / "f" / name) as image:
            pictures.append(image.convert("RGB"))
    assert pictures[1].size == pictures[2].size and pictures[1].tobytes() != pictures[2].tobytes()
    assert facts["generated"] is None
    told = any("without nested dropout" in note for note in facts["notes"])
    assert told == (not tiny_config().nested)
