"""The synthetic data set: generated H&E-like tissue with exact masks, drawn when it is loaded."""

from __future__ import annotations

from functools import partial

import numpy as np

from pathseg.extract.datasets.registry import Dataset, DatasetOptions, Pixels, Sample
from pathseg.extract.datasets.synthetic.painting import draw_tissue
from pathseg.store.key import Preprocessing

IMAGES = 24  # without a limit: 16 to train on, 8 to test on
SIDE_PX = 512  # 2x2 patches, 256 um
MPP = 0.5  # um/px, the scale that cells are drawn at: 20x, what the paper's model was trained on
SPLITS = ("train", "test", "train")  # of images 0, 1, 2 and so on in turn


def open_synthetic(options: DatasetOptions) -> Dataset:
    """List generated tissue: classes stroma, epithelium, lumen; instances are glands (epithelium and lumen).

    `options.limit`: number of images, 24 by default; image i of a seed does not depend on it. `options.resize`: side
    of the tissue in px, 512 by default; nothing is resized, the scale stays 0.5 um/px.
    """
    side = options.resize or SIDE_PX
    count = IMAGES if options.limit is None else options.limit
    splits = (SPLITS[index % len(SPLITS)] for index in range(count))
    return Dataset(
        name="synthetic",
        samples=tuple(Sample(f"tissue_{index}", split, side, side) for index, split in enumerate(splits)),
        load=partial(_load, options.seed),
        classes=("stroma", "epithelium", "lumen"),
        size=(side, side),
        test_split="test",
        preprocessing=Preprocessing(settings={"generator_seed": options.seed}),
        mpp=MPP,
        has_instances=True,
    )


def _load(seed: int, sample: Sample) -> Pixels:
    index = int(sample.id.removeprefix("tissue_"))
    tissue = draw_tissue(np.random.default_rng([seed, index]), sample.height)
    mask = np.where(tissue.lumen, 2, tissue.glands > 0).astype(np.uint8)
    return Pixels(image=tissue.image, mask=mask, instances=tissue.glands)
