"""The README's own loop does what it says, and its tree names every source file."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from folders import tiny_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_loop_in_the_readme_trains(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    base = 'load_base("smollm2-135m")'
    assert code.count(base) == 1
    code = code.replace(base, f"load_base({str(tiny_folder(tmp_path))!r})")
    printed, names = io.StringIO(), dict[str, Any]()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    losses = [float(line) for line in printed.getvalue().split()]
    assert len(losses) == 5 and all(map(math.isfinite, losses)) and min(losses) < losses[0]


@pytest.mark.parametrize("floor", ["core", "io", "shell"])
def test_the_tree_in_the_readme_names_every_source_file_in_its_place(floor: str) -> None:
    (part,) = re.findall(rf"^ +{floor}/ +\S.*\n((?:^ {{8,}}\S.*\n)+)", README, re.MULTILINE)
    named, folder = [], ""
    for line in part.splitlines():
        if entry := re.match(r" {8}(\w+/)?", line):
            folder = entry[1] or ("" if line[8] != " " else folder)
        named += [folder + name for name in re.findall(r"(?:^|,) *(\w+\.py)", line)]
    house = ROOT / "clara" / floor
    present = {path.relative_to(house).as_posix() for path in house.rglob("*.py") if path.name != "__init__.py"}
    assert (sorted(present - set(named)), sorted(set(named) - present)) == ([], [])
