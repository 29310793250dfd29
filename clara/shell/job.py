"""One stage's training, ready to go: everything is read and checked before the first step is computed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from clara.core.collate import Tokens
from clara.core.config import CHOOSING, StepConfig
from clara.core.counterfactual import answer_table
from clara.core.optim import adamw
from clara.core.packing import Packing, pack, pack_state, packing_of, unpack, unpack_state
from clara.core.projection import whitening
from clara.core.stages import joined, trained_leaves
from clara.core.step import EvalStep, make_eval_step, make_train_step, make_update
from clara.core.types import Base, Optimizer, Params, TrainState
from clara.io import cpu
from clara.io.checkpoint import Checkpoint, Manifest, save_checkpoint, versions
from clara.io.dataset import distinct_documents
from clara.io.errors import ClaraError
from clara.io.feed import Feed
from clara.io.fitting import check_records
from clara.io.lengths import measured_widths
from clara.io.memories import read_memories
from clara.io.records import Record, check_stage, document_records, golden, read_records, with_candidates
from clara.shell.load import fitted, largest_load
from clara.shell.loop import Update
from clara.shell.memories import compress_all
from clara.shell.options import Options, heldout_of, to_plain
from clara.shell.progress import answer_lines, heading
from clara.shell.ranks import ALONE, Ranks, combined, first, require_even, require_same
from clara.shell.reporters import check_reporters
from clara.shell.setup import Session, data_fingerprint, extras_of, open_session, prepare_device
from clara.shell.teacher import beside_teacher, require_teacher, teacher_lines, teacher_name, teacher_of

LENS_DOCUMENTS = 4096
"""Documents whose memories the start of pooled relevance is taken from."""


class Job(NamedTuple):
    """A stage of a training run, ready to go."""

    options: Options
    session: Session
    folder: Path
    records: list[Record]
    heldout: list[Record]
    feed: Feed
    data: str
    """Fingerprint of the training data as it was read."""
    start: int
    """Steps that were done before."""
    state: TrainState
    """Where training goes on; its parameters are the trained leaves, packed."""
    packing: Packing
    """How they are packed."""
    frozen: Params
    """The parameters that the stage only reads."""
    update: Update
    eval_step: EvalStep
    ranks: Ranks = ALONE
    """The processes that share the work."""
    teacher: str = ""
    """Fingerprint of its teacher's parameters."""


def prepare(options: Options, checkpoint: Checkpoint | None, ranks: Ranks = ALONE) -> Job:
    """Read and check everything that a stage needs. Raises ClaraError for whatever would stop it later."""
    check_reporters(options.report_to)
    data = data_of(options, checkpoint)
    records, heldout = read_data(options)
    ranks = ranks._replace(cut=options.compute.shard and ranks.size > 1)
    require_even(ranks, options.data.batch_size, len(records), options.data.data)
    start = checkpoint.manifest.step if checkpoint else 0
    if start > options.steps:
        raise ClaraError(f"{options.run}: has done {start} of {options.steps} steps; give a larger --steps")
    compiled = prepare_device(options.compile)
    session = open_session(options, checkpoint, ranks=ranks)
    teacher = teacher_of(options, session.fingerprint)
    require_teacher(options, teacher, checkpoint)
    files = {"data": data, "base": session.fingerprint, "teacher": teacher_name(teacher)}
    require_same(ranks, files, "all ranks want the same files")
    feed = feed_of(options, session, records)
    check_records([*records, *heldout], feed)
    trained, frozen = trained_leaves(session.config, session.params, options.data.reads == "memory")
    read = beside_teacher(frozen, teacher, session.config)
    session, estimate = fitted(session, largest_load(options, feed, records, (trained, read), ranks))
    lines = heading(options, session, trained, records, cpu.preload())
    lines += [*answer_lines(options, feed.answers), *teacher_lines(options, teacher)]
    for line in (*lines, estimate, *cut_lines(options, ranks)):
        print(line, flush=True)
    optimizer = adamw(options.optimizer, options.steps)
    update, packing, packed = packed_update(session.base, session.config, (trained, read), optimizer, ranks)
    packed = first(ranks, packed)
    optimizer_state = packed_state(packing, checkpoint) if checkpoint else optimizer.init(packed)
    state = TrainState(packed, optimizer_state, mx.array(start))
    eval_step = make_eval_step(session.base, session.config, read, packing=packing)
    update = mx.compile(update) if compiled else update
    parts = (records, heldout, feed, data, start, state, packing, frozen, update, eval_step, ranks)
    return Job(options, session, Path(options.run), *parts, teacher_name(teacher))


def data_of(options: Options, checkpoint: Checkpoint | None) -> str:
    """Return the fingerprint of a stage's training data. Raises ClaraError where it is not that of a checkpoint."""
    sources = [name for name in (options.data.data, pool_source(options)) if name]
    data = "-".join(map(data_fingerprint, sources))
    if checkpoint and checkpoint.manifest.data != data:
        raise ClaraError(f"{' and '.join(sources)}: not the data that this run was started with; resume with that")
    return data


def packed_update(
    base: Base, config: StepConfig, params: tuple[Params, Params], optimizer: Optimizer, ranks: Ranks = ALONE
) -> tuple[Update, Packing, dict[str, mx.array]]:
    """Return (update, packing, vectors) of a stage: the step that ranks do together, on trained leaves as vectors.

    params: trained and frozen ones.
    """
    trained, frozen = params
    packing = packing_of(trained)
    together = functools.partial(combined, ranks)
    step = make_train_step(base, config, frozen, packing=packing, share=together)
    return make_update(step, optimizer), packing, pack(packing, trained)


