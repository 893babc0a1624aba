"""Training of BlendGAN: the steps of its stages against plain ones, its data and draws, and several processes.

`PlainGan`, `PlainStyle` and `PlainInversion` are one iteration of each stage as sections 4 and 5 of the specification
tell it: every network sees every batch by itself, formulas are written out, optimisers are PyTorch's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from stepping import SUMS, deviations, move_by_an_ulp, one_thread, state_of, two_processes
from tiny_blendgan import tiny_config
from tiny_cyclegan import own_cache, picture
from torch import Tensor, nn

from anifast.data.folders import to_float
from anifast.data.packed import pack
from anifast.engine.distributed import Team
from anifast.engine.loop import NotFinite, run_step
from anifast.errors import AnifastError, CheckpointError, DataError, ImageError
from anifast.nn import perceptual, stylegan2, winograd
from anifast.nn.backbones import load_backbone
from anifast.nn.perceptual import fold_weight
from anifast.systems.blendgan import codes as tables
from anifast.systems.blendgan import psp
from anifast.systems.blendgan.config import Config
from anifast.systems.blendgan.contrast import Style, Views
from anifast.systems.blendgan.inversion import Inversion, Ranger, mean_code, photos
from anifast.systems.blendgan.networks import Generator, StyleEncoder, build_generator, build_style_encoder
from anifast.systems.blendgan.training import Batch, Faces, Gan, Pictures, the_picture

CPU = torch.device("cpu")
L = 10
EPS64 = torch.finfo(torch.float64).eps
#: Networks as small as they can be, penalties in every second step.
NARROW: dict[str, Any] = {
    "style_dim": 16,
    "base_channels": 8,
    "batch": 3,
    "queue": 5,
    "r1_every": 2,
    "path_every": 2,
    "ema": 0.9,
    "style_batch": 4,
    "style_lr": 1e-2,
}


def settings(**changes: Any) -> Config:
    return tiny_config(**NARROW | changes)


def smooth(count: int, seed: int, side: int = 64, dtype: torch.dtype = torch.float64) -> Tensor:
    """Pictures in [-1, 1] without sharp edges, all different."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    found = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True).clamp(-1, 1)
    return found.to(dtype)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def unlike_at_first(nets: dict[str, nn.Module]) -> None:
    """Biases, strengths of noise and shares that are not as drawn, as trained ones are not."""
    source = torch.Generator().manual_seed(3)
    for net in nets.values():
        for name, value in net.named_parameters():
            if name.endswith(("bias", "noise.weight")):
                value.data.add_(torch.randn(value.shape, generator=source), alpha=0.1)
            elif name == "add_weight":
                value.data.copy_(0.25 + 0.5 * torch.rand(value.shape, generator=source))
                value.data[0, 2], value.data[0, 5] = 0, 1  # at the ends, which one of them will leave


def gan(dtype: torch.dtype = torch.float64, team: Team | None = None, **changes: Any) -> Gan:
    """Stage gan in float64; what it draws has the networks' type."""
    made = Gan(settings(**changes), CPU, normal(9, 16, seed=4, dtype=dtype), team=team)
    unlike_at_first(made.nets)
    for net in (*made.nets.values(), *made.paths.values()):
        net.to(dtype)
    made.start_averaging()
    drawn = made._draws
    made._draws = lambda *args: tuple(  # type: ignore[method-assign]
        x.to(dtype) if x.is_floating_point() else x for x in drawn(*args)
    )
    return made


def batch_of(config: Config, index: int, dtype: torch.dtype = torch.float64) -> Batch:
    count = config.batch
    faces, art = (smooth(count, 100 * index + k, dtype=dtype) for k in (1, 2))
    return Batch(faces, art, normal(count, config.style_dim, seed=100 * index, dtype=dtype))


def recorded(made: Any) -> dict[str, tuple[Tensor, ...]]:
    """What the phases of the steps to come start from, by phase."""
    found: dict[str, tuple[Tensor, ...]] = {}
    for phase in made.phases:

        def noted(name: str = phase.name, inputs: Callable[[], tuple[Tensor, ...]] = phase.inputs) -> Any:
            found[name] = inputs()
            return found[name]

        phase.inputs = noted
    return found


def sp(x: Tensor) -> Tensor:
    """softplus, as section 4 writes it."""
    return F.softplus(x).mean()  # which is x itself above 20


@pytest.fixture(autouse=True)
def few_gram_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two layers with 64 and 128 channels."""
    fewer_layers(monkeypatch.setitem)


def fewer_layers(put: Callable[[Any, str, Any], None]) -> None:
    put(perceptual.STYLE_LAYERS, "random", (3, 8))


@pytest.fixture(autouse=True)
def plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Winograd's, which are chosen by the size of a batch, round otherwise than those of a part of it."""
    without_winograd(monkeypatch.setattr)


def without_winograd(put: Callable[[Any, str, Any], None]) -> None:
    for name in ("is_faster", "is_faster_halving"):
        put(winograd, name, lambda *_: False)


# --- stage gan: the step


