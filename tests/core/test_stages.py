"""The losses of a stage are those of its examples one by one, and do not depend on how they are padded or batched."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from tiny import (
    HIDDEN,
    JOINT,
    MEMORY_TOKENS,
    VOCABULARY,
    as_numpy,
    as_text,
    assert_close,
    assert_same,
    difference,
    normal,
    tiny_adapter,
    tiny_base,
    tiny_batch,
    tiny_config,
    tiny_example,
    tiny_params,
)

from clara.core.bind import head, hidden_states
from clara.core.collate import ANSWER, Example
from clara.core.compress import Compressed, compress, embed
from clara.core.config import (
    STAGES,
    ComputeConfig,
    LossConfig,
    RetrievalConfig,
    Stage,
    StepConfig,
    stage_loss,
)
from clara.core.init import add_reasoner, init_params
from clara.core.memory import slot_index
from clara.core.stages import (
    answer_head,
    answer_states,
    gather_memory,
    joined,
    stage_counts,
    stage_terms,
    trained_leaves,
)
from clara.core.types import Adapter, Base, Batch, Documents, Params, Term

EXAMPLES = (
    tiny_example(0, (9,), 4),
    tiny_example(1, (12, 3, 1), 9, 0),
    tiny_example(2, (5, 12), 1, 6),
)
SILENT = tiny_example(3, (7,), answer=0)
DISTILLING = LossConfig(distillation_weight=0.5)
TERMS = {"next_token", "alignment"}


def weighted(terms: dict[str, Term]) -> mx.array:
    """Return a loss that every term has a share in."""
    return terms["next_token"][0] + 3 * terms["alignment"][0]


def terms_and_gradient(base: Base, config: StepConfig, params: Params, batch: Batch) -> tuple[Any, Params]:
    def loss(params: Params) -> tuple[mx.array, dict[str, Term]]:
        terms = stage_terms(base, config, params, batch)
        return weighted(terms), terms

    (_, terms), grads = mx.value_and_grad(loss)(params)
    return terms, grads


def total_of(parts: list[dict[str, Term]]) -> dict[str, list[float]]:
    """Return the sums and counts of several batches, added up in float64."""
    return {name: [sum(part[name][i].item() for part in parts) for i in (0, 1)] for name in TERMS}


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize(("model_type", "quantized"), [("llama", False), ("llama", True), ("gemma3_text", False)])
@pytest.mark.parametrize("multiple", [8, 64])
def test_padding_changes_neither_a_loss_nor_a_gradient(
    model_type: str, quantized: bool, anchored: bool, multiple: int
) -> None:
    base, config = tiny_base(model_type, quantized), tiny_config(anchored=anchored)
    params = tiny_params(base, config)
    terms, grads = terms_and_gradient(base, config, params, tiny_batch(*EXAMPLES, multiple=multiple))
    expected, expected_grads = terms_and_gradient(base, config, params, tiny_batch(*EXAMPLES, multiple=1))
    assert_close(terms, expected, 1e-6)
    assert_close(grads, expected_grads, 3e-5)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_batch_of_different_numbers_of_documents_is_its_examples_one_by_one(model_type: str, anchored: bool) -> None:
    base, config = tiny_base(model_type), tiny_config(anchored=anchored)
    params = tiny_params(base, config)
    whole = stage_terms(base, config, params, tiny_batch(*EXAMPLES))
    alone = [stage_terms(base, config, params, tiny_batch(example, multiple=1)) for example in EXAMPLES]
    expected = total_of(alone)
    assert {name: count.item() for name, (_, count) in whole.items()} == {n: e[1] for n, e in expected.items()}
    for name, (total, _) in whole.items():
        assert total.item() == pytest.approx(expected[name][0], rel=2e-6)


def test_the_order_of_examples_does_not_count() -> None:
    base, config = tiny_base(), tiny_config()
    params = tiny_params(base, config)
    expected = terms_and_gradient(base, config, params, tiny_batch(*EXAMPLES))
    assert_close(terms_and_gradient(base, config, params, tiny_batch(*EXAMPLES[::-1])), expected, 1e-5)


def naive_next_token(base: Base, config: StepConfig, params: Params, example: Example) -> float:
    """Return the summed answer loss of one example: rows taken one at a time, softmax in numpy."""
    memory = [as_numpy(naive_compress(base, config, params, document).memory[0]) for document in example.documents]
    vectors, first = np.concatenate(memory), base.layout.first_slot
    table = as_numpy(embed(base, mx.arange(VOCABULARY + 2)[None])[0])
    rows = np.array([vectors[token - first] if token >= first else table[token] for token in example.tokens])
    hidden = hidden_states(
        base.module,
        mx.array(rows[None].astype(np.float32)),
        params["adapters"]["generator"],
        scale=config.lora.scale,
    )
    logits = as_numpy(head(base.module)(hidden)[0])[:, : base.head_size]
    if base.head_rows is not None:
        logits = np.concatenate([logits, as_numpy(hidden[0]) @ as_numpy(base.head_rows).T], axis=-1)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    places = [i for i, role in enumerate(example.roles) if role == ANSWER]
    return float(-sum(log_probabilities[i - 1, example.tokens[i]] for i in places))


def naive_compress(base: Base, config: StepConfig, params: Params, document: tuple[int, ...]) -> Compressed:
    """Return one document's memory and means without padding, straight from the definition."""
    inputs = as_numpy(embed(base, mx.array([document]))[0])
    memory_inputs, anchor = as_numpy(params["memory_embeddings"]), np.zeros((MEMORY_TOKENS, HIDDEN))
    text = inputs[2:-1]
    if config.memory.anchored and len(text):
        for j in range(MEMORY_TOKENS):
            first = j * len(text) // MEMORY_TOKENS
            anchor[j] = text[first : max((j + 1) * len(text) // MEMORY_TOKENS, first + 1)].mean(axis=0)
    rows = np.concatenate([inputs, memory_inputs + anchor])
    hidden = as_numpy(
        hidden_states(
            base.module,
            mx.array(rows[None].astype(np.float32)),
            params["adapters"]["compressor"],
            scale=config.lora.scale,
        )[0]
    )
    memory = states = hidden[len(document) :]
    if config.memory.anchored:
        gain = as_numpy(params["anchor_gain"]) * base.embedding_rms.item()
        memory = anchor + gain * states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + 1e-6)
    values = memory[None], states.mean(axis=0)[None], hidden[: len(document)].mean(axis=0)[None]
    return Compressed(*(mx.array(value.astype(np.float32)) for value in values))


@pytest.mark.parametrize("head_size", [None, VOCABULARY - 1])
@pytest.mark.parametrize("extra_rows", [0, 3])
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_next_token_term_equals_a_plain_loop(
    model_type: str, anchored: bool, extra_rows: int, head_size: int | None
) -> None:
    base, config = tiny_base(model_type)._replace(head_size=head_size), tiny_config(anchored=anchored)
    if extra_rows:
        base = base._replace(head_rows=0.3 * normal(np.random.default_rng(5), extra_rows, HIDDEN))
    params = tiny_params(base, config)
    total, count = stage_terms(base, config, params, tiny_batch(*EXAMPLES))["next_token"]
    expected = sum(naive_next_token(base, config, params, example) for example in EXAMPLES)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count.item() == sum(example.roles.count(ANSWER) for example in EXAMPLES)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_compressed_documents_equal_a_plain_loop(model_type: str, anchored: bool) -> None:
    base, config = tiny_base(model_type), tiny_config(anchored=anchored)
    params = tiny_params(base, config)
    documents = [document for example in EXAMPLES for document in example.documents]
    own = compress(base, config, params, tiny_batch(*EXAMPLES).documents)
    for n, document in enumerate(documents):
        expected = naive_compress(base, config, params, document)
        assert_close([each[n : n + 1] for each in own], list(expected), 1e-5)


@pytest.mark.parametrize("anchored", [False, True])
def test_the_alignment_term_equals_a_plain_loop(anchored: bool) -> None:
    base, config = tiny_base(), tiny_config(anchored=anchored)
    params = tiny_params(base, config)
    documents = [document for example in EXAMPLES for document in example.documents]
    squares = []
    for document in documents:
        _, memory_mean, document_mean = naive_compress(base, config, params, document)
        squares.append(((as_numpy(memory_mean) - as_numpy(document_mean)) ** 2).mean())
    total, count = stage_terms(base, config, params, tiny_batch(*EXAMPLES))["alignment"]
    assert total.item() == pytest.approx(sum(squares), rel=1e-5)
    assert count.item() == len(documents)


def test_instruct_computes_what_pretrain_does() -> None:
    base, config = tiny_base(), tiny_config()
    params, batch = tiny_params(base, config), tiny_batch(*EXAMPLES)
    instruct = tiny_config(stage="instruct")
    assert_same(stage_terms(base, instruct, params, batch), stage_terms(base, config, params, batch))


def test_a_document_of_two_examples_is_compressed_once_and_counts_for_each() -> None:
    base, config = tiny_base(), tiny_config()
    params, other = tiny_params(base, config), EXAMPLES[2]._replace(documents=EXAMPLES[1].documents[:2])
    batch = tiny_batch(EXAMPLES[1], other)
    assert batch.documents.lengths.shape == (4,)
    terms = stage_terms(base, config, params, batch)
    alone = total_of([stage_terms(base, config, params, tiny_batch(example)) for example in (EXAMPLES[1], other)])
    assert {name: [each.item() for each in pair] for name, pair in terms.items()} == {
        name: [pytest.approx(total, rel=2e-6), count] for name, (total, count) in alone.items()
    }


def test_filler_documents_stay_finite_and_reach_no_prompt() -> None:
    base, config = tiny_base(), tiny_config(anchored=True)
    params = tiny_params(base, config)
    batch = tiny_batch(*EXAMPLES, SILENT)
    assert [length > 0 for length in batch.documents.lengths.tolist()] == [True] * 7 + [False]
    compressed = compress(base, config, params, batch.documents)
    assert all(mx.isfinite(each).all().item() for each in compressed)
    slots = slot_index(batch.tokens, base.layout.first_slot)
    rows = batch.candidates.reshape(-1)[mx.maximum(slots, 0) // MEMORY_TOKENS]
    assert set(np.array(rows)[np.array(slots) >= 0].tolist()) == set(range(7))


def test_embed_gives_table_rows_and_the_two_special_ones() -> None:
    base = tiny_base()
    layout = base.layout
    own = embed(base, mx.array([[0, 5, layout.enc_id, layout.sep_id, 127]]))
    table = base.module.model.embed_tokens.weight
    assert_same(own[0], mx.stack([table[0], table[5], *base.special_embeddings, table[127]]))


def test_slots_have_a_finite_embedding_before_memory_is_placed() -> None:
    base = tiny_base()
    assert mx.isfinite(embed(base, mx.arange(VOCABULARY, VOCABULARY + 50)[None])).all().item()


def test_an_example_without_answers_adds_nothing_to_the_next_token_term() -> None:
    base, config = tiny_base(), tiny_config(loss=LossConfig(alignment_weight=0.0))
    params = tiny_params(base, config)

    def run(*examples: Example) -> tuple[Any, Params]:
        batch = tiny_batch(*examples)
        return mx.value_and_grad(lambda p: stage_terms(base, config, p, batch)["next_token"])(params)

    (total, count), grads = run(EXAMPLES[0], SILENT)
    (expected, expected_count), expected_grads = run(EXAMPLES[0])
    assert (total.item(), count.item()) == (pytest.approx(expected.item(), rel=1e-6), expected_count.item())
    assert_close(grads, expected_grads, 1e-4)  # a batch of another size is rounded otherwise


def test_a_batch_without_answers_has_zero_of_zero_and_a_zero_gradient() -> None:
    base, config = tiny_base(), tiny_config(loss=LossConfig(alignment_weight=0.0))
    params, batch = tiny_params(base, config), tiny_batch(SILENT)
    (total, count), grads = mx.value_and_grad(lambda p: stage_terms(base, config, p, batch)["next_token"])(params)
    assert (total.item(), count.item()) == (0.0, 0.0)
    assert_close(grads, tree_map(mx.zeros_like, params), 0.0)


@pytest.mark.parametrize("config", [tiny_config(), tiny_config(loss=LossConfig(next_token_weight=0.0))])
def test_counts_from_the_batch_alone_are_those_of_the_terms(config: StepConfig) -> None:
    base = tiny_base()
    batch = tiny_batch(*EXAMPLES, SILENT)
    counts = {name: count for name, (_, count) in stage_terms(base, config, tiny_params(base, config), batch).items()}
    assert_same(stage_counts(config, batch), counts)


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (LossConfig(), TERMS),
        (LossConfig(alignment_weight=0.0), {"next_token"}),
        (LossConfig(next_token_weight=0.0), {"alignment"}),
    ],
)
def test_a_weight_of_zero_leaves_its_term_out(loss: LossConfig, names: set[str]) -> None:
    base, config = tiny_base(), tiny_config(loss=loss)
    assert stage_terms(base, config, tiny_params(base, config), tiny_batch()).keys() == names
    assert stage_counts(config, tiny_batch()).keys() == names


