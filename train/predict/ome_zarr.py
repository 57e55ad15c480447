"""A prediction mosaic as a label image of OME-Zarr 0.5: multiscale class codes with names and colours, Zarr 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from pathseg.train.colours import rgb
from pathseg.train.predict.mosaic import NOT_COMPUTED, Mosaic
from pathseg.train.predict.tiles import TILE_PX

VERSION = "0.5"
OPAQUE, TRANSPARENT = 255, 0
AXES = ("y", "x")


def write_ome_zarr(
    mosaic: Mosaic, path: Path, *, name: str, mpp: float, classes: Sequence[str], colours: Sequence[str],
    background: int | None, origin_um: tuple[float, float] = (0.0, 0.0),
) -> None:  # fmt: skip
    """Write all levels of a mosaic, tile by tile, as a Zarr group that is both a multiscale image and a label image.

    name: of the image. mpp: um/px at full resolution. colours: a hex colour `#rrggbb` per class; the background is
    transparent, and so is what was not computed, which has the label value 255 where no class is the background.
    origin_um: (y, x) of the first px in the image file, um. Tiles without prediction take no bytes.
    Source: https://ngff.openmicroscopy.org/0.5/.
    """
    moved = [_Translation(translation=origin_um)] if any(origin_um) else []
    datasets = [
        _Dataset(path=str(level), coordinateTransformations=[_Scale(scale=(mpp * 2**level, mpp * 2**level)), *moved])
        for level in range(len(mosaic.levels))
    ]
    multiscale = _Multiscale(
        name=name,
        type="nearest",
        metadata={"description": "one of every two pixels along each axis: pixel i of level L covers px i * 2^L on"},
        axes=[_Axis(name=axis) for axis in AXES],
        datasets=datasets,
    )
    painted = [
        _Colour(label_value=code, rgba=(*rgb(colour), TRANSPARENT if code == background else OPAQUE))
        for code, colour in enumerate(colours)
    ]
    named = [_Property(label_value=code, class_name=one) for code, one in enumerate(classes)]
    if mosaic.fill == NOT_COMPUTED:
        painted.append(_Colour(label_value=NOT_COMPUTED, rgba=(0, 0, 0, TRANSPARENT)))
        named.append(_Property(label_value=NOT_COMPUTED, class_name="not computed"))
    label = _ImageLabel(colors=painted, properties=named)
    ome = msgspec.to_builtins(_Ome(multiscales=[multiscale], image_label=label))
    group = zarr.create_group(LocalStore(path), zarr_format=3, attributes={"ome": ome})
    for level, codes in enumerate(mosaic.levels):
        array = group.create_array(
            str(level),
            shape=codes.shape,
            chunks=(TILE_PX, TILE_PX),
            dtype="uint8",
            fill_value=mosaic.fill,
            compressors=[BloscCodec(cname="zstd", shuffle="noshuffle")],
            dimension_names=AXES,
        )
        for rows, cols, tile in mosaic.tiles(level):
            if (tile != mosaic.fill).any():
                array[rows, cols] = tile


class _Axis(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    type: str = "space"
    unit: str = "micrometer"


class _Scale(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "scale"
    scale: tuple[float, float]  # um per px of the level, along y and x


class _Translation(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "translation"
    translation: tuple[float, float]  # um along y and x


class _Dataset(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    coordinateTransformations: list[_Scale | _Translation]


class _Multiscale(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    type: str
    metadata: dict[str, str]
    axes: list[_Axis]
    datasets: list[_Dataset]


class _Colour(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    label_value: int
    rgba: tuple[int, int, int, int]


class _Property(msgspec.Struct, frozen=True, kw_only=True):
    label_value: int = msgspec.field(name="label-value")
    class_name: str = msgspec.field(name="class")


class _ImageLabel(msgspec.Struct, frozen=True, kw_only=True):
    version: str = VERSION
    colors: list[_Colour]
    properties: list[_Property]


class _Ome(msgspec.Struct, frozen=True, kw_only=True):
    version: str = VERSION
    multiscales: list[_Multiscale]
    image_label: _ImageLabel = msgspec.field(name="image-label")
