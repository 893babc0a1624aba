"""Style codes of BlendGAN: drawn at random, read from pictures or kept in a file; codes of faces; painting in several.

Pictures are read a batch at a time and are not kept: a thousand of them are a thousand codes.
"""

from __future__ import annotations

import pickle
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import cpu_count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anifast.data.folders import printable, read_image, resize, to_float, to_tensor
from anifast.engine import state
from anifast.engine.precision import enough_memory
from anifast.errors import AnifastError, CheckpointError, DataError, ImageError
from anifast.progress import Progress
from anifast.systems.blendgan import codes as tables
from anifast.systems.blendgan.config import INDEX
from anifast.systems.styles import (
    RANDOM,
    check_count,
    check_random,
    check_seed,
    chosen,
    endings,
    keep,
    pictures_in,
    saved,
)

if TYPE_CHECKING:
    from anifast.systems.blendgan.inference import Model

#: Marks a file of style codes, with the version of its contents.
FORMAT = "anifast.blendgan.styles/1"
#: The name of one beside results, where styles were drawn.
NAME = "styles.pt"
#: Bytes of pictures of styles that are kept while results are put beside them.
_KEPT = 2**28
#: Larger pictures than so many times an encoder's side are halved, thirded, ... before they are pooled.
_LARGE = 8


@dataclass(frozen=True, eq=False)
class Style:
    """A style code and where it comes from.

    Attributes:
        name: for people and for names of files.
        code: [style_dim], float32 on the CPU.
        picture: the picture that it was read from, where there is one.
        drawn: whether it was drawn at random.
    """

    name: str
    code: Tensor
    picture: Path | None = None
    drawn: bool = False


def codes(styles: Sequence[Style]) -> Tensor:
    """[S, style_dim] of at least one style, float32 on the CPU."""
    return torch.stack([style.code for style in styles])


def check_index(index: int | None, slots: int, usual: int = INDEX, option: str = "--index") -> int:
    """The blending indicator that an option gives, `usual` where it is left out.

    Raises:
        AnifastError: it is none of 0 to `slots`.
    """
    if index is not None and not 0 <= index <= slots:
        raise AnifastError(
            f"{option} {index}: 0 (all of the style) to {slots} (none of it: the natural face); this model has {slots} "
            "slots"
        )
    return usual if index is None else index


def has_pictures(sources: Sequence[str]) -> bool:
    """Whether there are pictures or folders among sources of styles or faces, which it takes an encoder to read."""
    return any(
        source != RANDOM and saved(source, "pt") is None and Path(source).suffix.lower() != ".npy" for source in sources
    )


# --- files


def save(path: str | Path, styles: Sequence[Style]) -> None:
    """Write style codes, whole or not at all; `load` gives exactly the same numbers.

    Args:
        path: the file, .pt.
        styles: at least one.

    Raises:
        AnifastError: the file cannot be written.
    """
    state.save(Path(path), {"format": FORMAT, "names": [printable(s.name) for s in styles], "codes": codes(styles)})


def load(path: str | Path, style_dim: int | None = None) -> list[Style]:
    """Read the style codes of a file that `save` has written, or of the codes.pt of a run.

    Args:
        path: the file.
        style_dim: the length that they must have; None: any.

    Raises:
        DataError: missing, no such file, damaged, or of another length.
    """
    shown = printable(path)
    if not Path(path).exists():
        raise DataError(f"{shown}: no such file")
    try:
        found = state.load(path)
    except CheckpointError as error:
        raise DataError(f"{shown}: not a file of style codes: {str(error).removeprefix(f'{path}: ')}") from error
    form, held, names = found.get("format"), found.get("codes"), found.get("names")
    if form not in (FORMAT, tables.FORMAT):
        raise DataError(f"{shown}: not a file of style codes (format {form!r}, expected {FORMAT!r})")
    damaged = DataError(f"{shown}: damaged: expected at least one style code and a name for each")
    if not isinstance(held, Tensor):
        raise damaged
    if form == tables.FORMAT and held.ndim == 3:
        held = held[:, 0]  # behind it is the picture's mirror image
    whole = held.ndim == 2 and len(held) > 0 and held.is_floating_point()
    if not whole or not isinstance(names, list) or len(names) != len(held):
        raise damaged
    if not torch.isfinite(held).all():
        raise DataError(f"{shown}: damaged: its codes hold something else than finite numbers")
    if style_dim is not None and held.shape[1] != style_dim:
        raise DataError(
            f"{shown}: holds style codes of {held.shape[1]} numbers, but this model's have {style_dim} (style_dim); "
            "they belong to another model"
        )
    return [Style(Path(str(name)).stem, code) for name, code in zip(names, held.float(), strict=True)]


