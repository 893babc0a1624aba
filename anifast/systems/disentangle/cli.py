"""`anifast disentangle`: what a trained disentangling network knows, sheets that it paints, styles and codes.

    anifast disentangle artists RUN                                       whom it knows, and by how many pictures
    anifast disentangle grid RUN --data artists --out grid.png            the same random contents by 12 artists
    anifast disentangle grid RUN a.png b.png --artist X Y --out grid.png  those of two pictures, by two artists
    anifast disentangle styles RUN a.png --out styles.png                 one content in many styles
    anifast disentangle contents RUN --artist X --out contents.png        many contents in one style
    anifast disentangle reconstruct RUN artists --out again.png           pictures in own, neutral and other style
    anifast disentangle fit RUN drawings --out new.json                   the style of an artist it does not know
    anifast disentangle export RUN artists --out codes.npz                codes of pictures and of artists
    anifast disentangle digits --data DIGITS --out runs/digits            the paper's digit experiment

Pictures have any size; those of a folder are found recursively. For a model of digits a folder with their data set's
files is such a folder too, and FOLDER#17 is one of it. `anifast disentangle VERB --help` lists the options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anifast.errors import AnifastError
from anifast.systems import options

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from anifast.systems.disentangle.inference import Model
    from anifast.systems.disentangle.pictures import Picture
    from anifast.systems.disentangle.styles import Style

    Draw = Callable[..., Image.Image]

#: A content that is drawn.
_RANDOM = "random"
_CONTENT = "pictures and folders whose contents are painted, or random: contents like those of the training pictures"
_EXPORTS = (".npz", ".pt", ".csv")
#: Styles on a sheet where none are asked for: as many as in the paper's figures.
_USUAL = {"grid": 12, "styles": 35}


def add_cli(parser: argparse.ArgumentParser) -> None:
    """The options of `anifast disentangle`."""
    from anifast.systems.disentangle import experiment

    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    sub = _verb(verbs, "artists", "list the artists and their numbers of pictures", "The artists that a model knows.")

    sub = _verb(
        verbs,
        "grid",
        "a sheet of artists x contents",
        "The same contents in the styles of several artists, a row each, with --data beside real pictures by them.",
    )
    sub.add_argument("contents", nargs="*", metavar="CONTENT", help=f"{_CONTENT} [random]")
    _styles(sub, "rows", "12 artists, spread over the list", "CONTENTs stand")
    sub.add_argument("--contents", dest="most", type=int, default=12, metavar="N", help=_most(12))
    sub.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with one of pictures for each artist, or the digits' files: two real pictures of each are shown",
    )
    _painting(sub)

    sub = _verb(
        verbs,
        "styles",
        "a sheet of one content in many styles",
        "One content in the styles of many artists, or in random ones.",
    )
    sub.add_argument(
        "contents", nargs="?", metavar="CONTENT", help="the picture whose content is painted, or random [random]"
    )
    _styles(sub, "styles", "35 artists, spread over the list", "CONTENT stands")
    _painting(sub)

    sub = _verb(verbs, "contents", "a sheet of many contents in one style", "Many contents in the style of one artist.")
    sub.add_argument("contents", nargs="*", metavar="CONTENT", help=f"{_CONTENT} [random]")
    sub.add_argument("--artist", required=True, metavar="STYLE", help=f"the style: {options.ONE_ARTIST}")
    sub.add_argument("--contents", dest="most", type=int, default=36, metavar="N", help=_most(36))
    _painting(sub)

    sub = _verb(
        verbs,
        "reconstruct",
        "a sheet of pictures painted again",
        "Pictures and what is painted of their contents: in their own artist's style, in the neutral one, and in "
        "another's.",
    )
    sub.add_argument("contents", nargs="+", metavar="PICTURE", help="pictures and folders")
    sub.add_argument(
        "--artist", metavar="STYLE", help=f"whose they are: {options.ONE_ARTIST} [whom their folder is called by]"
    )
    sub.add_argument("--other", metavar="STYLE", help="the other style, given likewise [the next artist of the list]")
    sub.add_argument(
        "--max",
        dest="most",
        type=int,
        default=8,
        metavar="N",
        help="of each folder, so many pictures, spread over it [8]",
    )
    _painting(sub)

    sub = _verb(
        verbs,
        "fit",
        "find the style of an artist that the model does not know",
        "The style in which a model paints some pictures best. This is an extension of ours: the paper has styles of "
        "the artists in training only. Of a run of both stages the style is sought for stage 2's generator, which then "
        "paints in it; name RUN/stage1 to take stage 1's. Its file stands in place of an artist's name: "
        "--artist STYLE.json.",
    )
    sub.add_argument("contents", nargs="+", metavar="PICTURE", help="pictures by one artist, and folders of such")
    sub.add_argument("--out", type=Path, required=True, metavar="JSON", help="the style")
    sub.add_argument("--name", metavar="NAME", help="what it is called [as the file]")
    sub.add_argument("--steps", type=int, default=300, metavar="N", help="of the search [300]")
    options.add_resize(sub)
    options.add_computing(sub)

    sub = _verb(
        verbs,
        "export",
        "write codes of pictures and of artists",
        "Content codes (mean and standard deviation) of pictures, and the styles of all artists: .npz and .pt hold "
        "both, .csv those of the pictures or, where none are given, the styles.",
    )
    sub.add_argument("contents", nargs="*", metavar="PICTURE", help="pictures and folders [none]")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"one of {', '.join(_EXPORTS)}")
    options.add_resize(sub)
    options.add_computing(sub)

    about = "train and evaluate the paper's three encoders of digits"
    sub = verbs.add_parser(
        "digits",
        help=about,
        description=experiment.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    experiment.add_options(sub)


def _verb(verbs: Any, name: str, about: str, description: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = verbs.add_parser(name, help=about, description=description, allow_abbrev=False)
    sub.add_argument("model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or an author's folder")
    return sub


def _styles(parser: argparse.ArgumentParser, what: str, usual: str, before: str) -> None:
    parser.add_argument(
        "--artist",
        nargs="+",
        metavar="STYLE",
        help=f"{what}: {options.ARTIST_SOURCES}; {before} before it [{usual}]",
    )
    parser.add_argument("--styles", type=int, metavar="N", help="how many random styles [1]")


def _most(usual: int) -> str:
    return f"how many random contents, and of each folder how many pictures, spread over it [{usual}]"


def _painting(parser: argparse.ArgumentParser) -> None:
    """What all sheets share."""
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the sheet")
    parser.add_argument("--seed", type=int, metavar="N", help="of random contents and styles [0]")
    options.add_resize(parser)
    options.add_computing(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    if args.verb == "artists":
        return _artists(args)
    if args.verb == "digits":
        from anifast.systems.disentangle import experiment

        return experiment.main(args)
    from anifast.engine import precision, state, translate
    from anifast.systems.commands import check_out
    from anifast.systems.styles import check_seed

    most = "max" if args.verb == "reconstruct" else "contents"
    for name, option in (("batch", "batch"), ("most", most), ("styles", "styles"), ("steps", "steps")):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise AnifastError(f"--{option} {value}: at least 1")
    check_seed(getattr(args, "seed", None))
    check_out(args.out, {"fit": (".json",), "export": _EXPORTS}.get(args.verb, (".png",)))
    if isinstance(args.contents, str) or args.contents is None:
        args.contents = [args.contents or _RANDOM]
    model = load_model(args.model, args.device, args.precision)
    verb = {
        "grid": _grid,
        "styles": _one_content,
        "contents": _one_style,
        "reconstruct": _reconstruct,
        "fit": _fit,
        "export": _export,
    }[args.verb]
    with state.about(args.model), precision.enough_memory(args.batch, "", "--batch"):
        translate.check_writable(args.out.parent)
        return verb(args, model)


def load_model(path: str | Path, device: str | None = None, precision: str = "fp32") -> Model:
    """A trained disentangling network.

    Raises:
        CheckpointError: the file cannot be used, or is of another system.
    """
    from anifast.systems.commands import load_as
    from anifast.systems.disentangle.inference import Model

    return load_as(Model, "`anifast disentangle` takes disentangling networks", path, device, precision)


def _gather(args: argparse.Namespace, model: Model, words: Sequence[str], most: int | None) -> list[Picture]:
    """The pictures of some sources, none of which the result overwrites."""
    from anifast.systems.commands import not_an_input
    from anifast.systems.disentangle.pictures import gather

    found = gather(model, words, most)
    not_an_input(args.out, (one.source for one in found if isinstance(one.source, Path)), "--out ")
    return found


def _contents(args: argparse.Namespace, model: Model, most: int, styles: int = 1) -> tuple[Tensor, Tensor | None]:
    """Contents [N, numbers], and the pictures that they are of, white for random ones; None where all are random.

    Refuses what has no room on a sheet in so many styles before it is drawn or read.
    """
    import torch

    from anifast.systems.disentangle import pictures, sheets

    chosen: list[Picture | None] = []
    for word in args.contents or [_RANDOM]:
        more = [] if word == _RANDOM else _gather(args, model, [word], most)
        sheets.check_room(model, styles, len(chosen) + (most if word == _RANDOM else len(more)))
        chosen += [None] * most if word == _RANDOM else more
    held = [picture for picture in chosen if picture is not None]
    codes = iter(model.random_contents(len(chosen) - len(held), args.seed or 0) if len(held) < len(chosen) else ())
    if not held:
        return torch.stack(list(codes)), None
    images = pictures.read(model, held, args.resize)
    encoded, seen, white = iter(model.contents(images, args.batch)), iter(images), torch.ones_like(images[0])
    return (
        torch.stack([next(codes if picture is None else encoded) for picture in chosen]),
        torch.stack([white if picture is None else next(seen) for picture in chosen]),
    )


def _chosen_styles(args: argparse.Namespace, model: Model) -> list[Style]:
    """The styles of a sheet."""
    from anifast.data.packed import spread
    from anifast.systems.disentangle.styles import gather
    from anifast.systems.styles import RANDOM

    words: Sequence[str] = args.artist or ()
    if model.style_size and args.artist is None:
        usual = spread(len(model.classes), _USUAL[args.verb])
        words = [model.classes[k] for k in usual] if args.styles is None else [RANDOM]
        if args.styles is None and len(usual) < len(model.classes):
            print(f"{len(usual)} of {len(model.classes)} artists, spread over the list; others by --artist")
    return gather(model, words, count=args.styles, seed=args.seed)


def _one(args: argparse.Namespace, model: Model, word: str | None, option: str) -> Style:
    """The one style that an option gives."""
    from anifast.systems.disentangle.styles import gather

    found = gather(model, [word] if word else [], seed=args.seed, option=option)
    if len(found) != 1:
        raise AnifastError(
            f"{option} {word}: gives {len(found)} styles, and one is needed; name one artist, or one style of a file "
            "by its number, as in styles.json#3"
        )
    return found[0]


def _draw(args: argparse.Namespace, model: Model, count: int, draw: Draw) -> int:
    from anifast.engine import precision
    from anifast.files import atomic_path
    from anifast.progress import Progress

    print(precision.describe(model.device, args.precision))
    with Progress(count, "paint") as bar:
        drawn = draw(batch=args.batch, on_painted=bar.update)
    with atomic_path(args.out) as temporary:
        drawn.save(temporary)
    print(args.out)
    return 0


def _grid(args: argparse.Namespace, model: Model) -> int:
    from anifast.systems.disentangle import pictures, sheets
    from anifast.systems.disentangle.styles import codes

    found = _chosen_styles(args, model)
    names = [style.name for style in found]
    contents, originals = _contents(args, model, args.most, len(found))
    sheets.check_room(model, len(found) + (originals is not None), len(contents) + 2 * (args.data is not None))
    real = None if args.data is None else pictures.of_artists(model, args.data, names, 2, args.resize)
    draw = partial(sheets.grid, model, contents, codes(found), names=names, originals=originals, real=real)
    return _draw(args, model, len(found) * len(contents), draw)


def _one_content(args: argparse.Namespace, model: Model) -> int:
    from anifast.systems.disentangle import sheets
    from anifast.systems.disentangle.styles import codes

    found = _chosen_styles(args, model)
    content, original = _contents(args, model, 1, len(found))
    names = [style.name for style in found]
    draw = partial(sheets.one_content, model, content, codes(found), names=names, original=original)
    return _draw(args, model, len(found), draw)


def _one_style(args: argparse.Namespace, model: Model) -> int:
    from anifast.systems.disentangle import sheets
    from anifast.systems.disentangle.styles import codes

    style = _one(args, model, args.artist, "--artist")
    contents, originals = _contents(args, model, args.most)
    draw = partial(sheets.one_style, model, contents, codes([style]), name=style.name, originals=originals)
    return _draw(args, model, len(contents), draw)


def _reconstruct(args: argparse.Namespace, model: Model) -> int:
    import torch

    from anifast.systems.disentangle import pictures, sheets
    from anifast.systems.disentangle.styles import NEUTRAL, codes
    from anifast.systems.sheets import label

    if not model.style_size:
        for option in ("artist", "other"):
            if getattr(args, option) is not None:
                _one(args, model, getattr(args, option), f"--{option}")  # which says that there are none
    found = _gather(args, model, args.contents, args.most)
    sheets.check_room(model, len(found), 4)
    images = pictures.read(model, found, args.resize)
    names = [label(picture.name, "picture", number) for number, picture in enumerate(found)]
    known = [False] * len(found)
    own, other = None, model.neutral(len(found))
    if model.style_size:
        given = None if args.artist is None else _one(args, model, args.artist, "--artist")
        owners = [given.name if given else picture.artist for picture in found]
        known = [owner is not None for owner in owners]
        if given is not None:
            own = codes([given]).expand(len(found), -1)
        elif any(known):
            own = codes([_one(args, model, owner or NEUTRAL, "--artist") for owner in owners])
        if not all(known):
            print(
                f"anifast: warning: {known.count(False)} of {len(known)} pictures stand in no folder of an artist; "
                "name theirs by --artist, and they are painted in their own style too",
                file=sys.stderr,
            )
        if args.other is not None:
            second = [_one(args, model, args.other, "--other")] * len(found)
        else:
            second = [_one(args, model, _next(model, owner), "--other") for owner in owners]
        other = codes(second)
        names = [
            "\n".join(
                [name, *([f"by {_letters(model, owner)}"] if owner else []), f"other: {_letters(model, style.name)}"]
            )
            for name, owner, style in zip(names, owners, second, strict=True)
        ]
    count = len(found) * (1 if not model.style_size else 2 if own is None else 3)
    draw = partial(sheets.again, model, images, own, torch.as_tensor(other), names=names, known=known)
    return _draw(args, model, count, draw)


def _letters(model: Model, name: str) -> str:
    """A style's name as sheets can show it: an artist whose letters the font lacks by his number."""
    from anifast.systems.sheets import label

    return label(name, "artist" if model.knows(name) else "style", model.number(name) if model.knows(name) else 0)