class PlainGan:
    """Iterations of section 5 on copies of a system's networks."""

    def __init__(self, made: Gan) -> None:
        self.config, self.nets = made.config, copy.deepcopy(made.nets)
        for net in self.nets.values():
            net.requires_grad_(True).recompute = False  # type: ignore[assignment]
        assert made.ema is not None
        self.ema = copy.deepcopy(made.ema.nets["G"])
        self.queue = list(made.queue.codes.clone())
        self.a = {"face": torch.zeros((), dtype=torch.float64), "style": torch.zeros((), dtype=torch.float64)}
        c = self.config
        r_g = c.path_every / (c.path_every + 1) if c.path_length else 1.0
        r_d = c.r1_every / (c.r1_every + 1) if c.r1 else 1.0
        judges = [p for name in ("D_face", "D_style", "D_latent") for p in self.nets[name].parameters()]
        plain: dict[str, Any] = {"eps": 1e-8, "foreach": False, "fused": False}
        self.optimizers = {
            "G": torch.optim.Adam(self.nets["G"].parameters(), lr=0.002 * r_g, betas=(0.0, 0.99**r_g), **plain),
            "D": torch.optim.Adam(judges, lr=0.002 * r_d, betas=(0.0, 0.99**r_d), **plain),
        }

    def faces(self, one: Tensor, two: Tensor, at: Tensor) -> Tensor:
        """w_f of each slot: the second code's from a slot on."""
        g = self.nets["G"]
        first, second = g.style(one), g.style(two)
        rows = [
            torch.stack([first[k] if slot < int(at[k]) else second[k] for slot in range(L)]) for k in range(len(one))
        ]
        return torch.stack(rows)

    def stylized(self, w_f: Tensor, codes: Tensor) -> Tensor:
        """i = 0: w_s alpha + w_f (1 - alpha)."""
        alpha = 1 - self.nets["G"].add_weight
        return self.nets["G"].embedding(codes)[:, None] * alpha + w_f * (1 - alpha)

    def paint(self, w: Tensor, noise: list[Tensor]) -> Tensor:
        image: Tensor = self.nets["G"](w, input_is_latent=True, noise=noise)[0]
        return image

    def painted(
        self, codes: Tensor, one: Tensor, two: Tensor, at: Tensor, *noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Natural and stylized pictures, and the codes they are painted from."""
        w_f = self.faces(one, two, at)
        w_s, n = self.stylized(w_f, codes), len(one)
        return self.paint(w_f, [x[:n] for x in noise]), self.paint(w_s, [x[n:] for x in noise]), w_f, w_s

    def move(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        if name == "G":
            with torch.no_grad():
                self.nets["G"].add_weight.clamp_(0, 1)

    def penalty(self, score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
        return gradient.pow(2).reshape(len(x), -1).sum(1).mean()

    def length(self, image: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        y = noise / math.sqrt(image.shape[2] * image.shape[3])
        (gradient,) = torch.autograd.grad((image * y).sum(), w, create_graph=True)
        return gradient.pow(2).sum(2).mean(1).sqrt()

    def step(self, index: int, batch: Batch, draws: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """One iteration; the values of its losses by the names of the log."""
        c, nets, parts = self.config, self.nets, {}
        face, style, latent = nets["D_face"], nets["D_style"], nets["D_latent"]
        real, art, z = batch
        codes, *faces = draws["paintings"]
        assert torch.equal(codes, z)
        with torch.no_grad():
            natural, stylized, _, _ = self.painted(z, *faces)
        parts["d_face"] = sp(-face(real)) + sp(face(natural))
        parts["d_style"] = sp(-style(art)) + sp(style(stylized))
        if c.lambda_latent:
            others = draws["D_latent"][3]  # they are in the queue as it is before this step
            assert all(any(torch.equal(row, held) for held in self.queue) for row in others)
            # a picture's trunk once for two codes: gradients that cancel would be rounded otherwise
            h = latent.summed(stylized)
            if c.latent_loss == "paper":
                parts["d_latent"] = sp(-latent.score(h, z)) + sp(latent.score(h, others))
            else:
                of_art = latent.summed(art)
                wrong = sp(latent.score(of_art, others)) / 2 + sp(latent.score(h, z)) / 2
                parts["d_latent"] = sp(-latent.score(of_art, z)) + wrong
        self.move("D", sum(parts.values()))  # type: ignore[arg-type]
        if c.r1 and index % c.r1_every == 0:
            found = {"r1_face": self.penalty(face, real), "r1_style": self.penalty(style, art)}
            if c.lambda_latent:
                coded = stylized if c.latent_loss == "paper" else art
                found["r1_latent"] = self.penalty(lambda x: latent(x, z), coded)
            parts |= {name: c.r1 / 2 * c.r1_every * value for name, value in found.items()}
            self.move("D", sum(parts[name] for name in found))  # type: ignore[arg-type]
        if index >= c.warm_up:
            natural, stylized, _, _ = self.painted(z, *draws["generator"][1:])
            parts["alpha"] = 1 - nets["G"].add_weight.detach().mean()
            parts["norm"] = z.pow(2).sum(1).sqrt().mean()
            parts["g_face"], parts["g_style"] = sp(-face(natural)), sp(-style(stylized))
            loss = c.lambda_face * parts["g_face"] + c.lambda_style * parts["g_style"]
            if c.lambda_latent:
                parts["g_latent"] = sp(-latent(stylized, z))
                loss = loss + c.lambda_latent * parts["g_latent"]
            self.move("G", loss)
            if c.path_length and index % c.path_every == 0:
                part, directions, *faces = draws["path lengths"]
                assert len(part) == max(1, c.batch // c.path_shrink)
                assert all(any(torch.equal(row, code) for code in z) for row in part)
                natural, stylized, w_f, w_s = self.painted(part, *faces)
                n = len(part)
                for name, image, w, y in (
                    ("face", natural, w_f, directions[:n]),
                    ("style", stylized, w_s, directions[n:]),
                ):
                    lengths = self.length(image, w, y)
                    a = self.a[name] + 0.01 * (lengths.mean() - self.a[name])
                    self.a[name] = a.detach()
                    parts[f"path_{name}"] = c.path_length * c.path_every * (lengths - a).pow(2).mean()
                self.move("G", parts["path_face"] + parts["path_style"])
        with torch.no_grad():
            for mean, live in zip(self.ema.parameters(), nets["G"].parameters(), strict=True):
                mean.copy_(c.ema * mean + (1 - c.ema) * live)
        if c.one_shot is None:
            self.queue = [*self.queue[len(z) :], *z][-len(self.queue) :]
        return {name: value.detach() for name, value in parts.items()}

    def state(self) -> dict[str, Tensor]:
        return state_of(self.nets, self.optimizers, {"G": self.ema})


def gan_state(made: Gan) -> dict[str, Tensor]:
    assert made.ema is not None
    return state_of(made.nets, made.optimizers, made.ema.nets)


def check_gan(made: Gan, plain: PlainGan, steps: int) -> list[set[str]]:
    """Train both side by side: losses, weights, averages and moments are the same to the rounding of float64.

    With beta_1 = 0 an error d of a gradient moves a weight by at most lr d / eps in a step of Adam.

    Returns:
        The names of each step's losses.
    """
    near = copy.deepcopy(plain)
    move_by_an_ulp(near.nets)
    near.ema.load_state_dict(near.nets["G"].state_dict())
    draws, names = recorded(made), []
    apart, rounding = 0.0, EPS64
    for index in range(steps):
        batch = batch_of(made.config, index)
        made.begin(batch, index * made.config.batch)
        found = run_step(made.phases, index, CPU)
        assert made.ema is not None
        made.ema.update(made.config.batch)
        expected, other = (one.step(index, batch, draws) for one in (plain, near))
        assert set(found) == set(expected) <= {key for panel in made.panels for key in panel.keys}
        names.append(set(found))
        for name, value in expected.items():
            scale = max(1.0, float(value))
            apart = max(apart, float(abs(found[name] - value)) / scale)
            rounding = max(rounding, float(abs(other[name] - value)) / scale)
        ours = sorted(row.tolist() for row in made.queue.codes)
        assert ours == sorted(row.tolist() for row in plain.queue)
    assert apart <= SUMS * rounding < 1e-9, (apart, rounding)
    truth = plain.state()
    mine, usual = deviations(gan_state(made), truth), deviations(near.state(), truth)
    for kind, error in mine.items():
        what, name = kind.split()
        allowed = SUMS * usual[kind]
        if what in ("weights", "ema"):
            rate = plain.optimizers[name[0]].param_groups[0]["lr"]
            # Adam has moments of what has got gradients
            allowed = SUMS * (usual.get(f"exp_avg {name[0]}", 0.0) * rate / 1e-8 * 2 * steps + usual[kind])
            assert allowed < 0.1 * rate * steps, (kind, allowed)  # a wrong sign of one gradient is seen
        assert error <= allowed, (kind, error, allowed)
    for name, path in made.paths.items():
        assert float(path.mean) == pytest.approx(float(plain.a[name]), rel=SUMS * rounding, abs=0)
    return names


OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "matching": {"latent_loss": "matching"},
    "codes of one length": {"normalised": True},
    "no mixing": {"mixing": 0.0, "path_shrink": 1},
    "always mixing": {"mixing": 1.0, "batch": 4},
    "weights": {"lambda_face": 0.5, "lambda_style": 2.0, "lambda_latent": 0.3, "r1": 3.0, "path_length": 5.0},
    "no discriminator of codes": {"lambda_latent": 0.0},
    "no penalties": {"r1": 0.0, "path_length": 0.0},
    "one picture": {"batch": 1},
    "checkpointing": {"checkpointing": True, "latent_loss": "matching"},
    "the generator waits": {"warm_up": 1},
}
R1 = {"r1_face", "r1_style", "r1_latent"}
D, G, PATH = (
    {"d_face", "d_style", "d_latent"},
    {"g_face", "g_style", "g_latent", "alpha", "norm"},
    {"path_face", "path_style"},
)


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_of_stage_gan(name: str) -> None:
    """Three steps, with penalties in the first and the last."""
    made = gan(**OPTIONS[name])
    with one_thread():
        names = check_gan(made, PlainGan(made), 3)
    c = made.config
    waits = c.warm_up
    gone = set() if c.lambda_latent else {"d_latent", "g_latent", "r1_latent"}
    for index, found in enumerate(names):
        expected = D | (G if index >= waits else set())
        if index % 2 == 0:
            expected = expected | (R1 if c.r1 else set())
            expected = expected | (PATH if c.path_length and index >= waits else set())
        assert found == expected - gone
    moved = {
        name: [not torch.equal(p, q) for p, q in zip(net.parameters(), fresh.parameters(), strict=True)]
        for (name, net), fresh in zip(made.nets.items(), gan(**OPTIONS[name]).nets.values(), strict=True)
    }
    assert all(moved["G"]) and all(moved["D_face"]) and all(moved["D_style"])
    assert all(moved["D_latent"]) if c.lambda_latent else not any(moved["D_latent"])


def test_a_wrong_weight_would_be_seen() -> None:
    made = gan(lambda_style=1 + 1e-8)
    plain = PlainGan(made)
    plain.config = settings()
    with pytest.raises(AssertionError):
        check_gan(made, plain, 1)


@pytest.mark.parametrize("mode", ["paper", "matching"])
def test_losses_at_zero_logits(mode: str) -> None:
    """Every term of section 4 is ln 2 there: 2 ln 2 for each discriminator, ln 2 for the generator against each."""
    made = gan(torch.float32, latent_loss=mode, lr=0.0)
    with torch.no_grad():
        for net in (made.nets["D_face"], made.nets["D_style"]):
            for value in net.final_linear[-1].parameters():  # type: ignore[index,union-attr]
                value.zero_()
        for layer in (made.nets["D_latent"].l_out, made.nets["D_latent"].l_style):
            for value in layer.parameters():  # type: ignore[union-attr]
                value.zero_()
    made.begin(batch_of(made.config, 0, torch.float32), 0)
    found = run_step(made.phases, 0, CPU)
    for name in ("face", "style", "latent"):
        assert float(found[f"d_{name}"]) == pytest.approx(2 * math.log(2), rel=1e-6)
        assert float(found[f"g_{name}"]) == pytest.approx(math.log(2), rel=1e-6)
        assert float(found[f"r1_{name}"]) == 0


def test_the_optimisers_are_corrected_for_lazy_penalties() -> None:
    """Section 5's numbers, and those without penalties; beta_1 is a float."""
    lazy = Gan(tiny_config(base_channels=8), CPU, torch.randn(2, 32))
    plain = Gan(tiny_config(base_channels=8, r1=0.0, path_length=0.0), CPU, torch.randn(2, 32))
    for made, name, lr, beta in (
        (lazy, "G", 0.0016, 0.991992),
        (lazy, "D", 0.00188235, 0.990585),
        (plain, "G", 0.002, 0.99),
        (plain, "D", 0.002, 0.99),
    ):
        (group,) = made.optimizers[name].param_groups
        assert group["lr"] == pytest.approx(lr, abs=5e-9) and group["betas"][1] == pytest.approx(beta, abs=5e-7)
        assert group["betas"][0] == 0.0 and isinstance(group["betas"][0], float)
        assert (group["eps"], group["weight_decay"]) == (1e-8, 0)
    intervals = {phase.name: phase.interval for phase in lazy.phases}
    assert intervals == {
        "paintings": 1,
        **{f"D_{name}": 1 for name in ("face", "style", "latent")},
        **{f"D_{name}, penalty": 16 for name in ("face", "style", "latent")},
        "generator": 1,
        "path lengths": 4,
        "path length penalty": 4,
    }
    assert lazy.ema is not None and 0.5 ** (lazy.config.batch / lazy.ema.half_life) == pytest.approx(0.997784, abs=1e-9)


@pytest.mark.parametrize("mode", ["paper", "matching"])
def test_networks_run_once_for_all(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase paints natural and stylized pictures in one call; D_latent's trunk sees each picture once."""
    made = gan(torch.float32, latent_loss=mode)
    calls: list[tuple[str, int]] = []

    def count(net: nn.Module, name: str, method: str) -> None:
        original = getattr(type(net), method)

        def counted(self: nn.Module, x: Tensor, *args: Any) -> Any:
            if self is net:
                calls.append((name, len(x)))
            return original(self, x, *args)

        monkeypatch.setattr(type(net), method, counted)

    count(made.nets["G"], "G", "render")
    count(made.nets["D_latent"], "D_latent", "features")
    for index, penalised in ((0, True), (1, False)):
        calls.clear()
        made.begin(batch_of(made.config, index, torch.float32), 3 * index)
        run_step(made.phases, index, CPU)
        judged = 3 if mode == "paper" else 6
        expected = [("G", 6), ("D_latent", judged), ("G", 6), ("D_latent", 3)]
        if penalised:
            expected[2:2] = [("D_latent", 3)]
            expected.append(("G", 2))
        assert calls == expected


def test_indicators_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """L for the natural half and 0 for the other; codes of two faces differ from one slot on, below the style."""
    made = gan()
    g, seen = made.nets["G"], []
    assert isinstance(g, Generator)
    blended = Generator.codes

    def noted(self: Generator, w: Tensor, z: Tensor | None = None, index: Any = None, theta: Any = 1.0) -> Tensor:
        seen.append((w, z, index))
        return blended(self, w, z, index, theta)

    monkeypatch.setattr(Generator, "codes", noted)
    one, two, z = normal(3, 16, seed=1), normal(3, 16, seed=2), normal(3, 16, seed=3)
    at = torch.tensor([1, 4, L])
    with torch.no_grad():
        w = made._codes(one, two, at, z)
        ((w_f, styles, index),) = seen
        assert index.tolist() == [L, L, L, 0, 0, 0] and torch.equal(styles, z.repeat(2, 1))
        assert torch.equal(w_f[:3], w_f[3:])  # the same faces
        first, second = g.get_latent(one), g.get_latent(two)
        tiny = 32 * EPS64 * float(first.abs().max())
        for k in range(3):
            for slot in range(L):
                face = first[k] if slot < at[k] else second[k]
                torch.testing.assert_close(w_f[k, slot], face, rtol=0, atol=tiny)
        assert torch.equal(w[:3], w_f[:3])
        # where the share of the style is all, mixing has no part in it
        style = g.embed(z)
        torch.testing.assert_close(w[3:, 2], style, rtol=0, atol=32 * EPS64 * float(style.abs().max()))
        assert torch.equal(w[3:, 5], w_f[3:, 5])


def test_every_weight_of_the_generator_gets_a_gradient_in_each_of_its_phases() -> None:
    """Also from the shares with which a new run begins."""
    made = gan()
    with torch.no_grad():
        made.nets["G"].add_weight.fill_(0.5)  # type: ignore[union-attr,operator]
    for phase in made.phases:
        if phase.optimizer is made.optimizers["G"]:
            phase.optimizer = torch.optim.SGD(made.nets["G"].parameters(), lr=0.0)
    made.begin(batch_of(made.config, 0), 0)
    run_step(until_generator(made), 0, CPU)
    for name, value in made.nets["G"].named_parameters():
        assert value.grad is not None and bool(value.grad.any()), name
    fresh = Gan(settings(), CPU, torch.randn(2, 16))
    fresh.begin(batch_of(fresh.config, 1, torch.float32), 3)
    run_step(fresh.phases, 1, CPU)
    assert all(value.grad is not None for value in fresh.nets["G"].parameters())
    assert bool(fresh.nets["G"].add_weight.grad.any())  # type: ignore[union-attr]


def until_generator(made: Gan) -> list[Any]:
    """The phases of a step before path lengths."""
    return [phase for phase in made.phases if not phase.name.startswith("path ")]


def test_phases_train_their_own_networks_only() -> None:
    made = gan(torch.float32)
    judges = ("D_face", "D_style", "D_latent")
    seen = []
    for phase in made.phases:

        def noted(*inputs: Tensor, name: str = phase.name, loss: Callable[..., Any] = phase.loss) -> Any:
            assert not any(x.requires_grad for x in inputs)
            trainable = {name for name, net in made.nets.items() if any(p.requires_grad for p in net.parameters())}
            seen.append((name, trainable))
            return loss(*inputs)

        phase.loss = noted
    made.begin(batch_of(made.config, 0, torch.float32), 0)
    run_step(made.phases, 0, CPU)
    assert seen == [
        ("paintings", set()),
        *((name, {name}) for name in judges),
        *((f"{name}, penalty", {name}) for name in judges),
        *((name, {"G"}) for name in ("generator", "path lengths", "path length penalty")),
    ]


def test_shares_stay_within_0_and_1_in_the_average_too() -> None:
    made = gan(torch.float32, lr=0.5)
    assert made.ema is not None
    live, mean = (net.get_parameter("add_weight").detach() for net in (made.nets["G"], made.ema.nets["G"]))
    ends = set()
    for index in range(4):
        made.begin(batch_of(made.config, index, torch.float32), 3 * index)
        first = until_generator(made)
        for part in (first, [phase for phase in made.phases if phase not in first]):  # behind each of its steps
            run_step(part, index, CPU)
            assert float(live.min()) >= 0 and float(live.max()) <= 1
            ends |= {0.0, 1.0} & set(live.flatten().tolist())
        made.ema.update(3)
        assert float(mean.min()) >= 0 and float(mean.max()) <= 1
    assert ends == {0.0, 1.0}  # it was needed


def test_the_style_encoder_is_nobodys_to_train() -> None:
    encoder = small_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items() if isinstance(value, Tensor)}
    made = Gan(settings(), CPU, torch.randn(4, 16), encoder=encoder)
    batch = batch_of(made.config, 0, torch.float32)
    made.begin(Batch(batch.faces, batch.art, torch.empty(0)), 0)
    run_step(made.phases, 0, CPU)
    assert made.ema is not None and set(made.ema.nets) == {"G"}
    own = {id(value) for value in encoder.parameters()}
    for optimizer in made.optimizers.values():
        assert not own & {id(value) for group in optimizer.param_groups for value in group["params"]}
    held = {
        id(value) for optimizer in made.optimizers.values() for g in optimizer.param_groups for value in g["params"]
    }
    assert held == {id(value) for net in made.nets.values() for value in net.parameters()}
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items() if name in before)
    assert all(value.grad is None for value in encoder.parameters())
    assert set(made.state_dict()["nets"]) == {"G", "D_face", "D_style", "D_latent"}
    assert not any(name.startswith("embedder") for name in made.state_dict()["nets"]["G"])


