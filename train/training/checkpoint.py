"""A head in training: its weights, its optimizer, how far it has come; saved after every epoch and taken up again."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pathseg.store.features import FeatureStore
from pathseg.store.grid import PatchGrid
from pathseg.train.config import IMAGE, Config
from pathseg.train.heads import inference
from pathseg.train.heads.baselines import BASELINES
from pathseg.train.heads.fcn import HEADS
from pathseg.train.heads.native_conv import Features
from pathseg.train.heads.pixel_ensemble import PixelEnsemble, Prediction
from pathseg.train.heads.pixel_pool import PixelPool
from pathseg.train.runs.folder import RunFolder

LAST = "last.safetensors"  # weights and optimizer after the last finished epoch, until the run is finished


@dataclass
class Trainee:
    """One head of a sweep. epoch counts finished epochs, best is the validation Dice of best_epoch."""

    config: Config
    run: RunFolder
    head: nn.Module
    optimizer: torch.optim.Adam
    weights: torch.Tensor | None
    data: str  # digest of the store, as `FeatureStore.digest` gives it
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    failure: str | None = None
    pool: PixelPool = field(default_factory=PixelPool)  # what a pixel ensemble will learn from

    @property
    def learning(self) -> bool:
        """Whether there is an epoch left for it."""
        patient = not self.config.patience or self.epoch - self.best_epoch < self.config.patience
        stopped = isinstance(self.head, PixelEnsemble) and bool(self.head.stopped.all())
        return self.failure is None and self.epoch < self.config.epochs and patient and not stopped


def build_head(store: FeatureStore, config: Config) -> nn.Module:
    """The network that a configuration names, for the channels of its blocks and the classes of the store."""
    return (HEADS | BASELINES)[config.head](input_channels(store, config), len(store.classes))


def input_channels(store: FeatureStore, config: Config) -> dict[int, int]:
    """Channels of each block that a network reads; three of the image itself."""
    return {block: 3 if block == IMAGE else store.contents.blocks[block].channels for block in config.blocks}


def new_trainee(
    store: FeatureStore, config: Config, run: RunFolder, *, weights: torch.Tensor | None, device: torch.device
) -> Trainee:
    """A head with the first weights of its seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = build_head(store, config).to(device)
    return Trainee(config, run, head, torch.optim.Adam(head.parameters(), lr=config.lr), weights, store.digest())


def score(trainee: Trainee, features: Features, grid: PatchGrid) -> torch.Tensor:
    """Return the scores of a head in training; see `inference.score`."""
    config = trainee.config
    return inference.score(trainee.head, features, grid, blocks=config.blocks, precision=config.precision)


def predict(trainee: Trainee, features: Features, grid: PatchGrid, *, ignore: int | None) -> Prediction:
    """Return the prediction of a head in training; see `inference.predict`."""
    config = trainee.config
    return inference.predict(
        trainee.head, features, grid, blocks=config.blocks, precision=config.precision, ignore=ignore
    )


def save_weights(trainee: Trainee, path: Path) -> None:
    """Write the head's weights as they are, whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in trainee.head.state_dict().items()}
    _save(tensors, path, {})


def load_best(trainee: Trainee) -> None:
    """Go back to the weights of the best epoch."""
    trainee.head.load_state_dict(load_file(trainee.run.weights))


def save_last(trainee: Trainee) -> None:
    """Write all that the next epoch needs, whole or not at all."""
    tensors = {f"head.{name}": value for name, value in trainee.head.state_dict().items()}
    for number, state in trainee.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    about = {name: getattr(trainee, name) for name in ("epoch", "best", "best_epoch", "seconds")}
    about |= {"config": dataclasses.asdict(trainee.config), "data": trainee.data}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    _save(plain, trainee.run.path / LAST, {"about": json.dumps(about)})


def restore(trainee: Trainee) -> bool:
    """Take up a run where its last finished epoch left it; False when there is nothing to take up.

    Raises ValueError when what is there was trained with other settings.
    """
    path = trainee.run.path / LAST
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is damaged ({e}); delete it to train the run from the start") from e
    if about.pop("data") != trainee.data:
        raise ValueError(f"{trainee.run.path} was begun on other data than this store's; delete it or pass --name")
    begun = about.pop("config")
    if begun["head"] != trainee.config.head or type(trainee.config).from_dict(begun) != trainee.config:
        raise ValueError(f"{trainee.run.path} holds an unfinished run of other settings; delete it or pass --name")
    trainee.head.load_state_dict({n.removeprefix("head."): v for n, v in tensors.items() if n.startswith("head.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("adam."):
            _, number, what = name.split(".")
            state.setdefault(int(number), {})[what] = value
    groups = trainee.optimizer.state_dict()["param_groups"]
    trainee.optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, value in about.items():
        setattr(trainee, name, value)
    return True


def _save(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str]) -> None:
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=about)
    partial.replace(path)