def test_a_next_token_weight_of_zero_never_runs_the_generator() -> None:
    base, config = tiny_base(), tiny_config(loss=LossConfig(next_token_weight=0.0))
    params = tiny_params(base, config)
    del params["adapters"]["generator"]
    assert stage_terms(base, config, params, tiny_batch())["alignment"][0].item() > 0


def test_the_answer_depends_on_the_documents() -> None:
    base, config = tiny_base(), tiny_config()
    params, batch = tiny_params(base, config), tiny_batch(EXAMPLES[0])
    changed = mx.where(mx.arange(batch.documents.tokens.shape[1]) == 5, 99, batch.documents.tokens)
    other = batch._replace(documents=Documents(changed, batch.documents.lengths))
    first, second = (stage_terms(base, config, params, each)["next_token"][0].item() for each in (batch, other))
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("term", sorted(TERMS))
def test_anchored_memory_has_gradients_where_it_should(term: str) -> None:
    base, config = tiny_base(), tiny_config(anchored=True)
    params, batch = tiny_params(base, config), tiny_batch(*EXAMPLES)
    grads = mx.grad(lambda p: stage_terms(base, config, p, batch)[term][0])(params)
    assert (mx.abs(grads["anchor_gain"]).min().item() > 0) == (term == "next_token")
    assert mx.linalg.norm(grads["memory_embeddings"], axis=-1).min().item() > 0


