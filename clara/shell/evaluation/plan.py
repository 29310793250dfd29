"""An evaluation, read and checked, ready to go: what is asked of which systems, and whether a folder is of its kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import mlx.core as mx
import msgspec
import numpy as np
from msgspec import Meta, Struct

from clara.io.base import load_base_tokenizer
from clara.io.builtin import BUILTIN, is_builtin, run_name, run_or_builtin
from clara.io.checkpoint import PARAMS, Checkpoint, newest_checkpoint, versions
from clara.io.corpus.cutting import cut
from clara.io.corpus.passages import read_passages
from clara.io.corpus.pdf import read_pdf
from clara.io.errors import ClaraError
from clara.io.evaluation.counterfactual import counterfactual
from clara.io.evaluation.evaluations import read_config
from clara.io.evaluation.formats import FORMATS, Question
from clara.io.evaluation.predictions import CONFIG
from clara.io.evaluation.questions import PAPER, QuestionSet, read_questions
from clara.io.evaluation.systems import SYSTEMS, other_documents, serves
from clara.io.files import write_atomic
from clara.shell.answer import MAX_TOKENS, has_reasoner
from clara.shell.evaluation.choosing import WORDS, Bench, index_words
from clara.shell.evaluation.documents import cut_documents
from clara.shell.evaluation.reader import open_reader, require_memory, text_checkpoint, text_facts
from clara.shell.evaluation.room import require_room
from clara.shell.options import Options, to_options
from clara.shell.retrieve import default_search
from clara.shell.setup import data_fingerprint
from clara.shell.stores import builtin_line, session_of

FREE = ("checkpoint", "text_checkpoint", "model", "data", "corpus", "systems")
"""Fields of a configuration that may differ where an evaluation goes on: names of what has a fingerprint, and systems,
which are apart from one another."""
ABSENT = {"counterfactual": False, "not_rewritten": 0, "beams": 1}
"""What a configuration means that was written before it had these fields."""


class EvaluateOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that an evaluation depends on."""

    checkpoint: Annotated[
        str, Meta(description=f"Run or checkpoint that is measured; empty for the built-in {BUILTIN}.")
    ] = ""
    data: Annotated[str, Meta(description="Questions: a file, or the built-in sample-heldout.")] = ""
    paper: Annotated[str, Meta(description="PDF of the CLaRa paper: ask the built-in questions about it.")] = ""
    text_checkpoint: Annotated[
        str, Meta(description="Run that was trained with data.reads text, on the same base, for the system tuned_text.")
    ] = ""
    systems: Annotated[
        str, Meta(description=f"Systems, with commas between: {', '.join(SYSTEMS)}; all that the data can serve.")
    ] = "all"
    counterfactual: Annotated[
        bool,
        Meta(description="Have the documents say otherwise: another question's answer stands for the right one."),
    ] = False
    out: Annotated[str, Meta(description="Folder of the evaluation; empty for one in the run's, or under runs/.")] = ""
    limit: Annotated[int, Meta(ge=0, description="Questions, drawn by the seed; 0 for all.")] = 0
    top_k: Annotated[int, Meta(ge=0, description="Documents that a system chooses; 0 for as many as in training.")] = 0
    corpus: Annotated[
        str, Meta(description="JSON Lines of passages that systems search in; empty for all documents of the data.")
    ] = ""
    format: Annotated[str, Meta(description=f"Format of the data: {', '.join(FORMATS)}; auto looks at it.")] = "auto"
    paraphrases: Annotated[bool, Meta(description="Also ask for the paraphrases that records have.")] = False
    batch_size: Annotated[int, Meta(ge=1, description="Questions that are answered together.")] = 8
    max_tokens: Annotated[int, Meta(ge=1, description="Longest answer, in tokens.")] = MAX_TOKENS
    beams: Annotated[
        int, Meta(ge=0, description="Beams of the search for an answer; 1 = greedy; 0 for as many as the run says.")
    ] = 0
    seed: Annotated[int, Meta(ge=0, description="Of what is drawn: limit, other documents, intervals, tests.")] = 0
    model: Annotated[str, Meta(description="The base, where it is not the one that the checkpoint names.")] = ""
    memories: Annotated[
        str, Meta(description="Folder of the documents' memories, which runs may share; empty: in the evaluation's.")
    ] = ""


class Plan(NamedTuple):
    """An evaluation that nothing stands against."""

    options: EvaluateOptions
    bench: Bench
    questions: list[Question]
    systems: list[str]
    """Those that are asked now."""
    out: Path
    config: dict[str, Any]
    """All that its numbers depend on, as its folder keeps it."""


