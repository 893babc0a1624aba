"""What codes tell about factors: the measures of the disentangling paper (Xiang & Li 2019, appendix B.4), and probes.

Codes that keep nothing of a factor have class means that all but coincide: the average distance to them is that to the
mean of the whole set, and a naive Bayes classifier is as good as chance. Codes that hold the factor are near the mean
of their class, and the classifier finds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from anifast.data.digits import ChanceLevels, chance_levels
from anifast.errors import DataError
from anifast.metrics.report import table
from anifast.progress import Nowhere, Progress

PRIORS = ("frequency", "uniform")
#: Values of float64 in a piece of work: 8 MiB, which the caches of a CPU hold better than more.
_PIECE = 1 << 20


# --- codes and labels


def _check_codes(codes: Tensor) -> None:
    if codes.ndim != 2 or not codes.is_floating_point() or not codes.numel():
        raise ValueError(
            f"codes: expected floating numbers of shape (N, k), N and k > 0, got {codes.dtype} {tuple(codes.shape)}"
        )


def _classes(labels: Tensor, count: int, name: str = "labels") -> tuple[Tensor, Tensor]:
    """The classes that have members, numbered from 0: the class of each row, and how many members each has."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name}: expected integers of shape (N,), got {labels.dtype} {tuple(labels.shape)}")
    if len(labels) != count:
        raise ValueError(f"{name}: expected one for each of the {count} codes, got {len(labels)}")
    if int(labels.min()) < 0:
        raise ValueError(f"{name}: expected numbers from 0, got {int(labels.min())}")
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    return inverse, counts


def _device(codes: Tensor) -> torch.device:
    """Where to compute in float64, which not every kind of device can."""
    return codes.device if codes.device.type in ("cpu", "cuda") else torch.device("cpu")