def test_compute_options_change_no_result() -> None:
    base, plain = tiny_base(), tiny_config()
    params, batch = tiny_params(base, plain), tiny_batch(*EXAMPLES)
    thrifty = tiny_config(compute=ComputeConfig(grad_checkpoint=1, logits_chunk=5))
    expected = terms_and_gradient(base, plain, params, batch)
    assert_close(terms_and_gradient(base, thrifty, params, batch), expected, 1e-5)


def test_logits_exist_for_one_chunk_of_answers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    base, config, rows = tiny_base(), tiny_config(compute=ComputeConfig(logits_chunk=5)), []

    def spy(module: nn.Module) -> Any:
        own = head(module)
        return lambda hidden: rows.append(hidden.shape[1]) or own(hidden)

    monkeypatch.setattr("clara.core.stages.head", spy)
    batch = tiny_batch(*EXAMPLES)
    stage_terms(base, config, tiny_params(base, config), batch)
    assert max(rows) == 5
    assert sum(rows) == batch.targets.size


def test_dropout_changes_every_term_and_follows_the_key_of_the_batch() -> None:
    base, config = tiny_base(), tiny_config(dropout=0.5)
    params = tiny_params(base, config)
    first, again, other = (stage_terms(base, config, params, tiny_batch(key=key)) for key in (1, 1, 2))
    plain = stage_terms(base, tiny_config(), params, tiny_batch())
    assert_same(first, again)
    for name in TERMS:
        assert difference(first[name][0], plain[name][0]) > 1e-3
        assert difference(first[name][0], other[name][0]) > 1e-3