def _next(model: Model, owner: str | None) -> str:
    """The artist behind another in the list, and behind the last the first."""
    number = model.number(owner) + 1 if owner is not None and model.knows(owner) else 0
    return model.classes[number % len(model.classes)]


def _read(
    args: argparse.Namespace, model: Model, found: Sequence[Picture], label: str, use: Callable[[Tensor], None]
) -> tuple[list[Picture], int]:
    """Hand pictures in batches to `use`; those that could be read, and how many could not."""
    from anifast.progress import Progress
    from anifast.systems.disentangle import pictures

    failed: dict[str, str] = {}
    good: list[Picture] = []
    with Progress(len(found), label) as bar:
        for part, images in pictures.batches(model, found, args.resize, args.batch, failed):
            use(images)
            good += part
            bar.update(len(part))
    for why in failed.values():
        print(f"anifast: failed: {why}", file=sys.stderr)
    if found and not good:
        raise AnifastError("none of the pictures can be read (named above)")
    return good, len(found) - len(good)


def _told(failed: int, good: int, what: str) -> int:
    from anifast.data.folders import counted

    if failed:
        raise AnifastError(f"{failed} of {counted(failed + good)} could not be read (named above); {what} the others")
    return 0


def _fit(args: argparse.Namespace, model: Model) -> int:
    import torch

    from anifast.data.folders import counted
    from anifast.engine import precision
    from anifast.progress import Progress
    from anifast.systems.disentangle import styles

    _ = model.bank  # refuses a plain VAE before pictures are read
    parts: list[Tensor] = []
    good, failed = _read(args, model, _gather(args, model, args.contents, None), "read", parts.append)
    images = torch.cat(parts)
    about = precision.describe(model.device, args.precision)
    print(f"{counted(len(good))}, the generator of {model.stage}, {about}")
    distances: list[float] = []
    with Progress(args.steps, "fit", unit="step") as bar:

        def on_step(distance: float) -> None:
            distances.append(distance)
            bar.update(1, f"distance {distance:.4f}")

        code = model.fit_style(images, args.steps, batch=args.batch, on_step=on_step)
    found = model.distance(images, code, args.batch)  # the last that was told is that before the last step
    styles.save(args.out, [styles.Style(args.name or args.out.stem, tuple(code.tolist()))])
    print(f"distance {distances[0]:.4f} in the neutral style, {found:.4f} in this one -> {args.out}")
    return _told(failed, len(good), "the style is of")


