"""Neural style transfer by optimisation: a picture that shows one picture's content with another one's strokes.

Gatys, Ecker & Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks". With F and P the features of
the result and of the content at a content layer, and G and A the Gram matrices F F^T / (H W) of the features of the
result and of the style at a style layer, the pixels x of the result minimise

    content = mean over content layers of |F - P|^2 / |P|^2          (equation 1)
    style   = mean over style layers of   |G - A|^2 / |A|^2          (equations 3 to 5)
    total   = a content + b style + c smooth + outside               (equation 7)

Each layer's error is relative to its target, where the paper has constants: so weights mean the same for networks whose
features differ by orders of magnitude, for pictures of any size and for style pictures of another size than the
content's. `smooth` is the mean squared difference of neighbours, the sum over both directions, against the noise that
networks with strides and pools do not see; `outside` is the mean square of what pixels are beyond [-1, 1], to which the
result is cut.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anifast.data.folders import pixel_limit, printable, read_image, resize, to_float, to_tensor, to_uint8
from anifast.engine import config, precision, translate
from anifast.engine.config import option
from anifast.errors import AnifastError
from anifast.files import atomic_path
from anifast.nn.backbones import Backbone, load_backbone, relu_names
from anifast.ops.gram import entries, gram
from anifast.progress import Progress

#: What pictures can be written as, by suffix.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
# Luma of ITU-R 601, as `read_image` has it.
_LUMA = (0.299, 0.587, 0.114)
_VGG = ("relu4_2", "relu1_1,relu2_1,relu3_1,relu4_1,relu5_1")
_SQUEEZENET = ("fire4", "relu1,fire2,fire3,fire5,fire7")
#: Backbone -> content layers and style layers; those of VGGs are the paper's.
LAYERS: dict[str, tuple[str, str]] = {
    "vgg19": _VGG,
    "vgg16": _VGG,
    "vgg19_16x": _VGG,
    "alexnet": ("relu3", "relu1,relu2,relu3,relu4,relu5"),
    "squeezenet1_0": _SQUEEZENET,
    "squeezenet1_1": _SQUEEZENET,
    "random": _VGG,
}


@dataclass(frozen=True)
class Options:
    """What decides the result beside the two pictures and the network."""

    steps: int = option(300, "how often losses and gradient are computed", low=1)
    content_weight: float = option(1.0, "weight of the content", low=0.0)
    style_weight: float = option(30.0, "weight of the style; 10 is gentle, 100 strong", low=0.0)
    tv_weight: float = option(20.0, "weight of smoothness, against noise", low=0.0)
    content_layers: str | None = option(None, "layers that keep the content", none="the backbone's")
    style_layers: str | None = option(None, "layers that make the style", none="the backbone's")
    init: str = option("content", "what the result begins as", choices=("content", "noise", "style"))
    optimizer: str = option("lbfgs", "how the losses are minimised", choices=("lbfgs", "adam"))
    original_colours: bool = option(False, "keep the colours of the content; only its luminance gets the style")
    seed: int = option(0, "of the noise that --init noise begins with", low=0, high=2**63 - 1)


@dataclass(frozen=True)
class Step:
    """A picture on the way to the result.

    Attributes:
        number: 1 to `Options.steps`; 0 is what the result begins as.
        content: its loss, relative.
        style: its loss, relative.
        total: all losses, weighted.
        image: 1,3,H,W in [-1, 1], as it would be written.
    """

    number: int
    content: float
    style: float
    total: float
    image: Tensor

    @property
    def losses(self) -> str:
        """In a few words."""
        return f"content {self.content:.4f}  style {self.style:.4f}  total {self.total:.4f}"


class NotFiniteError(AnifastError):
    """A loss became NaN or infinite.

    Attributes:
        number: of the step.
        best: the step with the least total before; None where it was the first.
    """

    def __init__(self, number: int, best: Step | None) -> None:
        self.number, self.best = number, best
        way_out = (
            "take smaller weights, or another --optimizer"
            if best
            else "the picture or the weights of the backbone hold values that are not finite, or far too large ones"
        )
        super().__init__(f"the loss is not finite in step {number}: {way_out}")


def transfer(
    content: Tensor,
    style: Tensor,
    backbone: str | Backbone = "vgg19",
    options: Options | None = None,
    *,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Give pictures the style of others (see the module's docstring). Every picture is optimised on its own.

    Args:
        content: N,3,H,W in [-1, 1], any float type. N may be 0.
        style: N,3,H',W' or 1,3,H',W' in [-1, 1], of any size.
        backbone: a name for `anifast.nn.load_backbone`, or what that gave, in float32; it is moved to the content's
            device.
        options: None: the defaults.
        on_step: gets every step, the beginning included; what it raises ends the work. Of several pictures the steps
            come one picture after the other.

    Returns:
        N,3,H,W in [-1, 1] in the type and on the device of `content`, no gradient: of each picture's steps the one with
        the least total. Computed in float32 there; the same seed gives the same result.

    Raises:
        AnifastError: an option or a layer that cannot be, missing weights.
        NotFiniteError: a loss is not finite.
        ValueError, TypeError: pictures of other shapes or types, or too small for the layers.
    """
    options = config.build(Options, dataclasses.asdict(options or Options()))
    for name, images in (("content", content), ("style", style)):
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"transfer: {name} must be a floating-point tensor in [-1, 1], got {got}")
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"transfer: {name} has shape {tuple(images.shape)}, expected N,3,H,W")
    if style.shape[0] not in (1, content.shape[0]):
        raise ValueError(f"transfer: style has a batch of {style.shape[0]}, expected 1 or {content.shape[0]}")
    with ExitStack() as state:
        # whatever the caller is in: the optimisation has its own gradients, and float32 is meant
        state.enter_context(torch.inference_mode(False))
        state.enter_context(torch.enable_grad())
        state.enter_context(torch.autocast(content.device.type, enabled=False))
        net = load_backbone(backbone) if isinstance(backbone, str) else backbone
        if any(weight.dtype != torch.float32 for weight in net.parameters()):
            raise TypeError("transfer: backbone has weights of another type than float32")
        layers = layers_of(net, options)
        if not len(content):
            return content.detach().clone()
        net = net.to(content.device)
        pictures = content.detach().float().clone()
        strokes = style.detach().to(content.device, torch.float32).clone().expand(len(content), -1, -1, -1)
        results = [
            _optimise(net, layers, one, other, options, on_step)
            for one, other in zip(pictures.split(1), strokes.split(1), strict=True)
        ]
        return torch.cat(results).to(content.dtype)


