"""`refine()`: let a store follow changed outlines, train a head from where the last one ended, segment the slides.

The steps are those of `extract`, `train-head` and `predict`, by the same functions.
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

from pathseg.extract.config import ExtractConfig, ViTConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.datasets.slides import recorded_options
from pathseg.extract.inputs.images import list_input_images, open_input_image
from pathseg.extract.models import load
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.stored_model import StoredModel
from pathseg.extract.pipeline import ExtractResult, extract
from pathseg.extract.plan import plan_extraction
from pathseg.refine.config import RefineConfig
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.names import MANIFEST
from pathseg.store.key import Magnification, StoreKey
from pathseg.store.location.cache import cache_for
from pathseg.store.location.location import open_location
from pathseg.store.runtime.device import device as resolve_device
from pathseg.store.runtime.flags import words_of
from pathseg.store.runtime.workspace import heads_path, store_path
from pathseg.train.config import HeadConfig
from pathseg.train.data.joined import JoinedStores
from pathseg.train.predict.config import PredictConfig
from pathseg.train.predict.feature_sources import store_file_mpp, stored_features
from pathseg.train.predict.predictor import PredictionResult, predict
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import Epoch
from pathseg.train.training import sweep
from pathseg.train.training.initial_weights import initial_weights

DEFAULT_T = 50  # of the features of a new store
OnProgress = Callable[[int, int], None]  # of the current step: patches, epochs or windows done, and in total
Value = TypeVar("Value")


@dataclass(frozen=True)
class RefineResult:
    """The outcome of `refine`.

    run: the head that was trained. commands: the three command lines that do the same. seconds: of each step, by the
    name of its command.
    """

    extraction: ExtractResult
    run: FinishedRun
    prediction: PredictionResult
    commands: tuple[str, ...]
    seconds: Mapping[str, float]


def refine(
    slides: Sequence[str | Path],
    workspace: Path | str,
    config: RefineConfig | None = None,
    *,
    root: Path | None = None,
    store: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    on_step: Callable[[str], object] = lambda command: None,
    on_note: Callable[[str], object] = lambda text: None,
    on_progress: OnProgress = lambda done, total: None,
) -> RefineResult:
    """Segment slides again after their outlines have changed.

    Features of every window with tissue are computed once; later calls do not load the model. A head is trained on the
    windows with labels, from where the last run of this function in the workspace ended, if that fits, and the slides
    are segmented from the store. Objects are detections, so that QuPath does not export them as outlines.

    slides: files, folders or globs. root: the folder of slides and outlines, by default `slides_root`. store: by
    default `<workspace>/slides-<model>.zarr`. out: folder of the results, which lie in `<out>/<run>/`; by default
    `<workspace>/refined`. on_step: called with the command line that a step stands for, before it. on_note: called with
    lines for people. A slide that cannot be segmented is one of `prediction.failures`.

    Raises as `extract`, `train` and `predict` do; FileNotFoundError for a slide that is not there, ValueError for one
    outside of `root`, StoreError for windows that cannot be read.
    """
    config, workspace = config or RefineConfig(), Path(workspace)
    files = list_input_images([str(slide) for slide in slides])
    root = slides_root(slides) if root is None else root
    location = store or str(store_path(workspace, "slides", Path(config.model).name))
    common = ["--workspace", str(workspace), "--device", device]
    commands, seconds = list[str](), dict[str, float]()

    def run(words: Sequence[str], step: Callable[[], Value]) -> Value:
        commands.append(f"pathseg {shlex.join([*words, *common])}")
        on_step(commands[-1])
        started = time.perf_counter()
        result = step()
        seconds[words[0]] = time.perf_counter() - started
        return result

    existing = FeatureStore.open(location) if open_location(location).exists(MANIFEST) else None
    features = _FeatureSettings.of(existing, config, root)
    extraction = run(
        [*features.words(config.model), "--store", location],
        partial(_follow, existing, location, features, config.model, device, on_note, on_progress),
    )
    opened = FeatureStore.open(location, cache=cache_for(location))
    head, folder = _head(opened, config, features, workspace, on_note)
    start = [] if head.initial_weights is None else ["--from", head.initial_weights.run]
    trained = run(
        ["train-head", "--store", location, *words_of(head), "--name", folder.name, *start],
        partial(_train, opened, head, folder, device, on_note, on_progress),
    )
    settings, results = _predict_settings(opened, config), (out or workspace / "refined") / folder.name
    prediction = run(
        [
            "predict", *map(str, files), "--run", folder.name, "--store", location, *words_of(settings), "--out",
            str(results),
        ],
        partial(
            predict,
            files,
            folder.path,
            results,
            settings,
            features=stored_features(opened),
            open_image=partial(open_input_image, file_mpp=store_file_mpp(JoinedStores.of(opened))),
            device=resolve_device(device),
            on_window=lambda image_id, done, total: on_progress(done, total),
        ),
    )  # fmt: skip
    return RefineResult(extraction, trained, prediction, tuple(commands), seconds)


def slides_root(slides: Sequence[str | Path], root: Path | None = None) -> Path:
    """Return the folder whose slides and outlines are read: `root`, or the first slide's, or the first one itself.

    Raises ValueError for a slide outside of it, FileNotFoundError for one that is not there.
    """
    files, first = list_input_images([str(slide) for slide in slides]), Path(slides[0]).expanduser().absolute()
    found = root or (first if first.is_dir() else files[0].absolute().parent)
    if beside := [file for file in files if not file.resolve().is_relative_to(found.resolve())]:
        raise ValueError(f"{beside[0]} is not in {found}, whose slides and outlines are read; pass --root")
    return found


@dataclass(frozen=True)
class _FeatureSettings:
    """How slides are read and their features made. key: of the store that these are taken from, None of a new one."""

    options: DatasetOptions
    extract: ExtractConfig
    key: StoreKey | None

    @classmethod
    def of(cls, store: FeatureStore | None, config: RefineConfig, root: Path) -> _FeatureSettings:
        given = {**config.of_slides, "root": root, "windows": "tissue"}
        if store is None:
            t = DEFAULT_T if config.t is None else config.t
            return cls(DatasetOptions(**given), ExtractConfig((t,), config.blocks, layout="native"), None)
        stored, key = store.timesteps(), store.contents.key
        own = stored[0] if stored and DEFAULT_T not in stored else DEFAULT_T
        t = own if config.t is None else config.t
        options = dataclasses.replace(recorded_options(key), **given)
        return cls(options, ExtractConfig.of_key(key, (t,), config.blocks), key)

    @property
    def vit(self) -> ViTConfig:
        """How a timm model is built and fed."""
        return ViTConfig() if self.key is None or self.key.vit is None else ViTConfig.from_settings(self.key.vit)

    @property
    def condition(self) -> Literal["ssl", "none"] | None:
        """The condition of a latent diffusion model, None for the model's default."""
        if self.key is None or self.key.model_kind != "latent-diffusion":
            return None
        return "none" if self.key.condition == "none" else "ssl"

    @property
    def class_label(self) -> int | None:
        """The class that the denoiser of a diffusers pipeline gets."""
        return None if self.key is None or self.key.diffusers is None else self.key.diffusers.class_label

    @property
    def magnification(self) -> Magnification | None:
        """The magnification of what ZoomLDM is shown; None for that of the um/px, or of another model."""
        return None if self.key is None or self.key.zoom is None else self.key.zoom.magnification

    def words(self, model: str) -> list[str]:
        """The command that makes the features, without its store."""
        root = ["--root", str(self.options.root)]
        condition = [] if self.condition is None else ["--condition", self.condition]
        label = [] if self.class_label is None else ["--class-label", str(self.class_label)]
        seen = [] if self.magnification is None else ["--magnification", self.magnification]
        made_by = ["--model", model, *condition, *label, *seen, *words_of(self.vit)]
        return ["extract", "--dataset", "slides", *root, *words_of(self.options), *made_by, *words_of(self.extract)]

    def load_model(self, model: str, device: str, *, mpp: float | None) -> FeatureModel:
        """Load the model for slides that are read at these um/px. Raises as `load_model`."""
        return load.load_model(
            model, None, self.condition, device=resolve_device(device), vit=self.vit, class_label=self.class_label,
            magnification=self.magnification, mpp=None if mpp is None else mpp * self.extract.surroundings,
        )  # fmt: skip