def load_faces(path: str | Path, style_dim: int, slots: int) -> tuple[str, Tensor]:
    """Read codes of faces: what torch.save or numpy.save wrote.

    Args:
        path: a .pt or .npy file with a tensor [N, style_dim] or [N, 1, style_dim], or a list of such rows: z of
            N(0, 1); or with W+ [N, L, style_dim]; or a dict with one of them as "z" or "w", where "w" [N, style_dim]
            are not mapped again.
        style_dim: length of codes.
        slots: L.

    Returns:
        "z" or "w", and codes [N, style_dim] or [N, L, style_dim], float32, N at least 1.

    Raises:
        DataError: missing, damaged, or of another shape.
    """
    shown = printable(path)
    try:
        if Path(path).suffix.lower() == ".npy":
            found: Any = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{shown}: no such file") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, ValueError, RuntimeError, EOFError, TypeError, KeyError) as error:
        raise DataError(
            f"{shown}: not a file of codes of faces: {str(error).splitlines()[0] if str(error) else 'damaged'}"
        ) from error
    kind = "z"
    if isinstance(found, dict):
        kind = "w" if "w" in found else "z"
        found = found.get(kind)
    if isinstance(found, list | tuple) and found and all(isinstance(row, Tensor) for row in found):
        if len({row.shape for row in found}) == 1:
            found = torch.stack([row.reshape(-1, row.shape[-1]) for row in found if row.ndim])
    if isinstance(found, Tensor) and found.ndim == 3 and found.shape[1] == 1:
        found = found[:, 0]
    if not isinstance(found, Tensor) or found.ndim not in (2, 3) or not found.is_floating_point() or not len(found):
        raise DataError(f"{shown}: no codes of faces: expected z [N, {style_dim}] or W+ [N, {slots}, {style_dim}]")
    if found.shape[1:] not in ((style_dim,), (slots, style_dim)):
        raise DataError(
            f"{shown}: codes of faces of shape {list(found.shape)}, but this model takes [N, {style_dim}] or "
            f"W+ [N, {slots}, {style_dim}]; they belong to a model of another size"
        )
    if not torch.isfinite(found).all():
        raise DataError(f"{shown}: holds codes that are not finite")
    return ("w" if found.ndim == 3 else kind), found.float()


# --- pictures


def pooled(path: Path, side: int, how: str) -> Tensor:
    """A picture of any size and colour mode as an encoder pools it: float32 3,side,side in [-1, 1].

    It is not scaled before, as it would be to be shown.

    Args:
        path: the file; transparency becomes white.
        side: of the encoder.
        how: "crop" takes the largest centred square, "stretch" all of it.

    Raises:
        ImageError: it cannot be read.
    """
    return pool_image(read_image(path), side, how)


