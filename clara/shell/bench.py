"""Measures speed and memory: training steps, compression, answers, stores, the way of data, start-up and growth.

Run `python -m clara.shell.bench`; its last line is one JSON document with all that it found. Save the output of one
machine or commit and give it to `--compare` on another. Weights are random unless `--model` names a base. Started by
`mlx.launch`, it measures steps that several processes do together, and what they send each other.
"""

from __future__ import annotations

import gc
import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import msgspec

from clara.io import cpu, cuda
from clara.io.base import locate_base
from clara.io.checkpoint import versions
from clara.io.errors import ClaraError, short_of_memory
from clara.shell.benching.cases import Case, chosen_cases, ratios_of
from clara.shell.benching.feeding import read_data
from clara.shell.benching.options import BenchOptions, read_options
from clara.shell.benching.table import (
    Document,
    Old,
    differing,
    fact_lines,
    progress_line,
    ratio_lines,
    read_document,
    table,
)
from clara.shell.benching.timing import Result, matrix_work, measure
from clara.shell.benching.workbench import Workbench, workbench
from clara.shell.command import guarded
from clara.shell.launch import ranked
from clara.shell.ranks import Ranks
from clara.shell.setup import prepare_device

COMMAND = "python -m clara.shell.bench"

MATRIX = {"tiny": 512, "cpu": 2048, "gpu": 8192}
"""Rows and columns of the matrix product that floating-point rates are compared with."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 1 a message or a case that failed, 130 stopped by Ctrl-C."""
    cuda.launch_plainly()
    return guarded(lambda: ranked(lambda ranks: run(read_options(COMMAND, __doc__ or "", argv), ranks)))


def run(options: BenchOptions, ranks: Ranks) -> int:
    """Run the chosen cases and print what came of them; return the exit status."""
    cases = chosen_cases(options, several=ranks.size > 1)
    old = read_document(options.compare) if options.compare else None
    if any(case.group == "data" for case in cases):
        read_data(options.data)
    if options.model:
        locate_base(options.model)  # refuses a base that is not there, before any case runs
    compiled = prepare_device(options.compile)
    with workbench(options, compiled, ranks) as bench:
        heading = about(bench)
        for name, text in heading.items():
            print(f"{name:9s} {text}", flush=True)
        results, stopped = results_of(bench, cases)
    show(
        Document(
            about=heading,
            options=options,
            matrix_flops_per_second=results[0].flops_per_second,
            results=results,
            ratios=dict(ratios_of(results)),
        ),
        old,
    )
    failed = [each for each in results if each.error and not each.error.startswith("out of memory")]
    return 130 if stopped else 1 if failed else 0


def results_of(bench: Workbench, cases: Sequence[Case]) -> tuple[list[Result], bool]:
    """Return the results of the matrix product and of cases, and whether Ctrl-C left some of these out."""
    results = [matrix_result(bench)]
    say(progress_line(results[0]))
    try:
        for case in cases:
            results.append(measured(bench, case, results[0].flops_per_second))
    except KeyboardInterrupt:
        say(f"stopped after {len(results) - 1} of {len(cases)} cases")
        return results, True
    return results, False


def say(line: str) -> None:
    """Tell how far the run has come, beside its output."""
    print(line, file=sys.stderr, flush=True)


def about(bench: Workbench) -> dict[str, str]:
    """Return what the numbers belong to."""
    size, options = bench.size, bench.options
    device = str(mx.device_info().get("device_name", ""))
    kind = mx.default_device().type.name
    shapes = (
        f"{bench.rows} rows of {size.document + size.memory_tokens + 3} document and {size.decoder} decoder "
        f"positions, {size.answer} of them answer; rank {options.lora.rank}, dropout {options.lora.dropout:g}"
        + (f"; {bench.ranks.size} ranks, as many rows each" if bench.ranks.size > 1 else "")
    )
    return {
        "device": f"{kind}, {device}" + (f", BLAS: {cpu.preload()}" if kind == "cpu" else ""),
        "code": code_digest(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "model": options.model or f"random weights, shape {options.size}",
        "dtype": "as loaded" if options.model else str(bench.dtype).removeprefix("mlx.core."),
        "shapes": shapes,
        "steps": "compiled" if bench.compiled else "not compiled",
    }


def code_digest() -> str:
    """Return 8 hexadecimal digits of the SHA-256 of this package's source, by which two commits can be told apart."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def matrix_result(bench: Workbench) -> Result:
    """Return the result of the matrix product that all others are compared with."""
    kind = "cpu" if mx.default_device() == mx.cpu else "gpu"
    width = MATRIX["tiny" if bench.options.size == "tiny" else kind]
    name = f"product {width}"
    found = measure(matrix_work(bench.dtype, width), "matrix", name, 20, 10.0)
    return msgspec.structs.replace(found, matrix_share=1.0)


def measured(bench: Workbench, case: Case, matrix: float) -> Result:
    """Return the result of a case; where it fails, a row that says so. Raises ClaraError for what the user can mend."""
    options = bench.options
    # Several ranks must all do a case equally often, however long it takes each of them.
    seconds = options.seconds if bench.ranks.size == 1 else math.inf
    try:
        result = measure(case.prepare(bench), case.group, case.name, options.rounds, seconds, matrix)
    except ClaraError:
        raise
    except (RuntimeError, MemoryError, ValueError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        failed = f"out of memory: {said}" if short_of_memory(error) else f"failed: {said}"
        if bench.ranks.size > 1:  # the others wait for this one in this case: there is no going on
            raise ClaraError(f"rank {bench.ranks.rank}, {case.path}: {failed}") from error
        result = Result(group=case.group, case=case.name, error=failed)
    gc.collect()
    mx.clear_cache()
    say(progress_line(result))
    return result


def show(document: Document, old: Old | None, write: Callable[[str], None] = print) -> None:
    """Print table, ratios and, as the last line, the document."""
    lines = [*differing(document.about, old), ""] if old else [""]
    for line in [
        *lines,
        *table(document.results, old),
        "",
        *fact_lines(document.results),
        "",
        *ratio_lines(document.ratios),
    ]:
        write(line)
    write(msgspec.json.encode(document).decode())


if __name__ == "__main__":
    sys.exit(main())
