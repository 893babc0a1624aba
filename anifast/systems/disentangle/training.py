"""Training the disentangling network: its stages, their data, one step of each in phases, and what a run shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from anifast.data.labelled import Labelled
from anifast.data.samplers import ClassSampler
from anifast.engine.distributed import Team, alone
from anifast.engine.loop import Joint, Phase, Plan
from anifast.engine.plots import Panel
from anifast.engine.sheets import Block, sheet
from anifast.engine.state import restore, stored
from anifast.errors import AnifastError, CheckpointError
from anifast.systems.disentangle import codes
from anifast.systems.disentangle.augmentation import (
    Draws,
    augment,
    draw,
    keep_probabilities,
    kept,
    prepare,
    seen,
)
from anifast.systems.disentangle.config import STAGES, Config
from anifast.systems.disentangle.losses import Reversal, divergence, nll, nlu, pixel_weights, push, reconstruction
from anifast.systems.disentangle.networks import networks

#: The loss figure of all stages; a stage's own figure has those panels for which it has numbers. Unweighted.
PANELS = (
    Panel("reconstruction", ("rec",)),
    Panel("distance in another style", ("rec_other",)),
    Panel("C1", ("c1",)),
    Panel("divergence of contents", ("kl_content",)),
    Panel("divergence of styles", ("kl_style",)),
    Panel("match", ("match",)),
    Panel("D", ("d_real", "d_fake")),
    Panel("G against D", ("g_d",)),
    Panel("C2 on real pictures", ("c2_real",)),
    Panel("part of them that are right", ("right",)),
    Panel("C2 on generated pictures", ("c2_fake",)),
    Panel("G against C2", ("g_c2",)),
    Panel("content", ("content",)),
    Panel("folds", ("warp",)),
    Panel("C1, batch regularisation", ("reg_c1",)),
    Panel("D, batch regularisation", ("reg_d",)),
    Panel("C2, batch regularisation", ("reg_c2",)),
    Panel("G by D's batch regularisation", ("g_reg_d",)),
    Panel("G by C2's batch regularisation", ("g_reg_c2",)),
)
#: Pictures on a sample sheet.
SHOWN = {"cpu": 8, "cuda": 18}
#: Of Adam in stage 1 and pre-training and of RMSprop in stage 2; that of the styles' Adam is PyTorch's.
EPS = 1e-4


class Batch(NamedTuple):
    """This process's part of a step.

    Attributes:
        images: uint8 N,C,size,size.
        maps: weight maps uint8 N,1,size,size, or empty.
        labels: int64, of the joined batch of all processes.
        mean, std: stored codes N,content_size, or empty.
    """

    images: Tensor
    maps: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor


class Pictures:
    """Batches of labelled pictures, in shuffled order, with their stored codes where there are any.

    Args:
        pictures: they.
        batch: of all processes.
        seed: of the order.
        device: where batches go.
        team: the processes that share each batch; None: one.
        stored: codes of all pictures, or None.

    Raises:
        DataError: there are fewer pictures than a batch.
    """

    def __init__(
        self,
        pictures: Labelled,
        batch: int,
        seed: int,
        device: torch.device,
        team: Team | None = None,
        stored: Mapping[str, Any] | None = None,
    ) -> None:
        self._team = team or alone(device)
        self.pictures, self._device = pictures, device
        share = self._team.portion(batch)
        self._sampler = ClassSampler(pictures.labels.numpy(), share, seed % 2**63, self._team.rank, self._team.world)
        self._codes = [stored[part].to(device) for part in ("mean", "std")] if stored is not None else None
        self._none = torch.empty(0, device=device)

    def next(self) -> Batch:
        """The next batch."""
        chosen = self._sampler.next_batch()
        images, labels, maps = self.pictures.batch(chosen, self._device)
        mean = std = self._none
        if self._codes is not None:
            where = torch.from_numpy(chosen).to(self._device)
            mean, std = (part[where] for part in self._codes)
        return Batch(images, self._none if maps is None else maps, self._team.gather(labels), mean, std)

    def skipped(self) -> dict[str, str]:
        """Pictures that cannot be used, and why."""
        return self.pictures.skipped()

    def state_dict(self) -> dict[str, Any]:
        """Where the data stands, and which data it is."""
        return {"sampler": self._sampler.state_dict(), **self.pictures.digests()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: the folder holds other pictures than then.
        """
        self.pictures.check(state)
        self._sampler.load_state_dict(state["sampler"])


