"""Values that are out of bounds: the flag, the value and what is wanted instead."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Struct

from clara.shell.preparing.bounds import refusal


class Inner(Struct, frozen=True):
    """Options of a group."""

    max_pages: Annotated[int, Meta(ge=1, le=9)] = 1
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    name: str = ""


class Outer(Struct, frozen=True, forbid_unknown_fields=True):
    """Options with a group."""

    seed: Annotated[int, Meta(ge=0)] = 0
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inner": {"max_pages": "0"}}, "--max-pages 0: wanted 1 or more"),
        ({"inner": {"max_pages": "9" * 30}}, f"--max-pages {'9' * 30}: wanted 9 or less"),
        ({"inner": {"max_pages": "0.5"}}, "--max-pages 0.5: wanted a whole number"),
        ({"inner": {"share": "nan"}}, "--share nan: wanted more than 0"),
        ({"inner": {"share": "1"}}, "--share 1: wanted less than 1"),
        ({"inner": {"share": ""}}, "--share : wanted a number"),
        ({"seed": -3}, "--seed -3: wanted 0 or more"),
        ({"inner": {"name": 3}}, "options: Expected `str`, got `int` - at `$.inner.name`"),
        ({"other": 3}, "options: Object contains unknown field `other`"),
    ],
)
def test_a_value_that_is_refused_is_called_by_its_flag(given: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(given, Outer, strict=False)
    assert refusal(caught.value, given) == said
