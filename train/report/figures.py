"""Pictures of results: class codes over tissue (numpy), curves and comparisons (matplotlib, as PNG bytes)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, Literal

import numpy as np
from PIL import Image

# Okabe and Ito's palette, told apart with every kind of colour blindness; green first, the complement of pink.
PALETTE = ("#009E73", "#E69F00", "#0072B2", "#F0E442", "#56B4E9", "#D55E00", "#CC79A7", "#000000")
NEUTRAL = "#8A8A8A"  # background in plots, ignored pixels in pictures
FALSE_POSITIVE, FALSE_NEGATIVE = "#E69F00", "#0072B2"  # over gray tissue, never beside class colours
WRONG = "#D55E00"
PANELS = ("tissue", "ground truth", "prediction", "errors")
PANEL_PX = 352  # longest side of a panel: sharp at the 290 px that a wide page shows, small enough for twelve rows
GAP_PX = 12  # between the panels of a sheet
INK, QUIET = "#1d2733", "#5c6773"


@dataclass(frozen=True)
class Legend:
    """What the colours of the overlays and of the error map mean: pairs of a name and a hex colour."""

    classes: tuple[tuple[str, str], ...]
    errors: tuple[tuple[str, str], ...]


def class_colours(classes: Sequence[str], ignore: int | None = None) -> tuple[str, ...]:
    """One colour a class in code order; `background` and the ignored class are gray.

    Beyond eight classes the palette begins again.
    """
    painted = _painted(classes, ignore)
    places = {k: place for place, k in enumerate(painted)}
    return tuple(PALETTE[places[k] % len(PALETTE)] if k in places else NEUTRAL for k in range(len(classes)))


def legend(classes: Sequence[str], ignore: int | None) -> Legend:
    """The legend of `panels` for these classes."""
    colours = class_colours(classes, ignore)
    painted = [(classes[k], colours[k]) for k in _painted(classes, ignore)]
    if ignore is not None:
        painted.append(("not counted", NEUTRAL))
    target = foreground(classes, ignore)
    if target is None:
        return Legend(tuple(painted), (("wrong class", WRONG),))
    name = classes[target]
    errors = ((f"false {name}", FALSE_POSITIVE), (f"missed {name}", FALSE_NEGATIVE))
    return Legend(tuple(painted), errors)


def error_shares(
    truth: np.ndarray, predicted: np.ndarray, *, classes: Sequence[str], ignore: int | None
) -> tuple[float, ...]:
    """Shares (0..1) of the counted pixels in each colour of the legend's errors; 0 where nothing is counted."""
    counted = max(1, int(np.count_nonzero(truth != ignore)) if ignore is not None else truth.size)
    return tuple(np.count_nonzero(one) / counted for one in _errors(truth, predicted, classes, ignore))


