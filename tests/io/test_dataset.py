"""Batches: each a function of (seed, step), every record in its turn, lengths together, and a resumed run alike."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from folders import tiny_folder, tiny_session
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map
from msgspec.structs import replace
from tiny import assert_close, assert_same

from clara.core.config import LossConfig, Relevance, RetrievalConfig, Stage, StepConfig
from clara.core.stages import stage_counts, trained_leaves
from clara.core.step import make_train_step
from clara.core.types import Batch, StepResult
from clara.io.altered import cloze_record
from clara.io.data_config import DataConfig
from clara.io.dataset import (
    WINDOW,
    StepBatch,
    distinct_documents,
    epoch_plan,
    evaluation_batches,
    planned,
    training_batches,
)
from clara.io.examples import Encoder, encode_document, encode_record
from clara.io.feed import Feed
from clara.io.fitting import check_records
from clara.io.records import Record
from clara.io.tasks import longest_row
from clara.shell.setup import Session

MIXED = DataConfig(batch_size=4, length_multiple=16, autoencode_share=0.5, paraphrase_share=0.5, qa_form="turns")
lengths = st.lists(st.integers(1, 200), min_size=1, max_size=120)


def leaves(batch: Batch) -> list[tuple[str, mx.array]]:
    """Return the arrays of a batch with their names."""
    return [(name, leaf) for name, leaf in tree_flatten(batch._asdict()) if leaf is not None]


def content(step: StepBatch) -> tuple[list[str], int, list[dict[str, tuple[Any, ...]]]]:
    """Return all that a step holds as plain values, each array with dtype and shape."""
    arrays = [
        {name: (str(leaf.dtype), leaf.shape, np.array(leaf).tolist()) for name, leaf in leaves(batch)}
        for batch in step.batches
    ]
    return step.names, step.tokens, arrays


@settings(max_examples=80)
@given(lengths=lengths, batch_size=st.integers(1, 12), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_takes_all_records_once_but_for_an_incomplete_batch(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    plan = epoch_plan(lengths, batch_size, seed, epoch)
    taken = list(itertools.chain(*plan))
    assert {len(batch) for batch in plan} <= {batch_size}
    assert len(set(taken)) == len(taken) == len(lengths) - len(lengths) % batch_size
    assert set(taken) <= set(range(len(lengths)))


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    lengths = list(range(64))
    plans = {(seed, epoch): epoch_plan(lengths, 4, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(epoch_plan(lengths, 4, *place) == plan for place, plan in plans.items())
    assert len({str(plan) for plan in plans.values()}) == len(plans)


def test_records_left_over_come_in_other_epochs() -> None:
    left = [set(range(11)) - set(itertools.chain(*epoch_plan([1] * 11, 4, 0, epoch))) for epoch in range(8)]
    assert all(len(rest) == 3 for rest in left)
    assert set.intersection(*left) == set()


def test_records_of_one_length_are_shuffled_together() -> None:
    batches = [frozenset(batch) for epoch in range(4) for batch in epoch_plan([5] * 32, 4, 0, epoch)]
    assert len(set(batches)) > 28, "the same records meet in every epoch"


def padding(lengths: list[int], batches: list[list[int]]) -> float:
    """Return the mean padding of a record in batches that are as wide as their longest."""
    return float(np.mean([max(lengths[i] for i in batch) - lengths[j] for batch in batches for j in batch]))


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_holds_records_of_similar_length(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, 500, size=WINDOW * 8 * 2).tolist()
    unsorted = rng.permutation(len(lengths)).reshape(-1, 8).tolist()
    assert padding(lengths, epoch_plan(lengths, 8, seed, 0)) < 0.25 * padding(lengths, unsorted)


def test_short_and_long_batches_come_in_mixed_order() -> None:
    lengths = list(range(WINDOW * 4))
    longest = [max(batch) for batch in epoch_plan(lengths, 4, 0, 0)]
    assert sorted(longest) != longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(
    encoder: Encoder, records: list[Record], start: int, accumulate: int
) -> None:
    config = replace(MIXED, accumulate=accumulate)
    whole = [content(step) for step in training_batches(records, Feed(encoder, config), 6)]
    rest = [content(step) for step in training_batches(records, Feed(encoder, config), 6, start)]
    assert len(whole) == 6 and rest == whole[start:]
    assert {len(arrays) for _, _, arrays in whole} == {accumulate}


def test_another_seed_draws_other_batches(encoder: Encoder, records: list[Record]) -> None:
    one, other = (
        [step.names for step in training_batches(records, Feed(encoder, replace(MIXED, seed=seed)), 4)]
        for seed in (0, 1)
    )
    assert one != other


@pytest.mark.parametrize("seed", [2**31, 2**32, 2**53])
def test_a_seed_that_the_options_accept_can_be_drawn_from(encoder: Encoder, records: list[Record], seed: int) -> None:
    try:
        msgspec.convert({"seed": seed}, DataConfig)
    except msgspec.ValidationError:
        return  # refused before the first step: that is as good
    (step,) = training_batches(records, Feed(encoder, replace(MIXED, seed=seed)), 1)
    (usual,) = training_batches(records, Feed(encoder, MIXED), 1)
    assert step.batches[0].key.tolist() != usual.batches[0].key.tolist()


def test_micro_batches_are_the_batch_cut_in_order(encoder: Encoder, records: list[Record]) -> None:
    (whole,) = training_batches(records, Feed(encoder, MIXED), 1)
    (cut,) = training_batches(records, Feed(encoder, replace(MIXED, accumulate=3)), 1)
    assert cut.names == whole.names and cut.tokens == whole.tokens
    assert [batch.tokens.shape[0] for batch in cut.batches] == [2, 1, 1]
    assert [row for batch in cut.batches for row in answers(batch)] == answers(whole.batches[0])


def answers(batch: Batch) -> list[list[int]]:
    """Return the answer tokens of each row."""
    return [row[keep].tolist() for row, keep in zip(np.array(batch.targets), np.array(batch.target_mask), strict=True)]


def test_no_two_micro_batches_have_one_dropout_key(encoder: Encoder, records: list[Record]) -> None:
    steps = training_batches(records, Feed(encoder, replace(MIXED, accumulate=2)), 6)
    keys = [tuple(batch.key.tolist()) for step in steps for batch in step.batches]
    assert len(set(keys)) == len(keys) == 12


def test_more_micro_batches_than_examples_are_as_many_as_examples(encoder: Encoder, records: list[Record]) -> None:
    (step,) = training_batches(records, Feed(encoder, replace(MIXED, accumulate=9)), 1)
    assert [batch.tokens.shape[0] for batch in step.batches] == [1, 1, 1, 1]


def test_fewer_records_than_a_batch_make_smaller_batches(encoder: Encoder, records: list[Record]) -> None:
    steps = list(training_batches(records[:3], Feed(encoder, replace(MIXED, batch_size=128)), 2))
    assert [sorted(step.names) for step in steps] == [["r0", "r1", "r2"]] * 2


@pytest.mark.parametrize(("accumulate", "processes", "cut"), [(4, 2, 4), (4, 4, 4), (1, 2, 2), (3, 2, 4), (9, 4, 4)])
def test_processes_share_a_step_and_together_hold_that_of_one(
    encoder: Encoder, records: list[Record], accumulate: int, processes: int, cut: int
) -> None:
    (whole,) = training_batches(records, Feed(encoder, replace(MIXED, accumulate=cut)), 4, 3)
    feed = Feed(encoder, replace(MIXED, accumulate=accumulate))
    shares = [content(next(training_batches(records, feed, 4, 3, (i, processes)))) for i in range(processes)]
    names, tokens, arrays = content(whole)
    assert all(share[0] == names for share in shares) and sum(share[1] for share in shares) == tokens
    assert [shares[i % processes][2][i // processes] for i in range(cut)] == arrays
    assert sum(len(share[2]) for share in shares) == cut


def test_processes_share_an_evaluation(encoder: Encoder, records: list[Record]) -> None:
    feed = Feed(encoder, MIXED)
    whole = list(evaluation_batches(records, feed, 3))
    shares = [list(evaluation_batches(records, feed, 3, (i, 2))) for i in range(2)]
    assert [len(share) for share in shares] == [2, 1]
    for batch, other in zip(whole, (shares[0][0], shares[1][0], shares[0][1]), strict=True):
        assert all(mx.array_equal(a, b) for (_, a), (_, b) in zip(leaves(batch), leaves(other), strict=True))


def test_the_tokens_of_a_step_are_those_without_padding(encoder: Encoder, records: list[Record]) -> None:
    config = replace(MIXED, autoencode_share=0.0, paraphrase_share=0.0, length_multiple=1, batch_size=1)
    for step in training_batches(records, Feed(encoder, config), 3):
        (batch,) = step.batches
        document = int(batch.documents.lengths.item())
        assert step.tokens == batch.tokens.shape[1] + document


def test_each_step_is_made_of_the_records_it_names(encoder: Encoder, records: list[Record]) -> None:
    by_name = {record.id: record for record in records}
    for step in training_batches(records, Feed(encoder, MIXED), 4):
        tokens, sizes = (np.array(leaf) for leaf in step.batches[0].documents)
        found = [tuple(row[:size].tolist()) for row, size in zip(tokens, sizes, strict=True)]
        assert found == [encode_document(encoder, by_name[name].docs[0]) for name in step.names]


def test_a_batch_holds_records_whose_longer_rows_are_alike(encoder: Encoder, pool: list[Record]) -> None:
    long = ["w" * 300]
    records = [
        Record(id=f"{kind}{i}", docs=docs, question="What is it?", answer=answer)
        for i in range(8)
        for kind, docs, answer in (
            ("document", long, "A lamp."),
            ("answer", ["It is red."], "w" * 300),
            ("neither", ["It is red."], "A lamp."),
        )
    ]
    feed = Feed(encoder._replace(doc_max_tokens=400, max_tokens=900), DataConfig(batch_size=8))
    for _, _, chosen in planned(records, feed, 3):
        short = {longest_row(record, feed) < 100 for record in chosen}
        assert len(short) == 1, [record.id for record in chosen]
    text, chosen = (feed._replace(encoder=encoder._replace(reads="text")), feed._replace(stage="end_to_end"))
    rows = [longest_row(records[0], each) for each in (feed, text, chosen)]
    assert rows[0] == rows[2] == 300 and rows[1] > 300, "text is read in one row; candidates lead where they are chosen"


def test_a_step_learns_the_pools_documents(encoder: Encoder, records: list[Record], pool: list[Record]) -> None:
    feed = Feed(encoder, replace(MIXED, autoencode_share=1.0), pool=pool)
    (step,) = training_batches(records, feed, 1)
    texts = {record.id: record.docs[0] for record in pool}
    learnt = [encoder.tokenizer.hf.decode(row[:-1]) for row in answers(step.batches[0])]
    assert learnt == [texts[name] for name in step.names]


@pytest.mark.parametrize("start", [1, 3])
def test_a_resumed_run_fills_in_what_an_uninterrupted_one_does(
    encoder: Encoder, records: list[Record], start: int
) -> None:
    feed = Feed(encoder, replace(MIXED, cloze_share=0.5, accumulate=2))
    whole = [content(step) for step in training_batches(records, feed, 6)]
    assert [content(step) for step in training_batches(records, feed, 6, start)] == whole[start:]
    shares = [content(next(training_batches(records, feed, 6, start, (i, 2)))) for i in range(2)]
    assert [share[2][0] for share in shares] == whole[start][2], "processes share it"
    plain = [content(step) for step in training_batches(records, feed._replace(config=MIXED), 6)]
    assert plain != whole


@pytest.mark.parametrize("reads", ["memory", "text"])
def test_sentences_that_do_not_fit_are_not_asked(
    encoder: Encoder, records: list[Record], reads: Literal["memory", "text"]
) -> None:
    record = Record(id="r", docs=["The seventh lamp burns red in 5."], question="q", answer="a")
    asked = cloze_record(encoder := encoder._replace(reads=reads), record, 0)
    assert asked
    size = len(encode_record(encoder, asked, "cloze").tokens)
    assert cloze_record(encoder._replace(max_tokens=size), record, 0) == asked
    tight = encoder._replace(max_tokens=size - 1)
    assert cloze_record(tight, record, 0) is None
    cloze = replace(MIXED, autoencode_share=0.0, paraphrase_share=0.0, cloze_share=1.0)
    check_records([record], Feed(tight, cloze))
    learnt = [answers(batch) for step in training_batches([record], Feed(tight, cloze), 3) for batch in step.batches]
    assert [tight.tokenizer.hf.decode(row[:-1]) for rows in learnt for row in rows] == ["a"] * 3


class Counted:
    """A tokenizer's backend that counts how often it is called."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.alone, self.together = inner, 0, 0

    def encode(self, *given: Any, **more: Any) -> Any:
        self.alone += 1
        return self.inner.encode(*given, **more)

    def encode_batch_fast(self, *given: Any, **more: Any) -> Any:
        self.together += 1
        return self.inner.encode_batch_fast(*given, **more)


