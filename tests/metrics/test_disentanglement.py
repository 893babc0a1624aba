"""Measures of codes against the golden case, against formulas and against what chance allows; tables and probes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anifast.data.digits import chance_levels
from anifast.errors import DataError
from anifast.metrics import (
    Bayes,
    Scores,
    average_distance,
    bayes_tables,
    decode,
    generated_table,
    naive_bayes,
    orderings,
    score_codes,
)
from anifast.metrics.disentanglement import (
    _PIECE,
    _RIDGES,
    NIST_CHANCE,
    PUBLISHED,
    PUBLISHED_GENERATED,
    _fit_logistic,
    _Halves,
)

Golden = Callable[[str], Any]
EPS = 2.0**-52


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn_labels(count: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that operations inside the with block make."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.numel() * one.element_size())
        return made


# --- distance and naive Bayes


def test_golden(golden: Golden) -> None:
    case = golden("metrics_bayes")
    for about, call in zip(case.spec["options"]["cases"], case.calls, strict=True):
        name, inputs = about["name"], case.arguments(call)
        labels = torch.from_numpy(inputs["labels"])
        codes = torch.from_numpy(
            about["spread"] * inputs["eps"].astype(np.float64) + inputs["centre"].astype(np.float64)[inputs["labels"]]
        )
        found = {"distance": average_distance(codes, labels), "distance_whole": average_distance(codes)}
        for prior in ("frequency", "uniform"):
            bayes = naive_bayes(codes, labels, prior=prior, floor=about["floor"])
            found |= {f"{prior}_{key}": getattr(bayes, key) for key in ("probability", "rank", "top1")}
            assert (bayes.n, bayes.classes, bayes.dimensions) == (len(codes), about["nclass"], codes.shape[1])
        for key, value in found.items():
            # Sums of at most 700 terms, and exponentials of scores below 100 in size, all in float64.
            limit = (len(codes) + 100) * EPS
            assert value == pytest.approx(case.outputs[f"{name}.{key}"]["mean"], rel=limit), (name, key)


def directly(codes: Tensor, labels: Tensor, prior: str, floor: float) -> tuple[float, float, float]:
    """Probability, rank and top-1 from the definition, a class at a time."""
    classes = labels.unique()
    scores = []
    for label in classes:
        members = codes[labels == label]
        spread = members.var(dim=0, correction=0).clamp(min=floor).sqrt()
        share = len(members) / len(codes) if prior == "frequency" else 1 / len(classes)
        scores.append(torch.distributions.Normal(members.mean(dim=0), spread).log_prob(codes).sum(1) + math.log(share))
    table = torch.stack(scores, dim=1)
    true = (labels[:, None] == classes).double().argmax(dim=1, keepdim=True)
    rank = 1 + (table > table.gather(1, true)).sum(dim=1).double()
    posterior = table.softmax(dim=1).gather(1, true)
    return float(posterior.mean()), float(rank.mean()), float((rank == 1).double().mean())


@pytest.mark.parametrize("prior", ["frequency", "uniform"])
@pytest.mark.parametrize("floor", [1e-6, 0.3])
def test_naive_bayes_is_its_definition(prior: str, floor: float) -> None:
    # uneven classes, 7 with a single member, numbers that do not occur
    labels = torch.cat([3 * drawn_labels(400, 5).square(), torch.arange(100, 107)])
    codes = normal(407, 3) + 0.01 * labels[:, None] + 5
    found = naive_bayes(codes, labels, prior=prior, floor=floor)
    want = directly(codes, labels, prior, floor)
    # Scores of up to distance^2 / floor, 1e8, lose eps of that.
    assert found.probability == pytest.approx(want[0], rel=1e8 * EPS)
    assert (found.rank, found.top1) == pytest.approx(want[1:], rel=407 * EPS)
    assert found.classes == 12
    assert (found.prior, found.floor) == (prior, floor)


def test_separate_classes_are_all_found() -> None:
    labels = drawn_labels(900, 9)
    centres = torch.stack([labels % 3, labels // 3], dim=1).double()
    # Within classes 1/100 of the step between them: another class is 50 standard deviations away for the nearest code.
    codes = centres + 0.01 * normal(900, 2).clamp(-5, 5)
    found = naive_bayes(codes, labels)
    assert found.probability == pytest.approx(1, abs=900 * EPS)
    assert (found.rank, found.top1) == (1, 1)
    # A class's mean is within its clamped noise too.
    assert average_distance(codes, labels) < 2 * 0.05 * math.sqrt(2) < 0.5 < average_distance(codes)


def test_one_class() -> None:
    codes, labels = normal(50, 4), torch.full((50,), 7)
    found = naive_bayes(codes, labels)
    assert (found.probability, found.rank, found.top1, found.classes) == (1, 1, 1, 1)
    assert average_distance(codes, labels) == average_distance(codes)


def test_distance_in_closed_form() -> None:
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    codes = torch.cat([square, 10 + 3 * square, torch.tensor([[77.0, -5.0]])])
    labels = torch.tensor([0, 0, 0, 0, 9, 9, 9, 9, 4])
    want = (4 * math.sqrt(2) + 4 * 3 * math.sqrt(2)) / 9
    assert average_distance(codes, labels) == pytest.approx(want, rel=100 * EPS)
    assert average_distance(codes[:4]) == pytest.approx(math.sqrt(2), rel=100 * EPS)
    for k, mean in ((2, 1.2533), (8, 2.7416)):  # of a chi distribution; its variance is k - mean^2
        bound = 5 * math.sqrt((k - mean**2) / 20_000) + 5e-5
        assert average_distance(normal(20_000, k)) == pytest.approx(mean, abs=bound)


def test_codes_that_are_one_point() -> None:
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    codes = torch.full((10, 3), 0.1)
    found = naive_bayes(codes, labels)
    assert found.probability == pytest.approx(found.chance.probability, rel=100 * EPS)
    assert found.chance.probability == pytest.approx(0.38)
    assert (found.rank, found.top1) == pytest.approx((0.5 * 1 + 0.3 * 2 + 0.2 * 3, 0.5))
    assert (found.chance.rank, found.chance.top1) == pytest.approx((found.rank, found.top1))
    even = naive_bayes(codes, labels, prior="uniform")
    assert even.probability == pytest.approx(1 / 3, rel=100 * EPS)
    assert (even.rank, even.top1) == (1, 1)  # nothing scores strictly higher
    assert (even.chance.probability, even.chance.rank, even.chance.top1) == pytest.approx((1 / 3, 2, 1 / 3))


def test_a_hopeless_class_has_posterior_zero() -> None:
    # One class spread wide, one narrow with a member far outside: its score is too low for an exponential.
    codes = torch.cat([1e4 * normal(1000, 1), 1e-3 * normal(10_000, 1), torch.tensor([[1.0]]).double()])
    labels = torch.tensor([0] * 1000 + [1] * 10_001)
    for floor in (1e-6, 1e-12):
        found = naive_bayes(codes, labels, floor=floor)
        assert 0 < found.probability < 1
        assert found.probability == pytest.approx(directly(codes, labels, "frequency", floor)[0], rel=1e-9)


def test_noise_is_near_chance_with_even_classes() -> None:
    classes, members, k = 10, 2000, 2
    labels = torch.arange(classes).repeat(members)
    found = naive_bayes(normal(classes * members, k), labels, prior="uniform")
    # A class is fitted to the codes it is scored on. To first order its likelihood at these is larger by chi^2 /
    # members (2k degrees of freedom), relative to the other classes.
    p = 2 * k
    gain = classes * found.probability - 1
    bound = 6 * math.sqrt(2 * p / classes)
    assert gain * members == pytest.approx(p * (1 - 1 / classes), abs=bound)
    # Score differences are about normal with mean p / members and variance 2p / members.
    shift = (classes - 1) * math.sqrt(p / (4 * math.pi * members))
    assert (classes + 1) / 2 - 2 * shift < found.rank < (classes + 1) / 2
    assert found.chance.rank == (classes + 1) / 2
    error = math.sqrt(0.1 * 0.9 / len(labels))
    assert -5 * error < found.top1 - 0.1 < 2 * shift / (classes - 1) + 5 * error


def test_noise_is_near_chance_with_uneven_classes() -> None:
    counts = torch.tensor([2000, 500, 8000])
    labels = torch.repeat_interleave(torch.arange(3), counts)
    k, total = 2, int(counts.sum())
    found = naive_bayes(normal(total, k, seed=1), labels)
    chance = chance_levels(labels)
    assert found.chance == chance
    p = 2 * k
    bound = 6 * math.sqrt(2 * p * chance.probability)
    assert (found.probability - chance.probability) * total == pytest.approx(p * (1 - chance.probability), abs=bound)
    # Two classes change places where their likelihoods differ by more than their priors. The difference of their logs
    # has second moment p / n + p / m: Chebyshev.
    swapped = sum(p * (1 / n + 1 / m) / math.log(n / m) ** 2 for n, m in ((8000, 2000), (2000, 500), (8000, 500)))
    assert found.rank == pytest.approx(chance.rank, abs=swapped)
    assert found.top1 == pytest.approx(chance.top1, abs=swapped)
    assert swapped < 0.01


def test_division_order_and_names_do_not_matter() -> None:
    labels = drawn_labels(500, 40)
    codes = normal(500, 4) + 0.3 * normal(40, 4, seed=1)[labels]
    want, distance = naive_bayes(codes, labels), average_distance(codes, labels)

    def same(codes: Tensor, labels: Tensor, rel: float, **options: Any) -> None:
        found = naive_bayes(codes, labels, **options)
        # Scores below 100 in size, sums of 500: ranks are the same unless two scores are that near.
        assert found.probability == pytest.approx(want.probability, rel=rel)
        assert (found.rank, found.top1, found.chance.rank) == (want.rank, want.top1, want.chance.rank)
        assert average_distance(codes, labels, **options) == pytest.approx(distance, rel=rel)

    for chunk in (1, 7, 500, 10_000):
        same(codes, labels, 600 * EPS, chunk=chunk)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    same(codes[order], labels[order], 600 * EPS)
    same(codes, 1_000_000_000 - 1000 * labels, 600 * EPS)  # numbers of classes are names
    same(codes + 1e5, labels, 100 * 1e5 * EPS)  # what adding the offset rounds away
    same(codes.to(torch.float32).double(), labels, 100 * 2.0**-23)
    single, half = codes.to(torch.float32), codes.to(torch.bfloat16)
    assert naive_bayes(single, labels.to(torch.int32)) == naive_bayes(single.double(), labels)
    assert naive_bayes(half, labels) == naive_bayes(half.double(), labels)


def test_memory_does_not_grow() -> None:
    labels, codes = drawn_labels(20_000, 600), normal(20_000, 60).float()
    assert len(codes) * 600 * 8 > 10 * 8 * _PIECE  # all scores at once would show
    for measure in (naive_bayes, average_distance):
        with Largest() as largest:
            measure(codes, labels)
        assert 0 < largest.bytes <= 8 * _PIECE, measure
    for target in (labels.double(), labels % 3):
        with Largest() as largest:
            decode(codes, target, chunk=500)
        # the order of the rows, and pieces of 500 with a column of ones and the targets
        assert 0 < largest.bytes <= max(8 * len(codes), 500 * (60 + 2) * 8) < codes.numel()


def test_bad_input_of_the_measures() -> None:
    codes, labels = normal(10, 2), torch.arange(10)
    for wrong in (codes[0], codes.long(), codes[:0], codes[:, :0]):
        with pytest.raises(ValueError, match="codes: expected"):
            naive_bayes(wrong, labels)
        with pytest.raises(ValueError, match="codes: expected"):
            average_distance(wrong)
    for wrong in (labels.double(), labels[:, None], labels > 3):
        with pytest.raises(ValueError, match="labels: expected integers"):
            naive_bayes(codes, wrong)
    with pytest.raises(ValueError, match="labels: expected one for each of the 10 codes, got 9"):
        average_distance(codes, labels[:9])
    with pytest.raises(ValueError, match="labels: expected numbers from 0, got -1"):
        naive_bayes(codes, labels - 1)
    with pytest.raises(ValueError, match="prior: expected frequency or uniform, got 'even'"):
        naive_bayes(codes, labels, prior="even")
    for floor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="floor is"):
            naive_bayes(codes, labels, floor=floor)
    with pytest.raises(ValueError, match="chunk is 0"):
        average_distance(codes, chunk=0)
    for bad in (math.nan, math.inf):
        broken = codes.clone()
        broken[7, 1] = bad
        for measure in (average_distance, naive_bayes):
            with pytest.raises(DataError, match="codes are not finite"):
                measure(broken, labels)


# --- tables


def published_scores(model: str) -> Scores:
    """The paper's row as if it were measured."""
    bayes: dict[str, dict[int, Bayes]] = {"writer": {}, "digit": {}}
    for k, factor in PUBLISHED["rank"][model]:
        figures = {key: PUBLISHED[key][model][k, factor] for key in ("probability", "rank", "top1")}
        classes = {"writer": 3579, "digit": 10}[factor]
        bayes[factor][k] = Bayes(
            **figures, chance=NIST_CHANCE[factor], n=402_953, classes=classes, dimensions=k, prior="uniform", floor=1e-6
        )
    distance: dict[str, dict[int, float]] = {"writer": {}, "digit": {}, "whole": {}}
    for (k, factor), value in PUBLISHED["distance"][model].items():
        distance[factor][k] = value
    return Scores(bayes, distance, "sample, seed 0")