def plan_of(options: EvaluateOptions) -> Plan:
    """Return an evaluation, ready to go. Raises ClaraError for whatever would stop it, before anything is computed."""
    if bool(options.data) == bool(options.paper):
        raise ClaraError("wanted either --data FILE or --paper PDF")
    if options.paper and options.counterfactual:
        raise ClaraError(
            "--counterfactual rewrites documents of questions, and those of --paper have none: leave it out"
        )
    checkpoint, problems = newest_checkpoint(run_or_builtin(options.checkpoint))
    for problem in problems:
        print(f"skipped a damaged checkpoint: {problem}")
    if not options.checkpoint:
        print(builtin_line(checkpoint))
    trained = to_options(checkpoint.config, str(checkpoint.path))
    require_memory(checkpoint)
    text = text_checkpoint(options.text_checkpoint, checkpoint.manifest.base) if options.text_checkpoint else None
    found, dropped = questions_of(options)
    corpus = corpus_of(options, found, trained)
    questions = drawn(found.questions, options.limit, options.seed)
    systems = systems_of(options.systems, questions, corpus, text is not None)
    others = others_of(options, questions) if "memory_shuffled" in systems else None
    systems = [name for name in systems if others is not None or name != "memory_shuffled"]
    session = session_of(checkpoint, options.model)
    session = session._replace(beams=options.beams or session.beams)
    counts_words = any(SYSTEMS[name].reads in WORDS or SYSTEMS[name].fused for name in systems)
    words = index_words(corpus, questions) if counts_words else None
    top_k = options.top_k or default_search(session).top_k
    reader = open_reader(text, session, options.model)._replace(beams=session.beams) if text else None
    bench = Bench(session, corpus, words, others or {}, top_k, options.max_tokens, text_session=reader)
    require_room(bench, questions, systems)
    out = Path(options.out or default_folder(checkpoint, options)).expanduser()
    config = config_of(options, bench, found, questions, checkpoint) | {"not_rewritten": dropped, **text_facts(text)}
    plan = Plan(options, bench, questions, systems, out, config)
    return plan._replace(config=require_same(plan))


def questions_of(options: EvaluateOptions) -> tuple[QuestionSet, int]:
    """Return the questions, and how many were left out since no other answer can stand in their documents.

    Raises ClaraError where none is left.
    """
    found = read_questions(options.data or PAPER, options.format, options.paraphrases)
    if not options.counterfactual:
        return found, 0
    if options.corpus:
        raise ClaraError("--counterfactual beside --corpus: passages of a corpus are not rewritten; leave one out")
    questions, dropped = counterfactual(found.questions, options.seed)
    if not questions:
        raise ClaraError(
            f"--counterfactual: none of the {dropped:,} questions has an answer that stands in its documents, and "
            "another to put in its place"
        )
    return found._replace(questions=questions), dropped


def corpus_of(options: EvaluateOptions, found: QuestionSet, trained: Options) -> list[str]:
    """Return the distinct passages that systems search in."""
    if options.paper:
        document, notes = read_pdf(Path(options.paper).expanduser())
        for note in notes:
            print(f"paper     {note}")
        tokenizer = load_base_tokenizer(options.model or trained.model)
        passages = [each.text for each in cut(document, tokenizer, trained.memory.doc_max_tokens)]
        return list(dict.fromkeys(passages))
    if options.corpus:
        return [passage.text for passage in read_passages(options.corpus)]
    return list(dict.fromkeys(text for question in found.questions for text in question.documents))


def drawn(questions: Sequence[Question], limit: int, seed: int) -> list[Question]:
    """Return so many questions, drawn by the seed, in their order; all of them for 0."""
    if not limit or limit >= len(questions):
        return list(questions)
    return [questions[i] for i in np.sort(np.random.default_rng([seed, 6]).permutation(len(questions))[:limit])]


def systems_of(names: str, questions: Sequence[Question], corpus: Sequence[str], text: bool = False) -> list[str]:
    """Return the systems that are named, or all that can be asked. Raises ClaraError for one that cannot.

    text: whether there is a generator that was tuned on text.
    """
    served = [name for name in SYSTEMS if any(serves(name, question, corpus) for question in questions)]
    served = [name for name in served if text or not SYSTEMS[name].tuned_on_text]
    if names == "all":
        return served
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",")))
    if unknown := [name for name in wanted if name not in SYSTEMS]:
        raise ClaraError(f"--systems {', '.join(unknown)}: not one of {', '.join(SYSTEMS)}")
    if alone := [name for name in wanted if SYSTEMS[name].tuned_on_text and not text]:
        raise ClaraError(f"--systems {', '.join(alone)}: wanted --text-checkpoint RUN, a run with data.reads text")
    if lacking := [name for name in wanted if name not in served]:
        raise ClaraError(
            f"--systems {', '.join(lacking)}: the questions have no documents to read"
            + ("" if corpus else ", and there is no --corpus")
            + f"; of use here are {', '.join(served)}"
        )
    return wanted


