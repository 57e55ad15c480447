"""The training state of one head: saved after every epoch, and loaded again to resume an interrupted run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save
from torch import nn

from pathseg.store.errors import Damaged
from pathseg.store.records import checksum, seal, unseal
from pathseg.store.runtime.atomic_files import write_atomic
from pathseg.store.runtime.json_records import convert_json, decode_json
from pathseg.store.runtime.regular_files import errors_naming, read_file
from pathseg.train.config import Config
from pathseg.train.data.joined import JoinedStores
from pathseg.train.heads.pixel_ensemble import PixelBuffer, PixelEnsemble
from pathseg.train.heads.registry import BASELINES, HEADS
from pathseg.train.runs.folder import LAST, RunFolder
from pathseg.train.runs.record import TRAIN_AGAIN
from pathseg.train.training.adam import Adam


class _Progress(msgspec.Struct, frozen=True):
    """What last.safetensors holds beside the tensors: fields of TrainingState, and the CRC-32C of each tensor.

    Earlier releases wrote no checksums.
    """

    epoch: int
    best: float
    best_epoch: int
    seconds: float
    best_crc: int | None = None
    best_losses: dict[int, float] = {}
    crc32c: dict[str, int] | None = None


@dataclass
class TrainingState:
    """Module, optimizer and progress of one run.

    class_weights: (K,) float32 of the loss, None for an unweighted one. epoch: finished epochs. best: validation Dice
    of best_epoch. best_crc: CRC-32C of the file of its weights. seconds: spent in training steps. losses: of the steps
    of the current epoch. image_losses: of its images, by index. best_losses: the same of best_epoch. failure: why
    training was given up. pixels: pixels that a pixel ensemble has drawn but not yet trained on.
    """

    settings: Config
    run: RunFolder
    head: nn.Module
    optimizer: Adam
    class_weights: torch.Tensor | None = None
    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    best_crc: int | None = None
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    image_losses: dict[int, float] = field(default_factory=dict)
    best_losses: dict[int, float] = field(default_factory=dict)
    failure: str | None = None
    pixels: PixelBuffer = field(default_factory=PixelBuffer)

    @property
    def unfinished(self) -> bool:
        """Whether another epoch is to be trained: not failed, not at the last epoch, not stopped early."""
        patient = not self.settings.patience or self.epoch - self.best_epoch < self.settings.patience
        stopped = isinstance(self.head, PixelEnsemble) and bool(self.head.stopped.all())
        return self.failure is None and self.epoch < self.settings.epochs and patient and not stopped


def build_head(stores: JoinedStores, settings: Config) -> nn.Module:
    """Build the network that `settings` names, for the channels of its layers and the classes of the stores."""
    channels = {layer: stores.channels(layer) for layer in settings.layers}
    return (HEADS | BASELINES)[settings.network](channels, len(stores.images.classes))


def new_training_state(
    stores: JoinedStores, settings: Config, run: RunFolder, *, class_weights: torch.Tensor | None, device: torch.device
) -> TrainingState:
    """Initialise a head from its seed; the global random state is left as it was."""
    with seeded(torch.device("cpu"), settings.seed):
        head = build_head(stores, settings).to(device)
    return TrainingState(settings, run, head, Adam(head.parameters(), lr=settings.lr), class_weights)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the default generators of the CPU and of `device`, and restore their states at the end of the block.

    Unlike `torch.manual_seed`, which reseeds every GPU, generators of other devices are left alone.
    """
    states = [torch.default_generator.get_state()]
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        elif device.type == "mps":
            torch.mps.set_rng_state(states[1])


def seed_of(numbers: Sequence[int]) -> int:
    """Derive one 32-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def save_weights(state: TrainingState, path: Path) -> None:
    """Write the head's weights in their own dtype, flushed to the disk, whole or not at all."""
    _save(dict(state.head.state_dict()), path, {})


def save_best(state: TrainingState) -> None:
    """Write the weights of a new best epoch beside those before; note their checksum and its images' losses.

    Call `save_last`, then `keep_best`: after a kill in between, the weights that last.safetensors lists are there.
    """
    state.best_losses = dict(state.image_losses)
    state.best_crc = google_crc32c.value(_save(dict(state.head.state_dict()), state.run.new_weights, {}))


def keep_best(state: TrainingState) -> None:
    """Give the weights of the best epoch their name where a new file has their checksum; remove any other new file."""
    new = state.run.new_weights
    if not new.is_file():
        return
    if state.best_crc == google_crc32c.value(read_file(new)):
        new.replace(state.run.weights)
    else:  # of an epoch that is trained again
        new.unlink()


def load_best(state: TrainingState) -> None:
    """Load the weights of the best epoch. Raises ValueError, naming the file, when they are not those saved."""
    content = read_file(state.run.weights) if state.run.weights.is_file() else b""
    if not content or state.best_crc not in (None, google_crc32c.value(content)):  # None: of earlier releases
        raise ValueError(f"{state.run.weights} is missing or damaged; {TRAIN_AGAIN}")
    state.head.load_state_dict(load(content))


def save_last(state: TrainingState) -> None:
    """Write all that the next epoch needs to last.safetensors, whole or not at all."""
    tensors = {f"head.{name}": value for name, value in state.head.state_dict().items()}
    for number, values in state.optimizer.moments().items():
        tensors |= {f"adam.{number}.{name}": value for name, value in values.items()}
    progress = {name: getattr(state, name) for name in ("epoch", "best", "best_epoch", "seconds", "best_crc")}
    losses = {str(index): loss for index, loss in state.best_losses.items()}
    about = seal({**progress, "best_losses": losses, "crc32c": _checksums(tensors)})
    _save(tensors, state.run.path / LAST, {"about": about.decode()})


def load_last(state: TrainingState) -> None:
    """Resume after the last finished epoch. Raises ValueError, naming the file, when it is damaged."""
    path = state.run.path / LAST
    try:
        with errors_naming(path):
            with safe_open(path, framework="pt") as file:
                progress = _read_progress(file.metadata()["about"], source=str(path))
            tensors = load_file(path)
        if progress.crc32c not in (None, _checksums(tensors)):
            raise ValueError("its tensors do not fit their checksums")
        state.head.load_state_dict({n.removeprefix("head."): v for n, v in tensors.items() if n.startswith("head.")})
        adam: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, number, field_name = name.split(".")
                adam.setdefault(int(number), {})[field_name] = value
        state.optimizer.load_moments(adam)
        state.epoch, state.seconds = progress.epoch, progress.seconds
        state.best, state.best_epoch, state.best_crc = progress.best, progress.best_epoch, progress.best_crc
        state.best_losses = dict(progress.best_losses)
    except (SafetensorError, Damaged, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise ValueError(f"{path} is damaged ({e}); delete it to train the run from the start") from e


def _read_progress(text: str, *, source: str) -> _Progress:
    values = decode_json(text, dict, source=source)
    if "body" in values:
        return unseal(text.encode(), _Progress, source=source)
    return convert_json(values, _Progress, source=source)


def _checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the CRC-32C of each tensor."""
    return {name: checksum(value.detach().cpu().numpy()) for name, value in tensors.items()}


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> bytes:
    """Write tensors and return the content of the file."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content: bytes = save(plain, metadata=metadata)
    write_atomic(path, content)  # save_file reports a full disk as an error of its own
    return content