@pytest.fixture(scope="module")
def measured() -> dict[str, Scores]:
    factors = {"writer": drawn_labels(600, 30), "digit": drawn_labels(600, 10, seed=1)}
    return {
        model: score_codes(normal(600, 9, seed=i), factors, drawn="mean", quiet=True)
        for i, model in enumerate(("E_w", "E_d", "VAE"))
    }


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_scores_are_those_of_the_first_dimensions(measured: dict[str, Scores]) -> None:
    codes, writer = normal(600, 9), drawn_labels(600, 30)
    assert measured["E_w"].bayes["writer"] == {k: naive_bayes(codes[:, :k], writer) for k in (2, 8)}
    assert measured["E_w"].distance["writer"] == {k: average_distance(codes[:, :k], writer) for k in (2, 8)}
    assert measured["E_w"].distance["whole"] == {k: average_distance(codes[:, :k]) for k in (2, 8)}
    shuffled = score_codes(codes, {"writer": writer}, drawn="mean", dimensions=(3,), prior="uniform", floor=0.1)
    assert shuffled.bayes["writer"] == {3: naive_bayes(codes[:, :3], writer, prior="uniform", floor=0.1)}
    with pytest.raises(ValueError, match="dimensions: expected 1 to 7"):
        score_codes(codes[:, :7], {"writer": writer}, drawn="mean")
    with pytest.raises(ValueError, match="at least one"):
        score_codes(codes, {}, drawn="mean")


