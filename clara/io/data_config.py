"""Options of data: what is learnt from, in which order and in which portions."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct


class DataConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is learnt from, in which order and in which portions."""

    data: Annotated[
        str,
        Meta(
            description="Training data: JSON Lines files, with commas between, or the built-in `sample`; what is named "
            "twice counts twice."
        ),
    ] = "sample"
    heldout: Annotated[
        str,
        Meta(description="Held-out data, likewise; auto: `sample-heldout` for the sample, none for other data."),
    ] = "auto"
    candidates: Annotated[
        int,
        Meta(
            ge=0,
            description="Documents that each record has at least, filled up from other records; 0 = its own alone.",
        ),
    ] = 0
    gold_only: Annotated[
        bool,
        Meta(description="`pretrain` and `instruct` read only the documents that hold the answer (pos_index)."),
    ] = False
    reads: Annotated[
        Literal["memory", "text"],
        Meta(
            description="What prompts of `pretrain` and `instruct` hold of documents: memory, or text: their first "
            "doc_max_tokens, for a generator that is tuned without any compressor."
        ),
    ] = "memory"
    batch_size: Annotated[int, Meta(ge=1, description="Examples of one optimizer step.")] = 128
    accumulate: Annotated[
        int,
        Meta(
            ge=1,
            description="Micro-batches that a batch is cut into; saves memory, and changes results by rounding and by "
            "the keys of dropout alone.",
        ),
    ] = 1
    max_tokens: Annotated[int, Meta(ge=8, description="Longest decoder row; questions are cut, never answers.")] = 1024
    length_multiple: Annotated[int, Meta(ge=1, description="Lengths are padded to a multiple of this.")] = 32
    length_buckets: Annotated[
        int,
        Meta(
            ge=0,
            description="Lengths that rows of each kind are padded to, chosen from the data; 0 = every multiple. "
            "A compiled step is traced anew for every combination.",
        ),
    ] = 0
    qa_form: Annotated[
        Literal["pairs", "turns"],
        Meta(
            description="How `pretrain` learns: pairs: one reply with all questions and answers; turns: each question "
            "asked, answers learnt."
        ),
    ] = "pairs"
    autoencode_share: Annotated[
        float, Meta(ge=0, le=1, description="Share of `pretrain` examples that repeat their document, at first.")
    ] = 0.0
    autoencode_until: Annotated[
        float, Meta(gt=0, le=1, description="Part of the run in which that share fades to its floor.")
    ] = 1.0
    autoencode_floor: Annotated[float, Meta(ge=0, le=1, description="What that share fades to.")] = 0.0
    autoencode_data: Annotated[
        str,
        Meta(
            description="Further data, whose distinct documents such examples repeat or fill in, each of them whether "
            "it holds an answer or not; empty: the record's own."
        ),
    ] = ""
    paraphrase_share: Annotated[
        float,
        Meta(ge=0, le=1, description="Share of `pretrain` examples that learn the paraphrase, of records with one."),
    ] = 0.0
    cloze_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of `pretrain` examples that fill in what was left out of a document's sentences, of "
            "those that do not repeat it; documents as in autoencode_data.",
        ),
    ] = 0.0
    counterfactual_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of the examples of `pretrain` and `instruct` that answer questions whose documents are "
            "made to say otherwise: answers of other records stand in the place of theirs.",
        ),
    ] = 0.0
    seed: Annotated[
        int, Meta(ge=0, lt=2**32, description="Seed of shuffling, task mixing, dropout and start values.")
    ] = 0

    def __post_init__(self) -> None:
        if self.autoencode_floor > self.autoencode_share:
            raise ValueError(
                f"autoencode_floor {self.autoencode_floor} is more than autoencode_share {self.autoencode_share}, "
                "which fades to it: it must not be larger"
            )
        if self.paraphrase_share + self.cloze_share > 1:
            raise ValueError(
                f"paraphrase_share {self.paraphrase_share} and cloze_share {self.cloze_share} are more than 1 "
                "together: both are shares of the examples that repeat no document"
            )