def test_draws_of_a_step() -> None:
    """By seed, step and purpose; z is N(0, 1), a second face counts from any slot 1 to L - 1, in nine of ten."""
    made, count = gan(torch.float32, batch=4), 500
    made.batch = batch_of(made.config, 0, torch.float32)
    seen: list[list[Tensor]] = [[], [], []]
    for step in range(count):
        made.steps = step
        for k, value in enumerate(made._draws(0, 4)[:3]):
            seen[k].append(value)
    one, two, at = (torch.stack(values) for values in seen)
    z = torch.stack([one, two])
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel()) and abs(float(z.var()) - 1) < 5 * math.sqrt(2 / z.numel())
    for a, b in ((z[0], z[1]), (z[:, 1:], z[:, :-1]), (z[:, :, 1:], z[:, :, :-1])):
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())
    often = torch.bincount(at.flatten(), minlength=L + 1) / at.numel()
    assert often[0] == 0
    for slot in range(1, L + 1):
        chance = 0.1 if slot == L else 0.9 / (L - 1)
        assert abs(float(often[slot]) - chance) < 5 * math.sqrt(chance * (1 - chance) / at.numel()), slot
    made.steps = 7
    again = Gan(made.config, CPU, torch.randn(2, 16))
    again.steps = 7
    first, same, other = made._draws(0, 4), again._draws(0, 4), made._draws(1, 4)
    assert all(torch.equal(x, y) for x, y in zip(first, same, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True) if x.is_floating_point())
    noise = first[3:]
    assert [x.shape for x in noise] == [(8, 1, s, s) for s in (4, 8, 8, 16, 16, 32, 32, 64, 64)]
    assert all(len({float(row.sum()) for row in x}) == 8 for x in noise)  # natural and stylized ones have their own
    again = Gan(settings(batch=4, seed=1), CPU, torch.randn(2, 16))
    again.steps = 7
    assert not torch.equal(again._draws(0, 4)[0], first[0])


