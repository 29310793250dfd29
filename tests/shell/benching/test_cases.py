"""The list of cases: named once, chosen by patterns; ratios between those that ran."""

from __future__ import annotations

import pytest

from clara.io.errors import ClaraError
from clara.shell.benching.cases import all_cases, all_ratios, chosen_cases, ratios_of
from clara.shell.benching.options import BenchOptions
from clara.shell.benching.timing import Result


def chosen(only: str) -> list[str]:
    """Return the paths of the cases that a pattern chooses."""
    return [case.path for case in chosen_cases(BenchOptions(only=only, memories="10,20"))]


def test_every_case_has_a_name_of_its_own_that_a_pattern_can_name() -> None:
    paths = [case.path for case in all_cases(BenchOptions())]
    assert len(set(paths)) == len(paths) and not [path for path in paths if "," in path or path.count("/") != 1]
    assert {case.group for case in all_cases(BenchOptions())} == {
        *("startup", "step", "compress", "answer", "retrieval", "data", "growth"),
    }


def test_each_ratio_is_between_cases_that_there_are() -> None:
    paths = {case.path for case in all_cases(BenchOptions())}
    assert [each for each in all_ratios() if not {each.fast, each.slow} <= paths] == []


def test_several_ranks_have_cases_of_their_own() -> None:
    paths = [case.path for case in chosen_cases(BenchOptions(), several=True)]
    assert paths[-2:] == ["ranks/sum of a gradient", "ranks/smallest sum"] and "step/pretrain" in paths
    with pytest.raises(ClaraError, match="--only data: no such case; groups are step, ranks"):
        chosen_cases(BenchOptions(only="data"), several=True)


def test_nothing_chooses_all() -> None:
    assert chosen("") == [case.path for case in all_cases(BenchOptions(memories="10,20"))]


@pytest.mark.parametrize(
    ("only", "paths"),
    [
        ("compress", ["compress/one batch", "compress/4 batches"]),
        ("step/pretrain*", ["step/pretrain", "step/pretrain naive"]),
        ("growth/compress, compress/one batch", ["compress/one batch", "growth/compress"]),
        ("retrieval/* 20", ["retrieval/memory 20", "retrieval/words 20"]),
        ("st*/load", ["startup/load"]),
    ],
)
def test_patterns_choose_groups_and_cases_in_the_order_of_the_list(only: str, paths: list[str]) -> None:
    assert chosen(only) == paths


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("steps", r"--only steps: no such case; groups are startup, step, compress"),
        ("step/none", r"--only step/none: no such case; step has pretrain, instruct"),
        ("compress,", r"--only : no such case"),
    ],
)
def test_a_part_that_names_nothing_is_refused_with_what_there_is(only: str, said: str) -> None:
    with pytest.raises(ClaraError, match=said):
        chosen(only)


def result(path: str, seconds: float, **how: object) -> Result:
    """Return a result that reads ten tokens."""
    group, case = path.split("/")
    return Result(group=group, case=case, seconds=seconds, rates={"tokens": 10 / seconds}, **how)  # type: ignore[arg-type]


def test_ratios_are_above_one_where_the_first_is_faster() -> None:
    results = [
        result("step/pretrain", 2.0),
        result("step/mlx-lm LoRA", 3.0),
        result("answer/first token memory 5", 1.0),
        result("answer/first token text 5", 8.0),
        result("data/buckets", 1.0),
    ]
    assert ratios_of(results) == {
        "pretrain over mlx-lm's LoRA step, tokens/s": pytest.approx(1.5),
        "first token, memory over text, 5 documents": 8.0,
    }


def test_a_case_that_failed_has_no_ratio() -> None:
    assert ratios_of([result("step/pretrain", 2.0), Result(group="step", case="mlx-lm LoRA", error="failed: x")]) == {}
