"""The systems that the paper compares, and which of our runs stands for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pathseg.train.report.sweeps import Repeat, repeats
from pathseg.train.runs.finished import FinishedRun

# a head other than the paper's makes a system of its own, whatever features it reads
HEADS = {
    "res-unet": "Res-UNet",
    "vgg16-fcn8": "VGG16-FCN8",
    "pixel-ensemble": "DDPMSeg (pixel ensemble)",
    "linear": "linear probe",
}
HIPT = ("hipt", "mini-hipt")  # models that give patch tokens
WEIGHTS = {"imagenet": "ImageNet weights", "none": "random weights"}  # the first weights of a baseline
ORDER = (
    "PathSegDiff", "PathSegDiff-uncond", "DDPMSeg (pixel ensemble)", "HIPT", "Res-UNet", "VGG16-FCN8", "linear probe",
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """One system of ours: its name, the runs of its chosen settings (differing by seed only), those settings in words.

    `run` is the one of them with the highest validation Dice; `settings_tried` counts the settings chosen from,
    `settings_aside` those that were not considered, for fewer test images or fewer seeds.
    """

    name: str
    repeat: Repeat
    settings: tuple[str, ...]
    settings_tried: int
    settings_aside: int = 0

    @property
    def run(self) -> FinishedRun:
        """The run whose predictions stand for the system."""
        pairs = zip(self.repeat.scores("val", "dice"), self.repeat.runs, strict=True)
        return max(pairs, key=lambda pair: -1.0 if pair[0] is None else pair[0])[1]

    @property
    def weights(self) -> str:
        """Whose weights made the features; of a system that reads images, what it was trained on and from."""
        if self.run.is_baseline:
            first = self.run.head.get("weights")
            return "trained on the images" + (f", from {WEIGHTS.get(first, first)}" if first else "")
        model = self.run.data["model"]
        return str(model["name"]) + ("" if model["trained"] else " (untrained)")


def system_name(run: FinishedRun) -> str:
    """What the paper calls a system made like this run; features other than the conditioned model's are named too."""
    head, model = run.head.get("head", "fcn"), run.data["model"]
    features = "HIPT" if model["name"] in HIPT else "PathSegDiff-uncond" if model["condition"] == "none" else ""
    if run.is_baseline or not features:
        return HEADS.get(head, "PathSegDiff" if head == "fcn" else str(head))
    return features if head == "fcn" else f"{HEADS.get(head, head)} on {features}"


def systems(runs: Sequence[FinishedRun]) -> tuple[System, ...]:
    """The systems among the runs of one data set, in the paper's spirit: PathSegDiff first.

    A system that was trained with several settings is shown with those of the highest mean validation Dice: choosing
    by the test images would flatter it. Only the fullest are chosen from, those with the most quoted test images and
    of these the most seeds: a single run on the side must not take the place of a whole series.
    """
    found: dict[str, list[tuple[tuple[str, ...], Repeat]]] = {}
    for words, repeat in repeats(runs, least=1):
        found.setdefault(system_name(repeat.runs[0]), []).append((words, repeat))
    made = []
    for name, tried in found.items():
        most = max(_fullness(repeat) for _, repeat in tried)
        full = [pair for pair in tried if _fullness(pair[1]) == most]
        words, repeat = max(full, key=lambda pair: _validation(pair[1]))
        made.append(System(name, repeat, words, len(full), len(tried) - len(full)))
    return tuple(sorted(made, key=lambda one: (ORDER.index(one.name) if one.name in ORDER else len(ORDER), one.name)))


def _fullness(repeat: Repeat) -> tuple[int, int]:
    """Quoted test images, which all runs of a repeat share, and number of seeds."""
    return repeat.runs[0].quoted.images, len(repeat.runs)


def _validation(repeat: Repeat) -> float:
    spread = repeat.spread("val", "dice")
    return -1.0 if spread is None else spread.mean