def test_draws_are_shared_by_processes() -> None:
    """A process has its part of the joined batch's: natural and stylized pictures of its own faces."""
    whole, parts = gan(batch=4), [gan(batch=4, team=Team(CPU, rank, 2)) for rank in range(2)]
    joined, pieces = whole._draws(0, 4), [part._draws(0, 2) for part in parts]
    for k, value in enumerate(joined):
        kinds = 1 if k < 3 else 2
        found = [piece[k].unflatten(0, (kinds, -1)) for piece in pieces]
        assert torch.equal(torch.cat(found, 1).flatten(0, 1), value)


def test_other_pictures_codes_come_from_all_of_the_queue() -> None:
    made = gan(batch=4, queue=6)
    held = made.queue.codes.copy_(normal(6, 16, seed=8)).clone()
    made.queue.put = lambda codes: None  # type: ignore[method-assign]
    counts = torch.zeros(6)
    for index in range(300):
        made.begin(batch_of(made.config, 0), 4 * index)
        made.drawn()
        others = made._others
        counts += (others[:, None] == held).all(2).sum(0)
    assert float(counts.sum()) == 1200
    assert bool(((counts / 1200 - 1 / 6).abs() < 5 * math.sqrt(5 / 36 / 1200)).all())


def test_the_queue_is_filled_before_the_first_step() -> None:
    """With codes drawn from those given, as the seed says."""
    given = normal(40, 16, dtype=torch.float32)
    made, other, third = (Gan(settings(queue=30, seed=seed), CPU, given).queue.codes for seed in (0, 0, 1))
    assert made.shape == (30, 16) and torch.equal(made, other) and not torch.equal(made, third)
    places = (made[:, None] == given).all(2)
    assert bool(places.any(1).all()) and 12 < int(places.any(0).sum()) < 30  # with replacement: 21 of 40 in the mean


# --- stage gan: one picture, several kinds of codes, going on


def test_the_one_picture_is_never_put_into_the_queue(tmp_path: Path) -> None:
    art = str(picture(tmp_path / "art.png", 1, (64, 64)))
    made = gan(one_shot=art, start_from="run", batch=1)
    held = made.queue.codes.clone()
    for index in range(3):
        made.begin(batch_of(made.config, index), index)
        run_step(made.phases, index, CPU)
    assert torch.equal(made.queue.codes, held) and made.queue.next == 0
    with one_thread():
        made = gan(one_shot=art, start_from="run", batch=1)
        check_gan(made, PlainGan(made), 2)


def go_on(made: Any, index: int, batch: Any, count: int) -> dict[str, Tensor]:
    made.begin(batch, index * count)
    found = run_step(made.phases, index, CPU)
    if made.ema is not None:
        made.ema.update(count)
    return found


def test_stage_gan_goes_on_from_a_checkpoint() -> None:
    """Bit for bit: networks, moments, queue, mean lengths and average; draws depend on the step alone."""
    made, other = gan(torch.float32), gan(torch.float32, seed=0)
    for index in range(3):
        go_on(made, index, batch_of(made.config, index, torch.float32), 3)
    state = copy.deepcopy(made.state_dict())
    assert made.ema is not None and other.ema is not None
    assert set(state) == {"stage", "nets", "optim", "queue", "paths"} and float(state["paths"]["face"]["mean"]) > 0
    other.load_state_dict(state)
    other.ema.load_state_dict(copy.deepcopy(made.ema.state_dict()))
    for index in range(3, 5):
        for one in (made, other):
            go_on(one, index, batch_of(one.config, index, torch.float32), 3)
    truth = gan_state(made)
    assert all(torch.equal(value, truth[name]) for name, value in gan_state(other).items())
    assert torch.equal(made.queue.codes, other.queue.codes) and made.queue.next == other.queue.next
    assert all(torch.equal(made.paths[name].mean, path.mean) for name, path in other.paths.items())
    wider = Gan(settings(base_channels=16), CPU, torch.randn(4, 16))
    with pytest.raises(CheckpointError, match="does not fit these networks"):
        wider.load_state_dict(state)


def test_checkpointing_changes_no_bit() -> None:
    kept, again = (gan(torch.float32, checkpointing=on) for on in (False, True))
    for index in range(2):
        for made in (kept, again):
            go_on(made, index, batch_of(made.config, index, torch.float32), 3)
    truth = gan_state(kept)
    assert all(torch.equal(value, truth[name]) for name, value in gan_state(again).items())


@pytest.mark.parametrize("where", ["faces", "art"])
def test_a_step_that_is_not_finite_changes_nothing_from_there_on(where: str) -> None:
    """The phases before have run as always; the next step is as good as any."""
    made = gan(torch.float32)
    go_on(made, 0, batch_of(made.config, 0, torch.float32), 3)
    truth = gan_state(made)
    bad = batch_of(made.config, 1, torch.float32)
    getattr(bad, where)[1].fill_(math.nan)
    made.begin(bad, 3)
    wrong = "D_face" if where == "faces" else "D_style"
    with pytest.raises(NotFinite, match=f"loss of phase {wrong} is nan"):
        run_step(made.phases, 1, CPU)
    done = {"D_face"} if where == "art" else set()
    now = gan_state(made)
    for name in made.nets:
        same = [torch.equal(now[key], value) for key, value in truth.items() if key.startswith(f"weights {name} ")]
        assert not any(same) if name in done else all(same), name
    assert bool(made.queue.codes.isfinite().all())
    found = go_on(made, 2, batch_of(made.config, 2, torch.float32), 3)
    assert all(bool(value.isfinite()) for value in found.values())


def test_bfloat16_on_the_cpu() -> None:
    """Losses are those of float32 up to the rounding of maps to 8 bits; penalties are computed in float32."""
    single, half = (gan(torch.float32, lr=0.0) for _ in range(2))
    for made in (single, half):
        made.begin(batch_of(made.config, 0, torch.float32), 0)
    truth, found = run_step(single.phases, 0, CPU), run_step(half.phases, 0, CPU, "bf16")
    assert set(found) == set(truth)
    for name, value in truth.items():
        assert found[name].dtype == torch.float32
        if not name.startswith(("path", "r1")):
            # a generator and a discriminator of some 15 layers each, three roundings in a layer, which add up like
            # the root of their number
            assert abs(float(found[name] - value)) <= 2**-8 * math.sqrt(3 * 30) * max(float(value), 1.0), name
    assert any(float(found[name]) != float(value) for name, value in truth.items())
    assert all(p.dtype == torch.float32 for p in half.nets["G"].parameters())


# --- data of stage gan


def small_encoder(config: Config | None = None) -> StyleEncoder:
    torch.manual_seed(0)
    encoder = build_style_encoder(config or settings(), load_backbone("random"))
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """6 faces and 5 style pictures of different sizes, and two faces to test with."""
    root = tmp_path_factory.mktemp("portraits")
    with own_cache(root / "cache"):
        for start, (name, count) in enumerate((("faces", 6), ("styles", 5), ("testA", 2))):
            for i in range(count):
                picture(root / "data" / name / f"{i}.png", 100 * start + i, (64 + 8 * (i % 2), 64))
        yield root / "data"


def all_of(folder: Path, side: int) -> Tensor:
    """A folder's pictures in [-1, 1]."""
    packed = pack(folder, side, how="crop")
    return to_float(packed.batch(range(len(packed))))


