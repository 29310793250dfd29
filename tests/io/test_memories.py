"""Memories on disk: the same bits come back, damage is named and left out, and what they depend on is in their name."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from folders import tiny_folder, tiny_session
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_module

from clara.core.collate import Tokens
from clara.core.init import add_lens, add_reasoner
from clara.io.errors import ClaraError
from clara.io.memories import (
    compressor_fingerprint,
    document_key,
    length_batches,
    missing_batches,
    open_memories,
    read_memories,
    words_of,
    write_memories,
)
from clara.shell.setup import Session

DOCUMENTS: list[Tokens] = [(7, 1, 2), (7, 2), (7, 2, 2, 9), (300_000, 1)]
documents_of_any_length = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), unique=True, max_size=12)


def memory_of(documents: list[Tokens], dtype: mx.Dtype = mx.float32) -> mx.array:
    """Return float[n, 2, 3]: values that tell the documents apart."""
    rows = [np.random.default_rng(list(document)).normal(size=(2, 3)) for document in documents]
    return mx.array(np.array(rows)).astype(dtype)


def bits(memory: mx.array) -> tuple[str, list[Any]]:
    """Return dtype and bits of an array."""
    return str(memory.dtype), words_of(memory).tolist()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_memories_come_back_with_their_very_bits_in_any_order(dtype: mx.Dtype, tmp_path: Path) -> None:
    write_memories(tmp_path / "new", DOCUMENTS[:3], memory_of(DOCUMENTS[:3], dtype))
    write_memories(tmp_path / "new", DOCUMENTS[3:], memory_of(DOCUMENTS[3:], dtype))
    memories, problems = open_memories(tmp_path / "new")
    assert problems == []
    for order in (DOCUMENTS, DOCUMENTS[::-1], [DOCUMENTS[1], DOCUMENTS[3], DOCUMENTS[1]]):
        assert bits(read_memories(memories, order)) == bits(memory_of(order, dtype))


def test_bits_that_are_no_usual_numbers_come_back_too(tmp_path: Path) -> None:
    odd = mx.array([[[float("nan"), float("inf"), -0.0, 1e-45]]])
    write_memories(tmp_path, DOCUMENTS[:1], odd)
    assert bits(read_memories(open_memories(tmp_path)[0], DOCUMENTS[:1])) == bits(odd)


def test_without_a_folder_there_are_no_memories(tmp_path: Path) -> None:
    memories, problems = open_memories(tmp_path / "absent")
    assert (memories.rows, problems) == ({}, [])
    with pytest.raises(KeyError):
        read_memories(memories, DOCUMENTS[:1])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ClaraError, match=rf"^{tmp_path}/file/in: cannot be made .*give another --memories"):
        write_memories(tmp_path / "file" / "in", DOCUMENTS[:1], memory_of(DOCUMENTS[:1]))


def shard_of(folder: Path, documents: list[Tokens]) -> Path:
    """Return the file of words that writing some documents makes."""
    before = set(folder.glob("*.npy"))
    write_memories(folder, documents, memory_of(documents))
    (path,) = set(folder.glob("*.npy")) - before
    return path


def flip(path: Path) -> None:
    """Change the last bit of a file."""
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def fewer_keys(path: Path) -> None:
    """Take a document out of the list beside a file."""
    beside = path.with_suffix(".json")
    said = msgspec.json.decode(beside.read_bytes())
    beside.write_bytes(msgspec.json.encode(said | {"keys": said["keys"][1:]}))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "no array": lambda path: path.write_bytes(b"not an array"),
    "missing": lambda path: path.unlink(),
    "no list": lambda path: path.with_suffix(".json").write_bytes(b"{"),
    "a list of fewer": fewer_keys,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_left_out_and_named_and_others_stay(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    whole, hurt = DOCUMENTS[:2], DOCUMENTS[2:]
    write_memories(tmp_path, whole, memory_of(whole))
    path = shard_of(tmp_path, hurt)
    damage(path)
    memories, problems = open_memories(tmp_path)
    assert memories.rows.keys() == set(map(document_key, whole))
    assert bits(read_memories(memories, whole)) == bits(memory_of(whole))
    (problem,) = problems
    assert problem.startswith(f"{path}: ")
    write_memories(tmp_path, hurt, memory_of(hurt))
    memories, problems = open_memories(tmp_path)
    assert problems == [] and bits(read_memories(memories, hurt)) == bits(memory_of(hurt)), "it can be written again"


def test_no_byte_that_changes_gives_other_memories_or_an_error(tmp_path: Path) -> None:
    path = shard_of(tmp_path, DOCUMENTS)
    raw = path.read_bytes()
    for i in (*range(90), *range(90, len(raw), 16)):
        path.unlink()
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :])
        memories, problems = open_memories(tmp_path)
        if memories.rows:
            assert bits(read_memories(memories, DOCUMENTS)) == bits(memory_of(DOCUMENTS)), i
        else:
            assert len(problems) == 1 and problems[0].startswith(f"{path}: "), i


def test_words_without_their_list_do_not_count(tmp_path: Path) -> None:
    shard_of(tmp_path, DOCUMENTS).with_suffix(".json").unlink()
    memories, problems = open_memories(tmp_path)
    assert (memories.rows, problems) == ({}, []), "the process ended before the list was written"


def test_other_documents_keep_the_shards_that_are_there(tmp_path: Path) -> None:
    first = shard_of(tmp_path, DOCUMENTS[:2])
    before = first.read_bytes(), first.stat().st_mtime_ns
    write_memories(tmp_path, DOCUMENTS[1:], memory_of(DOCUMENTS[1:]) + 1)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert open_memories(tmp_path)[0].rows.keys() == set(map(document_key, DOCUMENTS))


@given(documents=documents_of_any_length)
def test_each_document_has_a_key_of_its_own(documents: list[Tokens]) -> None:
    assert len(set(map(document_key, documents))) == len(documents)


@given(documents=documents_of_any_length, size=st.integers(1, 5), seed=st.integers(0, 9))
def test_batches_are_a_function_of_the_set_of_documents(documents: list[Tokens], size: int, seed: int) -> None:
    batches = length_batches(documents, size)
    shuffled = random.Random(seed).sample(documents, len(documents))
    assert length_batches(shuffled, size) == batches
    flat = [document for batch in batches for document in batch]
    assert sorted(flat) == sorted(documents) and [len(d) for d in flat] == sorted(len(d) for d in documents)
    assert [len(batch) for batch in batches[:-1]] == [size] * max(len(batches) - 1, 0)


@given(documents=documents_of_any_length, there=st.sets(st.integers(0, 11)), size=st.integers(1, 4))
def test_a_batch_with_a_missing_document_is_computed_whole(
    documents: list[Tokens], there: set[int], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    known = [document for i, document in enumerate(documents) if i in there]
    memories, _ = open_memories(tmp_path_factory.getbasetemp() / "absent")
    word = np.zeros((1, 1, 1), dtype=np.uint32)
    memories = memories._replace(rows={document_key(document): (word, 0, "float32") for document in known})
    batches = length_batches(documents, size)
    assert missing_batches(memories, batches) == [batch for batch in batches if not set(batch) <= set(known)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session of the tiny base."""
    return tiny_session(tiny_folder(tmp_path_factory.mktemp("base")))


