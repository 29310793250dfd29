"""The largest step that a stage can have is as large as any that it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from folders import tiny_folder, tiny_options, write_records
from mlx.utils import tree_flatten

from clara.core.config import Stage
from clara.core.packing import unpack
from clara.io.dataset import training_batches
from clara.shell.job import prepare, with_memories
from clara.shell.load import largest_load
from clara.shell.options import Options

JOINT = {"retrieval": {"train_compressor": True}}


@pytest.fixture(scope="module", autouse=True)
def compilation() -> Iterator[None]:
    """Switch compilation on again, which a run switches off on a CPU."""
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny base."""
    return tiny_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of five records with one document each."""
    return write_records(tmp_path_factory.mktemp("data") / "data.jsonl", range(5))


def options_of(base: Path, data: Path, run: Path, stage: Stage, **sections: Any) -> Options:
    """Return options of a short run; a choosing stage has four candidates."""
    settings = {"data": str(data), "batch_size": 2, "max_tokens": 512}
    settings |= {"candidates": 4} if stage in ("retrieval", "end_to_end") else {}
    return tiny_options(base, stage=stage, steps=4, run=str(run), data=settings, **sections)


@pytest.mark.parametrize(
    ("stage", "sections"),
    [("pretrain", {}), ("instruct", {}), ("retrieval", {}), ("end_to_end", {}), ("end_to_end", JOINT)],
)
def test_no_batch_is_larger_than_the_largest(
    stage: Stage, sections: dict[str, Any], base: Path, data: Path, tmp_path: Path
) -> None:
    job = prepare(options_of(base, data, tmp_path, stage, **sections), None)
    job = job if job.session.config.trains_compressor else with_memories(job)
    trained = unpack(job.packing, job.state.params)
    load = largest_load(job.options, job.feed, job.records, (trained, job.frozen))
    for each in training_batches(job.records, job.feed, 4):
        for batch in each.batches:
            found = [] if isinstance(batch.documents, mx.array) else [batch.documents.tokens.shape]
            found += [batch.retrieval.questions.tokens.shape] if batch.retrieval else []
            found += [batch.tokens.shape] if stage != "retrieval" else []
            assert len(found) == len(load.passes)
            assert all(r <= rows and t <= length for (r, t), (rows, length) in zip(found, load.passes, strict=True))
            assert stage == "retrieval" or batch.target_index.size <= load.answers
            assert batch.candidates.size * job.session.base.layout.num_memory_tokens <= load.memories
    assert load.trained == sum(leaf.size for _, leaf in tree_flatten(job.state.params)) and not load.several
