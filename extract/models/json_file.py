"""Read a configuration that lies beside the weights of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pathseg.store.runtime.regular_files import read_file


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ValueError, naming the file and `what` it must be, for other content."""
    try:
        values = json.loads(read_file(path).decode("utf-8"))
    except (ValueError, RecursionError) as e:  # ValueError: no UTF-8 or no JSON
        raise ValueError(f"{path} is no JSON: {str(e).splitlines()[0]:.200}; get the file again") from e
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a JSON object {what}, got {type(values).__name__}")
    return values