def fingerprint(session: Session) -> str:
    """Return the fingerprint of a session's compressor."""
    return compressor_fingerprint(session.base, session.config, session.params, session.fingerprint)


def adapter_changed(session: Session, name: str) -> Session:
    """Return the session with one number of one adapter changed by the least that there is."""
    leaves = session.params["adapters"][name]
    path = sorted(leaves)[-1]
    b = np.array(leaves[path]["lora_b"])
    b[0, 0] = np.nextafter(b[0, 0], np.float32(9))
    moved = {**leaves, path: {**leaves[path], "lora_b": mx.array(b)}}
    return session._replace(params={**session.params, "adapters": {**session.params["adapters"], name: moved}})


def leaf_changed(session: Session, name: str) -> Session:
    """Return the session with a parameter beside the adapters changed."""
    return session._replace(params={**session.params, name: session.params[name] * 1.01})


def config_changed(session: Session, section: str, **changes: Any) -> Session:
    """Return the session with another configuration."""
    part = msgspec.structs.replace(getattr(session.config, section), **changes)
    return session._replace(config=msgspec.structs.replace(session.config, **{section: part}))


OTHERS: dict[str, Callable[[Session], Session]] = {
    "adapter": lambda s: adapter_changed(s, "compressor"),
    "memory_embeddings": lambda s: leaf_changed(s, "memory_embeddings"),
    "anchor_gain": lambda s: leaf_changed(s, "anchor_gain"),
    "anchored": lambda s: config_changed(s, "memory", anchored=False),
    "doc_max_tokens": lambda s: config_changed(s, "memory", doc_max_tokens=33),
    "scale": lambda s: config_changed(s, "lora", alpha=7.0),
    "base": lambda s: s._replace(fingerprint="0" * 16),
    "special_embeddings": lambda s: s._replace(base=s.base._replace(special_embeddings=s.base.special_embeddings + 1)),
    "embedding_rms": lambda s: s._replace(base=s.base._replace(embedding_rms=s.base.embedding_rms * 2)),
    "dtype": lambda s: s._replace(
        params={**s.params, "memory_embeddings": s.params["memory_embeddings"].astype(mx.bfloat16)}
    ),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_another_compressor_has_another_fingerprint(change: Callable[[Session], Session], session: Session) -> None:
    assert fingerprint(change(session)) != fingerprint(session) == fingerprint(session)


def test_the_fingerprint_of_mean_pooling_is_that_of_before_there_was_a_choice(session: Session) -> None:
    memory = session.config.memory
    names = ("doc_max_tokens", "compression_rate", "anchored", "anchor_gain", "cuts_suffix")
    said = ", ".join(f"{name}={getattr(memory, name)!r}" for name in names)
    assert memory.anchored and repr(memory) == f"MemoryConfig({said}, anchor_pooling='mean', anchor_map_rank=64)"
    before = Mock(anchor_pooling="mean", __repr__=lambda _: f"MemoryConfig({said})")
    old = Mock(memory=before, lora=session.config.lora)
    assert fingerprint(session._replace(config=old)) == fingerprint(session)


def test_learned_pooling_has_a_fingerprint_of_its_own(session: Session) -> None:
    learned = config_changed(session, "memory", anchor_pooling="learned")
    queries = [mx.zeros((32,)), mx.ones((32,))]
    found = [fingerprint(learned._replace(params={**session.params, "anchor_query": query})) for query in queries]
    assert len({fingerprint(session), *found}) == 3


def test_the_fingerprint_of_mapped_pooling_depends_on_the_maps(session: Session) -> None:
    mapped = config_changed(session, "memory", anchor_pooling="mapped")
    sides = "anchor_map_a", "anchor_map_b"
    params = {**session.params, "anchor_query": mx.zeros((32,)), **{side: mx.ones((2, 3)) for side in sides}}
    whole = mapped._replace(params=params)
    assert len({fingerprint(whole), *(fingerprint(leaf_changed(whole, side)) for side in sides)}) == 3


def test_of_a_fingerprint_that_is_not_exact_the_bases_dtype_is_no_part(session: Session) -> None:
    def loose(each: Session) -> str:
        return compressor_fingerprint(each.base, each.config, each.params, each.fingerprint, exact=False)

    before = loose(session)
    assert before != fingerprint(session) and before != loose(adapter_changed(session, "compressor"))
    other = session._replace(base=session.base._replace(module=tiny_module()))
    found = fingerprint(other), loose(other)
    other.base.module.set_dtype(mx.bfloat16)
    assert fingerprint(other) != found[0] and loose(other) == found[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: adapter_changed(s, "generator"),
        lambda s: config_changed(s, "retrieval", top_k=2),
        lambda s: config_changed(s, "lora", dropout=0.5),
        lambda s: config_changed(s, "compute", logits_chunk=7),
        lambda s: s._replace(params=add_lens(s.params)),
        lambda s: s._replace(params=add_reasoner(s.params)),
    ],
    ids=["generator", "top_k", "dropout", "logits_chunk", "lens", "reasoner"],
)
def test_what_no_memory_depends_on_is_not_in_the_fingerprint(
    change: Callable[[Session], Session], session: Session
) -> None:
    assert fingerprint(change(session)) == fingerprint(session)
