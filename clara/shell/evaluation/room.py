"""Whether the base's context holds what each system reads: said before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from clara.io.errors import ClaraError
from clara.io.evaluation.formats import Question
from clara.io.evaluation.systems import SYSTEMS, serves
from clara.shell.answer import memory_prompt, text_prompt
from clara.shell.evaluation.answering import wording
from clara.shell.evaluation.choosing import Bench, candidates_of


def require_room(bench: Bench, questions: Sequence[Question], systems: Sequence[str]) -> None:
    """Raise ClaraError where the base's context does not hold what a system reads, and its answer, of some question."""
    for name in systems:
        widest: dict[str, tuple[int, Question]] = {}
        for question in questions:
            count = most_read(bench, name, question)
            if serves(name, question, bench.corpus) and count > widest.get(question.task, (-1, question))[0]:
                widest[question.task] = count, question
        for count, question in widest.values():
            session, room = wording(bench, SYSTEMS[name], question)
            try:
                if SYSTEMS[name].tuned:
                    memory_prompt(session, count, question.text, room)
                else:
                    text_prompt(session, [*question.documents, *bench.corpus][: bool(count)], question.text, room)
            except (ClaraError, ValueError) as error:
                raise ClaraError(f"system {name} reads {count} documents: {error}") from error


def most_read(bench: Bench, name: str, question: Question) -> int:
    """Return how many documents a system reads for a question, at most."""
    reads = SYSTEMS[name].reads
    fixed = {"known": question.known, "other": bench.others.get(question.id, ()), "nothing": ()}
    if reads in fixed:
        return len(fixed[reads])
    return min(bench.top_k, len(candidates_of(bench, question) if reads == "candidates" else bench.corpus))
