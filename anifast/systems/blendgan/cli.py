"""`anifast blendgan`: pairs, sheets and videos that a trained BlendGAN paints, its style codes, and one-shot styles.

    anifast blendgan pairs RUN --out pairs --count 50                        random faces, natural | in a random style
    anifast blendgan pairs RUN --out pairs --style art.png                   in the style of a picture
    anifast blendgan sweep RUN --out sweep.png --style art.png               the blending indicator from 0 to L
    anifast blendgan grid RUN --out grid.png --faces photos --style art      faces x styles
    anifast blendgan video RUN photo.png --style art --out video.mp4         from style to style
    anifast blendgan encode RUN art --out codes.pt                           style codes, for --style codes.pt
    anifast blendgan align photos --out faces                                faces cut and turned as FFHQ's
    anifast blendgan lmdb ffhq --out data/faces --sizes 256,1024             a folder's pictures as one database
    anifast blendgan finetune RUN art.png --data DIR --out RUN2              one picture's style alone

Pictures have any size; those of a folder are found recursively. Photos are of faces aligned as FFHQ's
(`anifast blendgan align`). `anifast blendgan VERB --help` lists the options.
Photos x styles as files: `anifast translate`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.systems import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from anifast.systems.blendgan.inference import Model
    from anifast.systems.blendgan.styles import Style

#: What a style is given as, for help texts.
_STYLES = options.BLENDGAN_STYLES
_RANDOM = "random"
#: Settings of `finetune` where nothing else is asked for: the paper's, and saves that fit a thousand pictures.
_ONE_SHOT: dict[str, Any] = {
    "stage": "all",
    "style_encoder": None,
    "face_discriminator": None,
    "batch": 1,
    "iterations": 1000,
    "warm_up": 0,
    "psp_iterations": 0,
    "images": None,
    "minutes": None,
    "log_every": 10,
    "sheet_every": 250,
    "save_every": 250,
}
#: The settings that `finetune` has options for.
_TUNING = (
    "iterations",
    "warm_up",
    "face_discriminator",
    "lr",
    "minutes",
    "seed",
    "precision",
    "save_every",
    "sheet_every",
    "log_every",
)
#: Those of them that may change when it goes on.
_ON_RESUME = ("iterations", "minutes", "save_every", "sheet_every", "log_every")


def add_cli(parser: argparse.ArgumentParser) -> None:
    """The options of `anifast blendgan`."""
    from anifast.systems.blendgan import alignment, database

    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    sub = verbs.add_parser(
        "pairs",
        help="random faces, natural beside stylized",
        description="Pictures of faces, each natural and in one style or several, which are the same for all.",
        allow_abbrev=False,
    )
    _common(sub, "DIR", "where the pictures go: 000000.png, 000001.png, ...")
    sub.add_argument("--count", type=int, metavar="N", help="faces [20, or all of a file]")
    sub.add_argument("--faces", type=Path, metavar="FILE", help="their codes: z or W+ in a .pt or .npy [random]")
    _style(sub)
    sub.add_argument("--jpg", action="store_true", help="write JPEGs, as the authors do")

    sub = verbs.add_parser(
        "sweep",
        help="a sheet of faces by the blending indicator",
        description="A sheet of faces in one style: a row for each, and a column for each indicator from 0, all of the "
        "style, to L, none of it.",
        allow_abbrev=False,
    )
    _common(sub, "PNG", "the sheet", index=False)
    _faces(sub, 4)
    _style(sub, several=False)
    sub.add_argument("--indices", metavar="I,I,...", help="the indicators [0 to L]")

    sub = verbs.add_parser(
        "grid",
        help="a sheet of faces x styles",
        description="A sheet of every face in every style: the faces in the first columns, and pictures of the styles "
        "in the first row.",
        allow_abbrev=False,
    )
    _common(sub, "PNG", "the sheet")
    _faces(sub, 4)
    _style(sub, 6)

    sub = verbs.add_parser(
        "video",
        help="a face that goes from style to style",
        description="A video of each face: the face, the pictures of styles that slide by, and the painting. With 8 "
        'styles it has 227 frames. Needs pip install "anifast[video]".',
        allow_abbrev=False,
    )
    sub.add_argument("model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or the authors' files")
    sub.add_argument("faces", nargs="+", metavar="FACE", help=f"{options.BLENDGAN_FACES}; a video each")
    sub.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE|DIR",
        help="the video (.mp4, .m4v, .mov, .mkv, .webm), or the folder of those of several faces (FACE.mp4)",
    )
    sub.add_argument("--count", type=int, metavar="N", help="random faces [1]")
    _style(sub, 8)
    sub.add_argument(
        "--draw",
        type=int,
        default=8,
        metavar="N",
        help="styles of a video, drawn from all, some twice; 0: all in their order [8]",
    )
    sub.add_argument("--slerp", action="store_true", help="go along the arc between styles, not along the line")
    sub.add_argument("--rate", type=int, default=30, metavar="N", help="frames a second [30]")
    _painting(sub, usual=7)

    sub = verbs.add_parser(
        "encode",
        help="save the style codes of pictures",
        description="Save the style codes of pictures, to paint in them without the pictures and the style encoder.",
        allow_abbrev=False,
    )
    sub.add_argument("model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or the authors' files")
    sub.add_argument("styles", type=Path, nargs="+", metavar="STYLE", help="pictures, and folders of such")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="the file of codes")
    options.add_parts(sub, psp=False)
    options.add_resize(sub)
    options.add_computing(sub, f"{options.BATCH}, {options.FEWER}")

    alignment.add_options(verbs.add_parser("align", help="cut and turn faces as FFHQ's are", allow_abbrev=False))
    database.add_options(verbs.add_parser("lmdb", help="write a folder's pictures into an LMDB", allow_abbrev=False))

    sub = verbs.add_parser(
        "finetune",
        help="adapt a trained generator to one picture's style",
        description="One-shot styles (the paper's A.5): go on with the generator and the discriminators of a run, with "
        "one picture as all art and the photos in faces of --data. Discriminators that are missing, as they are in the "
        "published file, learn from the art in styles of --data first, while the generator waits (RUN2/warm-up).",
        allow_abbrev=False,
    )
    sub.add_argument("model", type=Path, metavar="RUN|CKPT", help="run, checkpoint, or the authors' files")
    sub.add_argument("style", type=Path, metavar="STYLE", help="the picture")
    sub.add_argument("--data", type=Path, required=True, metavar="DIR", help="as of anifast train blendgan")
    sub.add_argument("--out", type=Path, required=True, metavar="RUN2", help="run folder, made if missing")
    sub.add_argument("--resume", action="store_true", help="go on with the run in --out, with its settings")
    sub.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
    _tuning(sub)


def _tuning(parser: argparse.ArgumentParser) -> None:
    """The settings of training that `finetune` lets one choose, each with the help text that training has for it."""
    import dataclasses

    from anifast.engine import config as settings
    from anifast.systems.blendgan.config import Config

    usual = {"one-shot": {"about": "one picture", **_ONE_SHOT}}
    others = [field.name for field in dataclasses.fields(Config) if field.name not in _TUNING]
    settings.add_options(parser, Config, usual, leave_out=others)


def _common(parser: argparse.ArgumentParser, metavar: str, about: str, *, index: bool = True) -> None:
    """What pairs, sweep and grid share."""
    parser.add_argument("model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or the authors' files")
    parser.add_argument("--out", type=Path, required=True, metavar=metavar, help=about)
    _painting(parser, usual=6 if index else None)


def _faces(parser: argparse.ArgumentParser, usual: int) -> None:
    parser.add_argument("--faces", nargs="+", metavar="FACE", help=f"rows: {options.BLENDGAN_FACES} [random]")
    parser.add_argument("--count", type=int, metavar="N", help=f"random faces [{usual}]")


def _style(parser: argparse.ArgumentParser, usual: int = 1, several: bool = True) -> None:
    parser.add_argument("--style", nargs="+" if several else 1, metavar="STYLE", help=f"{_STYLES} [random]")
    if several:
        parser.add_argument("--styles", type=int, metavar="N", help=f"how many random styles [{usual}]")


def _painting(parser: argparse.ArgumentParser, usual: int | None) -> None:
    """What all that paints has."""
    if usual is not None:
        options.add_index(parser, usual)
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="PSI",
        help="1: faces as they are, 0: the mean face, between: tamer [random faces: the checkpoint's, or 0.75; photos: "
        "1]",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of random faces, styles and drawings [0]")
    options.add_output(parser)
    options.add_parts(parser)
    options.add_resize(parser, stretching="with --parity")
    options.add_computing(parser, f"{options.BATCH}, {options.FEWER}")


# --- what is painted


@dataclass
class Faces:
    """Faces to paint.

    Attributes:
        names: of each.
        w: their codes, W+ [N, L, style_dim] (w [N, style_dim] where all are random).
        paths: the photos; none for faces that are not of one.
        failed: reasons of those that cannot be read.
    """

    names: list[str]
    w: Tensor
    paths: list[Path | None]
    failed: list[str] = field(default_factory=list)


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    if args.verb == "finetune":
        return _finetune(args)
    if args.verb == "align":
        from anifast.systems.blendgan import alignment

        return alignment.run(args)
    if args.verb == "lmdb":
        from anifast.systems.blendgan import database

        return database.run(args)
    from anifast.engine import precision, state, translate
    from anifast.systems.styles import check_seed

    for name, least in (("batch", 1), ("count", 1), ("rate", 1), ("draw", 0)):
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise AnifastError(f"--{name} {value}: at least {least}")
    if getattr(args, "draw", 0) == 1:
        raise AnifastError("--draw 1: a video goes from style to style; take at least 2, or 0 for all")
    for name in ("seed", "noise"):
        check_seed(getattr(args, name, None), f"--{name}")
    _check_out(args)
    args.resize = options.resize_of(args)
    model = load_model(args)
    translate.check_writable(args.out if args.verb == "pairs" or _is_folder(args) else args.out.parent)
    used = _used(args, model)
    args.batch = args.batch or model.fitting_batch(used)
    for line in options.memory_lines(model.memory(args.batch, used), args.batch):
        print(line)
    print(precision.describe(model.device, args.precision))
    verb = {"pairs": _pairs, "sweep": _sweep, "grid": _grid, "video": _video, "encode": _encode}[args.verb]
    with state.about(args.model), precision.enough_memory(args.batch, "", "--batch"):
        failed = verb(args, model)
    for why in failed:
        print(f"anifast: failed: {why}", file=sys.stderr)
    if failed:
        raise AnifastError(f"{len(failed)} could not be used (named above); the others are done")
    return 0


def load_model(args: argparse.Namespace) -> Model:
    """The trained BlendGAN that a command names.

    Raises:
        CheckpointError: the file cannot be used, or is of another system.
    """
    from anifast.systems.blendgan.inference import Model
    from anifast.systems.commands import load_as

    parts = options.given_parts(args)
    return load_as(Model, "`anifast blendgan` takes BlendGANs", args.model, args.device, args.precision, **parts)


def _used(args: argparse.Namespace, model: Model) -> tuple[str, ...]:
    """The networks that a verb takes."""
    if args.verb == "encode":
        return ("E_style",)
    faces = [] if args.verb == "pairs" else args.faces or []
    return model.used(args.style, faces)


def _is_folder(args: argparse.Namespace) -> bool:
    """Whether --out is the folder of several videos."""
    return args.verb == "video" and (args.out.is_dir() or not args.out.suffix)


def _check_out(args: argparse.Namespace) -> None:
    """Refuse a result of another kind than what is written, or that is a folder."""
    from anifast.systems.commands import check_out

    suffix = {"sweep": ".png", "grid": ".png", "encode": ".pt"}.get(args.verb)
    if suffix:
        check_out(args.out, (suffix,))
    if args.verb == "video":
        from anifast.data import video

        video.need_av()
        if not _is_folder(args):
            video.check_suffix(args.out)


def _gathered(args: argparse.Namespace, model: Model, sources: Sequence[str], usual: int) -> list[Style]:
    """The styles that options ask for; then the style encoder is released."""
    from anifast.systems.blendgan.styles import gather

    count = getattr(args, "styles", None)
    if count is None and (not sources or _RANDOM in sources):
        count = usual
    seed = args.seed if not sources or _RANDOM in sources else None  # else it is of the faces
    found = gather(model, sources, count=count, seed=seed, how=args.resize, batch=args.batch)
    model.release("E_style")
    return found


def _faces_of(args: argparse.Namespace, model: Model, sources: Sequence[str], usual: int) -> Faces:
    """The faces that sources ask for; then the encoder of photos is released.

    Raises:
        DataError: a source that cannot be read, or none of the photos can.
        AnifastError: a number of random faces where none is asked for.
    """
    import torch

    from anifast.systems.blendgan.styles import encoded, load_faces
    from anifast.systems.styles import check_truncation, pictures_in

    psi = None if args.truncation is None else check_truncation(args.truncation, "the mean face", "faces")
    sources = list(sources) or [_RANDOM]
    if args.count is not None and _RANDOM not in sources and not any(map(_is_codes, sources)):
        raise AnifastError(f"--count {args.count}: is the number of random faces, and none is asked for; leave it out")
    names: list[str] = []
    found: list[Tensor | None] = []
    paths: list[Path | None] = []
    failed: list[str] = []
    drawn, seed = 0, args.seed or 0
    for source in sources:
        if source == _RANDOM:
            count = args.count or usual
            z = model.random_faces(drawn + count, seed)[drawn:]
            names += [f"face {n}" for n in range(drawn, drawn + count)]
            drawn += count
            found += list(model.faces(z, psi).cpu())
            paths += [None] * count
        elif _is_codes(source):
            kind, codes = load_faces(source, model.style_dim, model.n_latent)
            codes = codes[: args.count]
            names += [f"{Path(source).stem} {n}" for n in range(len(codes))]
            if kind == "z":
                w = model.faces(codes, psi)
            else:  # they are left as they are, as photos' are
                w = model.truncate(codes.to(model.device), 1.0 if psi is None else psi)
            found += list(w.cpu())
            paths += [None] * len(codes)
        else:
            inside, rejected = pictures_in(Path(source))
            failed += [f"{name}: {why}" for name, why in rejected.items()]
            names += [path.stem for path in inside]
            found += [None] * len(inside)
            paths += inside
    photos = [path for path in paths if path is not None]
    if photos:
        if drawn or len(photos) < len(paths):
            model.release("G")  # painted is later, when the encoder is gone
        read, unread = encoded(model, photos, "psp", how=args.resize, batch=args.batch, label="faces")
        model.release("psp")
        failed += unread.values()
        if psi is not None and read:
            read = {number: model.truncate(w.to(model.device)[None], psi)[0].cpu() for number, w in read.items()}
        numbers = iter(range(len(photos)))
        found = [w if path is None else read.get(next(numbers)) for w, path in zip(found, paths, strict=True)]
    held = [k for k, w in enumerate(found) if w is not None]
    if not held:
        raise _nothing(failed)
    codes_of = [w for w in found if w is not None]
    if len({w.ndim for w in codes_of}) > 1:  # W+ of photos beside w of random faces
        codes_of = [w if w.ndim == 2 else w.expand(model.n_latent, -1) for w in codes_of]
    return Faces([names[k] for k in held], torch.stack(codes_of), [paths[k] for k in held], failed)


def _nothing(failed: Sequence[str]) -> DataError:
    """What to raise where no picture could be read, for these reasons; several are told here."""
    if len(failed) == 1:
        return DataError(failed[0])
    for why in failed:
        print(f"anifast: failed: {why}", file=sys.stderr)
    return DataError("no picture could be read (named above)")


def _is_codes(source: str) -> bool:
    return Path(source).suffix.lower() in (".pt", ".npy")


def _pictures_of(args: argparse.Namespace, paths: Sequence[Path | None], side: int) -> Tensor | None:
    """uint8 N,3,side,side, white for those that there is no picture of; None where there is none of any."""
    import torch

    from anifast.systems.blendgan.styles import shown

    if all(path is None for path in paths):
        return None
    white = torch.full((3, side, side), 255, dtype=torch.uint8)
    return torch.stack([white if path is None else shown(path, side, args.resize) for path in paths])


# --- verbs


def _pairs(args: argparse.Namespace, model: Model) -> list[str]:
    import torch

    from anifast.data.folders import counted, to_uint8
    from anifast.files import atomic_path
    from anifast.progress import Progress
    from anifast.systems.blendgan.styles import check_index, codes, truncated
    from anifast.systems.commands import not_an_input
    from anifast.systems.sheets import check_finite

    model.require("G")
    index = check_index(args.index, model.n_latent)
    styles = _gathered(args, model, args.style or [], 1)
    faces = _faces_of(args, model, [str(args.faces)] if args.faces else [], 20)
    each, count = 1 + len(styles), len(faces.names)
    every = codes(styles)
    every = torch.cat([every[:1], every])  # with an indicator of L it is nobody's
    indices = torch.tensor([model.n_latent] + [index] * len(styles))
    name, suffix = "JPEG" if args.jpg else "PNG", "jpg" if args.jpg else "png"
    targets = [args.out / f"{number:06d}.{suffix}" for number in range(count)]
    for target in targets:
        not_an_input(target, [style.picture for style in styles])
    print(f"{counted(count)}: natural | {', '.join(style.name for style in styles[:3])}"
          f"{' ...' if len(styles) > 3 else ''}, index {index}")  # fmt: skip
    rest: Tensor | None = None
    done = 0
    with Progress(count, "pairs") as bar:
        parts = model.paintings(
            faces.w.repeat_interleave(each, 0),
            every.repeat(count, 1),
            indices.repeat(count),
            noise=args.noise,
            each=each,
            batch=args.batch,
        )
        for part in parts:
            check_finite(part)
            pixels = to_uint8(truncated(part) if args.parity else part).cpu()
            rest = pixels if rest is None else torch.cat([rest, pixels])
            while len(rest) >= each:
                row, rest = torch.cat(list(rest[:each]), dim=2), rest[each:]
                with atomic_path(targets[done], sync=False) as temporary:
                    _image(row).save(temporary, format=name, **({"quality": 95} if args.jpg else {}))
                done += 1
                bar.update()
    print(f"{counted(count)} -> {args.out}")
    return faces.failed


def _image(pixels: Tensor) -> Any:
    """uint8 3,H,W as a picture."""
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _sweep(args: argparse.Namespace, model: Model) -> list[str]:
    from anifast.systems.blendgan import sheets
    from anifast.systems.blendgan.styles import check_index
    from anifast.systems.commands import not_an_input

    model.require("G")
    last = model.n_latent
    indices = list(range(last + 1))
    if args.indices is not None:
        try:
            indices = [int(word) for word in args.indices.split(",")]
        except ValueError:
            raise AnifastError(
                f"--indices {args.indices}: whole numbers with commas between, as in 0,6,{last}"
            ) from None
        indices = [check_index(index, last, option="--indices") for index in indices]
    styles = _gathered(args, model, args.style or [], 1)
    if len(styles) != 1:
        raise AnifastError(
            f"--style {args.style[0]}: gives {len(styles)} styles, and a sweep is of one; name one picture, or one of "
            "a file of codes as codes.pt#3"
        )
    faces = _faces_of(args, model, args.faces or [], 4)
    not_an_input(args.out, [styles[0].picture, *faces.paths])
    tile = sheets.tile_of(model.size)

    def draw(bar: Any) -> Any:
        return sheets.sweep(
            model,
            faces.w,
            styles[0].code[None],
            indices=indices,
            names=faces.names,
            photos=_pictures_of(args, faces.paths, tile),
            style_name=styles[0].name,
            reference=_pictures_of(args, [styles[0].picture], tile),
            noise=args.noise,
            batch=args.batch,
            on_painted=bar.update,
        )

    _write_sheet(args.out, len(faces.names) * len(indices), draw)
    return faces.failed


def _grid(args: argparse.Namespace, model: Model) -> list[str]:
    from anifast.systems.blendgan import sheets
    from anifast.systems.blendgan.styles import check_index, codes
    from anifast.systems.commands import not_an_input

    model.require("G")
    index = check_index(args.index, model.n_latent)
    styles = _gathered(args, model, args.style or [], 6)
    faces = _faces_of(args, model, args.faces or [], 4)
    pictures = [style.picture for style in styles]
    not_an_input(args.out, [*pictures, *faces.paths])
    tile = sheets.tile_of(model.size)

    def draw(bar: Any) -> Any:
        return sheets.grid(
            model,
            faces.w,
            codes(styles),
            index=index,
            names=faces.names,
            photos=_pictures_of(args, faces.paths, tile),
            heads=[style.name for style in styles],
            references=_pictures_of(args, pictures, tile),
            noise=args.noise,
            batch=args.batch,
            on_painted=bar.update,
        )

    _write_sheet(args.out, len(faces.names) * (1 + len(styles)), draw)
    return faces.failed


def _write_sheet(out: Path, count: int, draw: Any) -> None:
    from anifast.files import atomic_path
    from anifast.progress import Progress

    with Progress(count, "paint") as bar:
        drawn = draw(bar)
    with atomic_path(out) as temporary:
        drawn.save(temporary)
    print(out)


def _video(args: argparse.Namespace, model: Model) -> list[str]:
    import random

    from anifast.data.folders import to_uint8
    from anifast.progress import Progress
    from anifast.systems.blendgan import video
    from anifast.systems.blendgan.config import VIDEO_INDEX
    from anifast.systems.blendgan.styles import check_index, codes, truncated
    from anifast.systems.commands import not_an_input
    from anifast.systems.sheets import check_finite
    from anifast.systems.styles import endings

    model.require("G")
    index = check_index(args.index, model.n_latent, VIDEO_INDEX)
    styles = _gathered(args, model, args.style or [], video.STYLES)
    if len(styles) < 2:
        option = f"--style {args.style[0]}" if args.style else f"--styles {args.styles}"
        raise AnifastError(f"{option}: one style is no way from style to style; give at least 2")
    faces = _faces_of(args, model, args.faces, 1)
    if len(faces.names) > 1 and not _is_folder(args):
        raise AnifastError(f"--out {args.out}: {len(faces.names)} faces make as many videos; give a folder")
    targets = [args.out / f"{name}.mp4" for name in endings(faces.names, "")] if _is_folder(args) else [args.out]
    for target in targets:
        not_an_input(target, [*(style.picture for style in styles), *faces.paths])
    source, every = random.Random(args.seed or 0), codes(styles)
    drawn = [
        source.choices(range(len(styles)), k=args.draw) if args.draw else list(range(len(styles))) for _ in targets
    ]
    total = sum(len(video.moments(len(chosen))) for chosen in drawn)
    made: list[str] = []
    with Progress(total, "video", unit="frame") as bar:
        for number, (target, chosen) in enumerate(zip(targets, drawn, strict=True)):
            w = faces.w[number : number + 1]
            face = _pictures_of(args, [faces.paths[number]], model.size)
            if face is None:
                natural = model.paint(w, noise=args.noise)
                check_finite(natural)
                face = to_uint8(truncated(natural) if args.parity else natural).cpu()
            count = video.write(
                model,
                target,
                w,
                every[chosen],
                face=face[0].permute(1, 2, 0).numpy(),
                pictures=_sliding(args, model, [styles[k] for k in chosen]),
                index=index,
                slerp=args.slerp,
                noise=args.noise,
                parity=args.parity,
                rate=args.rate,
                batch=args.batch,
                bar=bar,
            )
            made.append(f"{count} frames through {', '.join(styles[k].name for k in chosen)} -> {target}")
    print("\n".join(made))
    return faces.failed


def _sliding(args: argparse.Namespace, model: Model, styles: Sequence[Style]) -> list[NDArray[np.uint8]] | None:
    """Pictures of styles, each read once; None where there are none."""
    paths = [style.picture for style in styles]
    alone = list(dict.fromkeys(paths))
    read = _pictures_of(args, alone, model.size)
    if read is None:
        return None
    by_path = {path: picture.permute(1, 2, 0).contiguous().numpy() for path, picture in zip(alone, read, strict=True)}
    return [by_path[path] for path in paths]


def _encode(args: argparse.Namespace, model: Model) -> list[str]:
    from anifast.data.folders import counted
    from anifast.systems.blendgan.styles import Style, encoded, save
    from anifast.systems.commands import not_an_input
    from anifast.systems.styles import pictures_in

    paths: list[Path] = []
    failed: list[str] = []
    for source in args.styles:
        inside, rejected = pictures_in(source)
        paths += inside
        failed += [f"{name}: {why}" for name, why in rejected.items()]
    not_an_input(args.out, paths)
    found, unread = encoded(model, paths, "E_style", how=args.resize, batch=args.batch, label="styles")
    failed += unread.values()
    if not found:
        raise _nothing(failed)
    save(args.out, [Style(paths[number].stem, code) for number, code in found.items()])
    print(f"style codes of {counted(len(found))} -> {args.out}")
    return failed


def _finetune(args: argparse.Namespace) -> int:
    from anifast import systems
    from anifast.engine import config as settings
    from anifast.engine import state
    from anifast.systems import runs
    from anifast.systems.blendgan import checkpoints
    from anifast.systems.blendgan.config import Config

    given = settings.given(args, Config)
    given = {name: value for name, value in given.items() if name in _TUNING}
    if args.resume:
        values = {name: value for name, value in given.items() if name in _ON_RESUME}
        other = sorted(set(given) - set(values))
        if other:
            raise AnifastError(f"--{other[0].replace('_', '-')}: a resumed run keeps it; leave it out")
        _check_begun_with(args)
    else:
        with state.about(args.model):
            found = systems.read(args.model)
            if not checkpoints.recognises(found):
                raise CheckpointError("no BlendGAN is in it")
            held = checkpoints.contents(found)
            if "G" not in held.nets or held.origin == "stylegan2":
                raise CheckpointError("this file lacks the generator of a BlendGAN, which is adapted")
            own = held.config.as_dict() if held.origin == "anifast" else {}
            own |= checkpoints.architecture(held.config, *(name for name in held.nets if name != "projector"))
        values = own | _ONE_SHOT | {"start_from": str(args.model), "one_shot": str(args.style)} | given
        del found, held
    finished = runs.train("blendgan", args.data, args.out, values=values, resume=args.resume, device=args.device)
    return 0 if finished else 130


def _check_begun_with(args: argparse.Namespace) -> None:
    """Look whether the run in --out adapts this model to this picture.

    Raises:
        AnifastError: it adapts another one, or to another, or is no such run.
    """
    import json

    try:
        found = json.loads((args.out / "config.json").read_text(encoding="utf-8"))
        held = {name: found.get(name) for name in ("start_from", "one_shot")}
    except (OSError, ValueError, AttributeError):
        return  # what is wrong with it is told by whoever goes on with it
    if held["one_shot"] is None:
        raise AnifastError(f"--out {args.out}: is no run of one picture; go on with it by anifast train")
    for name, path in (("start_from", args.model), ("one_shot", args.style)):
        if held[name] is None or Path(held[name]).resolve() != path.resolve():
            raise AnifastError(f"{path}: the run in {args.out} was begun with {held[name]}; a resumed run keeps it")