def test_scores_go_through_a_file(measured: dict[str, Scores]) -> None:
    for scores in measured.values():
        assert Scores.from_dict(json.loads(json.dumps(scores.as_dict()))) == scores


def test_tables_stand_beside_the_paper(measured: dict[str, Scores]) -> None:
    text = bayes_tables(measured)
    rows = rows_of(text)
    assert "ours (E_w, E_d, VAE): 600 codes (mean); classes: writer 30, digit 10; prior frequency" in text
    assert "variance floor 1e-06" in text and "402,953 codes" in text
    # as printed in the paper, its zeros too
    assert ["E_w,", "paper", "1.2487", "0.2788", "1.2505", "2.6757", "2.0670", "2.6957"] in rows
    assert ["E_d,", "paper", "0.001441", "0.1038", "0.002845", "0.1015"] in rows
    assert ["VAE,", "paper", "1409", "1.49", "838", "1.08"] in rows
    assert ["E_w,", "paper", "0.000454", "0.94", "0.001400", "0.94"] in rows
    ours = [measured["E_d"].distance[factor][k] for k in (2, 8) for factor in ("writer", "digit", "whole")]
    assert ["E_d,", "ours", *(f"{value:.4f}" for value in ours)] in rows
    chance = [measured["VAE"].bayes[factor][2].chance.rank for factor in ("writer", "digit")]
    assert ["chance,", "ours", *(f"{value:.2f}" for value in 2 * chance)] in rows
    paper = ["chance,", "paper's", "set", "(computed,"]
    assert [*paper, "frequency", "prior)", "1656", "5.37", "1656", "5.37"] in rows
    assert "uniform prior" not in text
    even = {
        model: Scores(
            {
                factor: {k: dataclasses.replace(one, prior="uniform") for k, one in by.items()}
                for factor, by in scores.bayes.items()
            },
            scores.distance,
            scores.codes,
        )
        for model, scores in measured.items()
    }
    others = rows_of(bayes_tables(even))
    # 3,579 writers: 1 / 3579 and (3579 + 1) / 2; ten digits: 1 / 10 and (10 + 1) / 2
    assert [*paper, "uniform", "prior)", "0.000279", "0.1000", "0.000279", "0.1000"] in others
    assert [*paper, "uniform", "prior)", "1790", "5.50", "1790", "5.50"] in others
    assert not any("frequency" in row and "set" in row for row in others)
    # the same cells in the other form
    page = bayes_tables(measured, markdown=True)
    cells = [
        line.replace("|", " ").split() for line in page.splitlines() if line.startswith("| ") and "---" not in line
    ]
    assert len(cells) == 7 + 3 * 9
    assert all(line in rows for line in cells)


