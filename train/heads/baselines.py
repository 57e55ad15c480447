"""The baselines: networks trained on the images themselves, Res-UNet and VGG16-FCN8, and their ImageNet weights."""

from __future__ import annotations

import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.train.config import IMAGE
from pathseg.train.heads.stack import Channels, Features, require_fitting

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1: torchvision's ImageNet normalisation
ENCODERS = {"res-unet": "resnet18", "vgg16-fcn8": "vgg16"}  # torchvision's model whose weights a baseline starts from
OFFLINE = "HF_HUB_OFFLINE"  # set to 1 where nothing may be downloaded
PROBE_TIMEOUT_S = 5


class ResUNet(nn.Module):
    """A U-Net on ResNet-18, `segmentation_models_pytorch.Unet("resnet18")`: 14.3 million parameters."""

    def __init__(self, channels: Channels, classes: int) -> None:
        from segmentation_models_pytorch import Unet

        super().__init__()
        self.channels = dict(channels)
        self.net = Unet("resnet18", encoder_weights=None, in_channels=channels[IMAGE], classes=classes)

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """Return class scores before the softmax: {IMAGE: RGB 0..255 (N, P, 3, 256, 256)} -> (N, K, H, W)."""
        return self.net(network_input(features, self.channels, PatchGrid(*patch_grid)))

    def load_imagenet(self, state: Mapping[str, torch.Tensor]) -> None:
        """Initialise the encoder with the state dict of torchvision's ResNet-18."""
        self.net.encoder.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})


class VGG16FCN8(nn.Module):
    """FCN-8s on VGG-16 (Long et al. 2015), with the convolutions of torchvision's `vgg16`.

    fc6 (7x7) and fc7 are convolutions of `width` channels, 4096 as in the paper; the scores of fc7, pool4 and pool3 are
    upsampled and added by transposed convolutions (x2, x2, x8) initialised as bilinear interpolation. fc6 is padded by
    3 cells, which keeps the grid, where the paper pads the image by 100 px and crops.
    """

    def __init__(self, channels: Channels, classes: int, width: int = 4096) -> None:
        from torchvision.models.vgg import cfgs, make_layers

        super().__init__()
        self.channels = dict(channels)
        self.features = make_layers(cfgs["D"])  # 31 layers; pool3 ends the 17th, pool4 the 24th, pool5 the last
        self.fc6 = nn.Conv2d(512, width, 7, padding=3)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(0.5)
        for layer in (*self.features, self.fc6, self.fc7):
            if isinstance(layer, nn.Conv2d):  # as torchvision does; with PyTorch's default activations vanish
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.score7, self.score4, self.score3 = (nn.Conv2d(c, classes, 1) for c in (width, 512, 256))
        self.up7, self.up4, self.up3 = (_bilinear_upsampling(classes, times) for times in (2, 2, 8))

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """Return class scores before the softmax: {IMAGE: RGB 0..255 (N, P, 3, 256, 256)} -> (N, K, H, W)."""
        image = network_input(features, self.channels, PatchGrid(*patch_grid))
        pool3 = self.features[:17](image)  # (N, 256, H/8, W/8)
        pool4 = self.features[17:24](pool3)  # (N, 512, H/16, W/16)
        x = self.features[24:](pool4)  # (N, 512, H/32, W/32)
        for layer in (self.fc6, self.fc7):
            x = self.dropout(layer(x).relu())
        x = self.up7(self.score7(x)) + self.score4(pool4)  # (N, K, H/16, W/16)
        x = self.up4(x) + self.score3(pool3)  # (N, K, H/8, W/8)
        return self.up3(x)  # (N, K, H, W)

    def load_imagenet(self, state: Mapping[str, torch.Tensor]) -> None:
        """Initialise with the state dict of torchvision's VGG-16; fc6 and fc7 from its first two linear layers."""
        self.features.load_state_dict(
            {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
        )
        for layer, name in ((self.fc6, "classifier.0"), (self.fc7, "classifier.3")):
            weight = state[f"{name}.weight"].reshape(layer.weight.shape)
            layer.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"]})


def network_input(features: Features, channels: Channels, grid: PatchGrid) -> torch.Tensor:
    """Stitch and normalise the image, {IMAGE: RGB 0..255 (N, P, 3, 256, 256)} -> (N, 3, H, W)."""
    require_fitting(features, channels, grid)
    image = grid.stitch(features[IMAGE]) / 255
    mean, std = (torch.tensor(values, device=image.device, dtype=image.dtype)[:, None, None] for values in (MEAN, STD))
    return (image - mean) / std


def _bilinear_upsampling(classes: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution initialised as bilinear interpolation of each class, kernel 2 * factor (Long et al.)."""
    layer = nn.ConvTranspose2d(classes, classes, 2 * factor, stride=factor, padding=factor // 2, bias=False)
    line = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    with torch.no_grad():
        layer.weight.zero_()
        for k in range(classes):
            layer.weight[k, k] = line[:, None] * line[None, :]
    return layer


def choose_weights(name: str, requested: str) -> tuple[Literal["imagenet", "none"], str]:
    """Decide the initial weights of a baseline, `imagenet` or `none`; return them and a message for the user.

    requested: `imagenet`, `none`, or `auto`, which is imagenet where the weights are in torchvision's cache or can be
    downloaded. Raises FileNotFoundError where `imagenet` is requested and cannot be had.
    """
    if requested == "none":
        return "none", f"{name}: random first weights"
    try:
        path = _download_weights(name)
    except FileNotFoundError as e:
        if requested == "imagenet":
            raise
        return "none", f"{name}: random first weights, since {e}"
    return "imagenet", f"{name}: first weights from ImageNet, {path}"


def start_from_imagenet(head: ResUNet | VGG16FCN8, name: str) -> None:
    """Initialise a baseline with torchvision's ImageNet weights, downloaded if they are not in its cache.

    Raises FileNotFoundError where they cannot be had, ValueError naming the file where it is damaged.
    """
    path = _download_weights(name)
    try:
        state = _imagenet(name).get_state_dict(map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as e:
        raise ValueError(f"{path} is damaged ({str(e).splitlines()[0]}); delete it to have it fetched again") from e
    head.load_imagenet(state)


def _imagenet(name: str) -> Any:
    """Return torchvision's record (a `WeightsEnum`) of the ImageNet weights of a baseline's encoder."""
    from torchvision.models import get_model_weights

    return get_model_weights(ENCODERS[name]).IMAGENET1K_V1


def _download_weights(name: str) -> Path:
    """Return the file of a baseline's ImageNet weights in torchvision's cache, downloaded if it is missing.

    Raises FileNotFoundError, in seconds, where it is missing and cannot be downloaded.
    """
    weights = _imagenet(name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if path.is_file():
        return path
    try:
        if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise OSError(f"{OFFLINE} is set")
        with urllib.request.urlopen(urllib.request.Request(weights.url, method="HEAD"), timeout=PROBE_TIMEOUT_S):
            pass  # torch.hub downloads without a timeout: without network it would wait for minutes
        weights.get_state_dict(map_location="cpu", weights_only=True, check_hash=True)
    except (OSError, RuntimeError) as e:  # RuntimeError: the download has another checksum
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        raise FileNotFoundError(
            f"ImageNet weights are not at {path} and cannot be fetched from {weights.url} ({reason}); "
            "put the file there, or pass --weights none"
        ) from e
    return path
