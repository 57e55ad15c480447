"""A store of slides that follows their outlines: step one of `pathseg refine`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pathseg.extract.config import ExtractConfig, SlideStoreConfig, ViTConfig
from pathseg.extract.datasets.registry import DatasetOptions, open_dataset
from pathseg.extract.datasets.slides import recorded_options, stored_windows
from pathseg.extract.inputs.images import list_input_images
from pathseg.extract.models import load
from pathseg.extract.models.feature_model import FeatureModel
from pathseg.extract.models.stored_model import StoredModel
from pathseg.extract.pipeline import ExtractResult, extract
from pathseg.extract.plan import plan_extraction
from pathseg.store.errors import StoreError
from pathseg.store.features import FeatureStore
from pathseg.store.format.names import MANIFEST
from pathseg.store.key import Magnification, StoreKey
from pathseg.store.location.location import open_location
from pathseg.store.runtime.device import device as resolve_device
from pathseg.store.runtime.flags import words_of
from pathseg.store.runtime.workspace import expand_home

DEFAULT_T = 50  # of the features of a new store
OnProgress = Callable[[int, int], None]  # patches done, and in total


@dataclass(frozen=True)
class SlideStore:
    """A store of all windows, or of those with tissue, of a folder of slides, which follows their outlines.

    location: a path or `s3://bucket/prefix`. existing: None where there is no store yet. model: as `--model`. options,
    config: how slides are read and features made, as `existing` records it. weights, hipt, context: files of the model,
    as for `load_model`.
    """

    location: str
    existing: FeatureStore | None
    model: str
    options: DatasetOptions
    config: ExtractConfig
    weights: Path | None = None
    hipt: Path | None = None
    context: Path | None = None

    @classmethod
    def open(cls, location: str, root: Path, config: SlideStoreConfig) -> SlideStore:
        """Return the store at a location, of the slides and outlines in a folder; nothing is written.

        Raises as `open_slides` where the folder holds no slides or outlines.
        """
        files = config.weights, config.hipt, config.context
        given = {**config.of_slides, "root": root, "windows": config.windows or "tissue"}
        if not open_location(location).exists(MANIFEST):
            t = DEFAULT_T if config.t is None else config.t
            made = ExtractConfig((t,), config.blocks, layout="native")
            return cls(location, None, config.model, DatasetOptions(**given), made, *files)
        existing = FeatureStore.open(location)
        stored, key = existing.timesteps(), existing.contents.key
        own = stored[0] if stored and DEFAULT_T not in stored else DEFAULT_T
        t = own if config.t is None else config.t
        options = dataclasses.replace(recorded_options(key), **given)
        if config.windows is None:  # the key does not say: the windows themselves do
            options = dataclasses.replace(options, windows=stored_windows(existing.contents, options))
        return cls(location, existing, config.model, options, ExtractConfig.of_key(key, (t,), config.blocks), *files)

    @property
    def t(self) -> int:
        """The timestep of the features."""
        return self.config.t[0]

    @property
    def tissue(self) -> Literal["otsu", "all"]:
        """What `predict --tissue` takes all windows of the store."""
        return "all" if self.options.windows == "all" else "otsu"

    @property
    def key(self) -> StoreKey | None:
        """The key of the store, None of a new one."""
        return None if self.existing is None else self.existing.contents.key

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

    @property
    def words(self) -> list[str]:
        """The words of the command that does what `follow` does."""
        root = ["--root", str(self.options.root)]
        condition = [] if self.condition is None else ["--condition", self.condition]
        label = [] if self.class_label is None else ["--class-label", str(self.class_label)]
        seen = [] if self.magnification is None else ["--magnification", self.magnification]
        named = {"--weights": self.weights, "--hipt": self.hipt, "--context": self.context}
        files = [word for flag, path in named.items() if path is not None for word in (flag, str(path))]
        made_by = ["--model", self.model, *files, *condition, *label, *seen, *words_of(self.vit)]
        settings = [*root, *words_of(self.options), *made_by, *words_of(self.config)]
        return ["extract", "--dataset", "slides", *settings, "--store", self.location]

    def follow(
        self,
        *,
        device: str = "auto",
        on_note: Callable[[str], object] = lambda text: None,
        on_progress: OnProgress = lambda done, total: None,
    ) -> ExtractResult:
        """Take over changed outlines and extract what the store lacks; it is created where there is none.

        The model is loaded only where features are missing. on_note: called with lines for people. on_progress: called
        with the patches that are done, and in total.

        Raises as `extract`; StoreError, naming them, for windows that cannot be read.
        """
        dataset, plan, done = open_dataset("slides", self.options), None, 0
        if self.existing is not None and self.existing.contents.key.surroundings is None:
            model: FeatureModel = StoredModel(self.existing)
            plan = plan_extraction(dataset, model, self.location, self.config)
        if plan is None or any(plan.missing_maps.values()):
            model = self._load_model(device, mpp=dataset.mpp)
            plan = plan_extraction(dataset, model, self.location, self.config)
        on_note(str(plan))
        total = plan.missing_patches

        def progress(patches: int) -> None:
            nonlocal done
            done += patches
            on_progress(done, total)

        result = extract(dataset, model, self.location, self.config, progress=progress)
        if result.failures:
            lines = [f"{failure.id}: {failure.reason}" for failure in result.failures]
            all_images = len(result.store.listed)
            raise StoreError("\n  ".join([f"{len(lines)} of {all_images} images were set aside:", *lines]))
        return result

    def _load_model(self, device: str, *, mpp: float | None) -> FeatureModel:
        made_by = None if self.key is None else self.key.diffusers
        if made_by is not None and made_by.context == "file" and self.context is None:
            raise ValueError(
                f"the features of {self.location} were made with a stored context; pass it as --context FILE to "
                "compute new ones"
            )
        return load.load_model(
            self.model, self.hipt, self.condition, device=resolve_device(device), weights=self.weights, vit=self.vit,
            context=self.context, class_label=self.class_label,
            magnification=self.magnification, mpp=None if mpp is None else mpp * self.config.surroundings,
        )  # fmt: skip


def slides_root(slides: Sequence[str | Path], root: Path | None = None) -> Path:
    """Return the folder whose slides and outlines are read: `root`, or the first slide's, or the first one itself.

    Raises ValueError for a slide outside of it, FileNotFoundError for one that is not there.
    """
    files, first = list_input_images([str(slide) for slide in slides]), expand_home(slides[0]).absolute()
    found = root or (first if first.is_dir() else files[0].absolute().parent)
    if beside := [file for file in files if not file.resolve().is_relative_to(found.resolve())]:
        raise ValueError(f"{beside[0]} is not in {found}, whose slides and outlines are read; pass --root")
    return found
