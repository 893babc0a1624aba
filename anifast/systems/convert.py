"""`anifast convert`: the networks of a run or of an author's file, written for anifast or for an author's code.

    anifast convert runs/faces checkpoints/faces --format reference     latest_net_G_A.pth and three more
    anifast convert runs/faces faces --format reference --direction AB  latest_net_G.pth, for its --model test
    anifast convert checkpoints/selfie2anime s2a.pt                     from the reference's folder to one own file
    anifast convert runs/faces small.pt                                 the networks of a run without its optimisers
    anifast convert runs/gnr ck.pt --format authors                     GANs N' Roses: all that its authors' file has
    anifast convert GNR_checkpoint.pt gnr.pt                            from theirs to an own file
    anifast convert runs/d theirs --format authors                      disentangle: theirs/stage1, classifier, stage2
    anifast convert save/stage2 d                                       from its authors' save folder to d/stage2
    anifast convert runs/b theirs --format authors                      BlendGAN: theirs/blendgan.pt and three more
    anifast convert pretrained_models blendgan.pt                       from its authors' files to one own file
    anifast convert human2anime/256 t.pt --pixel-norm on                Twin-GAN: from its author's TensorFlow files
    anifast convert runs/t t.safetensors --format safetensors           the networks that translate, for other programs

What there is to choose from depends on the system, which the file tells: CycleGAN has the formats anifast, reference
and seed (the code of the selfie2anime report), GANs N' Roses has anifast and authors, and so have the disentangling
network and BlendGAN; Twin-GAN has anifast and safetensors.

Weights are copied bit for bit (BlendGAN's folded ones are unfolded for its authors' code); of a CycleGAN with --ema the
averaged generators are, GANs N' Roses keeps both, and so does BlendGAN in an own file. An own file translates (`anifast
translate s2a.pt ...`); with all its networks a run can start from its weights (`anifast train cyclegan --start-from
s2a.pt ...`), but not be resumed: its optimisers begin anew.

The report's code, that of GANs N' Roses and the disentangling network's keep optimisers too. They come from the run,
or from another file of that code; they are new where there are none, and where the generators are averages, to which
the run's moments do not belong.

The files of Twin-GAN's author do not tell whether the networks have pixel norm: say so by --pixel-norm on (as the
published command has it) or off, or let pictures tell that they have painted, by --pairs with the folders of the photos
and of the results of the same names (such as demo/inference_input/cropped and demo/inference_output/anime of its
code), whose drawings one of both comes close to.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anifast.errors import AnifastError
from anifast.files import atomic_path, write_text


def add_cli(parser: argparse.ArgumentParser) -> None:
    """The options of `anifast convert`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", type=Path, metavar="IN", help="run folder, checkpoint, or an author's file or folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="file to write, or folder where there are several")
    parser.add_argument(
        "--format",
        default="anifast",
        metavar="CODE",
        help="whose files to write, one of the system's formats [anifast]",
    )
    parser.add_argument(
        "--direction",
        choices=("AB", "BA", "both"),
        help="only the generator of A to B, or of B to A; for a file with a single generator, which it is [both]",
    )
    parser.add_argument(
        "--epoch", default="latest", metavar="TAG", help="tag in the names of an author's files [latest]"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="write networks that the other code cannot load, or would compute otherwise",
    )
    twins = parser.add_argument_group("Twin-GAN")
    twins.add_argument(
        "--what", choices=("all", "networks"), help="all networks, or those alone that translate, averaged [all]"
    )
    twins.add_argument(
        "--pixel-norm", choices=("auto", "on", "off"), help="whether the author's networks have it; auto: see --pairs"
    )
    twins.add_argument(
        "--equalized",
        action="store_true",
        default=None,
        help="the author's networks were trained with the equalised learning rate, which their files do not tell",
    )
    twins.add_argument(
        "--pairs", type=Path, nargs=2, metavar=("INPUTS", "OUTPUTS"), help="what they have painted of what, for auto"
    )


#: Options of single systems, which these name in `OWN_OPTIONS`.
_OWN = ("what", "pixel_norm", "equalized", "pairs")


def main(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    from anifast import systems

    found = systems.read(args.model)
    system = systems.recognise(found, args.model)
    converter = systems.module(system, "convert")
    direction = None if args.direction in (None, "both") else args.direction
    own = {name: value for name in _OWN if (value := getattr(args, name, None)) is not None}
    known = getattr(converter, "OWN_OPTIONS", ())
    for name in own:
        if name not in known:
            raise AnifastError(f"--{name.replace('_', '-')}: {args.model} is of {system}, which has no such option")
    written = converter.convert(
        found,
        args.model,
        args.out,
        format=args.format,
        direction=direction,
        epoch=args.epoch,
        force=args.force,
        **(own | {"say": print} if known else {}),
    )
    write(written)
    for path in written:
        print(path)
    hint = converter.hint(found, args.format, direction)
    if hint:
        print(hint)
    return 0


def write(written: dict[Path, Any]) -> None:
    """Write checkpoints, and texts or finished bytes that stand beside them, all of them or none.

    Raises:
        AnifastError: one of them is there already, or cannot be written.
    """
    from anifast.engine import state

    for path in written:
        if path.exists():
            raise AnifastError(f"{path}: is there already; choose another OUT, or remove it")
        blocked = next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None)
        if blocked is not None:
            raise AnifastError(f"{blocked}: is a file, and a folder is needed; choose another OUT")
    with ExitStack() as stack:
        places = [(path, stack.enter_context(atomic_path(path))) for path in written]
        for path, temporary in places:
            try:
                if isinstance(written[path], str):
                    write_text(temporary, written[path])
                elif isinstance(written[path], bytes):
                    temporary.write_bytes(written[path])
                else:
                    state.save(temporary, written[path])
            except AnifastError as error:
                raise AnifastError(str(error).replace(str(temporary), str(path))) from error