def test_the_texts_of_a_step_are_tokenised_in_one_call(encoder: Encoder, records: list[Record]) -> None:
    counted = Counted(encoder.tokenizer.plain)
    narrow = encoder._replace(tokenizer=encoder.tokenizer._replace(plain=counted))
    assert len(list(training_batches(records, Feed(narrow, MIXED), 5))) == 5
    assert (counted.alone, counted.together) == (0, 5)


def tasks(encoder: Encoder, records: list[Record], config: DataConfig, total_steps: int) -> list[list[str]]:
    """Return the task of each example of each step, told by what is learnt."""
    by_name = {record.id: record for record in records}
    config = replace(config, qa_form="pairs")
    found = []
    for step in training_batches(records, Feed(encoder, config), total_steps):
        learnt = [encoder.tokenizer.hf.decode(row[:-1]) for row in answers(step.batches[0])]
        known = [
            {by_name[name].docs[0][:32]: "autoencode", by_name[name].paraphrase: "paraphrase"} for name in step.names
        ]
        found.append([kinds.get(text, "qa") for kinds, text in zip(known, learnt, strict=True)])
    return found


def test_a_run_fades_from_repeating_to_the_records_own_task(encoder: Encoder, records: list[Record]) -> None:
    config = replace(MIXED, autoencode_share=1.0, autoencode_until=0.5, paraphrase_share=0.0)
    steps = tasks(encoder, records, config, 40)
    shares = [sum(task == "autoencode" for step in steps[i : i + 10] for task in step) / 40 for i in (0, 10, 20, 30)]
    assert steps[0] == ["autoencode"] * 4, shares
    assert 0.6 < shares[0] < 0.95 and 0.1 < shares[1] < 0.5 and shares[2:] == [0, 0]


