"""The head of a finished run, loaded for inference, with the features and images that it takes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from pathseg.store.classes import object_class
from pathseg.store.grid import PatchGrid
from pathseg.store.runtime.device import ieee_float32
from pathseg.store.sampling import Sampling
from pathseg.train.config import HeadConfig, Layer
from pathseg.train.heads import inference
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.heads.registry import HEADS
from pathseg.train.metrics.object import ObjectRule
from pathseg.train.runs.finished_run import FinishedRun
from pathseg.train.runs.folder import RunFolder
from pathseg.train.runs.record import TRAIN_AGAIN, Source


@dataclass(frozen=True)
class TrainedHead:
    """The head of a finished run in evaluation mode.

    name: of the run. sources: the stores that it was trained from. sampling: of their images. background, ignore: codes
    in `classes`, None where there is none. constant_class: the most frequent class in the training pixels, whose
    constant prediction scores are compared to. weights_digest: hex SHA-256 of head.safetensors. object_rule: the
    post-processing of objects that the run chose on its validation images, else that of its settings; none without
    a single class of objects; sizes in px of the training files. colours: as of `RunData`.
    """

    name: str
    settings: HeadConfig
    module: nn.Module
    sources: tuple[Source, ...]
    sampling: Sampling
    classes: tuple[str, ...]
    background: int | None
    ignore: int | None
    constant_class: str
    weights_digest: str
    device: torch.device
    object_rule: ObjectRule = field(default_factory=ObjectRule)
    colours: tuple[str | None, ...] = ()

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", mpp: float | None = None) -> TrainedHead:
        """Load the head of a run folder. mpp: um/px of its training images, in place of what the run records.

        Raises FileNotFoundError for an unfinished run, ValueError for a baseline or (naming the file) a damaged run.
        """
        run = FinishedRun.read(RunFolder(folder))
        settings, data = run.settings, run.data
        if not isinstance(settings, HeadConfig):
            heads = ", ".join(HEADS)
            raise ValueError(
                f"{run.folder.path}: {settings.network} takes images, predict needs a head on features ({heads}); "
                f"pass another --run"
            )
        weights, tuning = run.folder.read_weights(run.metrics), run.metrics.object_tuning
        module = _with_weights(
            partial(HEADS[settings.head_type], {one: data.channels(one) for one in settings.layers}, len(data.classes)),
            weights,
            run.folder.weights,
        )
        return cls(
            name=run.name,
            settings=settings,
            module=module.to(device).eval(),
            sources=data.sources,
            sampling=data.sampling if mpp is None else dataclasses.replace(data.sampling, mpp=mpp),
            classes=data.classes,
            background=data.background,
            ignore=data.ignore,
            constant_class=run.constant_class,
            weights_digest=hashlib.sha256(weights).hexdigest(),
            device=torch.device(device),
            colours=data.colours,
            object_rule=ObjectRule()
            if object_class(data.classes, background=data.background, ignore=data.ignore) is None
            else ObjectRule(settings.min_object_px)
            if tuning is None
            else tuning.rule,
        )

    @property
    def gives_uncertainty(self) -> bool:
        """Whether predictions carry an uncertainty: those of an ensemble do."""
        return isinstance(self.module, PixelEnsemble)

    @torch.inference_mode()
    @ieee_float32()
    def predict(self, features: Mapping[Layer, torch.Tensor], grid: PatchGrid) -> torch.Tensor:
        """Return the probabilities of the classes, {layer: (N, P, C, h, w)} -> (N, K, H, W) float32; the ignored one 0.

        Of an ensemble they are the shares of its members' votes, so that the largest is the majority, and its
        uncertainty in nats follows as one more map: (N, K + 1, H, W).
        """
        on_device = {layer: maps.to(self.device) for layer, maps in features.items()}
        layers, precision = self.settings.layers, self.settings.precision
        if not isinstance(self.module, PixelEnsemble):
            scores = inference.score(self.module, on_device, grid, layers=layers, precision=precision)
            return inference.class_probabilities(scores, self.ignore)  # (N, K, H, W)
        predicted = inference.predict(
            self.module, on_device, grid, layers=layers, precision=precision, ignore=self.ignore
        )
        assert predicted.shares is not None and predicted.uncertainty is not None
        return torch.cat([predicted.shares, predicted.uncertainty[:, None]], dim=1).float()  # (N, K + 1, H, W)


def _with_weights(build: Callable[[], nn.Module], content: bytes, path: Path) -> nn.Module:
    """Return a module with the weights of a file; memory is taken only where names and shapes are those of the file."""
    try:
        tensors = load(content)
        with torch.device("meta"):
            build().load_state_dict(tensors, assign=True)
        module = build()
        module.load_state_dict(tensors)
        return module
    except (SafetensorError, RuntimeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{path} is damaged or not of this run: {reason}; {TRAIN_AGAIN}") from e