def _export(args: argparse.Namespace, model: Model) -> int:
    import numpy as np
    import torch

    from anifast.data.folders import counted, printable
    from anifast.engine import state
    from anifast.files import atomic_path

    suffix, failed = args.out.suffix.lower(), 0
    good: list[Picture] = []
    texts: dict[str, list[str]] = {}
    numbers: dict[str, Tensor] = {}
    if args.contents:
        codes: list[Tensor] = []
        found = _gather(args, model, args.contents, None)
        good, failed = _read(
            args, model, found, "encode", lambda images: codes.append(torch.stack(model.encode(images)).cpu())
        )
        numbers["mean"], numbers["std"] = torch.cat(codes, 1)
        texts["names"] = [printable(picture.name) for picture in good]
        texts["artists"] = [printable(picture.artist or "") for picture in good]
    elif not model.style_size:
        raise AnifastError("export: this model is a plain VAE and has no styles; name pictures, whose codes to write")
    if model.style_size:
        style = model.bank.table()
        numbers["style_mean"], numbers["style_std"] = (part.float().cpu() for part in style)
        texts["classes"] = [printable(name) for name in model.classes]
        if model.counts is not None:
            numbers["counts"] = model.counts.cpu()
    if suffix == ".pt":
        state.save(args.out, texts | numbers)
    else:
        with atomic_path(args.out) as temporary:
            if suffix == ".npz":
                arrays: dict[str, Any] = {key: np.array(value, dtype=np.str_) for key, value in texts.items()}
                with open(temporary, "wb") as file:  # given a name, it adds .npz to whatever ends otherwise, .NPZ too
                    np.savez(file, **arrays | {key: value.numpy() for key, value in numbers.items()})
            else:
                _write_csv(temporary, texts, numbers)
    what = [counted(len(good))] if good else []
    if model.style_size and not (suffix == ".csv" and good):
        what.append(f"{len(model.classes)} artists")
    print(f"codes of {' and '.join(what)} -> {args.out}")
    return _told(failed, len(good), "the codes are of")