def places_of(images: Tensor, known: Tensor) -> list[tuple[int, int]]:
    """Which picture each one is, and whether mirrored."""
    found = []
    for image in images:
        for place, other in enumerate(known):
            if torch.equal(image, other):
                found.append((place, 0))
            elif torch.equal(image, other.flip(2)):
                found.append((place, 1))
    assert len(found) == len(images)
    return found


def test_codes_go_with_their_pictures_as_these_are_mirrored(data: Path) -> None:
    config = settings(batch=5)
    known = all_of(data / "styles", 64)
    others = all_of(data / "faces", 64)
    table = torch.arange(5 * 2 * 16).view(5, 2, 16).float()
    source = Pictures(data, config, CPU, codes=table)
    assert source.counts == (6, 5) and source.skipped() == {}
    seen, flips = [], []
    for _ in range(40):
        batch = source.next()
        where = places_of(batch.art, known)
        assert sorted(place for place, _ in where) == list(range(5))  # each once in an epoch
        assert torch.equal(batch.codes, torch.stack([table[place] for place in where]))
        faces = places_of(batch.faces, others)
        assert len({place for place, _ in faces}) == 5 or source._faces._drawn % 6  # an epoch's end lies in between
        flips += [(a[1], b[1]) for a, b in zip(where, faces, strict=True)]
        seen.append(where)
    art, face = (sum(pair[k] for pair in flips) / len(flips) for k in (0, 1))
    both = sum(a == b for a, b in flips) / len(flips)
    for often in (art, face, both):  # half of the time, and one tells nothing of the other
        assert abs(often - 0.5) < 5 * math.sqrt(0.25 / len(flips))
    assert seen[0] != seen[1]


def test_encoding_each_batch_is_the_table(data: Path) -> None:
    """The same losses, but for the order of sums in float32, which another batch may have."""
    encoder = small_encoder(settings(batch=4))
    table = tables.encode(encoder, pack(data / "styles", 64, how="crop"), CPU, batch=3)
    assert table["codes"].shape == (5, 2, 16) and table["codes"].dtype == torch.float32
    assert table["format"] == "anifast.blendgan.codes/1" and table["names"] == [f"{i}.png" for i in range(5)]
    c = settings(batch=4, lr=0.0)
    start = table["codes"].flatten(0, 1)
    with_table, without = Pictures(data, c, CPU, codes=table["codes"]), Pictures(data, c, CPU)
    one, other = Gan(c, CPU, start), Gan(c, CPU, start, encoder=encoder)
    for index in range(2):
        batches = with_table.next(), without.next()
        assert torch.equal(batches[0].art, batches[1].art) and batches[1].codes.numel() == 0
        found = [go_on(made, index, batch, 4) for made, batch in zip((one, other), batches, strict=True)]
        size = float(one.batch.codes.abs().max())
        # Gram matrices of five layers and two linear layers: some 32 sums behind one another
        allowed = 32 * torch.finfo(torch.float32).eps
        torch.testing.assert_close(one.batch.codes, other.batch.codes, rtol=0, atol=allowed * size)
        assert set(found[0]) == set(found[1])
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=100 * allowed, atol=100 * allowed)


def test_a_table_knows_its_pictures_and_encoder(data: Path, tmp_path: Path) -> None:
    encoder, packed = small_encoder(), pack(data / "styles", 64, how="crop")
    table, path = tables.encode(encoder, packed, CPU), tmp_path / "codes.pt"
    torch.save(table, path)
    found = tables.read(path)
    tables.check(found, path, tables.digest(encoder), packed)
    # the second column is that of the mirror image
    images = all_of(data / "styles", 64)
    eps = 32 * torch.finfo(torch.float32).eps * float(table["codes"].abs().max())
    torch.testing.assert_close(found["codes"][:, 1], encoder(images.flip(3)), rtol=0, atol=eps)
    assert float((found["codes"][:, 0] - found["codes"][:, 1]).abs().max()) > 100 * eps
    with torch.no_grad():
        encoder.embedder_mlp[1].bias.add_(1e-3)  # type: ignore[union-attr,operator]
    with pytest.raises(CheckpointError, match=r"codes.pt: .* of another encoder; make them anew by --stage codes"):
        tables.check(found, path, tables.digest(encoder), packed)
    with pytest.raises(DataError, match="styles holds other pictures"):
        tables.check(found, path, found["encoder"], pack(data / "faces", 64, how="crop"))
    for other in (
        {"format": "x"},
        table | {"codes": torch.zeros(5, 16)},
        {k: v for k, v in table.items() if k != "codes"},
    ):
        torch.save(other, path)
        with pytest.raises(CheckpointError, match="no table of style codes"):
            tables.read(path)
    with torch.no_grad():
        encoder.embedder_mlp[1].bias.fill_(math.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(CheckpointError, match="codes that are not finite"):
        tables.encode(encoder, packed, CPU)


def test_batches_come_back_and_are_shared(data: Path) -> None:
    config = settings(batch=4)
    table = torch.randn(5, 2, 16)
    whole, parts = Pictures(data, config, CPU, codes=table), [
        Pictures(data, config, CPU, Team(CPU, rank, 2), table) for rank in range(2)
    ]  # fmt: skip
    for _ in range(3):
        joined, pieces = whole.next(), [part.next() for part in parts]
        for k, value in enumerate(joined):
            assert torch.equal(torch.cat([piece[k] for piece in pieces]), value)
    assert whole.state_dict() == parts[0].state_dict() == parts[1].state_dict()
    again = Pictures(data, config, CPU, codes=table)
    again.load_state_dict(whole.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(again.next(), whole.next(), strict=True))
    other = Pictures(data, settings(batch=4, seed=1), CPU, codes=table).next()
    assert not torch.equal(other.art, Pictures(data, config, CPU, codes=table).next().art)
    shown = whole.samples(3)
    assert [len(x) for x in shown] == [2, 3]  # testA, and of the styles some


def test_the_one_picture_and_its_mirror_image(data: Path, tmp_path: Path) -> None:
    art = picture(tmp_path / "art.png", 7, (90, 64))
    config = settings(batch=2, one_shot=str(art), start_from="run")
    one, table = the_picture(str(art), 64), torch.randn(1, 2, 16)
    assert one.shape == (1, 3, 64, 64) and float(one.abs().max()) <= 1
    source = Pictures(data, config, CPU, codes=table)
    assert source.counts == (6, 1) and source.skipped() == {}
    flips = []
    for _ in range(60):
        place = copy.deepcopy(source.state_dict())
        batch = source.next()
        where = places_of(batch.art, one)
        assert torch.equal(batch.codes, torch.stack([table[p] for p in where]))
        flips += [mirrored for _, mirrored in where]
    assert abs(sum(flips) / len(flips) - 0.5) < 5 * math.sqrt(0.25 / len(flips))
    again = Pictures(data, config, CPU, codes=table)
    again.load_state_dict(place)
    assert all(torch.equal(x, y) for x, y in zip(again.next(), batch, strict=True))
    parts = [Pictures(data, config, CPU, Team(CPU, rank, 2), table) for rank in range(2)]
    whole = Pictures(data, config, CPU, codes=table)
    for _ in range(4):
        joined, pieces = whole.next(), [part.next() for part in parts]
        assert all(torch.equal(torch.cat([piece[k] for piece in pieces]), joined[k]) for k in range(3))
    photos_shown, art_shown = source.samples(3)
    assert len(photos_shown) == 2 and torch.equal(art_shown, one)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.png"):
        Pictures(data, settings(one_shot=str(tmp_path / "text.png"), start_from="run"), CPU)


def test_folders_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="styles: 5 pictures that can be read, and a batch has 6.*take --batch 5"):
        Pictures(data, settings(batch=6), CPU)
    (tmp_path / "faces").mkdir()
    with pytest.raises(DataError, match="faces"):  # it is empty
        Pictures(tmp_path, settings(), CPU)
    (tmp_path / "faces").rmdir()
    (tmp_path / "faces").symlink_to(data / "faces")
    with pytest.raises(DataError, match=r"no folder styles \(nor trainB\)\. Expected .*styles with pictures of art"):
        Pictures(tmp_path, settings(), CPU)
    (tmp_path / "trainB").symlink_to(data / "styles")  # either name
    assert Pictures(tmp_path, settings(), CPU).counts == (6, 5)
    with pytest.raises(AnifastError, match="3 cannot be shared out evenly over 2 processes"):
        Pictures(data, settings(batch=3), CPU, Team(CPU, 0, 2))
    source = Pictures(data, settings(), CPU)
    state = source.state_dict()
    picture(tmp_path / "more" / "styles" / "0.png", 1, (64, 64))
    for i in range(5):
        picture(tmp_path / "more" / "styles" / f"{i}.png", 50 + i, (64, 64))
    (tmp_path / "more" / "faces").symlink_to(data / "faces")
    with pytest.raises(DataError, match="styles holds other pictures under the same names"):
        Pictures(tmp_path / "more", settings(), CPU).load_state_dict(state)