def test_compressor_and_generator_have_dropout_of_their_own_at_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    base, config = tiny_base(), tiny_config(dropout=0.5)
    params, keys = tiny_params(base, config), []

    def spy(module: nn.Module, embeddings: mx.array, adapter: Adapter, **how: Any) -> mx.array:
        keys.append(tuple(how["key"].tolist()))
        return hidden_states(module, embeddings, adapter, **how)

    monkeypatch.setattr("clara.core.stages.hidden_states", spy)
    monkeypatch.setattr("clara.core.compress.hidden_states", spy)
    for key in (1, 2):
        stage_terms(base, config, params, tiny_batch(key=key))
    assert len(set(keys)) == len(keys) == 4


def test_dropout_is_off_outside_of_training() -> None:
    base = tiny_base()
    params, batch = tiny_params(base, tiny_config()), tiny_batch()
    dropping = stage_terms(base, tiny_config(dropout=0.5), params, batch, train=False)
    assert_same(dropping, stage_terms(base, tiny_config(), params, batch))


STAGE_CONFIGS = {
    "pretrain": tiny_config(anchored=True),
    "instruct": tiny_config(stage="instruct", anchored=True),
    "retrieval": tiny_config(stage="retrieval", anchored=True),
    "end_to_end": tiny_config(stage="end_to_end", anchored=True),
    "retrieval, whole": tiny_config(stage="retrieval", anchored=True, train_compressor=True),
    "end_to_end, whole": tiny_config(stage="end_to_end", anchored=True, loss=JOINT, train_compressor=True),
}
REST = {"memory_embeddings", "anchor_gain", "anchor_query", "anchor_map_a", "anchor_map_b"}


