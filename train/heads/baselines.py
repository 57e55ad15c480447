"""Networks that learn from the images themselves, to compare with: Res-UNet and VGG16-FCN8."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pathseg.store.grid import PatchGrid
from pathseg.train.config import IMAGE
from pathseg.train.heads.imagenet import MEAN, STD, fetch_weights, read_weights
from pathseg.train.heads.native_conv import Features, require_fitting


class ResUNet(nn.Module):
    """A U-Net on ResNet-18, `segmentation_models_pytorch.Unet("resnet18")`: 14.3 million parameters."""

    def __init__(self, channels: Mapping[int, int], classes: int) -> None:
        from segmentation_models_pytorch import Unet

        super().__init__()
        self.channels = dict(channels)
        self.net = Unet("resnet18", encoder_weights=None, in_channels=channels[IMAGE], classes=classes)

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """{IMAGE: RGB 0..255 (N, P, 3, 256, 256)} -> (N, K, 256*rows, 256*cols) scores before the softmax."""
        return self.net(network_input(features, self.channels, PatchGrid(*patch_grid)))

    def load_imagenet(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take torchvision's ResNet-18 as first weights of the encoder."""
        self.net.encoder.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})


class VGG16FCN8(nn.Module):
    """FCN-8s on VGG-16 (Long et al. 2015), with the convolutions of torchvision's `vgg16`.

    fc6 (7x7) and fc7 are convolutions of `width` channels, 4096 as in the paper; scores are taken from fc7, pool4 and
    pool3 and brought together by transposed convolutions (x2, x2, x8) that start as bilinear upsampling. fc6 is padded
    by 3 cells, which keeps the grid, where the paper pads the image by 100 px and crops.
    """

    def __init__(self, channels: Mapping[int, int], classes: int, width: int = 4096) -> None:
        from torchvision.models.vgg import cfgs, make_layers

        super().__init__()
        self.channels = dict(channels)
        self.features = make_layers(cfgs["D"])  # 31 layers; pool3 ends the 17th, pool4 the 24th, pool5 the last
        self.fc6 = nn.Conv2d(512, width, 7, padding=3)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(0.5)
        for layer in (*self.features, self.fc6, self.fc7):
            if isinstance(layer, nn.Conv2d):  # as torchvision does it; without, nothing reaches the last layers
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.score7, self.score4, self.score3 = (nn.Conv2d(c, classes, 1) for c in (width, 512, 256))
        self.up7, self.up4, self.up3 = (_bilinear_upsampling(classes, times) for times in (2, 2, 8))

    def forward(self, features: Features, patch_grid: tuple[int, int]) -> torch.Tensor:
        """{IMAGE: RGB 0..255 (N, P, 3, 256, 256)} -> (N, K, 256*rows, 256*cols) scores before the softmax."""
        image = network_input(features, self.channels, PatchGrid(*patch_grid))
        pool3 = self.features[:17](image)  # (N, 256, H/8, W/8)
        pool4 = self.features[17:24](pool3)  # (N, 512, H/16, W/16)
        x = self.features[24:](pool4)  # (N, 512, H/32, W/32)
        for layer in (self.fc6, self.fc7):
            x = self.dropout(layer(x).relu())
        x = self.up7(self.score7(x)) + self.score4(pool4)
        x = self.up4(x) + self.score3(pool3)
        return self.up3(x)

    def load_imagenet(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take torchvision's VGG-16 as first weights: its convolutions, and its first two linear layers as fc6, fc7."""
        self.features.load_state_dict(
            {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
        )
        for layer, name in ((self.fc6, "classifier.0"), (self.fc7, "classifier.3")):
            weight = state[f"{name}.weight"].reshape(layer.weight.shape)
            layer.load_state_dict({"weight": weight, "bias": state[f"{name}.bias"]})


BASELINES = {"res-unet": ResUNet, "vgg16-fcn8": VGG16FCN8}


def network_input(features: Features, channels: Mapping[int, int], grid: PatchGrid) -> torch.Tensor:
    """{IMAGE: RGB 0..255 (N, P, 3, 256, 256)} -> (N, 3, H, W), scaled as torchvision's ImageNet weights expect it."""
    require_fitting(features, dict(channels), grid)
    image = grid.stitch(features[IMAGE]) / 255
    mean, std = (torch.tensor(values, device=image.device, dtype=image.dtype)[:, None, None] for values in (MEAN, STD))
    return (image - mean) / std


def start_from_imagenet(head: nn.Module, name: str) -> None:
    """Give a baseline its first weights. Raises as `imagenet.read_weights` does."""
    head.load_imagenet(read_weights(name))


def settle_weights(name: str, asked: str) -> tuple[str, str]:
    """Which first weights a baseline starts from, `imagenet` or `none`, and a line that says so; `auto` settles it.

    Raises FileNotFoundError where `imagenet` is asked for and cannot be had.
    """
    if asked == "none":
        return "none", f"{name}: random first weights"
    try:
        path = fetch_weights(name)
    except FileNotFoundError as e:
        if asked == "imagenet":
            raise
        return "none", f"{name}: random first weights, since {e}"
    return "imagenet", f"{name}: first weights from ImageNet, {path}"


def _bilinear_upsampling(classes: int, times: int) -> nn.ConvTranspose2d:
    """Each class upsampled by itself, to begin with: kernel 2*times, stride times, as Long et al. have it."""
    layer = nn.ConvTranspose2d(classes, classes, 2 * times, stride=times, padding=times // 2, bias=False)
    line = 1 - (torch.arange(2 * times) - (times - 0.5)).abs() / times
    with torch.no_grad():
        layer.weight.zero_()
        for k in range(classes):
            layer.weight[k, k] = line[:, None] * line[None, :]
    return layer
