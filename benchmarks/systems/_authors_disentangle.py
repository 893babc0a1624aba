"""The disentangling network by its authors, from a checkout of their repository, trained by their own program.

Imported are the packages models, modules and trainers of github.com/stormraiser/adversarial-disentangle, at the time of
measuring; nothing of that code is here. Their trainers' constructors read data sets and write folders, so the parts
that an iteration needs are given to trainers that were never constructed; the iteration is theirs, with what it draws
and logs. A batch is ready on the device, as floats.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from anifast.errors import AnifastError
from anifast.systems.disentangle.config import Config

from . import _checkouts

#: The modules that are used.
MODULES = ("models", "utils", "trainers.stage1", "trainers.stage2")
#: Settings of ours with which losses are theirs; none changes what a step costs.
LOSSES: dict[str, Any] = {"adv_cap": True, "nlu_form": "eps"}


class _Folder:
    """What their data sets, none of which is made, derive from."""


def load(checkout: Path) -> dict[str, ModuleType]:
    """The modules of a checkout by their names, with nothing left behind in sys.path and sys.modules.

    Raises:
        AnifastError: they are not there, or cannot be imported here.
    """
    checkout = checkout.resolve()
    needed = ["models/__init__.py", "modules/__init__.py", "trainers/stage1.py", "trainers/stage2.py", "utils.py"]
    _checkouts.require(checkout, needed, "https://github.com/stormraiser/adversarial-disentangle")
    with _checkouts.checkout_first(checkout):
        try:
            torchvision = importlib.import_module("torchvision")
            if not hasattr(torchvision, "datasets"):  # not installed: an empty package stands for it
                vars(torchvision)["datasets"] = SimpleNamespace(DatasetFolder=_Folder)
            return {name: importlib.import_module(name) for name in MODULES}
        except Exception as error:
            raise AnifastError(
                f"--authors {checkout}: its module {_failed()} cannot be imported ({type(error).__name__}: {error})"
            ) from error


def _failed() -> str:
    """The first of `MODULES` that has not been imported."""
    return next((name for name in MODULES if name not in sys.modules), MODULES[-1])


def describe(checkout: Path) -> dict[str, Any]:
    """Which code a checkout holds, see `_checkouts.describe`."""
    checkout = checkout.resolve()
    return _checkouts.describe(checkout, sorted([*checkout.glob("*.py"), *checkout.glob("*/*.py")]))


class Authors:
    """Their networks on given weights, and their trainer of a stage, in float32.

    Args:
        modules: what `load` gave.
        config: of the run, with 4 channels, which theirs always have.
        frequency: of the artists among the pictures, [K].
        weights: network -> state dict of ours: E, G, S and C1 of stage 1, or E, G, S, C2 and D of stage 2.
        device: where they go.
        batch: pictures of a step.
        statistics: of the codes, for stage 2: `mean`, `std`, `weight`.

    Raises:
        AnifastError: the checkout has other networks.
    """

    #: Names of theirs and of ours.
    NAMES = {"enc": "E", "gen": "G", "sty": "S", "cla": "C1", "dis": "D"}

    def __init__(
        self,
        modules: Mapping[str, ModuleType],
        config: Config,
        frequency: Tensor,
        weights: Mapping[str, Mapping[str, Tensor]],
        device: torch.device,
        batch: int,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        c, classes = config, len(frequency)
        models: Any = modules["models"]
        self.utils: Any = modules["utils"]
        self.classes, self.stage = classes, 1 if "C1" in weights else 2
        style = c.style_width(classes)
        sides = (c.size, c.size, [*c.widths, c.fc], [*c.levels(), "f"], -1, -1)
        made: dict[str, Any] = {
            "enc": models.Encoder(*sides, c.content_size),
            "gen": models.TwoPartNestedDropoutGenerator(*sides, c.content_size, style),
            "cla": models.ClassifierOrDiscriminator(*sides, classes),
            "sty": models.NormalizedStyleBank(classes, style, frequency.clone()),
        }
        if self.stage == 2:
            made["dis"] = models.ClassifierOrDiscriminator(*sides)
        self.nets: dict[str, Any] = {}
        for name, net in made.items():
            own = "C2" if (name, self.stage) == ("cla", 2) else self.NAMES[name]
            self.nets[own] = _take_over(net, weights[own], own).to(device)
        net_optimizer = torch.optim.Adam if self.stage == 1 else torch.optim.RMSprop
        lr, lr_style = (c.lr, c.lr_style) if self.stage == 1 else (c.stage2_lr, c.stage2_lr_style)
        trainer: Any = object.__new__(getattr(modules[f"trainers.stage{self.stage}"], f"Stage{self.stage}Trainer"))
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, net in made.items():
            setattr(trainer, name, net)
            if (name, self.stage) == ("enc", 2):
                continue
            optimizer: torch.optim.Optimizer
            if name == "sty":
                optimizer = torch.optim.Adam(net.parameters(), lr=lr_style, eps=1e-8)
            else:
                optimizer = net_optimizer(net.parameters(), lr=lr, eps=1e-4)
            self.optimizers[name] = optimizer
            setattr(trainer, f"{name}_optim", optimizer)
        keep_content, keep_style = c.keeps(classes)
        given: dict[str, Any] = {
            "device": device,
            "batch_size": batch,
            "nclass": classes,
            "state": SimpleNamespace(iter=0, dis_total_batches=0),
            "lr": lr,
            "sty_lr": lr_style,
            "lr_ramp": c.warm_up,
            "augment_options": SimpleNamespace(augment=c.augment),
            "transform_penalty": c.lambda_warp,
            "sty_weight": c.lambda_kl_style,
            "con_drop_prob": keep_content ** torch.arange(c.content_size, dtype=torch.float32),
            "sty_drop_prob": keep_style ** torch.arange(style, dtype=torch.float32),
            "cla_br_weight": 0,
            "dis_br_weight": 0,
            "gen_br_weight": 0,
        }
        if self.stage == 1:
            given |= {
                "mlp": False,
                "class_freq": frequency.to(device),
                "rec_weight": c.lambda_rec,
                "cla_weight": c.lambda_c1,
                "con_weight": c.lambda_kl_content,
                "match_weight": 0,
            }
        else:
            assert statistics is not None
            given |= {
                "con_full_mean": statistics["mean"].float(),
                "con_full_std": statistics["std"].float(),
                "dim_weight": statistics["weight"].float(),
                "dis_weight": c.lambda_d,
                "cla_weight": c.lambda_c2,
                "con_weight": c.lambda_content,
                "cla_fake": True,
                "force_dis": 0,
                "force_cla": 0,
                "loss_avg_factor": 0.9,
            }
        vars(trainer).update(given)
        #: name -> [(iteration, value)], of the losses that they log
        self.logs: dict[str, list[tuple[int, float]]] = {}
        trainer.logs = self.logs
        self.trainer = trainer

    def step(self, images: Tensor, labels: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        """An iteration.

        Args:
            images: colours in [-1, 1] and alpha in [0, 1], B,4,size,size, on the device.
            labels: int64 [B] on the CPU, from which they make their matrix of ones in each step.
            mean, std: stored codes, for stage 2.
        """

        def next_batch() -> tuple[Tensor, ...]:
            ones = self.utils.one_hot(labels, self.classes).to(images.device)
            if mean is not None and std is not None:
                return images, ones, mean, std
            return images, torch.ones_like(images[:, 0]), ones

        self.trainer.next_batch = next_batch
        self.trainer.state.iter += 1
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer.iter_func()


def key(net: str, own: str) -> str:
    """What a parameter of ours is called in their network; C and D have batch regularisation before the slope."""
    return "fc.2.weight" if net in ("C1", "C2", "D") and own == "fc.1.weight" else own


def _take_over(net: Any, weights: Mapping[str, Tensor], name: str) -> Any:
    """Give a network of theirs our weights; their C and D always have batch regularisation, which is off here."""
    renamed = {key(name, own): value for own, value in weights.items()}
    state = net.state_dict()
    unknown = [one for one, value in renamed.items() if one not in state or state[one].shape != value.shape]
    inner = ("pre_mean", "pre_pstd", "real_mean", "real_lstd", "real_w")
    missing = [one for one in state if one not in renamed and one.rpartition(".")[2] not in inner]
    if unknown or missing:
        raise AnifastError(
            f"--authors: the networks are not those of this preset ({name}: {', '.join((unknown + missing)[:3])})"
        )
    net.load_state_dict({**state, **renamed})
    return net
