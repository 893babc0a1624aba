"""Stage psp: the encoder of photos learns to invert the frozen generator at the full indicator (section A.3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from anifast.engine.distributed import Team, alone
from anifast.engine.loop import Phase
from anifast.engine.sheets import Block, sheet
from anifast.engine.state import about, restore, stored
from anifast.errors import CheckpointError
from anifast.nn import weights
from anifast.nn.stylegan2 import stages
from anifast.nn.stylegan2_layers import without_autocast
from anifast.systems.blendgan.config import Config
from anifast.systems.blendgan.networks import Generator
from anifast.systems.blendgan.panels import PANELS
from anifast.systems.blendgan.pictures import pictures_of
from anifast.systems.blendgan.psp import FaceRecognition, PSPEncoder
from anifast.systems.blendgan.training import Faces
from anifast.systems.losses import perceptual

#: Random codes whose mean in w the encoder starts from where a checkpoint has none.
MEAN_OF = 100_000
#: Photos on a sample sheet.
SHOWN = {"cpu": 8, "cuda": 12}


class Ranger(torch.optim.RAdam):
    """RAdam (Liu et al. 2020) with lookahead (Zhang et al. 2019) and centralised gradients (Yong et al. 2020).

    Args:
        parameters: all of them.
        lr: learning rate.
        betas: as of Adam.
        eps: as of Adam.
        every: steps after which weights go back towards the slow ones.
        towards: the slow weights' share of the way.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        *,
        every: int = 6,
        towards: float = 0.5,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps)
        self.every, self.towards = every, towards

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step; gradients of tensors with several dimensions lose their mean over all but the first one."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            if parameter.grad.dim() > 1:
                parameter.grad.sub_(parameter.grad.mean(dim=tuple(range(1, parameter.grad.dim())), keepdim=True))
        began = {p: p.detach().clone() for p in parameters if "slow" not in self.state[p]}
        found = super().step(closure)
        for parameter in parameters:
            kept = self.state[parameter]
            if "slow" not in kept:
                kept["slow"] = began[parameter]
            if int(kept["step"]) % self.every == 0:
                kept["slow"].lerp_(parameter, self.towards)
                parameter.copy_(kept["slow"])
        return found


class Photos(Faces):
    """Batches of photos alone; only the pictures matter."""

    def next(self) -> Tensor:  # type: ignore[override]
        """Photos [n,3,side,side] in [-1, 1], mirrored half of the time."""
        return super().next()[0]


def photos(root: Path, config: Config, device: torch.device, team: Team | None = None) -> Photos:
    """The data of the stage.

    Raises:
        DataError: the folder is missing or has fewer pictures than a batch.
    """
    c = config
    return Photos(pictures_of(root, "faces", c.psp_side, c.packed), "faces", c.psp_batch, c.seed, 2, device, team)


