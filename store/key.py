"""The key of a store: everything that changes a stored number, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from pathseg.store.errors import KeyMismatch, StoreError
from pathseg.store.format.packing import PACKINGS
from pathseg.store.grid import PATCH_PX

Layout = Literal["grid", "native", "image"]
LAYOUTS: dict[str, str] = {
    "grid": "upsampled to the head's grid, 64 cells per 256 px patch",
    "native": "as the model gives them, each block at its own resolution",
    "image": "upsampled to pixels, 256 cells per patch (eq. 4 of the paper to the letter)",
}
DTYPES = ("float16", "float32")
BATCH_SIZE = 9  # patches per forward pass of a store whose key does not say it: one image of 768 px
NOISE_RULE = "sha256(seed/image/patch/t)"  # its digest seeds eps of a patch; renamed if the rule ever changes

# a CompVis or ZoomLDM release, the ViT of HIPT, any ViT of timm, a pipeline of diffusers
ModelKind = Literal["latent-diffusion", "vit", "timm", "diffusers"]
Magnification = Literal["20x", "10x", "5x", "2.5x", "1.25x"]
MAGNIFICATIONS: tuple[Magnification, ...] = ("20x", "10x", "5x", "2.5x", "1.25x")  # each covers four times the area
Setting = str | int | float | tuple[str | int | float, ...]
# settings of `Preprocessing` that change mask codes alone: a store follows them without computing features again
LABEL_SETTINGS = frozenset({"mask_codes", "masks", "ignored_code", "brush_um", "region_class", "outline_origin"})


@dataclass(frozen=True)
class Preprocessing:
    """What a data set does to the pixels before a model sees them.

    resized: whole images were brought to the store's size (images bicubic, masks nearest), aspect ratio not kept unless
    `padded`.
    settings: every other setting that changes a pixel or a mask code, by name: numbers, text or tuples of them.
    """

    resized: bool = False
    settings: Mapping[str, Setting] = field(default_factory=dict)

    @property
    def padded(self) -> bool:
        """Whether images keep their aspect ratio in the upper left of the store's images; the rest is ignored."""
        return "padded" in self.settings

    def __str__(self) -> str:
        """One line for people: `resized, aspect ratio not kept; stride_px 600; views 2`."""
        aspect = "kept" if self.padded else "not kept"
        items = [f"resized (images bicubic, masks nearest), aspect ratio {aspect}"] if self.resized else []
        for name, value in self.settings.items():
            items.append(f"{name} {', '.join(map(str, value)) if isinstance(value, tuple | list) else value}")
        return "; ".join(items) or "none"

    @classmethod
    def from_sentence(cls, sentence: str) -> Preprocessing:
        """Read the sentence that stores of format 1 hold in place of these fields.

        Only the sentences that pathseg 0.1.0 wrote are understood; any other is kept whole as the setting `note`.
        """
        resized = sentence.startswith("resized to ")
        rest = re.sub(r"^resized to [^;]*;? ?", "", sentence)
        for pattern, read in _SENTENCES:
            if found := re.fullmatch(pattern, rest):
                return cls(resized, read(found))
        return cls(resized, {"note": rest})


def _mask_codes(found: re.Match) -> dict[str, Setting]:
    return {"mask_codes": tuple(int(code) for code in found[1].split(", "))}


def _regions(found: re.Match) -> dict[str, Setting]:
    """Settings from the sentence of BCSS."""
    drawn: dict[str, Setting] = {"view_seed": int(found["seed"])} if found["seed"] else {}
    return {
        "image_folder": found["folder"],
        "file_mpp": tuple(float(mpp) for mpp in found["scales"].split(" and ")),
        "target_mpp": float(found["target"]),
        "patch_px": int(found["patch"]),
        "stride_px": int(found["stride"]),
        "drop_above_ignored": int(found["drop"]) / 100,
        "view_px": int(found["view"]),
        "views": 1 + int(found["drawn"] or 0),
        **drawn,
    }


_SENTENCES: tuple[tuple[str, Callable[[re.Match], dict[str, Setting]]], ...] = (
    (r"(?:none)?", lambda found: {}),
    (r"generated with seed (\d+)", lambda found: {"generator_seed": int(found[1])}),
    (r"mask codes (-?\d+(?:, -?\d+)*) are classes 0\.\.\d+", _mask_codes),
    (
        r"regions of (?P<folder>\S+), (?P<scales>[\d.e+-]+(?: and [\d.e+-]+)*) um/px, brought to (?P<target>[\d.e+-]+) "
        r"\(images by averaging areas, masks nearest\); (?P<patch>\d+) px patches every (?P<stride>\d+) px and flush "
        r"with the edges, without those above (?P<drop>\d+)% ignored; smaller regions mirrored, what is added ignored; "
        r"(?P<view>\d+) px views of each: the centre(?: and, to train on, (?P<drawn>\d+) drawn with seed "
        r"(?P<seed>\d+))?",
        _regions,
    ),
)


