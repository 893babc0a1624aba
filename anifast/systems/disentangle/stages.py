"""The stages of a run of the disentangling network: what each needs of those before, and whether it is done."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from anifast import systems
from anifast.data.labelled import Labelled, load_artists, load_digits_by
from anifast.engine import state as checkpoint
from anifast.engine.distributed import Team
from anifast.engine.loop import Plan
from anifast.engine.state import about
from anifast.errors import AnifastError, CheckpointError, DataError
from anifast.systems.disentangle import checkpoints, codes
from anifast.systems.disentangle.config import STAGES, Config
from anifast.systems.disentangle.networks import Classifier, Discriminator, Encoder
from anifast.systems.disentangle.training import Pictures, Pretraining, Stage1, Stage2, Trained
from anifast.systems.staging import Stage, StagedRun


class Run(StagedRun):
    """The stages of a run and what they take from one another."""

    TAKING_OVER = "--start-from takes stage 1 over"
    config: Config

    @cached_property
    def pictures(self) -> Labelled:
        """All pictures.

        Raises:
            DataError: the folder cannot be used.
        """
        c = self.config
        if c.dataset == "digits":
            found = load_digits_by(self.data, c.label)
        else:
            found = load_artists(
                self.data,
                c.size,
                crop_size=c.crop_size,
                channels=c.channels,
                min_images=c.min_images,
                weight_maps=c.weight_maps,
                min_classes=1 if c.style_size == 0 else 2,
            )
        found.to(self.device)
        return found

    def stages(self) -> list[Stage]:
        """Those that the settings ask for, in order.

        Raises:
            AnifastError: one that is asked for alone misses what comes before it.
        """
        c = self.config
        names = [name for name in STAGES if c.stage in ("all", name)]
        if c.stage == "all":
            left_out = {
                "stage1": c.start_from is not None,
                "classifier": c.style_size == 0 or c.classifier_iterations == 0 or c.stage2_iterations == 0,
                "stage2": c.style_size == 0 or c.stage2_iterations == 0,
            }
            names = [name for name in names if not left_out.get(name)]
        elif c.stage == "stage1" and c.start_from is not None:
            raise AnifastError(
                "settings stage and start_from: stage 1 is taken over, so there is nothing to train in it"
            )
        makers = {
            "stage1": self._stage1,
            "encode": self._encode,
            "classifier": self._classifier,
            "stage2": self._stage2,
        }
        return [makers[name]() for name in names]

    def _stage1(self) -> Stage:
        plan = self.plan(self.config.batch, self.config.iterations)

        def done() -> bool:
            return self.is_over("stage1", plan, ("stage2", codes.NAME))

        def assemble() -> tuple[Trained, Pictures, Plan]:
            c = self.config
            return (
                Stage1(c, self.pictures, self.device, self.team),
                Pictures(self.pictures, c.batch, c.seed, self.device, self.team),
                plan,
            )

        return Stage("stage1", done, assemble)

    def first(self) -> dict[str, dict[str, Tensor]]:
        """The weights that stage 1 has ended with: E, G and S, from this run or the one it starts from.

        Raises:
            CheckpointError: there are none, or they are of other networks or artists.
        """
        source = self.config.start_from
        if source is None and not (self.out / "stage1" / checkpoint.NAME).exists():
            raise CheckpointError(
                f"{self.out}: this stage needs stage 1, which has not begun; run --stage stage1 before"
            )
        place = Path(source) if source is not None else self.out / "stage1"
        with about(place):
            state = systems.read(place)
            if not checkpoints.recognises(state):
                raise CheckpointError("no disentangling network is in it")
            found = checkpoints.contents(state)
            wanted = ("E", "G", "S") if self.config.style_size != 0 else ("E", "G")
            missing = [name for name in wanted if name not in found.nets]
            if missing:
                raise CheckpointError(f"{', '.join(missing)} of stage 1 are not in it")
            theirs, ours = (self._shape(config) for config in (found.config, self.config))
            other = [f"--{key.replace('_', '-')} {theirs[key]}" for key in ours if theirs[key] != ours[key]]
            if other:
                raise CheckpointError(f"its networks are not those of this run; they need {' '.join(other)}")
            if found.origin == "anifast" and list(found.classes or ()) != list(self.pictures.classes):
                raise CheckpointError(
                    f"it knows other artists than this data folder has ({len(found.classes or ())} and "
                    f"{len(self.pictures.classes)})"
                )
            if "S" in found.nets and len(found.nets["S"]["mean"]) != len(self.pictures.classes):
                raise CheckpointError(
                    f"its styles are of {len(found.nets['S']['mean'])} artists, and the data folder has "
                    f"{len(self.pictures.classes)}"
                )
        return {name: found.nets[name] for name in wanted}

    def _shape(self, config: Config) -> dict[str, object]:
        """The settings that shape E, G and S, with the artists that there are."""
        width = config.style_width(len(self.pictures.classes))
        return checkpoints.architecture(config, judges=False) | {"style_size": width}

    def _encoder(self) -> Encoder:
        encoder = Encoder(self.config)
        encoder.load_state_dict(self.first()["E"])
        return encoder.to(self.device).requires_grad_(False)

    def _encode(self) -> Stage:
        path = self.out / codes.NAME

        def done() -> bool:
            if not path.exists():
                return False
            if (self.out / "stage2" / checkpoint.NAME).exists() and self.config.stage != "encode":
                return True
            try:
                codes.check(codes.read(path), path, self._encoder(), self.pictures)
            except CheckpointError:
                return False
            except DataError:
                if self.config.stage == "encode":
                    return False
                raise  # stage 1 and the classifier know the old pictures
            return True

        def work() -> None:
            found = codes.encode(
                self._encoder(), self.pictures, self.device, 8 * self.config.batch, self.config.precision
            )
            checkpoint.save(path, found)

        return Stage("encode", done, work=work)

    def _classifier(self) -> Stage:
        c = self.config
        plan = self.plan(c.classifier_batch, c.classifier_iterations)

        def done() -> bool:
            return self.is_over("classifier", plan, ("stage2",))

        def assemble() -> tuple[Trained, Pictures, Plan]:
            return (
                Pretraining(c, self.pictures, self.device, self.team),
                Pictures(self.pictures, c.classifier_batch, c.seed, self.device, self.team),
                plan,
            )

        return Stage("classifier", done, assemble)

    def _take_classifier(self, system: Stage2) -> None:
        """Let C2, and D's trunk, begin with the pre-trained classifier.

        Raises:
            CheckpointError: it is not there, though there should be one, or it is another.
        """
        pretrained = self.out / "classifier"
        if not (pretrained / checkpoint.NAME).exists():
            if self.config.classifier_iterations == 0:
                return
            raise CheckpointError(
                f"{self.out}: stage 2 begins with the pre-trained classifier; run --stage classifier before, or "
                "give --classifier-iterations 0 for a new one"
            )
        classifier, discriminator = system.nets["C2"], system.nets["D"]
        assert isinstance(classifier, Classifier) and isinstance(discriminator, Discriminator)
        with about(pretrained):
            found = checkpoints.contents(checkpoint.load(pretrained))
            try:
                classifier.load_state_dict(found.nets["C2"])
            except (KeyError, RuntimeError) as error:
                raise CheckpointError(f"its classifier is another: {str(error).splitlines()[0]}") from error
        discriminator.take_trunk(classifier)

    def _stage2(self) -> Stage:
        c = self.config
        plan = self.plan(c.stage2_batch, c.stage2_iterations)

        def assemble() -> tuple[Trained, Pictures, Plan]:
            path = self.out / codes.NAME
            if not path.exists():
                raise CheckpointError(f"{path}: stage 2 needs the codes of all pictures; make them by --stage encode")
            stored = codes.read(path)
            system = Stage2(c, self.pictures, self.device, self.team, stored["statistics"])
            begun = self.out / "stage2"
            resumed = (begun / checkpoint.NAME).exists()  # it has all its networks, and does not ask again where from
            if resumed:
                with about(begun):
                    system.nets["E"].load_state_dict(checkpoints.contents(checkpoint.load(begun)).nets["E"])
            else:
                for name, weights in self.first().items():
                    system.nets[name].load_state_dict(weights)
            codes.check(stored, path, system.nets["E"], self.pictures)
            if not resumed:
                self._take_classifier(system)
            data = Pictures(self.pictures, c.stage2_batch, c.seed, self.device, self.team, stored)
            return system, data, plan

        return Stage("stage2", lambda: self.reached("stage2", plan), assemble)


def stages(config: Config, data: Path, out: Path, device: torch.device, team: Team | None = None) -> list[Stage]:
    """The stages of a run, which `runs.train` goes through."""
    return Run(config, data, out, device, team).stages()
