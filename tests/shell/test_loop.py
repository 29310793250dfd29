"""The loop: each step as it was computed, a loss that is no number named, and held-out means over uneven batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlx.core as mx
import pytest
from folders import tiny_folder, tiny_session, write_records

from clara.core.collate import collate
from clara.core.step import make_eval_step
from clara.core.types import Batch, Documents, Params, Term, TrainState
from clara.io.data_config import DataConfig
from clara.io.dataset import StepBatch, evaluation_batches
from clara.io.errors import ClaraError
from clara.io.examples import encode_record
from clara.io.feed import Feed
from clara.io.records import Record, read_records
from clara.shell.loop import evaluate, score_answers, training_steps
from clara.shell.setup import Session

WEIGHTS = {"next_token": 1.0, "alignment": 0.1, "contrastive": 0.0}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session of the tiny base."""
    return tiny_session(tiny_folder(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Return seven records."""
    return read_records(str(write_records(tmp_path_factory.mktemp("data") / "data.jsonl", range(7))))


def start() -> TrainState:
    """Return the state before the first step."""
    return TrainState({"w": mx.array(1.0)}, {}, mx.array(0))


def step_batches(count: int) -> list[StepBatch]:
    """Return the data of some steps, without any batch."""
    return [StepBatch([f"r{i}a", f"r{i}b"], [], 100 + i) for i in range(count)]


def halve(state: TrainState, batches: list[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
    """Return a state whose parameter is half as large; its loss is the parameter before."""
    return TrainState({"w": state.params["w"] / 2}, {}, state.step + 1), {
        "loss": state.params["w"],
        "extra": mx.array(3),
    }


Ahead = Callable[[int], bool]
either = pytest.mark.parametrize("ahead", [lambda _: False, lambda _: True], ids=["one by one", "ahead"])


@either
def test_each_step_is_yielded_with_its_state_metrics_and_tokens(ahead: Ahead) -> None:
    steps = list(training_steps(halve, start(), step_batches(3), ahead))
    assert [step.number for step in steps] == [1, 2, 3]
    assert [step.metrics for step in steps] == [{"loss": loss, "extra": 3.0} for loss in (1.0, 0.5, 0.25)]
    assert [step.state.params["w"].item() for step in steps] == [0.5, 0.25, 0.125]
    assert [step.tokens for step in steps] == [100, 101, 102]
    assert all(step.seconds > 0 for step in steps)


def test_steps_are_computed_one_at_a_time() -> None:
    drawn: list[int] = []

    def batches() -> Iterator[StepBatch]:
        for i, batch in enumerate(step_batches(3)):
            drawn.append(i)
            yield batch

    steps = training_steps(halve, start(), batches())
    next(steps)
    assert drawn == [0]


def test_ahead_the_device_has_the_next_step_before_one_is_yielded() -> None:
    handed: list[int] = []

    def update(state: TrainState, batches: list[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
        handed.append(int(state.step) + 1)
        return halve(state, batches)

    steps = training_steps(update, start(), step_batches(4), lambda _: True)
    assert [(next(steps).number, len(handed)) for _ in range(4)] == [(1, 2), (2, 3), (3, 4), (4, 4)]


def test_a_step_that_the_caller_pauses_after_has_none_ahead_of_it() -> None:
    handed: list[int] = []

    def update(state: TrainState, batches: list[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
        handed.append(int(state.step) + 1)
        return halve(state, batches)

    steps = training_steps(update, start(), step_batches(5), lambda number: number != 3)
    assert [(next(steps).number, len(handed)) for _ in range(5)] == [(1, 2), (2, 3), (3, 3), (4, 5), (5, 5)]


@either
def test_what_was_computed_is_yielded_before_an_error_of_the_data(ahead: Ahead) -> None:
    def batches() -> Iterator[StepBatch]:
        yield from step_batches(3)
        raise OSError("gone")

    steps = training_steps(halve, start(), batches(), ahead)
    assert [next(steps).number for _ in range(3)] == [1, 2, 3]
    with pytest.raises(OSError, match="gone"):
        next(steps)


def test_the_time_of_a_step_begins_with_the_end_of_the_one_before() -> None:
    begun, steps = time.perf_counter(), list(training_steps(halve, start(), step_batches(50), lambda _: True))
    assert sum(step.seconds for step in steps) <= time.perf_counter() - begun


def test_where_handing_over_takes_the_time_the_last_step_has_its_share() -> None:
    def update(state: TrainState, batches: list[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
        time.sleep(0.05)
        return halve(state, batches)

    steps = list(training_steps(update, start(), step_batches(4), lambda number: number < 4))
    assert all(step.seconds >= 0.04 for step in steps)


class Device:
    """A clock, and a device that computes one step after the other, while a step is handed over to it or later."""

    def __init__(self, computing: float):
        self.now, self.begun, self.free, self.computing = 100.0, 100.0, 100.0, computing
        self.ends = list[float]()

    def launch(self, seconds: float) -> None:
        """Let time pass while a step is handed over."""
        self.begun, self.now = self.now, self.now + seconds

    def compute(self, *_: Any) -> None:
        """Have the step that was handed over computed, no sooner than it was and than those before it."""
        self.free = max(max(self.free, self.begun) + self.computing, self.now)
        self.ends.append(self.free)

    def wait(self, *_: Any) -> None:
        """Wait for the oldest step that was not waited for."""
        self.now = max(self.now, self.ends.pop(0))


@pytest.mark.parametrize(
    ("computing", "launching"),
    [(0.1, (0.08, 0.12)), (0.1, (0.05, 0.05, 0.05, 0.15)), (0.1, (0.01,)), (0.02, (0.1,)), (0.1, (0.1, 0.2))],
)
def test_no_step_is_without_time_and_all_of_it_is_given_out(
    computing: float, launching: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, total = Device(computing), 12

    def update(state: TrainState, batches: list[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
        device.launch(launching[int(state.step) % len(launching)])
        return halve(state, batches)

    monkeypatch.setattr("clara.shell.loop.time", Mock(perf_counter=lambda: device.now))
    monkeypatch.setattr("clara.shell.loop.mx", Mock(async_eval=device.compute, eval=device.wait))
    begun = device.now
    steps = list(training_steps(update, start(), step_batches(total), lambda number: number < total))
    seconds = [step.seconds for step in steps]
    assert sum(seconds) == pytest.approx(device.now - begun)
    assert min(seconds) > 0.4 * max(computing, min(launching))


def test_ahead_a_step_is_yielded_before_the_error_of_the_next_is_raised() -> None:
    def update(state: TrainState, batches: list[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
        if int(state.step) == 2:
            raise MemoryError("no more")
        return halve(state, batches)

    steps = training_steps(update, start(), step_batches(4), lambda _: True)
    assert [next(steps).number, next(steps).number] == [1, 2]
    with pytest.raises(ClaraError, match="step 3: out of memory"):
        next(steps)


@either
def test_a_resumed_loop_counts_on(ahead: Ahead) -> None:
    steps = training_steps(halve, start()._replace(step=mx.array(7)), step_batches(2), ahead)
    assert [step.number for step in steps] == [8, 9]


@either
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_names_step_and_records(value: float, ahead: Ahead) -> None:
    def update(state: TrainState, batches: list[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
        state, metrics = halve(state, batches)
        return state, metrics | {"loss": mx.where(state.step == 2, value, metrics["loss"])}

    steps = training_steps(update, start(), step_batches(3), ahead)
    assert next(steps).state.params["w"].item() == 0.5, "the state before it is yielded"
    with pytest.raises(ClaraError, match=f"^step 2: the loss is {value}; its records: r1a, r1b$"):
        next(steps)


def test_a_gradient_that_is_no_number_is_named_too() -> None:
    def update(state: TrainState, batches: list[Batch]) -> tuple[TrainState, dict[str, mx.array]]:
        state, metrics = halve(state, batches)
        return state, metrics | {"gradient_norm": mx.array(float("inf"))}

    with pytest.raises(ClaraError, match=r"^step 1: the gradient norm is inf; its records: r0a, r0b$"):
        next(training_steps(update, start(), step_batches(1)))


def small_batch(values: list[float]) -> Batch:
    """Return a batch whose document tokens are the values; the rest is empty."""
    tokens, none = mx.array(values)[:, None], mx.zeros((len(values), 1))
    rows = mx.arange(len(values))[:, None]
    return Batch(Documents(tokens, mx.ones(len(values))), rows, none, none, none, none, mx.random.key(0))


def count_tokens(params: Params, batch: Batch) -> dict[str, Term]:
    """Return as next-token loss the documents' tokens weighted by their row, and their squares as alignment."""
    assert isinstance(batch.documents, Documents)
    tokens = batch.documents.tokens[batch.candidates[:, 0]]
    rows = mx.arange(1, tokens.shape[0] + 1)[:, None]
    return {
        "next_token": ((tokens * rows).sum() * params["w"], mx.array(tokens.shape[0])),
        "alignment": (mx.square(tokens).sum(), mx.array(2 * tokens.shape[0])),
    }


def test_means_are_sums_over_all_batches_divided_once() -> None:
    means = evaluate(count_tokens, {"w": mx.array(2.0)}, [small_batch([1, 2, 3]), small_batch([10])], WEIGHTS)
    assert means == pytest.approx(
        {
            "loss": 2 * (1 * 1 + 2 * 2 + 3 * 3 + 1 * 10) / 4 + 0.1 * (1 + 4 + 9 + 100) / 8,
            "next_token": 2 * (1 * 1 + 2 * 2 + 3 * 3 + 1 * 10) / 4,
            "other_memory": 2 * (1 * 3 + 2 * 1 + 3 * 2) / 3,
            "alignment": (1 + 4 + 9 + 100) / 8,
        }
    )


def test_means_of_several_processes_are_those_of_one() -> None:
    params, batches = {"w": mx.array(2.0)}, [small_batch([1, 2, 3]), small_batch([10]), small_batch([4, 7])]
    own: list[Any] = []
    for share in (batches[::2], batches[1::2], []):
        evaluate(count_tokens, params, share, WEIGHTS, lambda totals: [own.append(totals) or {}])
    means = evaluate(count_tokens, params, [], WEIGHTS, lambda nothing: [*own, nothing])
    assert means == pytest.approx(evaluate(count_tokens, params, batches, WEIGHTS))
    assert len(own) == 3 and means.keys() == {"loss", "next_token", "other_memory", "alignment"}


def test_scores_of_several_processes_are_those_of_one(records: list[Record]) -> None:
    def reply(record: Record) -> str:
        return record.replies[0] if record.id in ("r1", "r4") else "blue"

    rows: list[Any] = []
    for share in (records[::2], records[1::2]):
        score_answers(share, reply, lambda own: [rows.append(own) or []])
    found = score_answers([], reply, lambda own: [*rows, own])
    assert found == score_answers(records, reply) and found["exact_match"] == pytest.approx(2 / 7)


def test_without_a_next_token_loss_there_is_no_other_memory() -> None:
    def only_alignment(params: Params, batch: Batch) -> dict[str, Term]:
        return {"alignment": count_tokens(params, batch)["alignment"]}

    means = evaluate(only_alignment, {"w": mx.array(2.0)}, [small_batch([2])], WEIGHTS)
    assert means == pytest.approx({"loss": 0.2, "alignment": 2.0})


def test_a_term_that_counts_nothing_is_left_out() -> None:
    terms = {"alignment": (mx.array(0.0), mx.array(0)), "contrastive": (mx.array(3.0), mx.array(2))}
    weights = {"alignment": 1.0, "contrastive": 2.0}
    assert evaluate(lambda *_: terms, {}, [small_batch([2])], weights) == {"loss": 3.0, "contrastive": 1.5}


def test_without_batches_there_are_no_means() -> None:
    assert evaluate(count_tokens, {"w": mx.array(2.0)}, [], WEIGHTS) == {}


def test_means_of_a_model_are_those_of_its_records_one_by_one(session: Session, records: list[Record]) -> None:
    config, eval_step = DataConfig(max_tokens=512), make_eval_step(session.base, session.config)
    batches = list(evaluation_batches(records, Feed(session.encoder, config), 3))
    assert sorted(batch.tokens.shape[0] for batch in batches) == [3, 4]
    found = evaluate(eval_step, session.params, batches, WEIGHTS)
    examples = [encode_record(session.encoder, record, "qa") for record in records]
    terms = [eval_step(session.params, collate([e], session.base.layout, mx.random.key(0))) for e in examples]
    for name in ("next_token", "alignment"):
        total, count = (sum(term[name][i].item() for term in terms) for i in (0, 1))
        assert found[name] == pytest.approx(total / count, rel=1e-5)


def test_other_memory_is_the_loss_with_the_document_of_another_record(session: Session, records: list[Record]) -> None:
    eval_step = make_eval_step(session.base, session.config)
    examples = [encode_record(session.encoder, record, "qa") for record in records[:3]]
    swapped = [e._replace(documents=examples[i - 1].documents) for i, e in enumerate(examples)]
    right, wrong = (collate(e, session.base.layout, mx.random.key(0)) for e in (examples, swapped))
    found = evaluate(eval_step, session.params, [right], WEIGHTS)
    total, count = eval_step(session.params, wrong)["next_token"]
    assert found["other_memory"] == pytest.approx((total / count).item(), rel=1e-6)
    assert abs(found["other_memory"] - found["next_token"]) > 1e-5


def test_what_is_evaluated_does_not_depend_on_the_batch_size(session: Session, tmp_path: Path) -> None:
    records = read_records(str(write_records(tmp_path / "data.jsonl", range(5))))
    eval_step = make_eval_step(session.base, session.config)
    means = [
        evaluate(
            eval_step, session.params, evaluation_batches(records, Feed(session.encoder, DataConfig()), size), WEIGHTS
        )
        for size in (1, 128)
    ]
    assert means[0]["next_token"] == pytest.approx(means[1]["next_token"], rel=1e-5)
