"""Opens the checkpoints of evaluations and runs, and maps the states of their compressors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clara.io.errors import ClaraError
from clara.io.evaluation.evaluations import Evaluation, Run
from clara.io.report.document import Section
from clara.shell.options import heldout_of, to_options
from clara.shell.reporting.states import first_texts, map_section, mean_states
from clara.shell.stores import checkpoint_for, session_of


def map_sections(evaluations: Sequence[Evaluation], runs: Sequence[Run], count: int, data: str) -> list[Section]:
    """Return a map for each checkpoint, of the first `count` documents of data, or of what was evaluated with it.

    Raises ClaraError, with nothing computed, where a checkpoint or its documents are not there, where one was trained
    on text, or there is no checkpoint at all.
    """
    places = {each.facts.checkpoint: data or each.facts.corpus for each in evaluations}
    places |= {str(run.path): data or run_data(run) for run in runs if not any(is_of(run, path) for path in places)}
    places.pop("", None)
    if not places:
        raise ClaraError("--map: none of the folders names a checkpoint; give the folder of a training run too")
    checkpoints = [checkpoint_for(Path(path), path) for path in places]
    texts = {own: first_texts(own, count) for own in dict.fromkeys(places.values())}
    sections = []
    for i, ((path, own), checkpoint) in enumerate(zip(places.items(), checkpoints, strict=True), 1):
        print(f"map       {len(texts[own]):,} documents of {own}, by {path}", flush=True)
        session = session_of(checkpoint)
        sections.append(map_section(f"{path}: {own}", f"map-{i}", *mean_states(session, texts[own])))
    return sections


def is_of(run: Run, checkpoint: str) -> bool:
    """Return whether a checkpoint is one of a run's."""
    return bool(checkpoint) and Path(checkpoint).resolve().is_relative_to(run.path.resolve())


def run_data(run: Run) -> str:
    """Return the data that a run was measured with, or that it was trained on where it had none held out."""
    options = to_options(run.config, str(run.path))
    return heldout_of(options.data) or options.data.data