def _rows(width: int, chunk: int | None) -> int:
    """Rows of a piece that has `width` values in each."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1")
    return chunk or max(1, _PIECE // width)


def _pieces(codes: Tensor, rows: int, centre: Tensor | float = 0.0) -> Iterator[tuple[slice, Tensor]]:
    """Codes less `centre` in float64, `rows` at a time."""
    device = _device(codes)
    for start in range(0, len(codes), rows):
        part = slice(start, start + rows)
        yield part, codes[part].detach().to(device, torch.float64) - centre


def _centre(codes: Tensor, rows: int) -> Tensor:
    """The mean of all codes; DataError if they are not finite."""
    total = torch.zeros(codes.shape[1], dtype=torch.float64, device=_device(codes))
    finite = torch.ones((), dtype=torch.bool, device=total.device)
    for _, z in _pieces(codes, rows):
        finite &= z.isfinite().all()
        total += z.sum(dim=0)
    if not bool(finite):
        raise DataError("codes are not finite: the encoder or its input holds NaN or infinity")
    return total / len(codes)


def _class_means(codes: Tensor, inverse: Tensor, counts: Tensor, rows: int, centre: Tensor) -> Tensor:
    """Means of the classes, less `centre`: classes,k."""
    sums = centre.new_zeros(len(counts), codes.shape[1])
    for part, z in _pieces(codes, rows, centre):
        sums.index_add_(0, inverse[part], z)
    return sums / counts[:, None]


# --- distance


def average_distance(codes: Tensor, labels: Tensor | None = None, *, chunk: int | None = None) -> float:
    """Average distance of a code to the mean of its class: mean over i of |z_i - c_y(i)|, in float64.

    An average over codes, not over classes. Of independent normal codes with variance 1 the distance of the whole set
    is 1.2533 in 2 dimensions and 2.7416 in 8.

    Args:
        codes: N,k of any floating type, on any device.
        labels: integers [N] >= 0; None takes the set as one class: the whole-set distance.
        chunk: codes at once; by default as many as take 8 MiB.

    Raises:
        ValueError: codes or labels of another kind, or a chunk below 1.
        DataError: NaN or infinity among the codes.
    """
    _check_codes(codes)
    if labels is None:
        labels = torch.zeros(len(codes), dtype=torch.int64)
    inverse, counts = (found.to(_device(codes)) for found in _classes(labels, len(codes)))
    rows = _rows(codes.shape[1], chunk)
    centre = _centre(codes, rows)
    means = _class_means(codes, inverse, counts, rows, centre)
    total = centre.new_zeros(())
    for part, z in _pieces(codes, rows, centre):
        total += (z - means[inverse[part]]).norm(dim=1).sum()
    return float(total) / len(codes)


# --- naive Bayes


@dataclass(frozen=True)
class Bayes:
    """What `naive_bayes` gives.

    Attributes:
        probability: average posterior of the true class.
        rank: average rank of the true class: 1 + the number of classes that score strictly higher.
        top1: part of the codes whose true class has rank 1.
        chance: the same of codes that tell nothing, under the same prior.
        n: codes.
        classes: those that have members.
        dimensions: of a code.
        prior: "frequency" or "uniform".
        floor: the least variance.
    """

    probability: float
    rank: float
    top1: float
    chance: ChanceLevels
    n: int
    classes: int
    dimensions: int
    prior: str
    floor: float


def naive_bayes(
    codes: Tensor,
    labels: Tensor,
    *,
    prior: str = "frequency",
    floor: float = 1e-6,
    chunk: int | None = None,
    bar: Progress | None = None,
) -> Bayes:
    """How well a Gaussian naive Bayes classifier finds the classes of the codes that it was fitted to.

        score(i, c) = sum_d log N(z_id; mean_cd, max(var_cd, floor)) + log prior_c

    with the mean and variance (divisor: the number of members) of each class. Being scored on what it was fitted to, it
    is a little better than chance where codes tell nothing: by a factor of about 1 + 2k / members in the probability.

    In float64: the scores of a piece of codes are one matrix product of [z^2, z] with the classes' coefficients, which
    would lose in float32 what a small variance magnifies, and save little by it: the exponentials take the time. Memory
    does not grow with the number of codes beyond their labels.

    Args:
        codes: N,k of any floating type, on any device; computed there.
        labels: integers [N] >= 0. Numbers that do not occur are no classes; a class of one member has the variance
            `floor`.
        prior: of the classes: "frequency", their share of the codes, or "uniform".
        floor: the least variance, > 0.
        chunk: codes at once; by default as many as take 8 MiB of scores.
        bar: counts the codes.

    Raises:
        ValueError: codes, labels or options of another kind.
        DataError: NaN or infinity among the codes.
    """
    _check_codes(codes)
    if prior not in PRIORS:
        raise ValueError(f"prior: expected {' or '.join(PRIORS)}, got {prior!r}")
    if not 0 < floor < math.inf:
        raise ValueError(f"floor is {floor}; expected a variance > 0")
    inverse, counts = (found.to(_device(codes)) for found in _classes(labels, len(codes)))
    count, dimensions, classes = len(codes), codes.shape[1], len(counts)
    rows = min(_rows(max(classes, 2 * dimensions), chunk), count)
    centre = _centre(codes, rows)
    means = _class_means(codes, inverse, counts, rows, centre)
    squares = torch.zeros_like(means)
    for part, z in _pieces(codes, rows, centre):
        squares.index_add_(0, inverse[part], (z - means[inverse[part]]).square_())
    variance = (squares / counts[:, None]).clamp_(min=floor)

    weights = torch.cat([-0.5 / variance, means / variance], dim=1).T.contiguous()
    bias = -0.5 * (means.square() / variance + variance.log()).sum(dim=1)  # less what all classes share
    if prior == "frequency":
        bias += counts.double().log()
    scores = weights.new_empty(rows, classes)
    probability, higher, first = weights.new_zeros(()), counts.new_zeros(()), counts.new_zeros(())
    for part, z in _pieces(codes, rows, centre):
        lead = torch.addmm(bias, torch.cat([z.square(), z], dim=1), weights, out=scores[: len(z)])
        # The true class's score is taken from the product itself: computed apart it could lose to itself by rounding.
        lead -= lead.gather(1, inverse[part, None])
        above = (lead > 0).sum(dim=1)
        higher += above.sum()
        first += (above == 0).sum()
        # log-sum-exp relative to the true class, which adds 1 to the sum; where it overflows the posterior is 0
        probability += lead.exp_().sum(dim=1).reciprocal_().sum()
        if bar is not None:
            bar.update(len(z))
    return Bayes(
        probability=float(probability) / count,
        rank=1 + int(higher) / count,
        top1=int(first) / count,
        chance=chance_levels(inverse) if prior == "frequency" else _even_chance(classes),
        n=count,
        classes=classes,
        dimensions=dimensions,
        prior=prior,
        floor=floor,
    )


def _even_chance(classes: int) -> ChanceLevels:
    return ChanceLevels(probability=1 / classes, rank=(classes + 1) / 2, top1=1 / classes)


# --- the tables of the paper

#: The measures of tables 4 to 7 by their names here -> (the table's number, its title).
MEASURES = {
    "distance": (4, "Average distance to the mean of the class"),
    "probability": (5, "Average probability of the true class"),
    "rank": (6, "Average rank of the true class"),
    "top1": (7, "Top-1 accuracy"),
}
#: Tables 4 to 7 as published: measure -> model -> (dimensions, factor) -> value. E_w was trained with the writer as
#: label, E_d with the digit. "whole" is the distance with the set as one class.
PUBLISHED: dict[str, dict[str, dict[tuple[int, str], float]]] = {
    measure: {model: dict(zip(columns, values, strict=True)) for model, values in rows.items()}
    for measure, columns, rows in (
        (
            "distance",
            [(k, factor) for k in (2, 8) for factor in ("writer", "digit", "whole")],
            {
                "E_w": (1.2487, 0.2788, 1.2505, 2.6757, 2.0670, 2.6957),
                "E_d": (0.7929, 1.2558, 1.2597, 2.4020, 2.6699, 2.7409),
                "VAE": (1.2185, 0.4672, 1.2475, 2.6377, 1.7629, 2.7363),
            },
        ),
        (
            "probability",
            [(k, factor) for k in (2, 8) for factor in ("writer", "digit")],
            {
                "E_w": (0.000293, 0.9001, 0.000363, 0.9327),
                "E_d": (0.001441, 0.1038, 0.002845, 0.1015),
                "VAE": (0.000337, 0.6179, 0.000843, 0.9380),
            },
        ),
        (
            "rank",
            [(k, factor) for k in (2, 8) for factor in ("writer", "digit")],
            {"E_w": (1608, 1.12, 1330, 1.12), "E_d": (582, 5.20, 422, 3.98), "VAE": (1409, 1.49, 838, 1.08)},
        ),
        (
            "top1",
            [(k, factor) for k in (2, 8) for factor in ("writer", "digit")],
            {
                "E_w": (0.000454, 0.94, 0.001400, 0.94),
                "E_d": (0.005331, 0.13, 0.015424, 0.23),
                "VAE": (0.000846, 0.70, 0.004946, 0.95),
            },
        ),
    )
}
#: Table 8 as published, top-1 of generated pictures as the intended artist: (classifier that the generator was trained
#: against, classifier that scores) -> value.
PUBLISHED_GENERATED: dict[tuple[str, str], float] = {
    ("adversarial", "adversarial"): 0.1437,
    ("adversarial", "plain"): 0.8665,
    ("plain", "adversarial"): 0.0185,
    ("plain", "plain"): 0.8859,
}
#: Chance levels of the paper's 402,953 digits of 3,579 writers, with the frequencies as prior. Not in the paper:
#: computed from the labels of QMNIST, whose digits these are.
NIST_CHANCE = {
    "writer": ChanceLevels(probability=0.000285, rank=1656, top1=0.000529),
    "digit": ChanceLevels(probability=0.1002, rank=5.37, top1=0.1109),
}
#: The same with even priors.
_NIST_EVEN = {"writer": _even_chance(3579), "digit": _even_chance(10)}
_PAPER = (
    "paper (Xiang & Li 2019): 402,953 codes; classes: writer 3,579, digit 10; whether these are samples or means, the "
    "prior and the variance floor are not told"
)
_DOUBTFUL = "doubtful in the paper: E_d's 8d digit probability of 0.1015 beside a rank of 3.98 and a top-1 of 0.23"
_CHANCE = (
    "chance: of codes that tell nothing, for a classifier that knows the prior; as each is scored on the codes that it "
    "was fitted to, it is somewhat better than that even then, the more the fewer members the classes have"
)


@dataclass(frozen=True)
class Scores:
    """The measures of one encoder's codes.

    Attributes:
        bayes: factor -> dimensions -> result.
        distance: factor, or "whole" for the set as one class -> dimensions -> average distance.
        codes: what the codes are, as the tables tell it: "mean", or "sample, seed 0".
    """

    bayes: Mapping[str, Mapping[int, Bayes]]
    distance: Mapping[str, Mapping[int, float]]
    codes: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "codes": self.codes,
            "distance": {factor: {str(k): value for k, value in by.items()} for factor, by in self.distance.items()},
            "bayes": {factor: {str(k): asdict(value) for k, value in by.items()} for factor, by in self.bayes.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scores:
        """Those that `as_dict` came from."""
        return cls(
            bayes={
                factor: {int(k): Bayes(**{**one, "chance": ChanceLevels(**one["chance"])}) for k, one in by.items()}
                for factor, by in values["bayes"].items()
            },
            distance={factor: {int(k): one for k, one in by.items()} for factor, by in values["distance"].items()},
            codes=values["codes"],
        )

    def _value(self, measure: str, k: int, factor: str) -> float | None:
        if measure == "distance":
            return self.distance.get(factor, {}).get(k)
        result = self.bayes.get(factor, {}).get(k)
        return None if result is None else float(getattr(result, measure))


def score_codes(
    codes: Tensor,
    factors: Mapping[str, Tensor],
    *,
    drawn: str,
    dimensions: Sequence[int] = (2, 8),
    prior: str = "frequency",
    floor: float = 1e-6,
    label: str = "naive Bayes",
    quiet: bool = False,
) -> Scores:
    """All measures of tables 4 to 7 for the codes of one encoder, cut to their first dimensions; shows progress.

    Args:
        codes: N,d of any floating type, the dimensions in the order of nested dropout.
        factors: name -> labels, integers [N] >= 0.
        drawn: what the codes are: "mean", or "sample, seed 0".
        dimensions: how many of the first to take, each at most d.
        prior: see `naive_bayes`.
        floor: see `naive_bayes`.
        label: of the progress bar.
        quiet: show no progress.

    Raises:
        ValueError: codes, labels or options of another kind.
        DataError: NaN or infinity among the codes.
    """
    _check_codes(codes)
    if not factors or not dimensions:
        raise ValueError("factors and dimensions: expected at least one of each")
    for k in dimensions:
        if not 1 <= k <= codes.shape[1]:
            raise ValueError(f"dimensions: expected 1 to {codes.shape[1]}, the length of a code, got {k}")
    total = len(codes) * len(factors) * len(dimensions)
    bayes: dict[str, dict[int, Bayes]] = {factor: {} for factor in factors}
    distance: dict[str, dict[int, float]] = {factor: {} for factor in (*factors, "whole")}
    with Progress(total, label, unit="code", stream=Nowhere() if quiet else None) as bar:
        for k in dimensions:
            first = codes[:, :k]
            for factor, labels in factors.items():
                distance[factor][k] = average_distance(first, labels)
                bayes[factor][k] = naive_bayes(first, labels, prior=prior, floor=floor, bar=bar)
            distance["whole"][k] = average_distance(first)
    return Scores(bayes, distance, drawn)


def bayes_tables(results: Mapping[str, Scores], *, markdown: bool = False) -> str:
    """Tables 4 to 7: our rows, each above the paper's where it has one, and chance levels.

    Args:
        results: by model: "E_w", "E_d" and "VAE" stand beside the paper's, others alone (the scores of a model's codes
            with shuffled labels show what a classifier gets from being scored on what it was fitted to).
        markdown: for a page, not for a terminal.
    """
    told: dict[str, list[str]] = {}
    for model, scores in results.items():
        told.setdefault(_facts(scores), []).append(model)
    lines = [f"ours ({', '.join(models)}): {facts}" for facts, models in told.items()]
    published = any(model in PUBLISHED["distance"] for model in results)
    if published:
        lines += [_PAPER, _DOUBTFUL]
    lines.append(_CHANCE)
    blocks = [_list(lines, markdown)]
    for measure, (number, title) in MEASURES.items():
        columns = _columns(results, measure)
        rows: list[tuple[str, list[str]]] = []
        for model, scores in results.items():
            rows.append((f"{model}, ours", [_cell(measure, scores._value(measure, k, f)) for k, f in columns]))
            paper = PUBLISHED[measure].get(model, {})
            if any(column in paper for column in columns):
                rows.append((f"{model}, paper", [_cell(measure, paper.get(c), paper=True) for c in columns]))
        if measure != "distance":
            rows += _chance_rows(results, measure, columns, published)
        heads = [f"{k}d {factor}" for k, factor in columns]
        name = f"{title} (table {number} of the paper)" if published else title
        blocks.append(_render(name, "codes", heads, rows, markdown))
    return "\n\n".join(blocks) + "\n"


def generated_table(
    results: Mapping[tuple[str, str], float], about: str, *, faces: bool = True, markdown: bool = False
) -> str:
    """Table 8: how many generated pictures a classifier takes for works of the intended artist.

    Args:
        results: (classifier that the generator was trained against, classifier that scores), each "adversarial" or
            "plain" -> top-1, 0 to 1. Those that are missing are left open.
        about: what ours are: pictures, artists, how many iterations.
        faces: ours are of faces, as the paper's; else its rows say that they are.
        markdown: for a page, not for a terminal.
    """
    kinds = ("adversarial", "plain")
    paper = "paper" if faces else "paper (faces)"
    rows = []
    for kind in kinds:
        for name, source in (("ours", results), (paper, PUBLISHED_GENERATED)):
            found = [source.get((kind, scorer)) for scorer in kinds]
            rows.append(
                (f"against {kind}, {name}", ["-" if value is None else f"{100 * value:.2f} %" for value in found])
            )
    lines = [f"ours: {about}", "paper (Xiang & Li 2019): 106,814 pictures of faces, 1,139 artists"]
    title = "Top-1 of generated pictures as the intended artist (table 8)"
    heads = [f"scored by {kind} C2" for kind in kinds]
    return _list(lines, markdown) + "\n\n" + _render(title, "generator trained", heads, rows, markdown) + "\n"


def _facts(scores: Scores) -> str:
    """What the figures of one encoder are taken from, and how."""
    results = {factor: one for factor, by in scores.bayes.items() for one in by.values()}
    counts = " or ".join(f"{n:,}" for n in sorted({one.n for one in results.values()}))
    classes = ", ".join(f"{factor} {one.classes:,}" for factor, one in results.items())
    priors = " or ".join(sorted({one.prior for one in results.values()}))
    floors = " or ".join(f"{floor:g}" for floor in sorted({one.floor for one in results.values()}))
    return f"{counts} codes ({scores.codes}); classes: {classes}; prior {priors}; variance floor {floors}"


def _columns(results: Mapping[str, Scores], measure: str) -> list[tuple[int, str]]:
    """(dimensions, factor) of a table's columns: dimensions in rising order, factors in the order of the results."""
    factors: dict[str, None] = {}
    dimensions: set[int] = set()
    for scores in results.values():
        found = scores.distance if measure == "distance" else scores.bayes
        factors |= dict.fromkeys(found)
        dimensions |= {k for by in found.values() for k in by}
    return [(k, factor) for k in sorted(dimensions) for factor in factors]


