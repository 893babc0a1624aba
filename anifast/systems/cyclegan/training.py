"""Training CycleGAN: data, one step in two phases, and what a run shows of itself."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from anifast import systems
from anifast.data.augment import crop_flip
from anifast.data.domains import TwoDomains
from anifast.data.folders import to_float
from anifast.data.samplers import PairedSampler, UnalignedSampler
from anifast.engine.config import as_option
from anifast.engine.distributed import Team, alone
from anifast.engine.ema import EMA
from anifast.engine.loop import Phase, Plan
from anifast.engine.plots import Panel
from anifast.engine.sheets import Block, sheet
from anifast.engine.state import about, restore, stored
from anifast.errors import CheckpointError
from anifast.systems.cyclegan import checkpoints
from anifast.systems.cyclegan.config import Config
from anifast.systems.cyclegan.losses import ImagePool, gan_loss, l1
from anifast.systems.cyclegan.networks import build_discriminator, build_generator, fill, initialise

#: The loss figure, in the order of the selfie2anime report: all weighted.
PANELS = (
    Panel("GAN loss", ("gan_ab", "gan_ba")),
    Panel("cycle loss", ("cycle_a", "cycle_b")),
    Panel("identity loss", ("identity_a", "identity_b")),
    Panel("generators, total", ("generators",)),
    Panel("discriminator of A", ("d_a",)),
    Panel("discriminator of B", ("d_b",)),
)
#: Pictures per domain on a sample sheet.
SHOWN = 6


def networks(config: Config) -> dict[str, nn.Module]:
    """The four networks, drawn from the run's seed or taken from `config.start_from`.

    Raises:
        AnifastError: the networks in that file are other ones, or not all of them are there.
    """
    source = torch.Generator().manual_seed(config.seed)
    nets: dict[str, nn.Module] = {name: build_generator(config) for name in ("G_AB", "G_BA")}
    nets |= {name: build_discriminator(config) for name in ("D_A", "D_B")}
    for net in nets.values():
        initialise(net, config.init, source)
    if config.start_from is not None:
        _take_over(nets, config, config.start_from)
    return nets


def _take_over(nets: Mapping[str, nn.Module], config: Config, path: str) -> None:
    """Put the weights of a run, checkpoint or author's files into `nets`."""
    with about(path):
        state = systems.read(path)
        if not checkpoints.recognises(state):
            raise CheckpointError("no CycleGAN is in it")
        found = checkpoints.contents(state)
        missing = [name for name in nets if name not in found.nets]
        if missing:
            raise CheckpointError(f"a run starts with all four networks, and {', '.join(missing)} are not there")
        theirs, ours = checkpoints.architecture(found.config), checkpoints.architecture(config)
        other = [as_option(name, theirs[name]) for name in ours if theirs[name] != ours[name]]
        if other:
            raise CheckpointError(f"its networks are not those of this run; they need {' '.join(other)}")
        for name, net in nets.items():
            fill(net, found.nets[name], name)


def learning_rate(config: Config, epoch: int, kind: str = "G") -> float:
    """Of generators ("G") or discriminators ("D") in epoch 1, 2, ...

    Constant, then linear towards the 0 that would follow the last epoch.
    """
    lr = config.lr if kind == "G" or config.d_lr is None else config.d_lr
    return lr * (1.0 - max(0, epoch - config.epochs) / (config.decay_epochs + 1))


