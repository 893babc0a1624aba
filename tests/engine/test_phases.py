"""Phases of a step that wait for their turn, and optimisers that step together."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from anifast.engine.loop import Joint, NotFinite, Phase, run_step

CPU = torch.device("cpu")


def nets() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(3, 4), nn.Linear(4, 2)


def optimizers(one: nn.Module, other: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return torch.optim.RMSprop(one.parameters(), lr=0.1), torch.optim.Adam(other.parameters(), lr=0.02)


def test_optimisers_that_step_together() -> None:
    """The same as one after the other; all gradients begin anew."""
    joint_nets, plain_nets = nets(), nets()
    joint, plain = Joint(*optimizers(*joint_nets)), optimizers(*plain_nets)
    x = torch.arange(6.0).view(2, 3)
    for _ in range(3):
        joint.zero_grad()
        assert all(p.grad is None for net in joint_nets for p in net.parameters())
        for one, other in (joint_nets, plain_nets):
            other(one(x)).square().mean().backward()
        joint.step()
        for optimizer in plain:
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(joint_nets, plain_nets, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    joint.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for net in joint_nets for p in net.parameters())


class Waiting:
    """Two phases: the second one's turn comes where `answers` say so, which is asked behind the first one's step."""

    def __init__(self, answers: list[bool]) -> None:
        self.first, self.second = nets()
        self.answers = iter(answers)
        self.heard: list[Tensor] = []
        self.x = torch.arange(6.0).view(2, 3) / 6
        self.phases = [
            Phase("first", self.loss_of_first, torch.optim.SGD(self.first.parameters(), lr=0.1), [self.first]),
            Phase(
                "second",
                self.loss_of_second,
                Joint(torch.optim.SGD(self.second.parameters(), lr=0.1)),
                [self.second],
                self.inputs,
                ready=self.ready,
            ),
            Phase("third", self.loss_of_third, None, []),
        ]

    def loss_of_first(self) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.first(self.x).square().mean()
        return loss, {"first": loss.detach()}

    def ready(self) -> bool:
        self.heard.append(self.first.weight.detach().clone())
        return next(self.answers)

    def inputs(self) -> tuple[Tensor, ...]:
        self.heard.append(torch.empty(0))
        return (self.first(self.x).detach(),)

    def loss_of_second(self, h: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.second(h).square().mean()
        return loss, {"second": loss.detach()}

    def loss_of_third(self) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros(()), {"third": torch.ones(())}


def test_a_phase_that_waits_is_left_out() -> None:
    """It is asked once a step, behind the step of the phase before it; those behind it run all the same."""
    answers = [False, True, False]
    model = Waiting(answers)
    for index, answer in enumerate(answers):
        model.heard.clear()
        before, second = copy.deepcopy(model.first.weight), copy.deepcopy(model.second.weight)
        found = run_step(model.phases, index, CPU)
        assert set(found) == {"first", "third"} | ({"second"} if answer else set())
        assert len(model.heard) == 1 + answer  # its inputs are not even made
        assert torch.equal(model.heard[0], model.first.weight) and not torch.equal(before, model.first.weight)
        assert torch.equal(second, model.second.weight) != answer
        if not answer and index == 0:
            assert model.second.weight.grad is None


def test_a_bad_step_of_a_phase_that_did_not_wait_names_it() -> None:
    model = Waiting([True])
    model.second.weight.data[0, 0] = torch.nan
    with pytest.raises(NotFinite, match="phase second") as error:
        run_step(model.phases, 0, CPU)
    assert [phase.name for phase in error.value.done] == ["first"] and not error.value.last


@pytest.fixture(autouse=True)
def same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
