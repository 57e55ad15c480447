"""`refine()`: train the next head on outlines that have changed, and segment their slides from the store.

The steps are those of `train-head` and `predict`, by the same functions.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from pathseg.store.features import FeatureStore
from pathseg.store.runtime.device import device as resolve_device
from pathseg.store.runtime.flags import words_of
from pathseg.store.runtime.workspace import heads_path
from pathseg.train.config import HeadConfig, RefineConfig
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import stored_features
from pathseg.train.predict.predictor import OpenImage, PredictionResult, predict
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import Epoch
from pathseg.train.training import sweep
from pathseg.train.training.initial_weights import initial_weights

Blocks = tuple[int, ...] | Literal["all", "last"]
OnProgress = Callable[[int, int], None]  # of the current step: epochs or windows done, and in total
Value = TypeVar("Value")


@dataclass(frozen=True)
class RefineResult:
    """The outcome of `refine`.

    run: the head that was trained. commands: the two command lines that do the same. seconds: of each step, by the name
    of its command.
    """

    run: FinishedRun
    prediction: PredictionResult
    commands: tuple[str, ...]
    seconds: Mapping[str, float]


def refine(
    slides: Sequence[Path],
    store: FeatureStore,
    workspace: Path | str,
    config: RefineConfig | None = None,
    *,
    t: int,
    blocks: Blocks,
    open_image: OpenImage,
    out: Path | None = None,
    device: str = "auto",
    on_step: Callable[[str], object] = lambda command: None,
    on_note: Callable[[str], object] = lambda text: None,
    on_progress: OnProgress = lambda done, total: None,
) -> RefineResult:
    """Train a head on the labelled windows of a store of slides, and segment slides from the store.

    The head starts from where the last run of this function in the workspace ended, if that fits. Objects are
    detections, so that QuPath does not export them as outlines.

    t, blocks: of the features that the head reads. open_image: as of `predict`. out: folder of the results, which lie
    in `<out>/<run>/`; by default `<workspace>/refined`. on_step: called with the command line that a step stands for,
    before it. on_note: called with lines for people. A slide that cannot be segmented is one of `prediction.failures`.

    Raises as `train` and `predict` do, ValueError where training is given up.
    """
    config, workspace = config or RefineConfig(), Path(workspace)
    common = ["--workspace", str(workspace), "--device", device]
    commands, seconds = list[str](), dict[str, float]()

    def run(words: Sequence[str], step: Callable[[], Value]) -> Value:
        commands.append(f"pathseg {shlex.join([*words, *common])}")
        on_step(commands[-1])
        started = time.perf_counter()
        result = step()
        seconds[words[0]] = time.perf_counter() - started
        return result

    location = str(store.location)
    head, folder = _head(store, config, t, blocks, workspace, on_note)
    start = [] if head.initial_weights is None else ["--from", head.initial_weights.run]
    trained = run(
        ["train-head", "--store", location, *words_of(head), "--name", folder.name, *start],
        partial(_train, store, head, folder, device, on_note, on_progress),
    )
    settings, results = _predict_settings(store, config), (out or workspace / "refined") / folder.name
    prediction = run(
        [
            "predict", *map(str, slides), "--run", folder.name, "--store", location, *words_of(settings), "--out",
            str(results),
        ],
        partial(
            predict,
            slides,
            folder.path,
            results,
            settings,
            features=stored_features(store),
            open_image=open_image,
            device=resolve_device(device),
            on_window=lambda image_id, done, total: on_progress(done, total),
        ),
    )  # fmt: skip
    return RefineResult(trained, prediction, tuple(commands), seconds)


def _head(
    store: FeatureStore,
    config: RefineConfig,
    t: int,
    blocks: Blocks,
    workspace: Path,
    on_note: Callable[[str], object],
) -> tuple[HeadConfig, RunFolder]:
    """Return the next head of the sequence of runs in a workspace, and its folder.

    It starts from the last finished run, unless it is to start afresh or that run does not fit, which a note says.
    """
    name = f"{Path(str(store.location)).stem}-refine-{config.head_type}"
    numbered = (RunFolder(heads_path(workspace) / f"{name}-{number}") for number in itertools.count(1))
    earlier = list(itertools.takewhile(lambda run: run.path.is_dir(), numbered))
    finished = [] if config.fresh else [run.path for run in earlier if run.finished]
    (head,) = sweep.expand_heads(
        store, t=(t,), blocks=blocks, lr=(config.lr,), head_type=config.head_type,
        epochs=config.epochs, initial_weights=initial_weights(finished[-1]) if finished else None,
    )  # fmt: skip
    if head.initial_weights is not None:
        try:
            sweep.require_start(store, head)
        except ValueError as e:
            on_note(f"the head starts from random weights: {e}")
            head = dataclasses.replace(head, initial_weights=None)
    return head, RunFolder(heads_path(workspace) / f"{name}-{len(earlier) + 1}")


def _train(
    store: FeatureStore,
    head: HeadConfig,
    folder: RunFolder,
    device: str,
    on_note: Callable[[str], object],
    on_progress: OnProgress,
) -> FinishedRun:
    """Train a head. Raises ValueError where it is given up."""
    plan = sweep.plan_sweep(store, sweep.run_folders(store, [head], folder.path.parent, name=folder.name))
    on_note(sweep.describe_plan(plan, device=device))

    def on_epoch(run: RunFolder, epoch: Epoch) -> None:
        on_progress(epoch.epoch, head.epochs)

    result = sweep.train_plan(plan, device=device, on_epoch=on_epoch)
    if result.failures:
        raise ValueError("\n".join(f"{name}: {why}" for name, why in result.failures.items()))
    return result.runs[0]


def _predict_settings(store: FeatureStore, config: RefineConfig) -> PredictConfig:
    """Objects are detections, counted from where the outlines of the store are."""
    origin = store.contents.key.preprocessing.settings.get("outline_origin")
    given = PredictConfig(formats=config.formats, tissue=config.tissue or "otsu", objects_as="detections")
    return dataclasses.replace(given, outline_origin="file" if origin == "file" else "bounds")