def _chance_rows(
    results: Mapping[str, Scores], measure: str, columns: Sequence[tuple[int, str]], published: bool
) -> list[tuple[str, list[str]]]:
    """A row of our chance levels, one for each kind there is, and one of the paper's set for each prior."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for model, scores in results.items():
        chances = {(k, f): one.chance for f, by in scores.bayes.items() for k, one in by.items()}
        cells = [_cell(measure, getattr(chances[c], measure)) if c in chances else "-" for c in columns]
        rows.setdefault(tuple(cells), []).append(model)
    made = [
        ("chance, ours" if len(rows) == 1 else f"chance, ours ({', '.join(models)})", list(cells))
        for cells, models in rows.items()
    ]
    if published:
        priors = {one.prior for scores in results.values() for by in scores.bayes.values() for one in by.values()}
        for prior in sorted(priors):
            levels = NIST_CHANCE if prior == "frequency" else _NIST_EVEN
            cells = [_cell(measure, getattr(levels.get(factor), measure, None)) for _, factor in columns]
            made.append((f"chance, paper's set (computed, {prior} prior)", cells))
    return made


def _cell(measure: str, value: float | None, paper: bool = False) -> str:
    """A figure with the digits of the paper; its rounded accuracies get no more than it gave."""
    if value is None:
        return "-"
    if measure == "rank":
        return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
    if measure == "distance" or value >= 0.02:
        return f"{value:.{2 if paper and measure == 'top1' else 4}f}"
    return f"{value:.6f}"


def _list(lines: Sequence[str], markdown: bool) -> str:
    return "\n".join(f"- {line}" if markdown else line for line in lines)


def _render(
    title: str, corner: str, heads: Sequence[str], rows: Sequence[tuple[str, list[str]]], markdown: bool
) -> str:
    if not markdown:
        return "\n".join([title, *table(corner, heads, rows)])
    lines = [[corner, *heads], ["---", *["---:"] * len(heads)], *([name, *cells] for name, cells in rows)]
    return "\n".join([f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in lines)])


def orderings(results: Mapping[str, Scores]) -> list[tuple[str, bool]]:
    """Whether the orderings of the paper in 2 dimensions are found: sentences with their figures, and if they hold.

    E_w, which is not to know the writer, is better than the VAE on digits and worse on writers, E_d the reverse; and
    the distance within the classes that an encoder is not to know is nearer to the whole set's than the VAE's is. What
    `results` lacks is left out.
    """
    found: list[tuple[str, bool]] = []
    vae = results.get("VAE")
    for model, kept, hidden in (("E_w", "digit", "writer"), ("E_d", "writer", "digit")):
        if vae is None or model not in results:
            continue
        for factor, word in ((kept, "better"), (hidden, "worse")):
            for measure, (_, title) in MEASURES.items():
                ours, theirs = results[model]._value(measure, 2, factor), vae._value(measure, 2, factor)
                if ours is None or theirs is None:
                    continue
                more = ours > theirs
                less_is_better = measure in ("distance", "rank")
                holds = ours != theirs and (more != less_is_better) == (word == "better")
                figures = f"{_cell(measure, ours)}, VAE {_cell(measure, theirs)}"
                found.append((f"{model} is {word} than the VAE on {factor}s: {title.lower()} {figures}", holds))
        parts = [_part_of_whole(scores, hidden) for scores in (results[model], vae)]
        if None not in parts:
            own, other = (part for part in parts if part is not None)
            sentence = f"{model}'s {hidden} distance is nearer to the whole set's than the VAE's: ratio {own:.4f}"
            found.append((f"{sentence}, VAE {other:.4f}", abs(1 - own) < abs(1 - other)))
    return found


def _part_of_whole(scores: Scores, factor: str) -> float | None:
    """Distance within the classes over that of the whole set, in 2 dimensions."""
    within, whole = scores._value("distance", 2, factor), scores._value("distance", 2, "whole")
    return None if within is None or not whole else within / whole


# --- linear probes

#: Penalties tried, beside a mean over rows and on standardised codes; the strongest first.
_RIDGES = tuple(10.0**power for power in range(2, -7, -1))
_FEWEST = 20


@dataclass(frozen=True)
class Decoded:
    """What `decode` gives.

    Attributes:
        score: "r2": 1 - squared error / variance, 1 at best and below 0 where the probe is worse than the mean;
            "accuracy": part of the rows whose class is found.
        chance: the score without codes: 0 (the mean), or the accuracy of always naming the class that is most frequent
            among the rows fitted to.
        measure: "r2" for numbers, "accuracy" for classes.
        classes: that occur; 0 for numbers.
        ridge: the penalty chosen.
        fitted: rows that the probe and its penalty come from.
        scored: the other rows.
    """

    score: float
    chance: float
    measure: str
    classes: int
    ridge: float
    fitted: int
    scored: int


def decode(codes: Tensor, targets: Tensor, *, seed: int = 0, chunk: int | None = None) -> Decoded:
    """How well a linear probe reads a factor from codes, fitted to one half of the rows and scored on the other.

    Numbers are read by ridge regression, classes by multinomial logistic regression with the same penalty, both on
    codes standardised by the first half. The penalty is the one of a grid that does best on a fifth of that half after
    fitting to the rest; the probe is then fitted to the whole half. In float64; memory does not grow with the number of
    rows beyond their order and targets.

    Args:
        codes: N,d of any floating type, at least 20 rows.
        targets: [N]: floating numbers, or classes as integers >= 0 or bools.
        seed: of the division into halves.
        chunk: codes at once; by default as many as take 8 MiB.

    Raises:
        ValueError: codes or targets of another kind.
        DataError: NaN or infinity among them, or targets that are all the same (numbers: in one of the halves).
    """
    _check_codes(codes)
    if len(codes) < _FEWEST:
        raise ValueError(f"codes: expected at least {_FEWEST} rows to divide, got {len(codes)}")
    if targets.is_floating_point():
        if targets.shape != codes.shape[:1]:
            raise ValueError(f"targets: expected one number for each code, ({len(codes)},), got {tuple(targets.shape)}")
        target, classes = targets.detach().to(_device(codes), torch.float64), 0
        if not bool(target.isfinite().all()):
            raise DataError("targets are not finite: there is NaN or infinity among the numbers to decode")
    else:
        labels = targets.to(torch.uint8) if targets.dtype == torch.bool else targets
        inverse, counts = _classes(labels, len(codes), "targets")
        target, classes = inverse.to(_device(codes)), len(counts)
        if classes == 1:
            raise DataError("targets are all of one class: there is nothing to decode")
    rows = _rows(max(codes.shape[1] + 1, classes), chunk)
    _centre(codes, rows)  # complains of NaN
    halves = _Halves(codes, target, classes, rows, seed)
    return _decode_classes(halves) if classes else _decode_numbers(halves)


class _Halves:
    """Rows in the parts "fit" and "choose", which are the first half, and "score"."""

    def __init__(self, codes: Tensor, target: Tensor, classes: int, rows: int, seed: int) -> None:
        self.codes, self.target, self.classes, self._rows = codes, target, classes, rows
        order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed)).to(codes.device)
        half = (len(codes) + 1) // 2
        self.parts = {"fit": order[half // 5 : half], "choose": order[: half // 5], "score": order[half:]}
        self.width = codes.shape[1] + 1
        self._standardise()

    def _standardise(self) -> None:
        """Take the mean of the first half and 1 / its standard deviation, 0 where a column does not vary."""
        first = ("fit", "choose")
        count = self.size(*first)
        self._mean = torch.zeros(self.width - 1, dtype=torch.float64, device=self.target.device)
        self._scale = torch.ones_like(self._mean)
        least, most = torch.full_like(self._mean, math.inf), torch.full_like(self._mean, -math.inf)
        total = torch.zeros_like(self._mean)
        for x, _ in self(*first):
            z = x[:, :-1]
            total += z.sum(dim=0)
            least, most = torch.minimum(least, z.amin(dim=0)), torch.maximum(most, z.amax(dim=0))
        self._mean = total / count
        squares = sum((x[:, :-1].square().sum(dim=0) for x, _ in self(*first)), torch.zeros_like(total))
        # A mean's rounding would give columns that are constant a variance.
        self._scale = torch.where(most > least, (squares / count).rsqrt(), 0.0)

    def size(self, *parts: str) -> int:
        return sum(len(self.parts[part]) for part in parts)

    def targets(self, *parts: str) -> Tensor:
        return torch.cat([self.target[self.parts[part].to(self.target.device)] for part in parts])

    def __call__(self, *parts: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Standardised codes with a column of ones, rows,d+1, and the targets of these rows, a piece at a time."""
        device = self.target.device
        for part in parts:
            for rows in self.parts[part].split(self._rows):
                z = self.codes[rows].detach().to(device, torch.float64)
                z = (z - self._mean) * self._scale
                yield torch.cat([z, z.new_ones(len(z), 1)], dim=1), self.target[rows.to(device)]

    def penalty(self, ridge: float) -> Tensor:
        """The penalty on each input's weight: none on that of the ones."""
        weights = torch.full((self.width,), ridge, dtype=torch.float64, device=self.target.device)
        weights[-1] = 0.0
        return weights

    def decoded(self, score: float, chance: float, ridge: float) -> Decoded:
        measure = "accuracy" if self.classes else "r2"
        return Decoded(score, chance, measure, self.classes, ridge, self.size("fit", "choose"), self.size("score"))