def test_tasks_are_drawn_anew_for_each_seed_and_step(encoder: Encoder, records: list[Record]) -> None:
    one = replace(MIXED, autoencode_share=0.5, autoencode_until=1.0, paraphrase_share=0.5, batch_size=1)
    drawn = [
        [task for step in tasks(encoder, records[:1], replace(one, seed=seed), 30) for task in step]
        for seed in range(3)
    ]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert all(set(run) == {"autoencode", "paraphrase", "qa"} for run in drawn)


def test_each_epoch_of_a_run_has_its_own_order(encoder: Encoder, records: list[Record]) -> None:
    names = [step.names for step in training_batches(records, Feed(encoder, MIXED), 6)]
    assert names[:2] != names[2:4] != names[4:] != names[:2]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 128])
@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_evaluation_takes_every_record_once_in_batches_of_two_or_more(
    encoder: Encoder, records: list[Record], batch_size: int, count: int
) -> None:
    taken = records[:count]
    batches = list(evaluation_batches(taken, Feed(encoder, MIXED), batch_size))
    rows = [batch.tokens.shape[0] for batch in batches]
    assert min(rows) >= min(2, count) and sum(rows) == count
    documents = [
        tuple(row[:size].tolist())
        for batch in batches
        for row, size in zip(*(np.array(leaf) for leaf in batch.documents), strict=True)
    ]
    assert sorted(documents) == sorted(encode_document(encoder, record.docs[0]) for record in taken)


