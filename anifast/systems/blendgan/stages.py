"""The stages of a BlendGAN run: what each needs of those before, and whether it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anifast import systems
from anifast.data.folders import to_float
from anifast.data.packed import spread
from anifast.engine import state as checkpoint
from anifast.engine.config import as_option
from anifast.engine.distributed import Team, alone
from anifast.engine.loop import Plan
from anifast.engine.state import about
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.systems.blendgan import checkpoints, codes
from anifast.systems.blendgan.config import STAGES, Config
from anifast.systems.blendgan.contrast import AMONG, Style, Views, fitting_batch, memory_estimate
from anifast.systems.blendgan.inversion import SHOWN as PHOTOS_SHOWN
from anifast.systems.blendgan.inversion import Inversion, photos
from anifast.systems.blendgan.networks import Generator, StyleEncoder, build_generator, build_style_encoder
from anifast.systems.blendgan.pictures import FOLDERS, pictures_of
from anifast.systems.blendgan.training import SHOWN, Gan, Pictures, the_picture
from anifast.systems.commands import free_memory
from anifast.systems.staging import Stage, StagedRun

#: Folder of a one-shot run's first steps, in which the discriminators learn from other art; a part of stage gan.
WARM_UP = "warm-up"
#: Its steps where the settings do not tell, and pictures in a step.
_WARM_UP_STEPS, _WARM_UP_BATCH = 2000, 8


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
        names = [name for name in STAGES if c.stage in ("all", name) or (name, c.stage) == (WARM_UP, "gan")]
        if WARM_UP in names and not (c.iterations and self._warms_up()):
            names.remove(WARM_UP)
        left_out = {
            "codes": c.codes == "encoder" or c.one_shot is not None or c.iterations == 0,
            "gan": c.iterations == 0,
            "psp": c.psp_iterations == 0,
        }
        if c.stage == "all":
            names = [name for name in names if not left_out.get(name)]
        makers = {
            "style": self._style,
            "codes": self._codes,
            WARM_UP: self._warm_up,
            "gan": self._gan,
            "psp": self._psp,
        }
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
            self._tell_memory()
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
        held = 0

        def look() -> None:
            nonlocal held
            held = len(pictures_of(self.data, "styles", c.style_side, c.packed))

        team.lead(look)  # what fails in one process alone would let the others wait for it
        held = team.largest(held)
        free = free_memory(self.device) / 2**30
        batch = min(fitting_batch(c, 0.8 * free, self.device.type, team.world), 2 ** (held.bit_length() - 1))
        return team.world * max(1, -team.largest(-(batch // team.world)))  # that of the process with the least

    def _tell_memory(self) -> None:
        """Print what stage style will take, before any of it is taken."""
        team = self.team or alone(self.device)
        if not team.first:
            return
        needed = memory_estimate(self.config, team.portion(self.style_batch), self.device.type, team.world)
        free = free_memory(self.device) / 2**30
        line = f"stage style, {self.style_batch} pictures in a step: about {needed:.1f} GiB of {free:.1f} GiB free"
        if needed > free:
            line += "; that will hardly do, take a smaller --style-batch or --style-side, or another --backbone"
        print(line, flush=True)

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
        other = [as_option(key, theirs[key]) for key in ours if theirs.get(key, ours[key]) != ours[key]]
        if other:
            raise CheckpointError(f"its networks are not those of this run; they need {' '.join(other)}")
        return found

    def _take_style_encoder(self) -> None:
        source = self._style_source
        assert source is not None
        with about(source):
            found = self._taken(source, "E_style")
            encoder = self._encoder_of(found.nets["E_style"])
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
            encoder = self._encoder_of(found.nets["E_style"])
        return encoder.to(self.device).eval().requires_grad_(False)

    def _encoder_of(self, weights: Mapping[str, Tensor]) -> StyleEncoder:
        """This run's style encoder with these weights, folded or not.

        Raises:
            CheckpointError: they are of other shapes.
        """
        encoder = build_style_encoder(self.config)
        weights = checkpoints.style_encoder_weights(
            weights, folded=self.config.folded, channels=encoder.embedder.channels
        )
        try:
            encoder.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"another style encoder: {' '.join(str(error).split())[:300]}") from error
        return encoder

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

    # Stage gan, and what precedes it for one picture

    @property
    def _source(self) -> str | None:
        """Where stage gan takes its networks from: the warm-up before it, which has taken all over, or another run."""
        return str(self.out / WARM_UP) if self.begun(WARM_UP) else self.config.start_from

    def _warms_up(self) -> bool:
        """Whether discriminators learn from other art before they see the one picture, which cannot teach them.

        Raises:
            CheckpointError: start_from cannot be read, or its generator knows no styles.
            DataError: they have to, and there is no other art.
        """
        c = self.config
        if c.one_shot is None or self.begun("gan") or self.begun(WARM_UP):
            return c.one_shot is not None and self.begun(WARM_UP)
        assert c.start_from is not None
        with about(c.start_from):
            found = self._taken(c.start_from, "G")
            if found.origin == "stylegan2":
                raise CheckpointError(
                    "this is a StyleGAN2, which knows no styles, and one picture cannot teach them; train a run that "
                    "starts from it on other art, and adapt that run"
                )
        needless = {"D_face": c.face_discriminator is not None, "D_latent": not c.lambda_latent}
        lacking = [name for name in checkpoints.JUDGES if name not in found.nets and not needless.get(name)]
        if not lacking and not c.warm_up:
            return False
        if not self._has_styles():
            why = f"{_listed(lacking)} {_is(lacking)} not in {c.start_from}" if lacking else f"--warm-up {c.warm_up}"
            raise DataError(
                f"{self.data}: no folder styles, and {why}: discriminators are warmed up on other art first, as one "
                f"picture cannot teach them. Give pictures of art in {self.data / 'styles'}, or adapt a run that has "
                "its discriminators"
            )
        return True

    def _has_styles(self) -> bool:
        return any((self.data / name).is_dir() for name in FOLDERS["styles"])

    def _warm_up(self) -> Stage:
        """The generator of start_from waits; batches are of all art, and larger than those of one picture."""
        c, world = self.config, (self.team or alone(self.device)).world

        @cache
        def planned() -> tuple[Config, Plan]:
            held = min(len(pictures_of(self.data, kind, c.size, c.packed)) for kind in FOLDERS)
            batch = max(1, min(max(_WARM_UP_BATCH, c.batch), held) // world) * world
            steps = c.warm_up or _WARM_UP_STEPS
            plan = self.plan(batch, steps)
            longer = max(1, batch // c.batch)  # as many steps as in stage gan; what is painted stays the same
            plan = dataclasses.replace(
                plan,
                log_every=plan.log_every * longer,
                save_every=plan.save_every * longer,
                sheet_every=max(plan.total, 1),
            )
            # codes of the few pictures that are seen cost less than a table of all
            config = dataclasses.replace(
                c, one_shot=None, batch=batch, iterations=steps, warm_up=steps, codes="encoder", ema=0.0
            )
            return config, plan

        def done() -> bool:
            return self.begun("gan") or self.reached(WARM_UP, planned()[1])

        def assemble() -> tuple[Gan, Pictures, Plan]:
            config, plan = planned()
            return *self._assembled(config, WARM_UP), plan

        return Stage(WARM_UP, done, assemble)

    def _gan(self) -> Stage:
        c = self.config
        plan = self.plan(c.batch, c.iterations)

        def done() -> bool:
            return self.is_over("gan", plan, ("psp",))

        def assemble() -> tuple[Gan, Pictures, Plan]:
            config = c if c.one_shot is None else dataclasses.replace(c, warm_up=0)  # that is over
            return *self._assembled(config, "gan"), plan

        return Stage("gan", done, assemble)

    def _assembled(self, config: Config, folder: str) -> tuple[Gan, Pictures]:
        """A generator and discriminators that train by these settings, and their pictures."""
        encoder, table, queue = self._style_codes(config)
        data = Pictures(self.data, config, self.device, self.team, table)
        photos, art = data.samples(SHOWN[self.device.type])
        shown = self._shown_codes(encoder, art)
        kept = encoder if table is None else None
        system = Gan(config, self.device, queue, (photos, art, shown), self.team, kept)
        if not self.begun(folder):
            self._start(system)
        return system, data

    @torch.no_grad()
    def _shown_codes(self, encoder: StyleEncoder, art: Tensor) -> Tensor:
        """Style codes of the sample sheet's pictures."""
        return torch.cat([encoder(part.to(self.device)).cpu() for part in art.split(2)])

    @torch.no_grad()
    def _style_codes(self, config: Config) -> tuple[StyleEncoder, Tensor | None, Tensor]:
        """The encoder, the table [N,2,D] that batches take style codes from, and codes [n, D] for the queue."""
        c = config
        encoder = self.style_encoder()
        if c.one_shot is not None:
            picture = the_picture(c.one_shot, c.size).to(self.device)
            own = encoder(torch.cat([picture, picture.flip(3)])).cpu()
            if self.begun("gan"):  # whose checkpoint has the queue
                return encoder, own[None], own
            others = _without(self._others(encoder), own)
            if len(others) == 0:
                raise DataError(
                    f"{c.one_shot}: all style codes that there are of other pictures are its own; give other art in "
                    f"{self.data / 'styles'}, and take --start-from a run that was trained on it"
                )
            return encoder, own[None], others
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
        source = self._source
        assert source is not None
        with about(source):
            state = systems.read(source)
            queue = checkpoints.queue(state) if checkpoints.recognises(state) else None
            if queue is not None and self._is_encoder_of(state, encoder):
                return queue
        if not self._has_styles():
            why = "holds no queue of style codes" if queue is None else "has a queue of another encoder's style codes"
            raise DataError(
                f"{self.data}: no folder styles, and {source} {why}: one picture's style is told from those of "
                f"others, so give pictures of art in {self.data / 'styles'}"
            )
        return self._some_codes(encoder)

    def _is_encoder_of(self, state: Mapping[str, Any], encoder: StyleEncoder) -> bool:
        """Whether the style codes in a run or file are by this encoder; where that cannot be told, they are not."""
        if self.config.style_encoder is None or self.begun(WARM_UP):
            return True
        found = checkpoints.contents(state)
        theirs, ours = (checkpoints.architecture(config, "E_style") for config in (found.config, self.config))
        if "E_style" not in found.nets or theirs != ours:
            return False
        return codes.digest(self._encoder_of(found.nets["E_style"])) == codes.digest(encoder)

    @torch.no_grad()
    def _some_codes(self, encoder: StyleEncoder) -> Tensor:
        """Codes of up to a queue of pictures of art."""
        packed = self._art
        places = torch.tensor(spread(len(packed), self.config.queue))
        images = (to_float(packed.batch(part).to(self.device)) for part in places.split(4))
        return torch.cat([encoder(part).cpu() for part in images])

    def _start(self, system: Gan) -> None:
        """Put the weights of a StyleGAN2 or BlendGAN into the networks, where the settings say so.

        Of a StyleGAN2 everything but the style's own parts has to fit.
        """
        c, nets, source = self.config, system.nets, self._source
        origins: dict[str, str] = {}
        if source is not None:
            with about(source):
                found = self._taken(source, "G")
                _fill(nets["G"], found.nets["G"], ("embedding.", "add_weight") if found.origin == "stylegan2" else ())
                origins["G"] = source
                for name in checkpoints.JUDGES:
                    if name in found.nets:
                        self._taken(source, name)
                        _fill(nets[name], found.nets[name])
                        origins[name] = source
        if c.face_discriminator is not None and not self.begun(WARM_UP):
            with about(c.face_discriminator):
                _fill(nets["D_face"], self._taken(c.face_discriminator, "D_face").nets["D_face"])
            origins["D_face"] = c.face_discriminator
        if origins:
            by_origin: dict[str, list[str]] = {}
            for name in nets:
                by_origin.setdefault(origins.get(name, ""), []).append(name)
            system.taken = [
                f"{', '.join(names)} from {origin}" if origin else f"{', '.join(names)} new"
                for origin, names in sorted(by_origin.items(), key=lambda one: not one[0])
            ]
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
            if c.psp_side > c.size:
                raise AnifastError(
                    f"settings psp_side and size: photos of {c.psp_side} pixels would be compared with paintings of "
                    f"{c.size}; take --psp-side {c.size}"
                )
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


def _without(codes: Tensor, own: Tensor) -> Tensor:
    """Style codes [n, D] but those that lie at one of `own` [2, D].

    A code of the same picture differs by roundings, and by how the picture was decoded and resized. Codes of others are
    about as far away as codes are from their mean, r. Within r/20 there is the 20**-k part of what lies within r, where
    codes vary in k directions: one code in 10**13 for k of 10, so that what is nearer is the picture itself.
    """
    every = torch.cat([codes, own])
    apart = (every - every.mean(0)).square().sum(1).mean().sqrt()
    limit = apart / 20 + 64 * torch.finfo(torch.float32).eps * own.norm(dim=1).max()
    return codes[torch.cdist(codes, own, compute_mode="donot_use_mm_for_euclid_dist").min(1).values > limit]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def stages(config: Config, data: Path, out: Path, device: torch.device, team: Team | None = None) -> list[Stage]:
    """The stages of a run, which `runs.train` goes through."""
    return Run(config, data, out, device, team).stages()
