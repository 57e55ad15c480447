"""Figures of sweeps: real PNG files, the same bytes again, and they move with what they show."""

import dataclasses
import io
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from pathseg.train.config import HeadConfig
from pathseg.train.metrics.pixel import Scores
from pathseg.train.report.sweep_figures import draw
from pathseg.train.report.sweeps import sweeps
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.split_scores import PartScores


def finished(*, score: float | None = 0.5, trained: bool = True, **settings: Any) -> FinishedRun:
    data = {
        "store": "/s.zarr", "key": "k", "dataset": "glas", "classes": ["background"], "test_split": "testB",
        "model": {"name": "mini", "trained": trained, "condition": "ssl"}, "images": {"train": ["a"], "val": ["b"]},
    }  # fmt: skip
    scores = Scores.from_dict({**dict.fromkeys(("accuracy", "dice", "miou", "precision", "recall", "f1"), score),
                               "pixels": 4, "classes": []})  # fmt: skip
    part = PartScores(1, scores, "background", scores, {"c": scores})
    history = ({"epoch": 1, "val_accuracy": score, "val_dice": score, "val_miou": score},)
    config = {"head": dataclasses.asdict(HeadConfig(**settings)), "data": data, "parameters": 1}
    folder = RunFolder("-".join(f"{key}{value}" for key, value in settings.items()))
    return FinishedRun(folder, config, history, 1, 1, 1.0, "testB", {"testB": part})


def drawn(runs: list[FinishedRun]) -> bytes | None:
    (sweep,) = sweeps(runs)
    return draw(sweep, "GlaS")


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        picture.load()
        return picture.size


def over_time(times: tuple[int, ...] = (10, 50, 200), **about: Any) -> list[FinishedRun]:
    return [finished(t=t, seed=seed, **{"score": 0.5 + seed / 10, **about}) for t in times for seed in (0, 1)]


def test_timesteps_are_a_png():
    width, height = size_of(drawn(over_time()))
    assert width > 2 * height


def test_the_same_sweep_is_the_same_bytes():
    assert drawn(over_time()) == drawn(over_time())


def test_runs_in_another_order_are_the_same_bytes():
    assert drawn(over_time()) == drawn(over_time()[::-1])


@pytest.mark.parametrize("other", [{"score": 0.6}, {"trained": False}, {"times": (10, 50, 300)}])
def test_the_figure_moves_with_what_it_shows(other):
    assert drawn(over_time()) != drawn(over_time(**other))


def test_crowded_timesteps_can_be_drawn():
    assert size_of(drawn(over_time((1, 2, 999))))


@pytest.mark.parametrize(
    "chosen", [[(4,), (5,)], [(4, 5, 6), (0, 1)], [*((b,) for b in range(13)), (4, 5, 6), tuple(range(13))]]
)
def test_blocks_are_a_png_with_groups_and_without(chosen):
    assert size_of(drawn([finished(blocks=blocks) for blocks in chosen]))


def test_missing_scores_can_be_drawn():
    assert size_of(drawn([finished(t=10, score=None), finished(t=50)]))


def test_a_sweep_without_any_score_can_be_drawn():
    assert size_of(drawn([finished(t=10, score=None), finished(t=50, score=None)]))


def test_learning_rates_have_no_figure():
    assert drawn([finished(lr=1e-3), finished(lr=1e-4)]) is None


def test_importing_the_figures_loads_no_matplotlib_and_no_torch():
    code = "import sys, pathseg.train.report.sweep_figures; print(sorted({'matplotlib', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