@dataclass(frozen=True)
class ViTSettings:
    """How a timm vision transformer was built and fed.

    architecture: timm's name. mean, std: of RGB in 0..1. input_px: side that a 256 px patch was resized to (bicubic,
    with antialias). norm: `final` where the model's last norm was applied to every block, else `none`. model_args:
    arguments of the architecture other than its defaults, JSON values.
    """

    architecture: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_px: int
    norm: Literal["final", "none"]
    model_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Surroundings:
    """The wider field in which a model saw each patch, shrunk to a patch; only the cells on the patch are kept.

    times: width of the field, in patches. beyond: what lay beyond an image's edges, `region` for the tissue around it
    in its file, or the `mirrored` image. At the file's edges a slide is white, and a region or plain image mirrored.
    """

    times: Annotated[int, msgspec.Meta(ge=2)]
    beyond: Literal["region", "mirrored"]

    def __str__(self) -> str:
        """One line for people."""
        mirrored = self.beyond == "mirrored"
        beyond = "the image mirrored" if mirrored else "its tissue, at the file's edges white (slides) or mirrored"
        return f"{self.times} patches wide around each patch, shrunk {self.times}-fold; beyond the image {beyond}"


@dataclass(frozen=True)
class DiffusersSettings:
    """How the denoiser of a diffusers pipeline was conditioned, the same for all images.

    context: `none` for a denoiser that takes no context tokens, `zero` for zeros, `file` for stored tokens, whose
    values are in the model's digest. class_label: None where the class embedding was zero or the denoiser has none.
    """

    context: Literal["none", "zero", "file"]
    class_label: int | None = None

    def __str__(self) -> str:
        """Return `unconditional`, `zero context` or `stored context`, with the class where there is one."""
        context = {"none": "unconditional", "zero": "zero context", "file": "stored context"}[self.context]
        if self.class_label is None:
            return context
        label = f"class {self.class_label}"
        return label if self.context == "none" else f"{context}, {label}"


@dataclass(frozen=True)
class ZoomSettings:
    """How ZoomLDM was conditioned, by embeddings of the 20x patches that each picture covers.

    magnification: of the pictures. vit: the model that gave the embeddings, whose weights are in the model's digest.
    cells: what stood for the 20x patches, `enlarged` for the cells of the 256 px that the model was shown, enlarged to
    20x (bicubic); with `surroundings` these are the field after it was shrunk.
    """

    magnification: Magnification
    vit: ViTSettings
    cells: Literal["enlarged"] = "enlarged"


# not in the JSON of a key that does without them
LATER_FIELDS: dict[str, Any] = {
    "vit": ViTSettings, "surroundings": Surroundings, "diffusers": DiffusersSettings, "zoom": ZoomSettings,
}  # fmt: skip


