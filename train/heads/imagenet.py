"""ImageNet weights of torchvision's networks: from its cache, or fetched once."""

from __future__ import annotations

import os
import pickle
import urllib.error
import urllib.request
from pathlib import Path

import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1, with which they were trained
PATIENCE_S = 5  # for the first answer of the server
OFFLINE = "HF_HUB_OFFLINE"  # what says in this field that nothing is to be fetched


def weights_url(name: str) -> str:
    """Where torchvision publishes the weights a baseline starts from; the file's name ends in its checksum."""
    from torchvision.models import ResNet18_Weights, VGG16_Weights

    return {"res-unet": ResNet18_Weights.IMAGENET1K_V1, "vgg16-fcn8": VGG16_Weights.IMAGENET1K_V1}[name].url


def fetch_weights(name: str) -> Path:
    """The file with a baseline's first weights, in torchvision's own cache; fetched if it is not there yet.

    Raises FileNotFoundError, in seconds, where it is not there and cannot be fetched.
    """
    url = weights_url(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    try:
        if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise OSError(f"{OFFLINE} is set")
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE_S):
            pass  # without this a dead network would hold the download up for minutes
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, RuntimeError) as e:  # RuntimeError: what came has another checksum
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        raise FileNotFoundError(
            f"ImageNet weights are not at {path} and cannot be fetched from {url} ({reason}); "
            "put the file there, or pass --weights none"
        ) from e
    return path


def read_weights(name: str) -> dict[str, torch.Tensor]:
    """The first weights of a baseline by torchvision's names. Raises as `fetch_weights`, ValueError when damaged."""
    path = fetch_weights(name)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as e:
        raise ValueError(f"{path} is damaged ({str(e).splitlines()[0]}); delete it to have it fetched again") from e