def test_tables_of_other_models_stand_alone(measured: dict[str, Scores]) -> None:
    few = score_codes(normal(50, 3), {"artist": drawn_labels(50, 4)}, drawn="mean", dimensions=(3,), quiet=True)
    text = bayes_tables({"content": few})
    assert "paper" not in text
    assert ["codes", "3d", "artist", "3d", "whole"] in rows_of(text)
    # what one has and another has not
    both = bayes_tables({"content": few, "E_w": measured["E_w"]})
    assert "ours (content): 50 codes (mean); classes: artist 4;" in both
    heads = ["2d artist", "2d writer", "2d digit", "3d artist", "3d writer", "3d digit", "8d artist", "8d writer"]
    top = next(line for line in both.splitlines() if line.startswith("codes") and "whole" not in line)
    assert [f"{k} {factor}" for k, factor in zip(top.split()[1::2], top.split()[2::2], strict=True)][:8] == heads
    paper = ["E_w,", "paper", "-", "0.000293", "0.9001", "-", "-", "-", "-", "0.000363", "0.9327"]
    assert paper in rows_of(both)


def test_chance_levels_of_the_paper() -> None:
    digits = torch.tensor([40363, 44704, 40072, 41112, 39154, 36606, 39937, 41893, 39579, 39533])
    found = chance_levels(torch.repeat_interleave(torch.arange(10), digits))
    rounded = (round(found.probability, 4), round(found.rank, 2), round(found.top1, 4))
    assert rounded == (NIST_CHANCE["digit"].probability, NIST_CHANCE["digit"].rank, NIST_CHANCE["digit"].top1)