class Trained:
    """What the systems of all stages share: networks, batches, draws, learning rates, what is saved.

    Args:
        config: all settings.
        pictures: what classes there are, and the pictures of the sample sheets.
        device: where everything lives.
        team: the processes that share each batch; None: one.

    Attributes:
        draw: gives the draws of a joined batch from its pictures' numbers.
    """

    stage: str
    #: Which setting says how many pictures a step has.
    batch_setting: str
    panels = PANELS
    ema = None
    watched = None
    nets: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    phases: Sequence[Phase]

    def __init__(self, config: Config, pictures: Labelled, device: torch.device, team: Team | None = None) -> None:
        self.config, self.device, self.team = config, device, team or alone(device)
        self.batch_size: int = getattr(config, self.batch_setting)
        if config.regularised and self.team.portion(self.batch_size) < 2:
            raise AnifastError(
                f"setting {self.batch_setting}: {self.batch_size} leaves 1 picture to each of {self.team.world} "
                f"processes, and batch regularisation needs 2; take {2 * self.team.world} at least, or --no-regularised"
            )
        self.classes, self.counts = list(pictures.classes), pictures.counts
        self.frequency = (self.counts.double() / self.counts.sum()).float()
        self.style = config.style_width(len(self.classes))
        self.keeps = config.keeps(len(self.classes))
        self.draw: Callable[[Tensor], Draws] = partial(draw, config=config, style=self.style)
        self.nets = {name: net.to(device) for name, net in networks(config, self.frequency, self.stage).items()}
        if device.type == "cuda":  # matrix units take channels_last as it is; on CPUs contiguous maps were faster
            for net in self.nets.values():
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._shown = _spread(pictures, SHOWN[device.type])
        self._pictures = pictures
        self.batch = Batch(*[torch.empty(0)] * 5)
        self.steps = 0
        self._numbers = torch.empty(0, dtype=torch.int64)

    def begin(self, batch: Batch, images: int) -> None:
        """Take the next batch and number its pictures."""
        self.batch = batch
        self.steps = images // self.batch_size
        # A picture's draws depend on the run's seed, the stage, and its number in the run.
        first = (self.config.seed % 2**28) * 2**35 + STAGES.index(self.stage) * 2**33 + images
        self._numbers = torch.arange(first, first + self.batch_size, device=self.device)
        self._warm_up()

    def _warm_up(self) -> None:
        for optimizer in self.optimizers.values():
            _set_rate(optimizer, self.steps, self.config.warm_up)

    def inputs(self) -> tuple[Tensor, ...]:
        """The step's pictures, labels and numbers."""
        b = self.batch
        return b.images, b.maps, b.labels, b.mean, b.std, self._numbers

    @property
    def _mine(self) -> slice:
        """This process's rows of the joined batch."""
        share = self.team.portion(self.batch_size)
        return slice(self.team.rank * share, (self.team.rank + 1) * share)

    def _net(self, name: str) -> Any:
        return self.nets[name]

    def _augmented(self, x: Tensor, draws: Draws) -> Tensor:
        return augment(x, draws.warp.to(x.dtype), self.config) if self.config.augment else x

    def _styles(self, labels: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Samples of the artists' styles, with nested dropout."""
        mean, std = self._net("S")(labels)
        code = mean + std * noise.to(mean.dtype)
        mask = kept(level.to(mean.dtype), self.keeps[1], self.style)
        return code if mask is None else code * mask

    def _divergence_of_styles(self) -> tuple[Tensor, Tensor]:
        """Weighted by how often a number is kept, and as it is."""
        each = self._net("S").divergence()
        return (each * keep_probabilities(self.keeps[1], self.style, each)).sum(), each.detach().sum()

    def row(self, images: int) -> dict[str, Any]:
        """Step and learning rate."""
        rate = next(iter(self.optimizers.values())).param_groups[0]["lr"]
        return {"step": images // self.batch_size, "lr": rate}

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, and the artists they know."""
        return {
            "stage": self.stage,
            "classes": self.classes,
            "counts": self.counts,
            **stored(self.nets, self.optimizers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        if list(state["classes"]) != self.classes:
            raise CheckpointError(
                f"the checkpoint has other artists ({len(state['classes'])}, not {len(self.classes)})"
            )
        restore(self.nets, self.optimizers, state)

    def _samples(self) -> tuple[Tensor, Tensor]:
        """Pictures of the sheets as networks see them, and their labels."""
        images, labels, _ = self._pictures.batch(self._shown, self.device)
        return prepare(images), labels

    def _repainted(self, x: Tensor, labels: Tensor, content: Tensor) -> Block:
        """Pictures beside what the generator makes of their contents in three styles."""
        g = self._net("G")
        rows = [("picture", _colours(x))]
        if self.style:
            own = self._net("S")(labels)[0]
            styles = (("own style", own), ("no style", torch.zeros_like(own)), ("style of the next", own.roll(-1, 0)))
            rows += [(name, g(torch.cat([content, style], 1))) for name, style in styles]
        else:
            rows.append(("reconstruction", g(content)))
        return Block("", [(name, _three(images)) for name, images in rows], _heads(self.classes, labels))


def _set_rate(optimizer: torch.optim.Optimizer, steps: int, warm_up: int) -> None:
    """lr * min(step / warm_up, 1), counted from 1."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * min((steps + 1) / warm_up, 1.0)


def _parameters(nets: Mapping[str, nn.Module], names: Sequence[str]) -> list[nn.Parameter]:
    return [parameter for name in names if name in nets for parameter in nets[name].parameters()]


def _adam(*groups: tuple[list[nn.Parameter], float, float]) -> torch.optim.Adam:
    """Adam with groups of (parameters, learning rate, eps)."""
    made = [{"params": p, "lr": lr, "initial_lr": lr, "eps": eps} for p, lr, eps in groups if p]
    return torch.optim.Adam(made, fused=True)


def _rmsprop(parameters: list[nn.Parameter], lr: float) -> torch.optim.RMSprop:
    return torch.optim.RMSprop([{"params": parameters, "initial_lr": lr}], lr=lr, alpha=0.99, eps=EPS)


class Stage1(Trained):
    """E, G, S and C1 at once: reconstruction, and contents from which no other artist's style can be told apart.

    One pass goes through each network: G paints every content in its own and in another artist's style as one batch,
    and C1's gradient is turned round on its way to the generator, so that one pass of C1 serves both players.
    """

    stage, batch_setting = "stage1", "batch"

    def __init__(self, config: Config, pictures: Labelled, device: torch.device, team: Team | None = None) -> None:
        super().__init__(config, pictures, device, team)
        c = config
        self.optimizers = {
            "networks": _adam(
                (_parameters(self.nets, ("E", "G", "C1")), c.lr, EPS),
                (_parameters(self.nets, ("S",)), c.lr_style, 1e-8),
            )
        }
        self.phases = [
            Phase("networks", self.losses, self.optimizers["networks"], list(self.nets.values()), self.inputs)
        ]
        self._frequency = self.frequency.to(device) if config.adv_cap else None
        #: What the last step has made, for tests and benchmarks: tensors by name, with their graph.
        self.made: dict[str, Tensor] = {}

    def losses(
        self, images: Tensor, maps: Tensor, labels: Tensor, mean: Tensor, std: Tensor, numbers: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All losses of the stage."""
        return self._losses(prepare(images), maps, labels, self.draw(numbers))

    def _losses(self, x: Tensor, maps: Tensor, joined: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        c, count, own, partner = self.config, len(x), draws.rows(self._mine), draws.partner[self._mine]
        labels, others = joined[self._mine], joined[partner]
        g = self._net("G")
        parts: dict[str, Tensor] = {}
        mean, std = self._net("E")(x)
        content = mean + std * own.content.to(mean.dtype)
        mask = kept(own.content_level.to(mean.dtype), self.keeps[0], c.content_size)
        if mask is not None:
            content = content * mask
        found: dict[str, Tensor] = {"content_mean": mean, "content_std": std}

        painted, style, other = [content], None, None
        if self.style:
            style = self._styles(labels, own.style, own.style_level)
            painted = [torch.cat([content, style], 1)]
            if c.c1_input == "image":
                with torch.no_grad():  # the adversary's gradient does not reach the styles
                    other = self._styles(others, draws.style[partner], draws.style_level[partner])
                painted.append(torch.cat([content, other], 1))
        y = g(torch.cat(painted), count)
        rec, swapped = (y, None) if len(painted) == 1 else y.split(count)
        colours = _colours(x)
        weights = pixel_weights(
            x[:, 3] if c.channels == 4 else None, maps[:, 0].to(x.dtype) / 255 if maps.numel() else None
        )
        parts["rec"] = reconstruction(rec, colours, weights)
        divergences = divergence(mean, std)
        total = (
            c.lambda_rec * parts["rec"]
            + c.lambda_kl_content * (divergences * keep_probabilities(self.keeps[0], c.content_size, mean)).sum()
        )
        parts["kl_content"] = divergences.detach().sum()
        if self.style:
            weighted, parts["kl_style"] = self._divergence_of_styles()
            total = total + c.lambda_kl_style * weighted
        folds = g.warp_penalty()
        if folds is not None:
            parts["warp"] = folds
            total = total + c.lambda_warp * folds
        if self.style:
            turn = Reversal()
            if c.c1_input == "code":
                judged = turn(content)
            else:
                assert swapped is not None
                judged = self._augmented(seen(turn(swapped), None, c.channels), own)
                with torch.no_grad():
                    parts["rec_other"] = reconstruction(swapped, colours, weights)
            logits = self._net("C1")(judged)
            valid = torch.ones_like(labels, dtype=logits.dtype)
            judgements = torch.full((), count, dtype=logits.dtype, device=x.device)
            if c.skip_same and c.c1_input == "image":
                valid = (labels != others).to(logits.dtype)
                # counted in the joined batch, so that several processes' mean gradient is that of one
                judgements = (joined != joined[draws.partner]).sum().clamp(min=1).to(logits.dtype) / self.team.world
            parts["c1"] = (nll(logits, labels) * valid).sum() / judgements
            turn.strength = c.lambda_c1 * push(logits, labels, c.c1_adv, self._frequency)
            total = total + parts["c1"]
            found |= {"logits": logits}
            if c.lambda_reg_c1:  # its gradient is C1's alone, so it needs a pass of its own
                penalties: list[Tensor] = []
                self._net("C1")(judged.detach(), penalties)
                if penalties:
                    parts["reg_c1"] = torch.stack(penalties).sum()
                    total = total + c.lambda_reg_c1 * parts["reg_c1"]
        if c.lambda_match and other is not None and swapped is not None:
            parts["match"] = self._match(content.detach(), other, rec.detach(), x)
            total = total + c.lambda_match * parts["match"]
        if style is not None:
            found["style"] = style
        self.made = found | {"rec": rec} | ({"swapped": swapped} if swapped is not None else {})
        return total, {name: part.detach() for name, part in parts.items()}

    def _match(self, content: Tensor, other: Tensor, rec: Tensor, x: Tensor) -> Tensor:
        """How far E's reading of a content painted in another style is from that in its own; for G alone."""
        e = self._net("E")
        frozen = {name: value.detach() for name, value in e.named_parameters()}
        again = self._net("G")(torch.cat([content, other], 1))
        with torch.no_grad():
            wanted, _ = e(seen(rec, x, self.config.channels))
        mean, _ = functional_call(e, frozen, (seen(again, x, self.config.channels),))
        return (mean - wanted).square().sum(1).mean()

    def note(self, means: dict[str, float]) -> str:
        """The main losses."""
        words = f"rec {means['rec']:.4f}  KL {means['kl_content']:.1f}"
        return words + (f"  C1 {means['c1']:.3f}" if "c1" in means else "")

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # for these shapes compiling would begin anew
    def sheet(self) -> Image.Image:
        """Pictures, and what is made of their contents in their own style, in none, and in another artist's."""
        x, labels = self._samples()
        return _sheet([self._repainted(x, labels, self._net("E")(x)[0])], self.config.size)


class Pretraining(Trained):
    """C2 learns the artists from real pictures."""

    stage, batch_setting = "classifier", "classifier_batch"

    def __init__(self, config: Config, pictures: Labelled, device: torch.device, team: Team | None = None) -> None:
        super().__init__(config, pictures, device, team)
        self.optimizers = {"C2": _adam((_parameters(self.nets, ("C2",)), config.classifier_lr, EPS))}
        self.phases = [Phase("C2", self.losses, self.optimizers["C2"], [self.nets["C2"]], self.inputs)]

    def losses(
        self, images: Tensor, maps: Tensor, labels: Tensor, mean: Tensor, std: Tensor, numbers: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """NLL of the artists, and batch regularisation."""
        return self._losses(prepare(images), labels[self._mine], self.draw(numbers).rows(self._mine))

    def _losses(self, x: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        penalties = _wanted(self.config.regularised and self.config.lambda_reg > 0)
        logits = self._net("C2")(self._augmented(x, draws), penalties)
        parts = {"c2_real": nll(logits, labels).mean()}
        total = parts["c2_real"]
        if penalties:
            parts["reg_c2"] = torch.stack(penalties).sum()
            total = total + self.config.lambda_reg * parts["reg_c2"]
        right = (logits.detach().argmax(1) == labels).float().mean()
        return total, {name: part.detach() for name, part in parts.items()} | {"right": right}

    def note(self, means: dict[str, float]) -> str:
        """The loss, and how many it knows."""
        return f"C2 {means['c2_real']:.3f} ({100 * means['right']:.0f}% right)"

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def sheet(self) -> Image.Image:
        """Pictures, their artists, and whom C2 takes them for."""
        x, labels = self._samples()
        guess = self._net("C2")(x).argmax(1)
        size = self.config.size
        blocks = [
            Block(title, [("", _three(_colours(x)))], _heads(self.classes, which))
            for title, which in (("by", labels), ("taken for one by", guess))
        ]
        return _sheet(blocks, size)


class Stage2(Trained):
    """G and S against D and C2, from the codes that E has given all pictures.

    A step's picture is painted once: D and C2 see it without its graph, G and S then go on with the same graph.

    Args:
        config, pictures, device, team: as for all stages.
        statistics: of the codes.
    """

    stage, batch_setting = "stage2", "stage2_batch"
    #: Of the running means that G waits for.
    DECAY = 0.9

    def __init__(
        self,
        config: Config,
        pictures: Labelled,
        device: torch.device,
        team: Team | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(config, pictures, device, team)
        if statistics is None:
            raise CheckpointError("stage 2 needs the codes of all pictures; make them by --stage encode")
        self._take(statistics)
        self.nets["E"].requires_grad_(False)
        self.optimizers = {
            "judges": _rmsprop(_parameters(self.nets, ("D", "C2")), config.stage2_lr),
            "G": _rmsprop(_parameters(self.nets, ("G",)), config.stage2_lr),
            "S": _adam((_parameters(self.nets, ("S",)), config.stage2_lr_style, 1e-8)),
        }
        painters = [self.nets["G"], self.nets["S"]]
        judges = [self.nets["D"], self.nets["C2"]]
        self.phases = [
            Phase("pictures", self.pictures, None, painters, self.inputs),
            Phase("judges", self.judges, self.optimizers["judges"], judges, self._judged),
            Phase(
                "painters",
                self.painters,
                Joint(self.optimizers["G"], self.optimizers["S"]),
                painters,
                self._painted,
                ready=self._satisfied,
            ),
        ]
        self.turns = 0  # steps of G
        self._waited, self._means = 0, [0.0] * 4
        self._losses_of_judges: Tensor | None = None
        #: What the step has painted, with its graph.
        self.made: dict[str, Tensor] = {}

    def _take(self, statistics: Mapping[str, Tensor]) -> None:
        self.statistics = {name: value.double() for name, value in statistics.items()}
        self._std, self._weight = (self.statistics[name].float().to(self.device) for name in ("std", "weight"))

    def _warm_up(self) -> None:
        _set_rate(self.optimizers["judges"], self.steps, self.config.warm_up)
        for name in ("G", "S"):
            _set_rate(self.optimizers[name], self.turns, self.config.warm_up)

    def pictures(
        self, images: Tensor, maps: Tensor, labels: Tensor, mean: Tensor, std: Tensor, numbers: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Paint contents in other artists' styles; kept for the phases that judge it."""
        self.made = {}  # a step that was skipped has left its graph
        draws = self.draw(numbers)
        return self._pictures_of(prepare(images), labels, mean, std, draws)

    def _pictures_of(
        self, x: Tensor, joined: Tensor, mean: Tensor, std: Tensor, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        own, partner = draws.rows(self._mine), draws.partner[self._mine]
        content = mean + std * own.content.to(mean.dtype)
        style = self._styles(joined[partner], draws.style[partner], draws.style_level[partner])
        fake = self._net("G")(torch.cat([content, style], 1))
        shown = seen(fake, x, self.config.channels)
        with torch.no_grad():
            real = self._augmented(x, own)
        self.made = {
            "fake": fake,
            "shown": shown,
            "seen": self._augmented(shown, own),
            "real": real,
            "labels": joined[self._mine],
            "others": joined[partner],
            "mean": mean,
        }
        folds = self._net("G").warp_penalty()
        if folds is not None:
            self.made["folds"] = folds
        return fake.detach().sum(), {}

    def _judged(self) -> tuple[Tensor, ...]:
        m = self.made
        return m["real"], m["seen"].detach(), m["labels"], m["others"]

    def judges(self, real: Tensor, fake: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """D and C2 on real and painted pictures."""
        c, count = self.config, len(real)
        both = torch.cat([real, fake])
        penalties: dict[str, list[Tensor] | None] = {
            name: _wanted(c.regularised and c.lambda_reg > 0) for name in ("D", "C2")
        }
        scores = self._net("D")(both, penalties["D"], count)
        parts = {"d_real": (scores[:count] - 1).square().mean(), "d_fake": (scores[count:] + 1).square().mean()}
        if c.c2_fake == "none":
            logits = self._net("C2")(real, penalties["C2"])
        else:
            logits = self._net("C2")(both, penalties["C2"], count)
            if c.c2_fake == "nlu":
                parts["c2_fake"] = nlu(logits[count:], others, c.nlu_form).mean()
            else:
                parts["c2_fake"] = -nll(logits[count:], others).mean()
        parts["c2_real"] = nll(logits[:count], labels).mean()
        total = torch.stack(list(parts.values())).sum()
        named = ("d_real", "d_fake", "c2_real", "c2_fake")
        self._losses_of_judges = torch.stack(
            [parts[name].detach() if name in parts else total.new_zeros(()) for name in named]
        )
        for name, found in (("reg_d", penalties["D"]), ("reg_c2", penalties["C2"])):
            if found:
                parts[name] = torch.stack(found).sum()
                total = total + c.lambda_reg * parts[name]
        return total, {name: part.detach() for name, part in parts.items()}

    def _satisfied(self) -> bool:
        """Whether D and C2 are good enough for G's turn: their running means since the last one are low enough."""
        c = self.config
        if c.force_d <= 0 and c.force_c2 <= 0:
            return True
        assert self._losses_of_judges is not None
        latest = self._losses_of_judges.clone()
        self.team.average([latest])
        self._waited += 1
        values = latest.tolist()
        self._means = [self.DECAY * old + (1 - self.DECAY) * new for old, new in zip(self._means, values, strict=True)]
        whole = 1 - self.DECAY**self._waited
        limits = (c.force_d, c.force_d, c.force_c2, c.force_c2)
        return all(limit <= 0 or mean / whole < limit for mean, limit in zip(self._means, limits, strict=True))

    def _painted(self) -> tuple[Tensor, ...]:
        self._waited, self._means = 0, [0.0] * 4
        self.turns += 1
        return self.made["others"], self.made["mean"]

    def painters(self, others: Tensor, mean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """All losses of G and S on what `pictures` has painted, with D and C2 as they now are."""
        c, m = self.config, self.made
        penalties: dict[str, list[Tensor] | None] = {
            name: _wanted(c.regularised and c.lambda_reg_gen > 0) for name in ("D", "C2")
        }
        parts = {
            "g_d": self._net("D")(m["seen"], penalties["D"]).square().mean(),
            "g_c2": nll(self._net("C2")(m["seen"], penalties["C2"]), others).mean(),
        }
        total = c.lambda_d * parts["g_d"] + c.lambda_c2 * parts["g_c2"]
        for name, weight in (("D", c.lambda_d), ("C2", c.lambda_c2)):
            found = penalties[name]
            if found:
                parts[f"g_reg_{name.lower()}"] = torch.stack(found).sum()
                total = total + weight * c.lambda_reg_gen * parts[f"g_reg_{name.lower()}"]
        if c.lambda_content:
            again, _ = self._net("E")(m["shown"])
            distance = again - mean
            if c.content_form == "whitened":
                distance = (distance / self._std.to(again.dtype)).square() * self._weight.to(again.dtype)
            else:
                distance = distance.square()
            parts["content"] = distance.sum(1).mean()
            total = total + c.lambda_content * parts["content"]
        weighted, parts["kl_style"] = self._divergence_of_styles()
        total = total + c.lambda_kl_style * weighted
        if "folds" in m:
            parts["warp"] = m["folds"]
            total = total + c.lambda_warp * m["folds"]
        return total, {name: part.detach() for name, part in parts.items()}

    def row(self, images: int) -> dict[str, Any]:
        """Step, learning rate, and G's steps."""
        return {**super().row(images), "turns": self.turns}

    def note(self, means: dict[str, float]) -> str:
        """The main losses."""
        words = f"D {means['d_real'] + means['d_fake']:.2f}  C2 {means['c2_real']:.2f}"
        if "g_d" not in means:
            return f"{words}  G waits"
        return f"{words}  G: D {means['g_d']:.2f} C2 {means['g_c2']:.2f} content {means.get('content', 0):.2f}"

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def sheet(self) -> Image.Image:
        """Pictures repainted from their contents, and contents that nobody has drawn in styles of no artist."""
        x, labels = self._samples()
        repainted = self._repainted(x, labels, self._net("E")(x)[0])
        source = torch.Generator().manual_seed(self.config.seed % 2**32)
        noise = torch.randn(len(x), self.config.content_size + self.style, generator=source).to(self.device)
        content = codes.random_contents(self.statistics, noise[:, : self.config.content_size])
        style = codes.random_styles(self._net("S"), noise[:, self.config.content_size :])
        styles = (("random style", style), ("no style", style * 0), ("style of the next", style.roll(-1, 0)))
        rows = [(name, _three(self._net("G")(torch.cat([content, one], 1)))) for name, one in styles]
        return _sheet([repainted, Block("random contents", rows)], self.config.size)

    def state_dict(self) -> dict[str, Any]:
        """Also what the codes are like, G's steps and what it waits for."""
        waiting = {"turns": self.turns, "waited": self._waited, "means": list(self._means)}
        return {**super().state_dict(), "statistics": self.statistics, "waiting": waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        super().load_state_dict(state)
        self._take(state["statistics"])
        waiting = state["waiting"]
        self.turns, self._waited, self._means = waiting["turns"], waiting["waited"], list(waiting["means"])


def _wanted(on: bool) -> list[Tensor] | None:
    return [] if on else None


def _colours(x: Tensor) -> Tensor:
    """What networks see, without alpha."""
    return x[:, :3] if x.shape[1] == 4 else x


def _three(images: Tensor) -> Tensor:
    """Pictures as RGB."""
    return images.float().expand(-1, 3, -1, -1)


def _heads(classes: Sequence[str], labels: Tensor) -> list[str]:
    return [classes[label] for label in labels.tolist()]


def _sheet(blocks: Sequence[Block], size: int) -> Image.Image:
    return sheet(blocks, tile=128 if size > 128 else 84 if size < 64 else 0, beside=False)


def _spread(pictures: Labelled, wanted: int) -> Tensor:
    """Positions of pictures for the sheets: of different artists, evenly over them, as far as there are so many."""
    labels = pictures.labels
    classes = len(pictures.classes)
    chosen: list[int] = []
    for turn in range(wanted):
        label = turn * classes // min(wanted, classes) % classes if turn < classes else turn % classes
        members = torch.nonzero(labels == label)[:, 0]
        nth = turn // max(classes, 1)
        if nth < len(members):
            chosen.append(int(members[(len(members) // 2 + nth) % len(members)]))
    return torch.tensor(sorted(set(chosen), key=chosen.index), dtype=torch.int64)


def summary(system: Trained, data: Pictures, plan: Plan) -> list[str]:
    """What is trained on what, for the first lines of a stage."""
    c = system.config
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in system.nets.items()}
    content, style = system.keeps
    dropout = f", nested dropout {content:.4g} and {style:.4g}" if c.nested else ""
    lines = [
        f"{system.stage}: networks " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()) + " parameters",
        f"data: {data.pictures.about}, side {c.size}",
        f"codes: content {c.content_size}, style {system.style}{dropout}",
        f"{plan.total // plan.batch} steps of {plan.batch} pictures",
    ]
    if data.pictures.left_out:
        few = sum(data.pictures.left_out.values())
        lines.insert(
            2, f"left out: {len(data.pictures.left_out)} artists with fewer than {c.min_images} pictures ({few})"
        )
    return lines
