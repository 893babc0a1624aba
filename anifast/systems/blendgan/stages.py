"""The stages of a BlendGAN run: what each needs of those before, and whether it is done."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast import systems
from anifast.data.packed import spread
from anifast.engine import state as checkpoint
from anifast.engine.distributed import Team, alone
from anifast.engine.loop import Plan
from anifast.engine.state import about
from anifast.errors import CheckpointError, DataError
from anifast.systems.blendgan import checkpoints, codes
from anifast.systems.blendgan.config import STAGES, Config
from anifast.systems.blendgan.contrast import AMONG, Style, Views, fitting_batch
from anifast.systems.blendgan.inversion import SHOWN as PHOTOS_SHOWN
from anifast.systems.blendgan.inversion import Inversion, photos
from anifast.systems.blendgan.networks import Generator, StyleEncoder, build_generator, build_style_encoder
from anifast.systems.blendgan.pictures import FOLDERS, pictures_of
from anifast.systems.blendgan.training import SHOWN, Gan, Pictures, the_picture
from anifast.systems.staging import Stage, StagedRun


class Run(StagedRun):
    """The stages of a run and what they take from one another."""

    TAKING_OVER = "--style-encoder and --start-from take its networks over"
    config: Config

    def stages(self) -> list[Stage]:
        """Those that the settings ask for, in order.

        Raises:
            AnifastError: one that is asked for alone misses what comes before it.
        """
        c = self.config
        names = [name for name in STAGES if c.stage in ("all", name)]
        left_out = {
            "codes": c.codes == "encoder" or c.one_shot is not None or c.iterations == 0,
            "gan": c.iterations == 0,
            "psp": c.psp_iterations == 0,
        }
        if c.stage == "all":
            names = [name for name in names if not left_out.get(name)]
        makers = {"style": self._style, "codes": self._codes, "gan": self._gan, "psp": self._psp}
        return [makers[name]() for name in names]

    # Stage style

    @property
    def _style_source(self) -> str | None:
        """Where the style encoder is taken over from, or None where it is trained."""
        c = self.config
        return c.start_from if c.one_shot is not None and c.style_encoder is None else c.style_encoder

    def _style(self) -> Stage:
        if self._style_source is not None:
            return Stage("style", lambda: self.begun("style"), work=self._take_style_encoder)
        later = (codes.NAME, "gan")

        def plan() -> Plan:
            return self.plan(self.style_batch, self.config.style_iterations)

        def done() -> bool:
            return self.is_over("style", plan(), later)

        def assemble() -> tuple[Style, Views, Plan]:
            data = Views(self.data, self.config, self.style_batch, self.device, self.team)
            system = Style(self.config, self.style_batch, self.device, data.shown(AMONG), self.team)
            return system, data, plan()

        return Stage("style", done, assemble)

    @cached_property
    def style_batch(self) -> int:
        """Pictures in a step of stage style: the setting, what the stage began with, or what the memory holds."""
        c, team = self.config, self.team or alone(self.device)
        if c.style_batch:
            return c.style_batch
        if self.begun("style"):
            return int(checkpoint.load(self.out / "style", mmap=True)["batch"])
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0] / 2**30
        else:
            free = _free_memory()
        held = len(pictures_of(self.data, "styles", c.style_side, c.packed))
        batch = min(fitting_batch(c, 0.8 * free, self.device.type, team.world), 2 ** (held.bit_length() - 1))
        return team.world * max(1, -team.largest(-(batch // team.world)))  # that of the process with the least

    def _taken(self, source: str, *names: str) -> checkpoints.Contents:
        """What is in a run or file, whose networks of these names have to be this run's.

        Raises:
            CheckpointError: it is something else, one is missing, or they are of other shapes.
        """
        state = systems.read(source)
        if not checkpoints.recognises(state):
            raise CheckpointError("no BlendGAN is in it, and no StyleGAN2")
        found = checkpoints.contents(state)
        missing = [name for name in names if name not in found.nets]
        if missing:
            held = ", ".join(found.nets) or "nothing"
            raise CheckpointError(f"{', '.join(missing)} are not in it (it holds {held})")
        theirs, ours = (checkpoints.architecture(config, *names) for config in (found.config, self.config))
        other = [f"--{key.replace('_', '-')} {theirs[key]}" for key in ours if theirs.get(key, ours[key]) != ours[key]]
        if other:
            raise CheckpointError(f"its networks are not those of this run; they need {' '.join(other)}")
        return found

    def _take_style_encoder(self) -> None:
        source = self._style_source
        assert source is not None
        with about(source):
            found = self._taken(source, "E_style")
            encoder = build_style_encoder(self.config)
            weights = found.nets["E_style"]
            weights = checkpoints.style_encoder_weights(
                weights, folded=self.config.folded, channels=encoder.embedder.channels
            )
            encoder.load_state_dict(weights)
        state = {**checkpoints.header(self.config), "stage": "style", "nets": {"E_style": encoder.state_dict()}}
        (self.out / "style").mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.out / "style" / checkpoint.NAME, state)

    def style_encoder(self) -> StyleEncoder:
        """The style encoder that stage style has ended with.

        Raises:
            CheckpointError: there is none.
        """
        if not self.begun("style"):
            raise CheckpointError(
                f"{self.out}: this stage needs the style encoder; run --stage style before, with --style-encoder to "
                "take one over"
            )
        with about(self.out / "style"):
            found = checkpoints.contents(checkpoint.load(self.out / "style", mmap=True))
            encoder = build_style_encoder(self.config)
            weights = checkpoints.style_encoder_weights(
                found.nets["E_style"], folded=self.config.folded, channels=encoder.embedder.channels
            )
            try:
                encoder.load_state_dict(weights)
            except RuntimeError as error:
                raise CheckpointError(f"another style encoder: {' '.join(str(error).split())[:300]}") from error
        return encoder.to(self.device).eval().requires_grad_(False)

    # Stage codes

    def _codes(self) -> Stage:
        path = self.out / codes.NAME

        def done() -> bool:
            if not path.exists():
                return False
            if self.begun("gan") and self.config.stage != "codes":
                return True
            try:
                codes.check(codes.read(path), path, codes.digest(self.style_encoder()), self._art)
            except (CheckpointError, DataError):
                if self.begun("gan"):
                    raise  # the generator has learnt by the old ones
                return False
            return True

        def work() -> None:
            checkpoint.save(path, codes.encode(self.style_encoder(), self._art, self.device))

        return Stage("codes", done, work=work)

    @property
    def _art(self) -> Any:
        """The style pictures as the generator learns by them."""
        return pictures_of(self.data, "styles", self.config.size, self.config.packed)

    # Stage gan

    def _gan(self) -> Stage:
        plan = self.plan(self.config.batch, self.config.iterations)

        def done() -> bool:
            return self.is_over("gan", plan, ("psp",))

        def assemble() -> tuple[Gan, Pictures, Plan]:
            c = self.config
            encoder, table, queue = self._style_codes()
            data = Pictures(self.data, c, self.device, self.team, table)
            photos, art = data.samples(SHOWN[self.device.type])
            shown = self._shown_codes(encoder, art)
            kept = encoder if c.codes == "encoder" and c.one_shot is None else None
            system = Gan(c, self.device, queue, (photos, art, shown), self.team, kept)
            if not self.begun("gan"):
                self._start(system)
            return system, data, plan

        return Stage("gan", done, assemble)

    @torch.no_grad()
    def _shown_codes(self, encoder: StyleEncoder, art: Tensor) -> Tensor:
        """Style codes of the sample sheet's pictures."""
        return torch.cat([encoder(part.to(self.device)).cpu() for part in art.split(2)])

    @torch.no_grad()
    def _style_codes(self) -> tuple[StyleEncoder, Tensor | None, Tensor]:
        """The encoder, the table [N,2,D] that batches take style codes from, and codes [n, D] for the queue."""
        c = self.config
        encoder = self.style_encoder()
        if c.one_shot is not None:
            picture = the_picture(c.one_shot, c.size).to(self.device)
            table = encoder(torch.cat([picture, picture.flip(3)]))[None].cpu()
            return encoder, table, self._others(encoder)
        if c.codes == "encoder":
            return encoder, None, self._some_codes(encoder)
        path = self.out / codes.NAME
        if not path.exists():
            raise CheckpointError(f"{path}: the generator needs the style codes; make them by --stage codes")
        found = codes.read(path)
        codes.check(found, path, codes.digest(encoder), self._art)
        return encoder, found["codes"], found["codes"].flatten(0, 1)

    def _others(self, encoder: StyleEncoder) -> Tensor:
        """Codes of other pictures than the one: the queue of the run that is adapted, or codes of other art."""
        assert self.config.start_from is not None
        state = systems.read(self.config.start_from)
        queue = checkpoints.queue(state) if checkpoints.recognises(state) else None
        if queue is not None:
            return queue
        if not any((self.data / name).is_dir() for name in FOLDERS["styles"]):
            raise DataError(
                f"{self.data}: no folder styles, and {self.config.start_from} holds no queue of style codes: one "
                f"picture's style is told from those of others, so give pictures of art in {self.data / 'styles'}"
            )
        return self._some_codes(encoder)

    @torch.no_grad()
    def _some_codes(self, encoder: StyleEncoder) -> Tensor:
        """Codes of up to a queue of pictures of art."""
        packed = self._art
        places = torch.tensor(spread(len(packed), self.config.queue))
        images = (packed.batch(part).to(self.device).float() / 127.5 - 1 for part in places.split(4))
        return torch.cat([encoder(part).cpu() for part in images])

    def _start(self, system: Gan) -> None:
        """Put the weights of a StyleGAN2 or BlendGAN into the networks, where the settings say so.

        Of a StyleGAN2 everything but the style's own parts has to fit.
        """
        c, nets = self.config, system.nets
        if c.start_from is not None:
            with about(c.start_from):
                found = self._taken(c.start_from, "G")
                _fill(nets["G"], found.nets["G"], ("embedding.", "add_weight") if found.origin == "stylegan2" else ())
                for name in ("D_face", "D_style", "D_latent"):
                    if name in found.nets:
                        self._taken(c.start_from, name)
                        _fill(nets[name], found.nets[name])
                if c.one_shot is not None and c.warm_up == 0:
                    lacking = [name for name in ("D_style", "D_latent") if name not in found.nets]
                    if lacking:
                        raise CheckpointError(
                            f"{' and '.join(lacking)} are not in it, and one picture cannot teach them; train them "
                            "first on other art, the generator waiting: anifast train blendgan --start-from "
                            f"{c.start_from} --warm-up 2000 --iterations 2000 --stage gan ..., and adapt that run"
                        )
        if c.face_discriminator is not None:
            with about(c.face_discriminator):
                _fill(nets["D_face"], self._taken(c.face_discriminator, "D_face").nets["D_face"])
        system.start_averaging()

    # Stage psp

    def generator(self) -> tuple[Generator, Tensor | None]:
        """The generator to invert, averaged, and its mean code where its file has one.

        Raises:
            CheckpointError: there is none.
        """
        source: str | Path | None = self.out / "gan" if self.begun("gan") else self.config.start_from
        if source is None:
            raise CheckpointError(
                f"{self.out}: there is no generator to invert; run --stage gan before, or give --start-from"
            )
        with about(source):
            found = self._taken(str(source), "G")
            net = build_generator(self.config)
            _fill(net, found.nets["G"], ("embedding.", "add_weight") if found.origin == "stylegan2" else ())
        return net.to(self.device).eval(), found.latent_avg

    def _psp(self) -> Stage:
        c = self.config
        plan = self.plan(c.psp_batch, c.psp_iterations)

        def assemble() -> tuple[Inversion, Any, Plan]:
            generator, mean = self.generator()
            data = photos(self.data, c, self.device, self.team)
            system = Inversion(c, generator, self.device, data.shown(PHOTOS_SHOWN[self.device.type]), self.team, mean)
            return system, data, plan

        return Stage("psp", lambda: self.reached("psp", plan), assemble)


def _fill(net: torch.nn.Module, weights: Any, may_lack: tuple[str, ...] = ()) -> None:
    """Load weights of which only these may be missing.

    Raises:
        CheckpointError: others are missing, too many, or of other shapes.
    """
    try:
        found = net.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"its networks are not those of this run: {' '.join(str(error).split())[:300]}"
        ) from error
    missing = [name for name in found.missing_keys if not name.startswith(may_lack or ("\0",))]
    if missing or found.unexpected_keys:
        raise CheckpointError(
            f"its networks are not those of this run: {len(missing)} weights are missing and "
            f"{len(found.unexpected_keys)} too many, such as {(missing + found.unexpected_keys)[0]}"
        )


def _free_memory() -> float:
    """GiB of memory that a process may still take, or 8 where the machine does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 2**20
    except (OSError, ValueError, IndexError):
        pass
    return 8.0


def stages(config: Config, data: Path, out: Path, device: torch.device, team: Team | None = None) -> list[Stage]:
    """The stages of a run, which `runs.train` goes through."""
    return Run(config, data, out, device, team).stages()
