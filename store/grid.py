"""The grid of patches of an image: cutting an image into patches, stitching their feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line takes sizes from here, and is to start without NumPy
    import numpy as np

PATCH_PX = 256  # patch size that the encoders and the diffusion model were trained on
HEAD_CELLS = 64  # the head's grid per patch: image size / 4 (the published head upsamples by 4)


def margin_px(field_patches: int) -> int:
    """Return how many px a field of so many patches' width reaches beyond the patch in its centre, on each side."""
    return PATCH_PX * (field_patches - 1) // 2


def fitted_size(file_px: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (h, w) in px of the file's aspect ratio, up to rounding, that fits into `size`."""
    factor = min(side / own for side, own in zip(size, file_px, strict=True))
    height, width = (min(side, max(1, round(own * factor))) for side, own in zip(size, file_px, strict=True))
    return height, width


@dataclass(frozen=True)
class PatchGrid:
    """Rows and columns of 256 px patches that tile an image without overlap, numbered row by row."""

    rows: int
    cols: int

    @classmethod
    def of(cls, height: int, width: int) -> PatchGrid:
        """Return the grid of an image of this size in px. Raises ValueError when a side is no multiple of the patch."""
        if height <= 0 or width <= 0 or height % PATCH_PX or width % PATCH_PX:
            near = max(PATCH_PX, round(max(height, width) / PATCH_PX) * PATCH_PX)
            raise ValueError(
                f"image is {width}x{height} px, but both sides must be a multiple of the "
                f"{PATCH_PX} px patch; pass --resize {near}"
            )
        return cls(height // PATCH_PX, width // PATCH_PX)

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return self.rows * self.cols

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in px."""
        return self.rows * PATCH_PX, self.cols * PATCH_PX

    def cut(self, image: np.ndarray, field_patches: int = 1) -> np.ndarray:
        """Cut an image (H, W, C) into what a model sees of its patches, (P, 256, 256, C), row by row.

        field_patches: width of the field around each patch, in patches; 1 is the patch alone. The image may have a
        margin, which for wider fields is at least `margin_px(field_patches)`. Fields are shrunk to a patch by averaging
        squares of `field_patches` px.
        """
        beyond = (image.shape[0] - self.size[0]) // 2 - margin_px(field_patches)
        if beyond:
            image = image[beyond:-beyond, beyond:-beyond]
        if field_patches > 1:
            return self._cut_fields(image, field_patches)
        tiles = image.reshape(self.rows, PATCH_PX, self.cols, PATCH_PX, -1).swapaxes(1, 2)
        return tiles.reshape(self.patches, PATCH_PX, PATCH_PX, -1)

    def _cut_fields(self, image: np.ndarray, times: int) -> np.ndarray:
        import numpy as np

        side = PATCH_PX * times
        fields = np.empty((self.patches, PATCH_PX, PATCH_PX, image.shape[-1]), image.dtype)
        for patch in range(self.patches):
            y, x = (PATCH_PX * number for number in divmod(patch, self.cols))
            squares = image[y : y + side, x : x + side].reshape(PATCH_PX, times, PATCH_PX, times, -1)
            fields[patch] = np.rint(squares.mean(axis=(1, 3), dtype=np.float32))
        return fields

    def stitch(self, maps):
        """Put maps of patches side by side: (N, P, C, h, w) -> (N, C, rows*h, cols*w), NumPy array or torch tensor."""
        n, _, c, h, w = maps.shape
        maps = maps.reshape(n, self.rows, self.cols, c, h, w)
        axes = (0, 3, 1, 4, 2, 5)
        maps = maps.permute(axes) if hasattr(maps, "permute") else maps.transpose(axes)
        return maps.reshape(n, c, self.rows * h, self.cols * w)