def layers_of(net: Backbone, options: Options) -> tuple[list[int], list[int]]:
    """The indices of content layers and style layers in the backbone.

    Raises:
        AnifastError: it has no such layer.
    """
    known = relu_names(net.name)
    found = []
    for kind, given, default in zip(
        ("content", "style"), (options.content_layers, options.style_layers), LAYERS[net.name], strict=True
    ):
        names = [name.strip() for name in (default if given is None else given).split(",")]
        for name in names:
            if name not in known:
                raise AnifastError(f"{kind} layer {name!r}: {net.name} has {', '.join(known)}")
        found.append([known[name] for name in dict.fromkeys(names)])
    return found[0], found[1]


class _Losses:
    """The losses of a picture against the features of a content and the Gram matrices of a style, computed once."""

    def __init__(
        self, net: Backbone, layers: tuple[list[int], list[int]], content: Tensor, style: Tensor, options: Options
    ) -> None:
        self._net, (self._content_at, self._style_at) = net, layers
        self._taps = sorted({*self._content_at, *self._style_at})
        self._options = options
        with torch.no_grad():
            self._features = self._maps(content, self._content_at)
            maps = self._maps(style, self._style_at)
            self._widths = [entries(x.shape[1], folded=False) for x in maps]
            self._grams = gram(maps, normalize="hw")
            # a target of zeros, as black pictures may have, is no division by 0
            tiny = torch.finfo(torch.float32).tiny
            self._content_scale = [p.square().sum().clamp_min(tiny) for p in self._features]
            squares = self._grams.square().split(self._widths, dim=1)
            self._style_scale = torch.cat(
                [a.sum().clamp_min(tiny).reciprocal().expand(a.shape[1]) for a in squares]
            ) / len(squares)  # fmt: skip

    def _maps(self, images: Tensor, at: list[int]) -> list[Tensor]:
        """The features of pictures, in the layout that pooling is fast in."""
        return self._net.taps(self._net.prepare(images).contiguous(memory_format=torch.channels_last), at)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """1,3,H,W -> content, style, total."""
        found = dict(zip(self._taps, self._maps(x, self._taps), strict=True))
        errors = [
            (found[at] - p).square().sum() / scale
            for at, p, scale in zip(self._content_at, self._features, self._content_scale, strict=True)
        ]
        content = torch.stack(errors).mean()
        grams = gram([found[at] for at in self._style_at], normalize="hw")
        style = ((grams - self._grams).square() * self._style_scale).sum()
        # a picture of one row has no neighbours below, whose mean would be NaN
        smooth = (x.diff(dim=2).square().sum() + x.diff(dim=3).square().sum()) / x.numel()
        outside = F.relu(x.abs() - 1).square().mean()
        how = self._options
        total = how.content_weight * content + how.style_weight * style + how.tv_weight * smooth + outside
        return content, style, total


