"""Start values, those of a run that goes on at another compression rate or with other anchors among them."""

from __future__ import annotations

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from tiny import (
    DOCUMENT_TOKENS,
    HIDDEN,
    MEMORY_TOKENS,
    as_numpy,
    assert_close,
    assert_same,
    tiny_base,
    tiny_config,
    tiny_params,
)

from clara.core.collate import pad_documents
from clara.core.compress import compress
from clara.core.init import add_pooling, init_params, resample_memory
from clara.core.types import Params

MAPPED = tiny_config(anchored=True, anchor_pooling="mapped")
PLACES = MAPPED.memory.anchor_places


def at_rate(rate: int) -> Params:
    """Return tiny parameters of mapped anchors for another compression rate."""
    params = tiny_params(tiny_base(), MAPPED)
    return resample_memory(params, msgspec.structs.replace(MAPPED.memory, compression_rate=rate))


def test_the_same_rate_leaves_everything_as_it_is() -> None:
    assert_same(at_rate(MAPPED.memory.compression_rate), tiny_params(tiny_base(), MAPPED))


def test_half_as_many_vectors_are_means_of_two_and_their_places_share_a_map() -> None:
    before, after = tiny_params(tiny_base(), MAPPED), at_rate(2 * DOCUMENT_TOKENS // MEMORY_TOKENS)
    pairs = as_numpy(before["memory_embeddings"]).reshape(MEMORY_TOKENS // 2, 2, -1)
    np.testing.assert_allclose(as_numpy(after["memory_embeddings"]), pairs.mean(axis=1), atol=1e-6)
    twice = [*(place // 2 for place in range(2 * PLACES)), PLACES]
    for name in ("anchor_map_a", "anchor_map_b"):
        np.testing.assert_array_equal(as_numpy(after[name]), as_numpy(before[name])[twice])
    assert_same(after["adapters"], before["adapters"])
    assert_same(after["anchor_query"], before["anchor_query"])


@pytest.mark.parametrize("rate", [1, 2])
def test_more_vectors_are_copies_and_the_last_map_stays_that_of_the_state(rate: int) -> None:
    before, after = tiny_params(tiny_base(), MAPPED), at_rate(rate)
    count = DOCUMENT_TOKENS // rate
    copied = as_numpy(before["memory_embeddings"])[[j * MEMORY_TOKENS // count for j in range(count)]]
    np.testing.assert_allclose(as_numpy(after["memory_embeddings"]), copied, atol=1e-6)
    fewer = [*(place * PLACES // rate for place in range(rate)), PLACES]
    np.testing.assert_array_equal(as_numpy(after["anchor_map_b"]), as_numpy(before["anchor_map_b"])[fewer])


def test_what_anchors_are_pooled_by_is_added_and_changes_nothing() -> None:
    base, mean = tiny_base(), tiny_config(anchored=True)
    params, layout = tiny_params(base, mean), base.layout
    given = pad_documents([(*layout.prefix, *range(3, 15), *layout.suffix)], layout, 2, 8)
    more = add_pooling(params, MAPPED.memory, 3)
    assert more.keys() - params.keys() == {"anchor_query", "anchor_map_a", "anchor_map_b"}
    assert_close(compress(base, MAPPED, more, given).memory, compress(base, mean, params, given).memory, 1e-6)
    assert_same(add_pooling(more, MAPPED.memory, 4), more)
    assert_same(add_pooling(params, mean.memory, 3), params)


def test_maps_begin_alike_in_a_new_run_and_in_one_that_goes_on_and_are_drawn_by_a_key_of_their_own() -> None:
    base = tiny_base()
    new, mean = (init_params(base, config, seed=3) for config in (MAPPED, tiny_config(anchored=True)))
    assert_same(add_pooling(mean, MAPPED.memory, 3), new)
    drawn, key = new["anchor_map_a"], mx.random.key(3)
    for used in (key, *mx.random.split(key, 3)):
        other = mx.random.uniform(-(HIDDEN**-0.5), HIDDEN**-0.5, drawn.shape, key=used)
        assert mx.abs(drawn - other).max().item() > 0.01, "that key draws other leaves"