class Pictures(TwoDomains):
    """Batches of A and B: cropped, mirrored, in [-1, 1], on the device.

    Args:
        root: the data folder.
        config: sizes, augmentation, pairing, batch, seed.
        device: where the batches go.
        team: the processes that share each batch; None: one.

    Raises:
        DataError: a folder of training pictures is missing, or one that has files holds no picture that can be read.
    """

    def __init__(self, root: Path, config: Config, device: torch.device, team: Team | None = None) -> None:
        team = team or alone(device)
        self._share = team.portion(config.batch)
        super().__init__(root, config.loaded, config.size)
        self._config, self._device = config, device
        sampler = UnalignedSampler if config.pairing == "unaligned" else PairedSampler
        self._sampler = sampler(len(self.a), len(self.b), self._share, config.seed, team.rank, team.world)
        self._first = team.rank * self._share  # in the joined batch
        self._drawn = 0

    @property
    def epoch_length(self) -> int:
        """Pictures per domain in an epoch."""
        return self._sampler.epoch_length

    def next(self) -> tuple[Tensor, Tensor]:
        """This process's part of the next batch: A and B, each batch / processes,3,size,size."""
        config = self._config
        indices = self._sampler.next_batch()
        images = []
        for domain, (packed, chosen) in enumerate(zip((self.a, self.b), indices, strict=True)):
            u8 = packed.batch(chosen).to(self._device, non_blocking=True)
            # A picture's crop and flip depend on the run's seed, its domain and its number in the run, on nothing else.
            first = (config.seed % 2**29) * 2**34 + domain * 2**33 + self._drawn + self._first
            seeds = torch.arange(first, first + self._share, device=self._device)
            u8 = crop_flip(u8, config.size, seeds, flip=0.5 if config.flip else 0.0)
            images.append(to_float(u8))
        self._drawn += config.batch
        return images[0], images[1]

    def shown(self) -> tuple[Tensor, Tensor]:
        """Up to six pictures of A and of B for the sample sheets, always the same, from testA and testB if there."""
        a, b = self.samples(SHOWN)
        return a.to(self._device), b.to(self._device)

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, and which data it is."""
        return {"sampler": self._sampler.state_dict(), "drawn": self._drawn, **self.digests()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: the folders hold other pictures than then.
        """
        self.check(state)
        self._sampler.load_state_dict(state["sampler"])
        self._drawn = int(state["drawn"])


