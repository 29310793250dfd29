"""Values that an option cannot have, told in the words of the command line, or of the file that they stand in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from clara.core.config import STAGES
from clara.io.errors import ClaraError

T = TypeVar("T", bound=Struct)
BOUNDS = {">=": "{} or more", "<=": "{} or less", ">": "more than {}", "<": "less than {}"}
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}

_BOUND = re.compile(r"Expected `\w+` (>=|<=|>|<) (\S+) - at `\$\.([\w.]+)`")
_KIND = re.compile(r"Expected `(int|float|bool|str)`, got `\w+` - at `\$\.([\w.]+)`")
_CHOICE = re.compile(r"(?:Invalid enum value .*|Expected `\w+(?: \| \w+)+`, got `\w+`) - at `\$\.([\w.]+)`", re.DOTALL)


def checked(given: Mapping[str, Any], kind: type[T], source: str = "options") -> T:
    """Return nested dicts, whose values may be text, as a struct of options. Raises ClaraError: see `refusal`."""
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ClaraError(refusal(error, given, kind, source)) from error


def refusal(
    error: msgspec.ValidationError, given: Mapping[str, Any], kind: type[Struct], source: str = "options"
) -> str:
    """Return what is wrong with the value of an option, as `--max-pages 0: wanted 1 or more`.

    given: the options, nested as their struct is, which is `kind`. source: where they come from: "options" are flags,
    and so are those of "stage NAME", which is named before them; in anything else, such as a file, an option is called
    by its path: `own.toml: lora.rank 0: wanted 1 or more`. What is not about one value stays as msgspec says it.
    """
    message = str(error)
    if found := _BOUND.fullmatch(message):
        wanted, path = BOUNDS[found[1]].format(found[2].removesuffix(".0")), found[3]
    elif found := _KIND.fullmatch(message):
        wanted, path = KINDS[found[1]], found[2]
    elif found := _CHOICE.fullmatch(message):
        wanted, path = choices(hint_at(kind, found[1])), found[1]
    else:
        return f"{source}: {message}"
    value: Any = given
    for name in path.split("."):
        value = value.get(name, {}) if isinstance(value, Mapping) else {}
    shown = "" if value == {} else f" {value}"
    flags = source == "options" or source.removeprefix("stage ") in STAGES
    option = f"--{path.rpartition('.')[2].replace('_', '-')}" if flags else path
    return ("" if source == "options" else f"{source}: ") + f"{option}{shown}: wanted {wanted}"


def hint_at(kind: type[Struct], path: str) -> Any:
    """Return the type of the option at a path such as data.qa_form."""
    hint: Any = kind
    for name in path.split("."):
        hint = get_type_hints(hint)[name]
    return hint


def choices(hint: Any) -> str:
    """Return in words what an option may be that takes one of a few values, or values of several types."""
    if get_origin(hint) is not Literal:
        return " or ".join(
            KINDS.get(each.__name__, each.__name__) if isinstance(each, type) else choices(each)
            for each in get_args(hint)
        )
    values = [str(value) or "empty" for value in get_args(hint)]
    return values[0] if len(values) == 1 else "one of " + ", ".join(values)
