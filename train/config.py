"""Settings of the training of heads and baselines, with their defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from pathseg.store.blocks import BLOCKS, format_blocks
from pathseg.train.predict.config import PredictConfig

BATCH_PX = 64  # of a pixel-ensemble: pixels of a step, DDPMSeg's number


class Layer(NamedTuple):
    """The key of one feature map that heads read: a block at a timestep from one of the joined stores.

    source: position of the store among those joined, 0 for a single store. Heads stack layers in ascending order.
    """

    source: int
    t: int
    block: int


IMAGE = Layer(-1, -1, -1)  # stands for the image itself among the layers


@dataclass(frozen=True)
class InitialWeights:
    """The weights of a finished run that a head starts from.

    sha256: hex digest of the run's head.safetensors. run: path of its folder, which may be another one at another time:
    equal weights are equal settings.
    """

    sha256: str
    run: str = dataclasses.field(compare=False)

    def __str__(self) -> str:
        return self.sha256[:8]


class Selection(NamedTuple):
    """What a head reads of one store: a timestep and blocks."""

    t: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class HeadDefaults:
    """Defaults of a head type: learning rate, epochs, and which epoch is kept, by validation Dice or the last one.

    unused: settings that do not apply to it.
    """

    lr: float
    epochs: int
    keep: Literal["best", "last"] = "best"
    unused: tuple[str, ...] = ()


HEAD_DEFAULTS: dict[str, HeadDefaults] = {
    "fcn": HeadDefaults(lr=1e-4, epochs=20, unused=("pixels",)),  # the rate of the paper
    "scalar-mix": HeadDefaults(lr=1e-4, epochs=20, unused=("pixels",)),
    "linear": HeadDefaults(lr=1e-4, epochs=20, unused=("pixels", "image_in_head")),
    # DDPMSeg's; it knows no validation images and stops by a rule of its own
    "pixel-ensemble": HeadDefaults(
        1e-3, epochs=100, keep="last", unused=("patience", "augment", "precision", "image_in_head", "initial_weights")
    ),
}


def per_store_text(values: Iterable[Any], *, separator: str = "+") -> str:
    """Return values, one for each joined store, as text: `50+200`, or `50` where they are all equal."""
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else separator.join(texts)


def _flag(default: Any, help: str, **more: Any) -> Any:
    """Return a field that is also a command line option."""
    return dataclasses.field(default=default, metadata={"help": help, **more})


def _sweep(default: Any, help: str, **more: Any) -> Any:
    """Return a field whose option takes a comma list; every combination of such lists is trained."""
    return _flag(default, help, sweep=True, **more)


# settings that mean the same for a head and a baseline: default and help
SHARED: dict[str, tuple[Any, str]] = {
    "class_weights": ("none", "balanced: 1 - N_c / N, the paper's weights for BCSS."),
    "val_fraction": (0.15, "Fraction of the training images held out for validation, if there is no val split."),
    "split_seed": (0, "Seed of the validation split, the order of training images and the choice of their views."),
    "connectivity": ("8", "Object scores: 8 joins pixels that touch at a corner, 4 does not."),
    "min_object_px": (
        0,
        "Object scores: drop predicted objects under so many px of the original image. 0: none; then scores with the "
        "least size and hole filling that are best on the validation images are given beside them.",
    ),
}


TRAIN_IMAGES = (
    "Train on so many of the training images (of slides and regions: windows), or on all; a comma list gives a "
    "learning curve. The subsets of one --seed are nested and take one patient or slide after the other, where these "
    "are known. Each is repeated within an epoch until the head has taken as many steps as on all images."
)


def _shared(name: str) -> Any:
    """Return a field that heads and baselines have in common."""
    return _flag(*SHARED[name])


def _defaults_text(name: str) -> str:
    """Return the default of each head type as text."""
    return ", ".join(f"{head} {getattr(defaults, name):g}" for head, defaults in HEAD_DEFAULTS.items())


@dataclass(frozen=True)
class HeadConfig:
    """One head: what it reads, how it learns. Written to `config.json` and read back equal; each field is a flag.

    t and blocks of a head on joined stores: one timestep and one tuple of blocks for each store, in their order.
    lr and epochs are those of the head (`HEAD_DEFAULTS`) where they are None; they are never None afterwards.
    """

    t: int | tuple[int, ...] = _sweep(
        50,
        "Timestep of the features; the paper's default is 50. A comma list trains one head for each. Of joined stores: "
        "one for all, or A:50,B:200.",
        by_store=True,
    )
    blocks: tuple[int | tuple[int, ...], ...] = _sweep(
        BLOCKS,
        "4-6, 0,4-6, all or last (of those stored): a head on these; each: a head on every block alone. Of joined "
        "stores: one selection for all, or A:4-6,B:last.",
        flag_default="all",
        by_store=True,
    )
    head_type: Literal["fcn", "scalar-mix", "linear", "pixel-ensemble"] = _flag(
        "fcn",
        "fcn: the paper's head; scalar-mix: learns a weight for each block, then fcn's later layers; linear: a probe, "
        "one 1x1 convolution; pixel-ensemble: DDPMSeg's ten networks.",
        flag="--head",
    )
    lr: float = _sweep(
        None,
        "Learning rate of Adam, or a comma list; the paper's Table 5 has 1e-3, 1e-4, 1e-5.",
        shown=_defaults_text("lr"),
    )
    epochs: int = _flag(
        None,
        "Passes over the training images; the best one on the validation images is kept, of a pixel-ensemble the last.",
        shown=_defaults_text("epochs"),
    )
    patience: int = _flag(0, "Stop a head after this many epochs without a better validation Dice; 0: never.")
    batch_size: int = _flag(1, "Images per step; one 768 px image is nine patches.")
    pixels: int = _flag(
        1024,
        "Of a pixel-ensemble: pixels drawn from each image per epoch. DDPMSeg takes all, so that this one stops after "
        "far fewer pixels.",
    )
    augment: Literal["none", "flips"] = _flag(
        "none",
        "flips: random flips and quarter turns of features and mask. This is not image augmentation: the features of a "
        "flipped image are others than the flipped features; extract --views flips stores those.",
    )
    image_in_head: bool = _flag(
        False,
        "The last layer of the head also reads the stored image at full resolution, by eight channels of a 3x3 "
        "convolution; for borders finer than the features. Of fcn and scalar-mix.",
    )
    class_weights: Literal["none", "balanced"] = _shared("class_weights")
    precision: Literal["float32", "bfloat16"] = _flag("float32", "Arithmetic of the head; bfloat16 is mixed precision.")
    train_images: int | Literal["all"] = _sweep("all", TRAIN_IMAGES)
    val_fraction: float = _shared("val_fraction")
    seed: int = _sweep(0, "Seed of the initial weights, the flips and --train-images, or a comma list.")
    split_seed: int = _shared("split_seed")
    connectivity: Literal["8", "4"] = _shared("connectivity")
    min_object_px: int = _shared("min_object_px")
    initial_weights: InitialWeights | None = dataclasses.field(default=None, metadata={"flag": "--from"})  # of a run

    def __post_init__(self) -> None:
        defaults = HEAD_DEFAULTS[self.head_type]
        for name in ("lr", "epochs"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(defaults, name))
        named = bool(self.blocks) and all(block != () for block in self.blocks)
        _require(self, {"blocks": (named, "name at least one block"), "pixels": (self.pixels >= 1, AT_LEAST_1)})
        joined = any(isinstance(block, tuple) for block in self.blocks)
        if joined != isinstance(self.t, tuple) or (isinstance(self.t, tuple) and len(self.t) != len(self.blocks)):
            raise ValueError(f"t and blocks must be of the same stores, got t {self.t} and blocks {self.blocks}")
        if joined and not all(isinstance(block, tuple) for block in self.blocks):
            raise ValueError(f"blocks of joined stores must be one tuple for each, got {self.blocks}")
        for name in defaults.unused:
            if getattr(self, name) != self.default(name):
                raise ValueError(
                    f"{name} does not apply to head {self.head_type}, got {getattr(self, name)}; leave it out"
                )

    def default(self, name: str) -> Any:
        """Return the default of a setting."""
        return getattr(HEAD_DEFAULTS[self.head_type], name, None) or type(self).__dataclass_fields__[name].default

    @property
    def keep(self) -> str:
        """Which epoch is the result: `best` on the validation images, or `last`."""
        return HEAD_DEFAULTS[self.head_type].keep

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What it reads of each joined store, in their order; of a single store one selection."""
        timesteps = self.t if isinstance(self.t, tuple) else (self.t,)
        blocks: Any = self.blocks if isinstance(self.t, tuple) else (self.blocks,)
        return tuple(Selection(t, of_store) for t, of_store in zip(timesteps, blocks, strict=True))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers that it reads, ascending; the image itself comes first where the head sees it."""
        stored = sorted(Layer(i, t, b) for i, (t, blocks) in enumerate(self.selections) for b in blocks)
        return (IMAGE, *stored) if self.image_in_head else tuple(stored)

    def run_name(self, store: str) -> str:
        """A name that tells runs of one workspace apart: the store's name and every setting that is not the default."""
        timesteps = per_store_text(t for t, _ in self.selections)
        blocks = per_store_text(format_blocks(blocks) for _, blocks in self.selections)
        parts = [store, f"t{timesteps}", f"b{blocks}", self.head_type, f"lr{self.lr:g}"]
        return _name(self, parts, said=("t", "blocks", "head_type", "lr", "seed"))

    @property
    def network(self) -> str:
        """The name of the network that is trained: of a head its type."""
        return self.head_type