def test_evaluation_asks_the_records_own_task_and_nothing_random(encoder: Encoder, records: list[Record]) -> None:
    (one,), (other,) = (
        list(evaluation_batches(records, Feed(encoder, replace(MIXED, seed=seed)), 128)) for seed in (0, 1)
    )
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in zip(leaves(one), leaves(other), strict=True))
    learnt = [bytes(t - 3 for t in row if t > 2) for row in answers(one)]
    assert len(learnt) == 11 and one.target_mask.sum().item() == sum(
        len(answer) + 1 for record in records for answer in record.replies
    )


def test_instruct_reads_all_documents_and_asks_another_question_each_epoch(
    encoder: Encoder, records: list[Record], choices: list[Record]
) -> None:
    config = DataConfig(batch_size=4, autoencode_share=1.0, paraphrase_share=1.0)
    (step,) = training_batches(choices, Feed(encoder, config, "instruct"), 1)
    assert step.batches[0].retrieval is None and (np.array(step.batches[0].candidates) >= 0).sum() == 12
    record = records[2]
    steps = training_batches([record], Feed(encoder, config, "instruct"), 4)
    learnt = [encoder.tokenizer.hf.decode(answers(step.batches[0])[0][:-1]) for step in steps]
    assert learnt == [*record.replies, *record.replies], "one question a time, whatever the shares say"


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session of the tiny base whose adapters do something."""
    return tiny_session(tiny_folder(tmp_path_factory.mktemp("chooser")), stage="retrieval")


def drawn_memory(documents: Sequence[tuple[int, ...]]) -> mx.array:
    """Return random memories, float32[n, 4, 32], each drawn by its document."""
    rows = [np.random.default_rng(document).standard_normal((4, 32)) for document in documents]
    return mx.array(np.stack(rows).astype(np.float32))


def with_a_question_asked_twice(choices: list[Record]) -> list[Record]:
    """Return seven records: the first's question comes again, with another right document, in a far longer record."""
    docs = ["z" * 60, choices[4].docs[2], choices[0].docs[1]]
    again = replace(choices[0], id="again", docs=docs, pos_index=[1, 2])
    return [*choices, again, replace(choices[1], id="unknown", pos_index=[])]