class _Enough(Exception):
    """Ends an optimiser after the last step."""


def _optimise(
    net: Backbone,
    layers: tuple[list[int], list[int]],
    content: Tensor,
    style: Tensor,
    options: Options,
    on_step: Callable[[Step], None] | None,
) -> Tensor:
    """`transfer` of one picture, 1,3,H,W, on its device."""
    colours = torch.zeros_like(content)
    if options.original_colours:
        # Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer": only luminance is optimised, the
        # style's with the mean and deviation of the content's, and the content's chrominance is put back.
        luminance = luma(content)
        colours, content = content - luminance, luminance
        style = luma(style)
        ratio = content.std(correction=0) / style.std(correction=0).clamp_min(1e-6)
        style = (style - style.mean()) * ratio + content.mean()
    losses = _Losses(net, layers, content.expand(-1, 3, -1, -1), style.expand(-1, 3, -1, -1), options)
    x = _beginning(content, style, options).requires_grad_()
    best: Step | None = None
    number = 0

    def evaluate() -> float:
        nonlocal best, number
        if number > options.steps:
            raise _Enough
        with torch.enable_grad():
            content_loss, style_loss, total = losses(x.expand(-1, 3, -1, -1))
            # Beside gradients of this size L-BFGS's thresholds for curvature are small; a mean's would be below them.
            # (Not backward(): parameters of a network that is being trained elsewhere keep their gradients.)
            (x.grad,) = torch.autograd.grad(total * x.numel(), x)
        if not math.isfinite(value := total.item()):
            raise NotFiniteError(number, best)
        image = (x.detach() + colours).clamp(-1, 1)
        step = Step(number, content_loss.item(), style_loss.item(), value, image)
        if best is None or best.number == 0 or value < best.total:  # what the result began as is none
            best = step
        number += 1
        if on_step is not None:
            on_step(step)
        return value * x.numel()

    optimizer: torch.optim.Optimizer
    if options.optimizer == "adam":
        optimizer = torch.optim.Adam([x], lr=0.02)
    else:  # without the search it can stall or blow up
        optimizer = torch.optim.LBFGS(
            [x],
            max_iter=options.steps,
            history_size=20,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
    try:
        while True:
            optimizer.step(evaluate)
            if options.optimizer == "lbfgs":  # it gave up as a direction leads nowhere: begin anew, without memory
                optimizer.state.clear()
    except _Enough:
        assert best is not None
        return best.image


def luma(images: Tensor) -> Tensor:
    """N,3,H,W in [-1, 1] -> N,1,H,W: luminance (ITU-R 601)."""
    weights = images.new_tensor(_LUMA)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def _beginning(content: Tensor, style: Tensor, options: Options) -> Tensor:
    """What the result begins as, in the content's shape."""
    if options.init == "noise":  # drawn on the CPU: the same on every device
        source = torch.Generator().manual_seed(options.seed)
        return (torch.randn(content.shape, generator=source, dtype=torch.float32, device="cpu") * 0.25).to(
            content.device
        )
    if options.init == "style":
        height, width = content.shape[2:]
        scale = max(height / style.shape[2], width / style.shape[3])
        size = [
            max(math.ceil(side * scale), least) for side, least in zip(style.shape[2:], (height, width), strict=True)
        ]
        whole = F.interpolate(style, size, mode="bilinear", antialias=True, align_corners=False)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return whole[:, :, top : top + height, left : left + width].clone()
    return content.clone()


# --- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a transfer between files.

    Attributes:
        step: the step whose picture was written.
        steps: how many there were.
        interrupted: whether Ctrl-C ended them.
        saved: pictures on the way that were written.
        seconds: of the optimisation.
    """

    step: Step
    steps: int
    interrupted: bool
    saved: list[Path]
    seconds: float


def save_picture(image: Tensor, path: Path) -> None:
    """Write 3,H,W in [-1, 1] as a PNG or JPEG, by the name's suffix, whole or not at all.

    Raises:
        AnifastError: the file cannot be written.
    """
    picture = Image.fromarray(to_uint8(image).cpu().permute(1, 2, 0).contiguous().numpy())
    with atomic_path(path) as temporary:
        picture.save(temporary, format=FORMATS[path.suffix.lower()], quality=95, subsampling=0)


def transfer_files(
    content: Path,
    style: Path,
    out: Path,
    *,
    backbone: str = "vgg19",
    weights: Path | None = None,
    options: Options | None = None,
    size: int = 512,
    save_every: int = 0,
    device: str | None = None,
) -> Outcome:
    """`transfer` between picture files, with a progress bar. Nothing is written before all that is given was checked.

    Args:
        content: any picture.
        style: another, of any size and aspect.
        out: a .png or .jpg. With `save_every` there are also NAME-step0050.png, ... beside it.
        backbone: a name in `LAYERS`.
        weights: its file or folder; None: where `anifast.nn.load_backbone` looks.
        options: of the transfer; None: the defaults.
        size: longer side of the result; the style is brought to the same longer side.
        save_every: steps between pictures on the way; 0: none.
        device: as in `anifast.engine.precision.pick_device`.

    Raises:
        AnifastError: something that was given cannot be, or the memory does not suffice.
        NotFiniteError: a loss is not finite; the best picture until then was written, as its message tells.
        KeyboardInterrupt: Ctrl-C before there was a picture.
    """
    options = config.build(Options, dataclasses.asdict(options or Options()))
    on = precision.pick_device(device)
    if save_every < 0:
        raise AnifastError(f"--save-every {save_every}: at least 0, which saves none")
    if size < 1 or size**2 > pixel_limit():
        raise AnifastError(f"--size {size}: from 1 to {pixel_limit()} pixels in all (ANIFAST_MAX_PIXELS)")
    numbers = range(save_every, options.steps + 1, save_every) if save_every else range(0)
    on_the_way = {number: out.with_name(f"{out.stem}-step{number:04d}.png") for number in numbers}
    _check_target(out, on_the_way.values(), (content, style))
    images = [_read(path, size) for path in (content, style)]
    net = load_backbone(backbone, weights=weights)
    needed = net.smallest_side(max(map(max, layers_of(net, options))))
    for path, image in zip((content, style), images, strict=True):
        if min(image.shape[2:]) < needed:
            raise AnifastError(
                f"{printable(path)}: {image.shape[3]}x{image.shape[2]} at --size {size} is too small; with these "
                f"layers {backbone} needs {needed} pixels on either side. Take a larger --size, or cut the picture"
            )
    translate.check_writable(out.parent)

    best: Step | None = None
    saved: list[Path] = []
    interrupted = False
    started = time.perf_counter()
    with Progress(options.steps, "neural style", unit="step") as bar:

        def on_step(step: Step) -> None:
            nonlocal best
            if step.number == 0:
                return
            if best is None or step.total < best.total:
                best = step
            bar.update(1, step.losses)
            if step.number in on_the_way:
                save_picture(step.image[0], on_the_way[step.number])
                saved.append(on_the_way[step.number])

        try:
            with precision.enough_memory(1, f" of side {size}", "--size"):
                transfer(images[0].to(on), images[1].to(on), net, options, on_step=on_step)
        except KeyboardInterrupt:
            if best is None:
                raise
            interrupted = True
        except NotFiniteError as error:
            if best is None:
                raise
            save_picture(best.image[0], out)
            error.args = (f"{error}. The best picture until then, of step {best.number}, is in {printable(out)}",)
            raise
        done = bar.done
    assert best is not None
    save_picture(best.image[0], out)
    return Outcome(best, done, interrupted, saved, time.perf_counter() - started)


def _check_target(out: Path, more: Iterable[Path], inputs: Sequence[Path]) -> None:
    """That results can have these names and replace no input.

    Raises:
        AnifastError: they cannot.
    """
    if out.suffix.lower() not in FORMATS:
        raise AnifastError(f"--out {printable(out)}: give a name that ends in {', '.join(FORMATS)}")
    for path in (out, *more):
        if path.is_dir():
            raise AnifastError(f"{printable(path)}: is a folder; give --out another name")
        if any(os.path.realpath(path) == os.path.realpath(source) for source in inputs):
            raise AnifastError(f"{printable(path)}: the result would overwrite an input; give --out another name")


def _read(path: Path, size: int) -> Tensor:
    """A picture as 1,3,H,W with a longer side of `size`."""
    image = read_image(path)
    scale = size / max(image.size)
    height, width = (max(1, round(side * scale)) for side in (image.height, image.width))
    return to_float(to_tensor(resize(image, (height, width))))[None]