def test_sample_sheet_of_stage_gan(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faces, natural and in styles by several indicators; fewer photos than columns are repeated."""
    from anifast.systems.blendgan import training

    shown = []
    original = training.sheet
    monkeypatch.setattr(training, "sheet", lambda blocks, **named: (shown.append(blocks), original(blocks, **named))[1])
    c = settings()
    photos_, art = Pictures(data, c, CPU).samples(6)
    made = Gan(c, CPU, torch.randn(4, 16), (photos_, art, torch.randn(len(art), 16)))
    image = made.sheet()
    ((block,),) = shown
    labels = [label for label, _ in block.rows]
    assert labels[:3] == ["photos", "styles", "natural faces"] and "in styles, 0" in labels and "in styles, 6" in labels
    assert all(row.shape == (6, 3, 64, 64) for _, row in block.rows) and min(image.size) > 64 * 6
    # the average is the generator at first, whose shares are 1: no style can be seen yet
    assert torch.equal(dict(block.rows)["in styles, 0"], dict(block.rows)["in styles, 4"])
    with pytest.raises(ValueError, match="no pictures were given"):
        Gan(c, CPU, torch.randn(4, 16)).sheet()


# --- stage style


def style(dtype: torch.dtype = torch.float64, team: Team | None = None, **changes: Any) -> Style:
    c = settings(**changes)
    made = Style(c, c.style_batch, CPU, team=team)
    unlike_at_first({"mlp": made.encoder.embedder_mlp, "projector": made.projector})
    for net in made.nets.values():
        net.to(dtype)
    return made


class PlainStyle:
    """Iterations of the contrastive training on whole Gram matrices: Adam on both of a pair of mirrored weights."""

    def __init__(self, made: Style, first: Tensor) -> None:
        self.config, self.net = made.config, copy.deepcopy(made.encoder.embedder.net)
        self.layers = made.encoder.embedder.layers
        self.prepared = made.encoder.embedder.normalisation
        self.first = nn.Parameter(first)
        self.rest = copy.deepcopy(made.encoder.embedder_mlp)
        self.head = copy.deepcopy(made.projector)
        self.rest[0].weight = None  # type: ignore[index,union-attr]
        parameters = [self.first, *(p for net in (self.rest, self.head) for p in net.parameters())]
        for value in parameters:
            value.requires_grad_(True)
        self.adam = torch.optim.Adam(parameters, lr=made.config.style_lr, betas=(0.0, 0.99), foreach=False)

    def nets(self) -> dict[str, nn.Module]:
        return {"first": nn.ParameterList([self.first]), "rest": self.rest, "head": self.head}

    def linear(self, layer: Any, x: Tensor, weight: Tensor, act: bool) -> Tensor:
        y = x @ (weight / math.sqrt(weight.shape[1])).T + layer.bias
        return math.sqrt(2) * F.leaky_relu(y, 0.2) if act else y

    def step(self, views: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            grams = []
            for maps in self.net.taps(self.prepared(views), self.layers):
                flat = maps.flatten(2)
                grams.append((flat @ flat.transpose(1, 2) / flat[0].numel()).flatten(1))
        x = torch.cat(grams, 1)
        x = self.linear(self.rest[0], x, self.first, True)
        z = self.linear(self.rest[1], x, self.rest[1].weight, False)  # type: ignore[arg-type]
        p = self.linear(self.head.projector[0], z, self.head.projector[0].weight, True)  # type: ignore[arg-type]
        p = self.linear(self.head.projector[1], p, self.head.projector[1].weight, False)  # type: ignore[arg-type]
        u = p / p.pow(2).sum(1, keepdim=True).sqrt()
        cosines, n = u @ u.T, len(p) // 2
        losses, right = [], 0
        for j in range(2 * n):
            k = (j + n) % (2 * n)
            rest = [m for m in range(2 * n) if m != j]
            losses.append(
                torch.logsumexp(cosines[j, rest] / self.config.temperature, 0) - cosines[j, k] / self.config.temperature
            )
            right += max(rest, key=cosines[j].tolist().__getitem__) == k
        loss = torch.stack(losses).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        norm = z.detach().pow(2).sum(1).sqrt().mean()
        return {"contrast": loss.detach(), "norm": norm, "recognised": torch.tensor(right / (2 * n))}


def style_weights(made: Style) -> dict[str, Tensor]:
    nets = {"mlp": made.encoder.embedder_mlp, "projector": made.projector}
    return {f"{n} {k}": v.detach().clone() for n, net in nets.items() for k, v in net.named_parameters()}


@pytest.mark.parametrize("folded", [True, False])
def test_steps_of_stage_style(folded: bool) -> None:
    """Five steps, folded or not, are those of the whole predictor."""
    made = style(folded=folded)
    channels = made.encoder.embedder.channels
    whole = style(folded=False).encoder.first_weight.detach().clone()
    if folded:
        with torch.no_grad():
            made.encoder.first_weight.copy_(fold_weight(whole, channels))
    plain = PlainStyle(made, whole)
    near = copy.deepcopy(plain)
    move_by_an_ulp(near.nets())
    begun, frozen = style_weights(made), copy.deepcopy(made.encoder.embedder.net.state_dict())
    apart, rounding = 0.0, EPS64
    with one_thread():
        for index in range(5):
            views = smooth(8, index, 32)
            made.begin(views, 4 * index)
            found = run_step(made.phases, index, CPU)
            expected, other = plain.step(views), near.step(views)
            assert set(found) == set(expected) == {"contrast", "norm", "recognised"}
            assert float(found["recognised"]) == float(expected["recognised"])
            for name in ("contrast", "norm"):
                apart = max(apart, float(abs(found[name] / expected[name] - 1)))
                rounding = max(rounding, float(abs(other[name] / expected[name] - 1)))
    assert apart <= SUMS * rounding < 1e-9, (apart, rounding)

    def weights_of(one: PlainStyle) -> dict[str, Tensor]:
        found = {f"mlp {k}": v.detach() for k, v in one.rest.named_parameters()}
        found |= {f"projector {k}": v.detach() for k, v in one.head.named_parameters()}
        return found | {"mlp 0.weight": fold_weight(one.first.detach(), channels) if folded else one.first.detach()}

    mine, truth = style_weights(made), weights_of(plain)
    usual, moved = deviations(weights_of(near), truth), deviations(truth, begun)
    for kind, error in deviations(mine, truth).items():
        assert error <= SUMS * usual[kind] < 1e-6 * moved[kind], kind
    assert all(
        torch.equal(v, frozen[k]) for k, v in made.encoder.embedder.net.state_dict().items() if isinstance(v, Tensor)
    )


def test_stage_style_goes_on_from_a_checkpoint() -> None:
    made, other = style(torch.float32), style(torch.float32)
    for index in range(2):
        go_on(made, index, smooth(8, index, 32, torch.float32), 4)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for index in range(2, 4):
        for one in (made, other):
            go_on(one, index, smooth(8, index, 32, torch.float32), 4)
    truth = state_of(made.nets, made.optimizers)
    assert all(torch.equal(value, truth[name]) for name, value in state_of(other.nets, other.optimizers).items())
    assert made.state_dict()["batch"] == 4 and made.state_dict()["stage"] == "style"


def test_views_of_a_step(data: Path, tmp_path: Path) -> None:
    """Two of each of the batch's pictures, all by numbers of their own; shared by processes, and resumed."""
    config = settings(style_batch=4)
    source = Views(data, config, 4, CPU)
    batch = source.next()
    assert batch.shape == (8, 3, 32, 32) and float(batch.abs().max()) <= 1
    assert all(not torch.equal(batch[j], batch[k]) for j in range(8) for k in range(j))
    for i in range(5):  # pictures of one colour keep it
        (tmp_path / "styles").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (50 * i, 255 - 50 * i, 100)).save(tmp_path / "styles" / f"{i}.png")
    colours = Views(tmp_path, config, 4, CPU).next().mean((2, 3))
    places = ((colours[:, 0] + 1) * 127.5 / 50).round().int().tolist()
    assert places[:4] == places[4:] and len(set(places)) == 4
    parts = [Views(data, config, 4, CPU, Team(CPU, rank, 2)) for rank in range(2)]
    whole = Views(data, config, 4, CPU)
    for _ in range(3):
        joined, pieces = whole.next(), [part.next() for part in parts]
        halves = [piece.unflatten(0, (2, 2)) for piece in pieces]
        assert torch.equal(torch.cat(halves, 1).flatten(0, 1), joined)
    assert whole.state_dict() == parts[0].state_dict() == parts[1].state_dict()
    again = Views(data, config, 4, CPU)
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again.next(), whole.next())
    assert not torch.equal(Views(data, settings(seed=1), 4, CPU).next(), batch)