def summed_step(chooser: Session, config: StepConfig, feed: Feed, records: list[Record], ranks: int) -> StepResult:
    """Return the first training step as so many processes take it together."""
    trained, frozen = trained_leaves(config, chooser.params)
    parts = [next(training_batches(records, feed, 1, 0, (rank, ranks))).batches for rank in range(ranks)]
    counts = [stage_counts(config, batch) for part in parts for batch in part]
    totals = tree_map(lambda *each: sum(each), *counts)
    steps = [
        make_train_step(chooser.base, config, frozen, share=lambda tree: totals if isinstance(tree, dict) else tree)
        for _ in parts
    ]
    results = [step(trained, part) for step, part in zip(steps, parts, strict=True)]
    whole = tree_map(lambda *each: sum(each), *results)
    return whole._replace(metrics=whole.metrics | {f"{name}_count": count for name, count in totals.items()})


@pytest.mark.parametrize(
    ("stage", "relevance"), [("retrieval", "flattened"), ("retrieval", "late"), ("end_to_end", "flattened")]
)
def test_in_batch_negatives_are_those_of_the_whole_step_however_it_is_cut(
    stage: Stage, relevance: Relevance, chooser: Session, choices: list[Record]
) -> None:
    how = RetrievalConfig(top_k=2, relevance=relevance, in_batch_negatives=True)
    loss = LossConfig(next_token_weight=float(stage == "end_to_end"), alignment_weight=0.0, contrastive_weight=1.0)
    config = replace(chooser.config, stage=stage, retrieval=how, loss=loss)
    records = with_a_question_asked_twice(choices)

    def taken(accumulate: int, ranks: int = 1) -> StepResult:
        data = DataConfig(batch_size=7, accumulate=accumulate, length_multiple=16)
        feed = Feed(chooser.encoder, data, stage, 2, drawn_memory, in_batch_negatives=True)
        return summed_step(chooser, config, feed, records, ranks)

    whole = taken(1)
    assert whole.metrics["contrastive_count"].item() == 6, "one has no positive"
    for cut in ((2, 1), (3, 1), (7, 1), (1, 2), (1, 3), (3, 2), (2, 3)):
        found = taken(*cut)
        assert_close(found.metrics, whole.metrics, 1e-5)
        # A BLAS rounds by the shape of a product; a temperature of 0.02 magnifies that.
        assert_close(found.grads, whole.grads, 1e-4)


