"""Several processes give the numbers of one: through an interruption, another number of them, and a killed one."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from folders import tiny_folder, write_records
from launched import Ended, ended, launch
from mlx.utils import tree_flatten
from runs import tiny_run

from clara.io.checkpoint import newest_checkpoint
from clara.io.errors import ClaraError
from clara.io.memory_store.parts import PARTS
from clara.io.memory_store.search import memories_of, passages_of
from clara.io.memory_store.store import opened_store
from clara.io.runlog import read_events
from clara.shell import compress, train
from clara.shell import launch as launching
from clara.shell.arguments import read_plan
from clara.shell.ranks import ALONE, Ranks

SETTINGS = """
stage = "pretrain,end_to_end"
steps = 10
save_every = 2
eval_every = 5
eval_generate = 2
keep_best = ""
show = 0

[memory]
doc_max_tokens = 32
compression_rate = 8
anchored = true

[lora]
rank = 4
dropout = 0.2

[optimizer]
learning_rate = 0.003

[data]
batch_size = 8
accumulate = 4
max_tokens = 384
length_multiple = 16
autoencode_share = 0.3

[stages.pretrain.loss]
alignment_weight = 0.1

[stages.end_to_end]
retrieval = {top_k = 2}
data = {candidates = 4}
"""
STAGES = ("pretrain", "end_to_end")


def until(condition: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    """Wait for a condition; fail where a process ends before."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            pytest.fail("\n".join(map(str, ended(processes, 1.0))))
        time.sleep(0.005)


def steps_of(run: Path) -> int:
    """Return how many steps of a stage are in its metrics."""
    return max((event["step"] for event in read_events(run / "metrics.jsonl")), default=0)


def main_here(command: Any, *argv: str) -> tuple[int, str]:
    """Return exit status and output of a command that is run in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        return command.main(argv), out.getvalue()


def numbers(run: Path) -> dict[str, list[float]]:
    """Return losses and counted tokens of a stage's steps, and its held-out means."""
    events = read_events(run / "metrics.jsonl")
    steps = [event for event in events if event["event"] == "step"]
    means = [event for event in events if event["event"] == "heldout"]
    names = sorted(means[0].keys() - {"event", "step"})
    return {
        **{name: [event[name] for event in steps] for name in ("step", "loss", "tokens", "gradient_norm")},
        **{f"held-out {name}": [event[name] for event in means] for name in names},
    }


def test_several_ranks_give_the_numbers_of_one_whatever_ends_them_on_the_way(tmp_path: Path) -> None:
    fixed = inputs(tmp_path, 49)
    status, out = main_here(train, *fixed, "--run", str(tmp_path / "one"))
    assert status == 0, out
    run = tmp_path / "several"

    two = launch(2, tmp_path, "-m", "clara.shell.train", *fixed, "--run", str(run))
    until(lambda: steps_of(run / "pretrain") >= 3, two)
    two[1].send_signal(signal.SIGINT)
    first, second = ended(two)
    assert (first.status, second.status) == (130, 130), (first, second)
    assert "interrupted; saved step " in first.out and f"--resume {run}" in first.out
    assert "step  1/10" in first.out and second.out == ""
    stopped = steps_of(run / "pretrain")
    assert 3 <= stopped < 10 and newest_checkpoint(run / "pretrain")[0].manifest.step == stopped

    four = launch(4, tmp_path, "-m", "clara.shell.train", "--resume", str(run))
    until(lambda: steps_of(run / "end_to_end") >= 3, four)
    four[2].send_signal(signal.SIGKILL)
    leader, *others = ended(four)
    assert [each.status for each in (leader, *others)] == [1, 1, -9, 1]
    assert "error: rank 2 of 4 was lost (its process or its connection ended); what was saved" in leader.err
    assert all("error: " not in other.err for other in others)
    assert 3 <= steps_of(run / "end_to_end") < 10

    status, out = main_here(train, "--resume", str(run))
    assert status == 0, out
    assert_same_runs(run, tmp_path / "one", 10)