def pool_image(image: Image.Image, side: int, how: str) -> Tensor:
    """A picture that is read as an encoder pools it; see `pooled`.

    Args:
        image: mode RGB, of any size.
        side: of the encoder.
        how: "crop" or "stretch".

    Returns:
        float32 3,side,side in [-1, 1].
    """
    if how == "crop":
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        image = image.crop((left, top, left + edge, top + edge))
    factors = [max(1, length // (_LARGE // 2 * side)) if length > _LARGE * side else 1 for length in image.size]
    if max(factors) > 1:  # a hundred million pixels are gigabytes as floats
        image = image.reduce((factors[0], factors[1]))
    return F.adaptive_avg_pool2d(to_float(to_tensor(image)), side)


def shown(path: Path, size: int, how: str) -> Tensor:
    """A picture as it stands beside results, uint8 3,size,size.

    Raises:
        ImageError: it cannot be read.
    """
    return to_tensor(resize(read_image(path), size, how))


def encoded(
    model: Model, paths: Sequence[Path], name: str, *, how: str = "crop", batch: int = 8, label: str = ""
) -> tuple[dict[int, Tensor], dict[int, str]]:
    """The codes of pictures, which are read in threads of their own, a few batches ahead.

    Args:
        model: reads them.
        paths: the files.
        name: of the encoder: E_style gives style codes, psp W+.
        how: pictures that are not square become so by "crop" or "stretch".
        batch: pictures at once.
        label: of the progress bar; none: no bar.

    Returns:
        Number of a picture -> code, float32 on the CPU, in their order; and number -> reason of those that cannot be
        read, which does not keep the others from being so.

    Raises:
        CheckpointError: there is no such encoder.
        AnifastError: the memory does not suffice.
    """
    model.require(name)
    side, encode = model.sides[name], (model.encode_styles if name == "E_style" else model.invert)
    found: dict[int, Tensor] = {}
    failed: dict[int, str] = {}
    upcoming = iter(range(0, len(paths), batch))
    with ThreadPoolExecutor(max(1, min(4, cpu_count() or 1)), thread_name_prefix="pictures") as pool:
        waiting: deque[list[tuple[int, Future[Tensor]]]] = deque()

        def read_more() -> None:
            start = next(upcoming, None)
            if start is not None:
                numbers = range(start, min(start + batch, len(paths)))
                waiting.append([(n, pool.submit(pooled, paths[n], side, how)) for n in numbers])

        bar = Progress(len(paths), label) if label else None
        try:
            with enough_memory(batch, f" of side {side}", "--batch"):
                for _ in range(3):
                    read_more()
                while waiting:
                    held: dict[int, Tensor] = {}
                    for number, future in waiting.popleft():
                        try:
                            held[number] = future.result()
                        except ImageError as error:
                            failed[number] = str(error)
                    read_more()
                    if held:
                        for number, code in zip(held, encode(torch.stack(list(held.values())), batch), strict=True):
                            if bool(torch.isfinite(code).all()):
                                found[number] = code.cpu()
                            else:
                                failed[number] = (
                                    f"{printable(paths[number])}: the code that is read in it is not finite (NaN); the "
                                    "encoder's weights may be damaged, or try --precision fp32"
                                )
                    if bar is not None:
                        bar.update(min(batch, len(paths) - bar.done), f"{len(failed)} failed" if failed else None)
        finally:
            pool.shutdown(cancel_futures=True)
            if bar is not None:
                bar.close()
    return found, failed


def gather(
    model: Model,
    sources: Sequence[str | Path] = (),
    *,
    count: int | None = None,
    seed: int | None = None,
    how: str = "crop",
    batch: int = 8,
    option: str = "--style",
) -> list[Style]:
    """The style codes of several sources, in their order.

    Args:
        model: reads the styles of pictures.
        sources: "random" (also the default): `count` random styles, those that follow where it comes again; a file of
            style codes, or one of them as FILE.pt#3; a picture of any size, or a folder of such, which is searched as
            that of faces is (what it holds of no use is warned of).
        count: how many are random; None: 1.
        seed: of random styles, 0 or larger; None: 0.
        how: pictures that are not square become so by "crop" or "stretch".
        batch: pictures to read at once.
        option: that gives the sources, for messages.

    Raises:
        AnifastError: a number that cannot be, or a count or seed without "random".
        DataError: a picture or file that is named and cannot be read, a folder without one that can, or codes that do
            not fit the model.
        CheckpointError: the model lacks the style encoder, and pictures are among the sources.
    """
    check_count(count)
    check_seed(seed)
    texts = [str(source) for source in sources] or [RANDOM]
    check_random(texts, count, seed, option)
    count, seed = count or 1, seed or 0
    total = count * texts.count(RANDOM)
    width = max(2, len(str(total - 1)))
    drawn = enumerate(model.random_styles(total, seed))
    found: list[Style | Path] = []
    named: set[Path] = set()
    for text in texts:
        if text == RANDOM:
            found += [Style(f"random-{seed}-{n:0{width}d}", z, drawn=True) for n, z in islice(drawn, count)]
        elif file := saved(text, "pt"):
            found += chosen(load(file[0], model.style_dim), *file)
        else:
            source = Path(text)
            inside, rejected = pictures_in(source)
            for path, why in rejected.items():
                warnings.warn(f"left out: {path}: {why}", stacklevel=2)
            found += inside
            named |= set() if source.is_dir() else {source}
    pictures = [path for path in found if isinstance(path, Path)]
    read, failed = encoded(model, pictures, "E_style", how=how, batch=batch, label="styles") if pictures else ({}, {})
    for number, why in failed.items():
        if pictures[number] in named:
            raise DataError(why)
        warnings.warn(f"left out: {why}", stacklevel=2)
    numbers = iter(range(len(pictures)))
    styles: list[Style] = []
    for one in found:
        if isinstance(one, Style):
            styles.append(one)
        elif (number := next(numbers)) in read:
            styles.append(Style(one.stem, read[number], one))
    if not styles:
        raise DataError(f"{option} {' '.join(map(printable, texts))}: no picture could be read (named above)")
    return styles


# --- results


def truncated(images: Tensor) -> Tensor:
    """Images as the authors write them: a value becomes the whole number of 0 to 255 below it, not the nearest.

    Args:
        images: floats near [-1, 1]; they are not changed.

    Returns:
        The same shape and type, with values that are written exactly.
    """
    return ((images * 0.5 + 0.5) * 255).clamp(0, 255).floor() / 127.5 - 1


class Painter:
    """Paints every face in all of some styles. The encoder of photos is released before the generator is there.

    Args:
        model: paints.
        styles: at least one.
        index: the blending indicator.
        truncation: of the faces, see `Model.truncate`.
        noise: see `Model.paint`; the same for all pictures of a face.
        how: pictures that are not square become so by "crop" or "stretch".
        batch: pictures at once.
        triptych: whether a result is photo, style (white for a style without a picture) and painting beside each other.
        parity: whether results are `truncated`.
    """

    def __init__(
        self,
        model: Model,
        styles: Sequence[Style],
        *,
        index: int = INDEX,
        truncation: float = 1.0,
        noise: int | None = None,
        how: str = "crop",
        batch: int = 8,
        triptych: bool = False,
        parity: bool = False,
    ) -> None:
        self.model, self.styles, self.index, self.truncation = model, list(styles), index, truncation
        self.noise, self.how, self.batch, self.triptych, self.parity = noise, how, batch, triptych, parity
        self._codes = codes(self.styles).to(model.device)
        self._w = torch.empty(0)
        self._rows: dict[Path, int] = {}
        self._beside: dict[int, Tensor] = {}
        self._kept: dict[Path, Tensor] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """What the names of a picture's results end with: _v_STYLE; with a number where names are alike."""
        return endings([style.name for style in self.styles], "_v_")

    @property
    def pictures(self) -> list[Path]:
        """Those that styles were read from."""
        return [style.picture for style in self.styles if style.picture is not None]

    @property
    def about(self) -> str:
        """A few words for the first line of a command."""
        return f"{'1 style' if len(self.styles) == 1 else f'{len(self.styles)} styles'}, index {self.index}"

    def prepare(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Invert the faces, each once, and release the encoder; to be called before any is painted.

        Returns:
            Path -> reason of those that cannot be read.

        Raises:
            AnifastError: the memory does not suffice.
        """
        found, failed = encoded(self.model, paths, "psp", how=self.how, batch=self.batch, label="faces")
        self.model.release("psp")
        self._rows = {paths[number]: row for row, number in enumerate(found)}
        if found:
            self._w = self.model.truncate(torch.stack(list(found.values())).to(self.model.device), self.truncation)
        return {paths[number]: why for number, why in failed.items()}

    def read(self, path: Path) -> Tensor:
        """A face as `__call__` takes it: its number.

        Raises:
            ImageError: the picture itself is to be shown and cannot be read any more.
        """
        number = self._rows[path]
        if self.triptych:
            self._beside[number] = shown(path, self.model.size, self.how)
        return torch.tensor(number)

    def __call__(self, numbers: Tensor) -> Iterator[Tensor]:
        """Numbers [N] of faces -> N times S results, `batch` at once: the first face in all styles, then the second."""
        count = len(self.styles)
        numbers = numbers.to(self.model.device)
        for pairs in torch.arange(len(numbers) * count, device=self.model.device).split(self.batch):
            face, style = numbers[pairs // count], pairs % count
            painted = self.model.paint(
                self._w[face],
                self._codes[style],
                self.index,
                noise=self.noise,
                first=int(face[0]) * count + int(style[0]),
                each=count,  # a face's, in whatever styles it is painted
                batch=self.batch,
            )
            if self.parity:
                painted = truncated(painted)
            if self.triptych:
                painted = torch.cat([*self._beside_them(face, style), painted.cpu()], dim=3)
            yield painted
        for number in numbers.tolist():
            self._beside.pop(number, None)

    def _beside_them(self, face: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """The photos and pictures of styles that paintings are of, each N,3,size,size in [-1, 1]."""
        white = torch.full((3, self.model.size, self.model.size), 255, dtype=torch.uint8)
        paths = [self.styles[number].picture for number in style.tolist()]
        styles = [white if path is None else self._picture(path) for path in paths]
        return (
            to_float(torch.stack([self._beside[number] for number in face.tolist()])),
            to_float(torch.stack(styles)),
        )

    def _picture(self, path: Path) -> Tensor:
        """The picture of a style; the first ones are kept, as many as there is room for.

        All come again with each face: a cache of those that came last would never have the one that comes next.
        """
        found = self._kept.get(path)
        if found is None:
            found = shown(path, self.model.size, self.how)
            if (len(self._kept) + 1) * found.numel() <= _KEPT:
                self._kept[path] = found
        return found

    def save(self, folder: Path) -> Path | None:
        """Keep the codes of random styles beside the results, as nothing else has them: None where there are none.

        Returns:
            The file, styles.pt, or styles-2.pt, -3, ... beside other codes.

        Raises:
            AnifastError: the file cannot be written.
        """
        drawn = [style for style in self.styles if style.drawn]
        if not drawn:
            return None
        return keep(
            folder, lambda path: torch.equal(codes(load(path)), codes(drawn)), lambda path: save(path, drawn), NAME
        )
