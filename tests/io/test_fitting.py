"""What does not fit into its row is named before training, and only what is in doubt is encoded for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from clara.core.collate import Example
from clara.io import fitting
from clara.io.data_config import DataConfig
from clara.io.dataset import training_batches
from clara.io.errors import ClaraError
from clara.io.examples import Encoder, encode_record
from clara.io.feed import Feed, encode_example
from clara.io.fitting import check_records, tasks_of
from clara.io.records import Record, document_records

MIXED = DataConfig(batch_size=4, length_multiple=16, autoencode_share=0.5, paraphrase_share=0.5, qa_form="turns")


texts = st.text(alphabet="ab é漢🦔\ue000", max_size=60)


@given(
    texts=st.lists(texts, min_size=5, max_size=5),
    task=st.sampled_from(["qa", "paraphrase", "autoencode"]),
    form=st.sampled_from(["turns", "pairs"]),
    reads=st.sampled_from(["memory", "text"]),
    size=st.integers(60, 400),
)
def test_the_check_says_what_encoding_everything_would(
    encoder: Encoder,
    texts: list[str],
    task: str,
    form: Literal["turns", "pairs"],
    reads: Literal["memory", "text"],
    size: int,
) -> None:
    doc, *pairs = texts
    record = Record(id="r", docs=[doc], data_type=task, question=pairs[:2], answers=pairs[2:], paraphrase=pairs[3])
    config = msgspec.structs.replace(MIXED, qa_form=form)
    feed = Feed(encoder._replace(max_tokens=size, reads=reads, doc_max_tokens=40), config)

    def everything() -> None:
        for each in sorted(tasks_of(record, feed)):
            for turn in range(8):
                encode_example(feed, record, each, turn, form, most=1)

    assert refused(lambda: check_records([record], feed)) == refused(everything)


def refused(action: object) -> bool:
    """Return whether an action raises ClaraError."""
    try:
        action()  # type: ignore[operator]
    except ClaraError:
        return True
    return False


def test_what_surely_fits_is_not_encoded(
    encoder: Encoder, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forms = list[str](), fitting.forms

    def counted(record: Record, feed: Feed, task: str) -> Iterator[Example]:
        seen.append(record.id or "blank")
        return forms(record, feed, task)

    monkeypatch.setattr(fitting, "forms", counted)
    long = Record(id="long", docs=["d"], question="q", answer="a" * 900)
    room = encoder._replace(max_tokens=1000, doc_max_tokens=32)
    config = msgspec.structs.replace(MIXED, autoencode_share=0.0, paraphrase_share=0.0)
    check_records([*records, long], Feed(room, config))
    assert seen == ["blank", "long"], "a frame for all of them, and what is in doubt"
    check_records(records, Feed(room, config, teacher=True))
    assert seen[3:] == [record.id for record in records], "the answers of a teacher's row have to be seen"


def test_bytes_are_counted_as_the_normaliser_writes_them(encoder: Encoder) -> None:
    backend = tokenizers.Tokenizer.from_str(encoder.tokenizer.plain.to_str())
    backend.normalizer = tokenizers.normalizers.NFC()
    spelt = encoder._replace(tokenizer=encoder.tokenizer._replace(plain=backend), max_tokens=300)
    record = Record(id="spelt", docs=["d"], question="q", answer="\u095c" * 50)
    with pytest.raises(ClaraError, match=r"^spelt: "):
        check_records([record], Feed(spelt, msgspec.structs.replace(MIXED, autoencode_share=0.0)))


def test_where_not_even_the_frame_fits_a_record_is_named(encoder: Encoder, records: list[Record]) -> None:
    with pytest.raises(ClaraError, match=f"^{records[0].id}: "):
        check_records(records, Feed(encoder._replace(max_tokens=20), MIXED))


def test_a_document_of_the_pool_that_does_not_fit_is_named(encoder: Encoder, records: list[Record]) -> None:
    tight = encoder._replace(max_tokens=300, doc_max_tokens=256)
    config = msgspec.structs.replace(MIXED, paraphrase_share=0.0)
    check_records(records, Feed(tight, config, pool=document_records([Record(docs=["d"], id="short")])))
    with pytest.raises(ClaraError, match=r"^long, document 1: "):
        check_records(records, Feed(tight, config, pool=document_records([Record(docs=["d", "x" * 500], id="long")])))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (msgspec.structs.replace(MIXED, autoencode_share=0.0, paraphrase_share=0.0), "long answer"),
        (msgspec.structs.replace(MIXED, autoencode_share=0.0, paraphrase_share=0.5), "long paraphrase"),
    ],
)
def test_the_record_that_cannot_be_trained_on_is_named(
    encoder: Encoder, records: list[Record], config: DataConfig, name: str
) -> None:
    bad = {
        "long answer": Record(id="long answer", docs=["d"], question="q", answer="a" * 400),
        "long paraphrase": Record(id="long paraphrase", docs=["d"], question="q", answer="a", paraphrase="p" * 400),
    }
    tight = encoder._replace(max_tokens=400)
    check_records(records, Feed(tight, config))
    with pytest.raises(ClaraError, match=f"^{name}: .*max_tokens 400"):
        check_records([*records, bad[name]], Feed(tight, config))


def test_a_document_too_long_to_repeat_is_named_if_it_may_have_to_be(encoder: Encoder) -> None:
    record = Record(id="novel", docs=["x" * 500], question="q", answer="a")
    tight = encoder._replace(max_tokens=300, doc_max_tokens=256)
    check_records([record], Feed(tight, msgspec.structs.replace(MIXED, autoencode_share=0.0)))
    with pytest.raises(ClaraError, match=r"^novel: "):
        check_records([record], Feed(tight, MIXED))


@pytest.mark.parametrize(
    "record",
    [
        Record(id="r", docs=["d"], question=["q", "q"], answers=["a", "a" * 200]),
        Record(id="r", docs=["d"], data_type="paraphrase", paraphrase="p" * 100),
    ],
    ids=["the answer of a later question", "a longer wording"],
)
def test_what_passes_the_check_can_be_trained_on_in_every_epoch(encoder: Encoder, record: Record) -> None:
    first = msgspec.structs.replace(record, question=record.questions[:1], answers=record.replies[:1])
    tight = encoder._replace(max_tokens=len(encode_record(encoder, first, record.data_type).tokens))
    config = DataConfig(batch_size=1, qa_form="turns")
    try:
        check_records([record], Feed(tight, config))
    except ClaraError:
        return  # refused before the first step: that is as good
    assert len(list(training_batches([record], tight, config, 6))) == 6