@dataclass(frozen=True)
class BaselineConfig:
    """One network that learns from the images themselves. As `HeadConfig` in all else.

    selections and layers are no settings: they say that it reads the image.
    """

    selections: ClassVar[tuple[Selection, ...]] = ()
    layers: ClassVar[tuple[Layer, ...]] = (IMAGE,)
    keep: ClassVar[str] = "best"

    network: Literal["res-unet", "vgg16-fcn8"] = _flag(
        "res-unet", "res-unet: a U-Net on ResNet-18; vgg16-fcn8: Long et al. 2015 on VGG-16.", flag="--model"
    )
    weights: Literal["auto", "imagenet", "none"] = _flag(
        "auto", "Initial weights of the encoder; auto: imagenet if cached or downloadable, else none (random)."
    )
    lr: float = _sweep(1e-4, "Learning rate of Adam, or a comma list; that of the heads.")
    epochs: int = _flag(20, "Passes over the training images; the best one on the validation images is kept.")
    patience: int = _flag(0, "Stop after this many epochs without a better validation Dice; 0: never.")
    batch_size: int = _flag(1, "Images per step, as for the heads.")
    augment: Literal["none", "flips"] = _flag("flips", "flips: random flips and quarter turns; no frozen model helps.")
    class_weights: Literal["none", "balanced"] = _shared("class_weights")
    precision: Literal["float32", "bfloat16"] = _flag("float32", "bfloat16 is mixed precision.")
    train_images: int | Literal["all"] = _sweep("all", TRAIN_IMAGES)
    val_fraction: float = _shared("val_fraction")
    seed: int = _sweep(0, "Seed of the initial weights, dropout, flips and --train-images, or a comma list.")
    split_seed: int = _shared("split_seed")
    connectivity: Literal["8", "4"] = _shared("connectivity")
    min_object_px: int = _shared("min_object_px")

    def __post_init__(self) -> None:
        _require(self, {})

    def run_name(self, store: str) -> str:
        """A name that tells runs apart: the store's, the network's and every setting that is not the default."""
        parts = [store, self.network, self.weights, f"lr{self.lr:g}"]
        return _name(self, parts, said=("network", "weights", "lr", "seed"))

    def default(self, name: str) -> Any:
        """Return the default of a setting."""
        return type(self).__dataclass_fields__[name].default


