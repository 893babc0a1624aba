"""The command `anifast`. Each command imports what it needs when it is chosen; this module imports no torch."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anifast
from anifast.errors import AnifastError, ToldElsewhere
from anifast.progress import to_nowhere
from anifast.systems import SYSTEMS, options


@dataclass(frozen=True)
class Command:
    """A command: one line of help, a function that adds its options, and one that runs it and gives the exit code."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _train_options(parser: argparse.ArgumentParser) -> None:
    from anifast.engine import config

    parsers = parser.add_subparsers(dest="system", required=True, metavar="SYSTEM")
    for name in SYSTEMS:
        module = importlib.import_module(f"{SYSTEMS[name]}.config")
        sub = parsers.add_parser(
            name,
            help=module.ABOUT,
            description=module.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument("--data", type=Path, required=True, metavar="DIR", help=module.DATA)
        sub.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder, made if missing")
        sub.add_argument("--resume", action="store_true", help="go on with the run in --out, with its settings")
        sub.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
        config.add_options(sub, module.Config, module.PRESETS)


def _train(args: argparse.Namespace) -> int:
    from anifast.engine import config
    from anifast.systems import runs

    values = config.given(args, importlib.import_module(f"{SYSTEMS[args.system]}.config").Config)
    finished = runs.train(
        args.system,
        args.data,
        args.out,
        preset=args.preset,
        values=values,
        resume=args.resume,
        device=args.device,
    )
    return 0 if finished else 130


def _translate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or an author's file or folder"
    )
    parser.add_argument(
        "inputs", type=Path, nargs="+", metavar="INPUT", help="folders (searched recursively) and files"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the PNGs go, names kept")
    options.add_to(parser, default=None)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", type=int, metavar="N", help="side of the results, a multiple of 4 [the model's own]")
    sizes.add_argument("--keep-size", action="store_true", help="keep each picture's own size")
    options.add_resize(parser, stretching="Twin-GAN, and with --parity:")
    options.add_computing(parser, f"{options.BATCH}; BlendGAN: {options.FEWER}")
    styles = parser.add_argument_group(
        "styles",
        "For models that paint in styles (GANs N' Roses, disentangling networks, BlendGAN). A style is one drawing "
        "style for all pictures: with several, NAME-s00.png is in the first, NAME-s01.png in the second; those of "
        "artists are called NAME-ARTIST.png, and BlendGAN's NAME_v_STYLE.png. Codes of styles that no name stands for "
        "are kept as styles.json or styles.pt in --out (styles-2 where other codes stand there).",
    )
    styles.add_argument(
        "--artist",
        nargs="+",
        metavar="STYLE",
        help=f"disentangling networks: {options.ARTIST_SOURCES}; INPUTs stand before it",
    )
    styles.add_argument(
        "--style",
        nargs="+",
        metavar="STYLE",
        help=f"GANs N' Roses: {options.STYLE_SOURCES}. BlendGAN: {options.BLENDGAN_STYLES}. INPUTs stand before it "
        "[random]",
    )
    styles.add_argument("--styles", type=int, metavar="N", help="how many random styles, one result each [1]")
    styles.add_argument("--seed", type=int, metavar="N", help="of random styles [0]")
    options.add_truncation(styles, "; BlendGAN: of faces, 0: the mean face")
    blending = parser.add_argument_group("BlendGAN", "For photos of faces that are aligned as FFHQ's.")
    options.add_index(blending, 6)
    options.add_output(blending)
    blending.add_argument(
        "--triptych",
        action="store_true",
        default=None,
        help="a result is the photo, the picture of the style and the painting beside each other",
    )
    options.add_parts(blending)


#: Options of `anifast translate` that not every system has; a model names its own in `options`.
_OF_SOME = ("artist", "style", "styles", "seed", "truncation", "index", "noise", "triptych", "parity")


def _options_of(args: argparse.Namespace, model: Any) -> dict[str, Any] | None:
    """Those of the model's own options that were given; None where it has none.

    Raises:
        AnifastError: options were given that do not fit the model.
    """
    own: tuple[str, ...] = getattr(model, "options", ())
    given = {name: getattr(args, name) for name in _OF_SOME if getattr(args, name) is not None}
    refused = [f"--{name}" for name in given if name not in own]
    if refused:
        it = "it" if len(refused) == 1 else "them"
        if own:
            raise AnifastError(
                f"{', '.join(refused)}: {args.model} holds a model of another kind, whose styles are chosen by "
                f"{', '.join(f'--{name}' for name in own)}; leave {it} out"
            )
        raise AnifastError(
            f"{', '.join(refused)}: {args.model} holds a model that translates a picture in one way and has no styles "
            f"to choose from; leave {it} out"
        )
    if args.to is not None and not model.targets:
        raise AnifastError(f"--to {args.to}: {args.model} holds a model without domains to choose from; leave it out")
    if model.multiple == model.size and (args.keep_size or args.size not in (None, model.size)):
        raise AnifastError(
            f"{'--keep-size' if args.keep_size else f'--size {args.size}'}: {args.model} gives pictures of "
            f"{model.size}x{model.size} pixels and no others; leave it out, those of any size are taken"
        )
    return given if own else None


def _reader(painter: Any, model: Any, how: str) -> Any:
    """What reads a picture where the painter, or a model that scales pictures in a way of its own, does so itself."""
    if painter is None and hasattr(model, "reader"):
        return model.reader(how)
    return getattr(painter, "read", None)


def _translate(args: argparse.Namespace) -> int:
    if args.batch is not None and args.batch < 1:
        raise AnifastError(f"--batch {args.batch}: at least 1")
    if args.size is not None and (args.size < 8 or args.size % 4):
        raise AnifastError(f"--size {args.size}: a multiple of 4, at least 8")
    from anifast.data.folders import counted, pixel_limit, printable
    from anifast.engine import precision, state, translate

    if args.size is not None and args.size**2 > pixel_limit():
        raise AnifastError(
            f"--size {args.size}: more than {pixel_limit()} pixels; take a smaller one (or set ANIFAST_MAX_PIXELS)"
        )
    jobs, rejected = translate.collect(args.inputs, args.out)
    model = anifast.load(args.model, args.device, precision=args.precision, **options.given_parts(args))
    given = _options_of(args, model)
    resize, batch = options.resize_of(args, model), args.batch or options.BATCH
    if hasattr(model, "memory"):  # of networks that come one after the other
        used = model.used((given or {}).get("style"))
        batch = args.batch or model.fitting_batch(used)
        print("\n".join(options.memory_lines(model.memory(batch, used), batch)))
    to = args.to or next(iter(model.targets), None)
    with state.about(args.model):
        if to is not None:
            model.require(to)
        painter = None if given is None else model.painter(to, how=resize, batch=batch, **given)
    if painter is not None:
        jobs = translate.several(jobs, painter.labels, painter.pictures)
    translate.check_writable(args.out)
    if painter is not None and hasattr(painter, "prepare"):  # it reads all pictures before it paints one
        unread = painter.prepare([job.source for job in jobs])
        jobs = [job for job in jobs if job.source not in unread]
        rejected |= {printable(path): why.removeprefix(f"{printable(path)}: ") for path, why in unread.items()}
    if painter is not None:
        codes = painter.save(args.out)
        usual = codes and args.out / f"styles{codes.suffix}"
        if codes != usual:
            print(f"{usual} holds other styles and is kept; those painted now are in {codes}")
    about = [to, painter and painter.about, "averaged weights" if model.averaged else None]
    told = ", ".join(filter(None, about))
    print(f"{counted(len(jobs))} -> {told}, {precision.describe(model.device, args.precision)}")
    outcome = translate.translate_files(
        painter or (lambda images: model.translate(images, to=to)),
        jobs,
        read=_reader(painter, model, resize),
        size=0 if args.keep_size else args.size or model.size,
        how=resize,
        multiple=model.multiple,
        batch=batch,
        smaller="--batch or --size" if painter is None else "--batch",
    )
    done = len(outcome.written)
    print(f"{counted(done)} in {outcome.seconds:.1f} s, {done / max(outcome.seconds, 1e-9):.1f} images/s -> {args.out}")
    failed = outcome.failed | {name: f"{name}: {why}" for name, why in rejected.items()}
    for why in failed.values():
        print(f"anifast: failed: {why}", file=sys.stderr)
    if failed:
        raise AnifastError(
            f"{len(failed)} of {counted(len(jobs) + len(rejected))} could not be translated (named above)"
        )
    return 0


def _plot_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, also of runs that go on")
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="the figure [RUN/losses.png; to be given for several runs]"
    )


def _plot(args: argparse.Namespace) -> int:
    from anifast.systems import runs

    print("\n".join(str(path) for path in runs.plot(args.runs, args.out)))
    return 0


def _eval_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, metavar="RUN|CKPT", help="run folder, checkpoint, or an author's file or folder"
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with testA and testB; Twin-GAN: these or source/val and target/val, and what --against names: "
        "source/train and target/train, or trainA and trainB; disentangling networks: with artists' folders, or "
        "digits' files; BlendGAN: with styles or trainB, and testB for --against test",
    )
    parser.add_argument(
        "--features",
        choices=("auto", "inception", "squeezenet", "none"),
        default="auto",
        help="what FID, KID and DFID are taken with; auto: the first whose weights are found; none: no such [auto]",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights of the features: pt_inception-2015-12-05-6726825d.pth or squeezenet1_0_imagenet.npz [looked for "
        "in the folders ANIFAST_WEIGHTS, torch.hub's and ANIFAST_SHARED/data/weights]",
    )
    parser.add_argument(
        "--against",
        choices=("test", "train", "both"),
        help="the real pictures that translations are compared with [cyclegan: test; gnr, blendgan, twingan: train]",
    )
    parser.add_argument("--to", choices=("A", "B"), help="the translation to this domain only [both]")
    parser.add_argument("--max", type=int, metavar="N", help="take the first N pictures of each folder only")
    parser.add_argument(
        "--kid-subset", type=int, default=50, metavar="N", help="pictures in a subset of KID [50, at most half a set]"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures at once [8]")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="numbers to translate in [fp32]")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="where the figures go [evaluation.json in the run folder]"
    )
    styles = parser.add_argument_group("styles", "For models that paint in styles (GANs N' Roses, BlendGAN).")
    left_out = argparse.SUPPRESS  # so that the defaults of the system's evaluation.Settings stand
    styles.add_argument(
        "--styles",
        type=int,
        default=left_out,
        metavar="N",
        help="styles that each picture is painted in, for FID, KID and LPIPS diversity [10]",
    )
    styles.add_argument(
        "--style",
        choices=("random", "reference", "both"),
        default=left_out,
        help="styles from N(0, 1), or those of random pictures: gnr: test pictures of the painted domain, blendgan: "
        "style pictures; both is for blendgan [gnr: random, blendgan: both]",
    )
    styles.add_argument(
        "--lpips",
        choices=("auto", "alex", "vgg", "squeezenet1_0", "none"),
        default=left_out,
        help="network of the LPIPS diversity, alex in papers; auto: the first whose weights are here [auto]",
    )
    roses = parser.add_argument_group("GANs N' Roses", "DFID, and the figures of papers.")
    roses.add_argument(
        "--dfid-contents", type=int, default=left_out, metavar="N", help="pictures that DFID is averaged over [20]"
    )
    roses.add_argument(
        "--dfid-styles",
        type=int,
        default=left_out,
        metavar="N",
        help="styles that DFID paints each of them in, which is slow; 0: no DFID [1000]",
    )
    roses.add_argument(
        "--published",
        choices=("selfie2anime", "cat2dog", "none"),
        default=left_out,
        help="the published figures that are shown beside [selfie2anime]",
    )
    blending = parser.add_argument_group(
        "BlendGAN", "Random faces in styles, by the blending indicator (the paper's tables 1 to 3), and style codes."
    )
    blending.add_argument(
        "--indices",
        default=left_out,
        metavar="I,I",
        help="blending indicators: numbers, L for no style at all; even: all of table 1 [0,6,L]",
    )
    blending.add_argument(
        "--faces",
        type=int,
        default=left_out,
        metavar="N",
        help="random faces, each of which is painted in --styles styles; 0: none, for --classes alone [1000]",
    )
    blending.add_argument(
        "--side", type=int, default=left_out, metavar="PX", help="side at which pictures are compared [256]"
    )
    blending.add_argument(
        "--truncation", type=float, default=left_out, metavar="PSI", help="of faces, 0: the mean face, 1: none [1]"
    )
    blending.add_argument(
        "--classes",
        default=left_out,
        metavar="DIR",
        help="folder of folders by artist, year or the like: are style codes of one closer to each other?",
    )
    twins = parser.add_argument_group(
        "Twin-GAN", "Losses, FID, KID and SWD both ways, search by translations, and how far use is from training."
    )
    twins.add_argument(
        "--norm-mode",
        choices=("running", "recalibrated"),
        default=left_out,
        help="statistics that norms normalise by: those that training remembers, or those of what is deployed alone "
        "[recalibrated where the file has them]",
    )
    codes = parser.add_argument_group(
        "codes",
        "For disentangling networks: what content codes tell of artists (the paper's tables 4 to 7), and for whose "
        "works paintings pass (table 8).",
    )
    codes.add_argument(
        "--codes",
        choices=("sample", "mean"),
        default=left_out,
        help="content codes: drawn from the encoder's distributions, or their means [sample]",
    )
    codes.add_argument(
        "--prior", choices=("frequency", "uniform"), default=left_out, help="of naive Bayes' classes [frequency]"
    )
    codes.add_argument("--floor", type=float, default=left_out, metavar="X", help="naive Bayes' least variance [1e-6]")
    codes.add_argument(
        "--samples",
        type=int,
        default=left_out,
        metavar="N",
        help="pictures painted for table 8; 0: no such table [as many as were trained on]",
    )
    codes.add_argument(
        "--plain",
        default=left_out,
        metavar="RUN2",
        help="the run trained with --c2-fake none --start-from RUN, for the whole of table 8",
    )
    parser.add_argument(
        "--figures",
        default=left_out,
        metavar="DIR",
        help="draw into this folder; disentangling networks: scatter plots and sheets; BlendGAN: sheets of paintings "
        "and of style codes; Twin-GAN: of translations and of neighbours",
    )
    parser.add_argument(
        "--permutations",
        type=int,
        default=left_out,
        metavar="N",
        help="BlendGAN: permutations of the classes' labels, Twin-GAN: of queries, that chance is taken from [1000]",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=left_out,
        metavar="N",
        help="of faces, styles, noise, augmentations, codes, permutations and patches [0]",
    )


#: Options of `eval` that some systems have only, by their names in the system's `evaluation.Settings`.
_EVAL_OF_SOME = (
    "styles", "style", "lpips", "dfid_contents", "dfid_styles", "published", "seed",
    "codes", "prior", "floor", "samples", "plain", "figures",
    "indices", "faces", "side", "truncation", "classes", "permutations", "norm_mode",
)  # fmt: skip


def _eval(args: argparse.Namespace) -> int:
    from anifast.systems import evals

    report = evals.evaluate(
        args.model,
        args.data,
        features=args.features,
        weights=args.weights,
        against=args.against,
        to=args.to,
        batch=args.batch,
        limit=args.max,
        subset_size=args.kid_subset,
        device=args.device,
        precision=args.precision,
        out=args.out,
        **{name: getattr(args, name) for name in _EVAL_OF_SOME if hasattr(args, name)},
    )
    for note in report.notes:
        print(f"anifast: warning: {note}", file=sys.stderr)
    measured = report.facts["features"]
    if report.columns:
        print(f"features: {measured['about'] if measured else 'none'}")
    print("\n".join(report.lines()))
    print(f"-> {report.file}" if report.file else "no file written: name one by --out")
    return 130 if report.interrupted else 0


def _neural_style_options(parser: argparse.ArgumentParser) -> None:
    left_out = argparse.SUPPRESS  # so that the defaults of neural_style.Options stand
    parser.add_argument("content", type=Path, metavar="CONTENT", help="the picture that is shown, say a photo")
    parser.add_argument("style", type=Path, metavar="STYLE", help="the picture whose strokes and colours it gets")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG", help="the result, .png or .jpg")
    parser.add_argument(
        "--backbone",
        choices=("vgg19", "vgg16", "vgg19_16x", "alexnet", "squeezenet1_0", "squeezenet1_1", "random"),
        default="vgg19",
        help="the network whose features are compared; random: VGG-16 that nobody trained, to try out [vgg19]",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="its weights, torchvision's file (vgg19_16x: 5SE.pth or its folder) [looked for in the folders "
        "ANIFAST_WEIGHTS, torch.hub's and ANIFAST_SHARED/data/weights, or downloaded]",
    )
    parser.add_argument("--size", type=int, default=512, metavar="N", help="longer side of the result [512]")
    parser.add_argument(
        "--steps", type=int, default=left_out, metavar="N", help="how often losses and gradient are computed [300]"
    )
    parser.add_argument(
        "--style-weight", type=float, default=left_out, metavar="X", help="10 is gentle, 100 strong [30]"
    )
    parser.add_argument("--content-weight", type=float, default=left_out, metavar="X", help="of the content [1]")
    parser.add_argument(
        "--tv-weight", type=float, default=left_out, metavar="X", help="of smoothness, against noise [20]"
    )
    for kind, example in (("content", "relu4_2"), ("style", "relu1_1,relu2_1")):
        parser.add_argument(
            f"--{kind}-layers",
            default=left_out,
            metavar="NAMES",
            help=f"layers that make the {kind}, as in {example}; a wrong name lists those there are [the backbone's]",
        )
    parser.add_argument(
        "--init",
        choices=("content", "noise", "style"),
        default=left_out,
        help="what the result begins as [content]",
    )
    parser.add_argument("--seed", type=int, default=left_out, metavar="N", help="of --init noise [0]")
    parser.add_argument(
        "--optimizer", choices=("lbfgs", "adam"), default=left_out, help="how the losses are minimised [lbfgs]"
    )
    parser.add_argument(
        "--original-colours",
        action="store_true",
        default=left_out,
        help="keep the colours of CONTENT; only light and dark get the style",
    )
    parser.add_argument(
        "--save-every",
        type=int,
        default=0,
        metavar="N",
        help="also write the picture after every N steps, NAME-step0050.png beside --out [0: never]",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")


def _neural_style(args: argparse.Namespace) -> int:
    from anifast import neural_style
    from anifast.engine import config
    from anifast.progress import duration

    outcome = neural_style.transfer_files(
        args.content,
        args.style,
        args.out,
        backbone=args.backbone,
        weights=args.weights,
        options=config.build(neural_style.Options, config.given(args, neural_style.Options)),
        size=args.size,
        save_every=args.save_every,
        device=args.device,
    )
    for path in outcome.saved:
        print(path)
    step = outcome.step
    print(f"{outcome.steps} steps in {duration(outcome.seconds)}, step {step.number}: {step.losses} -> {args.out}")
    if outcome.interrupted:
        print(f"anifast: interrupted; {args.out} is the picture so far", file=sys.stderr)
        return 130
    return 0


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where everything goes [demo]")
    parser.add_argument(
        "--only",
        choices=("cyclegan", "gnr", "blendgan", "twingan"),
        help="one part alone; what is there of the others stays",
    )
    parser.add_argument("--images", type=int, metavar="N", help="training pictures; fewer for a quick look")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; by default a GPU if there is one")


def _demo(args: argparse.Namespace) -> int:
    from anifast.demo import main as demo

    return demo(args)


def _elsewhere(module: str) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]:
    """Options and run of a command that lives in a module of its own, as `add_cli(parser)` and `main(args)`."""

    def options(parser: argparse.ArgumentParser) -> None:
        importlib.import_module(module).add_cli(parser)

    def run(args: argparse.Namespace) -> int:
        return int(importlib.import_module(module).main(args) or 0)

    return options, run


COMMANDS = {
    "train": Command("train a system on a folder of pictures", _train_options, _train),
    "translate": Command("translate pictures with a trained model", _translate_options, _translate),
    "gnr": Command("sheets, styles and videos with a GANs N' Roses", *_elsewhere("anifast.systems.gnr.cli")),
    "disentangle": Command(
        "artists, sheets, styles and codes of a disentangling network", *_elsewhere("anifast.systems.disentangle.cli")
    ),
    "blendgan": Command(
        "pairs, sheets, videos, style codes and one-shot styles of a BlendGAN",
        *_elsewhere("anifast.systems.blendgan.cli"),
    ),
    "twingan": Command(
        "translations, galleries, search and statistics of a Twin-GAN", *_elsewhere("anifast.systems.twingan.cli")
    ),
    "plot": Command("draw the losses of runs, several in one figure", _plot_options, _plot),
    "eval": Command("FID, KID, diversity, disentanglement and more of a trained model", _eval_options, _eval),
    "neural-style": Command(
        "give a picture the style of another by optimisation", _neural_style_options, _neural_style
    ),
    "demo": Command("draw faces, train four small systems on them, paint new ones", _demo_options, _demo),
    "portraits": Command("write procedural faces in the layouts of the systems", *_elsewhere("anifast.data.portraits")),
    "convert": Command(
        "write a model for an author's code, or one of theirs for anifast", *_elsewhere("anifast.systems.convert")
    ),
    "bench": Command("time the ops on this machine, kernels against plain PyTorch", *_elsewhere("anifast.bench")),
    "doctor": Command("say what is built and usable here, and why not", *_elsewhere("anifast.doctor")),
}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser, with the options of the command `chosen` only: the others need not be imported."""
    parser = argparse.ArgumentParser(
        prog="anifast",
        description="Anime-face translation: fused kernels, training and inference.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"anifast {anifast.__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = parsers.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        if name == chosen:
            command.options(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and give its exit code: 0 well, 1 an error that is told, 2 wrong usage, 130 Ctrl-C.

    141: nobody reads the output any more (`anifast ... | head`), which training does not mind.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    args = build_parser(chosen).parse_args(argv)
    warnings.showwarning = _warn  # type: ignore[assignment]
    try:
        code = COMMANDS[args.command].run(args)
        if sys.stdout is not None:  # a process may have none (>&-)
            sys.stdout.flush()
        return code
    except ToldElsewhere:
        return 1
    except AnifastError as error:
        print(f"anifast: error: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"anifast: error: {error.filename}: {error.strerror}; choose another place", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("anifast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        to_nowhere(sys.stdout)
        return 141


def _warn(message: Warning | str, category: type[Warning], *_: object) -> None:
    print(f"anifast: warning: {message}", file=sys.stderr)