def test_table_of_generated_pictures() -> None:
    text = generated_table({("adversarial", "plain"): 0.5, ("plain", "plain"): 0.01}, "40 pictures of 4 artists")
    rows = rows_of(text)
    assert "ours: 40 pictures of 4 artists" in text
    assert ["against", "adversarial,", "ours", "-", "50.00", "%"] in rows
    assert ["against", "adversarial,", "paper", "14.37", "%", "86.65", "%"] in rows
    assert ["against", "plain,", "ours", "-", "1.00", "%"] in rows
    assert ["against", "plain,", "paper", "1.85", "%", "88.59", "%"] in rows
    assert "| against plain, paper | 1.85 % | 88.59 % |" in generated_table({}, "nothing", markdown=True)
    assert "faces)" not in text
    digits = rows_of(generated_table({}, "nothing", faces=False))
    assert ["against", "plain,", "paper", "(faces)", "1.85", "%", "88.59", "%"] in digits
    assert len(PUBLISHED_GENERATED) == 4


def test_orderings_hold_in_the_paper_and_not_when_models_are_swapped() -> None:
    paper = {model: published_scores(model) for model in ("E_w", "E_d", "VAE")}
    found = orderings(paper)
    assert len(found) == 18
    assert all(holds for _, holds in found), [sentence for sentence, holds in found if not holds]
    assert any(
        "E_w is better than the VAE on digits" in sentence and "0.9001, VAE 0.6179" in sentence for sentence, _ in found
    )
    swapped = orderings({"E_w": paper["E_d"], "E_d": paper["E_w"], "VAE": paper["VAE"]})
    assert len(swapped) == 18 and not any(holds for _, holds in swapped)
    # equal is neither better nor worse
    assert not any(holds for _, holds in orderings({"E_w": paper["VAE"], "VAE": paper["VAE"]}))
    assert len(orderings({"E_w": paper["E_w"], "VAE": paper["VAE"]})) == 9
    assert orderings({"E_w": paper["E_w"], "E_d": paper["E_d"]}) == []
    only = Scores({}, {"writer": {2: 1.0}}, "mean")
    assert [sentence for sentence, _ in orderings({"E_w": only, "VAE": only})] == [
        "E_w is worse than the VAE on writers: average distance to the mean of the class 1.0000, VAE 1.0000"
    ]


