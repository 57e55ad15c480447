"""Command-line options made from the fields of a configuration dataclass, which alone holds default and help."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from pathseg.store.blocks import format_blocks, parse_selection
from pathseg.store.runtime.workspace import DEFAULT, expand_home


class UserPath(click.Path):
    """A path whose leading `~` is the user's home folder, also where the shell does not expand it (`--out=~/x`)."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand and check a path; a home folder that is not known is a usage error."""
        try:
            expanded = expand_home(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)
        return super().convert(str(expanded), param, ctx)


PATH = UserPath(path_type=Path, resolve_path=True)

workspace_option = click.option(
    "--workspace", type=UserPath(path_type=Path), default=DEFAULT, help="Folder of stores, heads and the report."
)
device_option = click.option("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")


class Parsed(click.ParamType):
    """An option type that is parsed by a function; its ValueError becomes a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text of an option; text that cannot be parsed is a usage error."""
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as e:
            self.fail(str(e), param, ctx)


def parse_numbers(text: str, *, kind: type) -> tuple:
    """Parse comma-separated numbers: `10,50` -> (10, 50). Raises ValueError for other text or a repeated number."""
    try:
        values = tuple(kind(item) for item in text.split(","))
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise ValueError(f"{text!r} is not {whole} or a comma list of them") from None
    if len(set(values)) != len(values):
        raise ValueError(f"{text!r} names a number twice; name each once")
    return values


def parse_number_or_word(text: str, *, words: tuple[str, ...]) -> int | str:
    """Parse a whole number or one of these words. Raises ValueError for other text."""
    if text in words:
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a whole number nor {' or '.join(words)}") from None


def parse_numbers_or_words(text: str, *, words: tuple[str, ...]) -> tuple[int | str, ...]:
    """Parse a comma list of whole numbers and these words: `1,5,all` -> (1, 5, "all").

    Raises ValueError for other text or a repeated item.
    """
    values = tuple(parse_number_or_word(item.strip(), words=words) for item in text.split(","))
    if len(set(values)) != len(values):
        raise ValueError(f"{text!r} names a value twice; name each once")
    return values


def parse_by_store(text: str, *, parse: Callable[[str], Any]) -> Any:
    """Parse a value for all stores, or one for each, `A:4-6,B:last` -> {"A": (4, 5, 6), "B": "last"}.

    An item without a name belongs to the store named before it: `A:0,4-6,B:last`. Raises ValueError as `parse` does,
    for a store that is named twice, and where the first item has no name but another one does.
    """
    if ":" not in text:
        return parse(text)
    items: dict[str, list[str]] = {}
    name = ""
    for item in text.split(","):
        before, colon, value = item.partition(":")
        if colon:
            name = before.strip()
            if name in items:
                raise ValueError(f"{text!r} names the store {name} twice; name each once")
        elif not name:
            raise ValueError(f"{text!r} names a store for some values only; write A:…,B:…, or one value for all stores")
        items.setdefault(name, []).append(value if colon else item)
    return {name: parse(",".join(values)) for name, values in items.items()}


def parse_channels(text: str) -> tuple[float, float, float]:
    """Parse one number for each of R, G and B: `0.5,0.5,0.5`. Raises ValueError for other text or another count."""
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not three numbers, one for each of R, G and B, as in 0.5,0.5,0.5") from None
    return red, green, blue


def split_arguments(text: str) -> tuple[str, ...]:
    """Split `name=value,...` at the commas outside of brackets: `sizes=[1,2],depth=3` -> (`sizes=[1,2]`, `depth=3`)."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    return tuple(item.strip() for item in items)


NUMBERS = Parsed("n[,n…]", partial(parse_numbers, kind=int))
RATES = Parsed("x[,x…]", partial(parse_numbers, kind=float))
RGB = Parsed("r,g,b", parse_channels)
BLOCKS = Parsed("blocks", parse_selection)
SELECTION = Parsed("blocks", lambda text: text if text == "each" else parse_selection(text))
NAMES = Parsed("name[,name…]", lambda text: tuple(item.strip() for item in text.split(",")))
ARGUMENTS = Parsed("name=value[,…]", split_arguments)


@contextmanager
def wrong_flags() -> Iterator[None]:
    """Turn the ValueError of a configuration into a usage error, exit code 2."""
    try:
        yield
    except ValueError as e:
        raise click.UsageError(str(e)) from e


def flags_of(config: type) -> Callable[[Callable], Callable]:
    """Return a decorator that adds an option for each field of a configuration that has a `help` in its metadata.

    Name, type, default and help come from the field. A default of None or () is not shown; the help may explain it.
    """
    kinds = get_type_hints(config)

    def decorate(command: Callable) -> Callable:
        for field in reversed(dataclasses.fields(config)):
            if "help" not in field.metadata:
                continue
            kind, text = _without_none(kinds[field.name]), field.metadata["help"]
            default = field.metadata.get("flag_default", field.default)
            shown = field.metadata.get("shown")  # text for a default that depends on another option
            sweep = field.metadata.get("sweep", False)
            if get_origin(kind) is Literal:
                kind = click.Choice(get_args(kind))
            elif words := _words_beside_numbers(kind):
                name = "|".join(("n", *words))
                if sweep:
                    kind = Parsed(f"{name}[,…]", partial(parse_numbers_or_words, words=words))
                    default, shown = (default,), shown or str(default)
                else:
                    kind = Parsed(name, partial(parse_number_or_word, words=words))
            elif kind is Path:
                kind = PATH
            elif kind == tuple[str, ...]:
                kind = ARGUMENTS if field.name == "model_args" else NAMES
            elif field.name == "blocks":
                kind = SELECTION if sweep else BLOCKS
            elif kind == tuple[float, float, float]:
                kind = RGB
            elif sweep or get_origin(kind) is tuple:
                default = (default,) if sweep else default
                kind = RATES if kind is float else NUMBERS
                shown = shown or ",".join(f"{value:g}" for value in default)
            if field.metadata.get("by_store"):
                kind = Parsed(kind.name, partial(parse_by_store, parse=kind.parse))
            command = click.option(
                field.metadata.get("flag", f"--{field.name.replace('_', '-')}"),
                field.name,
                type=kind,
                is_flag=kind is bool,
                default=default,
                show_default=shown is None and default not in (None, ()) and default is not False,
                help=text if shown is None else f"{text}  [default: {shown}]",
            )(command)
        return command

    return decorate


def words_of(config: Any) -> list[str]:
    """Return the command line words that give a configuration, values at their default left out.

    config: a dataclass of which `flags_of` makes options; blocks and timesteps are of a single store.
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "help" not in field.metadata or value == field.metadata.get("flag_default", field.default):
            continue
        words.append(field.metadata.get("flag", f"--{field.name.replace('_', '-')}"))
        if field.name == "blocks" and isinstance(value, tuple):
            words.append(format_blocks(value))
        elif value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return words


def _without_none(kind: Any) -> Any:
    """Return the type of an optional value: int of `int | None`."""
    if type(None) not in get_args(kind):
        return kind
    return reduce(operator.or_, (one for one in get_args(kind) if one is not type(None)))


def _words_beside_numbers(kind: Any) -> tuple[str, ...]:
    """Return the words of `int | Literal[...]`, none of any other type."""
    kinds = get_args(kind)
    literals = [one for one in kinds if get_origin(one) is Literal]
    return get_args(literals[0]) if literals and int in kinds else ()