def _decode_numbers(halves: _Halves) -> Decoded:
    """Ridge regression; each part is summed up in its second moments, which fits and errors are taken from."""
    first = halves.targets("fit", "choose")
    for values, name in ((first, "fitted to"), (halves.targets("score"), "scored")):
        if bool((values == values[0]).all()):
            raise DataError(f"targets of the {len(values)} rows {name} are all {float(values[0]):g}: nothing to decode")
    mean, scale = first.mean(), first.std(correction=0)
    width = halves.width
    moments: dict[str, Tensor] = {}
    for part in halves.parts:
        moments[part] = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=first.device)
        for x, y in halves(part):
            joined = torch.cat([x, ((y - mean) / scale)[:, None]], dim=1)
            moments[part].addmm_(joined.T, joined)

    def weights(part: Tensor, count: int, ridge: float) -> Tensor:
        return torch.linalg.solve(part[:width, :width] + (count * halves.penalty(ridge)).diag(), part[:width, width])

    def error(part: Tensor, found: Tensor) -> float:
        residual = torch.cat([-found, found.new_ones(1)])
        return float(residual @ part @ residual)

    tried = [error(moments["choose"], weights(moments["fit"], halves.size("fit"), ridge)) for ridge in _RIDGES]
    ridge = _RIDGES[tried.index(min(tried))]
    found = weights(moments["fit"] + moments["choose"], halves.size("fit", "choose"), ridge)
    score = moments["score"]
    variation = score[width, width] - score[width - 1, width].square() / halves.size("score")
    return halves.decoded(1 - error(score, found) / float(variation), 0.0, ridge)


