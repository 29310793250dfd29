"""The lines of a run, word for word."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from clara.core.counterfactual import answer_table
from clara.shell.options import to_options
from clara.shell.progress import (
    Done,
    answer_lines,
    clock,
    compute_line,
    heldout_line,
    idle_lines,
    kernel_lines,
    step_line,
)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.6, "1:00:00"),
        (3661, "1:01:01"),
        (90_000, "25:00:00"),
    ],
)
def test_a_time_span_has_minutes_and_where_needed_hours(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def done(seconds: float = 0.5, **metrics: float) -> Done:
    """Return a step of 1,500 tokens."""
    return Done(metrics, 1500, seconds)


def test_a_step_says_how_far_how_well_how_fast_and_how_long_still() -> None:
    past = [done(9.0, loss=9.0), *[done(loss=2.5, next_token=2.25, alignment=2.5)] * 2]
    assert step_line(7, 120, past, 1, 2_340_000_000) == (
        "step   7/120  loss 2.5000  next_token 2.2500  alignment 2.5000  3,000 tokens/s  0.50 s  peak 2.3 GB  left 0:56"
    )


def test_a_line_has_the_means_of_the_steps_since_the_line_before() -> None:
    past = [done(loss=8.0), done(1.0, loss=2.0, next_token=1.5), done(3.0, loss=4.0, next_token=2.5, distillation=1.0)]
    line = "loss 3.0000  next_token 2.0000  distillation 1.0000  750 tokens/s  2.00 s  peak 0.0 GB  left 0:00"
    assert step_line(3, 3, deque(past), 2, 0) == f"step 3/3  {line}", "a term counts where a step has it"
    assert "loss 4.6667" in step_line(20, 20, past, 10, 0), "a resumed run has no more of them"


def test_a_step_with_one_term_shows_the_loss_alone() -> None:
    line = step_line(1, 1, [done(loss=2.5, next_token=2.5)], 1, 0)
    assert line == "step 1/1  loss 2.5000  3,000 tokens/s  0.50 s  peak 0.0 GB  left 0:00"


def test_the_time_left_follows_the_last_twenty_steps() -> None:
    past = [done(60.0, loss=1.0)] * 80 + [done(1.0, loss=1.0)] * 20
    assert step_line(100, 110, past, 1, 0).endswith("left 0:10")


@pytest.mark.parametrize(
    ("stage", "share", "answers", "noted"),
    [
        ("pretrain", 0.5, ["1907", "Ada"], True),
        ("pretrain", 0.5, ["1907", "1908"], False),
        ("pretrain", 0.0, [], False),
        ("end_to_end", 0.5, [], False),
    ],
)
def test_where_no_answer_can_stand_for_another_it_is_said(
    stage: str, share: float, answers: list[str], noted: bool
) -> None:
    options = to_options({"stage": stage, "loss": {"alignment_weight": 0}, "data": {"counterfactual_share": share}})
    line = "note      counterfactual_share changes nothing: no answer of sample can stand in another's place"
    assert answer_lines(options, answer_table(answers)) == ([line] if noted else [])


@pytest.mark.parametrize(("compile", "there"), [("auto", True), ("on", True), ("off", True), ("auto", False)])
def test_where_kernels_are_built_is_said_on_cuda_alone(
    compile: str, there: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("clara.shell.progress.mx.cuda.is_available", lambda: there)
    line = f"kernels   in {tmp_path}; a first step builds those that are not there, seconds each"
    assert kernel_lines(compile) == ([line] if there and compile != "off" else [])


@pytest.mark.parametrize(
    ("every", "fits", "shown"),
    [
        (0, True, "no layer recomputed"),
        (1, True, "every layer recomputed"),
        (3, True, "one layer in 3 recomputed"),
        (1, False, "every layer recomputed; may not fit: raise --accumulate or lower --batch-size"),
    ],
)
def test_the_memory_of_a_step_is_told_with_what_is_recomputed(every: int, fits: bool, shown: str) -> None:
    line = compute_line(every, 14_240_000_000, 80_000_000_000, fits)
    assert line == f"compute   steps of up to 14.2 GB by estimate, 80 GB there; {shown}"


def test_an_evaluation_compares_the_memory_with_that_of_another_document() -> None:
    line = heldout_line({"next_token": 1.2344, "other_memory": 3.4567, "alignment": 0.1}, 12)
    assert line == "held-out after step 12: 1.234 nats per answer token; 3.457 with another document's memory"


def test_an_evaluation_without_next_tokens_shows_what_there_is() -> None:
    assert heldout_line({"loss": 0.05, "alignment": 0.5}, 0) == "held-out after step 0: loss 0.050"


def test_an_evaluation_of_a_choosing_stage_tells_how_candidates_rank_and_how_answers_score() -> None:
    ranks = {"contrastive": 0.5, "recall_at_1": 0.25, "precision_at_2": 0.125, "mrr": 0.75}
    scores = {"exact_match": 0.1, "cover_exact_match": 0.2, "token_f1": 0.3}
    line = heldout_line({"loss": 1.0} | ranks | scores, 3)
    assert line == (
        "held-out after step 3: contrastive 0.500; recall@1 0.250, precision@2 0.125, MRR 0.750; "
        "EM 0.100, cover-EM 0.200, F1 0.300"
    )


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"data": {"autoencode_data": "f", "autoencode_share": 0.5}}, []),
        ({"data": {"autoencode_data": "f", "cloze_share": 0.5}}, []),
        (
            {"data": {"autoencode_data": "f"}},
            ["autoencode_data is not read: autoencode_share and cloze_share are 0"],
        ),
        (
            {"stage": "instruct", "data": {"autoencode_data": "f", "autoencode_share": 0.5}},
            ["autoencode_data is not read: stage instruct repeats no documents"],
        ),
        (
            {"stage": "instruct", "data": {"cloze_share": 0.5}},
            ["cloze_share changes nothing: stage instruct fills in no sentences"],
        ),
        (
            {"stage": "end_to_end", "loss": {"alignment_weight": 0}, "data": {"counterfactual_share": 0.5}},
            ["counterfactual_share changes nothing: stage end_to_end reads documents as they are"],
        ),
        (
            {"stage": "end_to_end", "loss": {"alignment_weight": 0}, "retrieval": {"in_batch_negatives": True}},
            ["in_batch_negatives changes nothing: contrastive_weight is 0"],
        ),
    ],
)
def test_options_that_change_nothing_are_noted(layers: dict[str, object], said: list[str]) -> None:
    assert idle_lines(to_options(layers)) == [f"note      {each}" for each in said]
