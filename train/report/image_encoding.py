"""Pictures as files, and as links that hold them."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def jpeg(picture: np.ndarray, quality: int = 80) -> bytes:
    """(h, w, 3) uint8 as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def uri(content: bytes, kind: str) -> str:
    """A picture file as a link that holds it; kind: `png` or `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