# --- probes


def test_a_linear_number_is_decoded() -> None:
    codes = normal(2000, 8) * 10.0 ** torch.arange(-4, 4) + 3
    target = 5 + 2 * (codes[:, 0] - 3) / 1e-4 - (codes[:, 7] - 3) / 1e3
    found = decode(codes, target)
    # The weakest penalty, 1e-6, shrinks weights by 1e-6 over the least eigenvalue of the correlations, above 1/2 here.
    assert 0 <= 1 - found.score < (1e-6 / 0.5) ** 2
    assert (found.measure, found.chance, found.classes) == ("r2", 0, 0)
    assert (found.fitted, found.scored) == (1000, 1000)
    noise = normal(2000, seed=1)
    noisy = decode(codes, (codes[:, 0] - 3) / 1e-4 + noise)
    # Half of the variance; the standard error of a squared correlation of 1/2 is sqrt(4 * 1/2 * 1/4 / n).
    assert noisy.score == pytest.approx(0.5, abs=5 * math.sqrt(0.5 / 1000))


def test_ridge_regression_is_its_definition() -> None:
    codes = normal(90, 6) * torch.arange(1, 7) + torch.arange(6)
    target = 3 + codes[:, 2] + 4 * normal(90, seed=1)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(5))
    half, scored = order[:45], order[45:]
    mean, std = codes[half].mean(dim=0), codes[half].std(dim=0, correction=0)

    def predict(fitted: Tensor, ridge: float, rows: Tensor) -> Tensor:
        """Least squares with rows of their own for the penalty."""
        x = torch.cat([(codes - mean) / std, torch.ones(90, 1)], dim=1)
        penalty = math.sqrt(ridge * len(fitted)) * torch.eye(6, 7, dtype=torch.float64)
        known = torch.cat([target[fitted], torch.zeros(6)])
        return x[rows] @ torch.linalg.lstsq(torch.cat([x[fitted], penalty]), known).solution

    errors = [float((predict(half[9:], ridge, half[:9]) - target[half[:9]]).square().mean()) for ridge in _RIDGES]
    ridge = _RIDGES[errors.index(min(errors))]
    assert ridge not in (_RIDGES[0], _RIDGES[-1]), "the choice would not show"
    residual = target[scored] - predict(half, ridge, scored)
    want = 1 - float(residual.square().mean() / target[scored].var(correction=0))
    found = decode(codes, target, seed=5)
    assert (found.ridge, found.score) == (ridge, pytest.approx(want, rel=1e-10))


