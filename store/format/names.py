"""The names of a store's files: which of them pathseg can have written."""

from __future__ import annotations

import re

from pathseg.store.blocks import SCALES
from pathseg.store.runtime.atomic_files import PARTIAL

FOLDER = "_done"  # of the completion records and the manifest
MANIFEST = f"{FOLDER}/metadata.json"
GROWTH = f"{FOLDER}/growth.json"  # while a store grows: the zarr.json files as they will be
ROOT = "zarr.json"

_INDEX = "(?:0|[1-9][0-9]{0,8})"
_TIMESTEP = f"t{_INDEX}"
_BLOCK = f"{_TIMESTEP}/block[0-9]{{2}}(?:{SCALES})?"
_ARRAY = f"(?:images|masks|instances|{_BLOCK})"
_METADATA = rf"(?:(?:{_ARRAY}|{_TIMESTEP}|{FOLDER})/)?zarr\.json"
_CHUNK = f"(?P<array>{_ARRAY})/c/(?P<position>{_INDEX}(?:/{_INDEX})*)"
_RECORD = rf"{FOLDER}/(?P<arrays>pixels|{_TIMESTEP}/[0-9,-]+)/(?P<unit>[0-9]{{6,12}})(?P<lacking>\.lacking)?\.json"
_REPLACED = rf"{FOLDER}/replaced/(?P<labels>masks|instances)/(?P<image>[0-9]{{6,12}})-(?P<crc>[0-9a-f]{{8}})"

METADATA = re.compile(_METADATA)
FEATURE_NODE = re.compile(rf"t(?P<t>{_INDEX})(?:/block(?P<block>[0-9]{{2}})(?P<scales>{SCALES})?)?/zarr\.json")
CHUNK = re.compile(_CHUNK)
RECORD = re.compile(_RECORD)
REPLACED = re.compile(_REPLACED)
HALF_WRITTEN = re.compile(
    rf"(?:{_METADATA}|{_CHUNK}|{_RECORD}|{_REPLACED}|{re.escape(MANIFEST)}|{re.escape(GROWTH)})"
    rf"\.[0-9a-f]{{32}}{re.escape(PARTIAL)}"
)
_RECORDS = f"{FOLDER}(?:/(?:pixels|{_TIMESTEP}(?:/[0-9,-]+)?))?"
SUBFOLDER = re.compile(f"(?:{_ARRAY}(?:/c(?:/{_INDEX})*)?|{_TIMESTEP}|{_RECORDS})")
