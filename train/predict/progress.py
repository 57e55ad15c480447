"""A progress bar for predictions, on stderr."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm

from pathseg.store.runtime.printable import printable

BAR = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}, {remaining} left{postfix}"


class Progress:
    """A bar over a number of images that advances with every window: call it as `on_window` of `predict`."""

    def __init__(self, images: int) -> None:
        self._images, self._finished = images, -1
        self._bar: tqdm | None = None  # shown from the first window on, so that errors before it stand alone
        self._image: str | None = None

    def __call__(self, image_id: str, completed: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=self._images, desc="predict", bar_format=BAR)
        if image_id != self._image:
            self._image, self._finished = image_id, self._finished + 1
        self._bar.set_postfix_str(f"{printable(image_id)}: window {completed} of {total}", refresh=False)
        self._bar.update(self._finished + (completed / total if total else 1) - self._bar.n)

    def note(self, text: str) -> None:
        """Print a warning above the bar, as soon as it is known."""
        tqdm.write(f"note: {printable(text)}", file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
