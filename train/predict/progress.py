"""How far a prediction has come, on stderr."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm

BAR = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}, {remaining} left{postfix}"


class Progress:
    """A bar over so many images that moves with every window; called with an image's id, its windows done and all."""

    def __init__(self, images: int) -> None:
        self._bar, self._finished, self._image = tqdm(total=images, desc="predict", bar_format=BAR), -1, None

    def __call__(self, image: str, done: int, total: int) -> None:
        if image != self._image:
            self._image, self._finished = image, self._finished + 1
        self._bar.set_postfix_str(f"{image}: window {done} of {total}", refresh=False)
        self._bar.update(self._finished + (done / total if total else 1) - self._bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
