"""A trained head, ready to be asked: its weights, and what its run says of the features and images it takes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.store.key import StoreKey
from pathseg.store.sampling import Sampling
from pathseg.train.config import HeadConfig
from pathseg.train.heads.inference import class_probabilities, predict
from pathseg.train.heads.pixel_ensemble import PixelEnsemble
from pathseg.train.heads.registry import HEADS
from pathseg.train.heads.stack import Features
from pathseg.train.runs.finished import FinishedRun
from pathseg.train.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainedHead:
    """A head of a finished run. key: of the store it was trained from. digest: hex SHA-256 of its weights' file.

    constant: the class that is most frequent in its training pixels, to which scores are compared.
    """

    name: str
    config: HeadConfig
    head: nn.Module
    key: StoreKey
    sampling: Sampling
    classes: tuple[str, ...]
    ignore: int | None
    constant: str
    digest: str
    device: torch.device

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", mpp: float | None = None) -> TrainedHead:
        """Load the head of a run folder. mpp: um/px of its images, in place of what the run says.

        Raises FileNotFoundError for an unfinished run, ValueError (naming the file) for a damaged or older one.
        """
        run = FinishedRun.read(RunFolder(folder))
        data, path = run.data, run.folder.path / "config.json"
        if run.head.get("head") not in HEADS:
            heads = ", ".join(HEADS)
            raise ValueError(f"{path}: {run.head.get('head')!r} is no head on features; predict takes {heads}")
        try:
            key, sampling = StoreKey.from_dict(data["features"]), Sampling.from_dict(data["sampling"])
            channels = {int(block): int(count) for block, count in data["channels"].items()}
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{path} does not say how its features were made ({e}); train the run again") from e
        config = HeadConfig.from_dict(run.head)
        head = HEADS[config.head](channels, len(data["classes"]))
        _load_weights(head, run.folder.weights)
        return cls(
            name=run.name,
            config=config,
            head=head.to(device).eval(),
            key=key,
            sampling=sampling if mpp is None else dataclasses.replace(sampling, mpp=mpp),
            classes=tuple(data["classes"]),
            ignore=data["ignore"],
            constant=run.quoted.constant_class,
            digest=hashlib.sha256(run.folder.weights.read_bytes()).hexdigest(),
            device=torch.device(device),
        )

    @property
    def gives_uncertainty(self) -> bool:
        """Whether the head also says how sure it is of each pixel."""
        return isinstance(self.head, PixelEnsemble)

    @torch.inference_mode()
    def judge(self, features: Mapping[int, torch.Tensor], grid: PatchGrid) -> torch.Tensor:
        """{block: (N, P, C, h, w)} -> (N, K, H, W) float32 probabilities of the classes; the ignored one has 0.

        Of an ensemble they are the shares of its members that name a class, so that the largest is its vote, and its
        uncertainty (N, H, W), in nats, is one more map behind the classes.
        """
        on_device: Features = {block: maps.to(self.device) for block, maps in features.items()}
        config = self.config
        prediction = predict(
            self.head, on_device, grid, blocks=config.blocks, precision=config.precision, ignore=self.ignore
        )
        if prediction.shares is not None and prediction.uncertainty is not None:
            return torch.cat([prediction.shares, prediction.uncertainty[:, None]], dim=1).float()
        return class_probabilities(prediction.scores, self.ignore)


def _load_weights(head: nn.Module, path: Path) -> None:
    try:
        head.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as e:
        why = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{path} is damaged or not of this run: {why}; train the run again") from e
