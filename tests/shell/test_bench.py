"""The command: one table and one line of JSON, which another run can be compared with; messages for what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import pytest
from folders import tiny_folder
from workbenches import tiny_bench

from clara.io.errors import ClaraError
from clara.shell import bench
from clara.shell.bench import code_digest, main
from clara.shell.benching.cases import Case
from clara.shell.benching.timing import Work
from clara.shell.ranks import Ranks

QUICK = ("--size", "tiny", "--rows", "1", "--rounds", "1")


@pytest.fixture(autouse=True)
def compilation() -> Iterator[None]:
    """Switch compilation on again, which the command switches off on a CPU."""
    yield
    mx.enable_compile()


def ran(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> tuple[list[str], dict[str, Any], str]:
    """Return the lines that a run prints, its document, and what it says on stderr."""
    assert main([*QUICK, *argv]) == status
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    return lines, msgspec.json.decode(lines[-1]), captured.err


def test_a_run_tells_what_it_ran_on_a_row_for_each_case_and_all_of_it_as_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines, document, progress = ran(capsys, "--only", "step/pretrain,step/mlx*")
    assert [line.split()[0] for line in lines[:6]] == ["device", "code", "versions", "model", "dtype", "shapes"]
    assert "1 rows of 59 document and 64 decoder positions, 32 of them answer; rank 16" in lines[5]
    found = {f"{each['group']}/{each['case']}": each for each in document["results"]}
    assert list(found) == ["matrix/product 512", "step/pretrain", "step/mlx-lm LoRA"]
    assert all(each["seconds"] > 0 and each["flops_per_second"] > 0 and not each["error"] for each in found.values())
    assert found["step/pretrain"]["peak_bytes"] > 0 and found["step/pretrain"]["rates"]["tokens"] > 0
    share = found["step/pretrain"]["flops_per_second"] / document["matrix_flops_per_second"]
    assert found["step/pretrain"]["matrix_share"] == pytest.approx(share)
    assert list(document["ratios"]) == ["pretrain over mlx-lm's LoRA step, tokens/s"]
    assert [line.split("  ")[0] for line in progress.splitlines()] == list(found)
    assert document["options"]["rows"] == 1 and document["about"]["code"] == code_digest()


def test_a_saved_run_can_be_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, _, _ = ran(capsys, "--only", "compress/one*")
    saved = tmp_path / "old.txt"
    saved.write_text("\n".join(lines))
    lines, _, _ = ran(capsys, "--only", "compress", "--compare", str(saved), "--rows", "2")
    (head,) = [line for line in lines if line.startswith("group")]
    rows = {line.split("  ")[1].strip(): line for line in lines if line.startswith("compress")}
    assert head.endswith("peak before") and rows["4 batches"].endswith("–") and not rows["one batch"].endswith("–")
    assert [line for line in lines if line.startswith("note      shapes")]


def test_a_real_base_takes_the_place_of_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path / "base")
    lines, document, _ = ran(capsys, "--only", "compress/one*", "--model", str(folder))
    assert lines[3].endswith(str(folder)) and len(document["results"]) == 2


def failing(error: BaseException) -> list[Case]:
    """Return a case that fails, and one after it."""

    def prepare(_: Any) -> Work:
        raise error

    return [Case("step", "bad", prepare), Case("step", "good", lambda _: Work(lambda _: mx.ones((2,)), {"ones": 2}))]


@pytest.mark.parametrize(
    ("error", "said", "status"),
    [
        (RuntimeError("[malloc] Unable to allocate"), "out of memory: [malloc] Unable to allocate", 0),
        (MemoryError(), "out of memory: MemoryError", 0),
        (RuntimeError("kernel\nmore"), "failed: kernel", 1),
    ],
)
def test_a_case_that_fails_is_a_row_and_not_the_end(
    error: Exception, said: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "chosen_cases", lambda *_, **__: failing(error))
    lines, document, _ = ran(capsys, status=status)
    assert [each["error"] for each in document["results"]] == ["", said, ""]
    assert [line for line in lines if line.startswith("step") and line.endswith(said)]


def test_of_several_ranks_one_that_fails_ends_all_by_its_name() -> None:
    with tiny_bench() as alone, pytest.raises(ClaraError, match=r"^rank 1, step/bad: out of memory: "):
        bench.measured(alone._replace(ranks=Ranks(1, 2)), failing(MemoryError())[0], 0.0)


def test_what_was_measured_before_ctrl_c_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = reversed(failing(KeyboardInterrupt()))
    monkeypatch.setattr(bench, "chosen_cases", lambda *_, **__: [good, bad, good])
    _, document, progress = ran(capsys, status=130)
    assert [each["case"] for each in document["results"]] == ["product 512", "good"]
    assert progress.splitlines()[-1] == "stopped after 1 of 3 cases"


def test_a_base_that_is_not_there_is_refused_before_any_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "matrix_result", lambda _: pytest.fail("a case was run"))
    assert main([*QUICK, "--model", "/nowhere/base"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: /nowhere/base: no such folder")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "nothing"], "--only nothing: no such case"),
        (["--compare", "/nowhere/old.json"], "--compare /nowhere/old.json: cannot be read"),
        (["--only", "data", "--data", "/nowhere/data.jsonl"], "/nowhere/data.jsonl"),
        (["--only", "compress", "--model", "/nowhere/base"], "/nowhere/base: no such folder"),
        (["--memories", "x"], "--memories x: wanted whole numbers"),
        (["--rounds", "0"], "--rounds 0: wanted 1 or more"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, *argv]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {said}")