def inputs(folder: Path, heldout: int) -> list[str]:
    """Return the options of settings, base, data and records 30 to `heldout` held out, all made in a folder."""
    base, data = tiny_folder(folder / "base"), write_records(folder / "data.jsonl", range(24))
    (folder / "settings.toml").write_text(SETTINGS)
    fixed = ["--config", str(folder / "settings.toml"), "--model", str(base)]
    return [*fixed, "--data", str(data), "--heldout", str(write_records(folder / "heldout.jsonl", range(30, heldout)))]


def assert_same_runs(run: Path, other: Path, steps: int) -> None:
    """Assert that each stage of two runs has the numbers of as many steps, and the same parameters in the end."""
    for stage in STAGES:
        found, wanted = numbers(run / stage), numbers(other / stage)
        assert found.keys() == wanted.keys() and found["step"] == list(range(1, steps + 1))
        for name, values in wanted.items():
            assert found[name] == pytest.approx(values, abs=1e-5, rel=1e-5), f"{stage}, {name}"
        assert_same_parameters(run / stage, other / stage)


def assert_same_parameters(run: Path, other: Path) -> None:
    """Assert that the last checkpoints of two runs have the same parameters."""
    found, wanted = (dict(tree_flatten(newest_checkpoint(each)[0].params)) for each in (run, other))
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_allclose(np.array(found[name]), np.array(leaf), atol=1e-5, err_msg=name)


def test_a_base_that_is_cut_over_ranks_gives_the_numbers_of_one_process(tmp_path: Path) -> None:
    fixed = inputs(tmp_path, 40)
    fixed += ["--steps=3", "--batch-size=7", "--accumulate=2", "--eval-every=0", "--pretrain.eval-generate=0"]
    fixed += ["--end_to_end.eval-generate=1", "--end_to_end.show=1"]
    fixed += ["--eps=1e-5"]  # a gradient that is all rounding moves nothing
    one, cut = tmp_path / "one", tmp_path / "cut"
    status, out = main_here(train, *fixed, "--run", str(one))
    assert status == 0, out

    first, second = ended(launch(2, tmp_path, "-m", "clara.shell.train", *fixed, "--run", str(cut), "--shard"))
    assert (first.status, second) == (0, Ended(0, "", "")), (first, second)
    assert "shard     the base's blocks are cut over 2 ranks, which share each batch" in first.out
    assert_same_runs(cut, one, 3)

    earlier = cut / "pretrain" / "checkpoints" / "step-000002"
    status, out = main_here(train, "--resume", str(earlier), "--no-shard")
    assert status == 0 and "shard " not in out, out
    assert_same_parameters(cut / "pretrain", one / "pretrain")


def contents(store: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Return the passages of a store by their hashes, each with its text and memory."""
    with opened_store(store, readonly=True) as found:
        ids = [id_ for (id_,) in found.database.execute("SELECT id FROM passages")]
        memory = np.array(memories_of(found, ids).astype(mx.float32))
        return {each.hash: (each.text, row) for each, row in zip(passages_of(found, ids), memory, strict=True)}


def assert_same_store(found: Path, wanted: Path) -> None:
    """Assert that two stores hold the same passages, with the same memories to bfloat16."""
    own, other = contents(found), contents(wanted)
    assert own.keys() == other.keys()
    for key, (text, row) in other.items():
        assert own[key][0] == text
        np.testing.assert_allclose(own[key][1], row, rtol=2**-7, atol=1e-5)


def added_to(part: Path) -> int:
    """Return how many passages are in a part; 0 where there is none yet."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{part / 'store.sqlite'}?mode=ro", uri=True)) as database:
            (count,) = database.execute("SELECT count(*) FROM passages").fetchone()
            return int(count)
    except sqlite3.Error:
        return 0