Config = HeadConfig | BaselineConfig
AT_LEAST_1 = "must be at least 1"
MOST_LR = 1e37  # beyond it a step of Adam is no float32


def _require(config: Config, more: dict[str, tuple[bool, str]]) -> None:
    """Raise ValueError, naming setting, rule and value, unless the settings that all networks share are in range."""
    rules = more | {
        "lr": (0 < config.lr <= MOST_LR, f"must be above 0 and at most {MOST_LR:g}"),
        "seed": (0 <= config.seed < 2**63, "must lie between 0 and 2**63 - 1"),
        "split_seed": (0 <= config.split_seed < 2**63, "must lie between 0 and 2**63 - 1"),
        "epochs": (config.epochs >= 1, AT_LEAST_1),
        "patience": (config.patience >= 0, "must be 0 or more epochs"),
        "batch_size": (config.batch_size >= 1, AT_LEAST_1),
        "val_fraction": (0 < config.val_fraction < 1, "must lie between 0 and 1"),
        "min_object_px": (config.min_object_px >= 0, "must be 0 px or more"),
        "train_images": (config.train_images == "all" or config.train_images >= 1, "must be all or at least 1"),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise ValueError(f"{name} {rule}, got {getattr(config, name)}")


def _name(config: Config, parts: list[str], *, said: tuple[str, ...]) -> str:
    """`parts`, then every other setting that is not the default, then the seed."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    odd = [
        n.replace("_", "") + ("" if v is True else str(v))
        for n, v in values.items()
        if n not in said and v != config.default(n)
    ]
    return "-".join([*parts, *odd, f"s{config.seed}"])


@dataclass(frozen=True)
class RefineConfig:
    """How `refine` trains the next head and what it writes; each field is a flag.

    fresh: whether the head starts from random weights, not from the last run. tissue, formats: as of `predict`; tissue
    None for its default, the command takes what fits the windows of the store.

    Raises ValueError, naming setting, rule and value, for a setting out of range.
    """

    head_type: Literal["linear", "fcn", "scalar-mix"] = _flag("linear", "As for train-head.", flag="--head")
    lr: float = _flag(1e-2, "Learning rate of the head.")
    epochs: int = _flag(10, "Passes over the windows with labels.")
    fresh: bool = _flag(False, "Start from random weights, not from the last run of this command.")
    tissue: Literal["otsu", "all"] | None = _flag(
        None, "As for predict.  [default: all where the store follows all windows, otherwise otsu]"
    )
    formats: tuple[str, ...] = _flag(
        ("geojson", "review", "overlay"), "As for predict.", flag="--format", shown="geojson,review,overlay"
    )

    def __post_init__(self) -> None:
        HeadConfig(head_type=self.head_type, lr=self.lr, epochs=self.epochs)
        PredictConfig(formats=self.formats)
