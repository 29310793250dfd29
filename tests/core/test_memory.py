"""Memory vectors get into embeddings and out of hidden states where a plain loop over rows says they should."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import as_numpy, assert_same, difference, normal

from clara.core.memory import (
    AnchorMaps,
    anchor_memory,
    anchors,
    document_chunks,
    document_slots,
    learned_anchors,
    mapped_anchors,
    masked_mean,
    other_documents,
    place_memory,
    read_memory,
    slot_index,
)

seeds, dims = st.integers(0, 2**31), st.integers(1, 9)
lengths_lists = st.lists(st.integers(0, 12), min_size=1, max_size=5)
memory_tokens = st.integers(1, 5)


@st.composite
def slotted(draw: st.DrawFn) -> tuple[mx.array, mx.array, np.ndarray]:
    """Draws embeddings, memory, and slots that take each memory row exactly once, in any order and any row."""
    rng = np.random.default_rng(draw(seeds))
    batch, length, dim = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(dims)
    rows = draw(st.integers(1, batch * length))
    slots = np.full(batch * length, -1)
    slots[rng.permutation(batch * length)[:rows]] = rng.permutation(rows)
    return normal(rng, batch, length, dim), normal(rng, rows, dim), slots.reshape(batch, length)


@given(slotted())
def test_place_memory_changes_slots_only(case: tuple[mx.array, mx.array, np.ndarray]) -> None:
    embeddings, memory, slots = case
    placed = as_numpy(place_memory(embeddings, memory, mx.array(slots)))
    np.testing.assert_array_equal(placed[slots < 0], as_numpy(embeddings)[slots < 0])


@given(slotted())
def test_placed_memory_is_read_back_from_its_slots(case: tuple[mx.array, mx.array, np.ndarray]) -> None:
    embeddings, memory, slots = case
    placed = as_numpy(place_memory(embeddings, memory, mx.array(slots)))
    order = np.argsort(slots[slots >= 0])
    np.testing.assert_array_equal(placed[slots >= 0][order], as_numpy(memory))


def test_place_memory_flattens_any_leading_axes() -> None:
    rng = np.random.default_rng(0)
    memory, embeddings = normal(rng, 2, 3, 2, 4), normal(rng, 1, 12, 4)
    assert_same(place_memory(embeddings, memory, mx.arange(12)[None]), memory.reshape(1, 12, 4))


def test_place_memory_keeps_the_dtype_of_the_embeddings() -> None:
    embeddings = mx.zeros((1, 2, 4), dtype=mx.bfloat16)
    assert place_memory(embeddings, mx.ones((1, 4)), mx.array([[0, -1]])).dtype == mx.bfloat16


def test_place_memory_passes_gradients_to_the_slots_and_past_them() -> None:
    rng = np.random.default_rng(0)
    embeddings, memory, upstream = normal(rng, 2, 3, 4), normal(rng, 2, 4), normal(rng, 2, 3, 4)
    slots = mx.array([[-1, 1, -1], [0, -1, 1]])

    def total(embeddings: mx.array, memory: mx.array) -> mx.array:
        return (place_memory(embeddings, memory, slots) * upstream).sum()

    to_embeddings, to_memory = mx.grad(total, argnums=(0, 1))(embeddings, memory)
    assert difference(to_embeddings, mx.where(slots[..., None] < 0, upstream, 0)) == 0
    assert difference(to_memory, mx.stack([upstream[1, 0], upstream[0, 1] + upstream[1, 2]])) <= 1e-6


def test_a_slot_hides_even_an_infinite_embedding_from_value_and_gradient() -> None:
    embeddings, memory = mx.full((1, 2, 3), mx.inf), mx.ones((2, 3))

    def total(memory: mx.array) -> mx.array:
        return mx.square(place_memory(embeddings, memory, mx.array([[0, 1]]))).sum()

    value, grad = mx.value_and_grad(total)(memory)
    assert value.item() == 6.0
    assert_same(grad, mx.full((2, 3), 2.0))


@given(lengths_lists, memory_tokens, st.integers(0, 4))
def test_document_slots_equal_a_loop(lengths: list[int], count: int, spare: int) -> None:
    width = max(lengths) + count + spare
    expected = np.full((len(lengths), width), -1)
    for n, length in enumerate(lengths):
        for j in range(count):
            expected[n, length + j] = j
    np.testing.assert_array_equal(np.array(document_slots(mx.array(lengths), count, width)), expected)


@given(lengths_lists, memory_tokens, st.integers(0, 4), dims, seeds)
def test_read_memory_equals_a_loop(lengths: list[int], count: int, spare: int, dim: int, seed: int) -> None:
    hidden = normal(np.random.default_rng(seed), len(lengths), max(lengths) + count + spare, dim)
    numbers = np.array(hidden)
    expected = [[numbers[n, length + j] for j in range(count)] for n, length in enumerate(lengths)]
    np.testing.assert_array_equal(np.array(read_memory(hidden, mx.array(lengths), count)), np.array(expected))


@given(lengths_lists, memory_tokens, dims, seeds)
def test_memory_is_read_where_document_slots_put_it(lengths: list[int], count: int, dim: int, seed: int) -> None:
    rng, width = np.random.default_rng(seed), max(lengths) + count
    inputs, where = normal(rng, count, dim), mx.array(lengths)
    placed = place_memory(normal(rng, len(lengths), width, dim), inputs, document_slots(where, count, width))
    assert_same(read_memory(placed, where, count), mx.broadcast_to(inputs, (len(lengths), count, dim)))


@given(st.integers(1, 4), st.integers(1, 7), dims, st.floats(0, 1), seeds)
def test_masked_mean_equals_a_loop(rows: int, length: int, dim: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, mask = normal(rng, rows, length, dim), rng.random((rows, length)) < share
    expected = [as_numpy(values)[n][mask[n]].mean(axis=0) if mask[n].any() else np.zeros(dim) for n in range(rows)]
    np.testing.assert_allclose(as_numpy(masked_mean(values, mx.array(mask))), expected, atol=1e-5)


def test_masked_mean_of_nothing_is_zero_with_a_zero_gradient() -> None:
    mask = mx.array([[False, False], [True, False]])
    value, grad = mx.value_and_grad(lambda x: masked_mean(x, mask).sum())(mx.ones((2, 2, 3)))
    assert value.item() == 3.0
    assert_same(grad, mx.array([[[0.0] * 3, [0.0] * 3], [[1.0] * 3, [0.0] * 3]]))


def test_masked_mean_does_not_see_what_is_masked() -> None:
    values = mx.array([[[1.0], [mx.inf]]])
    assert masked_mean(values, mx.array([[True, False]])).item() == 1.0


def test_masked_mean_of_bfloat16_is_summed_in_float32() -> None:
    values = mx.ones((1, 1000, 1), dtype=mx.bfloat16)
    mean = masked_mean(values, mx.ones((1, 1000), dtype=mx.bool_))
    assert (mean.dtype, mean.item()) == (mx.float32, 1.0)


def naive_anchors(embeddings: np.ndarray, start: list[int], count: list[int], memory: int) -> np.ndarray:
    """Return the mean of each chunk, one document and one memory token at a time."""
    out = np.zeros((len(count), memory, embeddings.shape[-1]))
    for n, tokens in enumerate(count):
        for j in range(memory if tokens else 0):
            first = j * tokens // memory
            last = max((j + 1) * tokens // memory, first + 1)
            out[n, j] = np.mean([embeddings[n, start[n] + i] for i in range(first, last)], axis=0)
    return out


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 13)), min_size=1, max_size=4), st.integers(1, 6), seeds)
def test_anchors_equal_a_loop(documents: list[tuple[int, int]], memory: int, seed: int) -> None:
    start, count = [s for s, _ in documents], [c for _, c in documents]
    embeddings = normal(np.random.default_rng(seed), len(documents), max(s + c for s, c in documents) + 2, 5)
    own = anchors(embeddings, document_chunks(mx.array(start), mx.array(count), memory, embeddings.shape[1]))
    np.testing.assert_allclose(as_numpy(own), naive_anchors(as_numpy(embeddings), start, count, memory), atol=1e-5)


@given(st.integers(1, 5), st.integers(1, 6), seeds)
def test_equal_anchor_chunks_average_to_the_mean_of_the_document(memory: int, chunk: int, seed: int) -> None:
    embeddings = normal(np.random.default_rng(seed), 1, memory * chunk, 3)
    own = anchors(embeddings, document_chunks(mx.array([0]), mx.array([memory * chunk]), memory, memory * chunk))
    np.testing.assert_allclose(as_numpy(own.mean(axis=1)), as_numpy(embeddings.mean(axis=1)), atol=1e-5)


def test_anchors_of_a_document_shorter_than_its_memory_repeat_its_tokens() -> None:
    embeddings = mx.arange(3, dtype=mx.float32)[None, :, None]
    own = anchors(embeddings, document_chunks(mx.array([1]), mx.array([2]), 5, 3))
    assert own.reshape(-1).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0]


def test_anchors_of_an_empty_document_are_zero() -> None:
    chunks = document_chunks(mx.array([2]), mx.array([0]), 3, 4)
    assert_same(anchors(mx.ones((1, 4, 2)), chunks), mx.zeros((1, 3, 2)))
    assert not chunks.inside.any().item() and chunks.size.tolist() == [[0, 0, 0]]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=4), st.integers(1, 20))
def test_chunks_are_as_large_as_they_say_and_differ_by_one_at_most(count: list[int], memory: int) -> None:
    chunks = document_chunks(mx.full((len(count),), 2), mx.array(count), memory, 304)
    assert_same(chunks.inside.sum(axis=-1).astype(mx.int32), chunks.size.astype(mx.int32))
    assert (chunks.size.max(axis=1) - chunks.size.min(axis=1)).max().item() <= 1


PLACES = [(0, 7), (2, 2), (1, 0), (3, 6)]
"""(start, count) of four texts: more tokens than chunks, fewer, none, and two in each of three."""


def naive_anchors_by_weight(
    embeddings: np.ndarray, hidden: np.ndarray, query: np.ndarray, memory: int, maps: list[np.ndarray] | None = None
) -> np.ndarray:
    """Return the pooled embeddings of the texts at PLACES, one chunk at a time; maps: a matrix for each place in it."""
    out = np.zeros((len(PLACES), memory, embeddings.shape[-1]))
    for n, (start, count) in enumerate(PLACES):
        for j in range(memory if count else 0):
            first = j * count // memory
            chunk = slice(start + first, start + max((j + 1) * count // memory, first + 1))
            weights = np.exp(hidden[n, chunk] @ query)
            given = embeddings[n, chunk]
            if maps is not None:
                given = np.stack([row @ maps[place] if place < len(maps) else row for place, row in enumerate(given)])
            out[n, j] = weights @ given / weights.sum()
    return out


def pooled(embeddings: mx.array, hidden: mx.array, query: mx.array, memory: int = 3) -> mx.array:
    """Return the learned anchors of the texts at PLACES."""
    start, count = (mx.array(each) for each in zip(*PLACES, strict=True))
    return learned_anchors(embeddings, hidden, query, document_chunks(start, count, memory, embeddings.shape[1]))


def pooling_case(seed: int, dim: int = 4) -> tuple[mx.array, mx.array, mx.array]:
    """Return embeddings, hidden states and a query for the texts at PLACES, the last of which ends with its row."""
    rng = np.random.default_rng(seed)
    return normal(rng, len(PLACES), 9, dim), normal(rng, len(PLACES), 9, dim), normal(rng, dim)


@given(st.integers(1, 6), seeds)
def test_learned_anchors_equal_a_loop(memory: int, seed: int) -> None:
    case = pooling_case(seed)
    expected = naive_anchors_by_weight(*map(as_numpy, case), memory)
    np.testing.assert_allclose(as_numpy(pooled(*case, memory)), expected, atol=1e-5)


@given(st.integers(1, 6), seeds)
def test_learned_anchors_start_as_the_mean(memory: int, seed: int) -> None:
    embeddings, hidden, query = pooling_case(seed)
    start, count = ([pair[i] for pair in PLACES] for i in (0, 1))
    mean = naive_anchors(as_numpy(embeddings), start, count, memory)
    np.testing.assert_allclose(as_numpy(pooled(embeddings, hidden, 0 * query, memory)), mean, atol=1e-6)


def test_the_gradient_of_learned_anchors_is_that_of_finite_differences() -> None:
    embeddings, hidden, query = case = pooling_case(1)
    upstream = normal(np.random.default_rng(2), len(PLACES), 3, 4)
    grads = mx.grad(lambda h, u: (pooled(embeddings, h, u) * upstream).sum(), argnums=(0, 1))(hidden, query)
    plain = [as_numpy(each) for each in case]

    def total(hidden: np.ndarray, query: np.ndarray) -> float:
        return float((naive_anchors_by_weight(plain[0], hidden, query, 3) * as_numpy(upstream)).sum())

    for place, grad in enumerate(grads):
        expected = np.zeros(grad.shape)
        for at in np.ndindex(*grad.shape):
            up, down = ([each.copy() if i == place else each for i, each in enumerate(plain[1:])] for _ in range(2))
            up[place][at] += 1e-5
            down[place][at] -= 1e-5
            expected[at] = (total(*up) - total(*down)) / 2e-5
        np.testing.assert_allclose(as_numpy(grad), expected, atol=1e-4)


def test_learned_anchors_of_bfloat16_and_of_large_scores_are_finite_float32() -> None:
    embeddings, hidden, query = (each.astype(mx.bfloat16) for each in pooling_case(3))
    own, grad = mx.value_and_grad(lambda u: pooled(embeddings, 1000 * hidden, u).sum())(query.astype(mx.float32))
    assert mx.isfinite(own).item() and mx.isfinite(grad).all().item()
    assert pooled(embeddings, hidden, query).dtype == mx.float32


def anchor_maps(rng: np.random.Generator, places: int, dim: int, rank: int = 2) -> AnchorMaps:
    """Return random maps for the places of a chunk, and for the state."""
    return AnchorMaps(normal(rng, places + 1, dim, rank), normal(rng, places + 1, rank, dim))


def mapped(case: tuple[mx.array, mx.array, mx.array], maps: AnchorMaps, memory: int) -> mx.array:
    """Return the mapped anchors of the texts at PLACES."""
    start, count = (mx.array(each) for each in zip(*PLACES, strict=True))
    return mapped_anchors(*case, maps, document_chunks(start, count, memory, case[0].shape[1]))


@given(st.integers(1, 6), st.integers(-2, 2), seeds)
def test_mapped_anchors_equal_a_loop(memory: int, spare: int, seed: int) -> None:
    case, places = pooling_case(seed), max(-(-7 // memory) + spare, 1)
    maps = anchor_maps(np.random.default_rng(seed + 1), places, 4)
    whole = [np.eye(4) + as_numpy(a) @ as_numpy(b) for a, b in zip(maps.a, maps.b, strict=True)]
    expected = naive_anchors_by_weight(*map(as_numpy, case), memory, whole[:places])
    np.testing.assert_allclose(as_numpy(mapped(case, maps, memory)), expected, atol=1e-4)


@given(st.integers(1, 6), st.integers(-3, 3), seeds)
def test_maps_of_zeros_give_learned_anchors(memory: int, spare: int, seed: int) -> None:
    case = pooling_case(seed)
    maps = anchor_maps(np.random.default_rng(seed), max(-(-7 // memory) + spare, 1), 4)
    start = maps._replace(b=0 * maps.b)
    assert difference(mapped(case, start, memory), pooled(*case, memory)) <= 1e-5


def test_mapped_anchors_tell_the_order_of_tokens_and_learned_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    embeddings, chunks = normal(rng, 1, 3, 4), document_chunks(mx.array([0]), mx.array([3]), 1, 3)
    turned, flat = embeddings[:, ::-1], mx.zeros((1, 3, 4))
    query, maps = mx.zeros((4,)), anchor_maps(rng, 3, 4)
    assert (
        difference(learned_anchors(turned, flat, query, chunks), learned_anchors(embeddings, flat, query, chunks))
        < 1e-6
    )
    own = [mapped_anchors(each, flat, query, maps, chunks) for each in (embeddings, turned)]
    assert difference(*own) > 0.1


def test_mapped_anchors_of_bfloat16_and_of_large_scores_are_finite_float32() -> None:
    embeddings, hidden, query = (each.astype(mx.bfloat16) for each in pooling_case(3))
    maps = anchor_maps(np.random.default_rng(3), 3, 4)

    def total(query: mx.array, maps: AnchorMaps) -> mx.array:
        return mapped((embeddings, 1000 * hidden, query), maps, 3).sum()

    own, grads = mx.value_and_grad(total, argnums=(0, 1))(query.astype(mx.float32), maps)
    assert mx.isfinite(own).item()
    assert all(mx.isfinite(grad).all().item() for grad in (grads[0], *grads[1]))
    assert mapped((embeddings, hidden, query), maps, 3).dtype == mx.float32


@given(st.integers(1, 3), st.integers(1, 4), dims, seeds)
def test_anchor_memory_is_the_formula(rows: int, memory: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    state, anchor, gain = 10 * normal(rng, rows, memory, dim), normal(rng, rows, memory, dim), normal(rng, dim)
    h = as_numpy(state)
    rms = np.sqrt((h**2).mean(axis=-1, keepdims=True) + 1e-6)
    expected = as_numpy(anchor) + as_numpy(gain) * 0.25 * h / rms
    assert difference(anchor_memory(state, anchor, gain, mx.array(0.25)), expected) <= 1e-5
    maps = anchor_maps(rng, 2, dim)
    expected = expected + 0.25 * h / rms @ as_numpy(maps.a[-1]) @ as_numpy(maps.b[-1])
    assert difference(anchor_memory(state, anchor, gain, mx.array(0.25), maps), expected) <= 1e-4


def test_anchor_memory_of_a_zero_state_is_the_anchor_with_a_finite_gradient() -> None:
    anchor = normal(np.random.default_rng(0), 1, 2, 3)

    def total(state: mx.array) -> mx.array:
        return anchor_memory(state, anchor, mx.ones((3,)), mx.array(0.5)).sum()

    assert_same(anchor_memory(mx.zeros((1, 2, 3)), anchor, mx.ones((3,)), mx.array(0.5)), anchor)
    assert mx.isfinite(mx.grad(total)(mx.zeros((1, 2, 3)))).all().item()


def test_anchor_memory_keeps_the_dtype_of_the_state() -> None:
    state = mx.ones((1, 2, 3), dtype=mx.bfloat16)
    assert anchor_memory(state, state, mx.ones((3,)), mx.array(0.5)).dtype == mx.bfloat16


@pytest.mark.parametrize("dtype", [mx.uint32, mx.int32])
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 50))
def test_slot_index_equals_a_loop(dtype: mx.Dtype, tokens: list[int], first: int) -> None:
    expected = [token - first if token >= first else -1 for token in tokens]
    assert slot_index(mx.array([tokens], dtype=dtype), first).tolist() == [expected]


@st.composite
def candidate_rows(draw: st.DrawFn) -> list[list[int]]:
    """Draws each example's documents, any number of them, none shared."""
    counts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    rows = iter(range(sum(counts)))
    return [[next(rows) for _ in range(count)] for count in counts]


def as_candidates(rows: list[list[int]]) -> mx.array:
    width = max(max(map(len, rows)), 1)
    return mx.array([row + [-1] * (width - len(row)) for row in rows], dtype=mx.int32)


@given(candidate_rows())
def test_other_documents_are_those_of_the_example_before_in_turn(rows: list[list[int]]) -> None:
    others = other_documents(as_candidates(rows))
    width = others.shape[1]
    before = [rows[i - 1] for i in range(len(rows))]
    assert others.tolist() == [[row[j % len(row)] if row else -1 for j in range(width)] for row in before]


@given(candidate_rows())
def test_no_document_is_shown_to_the_example_that_it_belongs_to(rows: list[list[int]]) -> None:
    others = other_documents(as_candidates(rows)).tolist()
    shown = [not set(row) & set(other) - {-1} for row, other in zip(rows, others, strict=True)]
    assert shown == [len(rows) > 1 or not row for row in rows]