def packed_state(packing: Packing, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the optimizer state of a checkpoint. Raises ClaraError where it lacks a leaf that is trained now."""
    try:
        return pack_state(packing, checkpoint.optimizer_state)
    except KeyError as error:
        raise ClaraError(
            f"{checkpoint.path}: its optimizer state has no {error.args[0]}; --start-from it begins a run anew"
        ) from error


def cut_lines(options: Options, ranks: Ranks) -> list[str]:
    """Return the line that says that the base is cut over the ranks, or why it is not where that is wanted."""
    if options.compute.shard and not ranks.cut:
        return ["note      shard changes nothing: there is one process; mlx.launch starts several"]
    return [f"shard     the base's blocks are cut over {ranks.size} ranks, which share each batch"] if ranks.cut else []


def read_data(options: Options) -> tuple[list[Record], list[Record]]:
    """Return (training, held-out) records of a stage, each with the documents that it takes of them.

    Raises ClaraError for bad ones.
    """
    data, source = options.data, heldout_of(options.data)
    pairs = [(data.data, data.seed), *([(source, data.seed + 1)] if source else [])]
    sets = [taken(read_records(name), options, seed) for name, seed in pairs]
    for records in sets:
        check_stage(records, options.stage)
    return sets[0], sets[1] if source else []


def taken(records: Sequence[Record], options: Options, seed: int) -> list[Record]:
    """Return records with the documents that a stage takes of them: filled up, or those alone that hold the answer.

    Raises ClaraError where `pretrain` would have others than a record's own.
    """
    data = options.data
    if data.gold_only and options.stage not in CHOOSING:
        return golden(records)
    if options.stage == "pretrain" and data.candidates > 1:
        check_stage(records, options.stage)
        raise ClaraError(f"--candidates {data.candidates}: stage pretrain wants one document a record; leave it out")
    return with_candidates(records, data.candidates, seed)


def feed_of(options: Options, session: Session, records: Sequence[Record]) -> Feed:
    """Return how the records of a stage become batches; `with_memories` adds the memories."""
    negatives = options.retrieval.in_batch_negatives and options.loss.contrastive_weight > 0
    top_k, pool = options.retrieval.top_k, read_pool(options)
    feed = Feed(session.encoder, options.data, options.stage, top_k, pool=pool, in_batch_negatives=negatives)
    if options.data.counterfactual_share and options.stage not in CHOOSING:
        asked = (record for record in records if record.data_type == "qa")
        feed = feed._replace(answers=answer_table(answer for record in asked for answer in record.replies))
    feed = feed._replace(teacher=options.loss.distillation_weight > 0)
    if not options.data.length_buckets:
        return feed
    return feed._replace(widths=measured_widths(records, feed, options.steps, session.config.trains_compressor))


def pool_source(options: Options) -> str:
    """Return the data whose documents a stage repeats or fills in; empty where it takes its records', or none."""
    data = options.data
    return data.autoencode_data if options.stage == "pretrain" and (data.autoencode_share or data.cloze_share) else ""


def read_pool(options: Options) -> list[Record]:
    """Return the documents that a stage repeats or fills in, a record each; none where `pool_source` is empty."""
    source = pool_source(options)
    return document_records(read_records(source)) if source else []


def with_memories(job: Job) -> Job:
    """Return the job with all of its documents compressed, where the stage has a frozen compressor."""
    options = job.options
    if job.session.config.trains_compressor:
        return job
    root = Path(options.memories).expanduser() if options.memories else job.folder / "memories"
    documents = distinct_documents([*job.records, *job.heldout], job.session.encoder)
    memories = compress_all(job.session, documents, root, ranks=job.ranks)
    job = job._replace(feed=job.feed._replace(memory=lambda wanted: read_memories(memories, wanted)))
    return with_lens(job, documents) if job.session.config.has_lens else job


def with_lens(job: Job, documents: Sequence[Tokens]) -> Job:
    """Return a job whose pooled relevance begins with the whitening of documents' memories, where it was not trained.

    Every document's vectors count, of at most `LENS_DOCUMENTS` documents, evenly spaced.
    """
    params = unpack(job.packing, job.state.params)
    if not mx.array_equal(params["relevance_map"], mx.eye(len(params["relevance_map"]))):
        return job
    assert job.feed.memory is not None
    some = documents[:: max(-(-len(documents) // LENS_DOCUMENTS), 1)]
    memory = np.array(job.feed.memory(some).astype(mx.float32))
    center, weights = whitening(memory.reshape(-1, memory.shape[-1]))
    params |= {"relevance_center": mx.array(center), "relevance_map": mx.array(weights)}
    return job._replace(state=job.state._replace(params=first(job.ranks, pack(job.packing, params))))


def current(job: Job, state: TrainState) -> Session:
    """Return the session with the parameters that a state has come to."""
    return job.session._replace(params=joined(unpack(job.packing, state.params), job.frozen))


def save(job: Job, state: TrainState) -> Path:
    """Write a checkpoint with all parameters, trained and frozen; return its path."""
    options = job.options
    manifest = Manifest(
        step=int(state.step),
        stage=options.stage,
        base=job.session.fingerprint,
        data=job.data,
        seed=options.data.seed,
        teacher=job.teacher,
        started_from=options.start_from,
        origin=dict(job.session.origin),
        versions=versions(),
    )
    return save_checkpoint(
        job.folder / "checkpoints",
        current(job, state).params,
        unpack_state(job.packing, state.optimizer_state),
        extras_of(job.session.base),
        to_plain(options),
        manifest,
        options.keep,
    )