class CycleGAN:
    """The four networks, their losses, optimisers and pools; what the training loop runs.

    Every weight is used on as many images at once as it meets in a step: G_AB on [A; B] gives the translation and the
    identity, a discriminator judges [real; from the pool] in one call. Instance norm is per image, so this changes
    nothing but the speed. With several processes each has the same pools: they are asked on the joined batch.

    Args:
        config: all settings.
        device: where everything lives.
        epoch_length: pictures per domain in an epoch, for the learning rate.
        shown: A and B images for the sample sheets.
        team: the processes that share each batch; None: one.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        epoch_length: int = 1,
        shown: tuple[Tensor, Tensor] | None = None,
        team: Team | None = None,
    ) -> None:
        self.config, self.device, self.epoch_length, self._shown = config, device, epoch_length, shown
        self.team = team or alone(device)
        self.panels = PANELS
        self.watched = None if config.gan == "wgangp" else "generators"  # a critic's scores have no bounds in health
        self.nets = {name: net.to(device) for name, net in networks(config).items()}
        generators = {name: self.nets[name] for name in ("G_AB", "G_BA")}
        self.ema = EMA(generators, config.ema) if config.ema else None
        self.rng = random.Random(config.seed)
        self.pools = {"A": ImagePool(config.pool_size, self.rng), "B": ImagePool(config.pool_size, self.rng)}
        self.optimizers = {kind: self._adam([self.nets[f"{kind}_{s}"] for s in _SIDES[kind]]) for kind in ("G", "D")}
        self.phases = [
            Phase(
                "generators", self.generators, self.optimizers["G"], [self.nets["G_AB"], self.nets["G_BA"]], self.reals
            ),
            Phase(
                "discriminators",
                self.discriminators,
                self.optimizers["D"],
                [self.nets["D_A"], self.nets["D_B"]],
                self.judged,
            ),
        ]
        self.real_a = self.real_b = self.fake_a = self.fake_b = self.rec_a = self.rec_b = torch.empty(0)

    def _adam(self, nets: list[nn.Module]) -> torch.optim.Adam:
        c = self.config
        parameters = [p for net in nets for p in net.parameters()]
        return torch.optim.Adam(parameters, lr=c.lr, betas=(c.beta1, c.beta2), fused=True)

    def epoch(self, images: int) -> int:
        """1-based epoch of the picture that follows `images` others."""
        return images // self.epoch_length + 1

    def begin(self, batch: tuple[Tensor, Tensor], images: int) -> None:
        """Take the next batch and set the learning rate of its epoch."""
        self.real_a, self.real_b = batch
        for kind, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.config, self.epoch(images), kind)

    def reals(self) -> tuple[Tensor, Tensor]:
        """Real A and B of this step."""
        return self.real_a, self.real_b

    def generators(self, a: Tensor, b: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_G = L_GAN + L_cyc + L_idt, with the discriminators frozen; keeps the translations for their phase."""
        c, n = self.config, len(a)
        g_ab, g_ba = self.nets["G_AB"], self.nets["G_BA"]
        parts: dict[str, Tensor] = {}
        if c.lambda_identity > 0:
            fake_b, idt_b = g_ab(torch.cat([a, b])).split([n, len(b)])
            fake_a, idt_a = g_ba(torch.cat([b, a])).split([len(b), n])
            parts["identity_a"] = c.lambda_identity * c.lambda_a * l1(idt_a, a)
            parts["identity_b"] = c.lambda_identity * c.lambda_b * l1(idt_b, b)
        else:
            fake_b, fake_a = g_ab(a), g_ba(b)
        rec_a, rec_b = g_ba(fake_b), g_ab(fake_a)
        parts["cycle_a"] = c.lambda_a * l1(rec_a, a)
        parts["cycle_b"] = c.lambda_b * l1(rec_b, b)
        parts["gan_ab"] = gan_loss(self.nets["D_B"](fake_b), True, c.gan)
        parts["gan_ba"] = gan_loss(self.nets["D_A"](fake_a), True, c.gan)
        loss = torch.stack(list(parts.values())).sum()
        self.fake_a, self.fake_b, self.rec_a, self.rec_b = (x.detach() for x in (fake_a, fake_b, rec_a, rec_b))
        return loss, {name: part.detach() for name, part in parts.items()} | {"generators": loss.detach()}

    def judged(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Real A and B, and the translations made before the generators' update, partly replaced from the pools."""
        fakes = {"A": self.fake_a, "B": self.fake_b}
        order = "AB" if self.config.pool_first == "a" else "BA"
        seen = {side: self.team.share(self.pools[side].query(self.team.gather(fakes[side]))) for side in order}
        return self.real_a, self.real_b, seen["A"], seen["B"]

    def discriminators(self, a: Tensor, b: Tensor, seen_a: Tensor, seen_b: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D_A + L_D_B."""
        parts = {}
        for side, real, seen in (("A", a, seen_a), ("B", b, seen_b)):
            scores = self.nets[f"D_{side}"](torch.cat([real, seen]))
            on_real, on_fake = scores.split([len(real), len(seen)])
            kind = self.config.gan
            parts[f"d_{side.lower()}"] = 0.5 * (gan_loss(on_real, True, kind) + gan_loss(on_fake, False, kind))
        return parts["d_a"] + parts["d_b"], {name: part.detach() for name, part in parts.items()}

    def row(self, images: int) -> dict[str, Any]:
        """Epoch and learning rate."""
        return {"epoch": self.epoch(images), "lr": self.optimizers["G"].param_groups[0]["lr"]}

    def note(self, means: dict[str, float]) -> str:
        """The main losses."""
        cycle = means["cycle_a"] + means["cycle_b"]
        return f"G {means['generators']:.2f} (cycle {cycle:.2f})  D_A {means['d_a']:.3f}  D_B {means['d_b']:.3f}"

    @torch.no_grad()
    def sheet(self) -> Image.Image:
        """Both directions: real pictures, translations, the way back, and what the other generator leaves alone."""
        if self._shown is None:
            raise ValueError("no pictures were given for the sample sheet")
        a, b = self._shown
        nets = self.nets if self.ema is None else self.ema.nets
        blocks = []
        for there, back, real, arrow in (("G_AB", "G_BA", a, "A to B"), ("G_BA", "G_AB", b, "B to A")):
            fake = _each(nets[there], real)
            rows = [
                (f"real {arrow[0]}", real),
                (f"fake {arrow[-1]}", fake),
                (f"back to {arrow[0]}", _each(nets[back], fake)),
                (f"identity {arrow[0]}", _each(nets[back], real)),
            ]
            blocks.append(Block(arrow, rows))
        return sheet(blocks, caption=f"averaged weights, half-life {self.config.ema} images" if self.ema else "")

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, pools and their generator of decisions."""
        return {
            **stored(self.nets, self.optimizers),
            "pools": {side: pool.state_dict() for side, pool in self.pools.items()},
            "pool_rng": self.rng.getstate(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        restore(self.nets, self.optimizers, state)
        for side, pool in self.pools.items():
            pool.load_state_dict(state["pools"][side], self.device)
        version, words, gauss = state["pool_rng"]
        self.rng.setstate((version, tuple(words), gauss))


_SIDES = {"G": ("AB", "BA"), "D": ("A", "B")}


def assemble(
    config: Config, root: Path, device: torch.device, team: Team | None = None
) -> tuple[CycleGAN, Pictures, Plan]:
    """All that a run needs, from its settings and its data folder; `team` are the processes that share the work.

    Raises:
        AnifastError: the folder cannot be used, or the batch cannot be shared out.
    """
    data = Pictures(root, config, device, team)
    system = CycleGAN(config, device, data.epoch_length, data.shown(), team)
    total = (config.epochs + config.decay_epochs) * data.epoch_length
    return system, data, Plan.of(config, total)


def summary(system: CycleGAN, data: Pictures, plan: Plan) -> list[str]:
    """What is trained on what, for the first lines of a run."""
    c = system.config
    sizes = {name: sum(value.numel() for value in net.state_dict().values()) for name, net in system.nets.items()}
    augmentation = f"resized to {c.loaded}, cropped to {c.size}" if c.crop else f"resized to {c.size}"
    identity = f"identity {c.lambda_identity:g} (both real images in one batch)" if c.lambda_identity else "no identity"
    average = f"; generators averaged, half-life {c.ema} images" if c.ema else ""
    end = f"{plan.total} images per domain ({plan.total / data.epoch_length:.4g} of "
    d_lr = "" if c.d_lr is None else f" (discriminators {c.d_lr:g})"
    start = f"; they start from {c.start_from}" if c.start_from else ""
    return [
        f"networks: 2 generators, {c.blocks} blocks, width {c.width}, {sizes['G_AB']:,} parameters each; "
        f"2 PatchGANs, width {c.d_width}, {sizes['D_A']:,} each; channels_last{start}",
        f"data: A {len(data.a)}, B {len(data.b)} pictures, {augmentation}{', mirrored' if c.flip else ''}, {c.pairing}",
        f"losses: {c.gan}, cycle {c.lambda_a:g} and {c.lambda_b:g}, {identity}, pool of {c.pool_size}; "
        f"Adam, lr {c.lr:g}{d_lr}, betas {c.beta1:g} and {c.beta2:g}, batch {c.batch}{average}",
        end + f"{c.epochs + c.decay_epochs} epochs of {data.epoch_length}; the last {c.decay_epochs} lower the lr)",
    ]


def _each(net: nn.Module, images: Tensor, batch: int = 4) -> Tensor:
    """`net` on all images, a few at a time; not as torch.compile has it, which would begin anew for these shapes."""
    return torch.cat([net.forward(part) for part in images.split(batch)])
