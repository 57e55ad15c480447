"""The training of `mini` that is cut and goes on ends with the weights of one that is not."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pathseg.extract.models.ldm.config import conditioning_design, first_stage_design, unet_design
from pathseg.extract.models.mini import MINI_PARAMS

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
BARS = np.linspace(0.99, 0.01, 10)
CPU = torch.device("cpu")


class Cut(Exception):
    """Stands for a killed process."""


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def cut_at(call, monkeypatch, module, name):
    """Let the function of a module that a step begins with fail at its so-and-so-many-eth call."""
    whole, calls = getattr(module, name), iter(range(1, 1000))

    def perhaps(*arguments):
        if next(calls) == call:
            raise Cut
        return whole(*arguments)

    monkeypatch.setattr(module, name, perhaps)


def phases(out, *, rank=0, cut=None, monkeypatch=None):
    """Both phases of a small denoiser on random latents, a checkpoint every four steps."""
    import mini_denoiser
    import mini_training

    with monkeypatch.context() as patches:
        patches.setattr(mini_training, "KEPT_EVERY", 4)
        patches.setattr(mini_denoiser, "TOGETHER", 2)
        patches.setattr(mini_denoiser, "WINDOW", 8)
        patches.setattr(mini_denoiser, "BATCH", 4)
        rng = np.random.default_rng(0)
        latents = mini_denoiser.Latents(
            torch.from_numpy(rng.standard_normal((40, 3, 16, 16), np.float32)),
            torch.from_numpy(rng.standard_normal((40, 192), np.float32)),
        )
        torch.manual_seed(0)
        design = replace(unet_design(MINI_PARAMS), model_channels=32)
        model = mini_denoiser.Denoiser(design, conditioning_design(MINI_PARAMS), latents.embeddings)
        if cut:
            cut_at(cut, patches, mini_denoiser, "windows")
        for phase in (mini_denoiser.Phase("a", 3, 7, 0.01), mini_denoiser.Phase("b", 4, 3, 1)):
            model = mini_denoiser.train_denoiser(latents, model, BARS, phase, out, seed=0, device=CPU)
    return model.state_dict()


def replica(rank, out, cut):
    """What one of two processes does."""
    sys.path.insert(0, BENCHMARKS)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(out / "meeting").as_uri(), rank=rank, world_size=2)
    try:
        phases(out, cut=cut, monkeypatch=pytest.MonkeyPatch())
    except Cut:
        pass
    finally:
        dist.destroy_process_group()


def replicas(out, cut):
    """Two processes that train together; an error of theirs but the cut is one here."""
    command = [sys.executable, __file__, str(out), str(cut)]
    both = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (out / "meeting").unlink(missing_ok=True)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_denoiser_that_was_cut_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    expected = phases(whole, monkeypatch=monkeypatch)
    with pytest.raises(Cut):
        phases(parts, cut=7, monkeypatch=monkeypatch)
    assert torch.load(parts / "a.pt", weights_only=True)["step"] == 4
    assert same(expected, phases(parts, monkeypatch=monkeypatch))


def test_two_replicas_that_were_cut_end_as_two_that_were_not(tmp_path):
    kept = []
    for folder, cuts in ((tmp_path / "whole", [0]), (tmp_path / "parts", [7, 0])):
        folder.mkdir()
        for cut in cuts:
            replicas(folder, cut)
        kept.append(torch.load(folder / "b.pt", weights_only=True))
    assert same(kept[0]["average"], kept[1]["average"])
    moments = [[state["state"][0]["exp_avg"] for state in content["optimisers"]] for content in kept]
    assert not torch.equal(*moments[0])  # each replica has its own
    assert all(torch.equal(one, other) for one, other in zip(*moments, strict=True))


def test_a_first_stage_that_was_cut_keeps_its_code_book(tmp_path, monkeypatch):
    import mini_first_stage
    import mini_training

    monkeypatch.setattr(mini_training, "KEPT_EVERY", 4)
    monkeypatch.setattr(mini_first_stage, "RESET_EVERY", 4)
    monkeypatch.setattr(mini_first_stage, "BATCH", 2)
    fields = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), np.uint8)

    def train(out):
        out.mkdir(exist_ok=True)
        design = first_stage_design(MINI_PARAMS)
        return mini_first_stage.train_first_stage(fields, design, out, steps=12, seed=0, device=CPU).state_dict()

    expected = train(tmp_path / "whole")
    with monkeypatch.context() as patches, pytest.raises(Cut):
        cut_at(6, patches, mini_first_stage, "cuts")
        train(tmp_path / "parts")
    assert same(expected, train(tmp_path / "parts"))


if __name__ == "__main__":
    replica(int(sys.argv[3]), Path(sys.argv[1]), int(sys.argv[2]))