@dataclass(frozen=True)
class StoreKey:
    """What made the features. Timesteps and blocks are not in it: a store can gain more of both later.

    The settings of `preprocessing` in LABEL_SETTINGS say how the masks were made; keys that differ in these alone are
    of the same features.

    size: height and width of an image in px. mpp: um/px. model_digest: SHA-256 over all weights in use. first_stage:
    `vq-f4`, `kl-f8`, None where the model has none. condition: `ssl` or `none`. seed: of the noise. precision:
    arithmetic of the forward pass. packing: a name in `format.packing.PACKINGS`; rounding changes numbers. batch_size:
    patches per forward pass at most; kernels, and so the last bits of the features, are chosen by it. vit: of a timm
    model, None of others. surroundings: None where the model saw the patches alone. diffusers: of a diffusers pipeline,
    None of others. zoom: of ZoomLDM with its condition, None of others.
    """

    dataset: str
    preprocessing: Preprocessing
    size: tuple[int, int]
    mpp: float | None
    model: str
    model_digest: str
    first_stage: str | None
    condition: str
    seed: int
    layout: str
    dtype: str
    patch_px: int = PATCH_PX
    noise: str = NOISE_RULE
    precision: str = "float32"
    packing: str = "none"
    batch_size: Annotated[int, msgspec.Meta(ge=1)] = BATCH_SIZE
    vit: ViTSettings | None = None
    surroundings: Surroundings | None = None
    diffusers: DiffusersSettings | None = None
    zoom: ZoomSettings | None = None

    @property
    def field_patches(self) -> int:
        """Width of what the model saw of each patch, in patches: 1, the patch alone, or more with its surroundings."""
        return 1 if self.surroundings is None else self.surroundings.times

    @property
    def model_kind(self) -> ModelKind:
        """Kind of the model that made the features."""
        if self.vit is not None:
            return "timm"
        if self.diffusers is not None:
            return "diffusers"
        return "vit" if self.first_stage in (None, "none") else "latent-diffusion"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; later fields only where they are set, so that the digests of older keys stay the same."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {name: value for name, value in values.items() if name not in LATER_FIELDS or value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StoreKey:
        """The inverse of `to_json`; also reads keys of format 1, whose `preprocessing` is a sentence.

        A field that an older release did not have takes its default. Raises StoreError on an unknown field, one that
        is missing and has no default, or a value of the wrong type.
        """
        if unknown := sorted(set(values) - {field.name for field in dataclasses.fields(cls)}):
            names = f"{', '.join(unknown)!r:.200}"
            raise StoreError(f"the store's key has fields that this pathseg does not know ({names}); upgrade pathseg")
        if isinstance(sentence := values.get("preprocessing"), str):
            values = {**values, "preprocessing": msgspec.to_builtins(Preprocessing.from_sentence(sentence))}
        try:
            key = msgspec.convert(values, cls)
        except msgspec.ValidationError as e:
            raise StoreError(f"the store's key cannot be read: {e}; upgrade pathseg, or extract the store anew") from e
        for name, known in (("layout", LAYOUTS), ("dtype", DTYPES), ("packing", PACKINGS)):
            if getattr(key, name) not in known:
                raise StoreError(f"the store's key has the unknown {name} {getattr(key, name)!r}; "
                                 "upgrade pathseg, or extract the store anew")  # fmt: skip
        return key

    @property
    def of_features(self) -> StoreKey:
        """This key without the settings that change mask codes alone."""
        settings = {name: value for name, value in self.preprocessing.settings.items() if name not in LABEL_SETTINGS}
        return dataclasses.replace(self, preprocessing=dataclasses.replace(self.preprocessing, settings=settings))

    @property
    def condition_text(self) -> str:
        """The condition for people: `ssl`, of ZoomLDM `ssl at 10x`, `none`, or what a diffusers pipeline got."""
        if self.zoom is not None:
            return f"{self.condition} at {self.zoom.magnification}"
        return self.condition if self.diffusers is None else str(self.diffusers)

    @property
    def digest(self) -> str:
        """64 hex digits that stand for the whole key."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def overflow(self, features: str) -> str:
        """Return the message about `features` that are infinite or NaN: the cause and the way out."""
        if self.precision != "float32":
            way_out = "pass --precision float32 to extract"
            return f"{features} has infinite values or NaN in --precision {self.precision}; {way_out}"
        if self.dtype != "float32":
            return f"{features} has values that {self.dtype} cannot hold; pass --dtype float32 to extract"
        return f"{features} has infinite values or NaN from the model in float32; check image and weights"

    def differences(self, wanted: StoreKey) -> list[str]:
        """Return a phrase with both values of each field by which `wanted` is of other features."""
        return [
            f"{name} is {_shown(here)} there, {_shown(requested)} asked for"
            for name, here, requested in _flat_pairs(self.of_features, wanted.of_features)
            if here != requested
        ]

    def require(self, wanted: StoreKey, *, store: str) -> None:
        """Raise KeyMismatch, naming both values of each differing field, unless `wanted` is of the same features."""
        if differing := self.differences(wanted):
            raise KeyMismatch(
                f"{store} holds features made in another way: {'; '.join(differing)}; "
                f"pass --store or --workspace for a new store"
            )


def _flat_pairs(here: StoreKey, wanted: StoreKey) -> list[tuple[str, Any, Any]]:
    """(name, value here, value wanted) of every field, the settings of preprocessing and model one by one."""
    pairs = [
        (field.name, getattr(here, field.name), getattr(wanted, field.name))
        for field in dataclasses.fields(StoreKey)
        if field.name not in ("preprocessing", *LATER_FIELDS)
    ]
    for part, settings in LATER_FIELDS.items():
        ours, others = getattr(here, part), getattr(wanted, part)
        names = settings.__dataclass_fields__
        pairs += [(f"{part}.{name}", getattr(ours, name, None), getattr(others, name, None)) for name in names]
    mine, theirs = here.preprocessing, wanted.preprocessing
    pairs.append(("preprocessing.resized", mine.resized, theirs.resized))
    of_pixels = dict.fromkeys([*mine.settings, *theirs.settings])
    return pairs + [(f"preprocessing.{name}", mine.settings.get(name), theirs.settings.get(name)) for name in of_pixels]


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