def all_params(base: Base) -> Params:
    """Return parameters with all three adapters, whatever the stage."""
    return tiny_params(base, tiny_config(stage="end_to_end", anchored=True, anchor_pooling="mapped"))


@pytest.mark.parametrize(
    ("name", "adapters", "rest"),
    [
        ("pretrain", {"compressor", "generator"}, REST),
        ("instruct", {"compressor", "generator"}, REST),
        ("retrieval", {"reasoner"}, set()),
        ("end_to_end", {"reasoner", "generator"}, set()),
        ("retrieval, whole", {"reasoner", "compressor"}, REST),
        ("end_to_end, whole", {"reasoner", "generator", "compressor"}, REST),
    ],
)
def test_each_stage_trains_its_own_leaves(name: str, adapters: set[str], rest: set[str]) -> None:
    trained, frozen = trained_leaves(STAGE_CONFIGS[name], all_params(tiny_base()))
    assert (trained.keys(), trained["adapters"].keys()) == ({"adapters", *rest}, adapters)
    others = {"compressor", "generator", "reasoner"} - adapters
    assert (frozen.keys(), frozen["adapters"].keys()) == ({"adapters", *(REST - rest)}, others)


@pytest.mark.parametrize("name", STAGE_CONFIGS)
def test_trained_and_frozen_leaves_are_the_parameters_in_two_parts(name: str) -> None:
    params = all_params(tiny_base())
    trained, frozen = trained_leaves(STAGE_CONFIGS[name], params)
    assert_same(joined(trained, frozen), params)
    assert_same(joined(frozen, trained), params)


def test_parameters_without_a_leaf_have_it_in_neither_part() -> None:
    params = tiny_params(tiny_base(), tiny_config())
    trained, frozen = trained_leaves(tiny_config(stage="retrieval"), params)
    assert (trained, frozen["adapters"].keys()) == ({"adapters": {}}, {"compressor", "generator"})


def test_where_two_parts_have_a_leaf_the_first_counts() -> None:
    first, second = ({"adapters": {"generator": n, str(n): n}, "memory_embeddings": n} for n in (1, 2))
    assert joined(first, second) == {"adapters": {"generator": 1, "1": 1, "2": 2}, "memory_embeddings": 1}
    assert joined(first, {}) == first


def test_a_reasoner_begins_as_a_copy_of_the_compressor() -> None:
    base = tiny_base()
    params = init_params(base, tiny_config(), seed=3)
    reasoner = add_reasoner(params)["adapters"]["reasoner"]
    assert_same(reasoner, params["adapters"]["compressor"])
    assert params["adapters"].keys() == {"compressor", "generator"}
    assert_same({**add_reasoner(params), "adapters": params["adapters"]}, params)


def test_a_reasoner_that_is_there_stays() -> None:
    params = all_params(tiny_base())
    assert_same(add_reasoner(params), params)