def _write_csv(path: Path, texts: dict[str, list[str]], numbers: dict[str, Tensor]) -> None:
    """One table: of pictures, or of artists where there are none."""
    import csv

    pictures = "names" in texts
    heads = {"picture": texts["names"], "artist": texts["artists"]} if pictures else {"artist": texts["classes"]}
    if not pictures and "counts" in numbers:
        heads["pictures"] = list(map(str, numbers["counts"].tolist()))
    mean, std = (numbers[key if pictures else f"style_{key}"] for key in ("mean", "std"))
    width = mean.shape[1]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*heads, *(f"mean{k}" for k in range(width)), *(f"std{k}" for k in range(width))])
        for row in zip(*heads.values(), mean.tolist(), std.tolist(), strict=True):
            *words, first, second = row
            writer.writerow([*words, *(f"{x:.9g}" for x in (*first, *second))])  # digits that float32 has


def _artists(args: argparse.Namespace) -> int:
    from anifast.data.folders import printable

    model = load_model(args.model, "cpu")
    counts = [""] * len(model.classes) if model.counts is None else list(map(str, model.counts.tolist()))
    width = max(map(len, counts), default=0)
    for name, count in zip(model.classes, counts, strict=True):
        print(f"{count:>{width}}  {printable(name)}" if width else printable(name))
    if not model.style_size:
        print("anifast: warning: this model is a plain VAE: it was trained on these and has no styles", file=sys.stderr)
    return 0
