"""The training of `mini`, interrupted and resumed, ends with the weights of an uninterrupted one."""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmarks.mini import denoiser, first_stage, training_utils
from pathseg.extract.models.ldm.config import conditioning_design, first_stage_design, unet_design
from pathseg.extract.models.mini import MINI_PARAMS

ALPHA_BARS = np.linspace(0.99, 0.01, 10)
CPU = torch.device("cpu")


class Interrupt(Exception):
    """Stands for a killed process."""


def interrupt_at(call, monkeypatch, module, name):
    """Let the function of a module that begins a step raise Interrupt at its `call`-th call, counted from 1."""
    original, calls = getattr(module, name), iter(range(1, 1000))

    def counted(*arguments):
        if next(calls) == call:
            raise Interrupt
        return original(*arguments)

    monkeypatch.setattr(module, name, counted)


def train_small_denoiser(out, monkeypatch, *, interrupted_at=None):
    """Both phases of a small denoiser on random latents, a checkpoint every four steps; the trained state dict."""
    with monkeypatch.context() as patches:
        patches.setattr(training_utils, "CHECKPOINT_EVERY", 4)
        patches.setattr(denoiser, "AVERAGE_EVERY", 2)
        patches.setattr(denoiser, "CROP", 8)
        patches.setattr(denoiser, "BATCH", 4)
        rng = np.random.default_rng(0)
        latents = denoiser.Latents(
            torch.from_numpy(rng.standard_normal((40, 3, 16, 16), np.float32)),
            torch.from_numpy(rng.standard_normal((40, 192), np.float32)),
        )
        torch.manual_seed(0)
        design = replace(unet_design(MINI_PARAMS), model_channels=32)
        model = denoiser.Denoiser(design, conditioning_design(MINI_PARAMS), latents.embeddings)
        if interrupted_at:
            interrupt_at(interrupted_at, patches, denoiser, "draw_batch")
        for phase in (denoiser.Phase("a", 3, 7, 0.01), denoiser.Phase("b", 4, 3, 1)):
            model = denoiser.train_denoiser(latents, model, ALPHA_BARS, phase, out, seed=0, device=CPU)
    return model.state_dict()


def train_replica(rank, folder):
    """One of two processes that train together: once uninterrupted, once interrupted and resumed."""
    torch.set_num_threads(1)
    for number, (name, interrupted_at) in enumerate((("uninterrupted", None), ("resumed", 7), ("resumed", None))):
        rendezvous = (folder / f"rendezvous-{number}").as_uri()
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
        with nullcontext() if interrupted_at is None else pytest.raises(Interrupt):
            train_small_denoiser(folder / name, pytest.MonkeyPatch(), interrupted_at=interrupted_at)
        dist.destroy_process_group()


def equal_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.soak
def test_a_denoiser_resumed_after_an_interrupt_has_the_same_weights(tmp_path, monkeypatch):
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    for folder in (uninterrupted, resumed):
        folder.mkdir()
    expected = train_small_denoiser(uninterrupted, monkeypatch)
    with pytest.raises(Interrupt):
        train_small_denoiser(resumed, monkeypatch, interrupted_at=7)
    assert torch.load(resumed / "a.pt", weights_only=True)["step"] == 4
    assert equal_weights(expected, train_small_denoiser(resumed, monkeypatch))


@pytest.mark.slow
def test_two_replicas_resumed_after_an_interrupt_have_the_same_weights(tmp_path):
    names = ("uninterrupted", "resumed")
    for name in names:
        (tmp_path / name).mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # `benchmarks` is not installed
    commands = [[sys.executable, __file__, str(tmp_path), str(rank)] for rank in range(2)]
    options = {"stderr": subprocess.PIPE, "text": True, "env": environment}
    replicas = [subprocess.Popen(command, **options) for command in commands]
    errors = [replica.communicate(timeout=120)[1] for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0, 0], errors
    checkpoints = [torch.load(tmp_path / name / "b.pt", weights_only=True) for name in names]
    assert equal_weights(checkpoints[0]["average"], checkpoints[1]["average"])
    moments = [[state["state"][0]["exp_avg"] for state in content["optimisers"]] for content in checkpoints]
    assert not torch.equal(*moments[0])  # each replica has its own
    assert all(torch.equal(one, other) for one, other in zip(*moments, strict=True))


@pytest.mark.soak
def test_a_first_stage_resumed_after_an_interrupt_has_the_same_code_book(tmp_path, monkeypatch):
    monkeypatch.setattr(training_utils, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(first_stage, "RESET_EVERY", 4)
    monkeypatch.setattr(first_stage, "BATCH", 2)
    fields = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), np.uint8)

    def train(out):
        out.mkdir(exist_ok=True)
        design = first_stage_design(MINI_PARAMS)
        return first_stage.train_first_stage(fields, design, out, steps=12, seed=0, device=CPU).state_dict()

    expected = train(tmp_path / "uninterrupted")
    with monkeypatch.context() as patches, pytest.raises(Interrupt):
        interrupt_at(6, patches, first_stage, "draw_crops")
        train(tmp_path / "resumed")
    assert equal_weights(expected, train(tmp_path / "resumed"))


if __name__ == "__main__":
    train_replica(int(sys.argv[2]), Path(sys.argv[1]))