def test_a_new_reasoner_compresses_a_question_as_the_compressor_would() -> None:
    base, config = tiny_base(), tiny_config(stage="retrieval")
    params = add_reasoner(tiny_params(base, tiny_config()))
    asked = tiny_batch(tiny_example(0, (4, 5), top_k=2), top_k=2).retrieval.questions
    both = [compress(base, config, params, asked, adapter=name) for name in ("reasoner", "compressor")]
    assert_same(*both)
    other = compress(base, config, all_params(base), asked, adapter="reasoner")
    assert difference(other.memory, both[0].memory) > 0.1


def test_the_stages_have_the_papers_losses() -> None:
    weights = {stage: tuple(stage_loss(stage).weights.values()) for stage in STAGES}
    reading = (1.0, 0.1, 0.0, 0.0)
    assert weights == {
        "pretrain": reading,
        "instruct": reading,
        "retrieval": (0.0, 0.0, 1.0, 0.0),
        "end_to_end": (1.0, 0.0, 0.0, 0.0),
    }


@pytest.mark.parametrize("stage", STAGES)
def test_the_losses_of_a_stage_go_with_it(stage: Stage) -> None:
    assert StepConfig(stage=stage, loss=stage_loss(stage)).loss == stage_loss(stage)


@pytest.mark.parametrize(
    ("stage", "loss", "whole", "message"),
    [
        ("pretrain", JOINT, False, "contrastive_weight 0.5: stage pretrain has no candidates; wanted 0"),
        ("instruct", JOINT, True, "contrastive_weight 0.5: stage instruct has no candidates; wanted 0"),
        ("retrieval", JOINT, True, "next_token_weight 1.0: stage retrieval asks no generator; wanted 0, or stage end_"),
        ("retrieval", LossConfig(next_token_weight=0.0), False, "alignment_weight 0.1: stage retrieval has a frozen"),
        (
            "end_to_end",
            JOINT,
            False,
            "alignment_weight 0.1: stage end_to_end has a frozen compressor; wanted 0, or tra",
        ),
        ("end_to_end", DISTILLING, True, "distillation_weight 0.5: stage end_to_end has no teacher; wanted 0, and"),
        ("retrieval", DISTILLING, True, "distillation_weight 0.5: stage retrieval has no teacher; wanted 0, and the"),
    ],
)
def test_losses_that_a_stage_cannot_have_are_refused(stage: Stage, loss: LossConfig, whole: bool, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        StepConfig(stage=stage, loss=loss, retrieval=RetrievalConfig(train_compressor=whole))


def test_a_loss_without_any_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="all loss weights are 0: nothing would be trained"):
        LossConfig(next_token_weight=0.0, alignment_weight=0.0)


def test_a_batch_without_documents_runs_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    base, config = tiny_base(), tiny_config(loss=LossConfig(alignment_weight=0.0))
    batch = tiny_batch(tiny_example(0, documents=()), tiny_example(1, documents=()))
    params = tiny_params(base, config)
    trained, frozen = trained_leaves(config, params, compresses=False)
    assert set(trained) == {"adapters"} and set(trained["adapters"]) == {"generator"}
    assert_same(joined(trained, frozen), params)
    monkeypatch.setattr("clara.core.stages.compress", None)
    (total, count) = stage_terms(base, config, params, batch)["next_token"]
    assert float(total) > 0 and float(count) == float(stage_counts(config, batch)["next_token"]) == 8


TAUGHT = (*map(as_text, EXAMPLES), tiny_example(4)._replace(taught=((), ())))