def test_a_store_that_several_ranks_fill_is_that_of_one_also_after_one_was_killed(tmp_path: Path) -> None:
    run = tiny_run(tiny_folder(tmp_path / "base"), tmp_path / "run")
    data = write_records(tmp_path / "data.jsonl", range(300))
    fixed = [str(data), "--checkpoint", str(run), "--batch-size", "2", "--store"]
    assert main_here(compress, *fixed, str(tmp_path / "one"))[0] == 0
    store = tmp_path / "several"
    two = launch(2, tmp_path, "-m", "clara.shell.compress", *fixed, str(store))
    until(lambda: added_to(store / PARTS / "0001") >= 4, two)
    two[1].send_signal(signal.SIGKILL)
    leader, _ = ended(two)
    assert leader.status == 1 and "rank 1 of 2 was lost" in leader.err
    killed = added_to(store / PARTS / "0001")
    assert killed >= 4 and killed % 2 == 0, "whole batches"

    first, second = ended(launch(2, tmp_path, "-m", "clara.shell.compress", *fixed, str(store)))
    assert (first.status, second) == (0, Ended(0, "", "")), first
    assert "passages that processes before had added" in first.out
    assert "added     0 passages" not in first.out and "store     300 passages" in first.out
    assert not (store / PARTS).exists()
    assert_same_store(store, tmp_path / "one")


def test_without_a_launcher_no_group_is_set_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(mx.distributed, "init")
    assert launching.ranked(lambda ranks: 7 if ranks == ALONE else 0) == 7
    (tmp_path / "hosts").write_text("\n")  # what mlx.launch -n 1 does
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert launching.ranked(lambda ranks: 7 if ranks == ALONE else 0) == 7


def test_a_rank_that_never_starts_ends_the_others_in_time(tmp_path: Path) -> None:
    two = launch(2, tmp_path, "-m", "clara.shell.train", "--help", CLARA_RANK_TIMEOUT="1")
    two[1].kill()
    leader, _ = ended(two)
    assert leader == Ended(-9, "", "error: not all ranks had started after 1 s (CLARA_RANK_TIMEOUT)\n")


def test_a_new_runs_folder_is_that_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = read_plan("train", "", ["--run", "mine", "--stage", "pretrain,instruct"])
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(train, "require_same", lambda ranks, values, advice: heard.append(values))
    places = [{"run": f"its/{i}", "start_from": "", "memories": "its/memories"} for i in range(2)]
    monkeypatch.setattr(train, "told", lambda ranks, value: ("its", places))
    found = train.agreed(plan, Ranks(1, 2))
    assert found.folder == Path("its") and [options.run for options, _ in found.stages] == ["its/0", "its/1"]
    assert [options.stage for options, _ in found.stages] == ["pretrain", "instruct"]
    (values,) = heard
    assert values["stage pretrain, data.seed"] == 0 and values["stage instruct, checkpoint"] is None
    assert not any("mine" in str(value) for value in values.values())


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_time_limit_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launching.LIMIT, text)
    with pytest.raises(ClaraError, match=f"^CLARA_RANK_TIMEOUT={text}: wanted a number of seconds above 0$"):
        launching.time_limit()


@pytest.mark.parametrize("name", launching.LAUNCHED)
def test_a_time_limit_that_is_none_is_refused_by_rank_0_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GIVEN", 0.0)
    monkeypatch.setenv(launching.LIMIT, "soon")
    monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit) as silent:
        launching.join()
    assert silent.value.code == 1
    monkeypatch.setenv(name, "0")
    with pytest.raises(ClaraError, match="CLARA_RANK_TIMEOUT=soon"):
        launching.join()


def test_a_signal_that_ends_processes_stops_several_ranks_as_ctrl_c_does(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ranks = ALONE._replace(watch=launching.watching.start(0, 1, {}, 60.0))
    with launching.stoppable(ranks, "step") as stopped:
        assert not stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped() and "stopping after this step" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
