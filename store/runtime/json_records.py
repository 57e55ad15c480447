"""JSON files with one typed author each: decoding with checks, encoding with finite numbers."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

Record = TypeVar("Record")


def decode_json(data: bytes | str, kind: type[Record], *, source: str) -> Record:
    """Decode JSON into a dataclass (or any type that msgspec knows), every field checked.

    Fields that the type does not have are skipped, so that files of later releases can be read. Raises ValueError
    naming `source`, the field and the rule when a field is missing or has the wrong type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{source} is damaged: {e}") from e


def convert_json(values: Any, kind: type[Record], *, source: str) -> Record:
    """Convert plain JSON values as `decode_json` does, with the same errors."""
    try:
        return msgspec.convert(values, kind, str_keys=True)
    except msgspec.MsgspecError as e:
        raise ValueError(f"{source} is damaged: {e}") from e


def encode_json(record: Any, *, indent: int = 2) -> bytes:
    """Encode a record as indented JSON with a final line end; numbers that are not finite become null."""
    return msgspec.json.format(msgspec.json.encode(record), indent=indent) + b"\n"


def encode_json_line(record: Any) -> bytes:
    """Encode one line of a JSON Lines file, line end included; numbers that are not finite as null."""
    return msgspec.json.encode(record) + b"\n"
