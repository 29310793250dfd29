"""`retrieval` and `end_to_end`: batches are their examples one by one, whatever the candidates' order and number."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map
from tiny import (
    HIDDEN,
    JOINT,
    MEMORY_TOKENS,
    TOP_K,
    as_numpy,
    assert_close,
    assert_same,
    choosing_examples,
    difference,
    tiny_base,
    tiny_batch,
    tiny_config,
    tiny_example,
    tiny_layout,
    tiny_params,
)

from clara.core.bind import hidden_states
from clara.core.collate import Example, document_table
from clara.core.compress import compress
from clara.core.config import LoraConfig, LossConfig, Stage
from clara.core.select import RECALL_AT, ranking_terms, relevance_scores
from clara.core.stages import answer_terms, gather_memory, stage_counts, stage_terms
from clara.core.step import make_eval_step, make_train_step
from clara.core.types import Adapter, Batch, Documents, Params, Term

BASE = tiny_base(num_hidden_layers=1)
EXAMPLES = choosing_examples()
CONFIGS = {
    "retrieval": tiny_config(stage="retrieval"),
    "end_to_end": tiny_config(stage="end_to_end"),
    "both": tiny_config(stage="end_to_end", loss=LossConfig(alignment_weight=0.0, contrastive_weight=0.5)),
    "joint": tiny_config(stage="end_to_end", loss=JOINT, train_compressor=True),
    "anchored": tiny_config(stage="end_to_end", loss=JOINT, train_compressor=True, anchored=True),
    "late": tiny_config(stage="end_to_end", loss=JOINT, train_compressor=True, relevance="late"),
}
FROZEN = ["retrieval", "end_to_end", "both"]
NAMES = {
    "retrieval": {"contrastive"},
    "end_to_end": {"next_token"},
    "both": {"next_token", "contrastive"},
    "joint": {"next_token", "alignment", "contrastive"},
    "anchored": {"next_token", "alignment", "contrastive"},
    "late": {"next_token", "alignment", "contrastive"},
}


def choosing_batch(*examples: Example, multiple: int = 8, **how: Any) -> Batch:
    return tiny_batch(*(examples or EXAMPLES), multiple=multiple, top_k=TOP_K, **how)


@cache
def params_of(name: str) -> Params:
    return tiny_params(BASE, CONFIGS[name])


def run(name: str, batch: Batch, params: Params | None = None) -> tuple[dict[str, Term], Params]:
    """Return the terms of a batch and the gradient of their sums, each by its weight."""
    config = CONFIGS[name]

    def loss(params: Params) -> tuple[mx.array, dict[str, Term]]:
        terms = stage_terms(BASE, config, params, batch)
        return sum((config.loss.weights[n] * total for n, (total, _) in terms.items()), mx.zeros(())), terms

    (_, terms), grads = mx.value_and_grad(loss)(params or params_of(name))
    return terms, grads


@cache
def whole(name: str) -> tuple[dict[str, Term], Params]:
    return run(name, choosing_batch())


def memories_of(name: str) -> Any:
    """Return what gives the memories of framed documents, one at a time."""

    def memories(documents: Any) -> mx.array:
        batches = [tiny_batch(tiny_example(0)._replace(documents=(document,)), multiple=1) for document in documents]
        parts = [compress(BASE, CONFIGS[name], params_of(name), batch.documents).memory for batch in batches]
        return mx.concatenate(parts)

    return memories


def scores_of(name: str, batch: Batch) -> np.ndarray:
    """Return how the candidates of a batch score."""
    config, params = CONFIGS[name], params_of(name)
    memory = gather_memory(compress(BASE, config, params, batch.documents).memory, batch.candidates)
    query = compress(BASE, config, params, batch.retrieval.questions, adapter="reasoner").memory
    return as_numpy(relevance_scores(query, memory, config.retrieval.relevance))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_of_4_6_10_and_20_candidates_is_its_examples_one_by_one(name: str) -> None:
    alone = [run(name, choosing_batch(example, multiple=1)) for example in EXAMPLES]
    assert whole(name)[0].keys() == NAMES[name]
    # Late scores are one large product, which a BLAS rounds by its shape; a temperature of 0.02 magnifies that.
    tolerance = 5e-5 if name == "late" else 1e-5
    assert_close(whole(name), tree_map(lambda *leaves: sum(leaves), *alone), tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name: str) -> None:
    assert_close(run(name, choosing_batch(multiple=64)), whole(name), 1e-5)


def test_candidates_read_their_memories_and_missing_ones_zeros() -> None:
    memory = mx.arange(1, 13, dtype=mx.float32).reshape(3, 2, 2)
    gathered = gather_memory(memory, mx.array([[2, -1], [0, 2]]))
    assert_same(gathered, mx.stack([mx.stack([memory[2], mx.zeros((2, 2))]), mx.stack([memory[0], memory[2]])]))
    assert_same(gather_memory(memory[:0], mx.array([[-1, -1]])), mx.zeros((1, 2, 2, 2)))


def with_candidates(batch: Batch, candidates: mx.array, positives: mx.array) -> Batch:
    return batch._replace(candidates=candidates, retrieval=batch.retrieval._replace(positives=positives))


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=5)
@given(st.integers(0, 2**31))
def test_the_order_of_candidates_changes_nothing(name: str, seed: int) -> None:
    batch, rng = choosing_batch(), np.random.default_rng(seed)
    orders = mx.array(np.stack([rng.permutation(20) for _ in EXAMPLES]))
    rows = [mx.take_along_axis(each, orders, axis=1) for each in (batch.candidates, batch.retrieval.positives)]
    assert_close(run(name, with_candidates(batch, *rows)), whole(name), 1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_further_missing_candidates_change_nothing(name: str) -> None:
    batch = choosing_batch()
    candidates = mx.pad(batch.candidates, [(0, 0), (0, 17)], constant_values=mx.array(-1))
    positives = mx.pad(batch.retrieval.positives, [(0, 0), (0, 17)], constant_values=mx.array(True))
    wide = with_candidates(batch, candidates, positives)
    assert_close(run(name, wide), whole(name), 1e-6)
    assert_same(stage_counts(CONFIGS[name], wide), stage_counts(CONFIGS[name], batch))


@pytest.mark.parametrize("name", FROZEN)
def test_a_batch_of_memories_is_the_batch_of_their_documents(name: str) -> None:
    batch = choosing_batch(memory=memories_of(name))
    assert batch.documents.shape == (40, MEMORY_TOKENS, HIDDEN)
    assert_close(run(name, batch), whole(name), 1e-5)


@pytest.mark.parametrize("name", FROZEN)
def test_missing_candidates_and_rows_of_no_document_have_a_zero_gradient(name: str) -> None:
    config, batch = CONFIGS[name], choosing_batch(memory=memories_of(name))

    def loss(memory: mx.array) -> mx.array:
        terms = stage_terms(BASE, config, params_of(name), batch._replace(documents=memory))
        return sum((total for total, _ in terms.values()), mx.zeros(()))

    grads = mx.grad(loss)(mx.pad(batch.documents, [(0, 8), (0, 0), (0, 0)], constant_values=mx.array(0.3)))
    norms = np.linalg.norm(as_numpy(grads), axis=(1, 2))
    silent = set(range(10, 20)) if name == "retrieval" else set()  # the third question has no positive
    assert set(np.nonzero(norms == 0)[0].tolist()) == {*silent, *range(40, 48)}


def opposite_memories(name: str) -> tuple[Batch, mx.array]:
    """Return a batch whose candidates are as far from their questions as can be, and the questions' memories."""
    batch = choosing_batch()
    query = compress(BASE, CONFIGS[name], params_of(name), batch.retrieval.questions, adapter="reasoner").memory
    owner = [i for i, example in enumerate(EXAMPLES) for _ in example.documents]
    return batch._replace(documents=-query[mx.array(owner)]), query