def panels(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, *, classes: Sequence[str], ignore: int | None,
    longest_px: int = PANEL_PX,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Tissue, truth and prediction over tissue, errors over gray tissue: four (h, w, 3) uint8, as `PANELS`.

    image: (H, W, 3) uint8; truth, predicted: (H, W) class codes. Classes are tinted and outlined, background is
    left as it is, ignored pixels of the truth are gray. Raises ValueError when the sizes differ.
    """
    if not image.shape[:2] == truth.shape == predicted.shape:
        raise ValueError(
            f"image {image.shape[:2]}, truth {truth.shape} and prediction {predicted.shape} must have one size; "
            "this prediction was made from another store, train the run again"
        )
    tissue, truth, predicted = _shrunk(image, truth, predicted, longest_px)
    colours, painted = class_colours(classes, ignore), _painted(classes, ignore)
    overlays = [_overlay(tissue, codes, colours, painted) for codes in (truth, predicted)]
    gray = tissue @ np.array([0.299, 0.587, 0.114], np.float32)
    errors = np.repeat((0.45 * gray + 0.55 * 255)[..., None], 3, axis=2)
    if ignore is not None:
        for picture in (overlays[0], errors):
            _blend(picture, truth == ignore, NEUTRAL, 0.75)
    wrong = _errors(truth, predicted, classes, ignore)
    for pixels, (_, colour) in zip(wrong, legend(classes, ignore).errors, strict=True):
        _blend(errors, pixels, colour, 0.85)
    return tuple(np.clip(picture + 0.5, 0, 255).astype(np.uint8) for picture in (tissue, *overlays, errors))


def overlay(tissue: np.ndarray, codes: np.ndarray, *, classes: Sequence[str], ignore: int | None) -> np.ndarray:
    """Classes (h, w) tinted and outlined over tissue (h, w, 3) uint8, as in `panels`; codes without a class are not."""
    colours, painted = class_colours(classes, ignore), _painted(classes, ignore)
    picture = _overlay(tissue.astype(np.float32), codes, colours, painted)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def learning_curves(history: Sequence[Mapping[str, Any]], best_epoch: int, title: str) -> bytes:
    """Loss (training, validation), validation Dice and mIoU over the epochs; the best epoch is marked. PNG."""
    figure = new_figure(9.0, 3.1, layout=None)  # every run has one: to find its margins each time takes too long
    figure.subplots_adjust(left=0.08, right=0.985, bottom=0.16, top=0.88, wspace=0.19)
    epochs = [line["epoch"] for line in history]
    left, right = figure.subplots(1, 2)
    curves = (
        (left, "train_loss", "training", PALETTE[2], "-"), (left, "val_loss", "validation", PALETTE[5], "-"),
        (right, "val_dice", "Dice", PALETTE[0], "-"), (right, "val_miou", "mIoU", PALETTE[6], "--"),
    )  # fmt: skip
    for axes, name, label, colour, style in curves:
        values = [np.nan if line.get(name) is None else line[name] for line in history]
        mark = "o" if len(epochs) < 2 else None
        axes.plot(epochs, values, style, color=colour, label=label, linewidth=1.8, marker=mark)
    best = next((line.get("val_dice") for line in history if line["epoch"] == best_epoch), None)
    for axes, name in ((left, "loss (cross-entropy)"), (right, "validation score")):
        axes.axvline(best_epoch, color=QUIET, linestyle=":", linewidth=1.2)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain(axes)
    if best is not None:
        label = f"best: epoch {best_epoch}, {best:.3f}"
        right.plot([best_epoch], [best], "o", color=PALETTE[0], markersize=7, label=label)
    right.set_ylim(0, 1)
    left.legend(edgecolor="none")
    right.legend(edgecolor="none", loc="lower right")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", fontweight="bold")
    return png(figure)


@dataclass(frozen=True)
class Comparison:
    """One line of the comparison: a run's mean Dice and the Dice of each class, None where there is no value."""

    name: str
    dice: float | None
    classes: tuple[float | None, ...]


def comparison(
    lines: Sequence[Comparison], classes: Sequence[tuple[str, str]], *, constant: float | None,
    cited: tuple[str, float] | None, title: str,
) -> bytes:  # fmt: skip
    """Dice of each run (dark) and of its classes (coloured), the constant answer and a cited value. PNG.

    classes: name and colour of each class, in the order of the lines' values. cited: a name and its Dice.
    """
    figure = new_figure(9.0, 1.55 + 0.3 * len(lines))
    axes = figure.subplots()
    rows = range(len(lines))
    for k, (name, colour) in enumerate(classes):
        values = [np.nan if line.classes[k] is None else line.classes[k] for line in lines]
        axes.plot(values, rows, "o", color=colour, markersize=6, alpha=0.9, label=name, zorder=2)
    means = [np.nan if line.dice is None else line.dice for line in lines]
    axes.plot(means, rows, "D", color=INK, markersize=7, label="mean Dice", zorder=3)
    for row, mean in zip(rows, means, strict=True):
        if np.isfinite(mean):
            axes.text(1.015, row, f"{mean:.3f}", va="center", color=INK, fontweight="bold")
    if constant is not None:
        axes.axvline(constant, color=QUIET, linestyle=":", label=f"constant answer, {constant:.3f}", zorder=1)
    if cited is not None:
        name, value = cited
        axes.axvline(value, color=PALETTE[5], linestyle="--", label=f"{name}, {value:.3f}", zorder=1)
    axes.set(yticks=rows, yticklabels=[line.name for line in lines], xlim=(-0.01, 1.01), xlabel="Dice")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    plain(axes)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower left", ncols=4, frameon=False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", fontweight="bold")
    return png(figure)


def sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], colours: Legend, title: str,
    columns: Sequence[str] = PANELS,
) -> bytes:  # fmt: skip
    """Rows of pictures under the names of their columns, with a legend; a row is (label, panels). PNG.

    A panel that is None stays empty; each row has at least one that is not. All are brought to the size of the first.
    """
    from matplotlib.patches import Patch

    h, w = next(panel for panel in rows[0][1] if panel is not None).shape[:2]
    size = (len(rows) * (h + GAP_PX) - GAP_PX, len(columns) * (w + GAP_PX) - GAP_PX, 3)
    whole = np.full(size, 255, np.uint8)
    tops, lefts = range(0, whole.shape[0], h + GAP_PX), range(0, whole.shape[1], w + GAP_PX)
    for top, (_, pictures) in zip(tops, rows, strict=True):
        for left, picture in zip(lefts, pictures, strict=True):
            if picture is not None:
                fitted = Image.fromarray(picture).resize((w, h), Image.Resampling.LANCZOS)  # a no-op at this size
                whole[top : top + h, left : left + w] = np.asarray(fitted)
    width = 2.0 * len(columns)
    figure = new_figure(width, len(rows) * width / len(columns) * h / w + 0.9)
    axes = figure.subplots()  # one for all panels: laying out one for each takes longer than all else
    axes.imshow(whole, interpolation="lanczos")
    axes.set_xticks([left + w / 2 for left in lefts], columns, fontsize=9)
    letters = max(8, int(28 * h / w))  # that fit along a row; names of regions have 66
    labels = ["\n".join(fill(line, letters) for line in label.splitlines()) for label, _ in rows]
    axes.set_yticks([top + h / 2 for top in tops], labels, rotation=90, va="center", ma="center", fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    patches = [Patch(color=colour, label=name) for name, colour in (*colours.classes, *colours.errors)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(4, len(patches)), frameon=False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", fontweight="bold")
    return png(figure, colours=None)


def is_background(name: str) -> bool:
    """Whether a class is what is left over: never painted, never outlined."""
    return name.strip().lower() == "background"


def _painted(classes: Sequence[str], ignore: int | None) -> tuple[int, ...]:
    return tuple(k for k, name in enumerate(classes) if k != ignore and not is_background(name))


def foreground(classes: Sequence[str], ignore: int | None) -> int | None:
    """The code of the one class beside background, None where the classes are others than these two."""
    counted = [k for k in range(len(classes)) if k != ignore]
    painted = _painted(classes, ignore)
    return painted[0] if len(counted) == 2 and len(painted) == 1 else None


def _errors(
    truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str], ignore: int | None
) -> tuple[np.ndarray, ...]:
    wrong = truth != predicted
    if ignore is not None:
        wrong &= truth != ignore
    target = foreground(classes, ignore)
    if target is None:
        return (wrong,)
    return wrong & (truth != target), wrong & (truth == target)


def _shrunk(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, px: int) -> tuple[np.ndarray, ...]:
    scale = min(1.0, px / max(truth.shape))
    size = (max(1, round(truth.shape[1] * scale)), max(1, round(truth.shape[0] * scale)))
    tissue = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    codes = [Image.fromarray(one.astype(np.uint8)) for one in (truth, predicted)]
    smaller = (np.asarray(one.resize(size, Image.Resampling.NEAREST)) for one in codes)
    return np.asarray(tissue, np.float32), *smaller


def _overlay(tissue: np.ndarray, codes: np.ndarray, colours: Sequence[str], painted: Sequence[int]) -> np.ndarray:
    picture, several = tissue.copy(), len(painted) > 1
    edge = _edges(codes, px=1 if several else 3)  # neighbours are both outlined where there are several classes
    for k in painted:
        inside = codes == k
        _blend(picture, inside & ~edge, colours[k], 0.42 if several else 0.22)
        _blend(picture, inside & edge, colours[k], 1.0)
    return picture


def _edges(codes: np.ndarray, *, px: int) -> np.ndarray:
    """The pixels within `px` of another class, on both sides of the border."""
    edge = np.zeros(codes.shape, bool)
    for step in range(1, px + 1):
        for axis in (0, 1):
            along, marked = np.moveaxis(codes, axis, 0), np.moveaxis(edge, axis, 0)
            border = along[step:] != along[:-step]
            marked[step:] |= border
            marked[:-step] |= border
    return edge


def _blend(picture: np.ndarray, where: np.ndarray, colour: str, strength: float) -> None:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    picture[where] = (1 - strength) * picture[where] + strength * rgb


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Any:
    """An empty matplotlib figure of so many inches, for `png`; without pyplot, so nothing global changes."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout=layout, facecolor="white")


def plain(axes: Any) -> None:
    """Give axes a quiet grid and no frame at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)


def png(figure: Any, colours: int | None = 96) -> bytes:
    """A figure as a PNG file, the same bytes each time; in so many colours, or in all (None) for photographs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, buffer = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    if colours is not None:
        picture = picture.quantize(colours, dither=Image.Dither.NONE)
    picture.save(buffer, "PNG", optimize=colours is not None, dpi=(figure.dpi, figure.dpi))
    return buffer.getvalue()
