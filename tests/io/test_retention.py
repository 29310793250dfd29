"""Retention: the newest and the best stay, an undone future goes, and no part of a removed one is ever found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.io.checkpoint import Manifest, load_checkpoint, newest_checkpoint, save_checkpoint
from clara.io.errors import ClaraError
from clara.io.retention import (
    BEST,
    Best,
    checkpoint_name,
    checkpoints,
    mark_best,
    path_of,
    prune,
    read_best,
    step_of,
)


def save(folder: Path, step: int, keep: int = 9) -> Path:
    """Return a small checkpoint of a step."""
    manifest = Manifest(step=step, stage="pretrain", base="", data="", seed=0, versions={})
    return save_checkpoint(folder, {"w": mx.array(step)}, {}, {}, {}, manifest, keep)


def place(folder: Path, *steps: int) -> None:
    """Make folders with the names of checkpoints."""
    for step in steps:
        (folder / checkpoint_name(step)).mkdir(parents=True)


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder."""
    return [step_of(path) for path in checkpoints(folder)]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    for step in (1, 2, 10, 100):
        save(tmp_path, step, keep)
    assert steps_in(tmp_path) == [1, 2, 10, 100][-keep:]


def test_more_digits_do_not_upset_the_order(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step, keep=1)
    assert newest_checkpoint(tmp_path)[0].manifest.step == 1_000_000


def test_the_checkpoint_just_written_stays_and_later_ones_go(tmp_path: Path) -> None:
    for step in (2, 6, 8):
        save(tmp_path, step)
    assert save(tmp_path, 4, keep=1).is_dir()
    assert steps_in(tmp_path) == [4]


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_the_one_just_written_stays(keep: int, tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step, keep)
    assert steps_in(tmp_path) == [2]


def test_the_best_is_kept_until_another_is_better(tmp_path: Path) -> None:
    save(tmp_path, 1)
    best = Best(1, "next_token", 2.5)
    mark_best(tmp_path, best)
    for step in (2, 3, 4):
        save(tmp_path, step, keep=2)
    assert (steps_in(tmp_path), read_best(tmp_path)) == ([1, 3, 4], best)
    mark_best(tmp_path, Best(4, "next_token", 1.5))
    save(tmp_path, 5, keep=2)
    assert steps_in(tmp_path) == [4, 5]
    save(tmp_path, 6, keep=1)
    assert steps_in(tmp_path) == [4, 6]


def test_one_can_be_marked_before_it_is_saved(tmp_path: Path) -> None:
    save(tmp_path, 1)
    mark_best(tmp_path, Best(2, "loss", 1.0))
    assert read_best(tmp_path) is None
    save(tmp_path, 2, keep=1)
    save(tmp_path, 3, keep=1)
    assert steps_in(tmp_path) == [2, 3]


def test_a_best_one_of_an_undone_future_goes_with_its_mark(tmp_path: Path) -> None:
    for step in (2, 8):
        save(tmp_path, step)
    mark_best(tmp_path, Best(8, "loss", 1.0))
    save(tmp_path, 4)
    assert steps_in(tmp_path) == [2, 4]
    assert not (tmp_path / BEST).exists()


def test_a_mark_of_an_undone_future_goes_even_where_its_checkpoint_had_gone_before(tmp_path: Path) -> None:
    save(tmp_path, 2)
    mark_best(tmp_path, Best(8, "loss", 1.0))
    save(tmp_path, 4)
    save(tmp_path, 8)
    assert read_best(tmp_path) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"step": 1}', b'{"step": "1", "metric": "x", "value": 1}', b"\xff"]
)
def test_a_damaged_mark_is_none(content: bytes, tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / BEST).write_bytes(content)
    assert read_best(tmp_path) is None


def test_without_mark_or_checkpoint_none_is_the_best(tmp_path: Path) -> None:
    assert read_best(tmp_path / "absent") is None
    save(tmp_path, 1)
    assert read_best(tmp_path) is None
    mark_best(tmp_path, Best(1, "loss", 1.0))
    shutil.rmtree(tmp_path / checkpoint_name(1))
    assert read_best(tmp_path) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    best = Best(3, "loss", 1.0)
    place(tmp_path, 3)
    mark_best(tmp_path, best)
    with pytest.raises(ClaraError, match=r"best\.json: loss of step 4 is (nan|inf); wanted a finite number"):
        mark_best(tmp_path, Best(4, "loss", value))
    assert read_best(tmp_path) == best


@given(value=st.floats(allow_nan=False, allow_infinity=False), metric=st.text(max_size=5))
def test_a_mark_comes_back_as_it_was(value: float, metric: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("marks")
    place(folder, 7)
    mark_best(folder, Best(7, metric, value))
    assert read_best(folder) == Best(7, metric, value)


STEPS = st.integers(0, 30)


@given(steps=st.sets(STEPS, min_size=1), keep=st.integers(1, 4), best=STEPS, data=st.data())
def test_what_stays_is_the_newest_up_to_the_step_and_the_best(
    steps: set[int], keep: int, best: int, data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    place(folder, *steps)
    mark_best(folder, Best(best, "loss", 1.0))
    step = data.draw(st.sampled_from(sorted(steps)))
    prune(folder, step, keep)
    done = sorted(each for each in steps if each <= step)
    assert steps_in(folder) == sorted({*done[-keep:], *({best} & set(done))})
    assert (folder / BEST).exists() == (best <= step)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-000012", 12),
        ("step-12", 12),
        ("step-1000000", 1_000_000),
        ("step-000012.old", 12),
        ("step-", -1),
        ("step-x", -1),
        ("step--12", -1),
        ("step-١٢", -1),
        ("step-000012.old.old", -1),
        (".step-000012.5.tmp", -1),
    ],
)
def test_the_step_is_read_from_the_name(name: str, step: int) -> None:
    assert step_of(Path("run") / name) == step


@given(step=st.integers(0, 10**9))
def test_names_and_steps_agree(step: int) -> None:
    assert step_of(Path(checkpoint_name(step))) == step


def test_of_two_of_one_step_the_new_one_comes_last_and_the_old_one_goes_with_the_next_save(tmp_path: Path) -> None:
    place(tmp_path, 1, 2, 3)
    for step in (2, 3):
        (tmp_path / f"{checkpoint_name(step)}.old").mkdir()
    (tmp_path / checkpoint_name(3)).rmdir()
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-000001",
        "step-000002.old",
        "step-000002",
        "step-000003.old",
    ]
    assert path_of(tmp_path, 2) == tmp_path / "step-000002"
    assert path_of(tmp_path, 3) == tmp_path / "step-000003.old"
    assert path_of(tmp_path, 4) is None
    prune(tmp_path, 3, keep=3)
    assert sorted(os.listdir(tmp_path)) == ["step-000001", "step-000002", "step-000003.old"]


def test_files_with_such_names_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "step-000001").write_text("x")
    assert checkpoints(tmp_path) == []
    assert checkpoints(tmp_path / "absent") == []


def test_old_ones_go_only_after_the_new_one_is_in_place_and_never_by_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    seen: list[list[int]] = []
    real = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **how: (seen.append(steps_in(tmp_path)), real(path, **how)))
    save(tmp_path, 2, keep=1)
    assert seen == [[2]]
    assert os.listdir(tmp_path) == ["step-000002"]


def test_an_old_one_that_cannot_be_removed_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    real = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == "step-000001":
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    assert int(load_checkpoint(save(tmp_path, 2, keep=1)).params["w"]) == 2
