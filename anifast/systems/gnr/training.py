"""Training GANs N' Roses: data, one step in three phases, and what a run shows of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anifast import systems
from anifast.data.domains import TwoDomains
from anifast.data.folders import to_float
from anifast.data.samplers import ClassSampler, integers
from anifast.engine.distributed import Team, alone
from anifast.engine.ema import EMA
from anifast.engine.loop import Phase, Plan
from anifast.engine.plots import Panel
from anifast.engine.sheets import Block, sheet
from anifast.engine.state import about, restore, stored
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.nn.stylegan2_layers import lay_out, without_autocast
from anifast.systems.gnr import checkpoints
from anifast.systems.gnr.augmentation import augment
from anifast.systems.gnr.config import Config
from anifast.systems.gnr.losses import adversarial, distance, gradient_penalty, style_consistency
from anifast.systems.gnr.networks import Generator, networks, recompute
from anifast.systems.losses import perceptual

#: The loss figure: all weighted.
PANELS = (
    Panel("generators, adversarial", ("g_adv_a", "g_adv_b", "g_latent")),
    Panel("discriminators", ("d_a", "d_b", "d_latent")),
    Panel("cycle", ("cycle_a", "cycle_b")),
    Panel("cycle, perceptual", ("lpips_a", "lpips_b")),
    Panel("style consistency", ("style_a", "style_b")),
    Panel("styles read back", ("style_rec_a", "style_rec_b")),
    Panel("identity", ("identity_a", "identity_b")),
    Panel("gradient penalty", ("r1",)),
)
#: Pictures per domain on a sample sheet.
SHOWN = {"cpu": 6, "cuda": 16}
#: Fewest pictures per domain and step of each of several processes, whose losses compare their own ones only.
LEAST = 4
#: Of a discriminator; also without the diversity head each of the others counts as one of them.
HEADS = 3
_DOMAINS = "ab"


class Batch(NamedTuple):
    """Pictures of one step, each [B,3,size,size] in [-1, 1].

    Attributes:
        a: one picture of A in B augmentations: the content batch.
        b: the same of B.
        aug_a: B pictures of A, augmented once each: the real batch.
        aug_b: the same of B.
    """

    a: Tensor
    b: Tensor
    aug_a: Tensor
    aug_b: Tensor


class Pictures(TwoDomains):
    """Content and real batches of both domains, augmented on the device.

    Args:
        root: the data folder.
        config: sizes, augmentation, batch, seed.
        device: where the batches go.
        team: the processes that share each batch; None: one.

    Raises:
        DataError: a folder of training pictures is missing, has fewer than a batch, or holds none that can be read.
        AnifastError: the batch cannot be shared out.
    """

    def __init__(self, root: Path, config: Config, device: torch.device, team: Team | None = None) -> None:
        self._team = team = team or alone(device)
        self._share = team.portion(config.batch)
        if team.world > 1 and self._share < LEAST:
            raise AnifastError(
                f"setting batch: {config.batch} leaves {self._share} pictures to each of {team.world} processes, whose "
                f"losses compare the pictures of their own batch; take at least {LEAST * team.world}"
            )
        super().__init__(root, config.size, config.size, how="crop")
        for name, packed in (("trainA", self.a), ("trainB", self.b)):
            if len(packed) < config.batch:
                held = "1 picture" if len(packed) == 1 else f"{len(packed)} pictures"
                smaller = f", or take --batch {len(packed)}" if len(packed) > 1 else " (at least 2)"
                raise DataError(
                    f"{root / name}: {held} that can be read, and a batch has {config.batch} different ones; add "
                    f"pictures{smaller}"
                )
        self._config, self._device = config, device
        self._samplers = [
            ClassSampler(
                np.zeros(len(packed), np.int64), self._share, (config.seed + domain) % 2**63, team.rank, team.world
            )
            for domain, packed in enumerate((self.a, self.b))
        ]
        self._drawn = 0

    def next(self) -> Batch:
        """This process's part of the next step's batches."""
        content, real = [], []
        for domain, packed in enumerate((self.a, self.b)):
            u8 = packed.batch(self._samplers[domain].next_batch()).to(self._device, non_blocking=True)
            images = to_float(u8)
            stream = f"content {_DOMAINS[domain]} {self._team.rank}"
            (one,) = integers(self._config.seed, stream, self._drawn, 1, self._share)
            content.append(self._augmented(images[int(one)].expand_as(images), 2 * domain))
            real.append(self._augmented(images, 2 * domain + 1))
        self._drawn += self._config.batch
        return Batch(*content, *real)

    def _augmented(self, images: Tensor, kind: int) -> Tensor:
        # A picture's augmentation depends on the run's seed, what it is for and its number in the run, on nothing else.
        number = self._drawn + self._team.rank * self._share
        first = (self._config.seed % 2**28) * 2**35 + kind * 2**33 + number
        return augment(images, torch.arange(first, first + self._share, device=self._device), self._config)

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, and which data it is."""
        return {"samplers": [one.state_dict() for one in self._samplers], "drawn": self._drawn, **self.digests()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: the folders hold other pictures than then.
        """
        self.check(state)
        for sampler, place in zip(self._samplers, state["samplers"], strict=True):
            sampler.load_state_dict(place)
        self._drawn = int(state["drawn"])


class _Painted(NamedTuple):
    """What the generators have made in a step, with its graph.

    Attributes:
        fake_a, fake_b: translations of the content batches, to A and to B.
        code_a, code_b: style codes of the content batches.
        real_code_a, real_code_b: those of the real batches, or None.
        style_a, style_b: the codes that fake_a and fake_b were painted with.
        same_a, same_b: real pictures that the generator to their own domain has repainted, or None.
    """

    fake_a: Tensor
    fake_b: Tensor
    code_a: Tensor
    code_b: Tensor
    real_code_a: Tensor | None
    real_code_b: Tensor | None
    style_a: Tensor
    style_b: Tensor
    same_a: Tensor | None
    same_b: Tensor | None


class GNR:
    """The five networks, their losses and optimisers; what the training loop runs.

    Every weight is used on as many images at once as it meets: an encoder on [content batch; real batch], of which the
    latter skips the content head, a discriminator on [real; fake], compared within each half alone.

    Args:
        config: all settings.
        device: where everything lives.
        shown: A and B images for the sample sheets.
        team: the processes that share each batch; None: one. Batch statistics stay those of each process's own part.

    Raises:
        AnifastError: weights of the perceptual distance are missing, or `config.start_from` cannot be used.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        shown: tuple[Tensor, Tensor] | None = None,
        team: Team | None = None,
    ) -> None:
        self.config, self.device, self.shown = config, device, shown
        self.team = team or alone(device)
        self.panels = PANELS
        self.watched = None
        # Matrix units take channels_last as it is; on CPUs contiguous maps were faster.
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.nets = networks(config)
        if config.start_from is not None:
            _take_over(self.nets, config, config.start_from)
        for net in self.nets.values():
            net.to(device)
            if self._layout == torch.channels_last:
                lay_out(net)
        recompute(list(self.nets.values()), config.checkpointing)
        self.lpips, self._lpips_weight = perceptual(config.lpips_net, config.lpips_weights, config.lambda_lpips, device)
        generators = {name: self.nets[name] for name in ("G_A2B", "G_B2A")}
        self.ema = None
        if config.ema:
            self.ema = EMA(generators, config.batch * math.log(0.5) / math.log(config.ema))
        judges = [self.nets[name] for name in ("D_L", "D_A", "D_B")]
        # lazy regularisation (Karras et al. 2020, appendix B), of which the authors keep the decay alone
        lazy = config.r1_every / (config.r1_every + 1)
        self.optimizers = {
            "G": _adam(list(generators.values()), config.lr, 0.99),
            "D": _adam(judges, config.lr, 0.99**lazy),
        }
        self.phases = [Phase("translations", self.translations, None, list(generators.values()), self.given)]
        if config.r1 == 0 or config.r1_every > 1:
            between = config.r1 > 0
            self.phases.append(
                Phase(
                    "discriminators",
                    self.discriminators,
                    self.optimizers["D"],
                    judges,
                    self.judged,
                    interval=config.r1_every if between else 1,
                    between=between,
                )
            )
        if config.r1 > 0:
            self.phases.append(
                Phase(
                    "discriminators, penalised",
                    self.penalised,
                    self.optimizers["D"],
                    judges,
                    self.judged,
                    interval=config.r1_every,
                )
            )
        self.phases.append(
            Phase("generators", self.generators, self.optimizers["G"], list(generators.values()), self.returned)
        )
        self.batch = Batch(*[torch.empty(0)] * 4)
        self.steps = 0
        self._draws: dict[str, Tensor] = {}
        self._painted: _Painted | None = None

    def begin(self, batch: Batch, images: int) -> None:
        """Take the next batch, set the learning rate of its step and draw its styles."""
        c = self.config
        self.batch = Batch(*(pictures.contiguous(memory_format=self._layout) for pictures in batch))
        self.steps = images // c.batch
        lr = c.lr * 0.5 ** (self.steps // c.halve_every if c.halve_every else 0)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr
        count = len(batch.a)
        # By step and process, not from a generator with a state: a resumed run draws the same.
        source = np.random.default_rng([c.seed, self.steps, self.team.rank])
        drawn: dict[str, Any] = {}
        for domain in _DOMAINS:
            drawn[f"z_{domain}"] = source.standard_normal((count, c.latent_dim), dtype=np.float32)
            drawn[f"pick_{domain}"] = source.permutation(2 * count)[:count]
            drawn[f"mix_{domain}"] = source.permutation(count)
        self._draws = {name: torch.from_numpy(value).to(self.device) for name, value in drawn.items()}

    @property
    def _reads_real(self) -> bool:
        """Whether anything uses the style codes of real batches."""
        return self.config.styles == "mixed" or self.config.lambda_latent > 0

    def given(self) -> tuple[Tensor, ...]:
        """The step's pictures, and what decides its styles."""
        return (*self.batch, *(self._draws[name] for name in ("z_a", "z_b", "pick_a", "pick_b")))

    def translations(
        self,
        a: Tensor,
        b: Tensor,
        aug_a: Tensor,
        aug_b: Tensor,
        z_a: Tensor,
        z_b: Tensor,
        pick_a: Tensor,
        pick_b: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode all pictures, choose styles and paint; kept for the phases that judge it."""
        self._painted = None  # a step that was skipped has left its graph
        content_a, code_a, own_b, real_code_a = self._encoded("G_A2B", a, aug_b, aug_a)
        content_b, code_b, own_a, real_code_b = self._encoded("G_B2A", b, aug_a, aug_b)
        style_b = z_b if self.config.styles == "random" else torch.cat([z_b, real_code_b])[pick_b]  # type: ignore[list-item]
        style_a = z_a if self.config.styles == "random" else torch.cat([z_a, real_code_a])[pick_a]  # type: ignore[list-item]
        fake_b, same_b = self._decoded("G_A2B", content_a, style_b, own_b)
        fake_a, same_a = self._decoded("G_B2A", content_b, style_a, own_a)
        self._painted = _Painted(
            fake_a, fake_b, code_a, code_b, real_code_a, real_code_b, style_a, style_b, same_a, same_b
        )
        with torch.no_grad():
            return (fake_a.sum() + fake_b.sum()), {}

    def _encoded(
        self, name: str, content: Tensor, target: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """One pass of an encoder: contents, and codes of the content batch, of `target` and of `real`."""
        count, identity = len(content), self.config.lambda_identity > 0
        rows = [content] + ([target] if identity else []) + ([real] if self._reads_real else [])
        contents, codes = self._generator(name).encode(torch.cat(rows), contents=count * (1 + identity))
        parts = iter(codes.split(count))
        return contents, next(parts), next(parts) if identity else None, next(parts) if self._reads_real else None

    def _decoded(self, name: str, contents: Tensor, style: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One pass of a decoder: the content batch in `style`, and the target domain's pictures in their own."""
        if own is None:
            return self._generator(name).decode(contents, style), None
        fake, same = self._generator(name).decode(contents, torch.cat([style, own])).split(len(style))
        return fake, same

    def judged(self) -> tuple[Tensor, ...]:
        """Real and painted pictures, and codes if they are judged; none with a gradient."""
        made = self._made()
        fakes = (self.batch.aug_a, self.batch.aug_b, made.fake_a.detach(), made.fake_b.detach())
        if not self.config.lambda_latent:
            return fakes
        assert made.real_code_a is not None and made.real_code_b is not None
        codes = (made.real_code_a.detach(), made.real_code_b.detach())
        return (*fakes, self._draws["z_a"], self._draws["z_b"], *codes)

    def discriminators(
        self, real_a: Tensor, real_b: Tensor, fake_a: Tensor, fake_b: Tensor, *latent: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adversarial losses of all discriminators."""
        parts = {}
        for side, real, fake in (("a", real_a, fake_a), ("b", real_b, fake_b)):
            sizes = [len(real), len(fake)]
            logits = self._heads(self.nets[f"D_{side.upper()}"](torch.cat([real, fake]), sizes))
            halves = [head.split(sizes) for head in logits]
            parts[f"d_{side}"] = adversarial([h[0] for h in halves], True) + adversarial([h[1] for h in halves], False)
        if latent:
            z_a, z_b, code_a, code_b = latent
            d = self.nets["D_L"]
            parts["d_latent"] = adversarial([d(z_a), d(z_b)], True) + adversarial([d(code_a), d(code_b)], False)
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}

    def penalised(
        self, real_a: Tensor, real_b: Tensor, fake_a: Tensor, fake_b: Tensor, *latent: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same with the gradient penalty on what is real, for which that goes through the networks by itself.

        It goes in float32: the penalty squares gradients of second order.
        """
        c = self.config
        parts, penalties = {}, []
        for side, real, fake in (("a", real_a, fake_a), ("b", real_b, fake_b)):
            net = self.nets[f"D_{side.upper()}"]
            real = real.detach().requires_grad_()
            with without_autocast(real):
                logits = self._heads(net.forward(real))  # what torch.compile makes has no gradients of second order
                penalties.append(gradient_penalty(logits, real, c.r1_reduction))
            parts[f"d_{side}"] = adversarial(logits, True) + adversarial(self._heads(net(fake)), False)
        if latent:
            d, parts["d_latent"] = self.nets["D_L"], torch.zeros((), device=real_a.device)
            for z, code in zip(latent[:2], latent[2:], strict=True):
                z = z.detach().requires_grad_()
                with without_autocast(z):
                    logits = [d.forward(z)]
                    penalties.append(gradient_penalty(logits, z, c.r1_reduction))
                parts["d_latent"] = parts["d_latent"] + adversarial(logits, True) + adversarial([d(code)], False)
        parts["r1"] = torch.stack(penalties).sum() * (c.r1 / 2 * c.r1_every)
        return torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()}

    def returned(self) -> tuple[Tensor, ...]:
        """The content batches and the order in which their codes are used on the way back."""
        return (
            self.batch.a,
            self.batch.b,
            self._draws["mix_a"],
            self._draws["mix_b"],
            self.batch.aug_a,
            self.batch.aug_b,
        )

    def generators(
        self, a: Tensor, b: Tensor, mix_a: Tensor, mix_b: Tensor, aug_a: Tensor, aug_b: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All losses of the generators on what `translations` has painted, with the discriminators as they now are."""
        c, made = self.config, self._made()
        parts: dict[str, Tensor] = {}
        way_back = (
            ("a", a, mix_a, made.code_a, made.fake_b, made.style_b, "G_B2A"),
            ("b", b, mix_b, made.code_b, made.fake_a, made.style_a, "G_A2B"),
        )
        for side, fake in (("a", made.fake_a), ("b", made.fake_b)):
            logits = self._heads(self.nets[f"D_{side.upper()}"](fake))
            parts[f"g_adv_{side}"] = adversarial(logits, True) * (c.lambda_adv / HEADS)
        if c.lambda_latent:
            codes = [self.nets["D_L"](code) for code in (made.real_code_a, made.real_code_b)]
            parts["g_latent"] = adversarial(codes, True) * (c.lambda_adv * c.lambda_latent)
        for side, real, mix, code, fake, style, back in way_back:
            other = "b" if side == "a" else "a"
            parts[f"style_{side}"] = style_consistency(code, c.style_consistency) * c.lambda_style
            content, found = self._generator(back).encode(fake)
            again = self._generator(back).decode(content, code[mix])
            parts[f"cycle_{side}"] = distance(again, real, c.cycle) * c.lambda_cycle
            if self.lpips is not None:
                parts[f"lpips_{side}"] = self.lpips(again, self.lpips.features(real)).mean() * self._lpips_weight
            if c.lambda_style_rec:
                parts[f"style_rec_{other}"] = distance(found, style, "mse") * c.lambda_style_rec
        for side, same, real in (("a", made.same_a, aug_a), ("b", made.same_b, aug_b)):
            if same is not None:
                parts[f"identity_{side}"] = distance(same, real, "l1") * c.lambda_identity
        loss = torch.stack(list(parts.values())).sum()
        return loss, {name: part.detach() for name, part in parts.items()} | {"generators": loss.detach()}

    def _generator(self, name: str) -> Generator:
        net = self.nets[name]
        assert isinstance(net, Generator)
        return net

    def _heads(self, logits: list[Tensor]) -> list[Tensor]:
        """Those that count."""
        return logits if self.config.diversity else logits[:2]

    def _made(self) -> _Painted:
        assert self._painted is not None, "the phase translations comes first"
        return self._painted

    def row(self, images: int) -> dict[str, Any]:
        """Step and learning rate."""
        return {"step": images // self.config.batch, "lr": self.optimizers["G"].param_groups[0]["lr"]}

    def note(self, means: dict[str, float]) -> str:
        """The main losses."""
        cycle, judges = (means.get(f"{name}a", 0) + means.get(f"{name}b", 0) for name in ("cycle_", "d_"))
        return f"G {means['generators']:.2f} (cycle {cycle:.2f})  D {judges:.2f}"

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # for these shapes compiling would begin anew
    def sheet(self) -> Image.Image:
        """Both directions: repainted in their own domain, in styles of real pictures and in random ones, and back.

        Neighbours share their random styles, so that one style can be seen on two contents.
        """
        if self.shown is None:
            raise ValueError("no pictures were given for the sample sheet")
        a, b = (images.to(self.device) for images in self.shown)
        nets: Mapping[str, Any] = self.nets if self.ema is None else self.ema.nets
        blocks = []
        for there, back, real, others, arrow in (
            ("G_A2B", "G_B2A", a, b, "A to B"),
            ("G_B2A", "G_A2B", b, a, "B to A"),
        ):
            source = torch.Generator().manual_seed(self.config.seed % 2**32)
            pairs = torch.randn(2, (len(real) + 1) // 2, self.config.latent_dim, generator=source)
            one, two = pairs.repeat_interleave(2, dim=1)[:, : len(real)].to(self.device)
            content, code = _each(nets[there].encode, real)
            _, reference = _each(nets[back].encode, others)
            reference = reference[torch.arange(len(real), device=self.device) % len(others)]
            painted = {"that style": reference, "random style 1": one, "random style 2": two}
            fakes = {name: _each(nets[there].decode, content, style)[0] for name, style in painted.items()}
            taken = others[torch.arange(len(real), device=self.device) % len(others)]
            rows = [
                (f"real {arrow[0]}", real),
                (f"repainted in {arrow[0]}", _each(nets[back], real)[0]),
                (f"a style of {arrow[-1]}", taken),
                *((f"in {name}", fake) for name, fake in fakes.items()),
                *((f"back from\n{name}", _each(nets[back], fake, code)[0]) for name, fake in fakes.items()),
                ("back in the\nstyle found", _each(nets[back], fakes["random style 1"])[0]),
            ]
            if self.ema is not None:
                live = self._generator(there)
                latest, _ = _each(live.encode, real)
                rows.append(("random style 1,\nnot averaged", _each(live.decode, latest, one)[0]))
            blocks.append(Block(arrow, rows))
        caption = f"averaged weights, decay {self.config.ema:g} a step" if self.ema else ""
        return sheet(blocks, caption=caption, tile=128 if self.config.size > 128 else 0, beside=len(a) + len(b) <= 16)

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimisers."""
        return stored(self.nets, self.optimizers)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        restore(self.nets, self.optimizers, state)


def _adam(nets: list[nn.Module], lr: float, beta2: float) -> torch.optim.Adam:
    parameters = [parameter for net in nets for parameter in net.parameters()]
    return torch.optim.Adam(parameters, lr=lr, betas=(0.0, beta2), fused=True)


def memory_estimate(config: Config, nets: Mapping[str, nn.Module], processes: int = 1) -> float:
    """GiB that training takes in each process: weights, gradients, moments, averages, and maps kept for gradients.

    Maps are counted, not the libraries' workspaces. Their size grows with the side of the pictures, since channels fall
    as sides grow; measured at 64 and 128 px with several numbers of channels.
    """
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    averaged = sizes["G_A2B"] + sizes["G_B2A"] if config.ema else 0
    weights = (16 * sum(sizes.values()) + 4 * averaged) / 2**30
    half = config.precision == "bf16"
    share, side = config.batch / processes, config.size / 256
    maps = share * side * config.channel_multiplier * (0.38 if config.checkpointing else 0.9)
    if config.lpips_net in ("vgg", "random") and config.lambda_lpips:
        maps += share * side**2 * 0.3
    if half:
        maps /= 2
    if config.r1:  # both discriminators' graphs of second order at once, in float32 and whole
        penalised = (1.1 if config.checkpointing else 1.4) if half else (1.2 if config.checkpointing else 1.7)
        maps = max(maps, share * side * config.channel_multiplier * penalised)
    return weights + maps


def _memory(system: GNR) -> str:
    """The estimate in a line, and what to do where a GPU has less."""
    needed = memory_estimate(system.config, system.nets, system.team.world)
    line = f"memory: about {needed:.1f} GiB for weights, optimisers and maps"
    if system.device.type == "cuda":
        free, total = (value / 2**30 for value in torch.cuda.mem_get_info(system.device))
        line += f"; the GPU has {free:.1f} of {total:.1f} GiB free"
        if needed > free:
            line += ", which will hardly do: take --checkpointing, --precision bf16, a smaller --batch or "
            line += "--channel-multiplier 0.5"
    return line


def _take_over(nets: Mapping[str, nn.Module], config: Config, path: str) -> None:
    """Put the weights of a run, checkpoint or authors' file into `nets`."""
    with about(path):
        state = systems.read(path)
        if not checkpoints.recognises(state):
            raise CheckpointError("no GANs N' Roses is in it")
        found = checkpoints.contents(state)
        checkpoints.require_for_training(found)
        theirs, ours = checkpoints.architecture(found.config), checkpoints.architecture(config)
        other = [f"--{name.replace('_', '-')} {theirs[name]}" for name in ours if theirs[name] != ours[name]]
        if other:
            raise CheckpointError(f"its networks are not those of this run; they need {' '.join(other)}")
        for name, net in nets.items():
            net.load_state_dict(found.nets[name])


def assemble(config: Config, root: Path, device: torch.device, team: Team | None = None) -> tuple[GNR, Pictures, Plan]:
    """All that a run needs, from its settings and its data folder; `team` are the processes that share the work.

    Raises:
        AnifastError: the folder cannot be used, or the batch cannot be shared out.
    """
    system = GNR(config, device, team=team)  # first: what it misses is told before pictures are read
    data = Pictures(root, config, device, team)
    system.shown = data.samples(SHOWN[device.type])
    total = config.steps * config.batch
    return system, data, Plan.of(config, total)


def summary(system: GNR, data: Pictures, plan: Plan) -> list[str]:
    """What is trained on what, for the first lines of a run."""
    c = system.config
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in system.nets.items()}
    start = f"; they start from {c.start_from}" if c.start_from else ""
    seen = "none" if system.lpips is None else f"{c.lambda_lpips:g} ({system.lpips.report_name})"
    penalty = f"R1 {c.r1:g} every {c.r1_every} steps ({c.r1_reduction})" if c.r1 else "no gradient penalty"
    average = f"; generators averaged, decay {c.ema:g}" if c.ema else ""
    halving = f", halved every {c.halve_every:,} steps" if c.halve_every else ""
    heads = "" if c.diversity else " without diversity heads"
    lines = [
        f"networks: 2 generators {c.generator}, {c.num_down} halvings, {sizes['G_A2B']:,} parameters each; 2 "
        f"discriminators {c.discriminator}{heads}, {sizes['D_A']:,} each; one of style codes, {sizes['D_L']:,}{start}",
        f"data: A {len(data.a)}, B {len(data.b)} pictures of side {c.size}; each step paints one of each domain in "
        f"{c.batch} poses",
        f"losses: adversarial {c.lambda_adv:g} (codes {c.lambda_latent:g}), style {c.lambda_style:g} "
        f"({c.style_consistency}), cycle {c.lambda_cycle:g} ({c.cycle}), perceptual {seen}, styles read back "
        f"{c.lambda_style_rec:g}, identity {c.lambda_identity:g}; {penalty}",
        f"Adam, lr {c.lr:g}{halving}, batch {c.batch}{average}",
        f"{plan.total} images per domain, {plan.total // c.batch} steps",
        _memory(system),
    ]
    if c.latent_dim > 8:
        lines.append(
            f"warning: style codes of {c.latent_dim} numbers may swallow the content; published results have 8"
        )
    return lines


def _each(call: Any, *batched: Tensor, batch: int = 4) -> tuple[Tensor, ...]:
    """`call` on all rows, a few at a time."""
    found = [call(*parts) for parts in zip(*(x.split(batch) for x in batched), strict=True)]
    rows = [part if isinstance(part, tuple) else (part,) for part in found]
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))