@pytest.mark.parametrize("ridge", [1.0, 1e-3])
def test_logistic_regression_is_the_minimum(ridge: float) -> None:
    labels = drawn_labels(200, 4)
    codes = normal(200, 5) + 0.7 * labels[:, None] + 4
    halves = _Halves(codes, labels, 4, 30, 0)
    weights = _fit_logistic(halves, ("fit", "choose"), ridge, torch.zeros(6, 4, dtype=torch.float64))
    rows = torch.cat([halves.parts["fit"], halves.parts["choose"]])
    assert len(rows) == 100 and not set(rows.tolist()) & set(halves.parts["score"].tolist())
    x = torch.cat(
        [(codes[rows] - codes[rows].mean(dim=0)) / codes[rows].std(dim=0, correction=0), torch.ones(100, 1)], 1
    )
    leaf = weights.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ leaf, labels[rows]) + ridge / 2 * leaf[:-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert float(gradient.abs().max()) < 2e-6  # the search ends at 1e-6
    found = decode(codes, labels)
    weights = _fit_logistic(halves, ("fit", "choose"), found.ridge, torch.zeros_like(weights))
    right = sum(int(((x @ weights).argmax(dim=1) == y).sum()) for x, y in halves("score"))
    assert found.score == right / 100 > found.chance


def test_probes_are_not_scored_on_what_they_are_fitted_to() -> None:
    # More dimensions than rows to fit to: those could be told without error.
    codes, labels = normal(400, 300), drawn_labels(400, 2, seed=1)
    assert decode(codes, labels).score < 0.5 + 5 * math.sqrt(0.25 / 200)


def test_noise_is_not_decoded() -> None:
    codes = normal(2000, 100)
    found = decode(codes, normal(2000, seed=1))
    # A probe that is fitted to noise has variance q <= d / n of its own: R^2 = -q +- 2 sqrt(q / n) on other rows.
    q = 100 / 1000
    assert -q - 10 * math.sqrt(q / 1000) < found.score < 10 * math.sqrt(q / 1000)
    assert found.ridge > 0.1  # unpenalised it would have lost q
    labels = (drawn_labels(2000, 10, seed=2) - 3).clamp(min=0)  # the first has four tenths
    classes = decode(codes, labels)
    error = math.sqrt(0.4 * 0.6 / 1000)
    assert classes.chance == pytest.approx(0.4, abs=5 * error)
    assert classes.score < classes.chance + 5 * error
    assert (classes.measure, classes.classes) == ("accuracy", 7)


def test_classes_are_decoded() -> None:
    # In a row: regression on indicators would never name those in the middle.
    labels = drawn_labels(800, 5)
    codes = torch.cat([(labels + 0.1 * normal(800).clamp(-2, 2))[:, None], normal(800, 4, seed=1)], dim=1)
    found = decode(codes, labels * 10 + 3)
    assert found.score == 1 and found.classes == 5 and found.chance < 0.35
    # the first dimension alone tells a side, and a flip of the other does not
    side = codes[:, 1] > 0
    assert decode(codes, side).score > 0.98
    flipped = decode(codes, side ^ (codes[:, 2] > 0))
    assert flipped.score < 0.5 + 5 * math.sqrt(0.25 / 400) < 0.7


def test_a_logistic_probe_gives_the_known_probabilities() -> None:
    # Two normal classes at +-m have the Bayes error Phi(-m), which a linear boundary reaches.
    labels = drawn_labels(4000, 2)
    codes = normal(4000, 3)
    codes[:, 1] += 2.0 * labels - 1
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert decode(codes, labels).score == pytest.approx(best, abs=5 * math.sqrt(best * (1 - best) / 2000))


def test_probes_are_reproducible_and_know_no_units() -> None:
    codes, noise = normal(300, 5), normal(300, seed=1)
    labels = (codes[:, 0] + 0.5 * noise > 0.3).long() + (codes[:, 1] > 0).long()
    for targets, rel in ((codes[:, 0] + noise, 1e-9), (labels, 1e-12)):
        found = decode(codes, targets, seed=3)
        with torch.inference_mode():
            assert decode(codes, targets, seed=3) == found
        assert decode(codes, targets, seed=4).score != found.score
        moved = torch.cat([codes * 1000 - 7, torch.full((300, 1), 0.1, dtype=torch.float64)], dim=1)
        for other in (decode(codes, targets, seed=3, chunk=7), decode(moved, targets, seed=3)):
            assert other.score == pytest.approx(found.score, rel=rel)
            assert other.ridge == found.ridge


def test_bad_input_of_probes() -> None:
    codes, numbers, labels = normal(40, 2), normal(40), drawn_labels(40, 3)
    with pytest.raises(ValueError, match="codes: expected at least 20 rows to divide, got 19"):
        decode(codes[:19], numbers[:19])
    with pytest.raises(ValueError, match="targets: expected one number for each code"):
        decode(codes, numbers[:, None])
    with pytest.raises(ValueError, match="targets: expected one for each of the 40 codes, got 39"):
        decode(codes, labels[:39])
    with pytest.raises(ValueError, match="targets: expected numbers from 0"):
        decode(codes, labels - 1)
    with pytest.raises(DataError, match="targets are not finite"):
        decode(codes, numbers / 0)
    with pytest.raises(DataError, match="codes are not finite"):
        decode(codes / 0, labels)
    with pytest.raises(DataError, match="all of one class"):
        decode(codes, torch.ones(40, dtype=torch.bool))
    with pytest.raises(DataError, match="targets of the 20 rows fitted to are all 2: nothing to decode"):
        decode(codes, torch.full((40,), 2.0))
    assert decode(codes[:20], numbers[:20]).fitted == 10
