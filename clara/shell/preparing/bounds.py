"""Values that are out of bounds, told in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

WANTED = {">=": "{} or more", "<=": "{} or less", ">": "more than {}", "<": "less than {}"}
KINDS = {"int": "a whole number", "float": "a number"}

_BOUND = re.compile(r"Expected `\w+` (>=|<=|>|<) (\S+) - at `\$\.([\w.]+)`")
_KIND = re.compile(r"Expected `(int|float)`, got `\w+` - at `\$\.([\w.]+)`")


def refusal(error: msgspec.ValidationError, given: Mapping[str, Any]) -> str:
    """Return what is wrong with the value of a flag, as `--max-pages 0: wanted 1 or more`.

    given: the values of the flags, nested as their struct is. What is not about a number stays as msgspec says it.
    """
    if found := _BOUND.fullmatch(str(error)):
        wanted, path = WANTED[found[1]].format(found[2].removesuffix(".0")), found[3]
    elif found := _KIND.fullmatch(str(error)):
        wanted, path = KINDS[found[1]], found[2]
    else:
        return f"options: {error}"
    value: Any = given
    for name in path.split("."):
        value = value.get(name, {}) if isinstance(value, Mapping) else {}
    shown = "" if value == {} else f" {value}"
    return f"--{path.rpartition('.')[2].replace('_', '-')}{shown}: wanted {wanted}"