def test_too_few_style_pictures(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="styles: 5 pictures that can be read, and a batch has 6.*--style-batch 5"):
        Views(data, settings(), 6, CPU)
    picture(tmp_path / "styles" / "0.png", 1)
    with pytest.raises(DataError, match="1 pictures that can be read.*at least 2"):
        Views(tmp_path, settings(), 4, CPU)
    with pytest.raises(DataError, match="1 pictures that can be read.*at least 2"):
        Views(tmp_path, settings(), 1, CPU)


def test_sample_sheet_of_stage_style(data: Path) -> None:
    c = settings()
    source = Views(data, c, 4, CPU)
    for count in (1, 2, 5):
        image = Style(c, 4, CPU, source.shown(count)).sheet()
        assert min(image.size) > 32
    with pytest.raises(ValueError, match="no pictures were given"):
        Style(c, 4, CPU).sheet()


def test_missing_weights_of_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to put where."""
    monkeypatch.setenv("ANIFAST_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("ANIFAST_SHARED", str(tmp_path / "shared"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(AnifastError, match=r"vgg19-dcbb9e9d\.pth") as caught:
        Style(settings(backbone="vgg19", style_side=32), 4, CPU)
    assert "no network" in str(caught.value) and str(tmp_path / "torch") in str(caught.value)
    with pytest.raises(AnifastError, match=r"nothing\.pth"):
        Style(settings(backbone="vgg19", backbone_weights=str(tmp_path / "nothing.pth")), 4, CPU)


# --- stage psp


@pytest.fixture
def narrow_psp(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of photos with 16 channels wherever the published one has 64 to 512."""
    narrow_groups(monkeypatch.setattr)


def narrow_groups(put: Callable[[Any, str, Any], None]) -> None:
    put(psp, "GROUPS", ((16, 3), (16, 4), (16, 14), (16, 3)))


def invert(dtype: torch.dtype = torch.float64, team: Team | None = None, **changes: Any) -> Inversion:
    c = settings(**{"psp_batch": 4, "psp_lr": 1e-3} | changes)
    torch.manual_seed(0)
    g = build_generator(c)
    nn.init.normal_(g.style[-1].bias, std=10.0)  # type: ignore[arg-type,index,union-attr]
    unlike_at_first({"G": g})
    made = Inversion(c, g, CPU, team=team)
    unlike_at_first({"psp": made.encoder})
    for net in (made.encoder, made.generator, made.lpips):
        if net is not None:
            net.to(dtype)
    given = made.given
    made.given = lambda: tuple(x.to(dtype) for x in given())  # type: ignore[method-assign]
    made.phases[0].inputs = made.given
    return made


class Known(nn.Module):
    """A face recognition that costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(6, 3, 8, 8, seed=9) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(F.conv2d(x, self.weight, stride=8).tanh().flatten(1), dim=1)


@pytest.mark.parametrize("name", ["all losses", "squared error alone"])
@pytest.mark.usefixtures("narrow_psp")
def test_steps_of_stage_psp(name: str) -> None:
    """MSE + 0.8 LPIPS + 0.1 identity + 0.005 distance from the mean, at the encoder's side; the generator at i = L."""
    every = name == "all losses"
    made = invert(**({"lambda_w": 0.005, "lambda_id": 0.1} if every else {"lpips_net": "none"}))
    made.recognition = Known().requires_grad_(False) if every else None  # type: ignore[assignment]
    c, encoder = made.config, copy.deepcopy(made.encoder).requires_grad_(True)
    near = copy.deepcopy(encoder)
    move_by_an_ulp({"psp": near})
    sides = [(net, Ranger(list(net.parameters()), 1e-3)) for net in (encoder, near)]
    before = {k: v.clone() for k, v in made.generator.state_dict().items()}
    begun = state_of({"psp": encoder}, {})
    draws, apart, rounding = recorded(made), 0.0, EPS64
    with one_thread():
        for index in range(3):
            x = smooth(4, index, 32)
            made.begin(x, 4 * index)
            found = run_step(made.phases, index, CPU)
            both = []
            for net, ranger in sides:
                images, *noise = draws["inversion"]
                assert torch.equal(images, x)
                w = net(x)
                y, _ = made.generator(w, input_is_latent=True, noise=noise)
                y = F.avg_pool2d(y, 2)
                parts = {"l2": (y - x).pow(2).mean(), "w_norm": (w - net.latent_avg).flatten(1).norm(dim=1).mean()}
                loss = parts["l2"]
                if every:
                    assert made.lpips is not None and made.recognition is not None
                    parts["lpips"] = made.lpips(y, x).mean()  # without heads: the sum over five layers of 2 - 2 cos
                    parts["identity"] = (1 - (made.recognition(y) * made.recognition(x)).sum(1)).mean()
                    loss = loss + 0.8 * parts["lpips"] / 10 + 0.1 * parts["identity"] + 0.005 * parts["w_norm"]
                parts["inversion"] = loss
                ranger.zero_grad()
                loss.backward()
                ranger.step()
                both.append({key: value.detach() for key, value in parts.items()})
            expected, other = both
            assert set(found) == set(expected)
            for key, value in expected.items():
                apart = max(apart, float(abs(found[key] / value - 1)))
                rounding = max(rounding, float(abs(other[key] / value - 1)))
    assert apart <= SUMS * rounding < 1e-9, (apart, rounding)
    truth = state_of({"psp": encoder}, {})
    usual, moved = deviations(state_of({"psp": near}, {}), truth), deviations(truth, begun)
    mine = deviations(state_of(made.nets, {}), truth)
    assert mine["weights psp"] <= SUMS * usual["weights psp"] < 1e-6 * moved["weights psp"]
    assert all(torch.equal(v, before[k]) for k, v in made.generator.state_dict().items())
    assert not any(p.requires_grad for p in made.generator.parameters())
    assert all(p.grad is not None for p in made.encoder.parameters())
    for key, value in made.encoder.named_buffers():  # batch norms learn in training
        if key.endswith("running_mean"):
            assert bool(value.any()), key
    assert c.psp_side == 32


@pytest.mark.usefixtures("narrow_psp")
def test_stage_psp_goes_on_from_a_checkpoint() -> None:
    """Bit for bit, over a step of lookahead: slow weights and batch norms' means are in it."""
    made, other = invert(torch.float32, lpips_net="none"), invert(torch.float32, lpips_net="none")
    for index in range(4):
        go_on(made, index, smooth(4, index, 32, torch.float32), 4)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for index in range(4, 8):
        for one in (made, other):
            go_on(one, index, smooth(4, index, 32, torch.float32), 4)
    truth = made.encoder.state_dict()
    assert all(torch.equal(value, truth[name]) for name, value in other.encoder.state_dict().items())
    assert set(made.state_dict()["nets"]) == {"psp"}


@pytest.mark.usefixtures("narrow_psp")
def test_batch_norms_forget_a_step_that_was_not_finite() -> None:
    """Weights have not moved; what the forward pass has left behind is taken back before the next step."""
    made, other = invert(torch.float32, lpips_net="none"), invert(torch.float32, lpips_net="none")
    bad = smooth(4, 1, 32, torch.float32)
    bad[2, 0, 5, 5] = math.nan
    for index, one in ((0, made), (0, other)):
        go_on(one, index, smooth(4, 0, 32, torch.float32), 4)
    made.begin(bad, 4)
    with pytest.raises(NotFinite, match="loss of phase inversion is nan"):
        run_step(made.phases, 1, CPU)
    for one in (made, other):
        go_on(one, 2, smooth(4, 2, 32, torch.float32), 4)
    truth = other.encoder.state_dict()
    for name, value in made.encoder.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, truth[name]), name


