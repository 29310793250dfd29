"""Token lists to arrays: no answer token is ever lost, slots keep to their own documents, padding changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import as_text, assert_same, tiny_batch, tiny_example, tiny_layout

from clara.core.collate import (
    ANSWER,
    CANDIDATE_MULTIPLE,
    FIXED,
    INPUT,
    Example,
    Tokens,
    collate,
    document_slot_ids,
    document_table,
    frame_document,
    pad,
    truncate,
)
from clara.core.memory import slot_index
from clara.core.types import Batch, Documents
from clara.core.widths import Widths

LAYOUT = tiny_layout()
COUNT, FIRST = LAYOUT.num_memory_tokens, LAYOUT.first_slot
Part = tuple[tuple[int, ...], int]

ordinary = st.integers(1, LAYOUT.vocab_size - 1)
multiples = st.sampled_from([1, 3, 8, 32])


@st.composite
def examples(draw: st.DrawFn, fewest_documents: int = 0) -> Example:
    """Draws documents, their slots and runs of tokens in any order of roles, as in a conversation of several turns."""
    texts = draw(st.lists(st.lists(ordinary, min_size=1, max_size=6), min_size=fewest_documents, max_size=3))
    parts: list[Part] = [((1,), FIXED)]
    for i in range(len(texts)):
        parts.append((document_slot_ids(i, LAYOUT), FIXED))
        parts += [(tuple(part), role) for part, role in draw(runs)]
    parts += [(tuple(part), role) for part, role in draw(runs)]
    tokens = tuple(token for part, _ in parts for token in part)
    roles = tuple(role for part, role in parts for _ in part)
    question = draw(st.lists(ordinary, min_size=1, max_size=6))
    positives = draw(st.sets(st.integers(0, len(texts) - 1))) if texts else ()
    return Example("drawn", tuple(map(tuple, texts)), tokens, roles, tuple(question), tuple(positives))


runs = st.lists(
    st.tuples(st.lists(ordinary, min_size=1, max_size=5), st.sampled_from([FIXED, INPUT, ANSWER])), max_size=3
)
batches_of_examples = st.builds(
    lambda first, others: [first, *others], examples(fewest_documents=1), st.lists(examples(), max_size=4)
)


def collated(chosen: list[Example], multiple: int) -> Batch:
    return collate(chosen, LAYOUT, mx.random.key(0), multiple)


def tokens_of_role(example: Example, role: int) -> list[int]:
    return [token for token, own in zip(example.tokens, example.roles, strict=True) if own == role]


@given(batches_of_examples, multiples)
def test_targets_are_all_answer_tokens_in_order(chosen: list[Example], multiple: int) -> None:
    batch = collated(chosen, multiple)
    kept = [np.array(row)[np.array(mask)].tolist() for row, mask in zip(batch.targets, batch.target_mask, strict=True)]
    assert kept == [tokens_of_role(example, ANSWER) for example in chosen]


@given(batches_of_examples, multiples)
def test_each_target_is_the_token_after_its_index(chosen: list[Example], multiple: int) -> None:
    batch = collated(chosen, multiple)
    mask = np.array(batch.target_mask)
    following = np.take_along_axis(np.array(batch.tokens), (np.array(batch.target_index) + 1) * mask, axis=1)
    np.testing.assert_array_equal(following[mask], np.array(batch.targets)[mask])


@given(batches_of_examples, multiples)
def test_each_index_stands_before_an_answer_token(chosen: list[Example], multiple: int) -> None:
    batch = collated(chosen, multiple)
    mask = np.array(batch.target_mask)
    places = [(row[keep] + 1).tolist() for row, keep in zip(np.array(batch.target_index), mask, strict=True)]
    assert places == [[i for i, role in enumerate(example.roles) if role == ANSWER] for example in chosen]


@given(batches_of_examples, multiples)
def test_rows_hold_their_tokens_from_the_left_and_zeros_after(chosen: list[Example], multiple: int) -> None:
    rows = np.array(collated(chosen, multiple).tokens)
    for row, example in zip(rows, chosen, strict=True):
        own = np.array(example.tokens)
        np.testing.assert_array_equal(row[: len(own)][own < FIRST], own[own < FIRST])
        assert not row[len(own) :].any()


def read_by(batch: Batch, row: int) -> list[tuple[int, ...]]:
    """Return the documents that an example's candidates name."""
    documents, lengths = np.array(batch.documents.tokens), batch.documents.lengths.tolist()
    return [tuple(documents[n, : lengths[n]].tolist()) for n in batch.candidates[row].tolist() if n >= 0]