def _decode_classes(halves: _Halves) -> Decoded:
    """Multinomial logistic regression; from strong to weak penalties, as each fit is a good start of the next."""
    weights = torch.zeros(halves.width, halves.classes, dtype=torch.float64, device=halves.target.device)
    best, least = (_RIDGES[0], weights), math.inf
    for ridge in _RIDGES[::2]:
        weights = _fit_logistic(halves, ("fit",), ridge, weights)
        loss = _nll(halves, ("choose",), weights)
        if loss < least:
            best, least = (ridge, weights), loss
    ridge, weights = best
    weights = _fit_logistic(halves, ("fit", "choose"), ridge, weights)
    right = sum(int(((x @ weights).argmax(dim=1) == y).sum()) for x, y in halves("score"))
    usual = halves.targets("fit", "choose").bincount(minlength=halves.classes).argmax()
    chance = float((halves.targets("score") == usual).double().mean())
    return halves.decoded(right / halves.size("score"), chance, ridge)


def _nll(halves: _Halves, parts: Sequence[str], weights: Tensor, gradient: Tensor | None = None) -> float:
    """Mean negative log-likelihood of the classes; its gradient is added to `gradient`."""
    count = halves.size(*parts)
    total = weights.new_zeros(())
    for x, y in halves(*parts):
        log_p = (x @ weights).log_softmax(dim=1)
        total -= log_p.gather(1, y[:, None]).sum()
        if gradient is not None:
            residual = log_p.exp_()
            residual.scatter_add_(1, y[:, None], residual.new_full((len(y), 1), -1.0))
            gradient.addmm_(x.T, residual, alpha=1 / count)
    return float(total) / count


def _fit_logistic(halves: _Halves, parts: Sequence[str], ridge: float, start: Tensor) -> Tensor:
    """The weights d+1,classes with the least mean negative log-likelihood + ridge / 2 * sum of their squares."""
    weights = start.clone()
    penalty = halves.penalty(ridge)[:, None]
    search = torch.optim.LBFGS(
        [weights], max_iter=100, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        weights.grad = penalty * weights
        value = _nll(halves, parts, weights, weights.grad)
        return value + 0.5 * float((penalty * weights.square()).sum())

    search.step(loss)
    return weights
