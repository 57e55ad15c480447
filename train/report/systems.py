"""The systems that the paper compares, and the runs that stand for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pathseg.store.key import StoreKey
from pathseg.train.config import BaselineConfig
from pathseg.train.report.sweeps import Repeats, features_label, find_repeats, model_label
from pathseg.train.runs.finished_run import FinishedRun

# a head other than the paper's makes a system of its own, whatever features it reads
SYSTEMS = {
    "fcn": "PathSegDiff",
    "res-unet": "Res-UNet",
    "vgg16-fcn8": "VGG16-FCN8",
    "scalar-mix": "scalar mix",
    "pixel-ensemble": "DDPMSeg (pixel ensemble)",
    "linear": "linear probe",
}
HIPT = ("hipt", "mini-hipt")  # models that give patch tokens
# The systems of latent diffusion models without condition, by the model's name: nothing else in a store tells the
# paper's model from ZoomLDM or any other release then. Those of other names are called by their own.
UNCONDITIONAL = {
    "brca-hipt-20x": "PathSegDiff-uncond", "mini": "PathSegDiff-uncond", "zoomldm-brca": "ZoomLDM-uncond",
}  # fmt: skip
WEIGHTS = {"imagenet": "ImageNet weights", "none": "random weights"}  # first weights of a baseline
ORDER = (
    "PathSegDiff", "PathSegDiff-uncond", "DDPMSeg (pixel ensemble)", "HIPT", "Res-UNet", "VGG16-FCN8", "linear probe",
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """One system: its name, the runs of its chosen settings (which differ in their seed only), these in words.

    settings_tried: number of settings it was chosen from. settings_aside: of settings that were not considered,
    because they have fewer test images, were trained on fewer images or with fewer seeds.
    """

    name: str
    repeats: Repeats
    settings: tuple[str, ...]
    settings_tried: int
    settings_aside: int = 0

    @property
    def run(self) -> FinishedRun:
        """The run with the highest validation Dice, whose predictions stand for the system."""
        pairs = zip(self.repeats.scores("val", "dice"), self.repeats.runs, strict=True)
        return max(pairs, key=lambda pair: -1.0 if pair[0] is None else pair[0])[1]

    @property
    def weights(self) -> str:
        """The model that gave the features; of a baseline its first weights."""
        settings = self.run.settings
        if isinstance(settings, BaselineConfig):
            return f"trained on the images, from {WEIGHTS.get(settings.weights, settings.weights)}"
        return f"{model_label(self.run)}, condition none" if is_unconditional(self.run) else model_label(self.run)

    @property
    def validation_images(self) -> int:
        """Number of images on which epoch and settings were chosen."""
        return len(self.run.data.images.get("val", ()))


def system_name(run: FinishedRun) -> str:
    """Return the paper's name for a system; features other than the conditioned diffusion model's are named too.

    Only features of which the store says that they are the paper's have its names: those of a release in a folder of
    any name that were made without condition are called `NAME, condition none`.
    A head on joined stores is named after what it reads, `mini 4-6 + mini-hipt 4-6`: each choice is a system.
    """
    name = _without_image(run)
    return f"{name}, image in head" if getattr(run.settings, "image_in_head", False) else name


def _without_image(run: FinishedRun) -> str:
    network, key = run.settings.network, run.data.key
    if len(run.data.sources) > 1:
        joined = features_label(run)
        return joined if network == "fcn" else f"{SYSTEMS[network]} on {joined}"
    features = _features_name(key)
    if run.is_baseline or not features:
        return SYSTEMS[network]
    return features if network == "fcn" else f"{SYSTEMS[network]} on {features}"


def _features_name(key: StoreKey) -> str:
    """Return the name of a system by the features of one store; empty for latent diffusion conditioned as the paper's.

    A release with condition `ssl` takes it from a ViT of HIPT's kind, or has `zoom` in its key: no other is read.
    """
    if key.zoom is not None:
        return "ZoomLDM"
    if key.model_kind == "vit" and key.model in HIPT:
        return "HIPT"
    if key.model_kind != "latent-diffusion":  # a model of the user's
        return key.model
    return UNCONDITIONAL.get(key.model, f"{key.model}, condition none") if key.condition == "none" else ""


def is_unconditional(run: FinishedRun) -> bool:
    """Whether a run learned from features of one release without condition; False for those of other models."""
    key = run.data.key
    one_release = key.model_kind == "latent-diffusion" and len(run.data.sources) == 1
    return not run.is_baseline and one_release and key.condition == "none"


def find_systems(runs: Sequence[FinishedRun]) -> tuple[System, ...]:
    """Return the systems among the runs of one data set, PathSegDiff first.

    The same head on the features of several models is a system for each, with the model's name. Of several settings of
    a system, those with the highest mean validation Dice stand for it, not those with the best
    test scores. They are chosen among the settings with the most quoted test images, of these among those that were
    trained on all images, and of these among those with the most seeds.
    """
    tried: dict[tuple[str, str], list[tuple[tuple[str, ...], Repeats]]] = {}
    for settings, repeats in find_repeats(runs, at_least=1):
        first = repeats.runs[0]
        tried.setdefault((system_name(first), model_label(first)), []).append((settings, repeats))
    models = Counter(name for name, _ in tried)
    found = []
    for (system, model), pairs in tried.items():
        name = system if models[system] == 1 or system == model else f"{system} on {model}"
        most = max(_images_and_seeds(repeats) for _, repeats in pairs)
        candidates = [pair for pair in pairs if _images_and_seeds(pair[1]) == most]
        settings, repeats = max(candidates, key=lambda pair: pair[1].mean_validation_dice)
        found.append(System(name, repeats, settings, len(candidates), len(pairs) - len(candidates)))
    return tuple(sorted(found, key=_order))


def _images_and_seeds(repeats: Repeats) -> tuple[int, bool, int]:
    """Number of quoted test images, whether trained on all images, which all runs share, and number of seeds."""
    first = repeats.runs[0]
    return first.test_scores.images, first.settings.train_images == "all", len(repeats.runs)


def _order(system: System) -> tuple[int, str]:
    """The place of a system in the table: those of the paper in its order, then the others by name."""
    own = system_name(system.run)
    return ORDER.index(own) if own in ORDER else len(ORDER), system.name
