"""Every case once: its group, its name and how it is prepared; and the ratios of cases that say what is gained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

from clara.core.config import STAGES, Stage
from clara.io.errors import ClaraError
from clara.shell.benching.answers import DOCUMENTS, first_token_work, tokens_work
from clara.shell.benching.baselines import mlx_lm_work, naive_work
from clara.shell.benching.feeding import loop_work, padding_work, records_work
from clara.shell.benching.growth import compress_growth_work, steps_growth_work
from clara.shell.benching.options import BenchOptions, store_sizes
from clara.shell.benching.startup import startup_work
from clara.shell.benching.steps import BATCHES, compress_work, step_work
from clara.shell.benching.stores import BATCH, PACKINGS, adding_work, memory_search_work, words_search_work
from clara.shell.benching.sums import gradient_work, message_work
from clara.shell.benching.timing import Result, Work
from clara.shell.benching.workbench import Workbench

NAIVE: tuple[Stage, ...] = ("pretrain", "end_to_end")
"""Stages whose steps are also done the naive way."""


class Case(NamedTuple):
    """One row of the table."""

    group: str
    name: str
    prepare: Callable[[Workbench], Work]

    @property
    def path(self) -> str:
        """GROUP/CASE, as `--only` names it."""
        return f"{self.group}/{self.name}"


class Ratio(NamedTuple):
    """How many times faster one case is than another."""

    what: str
    fast: str
    slow: str
    """GROUP/CASE of both."""
    per: str = ""
    """What is counted per second; empty to compare seconds."""


def all_cases(options: BenchOptions) -> list[Case]:
    """Return all cases, those first that want a process with nothing in its memory."""
    return [
        *(Case("startup", until, partial(startup_work, until=until)) for until in ("import", "load", "first step")),
        *(Case("step", stage, partial(step_work, stage=stage)) for stage in STAGES),
        *(Case("step", f"{stage} naive", partial(naive_work, stage=stage)) for stage in NAIVE),
        Case("step", "mlx-lm LoRA", mlx_lm_work),
        Case("step", "end_to_end recompressed", partial(step_work, stage="end_to_end", cached=False)),
        Case("compress", "one batch", compress_work),
        Case("compress", f"{BATCHES} batches", partial(compress_work, batches=BATCHES)),
        *(
            Case("answer", f"{what} {way} {count}", partial(work, way=way, count=count))
            for count in DOCUMENTS
            for what, work in (("first token", first_token_work), ("tokens", tokens_work))
            for way in ("memory", "text")
        ),
        *store_cases(store_sizes(options)),
        Case("data", "tokenise and collate", records_work),
        Case("data", "loop", loop_work),
        Case("data", "buckets", partial(padding_work, fixed=False)),
        Case("data", "fixed padding", partial(padding_work, fixed=True)),
        Case("growth", "pretrain", steps_growth_work),
        Case("growth", "compress", compress_growth_work),
    ]


def store_cases(sizes: Sequence[int]) -> list[Case]:
    """Return the cases on stores of these sizes; the other packings on the first alone."""
    first, found = sizes[0], list[Case]()
    for n in sizes:
        found.append(Case("retrieval", f"memory {n}", partial(memory_search_work, number=n)))
        found.append(Case("retrieval", f"words {n}", partial(words_search_work, number=n)))
    for packing in list(PACKINGS)[1:]:
        name = f"memory {first} {packing}"
        found.append(Case("retrieval", name, partial(memory_search_work, number=first, packing=packing)))
    name = f"memory {first} 8 questions"
    found.append(Case("retrieval", name, partial(memory_search_work, number=first, questions=8)))
    return [*found, Case("retrieval", f"add {BATCH} to {first}", partial(adding_work, number=first))]


def shared_cases() -> list[Case]:
    """Return the cases of several ranks: steps that they do together, and what they send each other."""
    return [
        *(Case("step", stage, partial(step_work, stage=stage)) for stage in STAGES),
        Case("ranks", "sum of a gradient", gradient_work),
        Case("ranks", "smallest sum", message_work),
    ]


def chosen_cases(options: BenchOptions, several: bool = False) -> list[Case]:
    """Return the cases that `only` names; several: of those for several ranks.

    Raises ClaraError where a part of it names none.
    """
    cases = shared_cases() if several else all_cases(options)
    if not options.only:
        return cases
    found = set[str]()
    for part in options.only.split(","):
        pattern = part.strip()
        paths = {case.path for case in cases if fnmatchcase(case.path, pattern) or fnmatchcase(case.group, pattern)}
        if not paths:
            groups = dict.fromkeys(case.group for case in cases)
            near = [case.name for case in cases if fnmatchcase(case.group, pattern.partition("/")[0])]
            known = f"{pattern.partition('/')[0]} has {', '.join(near)}" if near else f"groups are {', '.join(groups)}"
            raise ClaraError(f"--only {pattern}: no such case; {known}")
        found |= paths
    return [case for case in cases if case.path in found]


def all_ratios() -> list[Ratio]:
    """Return the ratios that are told where both of their cases ran."""
    return [
        Ratio("pretrain over mlx-lm's LoRA step, tokens/s", "step/pretrain", "step/mlx-lm LoRA", "tokens"),
        Ratio("pretrain over the naive step, tokens/s", "step/pretrain", "step/pretrain naive", "tokens"),
        Ratio("end_to_end, kept memories over the naive step", "step/end_to_end", "step/end_to_end naive"),
        Ratio("end_to_end, kept memories over recompressed", "step/end_to_end", "step/end_to_end recompressed"),
        Ratio("length buckets over fixed padding, tokens/s", "data/buckets", "data/fixed padding", "tokens"),
        *(
            Ratio(f"{what}, memory over text, {n} documents", f"answer/{case} memory {n}", f"answer/{case} text {n}")
            for n in DOCUMENTS
            for what, case in (("first token", "first token"), ("tokens after it", "tokens"))
        ),
    ]


def ratios_of(results: Sequence[Result]) -> Mapping[str, float]:
    """Return the ratios between cases that both ran, above 1 where the first is the faster one."""
    found = {f"{result.group}/{result.case}": result for result in results if not result.error}
    return {
        each.what: found[each.fast].rates[each.per] / found[each.slow].rates[each.per]
        if each.per
        else found[each.slow].seconds / found[each.fast].seconds
        for each in all_ratios()
        if each.fast in found and each.slow in found
    }
