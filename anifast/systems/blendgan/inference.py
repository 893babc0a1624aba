"""Painting faces in styles with a trained BlendGAN.

The style encoder, the encoder of photos and the generator are three networks that need not be in the memory at once:
each is built when it is first asked for and can be released when its codes are there.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from anifast.engine import state as files
from anifast.engine.config import check_options
from anifast.engine.precision import PRECISIONS, autocast
from anifast.errors import AnifastError, CheckpointError
from anifast.nn.stylegan2 import channels, stages
from anifast.systems.blendgan import checkpoints
from anifast.systems.blendgan.config import INDEX, TRUNCATION, Config
from anifast.systems.blendgan.networks import Generator, StyleEncoder
from anifast.systems.blendgan.psp import GROUPS, PSPEncoder, mean_of
from anifast.systems.blendgan.styles import Painter, check_index, gather, has_pictures
from anifast.systems.commands import free_memory
from anifast.systems.options import BATCH
from anifast.systems.styles import check_seed, check_truncation

#: Random faces whose mean in w truncation goes towards where the checkpoint has none.
_MEAN_OF = 4096
#: What makes the random numbers of styles and of noise others than those of faces with the same seed.
_OF_STYLES, _OF_NOISE = 0x5DEECE66D, 0x2545F4914F6
#: Maps of the largest layer that are there at once: its input, its result and what is between, with room to spare.
_MAPS_AT_ONCE = 4
#: What the free memory may be filled to, since libraries take room of their own for their work.
_FILLED = 0.9

#: What each network is, and how one is had that is missing.
_MISSING = {
    "G": "the generator; give a run whose stage gan has begun, or blendgan.pt",
    "E_style": "the style encoder, which reads styles of pictures; paint in random styles or saved codes, or say where "
    "it is by --style-encoder (style_encoder= in Python): blendgan.pt, style_encoder.pt or a run with stage style",
    "psp": "the encoder that inverts photos (pSp); put the authors' psp_encoder.pt beside blendgan.pt and give their "
    "folder, or say where it is by --psp (psp= in Python), or train it: anifast train blendgan --data DIR --out RUN "
    "--resume --stage psp",
}


class Model:
    """The networks of a checkpoint: any of the generator, the style encoder and the encoder of photos.

    Args:
        state: a loaded checkpoint of any kind that `checkpoints.recognises` accepts.
        device: where to compute.
        precision: "fp32", or "bf16" for faster convolutions where the machine has them.
        psp: run or file with the encoder of photos, in place of the checkpoint's.
        style_encoder: run or file with the style encoder, in place of the checkpoint's.

    Raises:
        AnifastError: there is no such precision.
        CheckpointError: a file cannot be used, or is of another architecture.
    """

    #: There are no domains to choose from: photos become paintings.
    targets: tuple[str, ...] = ()
    #: What `painter` takes, which are options of `anifast translate`.
    options = ("style", "styles", "seed", "truncation", "index", "noise", "triptych", "parity")

    def __init__(
        self,
        state: Mapping[str, Any],
        device: torch.device,
        precision: str = "fp32",
        *,
        psp: str | None = None,
        style_encoder: str | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise AnifastError(f"precision {precision!r}: there are {', '.join(PRECISIONS)}")
        found = checkpoints.contents(state)
        if found.origin == "stylegan2":
            raise CheckpointError(
                "this is a StyleGAN2, which paints no styles; BlendGAN's training can begin with it: anifast train "
                "blendgan --start-from FILE"
            )
        self.config: Config = found.config
        self.device, self.precision = device, precision
        #: Whether the generator is an average over the steps of a run.
        self.averaged: bool = found.ema
        #: What `faces` takes where nothing else is asked for: the checkpoint's, or 0.75.
        self.truncation: float = TRUNCATION if found.truncation is None else float(found.truncation)
        # weights and the settings that they were made with
        self._parts: dict[str, tuple[Mapping[str, Tensor], Config]] = {
            name: (found.nets[name], found.config) for name in _MISSING if name in found.nets
        }
        for name, path in (("psp", psp), ("E_style", style_encoder)):
            if path is not None:
                self._parts[name] = _part_of(path, name)
        self._latent_avg: Tensor | None = found.latent_avg
        self._mean: Tensor | None = None
        self._nets: dict[str, nn.Module] = {}
        self._check_fit()

    @property
    def size(self) -> int:
        """The side of the generator's pictures."""
        return self.config.size

    @property
    def multiple(self) -> int:
        """Sides of results must be multiples of this; here they are the size itself."""
        return self.config.size

    @property
    def n_latent(self) -> int:
        """L, the generator's slots; the blending indicator is 0 to L."""
        return self.config.n_latent

    @property
    def style_dim(self) -> int:
        """Length of codes of faces and styles."""
        return self.config.style_dim

    @property
    def sides(self) -> dict[str, int]:
        """The sides that the two encoders, E_style and psp, pool pictures to."""
        own = {name: self._parts[name][1] if name in self._parts else self.config for name in ("E_style", "psp")}
        return {"E_style": own["E_style"].style_side, "psp": own["psp"].psp_side}

    @property
    def held(self) -> tuple[str, ...]:
        """Those of G, E_style and psp that there are weights of."""
        return tuple(name for name in _MISSING if name in self._parts)

    def require(self, *names: str) -> None:
        """Check that there are weights of these networks: G, E_style, psp.

        Raises:
            CheckpointError: of one there are none; the message says where they may come from.
        """
        for name in names:
            if name not in self._parts:
                raise CheckpointError(f"this file lacks {_MISSING[name]}")

    def release(self, *names: str) -> None:
        """Free the memory of networks; they are built again when they are needed."""
        for name in names:
            self._nets.pop(name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def used(self, style: Sequence[str] | None = None, faces: Sequence[str] | None = None) -> tuple[str, ...]:
        """The networks that painting takes, in their order.

        Args:
            style: sources of styles, see `styles.gather`; None: random ones.
            faces: sources of faces: random, files of codes, photos; None: photos.
        """
        style_encoder = ("E_style",) if has_pictures(style or ()) else ()
        return (*style_encoder, *(("psp",) if faces is None or has_pictures(faces) else ()), "G")

    def fitting_batch(self, names: Sequence[str]) -> int:
        """How many pictures at once the device has room for, by the estimate of `memory`: 8, 4, 2 or 1.

        Args:
            names: of the networks that are used, which come one after the other.
        """
        free, batch = _FILLED * free_memory(self.device), BATCH
        while batch > 1 and max(map(sum, self.memory(batch, names).values()), default=0) > free:
            batch //= 2
        return batch

    def memory(self, batch: int = 8, names: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
        """About how many bytes each network takes: name -> (its weights, maps of `batch` pictures).

        Args:
            batch: pictures at once.
            names: of the networks that are asked for, of which those are told that there are; None: all.
        """
        c, found = self.config, {}
        for name in self.held if names is None else [name for name in names if name in self._parts]:
            weights, config = self._parts[name]
            count = sum(value.numel() for value in weights.values() if isinstance(value, Tensor))
            if name == "E_style" and not config.folded:
                count -= weights["embedder_mlp.0.weight"].numel() // 2
            if name == "G":
                sides = stages(c.size)
                largest = max(side**2 * channels(side, c.channel_multiplier, c.base_channels) for side in sides)
            else:  # their first layers have 64 channels at the full side
                largest = 64 * self.sides[name] ** 2
            found[name] = (4 * count, _MAPS_AT_ONCE * 4 * largest * batch)
        return found

    # --- codes

    def random_faces(self, count: int, seed: int = 0) -> Tensor:
        """Codes of faces z from N(0, I), always the same for a seed.

        Returns:
            [count, style_dim], float32 on the CPU; the first k of a larger count are those of count k.

        Raises:
            ValueError: a negative count.
        """
        return self._drawn(count, seed)

    def random_styles(self, count: int, seed: int = 0) -> Tensor:
        """Style codes from N(0, I), as `random_faces` but others."""
        return self._drawn(count, seed + _OF_STYLES)

    @torch.no_grad()
    def encode_styles(self, images: Tensor, batch: int = 8) -> Tensor:
        """Style codes of pictures.

        Args:
            images: N,3,H,W (or N,1,H,W, which is grey) in [-1, 1], float, any N and size: the encoder pools them.
            batch: pictures at once.

        Returns:
            [N, style_dim], neither normalised nor bounded, float32 on the device of `images`.

        Raises:
            ValueError: wrong shape or type, or a batch below 1.
            CheckpointError: there is no style encoder.
        """
        self._check_images(images, batch)
        return self._encoded("E_style", images, batch, (self.style_dim,))

    @torch.no_grad()
    def invert(self, images: Tensor, batch: int = 8) -> Tensor:
        """The codes with which the generator shows photos again.

        Args:
            images: N,3,H,W (or N,1,H,W, which is grey) in [-1, 1], float, any N and size: the encoder pools them.
                Faces aligned as FFHQ's.
            batch: pictures at once.

        Returns:
            W+ [N, L, style_dim], float32 on the device of `images`.

        Raises:
            ValueError: wrong shape or type, or a batch below 1.
            CheckpointError: there is no encoder of photos.
        """
        self._check_images(images, batch)
        return self._encoded("psp", images, batch, (self.n_latent, self.style_dim))

    @torch.no_grad()
    def faces(self, z: Tensor, truncation: float | None = None) -> Tensor:
        """Codes of faces as they are painted, from random ones.

        Args:
            z: [N, style_dim], float, any N.
            truncation: see `truncate`; None: the checkpoint's own, or 0.75.

        Returns:
            w [N, style_dim] (W+ [N, L, style_dim] where the checkpoint has a mean for each slot and truncates), float32
            on the model's device.

        Raises:
            ValueError: wrong shape or truncation.
            CheckpointError: there is no generator.
        """
        if z.ndim != 2 or z.shape[1] != self.style_dim or not z.is_floating_point():
            raise ValueError(f"z: expected floats [N, {self.style_dim}], got {z.dtype} {list(z.shape)}")
        w = self._generator().get_latent(z.to(self.device, torch.float32))
        return self.truncate(w, self.truncation if truncation is None else truncation)

    @torch.no_grad()
    def truncate(self, w: Tensor, truncation: float) -> Tensor:
        """Codes of faces nearer to the mean face: mean + truncation (w - mean).

        Args:
            w: [N, style_dim] or W+ [N, L, style_dim].
            truncation: 1 leaves faces as they are, 0 makes all of them the mean face; between them they are tamer.

        Raises:
            ValueError: it is negative or not finite.
            CheckpointError: there is no generator, whose mean is needed.
        """
        if not (math.isfinite(truncation) and truncation >= 0):
            raise ValueError(f"truncation: {truncation} is not a number from 0")
        if truncation == 1.0:
            return w
        mean = self.mean_latent().to(w)
        if len(mean) == 1:
            mean = mean[0]
        return mean + truncation * ((w if w.ndim == 3 or mean.ndim == 1 else w[:, None]) - mean)

    @torch.no_grad()
    def mean_latent(self) -> Tensor:
        """The mean face in w: the checkpoint's `latent_avg`, else the mean of 4096 random faces.

        Returns:
            [1, style_dim], or [L, style_dim] where the checkpoint's slots differ; float32 on the model's device.

        Raises:
            CheckpointError: there is neither it nor a generator, or it does not fit.
        """
        if self._mean is None:
            if self._latent_avg is None:
                self._mean = self._generator().get_latent(self.random_faces(_MEAN_OF).to(self.device)).mean(0, True)
            else:
                try:
                    mean = mean_of(self._latent_avg, self.n_latent)
                except ValueError as error:
                    raise CheckpointError(str(error)) from error
                mean = mean[:1] if bool((mean == mean[:1]).all()) else mean
                self._mean = mean.to(self.device, torch.float32)
        return self._mean

    # --- painting

    @torch.no_grad()
    def paintings(
        self,
        w: Tensor,
        z_style: Tensor | None = None,
        index: int | Tensor = INDEX,
        *,
        theta: float = 1.0,
        noise: int | None = None,
        first: int = 0,
        each: int = 1,
        batch: int = 8,
    ) -> Iterator[Tensor]:
        """`paint` batch by batch, each when it is asked for.

        Args:
            w: see `paint`, as are z_style, index, theta, noise, first and each.
            batch: pictures at once.

        Yields:
            Up to batch,3,size,size.

        Raises:
            ValueError: see `paint`.
            CheckpointError: there is no generator.
        """
        self._check_codes(w, z_style, index, theta, batch)
        if each < 1:
            raise ValueError(f"each: {each} is below 1")
        net = self._generator()
        for start in range(0, len(w), batch):
            part = slice(start, start + batch)
            codes = w[part].to(self.device, torch.float32)
            style = None
            if z_style is not None:
                style = (z_style if len(z_style) == 1 else z_style[part]).to(self.device, torch.float32)
            at = index[part].to(self.device) if isinstance(index, Tensor) and index.ndim else index
            numbers = [(first + start + k) // each for k in range(len(codes))]
            maps = None if noise is None else self._noise(net, numbers, noise)
            with autocast(self.device, self.precision):
                found = net.render(net.codes(codes, style, at, theta), maps, randomize_noise=False).float()
            # cut to 1 an infinity would look like a colour
            yield found.masked_fill(found.isinf(), math.nan).clamp(-1.0, 1.0).contiguous()

    @torch.no_grad()
    def paint(
        self,
        w: Tensor,
        z_style: Tensor | None = None,
        index: int | Tensor = INDEX,
        *,
        theta: float = 1.0,
        noise: int | None = None,
        first: int = 0,
        each: int = 1,
        batch: int = 8,
    ) -> Tensor:
        """Paint faces in styles, the result cut to [-1, 1]; infinities become NaN.

        Args:
            w: codes of faces, w [N, style_dim] (`faces`) or W+ [N, L, style_dim] (`invert`), float, any N.
            z_style: style codes [N or 1, style_dim]; None: natural faces.
            index: the blending indicator, how many of the L slots keep the face's own style: 0 is all of the style, L
                none of it; one for all, or int64 [N].
            theta: how much of its style the slot of the indicator has, in [0, 1].
            noise: None for the generator's fixed maps, else the seed of maps that are drawn for each picture.
            first: number of the first picture, of which drawn maps depend: pictures that are painted in several calls
                get those of one call.
            each: how many pictures in a row have the same drawn maps, as those of one face in several styles.
            batch: pictures at once.

        Returns:
            N,3,size,size in [-1, 1], float32 on the model's device.

        Raises:
            ValueError: wrong shapes, an indicator that is none of 0 to L, or numbers that cannot be.
            CheckpointError: there is no generator.
        """
        found = list(self.paintings(w, z_style, index, theta=theta, noise=noise, first=first, each=each, batch=batch))
        return torch.cat(found) if found else torch.empty(0, 3, self.size, self.size, device=self.device)

    @torch.no_grad()
    def translate(
        self,
        images: Tensor,
        *,
        style: Tensor | None = None,
        index: int | Tensor = INDEX,
        truncation: float = 1.0,
        theta: float = 1.0,
        noise: int | None = None,
        seed: int = 0,
        batch: int = 8,
    ) -> Tensor:
        """Paint photos of faces in styles.

        Args:
            images: N,3,H,W (or N,1,H,W, which is grey) in [-1, 1], float, any N and size: faces aligned as FFHQ's.
            style: codes [N or 1, style_dim], or pictures [N or 1, 3, H, W] that they are read from; None: random ones.
            index: the blending indicator, see `paint`.
            truncation: see `truncate`.
            theta: see `paint`.
            noise: see `paint`.
            seed: of random styles.
            batch: pictures at once.

        Returns:
            N,3,size,size in [-1, 1] of the type and on the device of `images`; no gradient.

        Raises:
            ValueError: wrong shapes or numbers.
            CheckpointError: a network that is needed is missing.
        """
        self._check_images(images, batch)
        self.require("G", "psp")
        if style is None:
            codes = self.random_styles(len(images), seed)
        else:
            codes = self.encode_styles(style, batch) if style.ndim == 4 else style
        if len(codes) not in (1, len(images)):
            raise ValueError(f"style: {len(codes)} for {len(images)} images; expected one for each, or one for all")
        if not len(images):
            return torch.empty(0, 3, self.size, self.size, dtype=images.dtype, device=images.device)
        w = self.truncate(self.invert(images, batch).to(self.device), truncation)
        painted = self.paint(w, codes, index, theta=theta, noise=noise, batch=batch)
        return painted.to(images.device, images.dtype)

    def painter(
        self,
        to: str | None = None,
        *,
        style: Sequence[str] | None = None,
        styles: int | None = None,
        seed: int | None = None,
        truncation: float | None = None,
        index: int | None = None,
        noise: int | None = None,
        triptych: bool | None = None,
        parity: bool | None = None,
        how: str = "crop",
        batch: int = 8,
    ) -> Painter:
        """What `anifast translate` runs: it paints photos in one style or several, the same for all of them.

        Styles are read here, and the style encoder is released then.

        Args:
            to: there are no domains.
            style: sources of styles, see `styles.gather`.
            styles: how many random styles.
            seed: of random styles.
            truncation: see `truncate`; None: 1.
            index: the blending indicator; None: 6.
            noise: see `paint`.
            triptych: whether a result is photo, style and painting beside each other.
            parity: whether results are rounded as the authors round them, see `styles.truncated`.
            how: pictures that are not square become so by "crop" or "stretch".
            batch: pictures at once.

        Raises:
            AnifastError: a source that cannot be read, or a number that cannot be.
            CheckpointError: a network that is needed is missing.
        """
        self.require("G", "psp")
        index = check_index(index, self.n_latent)
        psi = check_truncation(truncation, "the mean face", "faces")
        check_seed(noise, "--noise")
        found = gather(self, style or (), count=styles, seed=seed, how=how, batch=batch)
        self.release("E_style")
        return Painter(
            self,
            found,
            index=index,
            truncation=psi,
            noise=noise,
            how=how,
            batch=batch,
            triptych=bool(triptych),
            parity=bool(parity),
        )

    # --- networks

    def _generator(self) -> Generator:
        return cast(Generator, self._net("G"))

    def _net(self, name: str) -> nn.Module:
        """A network with its weights."""
        if name not in self._nets:
            self.require(name)
            weights, theirs = self._parts[name]
            weights, config = dict(weights), self.config
            if name == "E_style":
                fields = ("backbone", "style_side", "style_mlp", "style_dim")
                config = dataclasses.replace(config, folded=True, **{field: getattr(theirs, field) for field in fields})
            if name == "psp":
                config = dataclasses.replace(config, psp_side=theirs.psp_side)
                if "latent_avg" not in weights:
                    weights["latent_avg"] = self._mean_of_slots()
            net = checkpoints.build(name, config)
            if isinstance(net, StyleEncoder):  # half the weights for the same function
                weights = dict(checkpoints.style_encoder_weights(weights, True, net.embedder.channels))
            try:
                net.load_state_dict(weights, assign=True)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:300]
                raise CheckpointError(f"the weights of {name} do not fit its settings: {reason}") from error
            self._nets[name] = net.to(self.device, torch.float32).eval().requires_grad_(False)
        return self._nets[name]

    def _mean_of_slots(self) -> Tensor:
        """[L, style_dim], where an encoder of photos has no mean of its own."""
        began_with = "G" in self._nets
        mean = self.mean_latent().expand(self.n_latent, -1).cpu().clone()
        if not began_with:
            self.release("G")
        return mean

    def _encoded(self, name: str, images: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
        self.require(name)
        found = []
        for part in images.split(batch) if len(images) else ():
            part = part.to(self.device, torch.float32).expand(-1, 3, -1, -1)
            net = cast("StyleEncoder | PSPEncoder", self._net(name))
            with autocast(self.device, self.precision):
                found.append(net(part).float())
        codes = torch.cat(found) if found else torch.empty(0, *shape)
        return codes.to(images.device)

    def _noise(self, net: Generator, numbers: Sequence[int], seed: int) -> list[Tensor]:
        """A map for each layer, [N, 1, side, side]: those of a picture follow from seed and its number alone."""
        sides = [buffer.shape[-1] for buffer in net.noises.buffers()]
        maps: list[list[Tensor]] = [[] for _ in sides]
        source = torch.Generator(self.device)
        for number in numbers:
            source.manual_seed((seed * 2**31 + number + _OF_NOISE) % 2**63)
            for held, side in zip(maps, sides, strict=True):
                held.append(torch.randn(1, side, side, generator=source, device=self.device))
        return [torch.stack(held) for held in maps]

    def _drawn(self, count: int, seed: int) -> Tensor:
        if count < 0:
            raise ValueError(f"count: {count} is negative")
        source = torch.Generator().manual_seed(seed % 2**63)
        # one after the other: drawn at once, numbers would depend on how many they are
        drawn = [torch.randn(self.style_dim, generator=source) for _ in range(count)]
        return torch.stack(drawn) if drawn else torch.empty(0, self.style_dim)

    # --- checks

    def _check_fit(self) -> None:
        """That encoders belong to this generator, as far as can be told."""
        if "psp" in self._parts:
            weights = self._parts["psp"][0]
            heads = len({key.split(".")[1] for key in weights if key.startswith("styles.")})
            if heads != self.n_latent:
                raise CheckpointError(
                    f"the encoder of photos gives W+ of {heads} slots, and the generator of {self.size} pixels has "
                    f"{self.n_latent}; they belong to different sizes"
                )
            if self.style_dim != GROUPS[-1][0]:
                raise CheckpointError(
                    f"the encoder of photos gives codes of {GROUPS[-1][0]} numbers, and the generator takes "
                    f"{self.style_dim}; they belong to different models"
                )
        if "E_style" in self._parts:
            width = self._parts["E_style"][1].style_dim
            if width != self.style_dim:
                raise CheckpointError(
                    f"the style encoder gives codes of {width} numbers, and the generator takes {self.style_dim}; they "
                    "belong to different models"
                )

    def _check_images(self, images: Tensor, batch: int) -> None:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not all(images.shape[2:]):
            raise ValueError(f"images: expected N,3,H,W, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"images: expected floats in [-1, 1], got {images.dtype}")
        if batch < 1:
            raise ValueError(f"batch: {batch} is below 1")

    def _check_codes(self, w: Tensor, z_style: Tensor | None, index: int | Tensor, theta: float, batch: int) -> None:
        if w.shape[1:] not in ((self.style_dim,), (self.n_latent, self.style_dim)):
            raise ValueError(
                f"w: expected w [N, {self.style_dim}] or W+ [N, {self.n_latent}, {self.style_dim}] of a generator of "
                f"{self.size} pixels, got {list(w.shape)}"
            )
        if z_style is not None and (z_style.shape[1:] != (self.style_dim,) or len(z_style) not in (1, len(w))):
            raise ValueError(f"z_style: expected [{len(w)} or 1, {self.style_dim}], got {list(z_style.shape)}")
        if isinstance(index, Tensor):
            wrong = index.is_floating_point() or index.shape not in ((), (len(w),))
            wrong = wrong or bool(((index < 0) | (index > self.n_latent)).any())
        else:
            wrong = not 0 <= index <= self.n_latent
        if wrong:
            raise ValueError(
                f"index: expected 0 (all of the style) to {self.n_latent} (none of it), one for all or int64 "
                f"[{len(w)}], got {index}"
            )
        if not 0 <= theta <= 1:
            raise ValueError(f"theta: {theta} is not a number from 0 to 1")
        if batch < 1:
            raise ValueError(f"batch: {batch} is below 1")


def _part_of(path: str, name: str) -> tuple[Mapping[str, Tensor], Config]:
    """The weights of one network in another file or run.

    Raises:
        CheckpointError: it cannot be read, or has no such network.
    """
    with files.about(path):
        found = checkpoints.gather(Path(path)) or files.load(path, mmap=True)
        if not checkpoints.recognises(found):
            raise CheckpointError("no checkpoint of BlendGAN")
        held = checkpoints.contents(found)
        if name not in held.nets:
            raise CheckpointError(f"this file lacks {_MISSING[name].partition(';')[0]}")
    return held.nets[name], held.config


def load(state: Mapping[str, Any], device: torch.device, **options: Any) -> Model:
    """The model in a loaded checkpoint.

    Raises:
        AnifastError: an option that this system does not have, or a value that it cannot take.
    """
    check_options("BlendGAN", options, ("precision", "psp", "style_encoder"))
    return Model(state, device, **options)