def others_of(options: EvaluateOptions, questions: Sequence[Question]) -> dict[str, tuple[str, ...]] | None:
    """Return the documents of another question for each one; None, with a note, where only `all` wants them in vain."""
    try:
        return other_documents([each for each in questions if each.documents], options.seed)
    except ClaraError as error:
        if options.systems != "all":
            raise
        print(f"note      without memory_shuffled: {str(error).partition(';')[0]}")
        return None


def default_folder(checkpoint: Checkpoint, options: EvaluateOptions) -> Path:
    """Return where the evaluation of a checkpoint on a file is kept: evaluations/FILE-STEP in the folder of its run.

    Of the built-in checkpoint, which nothing is written to, it is runs/evaluations/NAME-FILE-STEP.
    """
    stem = Path(options.data or options.paper).stem + "-counterfactual" * options.counterfactual
    if is_builtin(checkpoint.path):
        return Path("runs") / "evaluations" / f"{BUILTIN}-{stem}-step-{checkpoint.manifest.step:06}"
    inside = checkpoint.path.parent
    run = inside.parent if inside.name == "checkpoints" else inside
    return run / "evaluations" / f"{stem}-step-{checkpoint.manifest.step:06}"


def config_of(
    options: EvaluateOptions,
    bench: Bench,
    found: QuestionSet,
    questions: Sequence[Question],
    checkpoint: Checkpoint,
) -> dict[str, Any]:
    """Return all that an evaluation's numbers depend on, and what it was made of, as plain data."""
    memory, manifest = bench.session.config.memory, checkpoint.manifest
    settings = ("limit", "batch_size", "max_tokens", "seed", "paraphrases", "counterfactual")
    return {
        "checkpoint": run_name(checkpoint.path),
        "parameters": manifest.files[PARAMS][:16],
        "step": manifest.step,
        "stage": manifest.stage,
        "model": options.model or str(checkpoint.config["model"]),
        "base": manifest.base,
        "compression_rate": memory.compression_rate,
        "num_memory_tokens": memory.num_memory_tokens,
        "doc_max_tokens": memory.doc_max_tokens,
        "data": options.data or "paper",
        "data_fingerprint": data_fingerprint(options.data or PAPER),
        "format": found.format,
        "questions": len(questions),
        "left_out": found.left_out,
        "corpus": options.corpus or options.paper or options.data,
        **bench_facts(bench, questions),
        **{name: getattr(options, name) for name in settings},
        "beams": bench.session.beams,
        "systems": [],
        "device": mx.default_device().type.name,
        "versions": versions(),
    }


def bench_facts(bench: Bench, questions: Sequence[Question]) -> dict[str, Any]:
    """Return what answers depend on besides options and files: passages, prompts, whether a reasoner chooses."""
    encoder = bench.session.encoder
    documents = {*bench.corpus, *(text for question in questions for text in question.documents)}
    return {
        "passages": len(bench.corpus),
        "corpus_fingerprint": hashed("\0".join(bench.corpus).encode("utf-8", "replace")),
        "top_k": bench.top_k,
        "documents": len(documents),
        "documents_cut": cut_documents(encoder, documents),
        "prompts": hashed(msgspec.json.encode(encoder.prompts)),
        "reasoner": has_reasoner(bench.session),
    }


def hashed(content: bytes) -> str:
    """Return 16 hexadecimal digits of a content."""
    return hashlib.sha256(content).hexdigest()[:16]


def require_same(plan: Plan) -> dict[str, Any]:
    """Return the configuration of an evaluation, with the systems that its folder has already.

    Raises ClaraError, naming the fields, where the folder is that of another evaluation.
    """
    before = read_config(plan.out)
    differing = [
        f"{name} {old!r}, not {value!r}"
        for name, value in plan.config.items()
        if before and name not in FREE and (old := before.get(name, ABSENT.get(name))) != value
        # What is said of a text checkpoint may come later than the rest.
        if name in before or not name.startswith("text_")
    ]
    if differing:
        raise ClaraError(
            f"{plan.out}: holds an evaluation with {'; '.join(differing)}; give another --out, or the same options"
        )
    known = {*before.get("systems", []), *plan.systems}
    kept = {name: value for name, value in before.items() if name.startswith("text_")}
    return {**kept, **plan.config, "systems": [name for name in SYSTEMS if name in known]}


def write_config(plan: Plan) -> None:
    """Write the configuration of an evaluation into its folder."""
    write_atomic(plan.out / CONFIG, msgspec.json.format(msgspec.json.encode(plan.config)) + b"\n")