def test_each_micro_batch_has_the_documents_of_its_step_and_the_choice_of_its_rows(
    encoder: Encoder, choices: list[Record]
) -> None:
    records = with_a_question_asked_twice(choices)
    data = DataConfig(batch_size=7, length_multiple=16)
    feed = Feed(encoder, data, "retrieval", 2, drawn_memory, in_batch_negatives=True)
    (whole,) = next(training_batches(records, feed, 1)).batches
    assert whole.retrieval is not None and whole.retrieval.in_batch is not None
    fillers = len(whole.documents) - len(distinct_documents(records, encoder))
    mask = np.array(whole.retrieval.in_batch.mask)
    assert fillers == 6 and not mask[:, -fillers:].any() and mask[:, :-fillers].sum(axis=1).tolist().count(8) > 1
    cut = feed._replace(config=replace(data, accumulate=3))
    step = next(training_batches(records, cut, 1))
    named = [set(names) for names in np.array_split(step.names, 3)]
    assert not any({"c0", "again"} <= names for names in named), "the question is asked in two micro-batches"
    for field in ("positives", "mask"):
        parts = [getattr(batch.retrieval.in_batch, field) for batch in step.batches if batch.retrieval]
        assert_same(mx.concatenate(parts), getattr(whole.retrieval.in_batch, field))
    assert all(batch.documents is step.batches[0].documents for batch in step.batches), "read once"
    shares = [next(training_batches(records, cut, 1, 0, (i, 2))) for i in range(2)]
    assert 0 < shares[0].tokens < step.tokens == sum(share.tokens for share in shares), "each counts its own"


def chosen_among(batches: Sequence[Batch]) -> list[bool]:
    """Return whether each batch's questions choose among the candidates of that batch, and no other documents."""
    found = []
    for batch in batches:
        assert batch.retrieval is not None and batch.retrieval.in_batch is not None
        own = set(np.unique(np.array(batch.candidates)).tolist()) - {-1}
        found.append(set(np.nonzero(np.array(batch.retrieval.in_batch.mask).any(axis=0))[0].tolist()) == own)
    return found


def test_where_documents_are_compressed_anew_negatives_are_those_of_the_micro_batch(
    encoder: Encoder, choices: list[Record]
) -> None:
    feed = Feed(encoder, DataConfig(batch_size=5, accumulate=2, length_multiple=16), "retrieval")._replace(
        in_batch_negatives=True
    )
    (anew,), (cached,) = (training_batches(choices, feed._replace(memory=memory), 1) for memory in (None, drawn_memory))
    assert chosen_among(anew.batches) == [True, True] and chosen_among(cached.batches) == [False, False]


def test_an_evaluation_batch_has_its_own_in_batch_negatives(encoder: Encoder, choices: list[Record]) -> None:
    feed = Feed(encoder, DataConfig(), "retrieval", 2, drawn_memory, in_batch_negatives=True)
    assert chosen_among(list(evaluation_batches(choices, feed, 2))) == [True, True]


def test_documents_with_the_same_tokens_count_once(encoder: Encoder) -> None:
    records = [Record(docs=["x" * 32 + "a", "b"]), Record(docs=["b", "x" * 32 + "c", "b"])]
    assert distinct_documents(records, encoder) == [encode_document(encoder, text) for text in ("x" * 32, "b")]