def _follow(
    store: FeatureStore | None,
    location: str,
    settings: _FeatureSettings,
    name: str,
    device: str,
    on_note: Callable[[str], object],
    on_progress: OnProgress,
) -> ExtractResult:
    """Extract what a store lacks, or a new one; the model is loaded only where features are missing.

    Raises StoreError, naming them, for windows that cannot be read.
    """
    dataset, plan, done = open_dataset("slides", settings.options), None, 0
    if store is not None and store.contents.key.surroundings is None:
        model: FeatureModel = StoredModel(store)
        plan = plan_extraction(dataset, model, location, settings.extract)
    if plan is None or any(plan.missing_maps.values()):
        model = settings.load_model(name, device, mpp=dataset.mpp)
        plan = plan_extraction(dataset, model, location, settings.extract)
    on_note(str(plan))
    total = plan.missing_patches

    def progress(patches: int) -> None:
        nonlocal done
        done += patches
        on_progress(done, total)

    result = extract(dataset, model, location, settings.extract, progress=progress)
    if result.failures:
        lines = [f"{failure.id}: {failure.reason}" for failure in result.failures]
        raise StoreError("\n  ".join([f"{len(lines)} of {len(result.store.listed)} images were set aside:", *lines]))
    return result


def _head(
    store: FeatureStore,
    config: RefineConfig,
    features: _FeatureSettings,
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
        store, t=features.extract.t, blocks=config.blocks, lr=(config.lr,), head_type=config.head_type,
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
    origin = config.outline_origin or store.contents.key.preprocessing.settings.get("outline_origin")
    given = PredictConfig(formats=config.formats, objects_as="detections")
    return dataclasses.replace(given, outline_origin="file" if origin == "file" else "bounds")