def taught_params(base: Base, config: StepConfig) -> Params:
    """Return parameters with those of a teacher, an adapter of another rank."""
    params = tiny_params(base, config)
    return {**params, "adapters": {**params["adapters"], "teacher": tiny_adapter(base.module, seed=9, rank=3)}}


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
@pytest.mark.parametrize("tuned", [True, False])
def test_distillation_is_the_divergence_from_a_reader_of_each_text_alone(tuned: bool, model_type: str) -> None:
    base, config = tiny_base(model_type), tiny_config(loss=DISTILLING)
    params, batch = taught_params(base, config), tiny_batch(*TAUGHT)
    if not tuned:
        del params["adapters"]["teacher"]
    memory = gather_memory(compress(base, config, params, batch.documents).memory, batch.candidates)
    logits = answer_head(base)
    own, expected, count = logits(answer_states(base, config, params, batch, memory, None)), 0.0, 0
    for i, example in enumerate(EXAMPLES):
        tokens, roles = TAUGHT[i].taught or ((), ())
        adapter = params["adapters"].get("teacher")
        states = hidden_states(base.module, embed(base, mx.array([tokens])), adapter, scale=config.lora.scale)
        places = [place - 1 for place, role in enumerate(roles) if role == ANSWER]
        assert len(places) == example.roles.count(ANSWER)
        wanted, found = (as_numpy(each) for each in (logits(states)[0][mx.array(places)], own[i, : len(places)]))
        wanted, found = (each - np.log(np.exp(each).sum(-1, keepdims=True)) for each in (wanted, found))
        expected, count = expected + (np.exp(wanted) * (wanted - found)).sum(), count + len(places)
    total, kept = stage_terms(base, config, params, batch)["distillation"]
    assert total.item() == pytest.approx(expected, rel=1e-5) and kept.item() == count
    assert stage_counts(config, batch)["distillation"].item() == count < batch.target_mask.sum().item()


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn() -> None:
    base, config = tiny_base(), tiny_config(loss=LossConfig(alignment_weight=0.0, distillation_weight=0.5))
    examples = [tiny_example(i, documents=(), answer=3 + i) for i in range(2)]
    batch = tiny_batch(*(example._replace(taught=(example.tokens, example.roles)) for example in examples))
    params = tiny_params(base, config)
    params["adapters"]["teacher"] = params["adapters"]["generator"]
    total, grads = mx.value_and_grad(lambda p: stage_terms(base, config, p, batch)["distillation"][0])(params)
    assert abs(total.item()) < 1e-5
    assert max(mx.abs(leaf).max().item() for _, leaf in tree_flatten(grads)) < 1e-4


def test_distillation_teaches_generator_and_compressor_and_leaves_the_teacher_alone() -> None:
    base, config = tiny_base(), tiny_config(anchored=True, loss=DISTILLING)
    params, batch = taught_params(base, config), tiny_batch(*TAUGHT)
    grads = mx.grad(lambda p: stage_terms(base, config, p, batch)["distillation"][0])(params)
    norms = {name: mx.linalg.norm(leaf).item() for name, leaf in tree_flatten(grads)}
    assert [name for name, norm in norms.items() if (norm > 0) == (".teacher." in name)] == []


def test_a_teacher_that_is_not_asked_changes_nothing() -> None:
    base, config = tiny_base(), tiny_config()
    params, batch = taught_params(base, config), tiny_batch(*TAUGHT)
    assert batch.teacher is not None
    plain = terms_and_gradient(base, config, params, batch._replace(teacher=None))
    assert_same(terms_and_gradient(base, config, params, batch), plain)
    asked, grads = terms_and_gradient(base, tiny_config(loss=DISTILLING), params, batch)
    assert asked.keys() == TERMS | {"distillation"}
    assert_same(({name: asked[name] for name in plain[0]}, grads), plain)


def test_logits_chunks_and_recomputed_layers_do_not_change_distillation() -> None:
    base, plain = tiny_base(), tiny_config(loss=DISTILLING)
    thrifty = tiny_config(loss=DISTILLING, compute=ComputeConfig(grad_checkpoint=1, logits_chunk=5))
    params, batch = taught_params(base, plain), tiny_batch(*TAUGHT)
    found, wanted = (
        mx.value_and_grad(lambda p, how=config: stage_terms(base, how, p, batch)["distillation"][0])(params)
        for config in (thrifty, plain)
    )
    assert_close(found, wanted, 1e-5)


def test_distillation_without_a_teachers_rows_is_refused() -> None:
    base, config = tiny_base(), tiny_config(loss=DISTILLING)
    said = "the batch has no rows for a teacher: collate examples with taught rows"
    with pytest.raises(ValueError, match=said):
        stage_counts(config, tiny_batch())
    with pytest.raises(ValueError, match=said):
        stage_terms(base, config, tiny_params(base, config), tiny_batch())


def test_distillation_alone_is_enough_to_train() -> None:
    base = tiny_base()
    config = tiny_config(loss=LossConfig(next_token_weight=0.0, alignment_weight=0.0, distillation_weight=1.0))
    assert stage_terms(base, config, taught_params(base, config), tiny_batch(*TAUGHT)).keys() == {"distillation"}
