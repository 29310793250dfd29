"""One stage's training, ready to go: everything is read and checked before the first step is computed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from clara.core.config import CHOOSING
from clara.core.optim import adamw
from clara.core.packing import Packing, pack, pack_state, packing_of, unpack, unpack_state
from clara.core.stages import joined, trained_leaves
from clara.core.step import EvalStep, make_eval_step, make_train_step, make_update
from clara.core.types import Params, TrainState
from clara.io import cpu
from clara.io.checkpoint import Checkpoint, Manifest, save_checkpoint, versions
from clara.io.dataset import Feed, check_records, distinct_documents
from clara.io.errors import ClaraError
from clara.io.memories import read_memories
from clara.io.records import Record, check_stage, document_records, golden, read_records, with_candidates
from clara.shell.loop import Update
from clara.shell.memories import compress_all
from clara.shell.options import Options, heldout_of, to_plain
from clara.shell.progress import heading
from clara.shell.ranks import ALONE, Ranks, first, require_even, require_same, share
from clara.shell.reporters import check_reporters
from clara.shell.setup import Session, data_fingerprint, extras_of, open_session, prepare_device


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


def prepare(options: Options, checkpoint: Checkpoint | None, ranks: Ranks = ALONE) -> Job:
    """Read and check everything that a stage needs. Raises ClaraError for whatever would stop it later."""
    check_reporters(options.report_to)
    sources = [name for name in (options.data.data, pool_source(options)) if name]
    data = "-".join(map(data_fingerprint, sources))
    if checkpoint and checkpoint.manifest.data != data:
        raise ClaraError(f"{' and '.join(sources)}: not the data that this run was started with; resume with that")
    records, heldout = read_data(options)
    require_even(ranks, options.data.batch_size, len(records), options.data.data)
    start = checkpoint.manifest.step if checkpoint else 0
    if start > options.steps:
        raise ClaraError(f"{options.run}: has done {start} of {options.steps} steps; give a larger --steps")
    compiled = prepare_device(options.compile)
    session = open_session(options, checkpoint)
    require_same(ranks, {"data": data, "base": session.fingerprint}, "all ranks want the same files")
    feed = Feed(session.encoder, options.data, options.stage, options.retrieval.top_k, pool=read_pool(options))
    check_records([*records, *heldout], feed)
    trained, frozen = trained_leaves(session.config, session.params, options.data.reads == "memory")
    for line in heading(options, session, trained, records, cpu.preload()):
        print(line, flush=True)
    optimizer = adamw(options.optimizer, options.steps)
    packing = packing_of(trained)
    packed = first(ranks, pack(packing, trained))
    together = functools.partial(share, ranks)
    step = make_train_step(session.base, session.config, frozen, packing=packing, share=together)
    update = make_update(step, optimizer)
    optimizer_state = pack_state(packing, checkpoint.optimizer_state) if checkpoint else optimizer.init(packed)
    state = TrainState(packed, optimizer_state, mx.array(start))
    eval_step = make_eval_step(session.base, session.config, frozen, packing=packing)
    update = mx.compile(update) if compiled else update
    folder = Path(options.run)
    return Job(
        options, session, folder, records, heldout, feed, data, start, state, packing, frozen, update, eval_step, ranks
    )


def read_data(options: Options) -> tuple[list[Record], list[Record]]:
    """Return (training, held-out) records of a stage, each with the documents that it takes of them.

    Raises ClaraError for bad ones.
    """
    data, source = options.data, heldout_of(options.data)
    pairs = [(data.data, data.seed), *([(source, data.seed + 1)] if source else [])]
    sets = [with_candidates(read_records(name), data.candidates, seed) for name, seed in pairs]
    if data.gold_only and options.stage not in CHOOSING:
        sets = [golden(records) for records in sets]
    for records in sets:
        check_stage(records, options.stage)
    return sets[0], sets[1] if source else []


def pool_source(options: Options) -> str:
    """Return the data whose documents a stage repeats; empty where it takes those of its records, or repeats none."""
    data = options.data
    return data.autoencode_data if options.stage == "pretrain" and data.autoencode_share else ""


def read_pool(options: Options) -> list[Record]:
    """Return the documents that a stage repeats, a record each; none where `pool_source` is empty."""
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
    return job._replace(feed=job.feed._replace(memory=lambda wanted: read_memories(memories, wanted)))


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
