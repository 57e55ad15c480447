"""Adam is that of PyTorch, to the last bit, and needs no compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pathseg.train.training.adam import Adam


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def take_steps(net: nn.Module, optimizer, count: int, *, only_last: bool = False) -> None:
    for step in range(count):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net[3](net[:3](images).detach()) if only_last else net(images)).square().mean().backward()
        optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_steps_are_those_of_pytorch_to_the_last_bit():
    ours, theirs = small_net(), small_net()
    take_steps(ours, Adam(ours.parameters(), lr=1e-2), 7)
    take_steps(theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2), 7)
    assert same(ours, theirs) and not same(ours, small_net())


def test_a_parameter_without_gradient_stays_and_takes_no_step():
    ours, theirs = small_net(), small_net()
    for net, kind in ((ours, Adam), (theirs, torch.optim.Adam)):
        optimizer = kind(net.parameters(), lr=1e-2)
        take_steps(net, optimizer, 2, only_last=True)
        take_steps(net, optimizer, 2)
    assert same(ours, theirs)


def test_moments_are_those_that_pytorch_saves_and_go_on_as_if_never_stopped():
    ours, theirs, whole = small_net(), small_net(), small_net()
    first, other = Adam(ours.parameters(), lr=1e-2), torch.optim.Adam(theirs.parameters(), lr=1e-2)
    take_steps(ours, first, 3)
    take_steps(theirs, other, 3)
    saved = other.state_dict()["state"]
    assert saved.keys() == first.moments().keys()
    for number, values in saved.items():
        assert all(torch.equal(value, first.moments()[number][name]) for name, value in values.items())
    resumed = Adam(ours.parameters(), lr=1e-2)
    resumed.load_moments(saved)
    take_steps(ours, resumed, 2)
    optimizer = Adam(whole.parameters(), lr=1e-2)
    take_steps(whole, optimizer, 3)
    take_steps(whole, optimizer, 2)
    assert same(ours, whole)


@pytest.mark.parametrize("moments", [
    {9: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}},
    {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)}},
    {0: {"step": torch.tensor(1.0)}},
])  # fmt: skip
def test_moments_of_other_parameters_are_refused(moments):
    with pytest.raises(ValueError, match=r"\b[09]\b"):
        Adam(small_net().parameters(), lr=1e-2).load_moments(moments)


def test_training_loads_no_compiler():
    code = (
        "import sys, torch; from pathseg.train.training.adam import Adam; net = torch.nn.Linear(2, 1);"
        "adam = Adam(net.parameters(), lr=0.1); net(torch.ones(1, 2)).sum().backward(); adam.step();"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
