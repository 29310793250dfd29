"""States of a compressor on a map: equal to those of a single document, in the place that the figure says."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from folders import tiny_folder, tiny_session, write_records

from clara.core.collate import frame_document, pad_documents
from clara.core.compress import compress
from clara.io.errors import ClaraError
from clara.io.report.document import Picture
from clara.io.tokens import encode_batch
from clara.shell.reporting.states import can_embed, cloud, first_texts, map_section, mean_states, nearness_text
from clara.shell.setup import Session

TEXTS = [f"Lamp {i} burns {'very ' * (i % 9)}red." for i in range(40)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Return a session of a tiny base."""
    return tiny_session(tiny_folder(tmp_path_factory.mktemp("base")))


def test_states_are_those_of_each_document_alone(session: Session) -> None:
    memory, documents = mean_states(session, TEXTS)
    assert memory.shape == documents.shape == (40, 32)
    for i in (0, 8, 39):
        (tokens,) = encode_batch(session.tokenizer, [TEXTS[i]])
        framed = [frame_document(tokens, session.base.layout, session.config.memory.doc_max_tokens)]
        alone = compress(session.base, session.config, session.params, pad_documents(framed, session.base.layout, 1, 1))
        assert np.allclose(memory[i], np.array(alone.memory_mean[0]), atol=1e-5)
        assert np.allclose(documents[i], np.array(alone.document_mean[0]), atol=1e-5)


def test_a_map_has_a_point_of_each_kind_for_each_document() -> None:
    rng = np.random.default_rng(0)
    memory, documents = rng.normal(size=(2, 6, 4)).astype(np.float32)
    section = map_section("Map", "map-1", memory, documents)
    pictures = [block for block in section.blocks if isinstance(block, Picture)]
    assert [picture.name for picture in pictures] == ["map-1-pca", "map-1-tsne"][: 1 + can_embed()]
    for picture in pictures:
        assert [(series.name, len(series.points)) for series in picture.figure.series] == [
            ("memory", 6),
            ("document", 6),
        ]
    assert "of the variance" in pictures[0].figure.x_label


def test_tsne_gives_equal_places_for_equal_states() -> None:
    pytest.importorskip("sklearn")
    rows = np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)
    assert map_section("Map", "m", *rows) == map_section("Map", "m", *rows)


def test_the_words_say_how_near_memories_are() -> None:
    memory = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    text = nearness_text(memory, 3 * memory)
    assert "2 documents" in text and "is 1.000 in the mean, to another document's 0.000" in text and "is 2." in text


def test_the_first_half_is_memory() -> None:
    figure = cloud("t", ["x", "y"], np.array([[0.0, 1], [2, 3]]), "n")
    assert [series.points[0][:2] for series in figure.series] == [(0.0, 1.0), (2.0, 3.0)]


def test_the_first_distinct_documents_are_taken(tmp_path: Path) -> None:
    data = write_records(tmp_path / "data.jsonl", range(5))
    assert first_texts(str(data), 3) == ["Lamp 0 burns red.", "Lamp 1 burns very red.", "Lamp 2 burns very very red."]
    assert len(first_texts(str(data), 99)) == 5
    more = write_records(tmp_path / "more.jsonl", range(9, 11))
    assert len(first_texts(f"{data},{more}", 99)) == 7 and len(first_texts(f"{data},{more}", 6)) == 6


def test_too_few_documents_and_unreadable_ones_are_refused(tmp_path: Path) -> None:
    data = write_records(tmp_path / "data.jsonl", range(1))
    with pytest.raises(ClaraError, match=r"data.jsonl: 1 of its documents taken; a map wants two or more"):
        first_texts(str(data), 9)
    with pytest.raises(ClaraError, match=r"absent.jsonl: does not exist.*--map-data FILE"):
        first_texts(str(tmp_path / "absent.jsonl"), 9)


def test_no_array_is_left_to_compute(session: Session) -> None:
    memory, documents = mean_states(session, TEXTS[:2])
    assert not isinstance(memory, mx.array) and np.isfinite(memory).all() and np.isfinite(documents).all()
