"""Values that are out of bounds: the flag, the value and what is wanted instead."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from clara.io.errors import ClaraError
from clara.shell.bounds import checked


class Inner(Struct, frozen=True):
    """Options of a group."""

    max_pages: Annotated[int, Meta(ge=1, le=9)] = 1
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    name: str = ""
    form: Annotated[Literal["pairs", "turns"], Meta(description="a form")] = "pairs"
    late: bool = False
    every: Annotated[Literal[""] | Annotated[int, Meta(ge=0)], Meta(description="an interval")] = ""

    def __post_init__(self) -> None:
        if self.name == "both":
            raise ValueError("name both: wanted one")


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
        ({"inner": {"name": 3}}, "--name 3: wanted a text"),
        ({"inner": {"late": "maybe"}}, "--late maybe: wanted true or false"),
        ({"inner": {"form": "so'ng\n"}}, "--form so'ng\n: wanted one of pairs, turns"),
        ({"inner": {"every": "often"}}, "--every often: wanted empty or a whole number"),
        ({"inner": {"every": 2.5}}, "--every 2.5: wanted empty or a whole number"),
        ({"inner": {"every": "-1"}}, "--every -1: wanted 0 or more"),
        ({"inner": {"name": "both"}}, "options: name both: wanted one - at `$.inner`"),
        ({"inner": 3}, "options: Expected `object`, got `int` - at `$.inner`"),
        ({"other": 3}, "options: Object contains unknown field `other`"),
    ],
)
def test_a_value_that_is_refused_is_called_by_its_flag(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ClaraError) as caught:
        checked(given, Outer)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("stage instruct", "stage instruct: --max-pages 0: wanted 1 or more"),
        ("own.toml", "own.toml: inner.max_pages 0: wanted 1 or more"),
        ("runs/stage one", "runs/stage one: inner.max_pages 0: wanted 1 or more"),
    ],
)
def test_where_the_value_stands_is_named_and_how_it_is_called_there(source: str, said: str) -> None:
    with pytest.raises(ClaraError) as caught:
        checked({"inner": {"max_pages": 0}}, Outer, source)
    assert str(caught.value) == said


def test_what_is_within_its_bounds_becomes_a_struct() -> None:
    assert checked({"inner": {"max_pages": "9", "late": "true"}}, Outer) == Outer(inner=Inner(max_pages=9, late=True))