def test_where_all_scores_are_minus_one_missing_candidates_are_no_better() -> None:
    batch, query = opposite_memories("both")
    terms, grads = run("both", batch)
    placed = mx.repeat(-query[:, None], TOP_K, axis=1)
    expected, _ = answer_terms(BASE, CONFIGS["both"], params_of("both"), batch, placed, None)["next_token"]
    assert terms["next_token"][0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["contrastive"][0].item() == pytest.approx(np.log([4 / 1, 6 / 2, 20 / 5]).sum(), rel=1e-4)
    assert [path for path, leaf in tree_flatten(grads) if not mx.isfinite(leaf).all().item()] == []


def test_an_answer_reads_the_chosen_documents_and_nothing_else() -> None:
    reading, params, batch = tiny_config(stage="instruct"), params_of("end_to_end"), choosing_batch()
    chosen = []
    for example, scores in zip(EXAMPLES, scores_of("end_to_end", batch), strict=True):
        order = np.argsort(-scores[: len(example.documents)])[:TOP_K]
        chosen.append(example._replace(documents=tuple(example.documents[i] for i in order)))
    expected, count = stage_terms(BASE, reading, params, tiny_batch(*chosen))["next_token"]
    total, own_count = whole("end_to_end")[0]["next_token"]
    assert (total.item(), own_count.item()) == (pytest.approx(expected.item(), rel=1e-5), count.item())


def test_the_contrastive_term_equals_a_plain_loop() -> None:
    expected = 0.0
    for example, scores in zip(EXAMPLES, scores_of("retrieval", choosing_batch()), strict=True):
        weights = np.exp(scores[: len(example.documents)] / 0.02)
        if example.positives:
            expected -= np.log(weights[list(example.positives)].sum() / weights.sum())
    total, count = whole("retrieval")[0]["contrastive"]
    assert (total.item(), count.item()) == (pytest.approx(expected, rel=1e-5), 3)


IN_BATCH = {
    "flattened": tiny_config(stage="retrieval", in_batch_negatives=True),
    "late": tiny_config(stage="retrieval", in_batch_negatives=True, relevance="late"),
    "joint": tiny_config(stage="end_to_end", loss=JOINT, train_compressor=True, in_batch_negatives=True),
}


def in_batch(*examples: Example) -> Batch:
    """Return a batch whose questions choose among one another's documents."""
    chosen = examples or EXAMPLES
    return choosing_batch(*chosen, table=document_table(chosen, tiny_layout(), 8))


def in_batch_loss(name: str, batch: Batch, train: bool = True) -> tuple[dict[str, Term], Params]:
    """Return the terms of a batch with in-batch negatives, and the gradient of the contrastive one."""
    params = tiny_params(BASE, IN_BATCH[name])

    def loss(params: Params) -> tuple[mx.array, dict[str, Term]]:
        terms = stage_terms(BASE, IN_BATCH[name], params, batch, train)
        return terms["contrastive"][0], terms

    (_, terms), grads = mx.value_and_grad(loss)(params)
    return terms, grads


@pytest.mark.parametrize("name", IN_BATCH)
def test_with_in_batch_negatives_the_contrastive_term_is_over_all_documents_of_the_batch(name: str) -> None:
    config, params, batch = IN_BATCH[name], tiny_params(BASE, IN_BATCH[name]), in_batch()
    memory = compress(BASE, config, params, batch.documents).memory[:40]
    query = compress(BASE, config, params, batch.retrieval.questions, adapter="reasoner").memory
    expected, first = 0.0, 0
    for i, example in enumerate(EXAMPLES):
        weights = np.exp(
            as_numpy(relevance_scores(query[i : i + 1], memory[None], config.retrieval.relevance))[0] / 0.02
        )
        if example.positives:
            expected -= np.log(weights[[first + n for n in example.positives]].sum() / weights.sum())
        first += len(example.documents)
    terms, grads = in_batch_loss(name, batch)
    assert [each.item() for each in terms["contrastive"]] == [pytest.approx(expected, rel=1e-4), 3]
    assert min(norms(grads["adapters"]["reasoner"]).values()) > 0
    assert [path for path, leaf in tree_flatten(grads) if not mx.isfinite(leaf).all().item()] == []
    assert_same(stage_counts(config, batch)["contrastive"], terms["contrastive"][1])


@pytest.mark.parametrize("name", IN_BATCH)
def test_of_one_question_the_batch_holds_no_further_negatives(name: str) -> None:
    batch = in_batch(EXAMPLES[3])
    plain = msgspec.structs.replace(IN_BATCH[name].retrieval, in_batch_negatives=False)
    config = msgspec.structs.replace(IN_BATCH[name], retrieval=plain)
    expected = stage_terms(BASE, config, tiny_params(BASE, config), batch)
    assert_close(in_batch_loss(name, batch)[0], expected, 1e-5)


@pytest.mark.parametrize("name", IN_BATCH)
def test_filler_rows_and_memories_in_place_of_documents_change_no_in_batch_negative(name: str) -> None:
    terms, _ = in_batch_loss(name, in_batch())
    table = document_table(EXAMPLES, tiny_layout(), 8)
    documents = table.documents
    if name == "joint":
        wide = Documents(*(mx.pad(each, [(0, 8)] + [(0, 0)] * (each.ndim - 1)) for each in documents))
    else:
        memory = compress(BASE, IN_BATCH[name], tiny_params(BASE, IN_BATCH[name]), documents).memory
        wide = mx.concatenate([memory, 9 * mx.ones((8, *memory.shape[1:]))])
    batch = choosing_batch(table=table._replace(documents=wide, height=table.height + 8))
    assert_close(in_batch_loss(name, batch)[0], terms, 1e-5)


def test_a_batch_without_a_choice_among_its_documents_is_refused_where_that_is_wanted() -> None:
    with pytest.raises(ValueError, match="in_batch_negatives: collate the batch with a table"):
        in_batch_loss("flattened", choosing_batch())


def test_in_batch_negatives_change_neither_choice_nor_ranking() -> None:
    batch, config = in_batch(), CONFIGS["joint"]
    found, _ = in_batch_loss("joint", batch, train=False)
    expected = stage_terms(BASE, config, params_of("joint"), batch, train=False)
    assert found["contrastive"][0].item() > 1.01 * expected["contrastive"][0].item()
    others = expected.keys() - {"contrastive"}
    assert_close({name: found[name] for name in others}, {name: expected[name] for name in others}, 1e-6)


def test_the_alignment_term_is_over_all_candidates() -> None:
    pairs = [compress(BASE, CONFIGS["joint"], params_of("joint"), choosing_batch(e).documents) for e in EXAMPLES]
    expected = sum(((as_numpy(p.memory_mean) - as_numpy(p.document_mean)) ** 2).mean(axis=-1).sum() for p in pairs)
    total, count = whole("joint")[0]["alignment"]
    assert (total.item(), count.item()) == (pytest.approx(expected, rel=1e-5), 40)


def test_documents_that_were_not_chosen_still_teach_the_reasoner() -> None:
    batch = choosing_batch(EXAMPLES[1], memory=memories_of("end_to_end"))
    worst = int(np.argmin(scores_of("end_to_end", choosing_batch(EXAMPLES[1]))[0, :6]))
    # A cosine does not see the length of a memory: the choice stays, what would have been read does not.
    halved = mx.where(mx.arange(len(batch.documents))[:, None, None] == worst, 0.5 * batch.documents, batch.documents)
    (terms, grads), (other_terms, other) = (
        run("end_to_end", batch._replace(documents=each)) for each in (batch.documents, halved)
    )
    assert_close(other_terms, terms, 1e-6)
    assert_close(other["adapters"]["generator"], grads["adapters"]["generator"], 1e-6)
    moved = [
        difference(own, dict(tree_flatten(grads["adapters"]["reasoner"]))[path])
        for path, own in tree_flatten(other["adapters"]["reasoner"])
    ]
    assert min(moved) > 1e-4


def test_what_a_taken_document_keeps_changes_the_reasoner_alone() -> None:
    kept = tiny_config(stage="end_to_end", taken_share=0.9)
    total, grads = mx.value_and_grad(lambda p: stage_terms(BASE, kept, p, choosing_batch())["next_token"][0])(
        params_of("end_to_end")
    )
    terms, expected = whole("end_to_end")
    assert total.item() == pytest.approx(terms["next_token"][0].item(), rel=1e-6)
    assert_close(grads["adapters"]["generator"], expected["adapters"]["generator"], 1e-6)
    own, other = (dict(tree_flatten(each["adapters"]["reasoner"])) for each in (grads, expected))
    assert min(difference(own[path], leaf) for path, leaf in other.items()) > 1e-3


def norms(grads: Params) -> dict[str, float]:
    return {path: mx.linalg.norm(leaf).item() for path, leaf in tree_flatten(grads)}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_frozen_compressor_has_no_gradient_and_a_trained_one_has(name: str) -> None:
    compressor = norms(whole(name)[1]["adapters"]["compressor"])
    assert {norm > 0 for norm in compressor.values()} == {CONFIGS[name].retrieval.train_compressor}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_reasoner_is_always_trained_and_the_generator_where_it_answers(name: str) -> None:
    adapters = whole(name)[1]["adapters"]
    assert min(norms(adapters["reasoner"]).values()) > 0
    assert {norm > 0 for norm in norms(adapters["generator"]).values()} == {"next_token" in NAMES[name]}


def test_retrieval_never_runs_a_generator() -> None:
    params = params_of("retrieval")
    without = {**params, "adapters": {n: leaf for n, leaf in params["adapters"].items() if n != "generator"}}
    bare = [example._replace(tokens=(), roles=()) for example in EXAMPLES]
    assert_same(run("retrieval", choosing_batch(*bare), without)[0], whole("retrieval")[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_spares_a_frozen_compressor_and_is_another_in_each_adapter(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, keys = params_of(name), dict[str, list[Any]]()
    names = {id(adapter): which for which, adapter in params["adapters"].items()}

    def spy(module: nn.Module, embeddings: mx.array, adapter: Adapter, **how: Any) -> mx.array:
        keys.setdefault(names[id(adapter)], []).append(None if how["key"] is None else tuple(how["key"].tolist()))
        return hidden_states(module, embeddings, adapter, **how)

    monkeypatch.setattr("clara.core.stages.hidden_states", spy)
    monkeypatch.setattr("clara.core.compress.hidden_states", spy)
    dropping = msgspec.structs.replace(CONFIGS[name], lora=LoraConfig(rank=4, alpha=8.0, dropout=0.5))
    for key in (1, 2):
        stage_terms(BASE, dropping, params, choosing_batch(key=key))
    drawn = [key for which, own in keys.items() for key in own if which != "compressor" or key is not None]
    assert len(set(drawn)) == len(drawn) == 2 * (len(keys) - (name in FROZEN))
    assert (keys["compressor"] == [None, None]) == (name in FROZEN)


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluation_has_the_terms_of_training_and_how_the_candidates_rank(name: str) -> None:
    batch, config = choosing_batch(), CONFIGS[name]
    dropping = msgspec.structs.replace(config, lora=LoraConfig(rank=4, alpha=8.0, dropout=0.5))
    terms = stage_terms(BASE, dropping, params_of(name), batch, train=False)
    ranking = {*(f"recall_at_{k}" for k in RECALL_AT), f"precision_at_{TOP_K}", "mrr"}
    assert terms.keys() == NAMES[name] | ranking
    assert_close({term: terms[term] for term in NAMES[name]}, whole(name)[0], 1e-6)
    scores = mx.array(scores_of(name, batch).astype(np.float32))
    expected = ranking_terms(scores, batch.retrieval.positives, batch.candidates >= 0, TOP_K)
    assert_close({term: terms[term] for term in ranking}, expected, 1e-6)
    assert terms["mrr"][1].item() == 3


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_from_the_batch_alone_are_those_of_the_terms(name: str) -> None:
    assert_same(stage_counts(CONFIGS[name], choosing_batch()), {term: pair[1] for term, pair in whole(name)[0].items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_without_positives_stays_finite(name: str) -> None:
    terms, grads = run(name, choosing_batch(*(example._replace(positives=()) for example in EXAMPLES)))
    assert [path for path, leaf in tree_flatten([terms, grads]) if not mx.isfinite(leaf).all().item()] == []
    if "contrastive" in terms:
        assert [each.item() for each in terms["contrastive"]] == [0, 0]
    if name == "retrieval":
        assert set(norms(grads).values()) == {0}


def test_a_document_of_several_examples_is_compressed_once_and_counts_for_each() -> None:
    shared = [example._replace(documents=EXAMPLES[0].documents) for example in (EXAMPLES[0], EXAMPLES[0])]
    batch = choosing_batch(*shared)
    assert batch.documents.lengths.shape == (4,)
    doubled = tree_map(lambda leaf: 2 * leaf, run("joint", choosing_batch(EXAMPLES[0])))
    assert_close(run("joint", batch), doubled, 1e-5)


@pytest.mark.parametrize("make", [make_train_step, make_eval_step])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_without_questions_is_refused(name: str, make: Any) -> None:
    with pytest.raises(ValueError, match="no questions to choose by: collate it with top_k"):
        make(BASE, CONFIGS[name])(params_of(name), tiny_batch(*EXAMPLES))


@pytest.mark.parametrize("make", [make_train_step, make_eval_step])
@pytest.mark.parametrize("stage", ["pretrain", "instruct"])
def test_a_batch_to_choose_from_is_refused_where_nothing_is_chosen(stage: Stage, make: Any) -> None:
    config = tiny_config(stage=stage)
    with pytest.raises(ValueError, match=f"collated with top_k, but stage {stage} chooses nothing"):
        make(BASE, config)(tiny_params(BASE, config), choosing_batch())


def test_memories_are_refused_where_the_states_behind_them_are_wanted() -> None:
    with pytest.raises(ValueError, match="alignment_weight is not 0, but the batch carries memories"):
        run("joint", choosing_batch(memory=memories_of("joint")))