@given(batches_of_examples, multiples)
def test_candidates_are_the_documents_of_each_example_in_order(chosen: list[Example], multiple: int) -> None:
    batch = collated(chosen, multiple)
    assert [read_by(batch, i) for i in range(len(chosen))] == [list(example.documents) for example in chosen]
    for row, example in zip(batch.candidates.tolist(), chosen, strict=True):
        assert set(row[len(example.documents) :]) <= {-1}


@given(batches_of_examples, multiples)
def test_slots_of_an_example_read_its_own_candidates(chosen: list[Example], multiple: int) -> None:
    batch = collated(chosen, multiple)
    candidates = batch.candidates.reshape(-1).tolist()
    for i, (row, example) in enumerate(zip(np.array(slot_index(batch.tokens, FIRST)), chosen, strict=True)):
        taken = row[row >= 0].reshape(-1, COUNT)
        np.testing.assert_array_equal(taken % COUNT, np.tile(np.arange(COUNT), (len(example.documents), 1)))
        read = [candidates[place] for place in taken[:, 0] // COUNT]
        assert read == batch.candidates[i].tolist()[: len(example.documents)]


@given(batches_of_examples, st.integers(3, 9))
def test_slots_of_a_choosing_example_read_its_own_choices(chosen: list[Example], top_k: int) -> None:
    batch = collate(chosen, LAYOUT, mx.random.key(0), 8, top_k)
    for i, row in enumerate(np.array(slot_index(batch.tokens, FIRST))):
        own = (np.array(chosen[i].tokens) >= FIRST).sum()
        assert row[row >= 0].tolist() == list(range(i * top_k * COUNT, i * top_k * COUNT + own))


@given(batches_of_examples, multiples)
def test_a_document_is_in_the_batch_once(chosen: list[Example], multiple: int) -> None:
    batch = collated([*chosen, *chosen[::-1]], multiple)
    lengths = batch.documents.lengths.tolist()
    rows = [tuple(row[:length]) for row, length in zip(batch.documents.tokens.tolist(), lengths, strict=True)]
    real = [row for row in rows if row]
    assert sorted(real) == sorted({document for example in chosen for document in example.documents})
    assert rows == [*real, *[()] * (len(rows) - len(real))]


@given(batches_of_examples, multiples)
def test_numbers_of_documents_and_candidates_have_few_shapes(chosen: list[Example], multiple: int) -> None:
    batch = collated(chosen, multiple)
    distinct = len({document for example in chosen for document in example.documents})
    most = max(len(example.documents) for example in chosen)
    assert batch.documents.lengths.shape == (-(-distinct // len(chosen)) * len(chosen),)
    assert batch.candidates.shape == (len(chosen), 1 if most == 1 else -(-most // CANDIDATE_MULTIPLE) * 5)


@given(batches_of_examples, multiples)
def test_questions_and_positives_come_along_where_something_is_chosen(chosen: list[Example], multiple: int) -> None:
    batch = collate(chosen, LAYOUT, mx.random.key(0), multiple, top_k=3)
    questions, positives, in_batch = batch.retrieval
    assert in_batch is None, "no table, no choice among all documents"
    pairs = zip(questions.tokens.tolist(), questions.lengths.tolist(), strict=True)
    assert [tuple(row[:length]) for row, length in pairs] == [example.question for example in chosen]
    assert questions.tokens.shape[1] % multiple == 0
    assert questions.lengths.max().item() + COUNT <= questions.tokens.shape[1]
    assert positives.shape == batch.candidates.shape
    assert [set(np.nonzero(row)[0].tolist()) for row in np.array(positives)] == [set(e.positives) for e in chosen]


def test_without_a_choice_there_is_no_retrieval() -> None:
    assert collated([tiny_example(0, top_k=1)], 8).retrieval is None


@given(batches_of_examples)
def test_memories_stand_in_place_of_the_documents_they_were_made_from(chosen: list[Example]) -> None:
    def memory(documents: Sequence[Tokens]) -> mx.array:
        return mx.array([[[float(sum(document))] * 2] * COUNT for document in documents])

    plain = collated(chosen, 8)
    batch = collate(chosen, LAYOUT, mx.random.key(0), 8, memory=memory)
    sums = plain.documents.tokens.sum(axis=-1)
    assert_same(batch.documents, mx.broadcast_to(sums[:, None, None].astype(mx.float32), (sums.size, COUNT, 2)))
    assert_same(batch[1:7], plain[1:7])


def choice_among(*chosen: Example, of: Sequence[Example] = ()) -> list[list[set[int]]]:
    """Return for each example which rows of the table of all (of: of others before them, too) are right and there."""
    table = document_table([*of, *chosen], LAYOUT)
    batch = collate(chosen, LAYOUT, mx.random.key(0), 8, top_k=3, table=table)
    assert batch.retrieval.in_batch.mask.shape == (len(chosen), batch.document_rows)
    return [[set(np.nonzero(row)[0].tolist()) for row in np.array(each)] for each in batch.retrieval.in_batch]


def asking(question: int, documents: Sequence[int], *positives: int) -> Example:
    """Return an example whose question and documents are one number each."""
    return Example("asking", tuple((number,) for number in documents), (1,), (FIXED,), (question,), positives)


def test_all_documents_of_a_table_but_fillers_are_chosen_among() -> None:
    first, second, other = asking(7, [10, 11], 1), asking(8, [11, 12, 13], 2), asking(9, [14])
    assert choice_among(first, second) == [[{1}, {3}], [{0, 1, 2, 3}] * 2]
    assert choice_among(first, second, other) == [[{1}, {3}, set()], [{0, 1, 2, 3, 4}] * 3]
    assert choice_among(second, of=[first, other]) == [[{4}], [{0, 1, 2, 3, 4}]]
    assert document_table([first, second, other], LAYOUT).height == 6, "one row is a filler"


def test_what_answers_a_question_elsewhere_is_never_its_negative() -> None:
    # A document twice among the candidates, and the same question twice, each time with another right document.
    first, other, last = asking(7, [10, 10, 11], 0), asking(8, [12, 13, 14]), asking(7, [11, 12, 13], 0, 1, 2)
    assert choice_among(first, other, last) == [[{0}, set(), {1, 2, 3}], [{0, 4}, {0, 1, 2, 3, 4}, {1, 2, 3, 4}]]
    assert choice_among(last, of=[first, other]) == [[{1, 2, 3}], [{1, 2, 3, 4}]]


@given(
    st.lists(examples(fewest_documents=1), min_size=1, max_size=5), st.lists(st.integers(0, 2), min_size=5), st.data()
)
def test_a_choice_among_a_table_equals_a_loop(chosen: list[Example], asked: list[int], data: st.DataObject) -> None:
    chosen = [example._replace(question=(number,)) for example, number in zip(chosen, asked, strict=False)]
    first = data.draw(st.integers(0, len(chosen) - 1))
    rows = list(dict.fromkeys(document for example in chosen for document in example.documents))
    found = choice_among(*chosen[first:], of=chosen[:first])
    for right, mask, example in zip(*found, chosen[first:], strict=True):
        own = {example.documents[place] for place in example.positives}
        known = {e.documents[place] for e in chosen if e.question == example.question for place in e.positives}
        assert {rows[i] for i in right} == own
        assert {rows[i] for i in mask} == own | (set(rows) - known)


@given(batches_of_examples, st.data())
def test_a_part_of_a_batch_has_the_documents_of_its_table(chosen: list[Example], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(chosen) - 1))
    table, part = document_table(chosen, LAYOUT, 8), chosen[first:]
    batch = collate(part, LAYOUT, mx.random.key(0), 8, top_k=3, table=table)
    plain = collate(part, LAYOUT, mx.random.key(0), 8, top_k=3)
    assert_same(batch.documents, collated(chosen, 8).documents)
    tokens, lengths = (each.tolist() for each in batch.documents)
    for row, example in zip(batch.candidates.tolist(), part, strict=True):
        assert [tuple(tokens[i][: lengths[i]]) for i in row if i >= 0] == list(example.documents)
    assert_same(batch[2:7], plain[2:7])
    assert_same(batch.retrieval[:2], plain.retrieval[:2])


@given(batches_of_examples, multiples)
def test_every_document_has_room_for_its_memory(chosen: list[Example], multiple: int) -> None:
    documents = collated(chosen, multiple).documents
    assert documents.lengths.max().item() + COUNT <= documents.tokens.shape[1]


@given(batches_of_examples, multiples)
def test_every_length_is_the_next_multiple(chosen: list[Example], multiple: int) -> None:
    batch = collated(chosen, multiple)
    longest = [
        max(len(document) for example in chosen for document in example.documents) + COUNT,
        max(len(example.tokens) for example in chosen),
        max(max(len(tokens_of_role(example, ANSWER)) for example in chosen), 1),
    ]
    widths = [batch.documents.tokens.shape[1], batch.tokens.shape[1], batch.targets.shape[1]]
    assert widths == [-(-length // multiple) * multiple for length in longest]


@given(batches_of_examples, multiples)
def test_a_multiple_adds_padding_and_nothing_else(chosen: list[Example], multiple: int) -> None:
    tight, wide = collated(chosen, 1), collated(chosen, multiple)
    assert wide.documents.lengths.tolist() == tight.documents.lengths.tolist()
    assert_same(wide.candidates, tight.candidates)
    arrays = [(tight.documents.tokens, wide.documents.tokens), *zip(tight[2:6], wide[2:6], strict=True)]
    for small, large in arrays:
        height, width = small.shape
        np.testing.assert_array_equal(np.array(large)[:, :width], np.array(small))
        assert large.shape[0] == height
        assert not np.array(large)[:, width:].any()


def test_index_arrays_are_int32_and_masks_bool() -> None:
    asked = tiny_example(0, top_k=1)
    batch = tiny_batch(asked, top_k=1, table=document_table([asked], LAYOUT))
    questions, positives, in_batch = batch.retrieval
    arrays = [*batch.documents, batch.candidates, batch.tokens, batch.target_index, batch.targets, *questions]
    assert {array.dtype for array in arrays} == {mx.int32}
    assert {positives.dtype, batch.target_mask.dtype, *(each.dtype for each in in_batch)} == {mx.bool_}


def test_the_key_goes_with_the_batch() -> None:
    key = mx.random.key(77)
    assert collate([Example("one", ((5,),), (1, 9), (FIXED, ANSWER))], LAYOUT, key).key is key


limits = st.integers(1, 40)


@given(examples(), limits)
def test_truncate_drops_input_tokens_only_and_the_earliest_first(example: Example, limit: int) -> None:
    fixed = [(t, r) for t, r in zip(example.tokens, example.roles, strict=True) if r != INPUT]
    assume(len(fixed) <= limit)
    cut = truncate(example, limit)
    inputs = tokens_of_role(example, INPUT)
    assert [(t, r) for t, r in zip(cut.tokens, cut.roles, strict=True) if r != INPUT] == fixed
    assert tokens_of_role(cut, INPUT) == inputs[len(inputs) - (min(limit, len(example.tokens)) - len(fixed)) :]


@given(examples(), limits)
def test_truncate_keeps_what_stays_in_its_order(example: Example, limit: int) -> None:
    numbered = example._replace(tokens=tuple(range(len(example.tokens))))
    assume(len(example.tokens) - example.roles.count(INPUT) <= limit)
    cut = truncate(numbered, limit)
    assert list(cut.tokens) == sorted(cut.tokens)
    assert [example.roles[i] for i in cut.tokens] == list(cut.roles)


@given(examples())
def test_truncate_leaves_an_example_that_fits_as_it_is(example: Example) -> None:
    assert truncate(example, len(example.tokens)) == example


@given(examples())
def test_truncate_may_drop_every_input_token(example: Example) -> None:
    bare = [(t, r) for t, r in zip(example.tokens, example.roles, strict=True) if r != INPUT]
    cut = truncate(example, len(bare))
    assert list(zip(cut.tokens, cut.roles, strict=True)) == bare


@given(examples(), limits)
def test_truncate_fails_by_name_where_no_input_is_left_to_drop(example: Example, limit: int) -> None:
    kept = len(example.tokens) - example.roles.count(INPUT)
    assume(kept > limit)
    with pytest.raises(ValueError, match=f"record 17: .* take {kept} tokens.*max_tokens {limit};"):
        truncate(example._replace(name="record 17"), limit)


@given(st.lists(ordinary, max_size=9), st.integers(1, 9))
def test_frame_document_cuts_the_text_and_never_the_frame(ids: list[int], limit: int) -> None:
    assert frame_document(ids, LAYOUT, limit) == (LAYOUT.enc_id, 1, *ids[:limit], 2)


def test_document_slot_ids_count_on_from_document_to_document() -> None:
    assert document_slot_ids(0, LAYOUT) == (FIRST, FIRST + 1, FIRST + 2, FIRST + 3, LAYOUT.sep_id)
    assert document_slot_ids(2, LAYOUT) == (FIRST + 8, FIRST + 9, FIRST + 10, FIRST + 11, LAYOUT.sep_id)


def test_pad_fills_with_zeros_to_the_right_and_below() -> None:
    assert pad([[1, 2], [], [3]], 4, 3).tolist() == [[1, 2, 0], [0, 0, 0], [3, 0, 0], [0, 0, 0]]


def test_a_document_cut_after_framing_loses_its_suffix_and_no_other() -> None:
    late = msgspec.structs.replace(LAYOUT, cuts_suffix=True)
    assert frame_document(range(10, 15), late, 5) == (LAYOUT.enc_id, 1, *range(10, 15), 2)
    assert frame_document(range(10, 16), late, 5) == (LAYOUT.enc_id, 1, *range(10, 16))
    assert frame_document(range(10, 30), late, 5) == (LAYOUT.enc_id, 1, *range(10, 16))


def test_a_batch_without_documents_has_no_row_of_them() -> None:
    batch = tiny_batch(tiny_example(0, documents=()), tiny_example(1, documents=()))
    assert batch.document_rows == 0 and batch.documents.lengths.dtype == mx.int32
    assert tiny_batch(tiny_example(0, documents=()), tiny_example(1)).document_rows == 2
    assert batch.candidates.tolist() == [[-1], [-1]]
    assert (batch.tokens < LAYOUT.first_slot).all().item()


def test_an_example_that_only_chooses_has_neither_prompt_nor_answer() -> None:
    bare = tiny_example(0, (4, 5), top_k=2, positives=(1,))._replace(tokens=(), roles=())
    batch = tiny_batch(bare, top_k=2)
    assert not batch.target_mask.any().item()
    assert not batch.tokens.any().item()
    assert batch.retrieval.positives.tolist() == [[False, True, False, False, False]]


def test_an_answer_with_nothing_before_it_is_refused_by_name() -> None:
    headless = tiny_example(0)._replace(name="line 3", tokens=(4, 5), roles=(ANSWER, ANSWER))
    with pytest.raises(ValueError, match="line 3"):
        collate([headless], tiny_layout(), mx.random.key(0))


def test_lengths_are_padded_to_the_widths_that_are_given() -> None:
    examples = [tiny_example(i, (9, 4), 3 + i) for i in range(3)]
    plain = collate(examples, tiny_layout(), mx.random.key(0), 4)
    widths = Widths((48,), (64, 80), (12, 33))
    batch = collate(examples, tiny_layout(), mx.random.key(0), 4, widths=widths)
    assert isinstance(batch.documents, Documents) and batch.documents.tokens.shape[1] == 48
    assert (batch.tokens.shape[1], batch.targets.shape[1]) == (64, 12)
    assert_same(batch.tokens[:, : plain.tokens.shape[1]], plain.tokens)
    assert_same(batch.target_mask[:, : plain.target_mask.shape[1]], plain.target_mask)


SAME = (tiny_layout(), mx.random.key(0), 4)


def test_a_teachers_rows_have_the_answers_of_the_batch_at_places_of_their_own() -> None:
    examples = [as_text(tiny_example(i, (9, 4), 3 + i)) for i in range(3)]
    examples[1] = examples[1]._replace(taught=((), ()))
    batch = collate(examples, tiny_layout(), mx.random.key(0), 4, widths=Widths(taught=(24, 40)))
    assert batch.teacher is not None and batch.teacher.tokens.shape == (3, 40)
    for i, example in enumerate(examples):
        tokens, roles = example.taught or ((), ())
        assert batch.teacher.tokens[i].tolist() == [*tokens, *[0] * (40 - len(tokens))]
        kept = batch.teacher.mask[i].tolist()
        assert kept == (batch.target_mask[i].tolist() if tokens else [False] * len(kept))
        places = [place for place, keep in zip(batch.teacher.target_index[i].tolist(), kept, strict=True) if keep]
        wanted = batch.targets[i].tolist()[: len(places)]
        assert [tokens[place + 1] for place in places] == wanted and all(roles[p + 1] == ANSWER for p in places)
    assert_same(batch[:7], collate([e._replace(taught=None) for e in examples], *SAME)[:7])


def test_a_batch_that_a_teacher_says_nothing_of_has_its_rows_and_others_have_none() -> None:
    silent = tiny_example(0)._replace(taught=((), ()))
    batch = collate([silent], *SAME)
    assert batch.teacher is not None and batch.teacher.tokens.shape == (1, 4) and not batch.teacher.mask.any().item()
    assert collate([tiny_example(0)], *SAME).teacher is None