@pytest.mark.usefixtures("narrow_psp")
def test_the_encoder_starts_from_the_mean_code() -> None:
    """That of many random faces, or of the generator's file; without training its codes lie around it."""
    made = invert()
    mean = made.encoder.latent_avg
    assert mean.shape == (L, 16) and all(torch.equal(row, mean[0]) for row in mean)
    g = made.generator
    w = torch.cat([g.get_latent(normal(10_000, 16, seed=k)) for k in range(4)])
    # both are means of independent codes
    deviation = w.std(0) * math.sqrt(1 / 100_000 + 1 / 40_000)
    assert bool(((w.mean(0) - mean[0]).abs() < 5.5 * deviation).all()) and float((mean[0].abs() / deviation).max()) > 50
    given = normal(L, 16, dtype=torch.float32)
    other = Inversion(settings(psp_batch=2), build_generator(settings()), CPU, latent_avg=given)
    assert torch.equal(other.encoder.latent_avg, given)
    torch.manual_seed(3)
    one = mean_code(g, 25_000)
    torch.manual_seed(3)
    parts = [g.get_latent(torch.randn(n, 16)).double() for n in (10_000, 10_000, 5_000)]
    torch.testing.assert_close(one[4].double(), torch.cat(parts).mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("narrow_psp")
def test_the_body_of_a_face_recognition_is_taken_over(tmp_path: Path) -> None:
    """Input layer and body of ArcFace's IR-SE50, or of another pSp encoder with whatever heads fit."""
    c, mean = settings(psp_batch=2), torch.zeros(L, 16)
    plain = Inversion(c, build_generator(c), CPU, latent_avg=mean).encoder.state_dict()
    torch.manual_seed(5)
    body = {name: torch.randn(value.shape).to(value.dtype) for name, value in plain.items()}
    arcface = {name: value for name, value in body.items() if name.startswith(("input_layer.", "body."))}
    arcface |= {"output_layer.3.weight": torch.zeros(4, 4)}
    others = {f"encoder.{name}": value for name, value in body.items()} | {"decoder.x": torch.zeros(2)}
    others["encoder.styles.3.linear.weight"] = torch.zeros(4, 4)
    for number, (held, heads) in enumerate(((arcface, False), ({"state_dict": others}, True), (body, True))):
        torch.save(held, tmp_path / f"{number}.pt")
        own = settings(psp_batch=2, psp_start=str(tmp_path / f"{number}.pt"))
        made = Inversion(own, build_generator(c), CPU, latent_avg=mean)
        for name, value in made.encoder.state_dict().items():
            taken = name.startswith(("input_layer.", "body.")) or heads
            if name == "latent_avg" or (number == 1 and name == "styles.3.linear.weight"):
                taken = False
            assert torch.equal(value, body[name] if taken else plain[name]), name
    del arcface["body.3.res_layer.1.weight"]
    for held in (arcface, {"weight": torch.zeros(3)}):
        torch.save(held, tmp_path / "part.pt")
        with pytest.raises(CheckpointError, match=r"part\.pt: no IR-SE50: \d+ of its \d+ tensors are missing, such as"):
            Inversion(settings(psp_batch=2, psp_start=str(tmp_path / "part.pt")), build_generator(c), CPU)
    with pytest.raises(AnifastError, match=r"nowhere\.pth"):
        Inversion(settings(psp_batch=2, psp_start=str(tmp_path / "nowhere.pth")), build_generator(c), CPU)


@pytest.mark.usefixtures("narrow_psp")
def test_perceptual_networks_whose_weights_are_missing(tmp_path: Path) -> None:
    c = settings(lpips_net="alex", lpips_weights=str(tmp_path / "alex.pth"))
    with pytest.raises(AnifastError, match=r"alex\.pth.*--lpips-net squeezenet1_0, random \(needs no file\) or none"):
        Inversion(c, build_generator(c), CPU)
    assert Inversion(settings(lambda_lpips=0.0), build_generator(c), CPU).lpips is None
    torch.save({"weight": torch.zeros(2)}, tmp_path / "ir.pth")
    c = settings(psp_side=256, identity_weights=str(tmp_path / "ir.pth"), lambda_id=0.1)
    with pytest.raises(CheckpointError, match=r"ir\.pth: not ArcFace's IR-SE50"):
        Inversion(c, build_generator(c), CPU)


def test_photos_of_stage_psp(data: Path) -> None:
    """Mirrored half of the time, in another order than stage gan's, shared and resumed as those."""
    config = settings(psp_batch=4)
    source, other = photos(data, config, CPU), Faces(pack(data / "faces", 32, how="crop"), "faces", 4, 0, 0, CPU)
    batch = source.next()
    assert batch.shape == (4, 3, 32, 32) and not torch.equal(batch, other.next()[0])
    places_of(batch, all_of(data / "faces", 32))
    parts = [photos(data, config, CPU, Team(CPU, rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat([part.next() for part in parts]), batch)
    with pytest.raises(DataError, match="faces: 6 pictures that can be read, and a batch has 7"):
        photos(data, settings(psp_batch=7), CPU)


# --- several processes


def without_comparison(put: Callable[[Any, str, Any], None]) -> None:
    """Discriminators compare the pictures of each process's part alone; here none, so that two can be one."""
    whole = stylegan2.minibatch_std
    put(stylegan2, "minibatch_std", lambda x: whole(x, 1))


def norm_alone(net: nn.Module) -> None:
    """In training batch norms see the pictures of each process's part: here each picture alone, so that two can be one.

    Their weights stay the same parameters.
    """
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = nn.GroupNorm(1, child.num_features)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(module, name, norm)


class Widened:
    """The data of a stage in float64."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def next(self) -> Any:
        batch = self.source.next()
        return Batch(*(x.double() for x in batch)) if isinstance(batch, Batch) else batch.double()


def trained_by(team: Team, root: Path, nudge: bool = False) -> dict[str, dict[str, Tensor]]:
    """Three steps of each stage in float64 on this process's part of each batch."""
    table = normal(5, 2, 16, seed=6)
    made: dict[str, tuple[Any, Any, int]] = {
        "gan": (gan(team=team, batch=4), Pictures(root, settings(batch=4), CPU, team, table), 4),
        "style": (style(team=team), Views(root, settings(), 4, CPU, team), 4),
        "psp": (invert(team=team, lpips_net="none"), photos(root, settings(psp_batch=4), CPU, team), 4),
    }
    found = {}
    for stage, (system, source, count) in made.items():
        if nudge:
            move_by_an_ulp(system.nets)
        if stage == "psp":
            norm_alone(system.encoder)
        losses = {}
        for index in range(3):
            system.begin(Widened(source).next(), index * count)
            scalars = run_step(system.phases, index, CPU, team=team)
            for name, value in scalars.items():
                mean = value.double().clone()
                team.average([mean])
                losses[f"losses {stage} {index} {name}"] = mean
        found[stage] = state_of(system.nets, system.optimizers) | losses
        if stage == "gan":
            found[stage]["queue gan"] = system.queue.codes.clone()
            found[stage] |= {f"lengths gan {name}": path.mean.clone() for name, path in system.paths.items()}
    return found


def running(team: Team, root: Path) -> dict[str, Tensor]:
    """What batch norms have seen after two steps of stage psp."""
    made = invert(team=team, lpips_net="none", psp_lr=0.0)
    source = photos(root, settings(psp_batch=4), CPU, team)
    for index in range(2):
        made.begin(source.next().double(), 4 * index)
        run_step(made.phases, index, CPU, team=team)
    return {name: value.clone() for name, value in made.encoder.named_buffers() if ".running_" in name}


def steps_of_two(team: Team, root: str, folder: str) -> None:
    for make_small in (without_winograd, without_comparison, narrow_groups):
        make_small(setattr)
    fewer_layers(dict.__setitem__)
    torch.save(trained_by(team, Path(root)), Path(folder) / f"{team.rank}.pt")
    torch.save(running(team, Path(root)), Path(folder) / f"norms {team.rank}.pt")


@pytest.mark.heavy
@pytest.mark.usefixtures("narrow_psp")
def test_two_processes_are_one_on_the_joined_batch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws, codes of other pictures, path lengths, contrasted views, and what outlives a step are of both."""
    two_processes("test_blendgan_training", "steps_of_two", tmp_path, str(data), str(tmp_path))
    without_comparison(monkeypatch.setattr)
    with one_thread():
        truth, near = (trained_by(Team(CPU), data, nudge) for nudge in (False, True))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for stage, expected in truth.items():
        assert all(torch.equal(value, second[stage][name]) for name, value in first[stage].items()), stage
        mine, usual = deviations(first[stage], expected), deviations(near[stage], expected)
        sizes = deviations(expected, {name: torch.zeros_like(value) for name, value in expected.items()})
        for kind, error in mine.items():
            allowed = SUMS * max(usual[kind], EPS64 * sizes[kind])
            if kind.startswith("weights") and stage != "psp":  # see check_gan; Ranger's first steps divide by nothing
                name, rate = ("E_style", 1e-2) if stage == "style" else (kind.split()[1][0], 2e-3)
                allowed += SUMS * usual[f"exp_avg {name}"] * rate / 1e-8 * 6
            assert error <= allowed < 1e-3 * max(1.0, sizes[kind]), (stage, kind, error, allowed)
    assert any("path_style" in name for name in truth["gan"]) and "queue gan" in truth["gan"]
    one, other = (torch.load(tmp_path / f"norms {rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())  # a checkpoint is either's
    sample = next(name for name in one if name.startswith("input_layer") and name.endswith("mean"))
    joined = running(Team(CPU), data)[sample]
    torch.testing.assert_close(one[sample], joined, rtol=1e-10, atol=1e-12)  # a mean of means is that of all