class Inversion:
    """The encoder of photos in front of a frozen generator; what the training loop runs in stage psp.

    Batch norms see each process's own part of a batch.

    Args:
        config: all settings.
        generator: frozen, on `device`.
        device: where everything lives.
        shown: photos for the sample sheet.
        team: the processes that share each batch; None: one.
        latent_avg: the mean code that the encoder starts from, [L, D]; None: that of the generator's mapping.

    Raises:
        AnifastError: weights of the perceptual distance or of face recognition are missing.
    """

    stage = "psp"
    panels = PANELS
    ema = None
    watched = None

    def __init__(
        self,
        config: Config,
        generator: Generator,
        device: torch.device,
        shown: Tensor | None = None,
        team: Team | None = None,
        latent_avg: Tensor | None = None,
    ) -> None:
        c = config
        self.config, self.device, self.shown = config, device, shown
        self.team = team or alone(device)
        self.generator = generator.requires_grad_(False)
        self.generator.recompute = c.checkpointing
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(c.seed)
            encoder = PSPEncoder(c.n_latent, c.psp_side)
            if latent_avg is None:
                latent_avg = mean_code(generator)
        if c.psp_start is not None:
            _take_body(encoder, c.psp_start)
        encoder.latent_avg.copy_(latent_avg)
        self.encoder = encoder.to(device)
        self.nets: dict[str, nn.Module] = {"psp": self.encoder}
        self.lpips, self._lpips_weight = perceptual(c.lpips_net, c.lpips_weights, c.lambda_lpips, device)
        self.recognition = _recognition(c, device)
        self.optimizers = {"psp": Ranger(list(self.encoder.parameters()), c.psp_lr)}
        self.optimizers["psp"].register_step_post_hook(lambda *_: self._join())
        self.phases = [Phase("inversion", self.inversion, self.optimizers["psp"], [self.encoder], self.given)]
        self.photos = torch.empty(0)
        self.steps = 0
        self._kept: list[Tensor] = []

    def begin(self, batch: Tensor, images: int) -> None:
        """Take the next batch; what a step that was not finite has left in batch norms is taken back."""
        self.photos, self.steps = batch, images // self.config.psp_batch
        now = self._running()
        if self._kept and not bool(torch.isfinite(torch.cat(now)).all()):
            for value, before in zip(now, self._kept, strict=True):
                value.copy_(before)
        self._kept = [value.clone() for value in now]

    def _running(self) -> list[Tensor]:
        """What batch norms have seen."""
        return [value for name, value in self.encoder.named_buffers() if ".running_" in name]

    def _join(self) -> None:
        """Let what batch norms have seen be the mean over the processes, behind each step: checkpoints are of all."""
        self.team.average(self._running())

    def given(self) -> tuple[Tensor, ...]:
        """The photos and the noise maps of what is painted of them."""
        c = self.config
        generator = torch.Generator(self.device).manual_seed((c.seed * 2**20 + self.steps) % 2**62)
        sides = [4, *(side for side in stages(c.size) for _ in range(2))]
        noise = [torch.randn(c.psp_batch, 1, side, side, generator=generator, device=self.device) for side in sides]
        return (self.photos, *(self.team.share(x) for x in noise))

    def inversion(self, images: Tensor, *noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """All losses of photos and what the generator paints of their codes."""
        c = self.config
        w = self.encoder(images)
        painted = F.adaptive_avg_pool2d(self.generator.render(w, noise), c.psp_side)
        parts = {"l2": (painted - images).square().mean()}
        loss = c.lambda_l2 * parts["l2"]
        if self.lpips is not None:
            parts["lpips"] = self.lpips(painted, self.lpips.features(images)).mean()
            loss = loss + self._lpips_weight * parts["lpips"]
        if self.recognition is not None:
            with torch.no_grad():
                known = self.recognition(images)
            parts["identity"] = (1 - (self.recognition(painted) * known).sum(1)).mean()
            loss = loss + c.lambda_id * parts["identity"]
        with without_autocast(w):
            parts["w_norm"] = (w - self.encoder.latent_avg).flatten(1).norm(dim=1).mean()
        if c.lambda_w:
            loss = loss + c.lambda_w * parts["w_norm"]
        return loss, {name: part.detach() for name, part in parts.items()} | {"inversion": loss.detach()}

    def row(self, images: int) -> dict[str, Any]:
        """Step and learning rate."""
        return {"step": images // self.config.psp_batch, "lr": self.config.psp_lr}

    def note(self, means: dict[str, float]) -> str:
        """The losses."""
        words = [f"{name} {means[name]:.3f}" for name in ("l2", "lpips", "identity") if name in means]
        return "  ".join(words)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def sheet(self) -> Image.Image:
        """Photos and what the generator paints of their codes."""
        if self.shown is None:
            raise ValueError("no pictures were given for the sample sheet")
        images = self.shown.to(self.device)
        self.encoder.eval()
        try:
            parts = [self.generator.render(self.encoder(x), randomize_noise=False) for x in images.split(4)]
        finally:
            self.encoder.train()
        painted = F.adaptive_avg_pool2d(torch.cat(parts), self.config.psp_side)
        tile = 128 if self.config.psp_side > 128 else 0
        return sheet([Block("", [("photos", images), ("inverted", painted)])], tile=tile, beside=False)

    def state_dict(self) -> dict[str, Any]:
        """The encoder and its optimiser."""
        return {
            "stage": self.stage,
            **stored(self.nets, self.optimizers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            CheckpointError: it does not fit these networks.
        """
        restore(self.nets, self.optimizers, state)

    def summary(self) -> list[str]:
        """For the first lines of the stage."""
        c = self.config
        seen = "none" if self.lpips is None else f"{c.lambda_lpips:g} ({self.lpips.report_name})"
        known = "none" if self.recognition is None else f"{c.lambda_id:g}"
        size = sum(p.numel() for p in self.encoder.parameters())
        lines = [
            f"psp: IR-SE50 with {c.n_latent} heads at {c.psp_side} px, {size:,} parameters; the generator is frozen",
            f"losses: squared {c.lambda_l2:g}, perceptual {seen}, identity {known}, distance from the mean "
            f"{c.lambda_w:g}; Ranger, lr {c.psp_lr:g}, batch {c.psp_batch}",
        ]
        if c.psp_start is None:
            lines.append(
                "the encoder begins with random weights; with ArcFace's (--psp-start model_ir_se50.pth) it learns "
                "faster, and large learning rates are safe"
            )
        return lines


@torch.no_grad()
def mean_code(generator: Generator, count: int = MEAN_OF) -> Tensor:
    """The mean of w over random faces for each slot, [L, D]."""
    device = generator.input.input.device
    total = torch.zeros(generator.style_dim, dtype=torch.float64)
    for start in range(0, count, 10_000):
        part = min(10_000, count - start)
        z = torch.randn(part, generator.style_dim).to(device)  # drawn alike on every device
        total += generator.get_latent(z).double().sum(0).cpu()
    return (total / count).float().expand(generator.n_latent, -1)


def _recognition(config: Config, device: torch.device) -> FaceRecognition | None:
    """The identity loss's network, or None."""
    if config.identity_weights is None or config.lambda_id == 0:
        return None
    path = Path(config.identity_weights)
    with about(path):
        net = FaceRecognition()
        try:
            net.load_state_dict(dict(weights.read_torch(path)))
        except RuntimeError as error:
            raise CheckpointError(f"not ArcFace's IR-SE50: {' '.join(str(error).split())[:300]}") from error
    return net.to(device).eval().requires_grad_(False)


def _take_body(encoder: PSPEncoder, path: str) -> None:
    """Let the encoder begin with a face recognition's layers, or all of another encoder's that have its shapes.

    Raises:
        CheckpointError: none of them are in the file.
    """
    with about(path):
        held: Mapping[str, Any] = weights.read_torch(Path(path))
        inner = held.get("state_dict")
        held = inner if isinstance(inner, Mapping) else held
        own = encoder.state_dict()
        found = {name.removeprefix("encoder."): value for name, value in held.items()}
        fits = {
            name: value
            for name, value in found.items()
            if name in own and isinstance(value, Tensor) and value.shape == own[name].shape
        }
        needed = {name for name in own if name.startswith(("input_layer.", "body."))}
        if not needed <= set(fits):
            missing = sorted(needed - set(fits))
            raise CheckpointError(
                f"no IR-SE50: {len(missing)} of its {len(needed)} tensors are missing, such as {missing[0]}"
            )
        encoder.load_state_dict(fits, strict=False)
