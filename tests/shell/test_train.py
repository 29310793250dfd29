"""The main job on a tiny base: what a run leaves, prints and refuses, and that stopping and going on change nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from folders import tiny_folder, write_records
from mlx.utils import tree_flatten

from clara.core.optim import learning_rate
from clara.core.step import make_train_step
from clara.io import cpu
from clara.io.checkpoint import load_checkpoint, newest_checkpoint
from clara.io.dataset import training_batches
from clara.io.feed import Feed
from clara.io.files import locked
from clara.io.records import read_records
from clara.io.retention import checkpoints, read_best
from clara.io.runlog import append_event, read_events
from clara.shell import job as jobs
from clara.shell import train
from clara.shell.answer import answer, compress_texts
from clara.shell.loop import Step
from clara.shell.options import to_options
from clara.shell.setup import data_fingerprint, open_session
from clara.shell.stores import session_of

SETTINGS = """
steps = 6
save_every = 3
eval_every = 4
keep = 5
keep_best = ""
log_every = 2
show = 0

[memory]
doc_max_tokens = 32
compression_rate = 8
anchored = true

[lora]
rank = 4
dropout = 0.2

[loss]
alignment_weight = 0.1

[optimizer]
learning_rate = 0.01

[data]
batch_size = 3
accumulate = 2
max_tokens = 384
length_multiple = 16
qa_form = "turns"
autoencode_share = 0.5
paraphrase_share = 0.3
"""


class Ran(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


class Place(NamedTuple):
    """Where a run's base, data and settings are."""

    folder: Path
    base: Path
    data: Path
    heldout: Path
    settings: Path

    def arguments(self, run: Path, *more: str) -> list[str]:
        """Return the command line of a run."""
        return [
            *("--config", str(self.settings), "--model", str(self.base), "--run", str(run)),
            *("--data", str(self.data), "--heldout", str(self.heldout), *more),
        ]


def place_in(folder: Path) -> Place:
    """Return a tiny base, eight records, three held-out ones and settings, written to a folder."""
    (folder / "settings.toml").write_text(SETTINGS)
    return Place(
        folder,
        tiny_folder(folder / "base"),
        write_records(folder / "data.jsonl", range(8)),
        write_records(folder / "heldout.jsonl", range(20, 23)),
        folder / "settings.toml",
    )


def command(*argv: str) -> Ran:
    """Return what the training command does, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = train.main(argv)
    return Ran(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return base, data and settings; tests must not change them."""
    return place_in(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def ran(place: Place) -> Ran:
    """Return what an uninterrupted run printed."""
    return command(*place.arguments(place.folder / "whole", "--show", "2"))


@pytest.fixture(scope="module")
def whole(place: Place, ran: Ran) -> Path:
    """Return the folder of that run; tests must not change it."""
    assert ran.status == 0, ran.err
    return place.folder / "whole"


@pytest.fixture
def own(tmp_path: Path) -> Place:
    """Return base, data and settings that a test may change."""
    return place_in(tmp_path)


def copy_until(whole: Path, run: Path, step: int) -> Path:
    """Return a copy of a run as it was when it had just saved a step, its later metrics not lost yet."""
    shutil.copytree(whole, run)
    for path in checkpoints(run / "checkpoints"):
        if path.name > f"step-{step:06d}":
            shutil.rmtree(path)
    return run


def losses(run: Path) -> list[tuple[int, float]]:
    """Return step and loss of each step event of a run."""
    return [(event["step"], event["loss"]) for event in read_events(run / "metrics.jsonl") if event["event"] == "step"]


def values(run: Path) -> list[float]:
    """Return the losses of a run's steps."""
    return [loss for _, loss in losses(run)]


def heldout(run: Path) -> list[tuple[int, float, float]]:
    """Return step, loss and loss with another document's memory of each evaluation of a run."""
    events = [event for event in read_events(run / "metrics.jsonl") if event["event"] == "heldout"]
    return [(event["step"], event["next_token"], event["other_memory"]) for event in events]


def saved(run: Path, step: int = 6) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and bytes of every tensor in a run's checkpoint."""
    tensors: dict[str, mx.array] = {}
    for name in ("adapters", "optimizer"):
        leaves: Any = mx.load(str(run / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors"))
        tensors |= {f"{name}/{path}": leaf for path, leaf in leaves.items()}
    return {path: (str(leaf.dtype), leaf.shape, np.array(leaf).tobytes()) for path, leaf in sorted(tensors.items())}


def assert_same_end(run: Path, other: Path) -> None:
    """Assert that two runs ended with the same losses and, bit for bit, the same tensors."""
    assert losses(run) == losses(other)
    found, wanted = saved(run), saved(other)
    assert found.keys() == wanted.keys()
    assert [path for path in wanted if found[path] != wanted[path]] == []


def test_a_run_leaves_its_configuration_metrics_curve_and_checkpoints(whole: Path, place: Place) -> None:
    assert sorted(os.listdir(whole)) == ["checkpoints", "config.json", "loss.svg", "metrics.jsonl"]
    assert [path.name for path in checkpoints(whole / "checkpoints")] == ["step-000003", "step-000006"]
    options = to_options(json.loads((whole / "config.json").read_text()))
    assert (options.model, options.steps, options.data.accumulate) == (str(place.base), 6, 2)
    assert to_options(load_checkpoint(whole / "checkpoints" / "step-000006").config) == options
    root = ElementTree.parse(whole / "loss.svg").getroot()
    curves = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert [len(curve.attrib["points"].split()) for curve in curves] == [6, 3, 3]


def test_the_metrics_hold_every_step_and_every_evaluation(whole: Path) -> None:
    events = read_events(whole / "metrics.jsonl")
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in events if event["event"] == "heldout"] == [0, 4, 6]
    assert events[-1] == {"event": "finished", "step": 6}
    for event in events[:-1]:
        wanted = {"loss", "tokens", "seconds", "peak_gb"} if event["event"] == "step" else {"other_memory"}
        assert wanted | {"next_token", "alignment"} <= event.keys()
    assert all(e["loss"] == pytest.approx(e["next_token"] + 0.1 * e["alignment"]) for e in events if "loss" in e)


def test_training_lowers_the_loss(place: Place, tmp_path: Path) -> None:
    shares = ("--autoencode-share", "0", "--paraphrase-share", "0", "--dropout", "0", "--steps", "24")
    assert command(*place.arguments(tmp_path / "run", *shares, "--learning-rate", "0.03")).status == 0
    (_, first, _), *_, (_, last, _) = heldout(tmp_path / "run")
    assert last < first - 0.5


def test_what_is_printed_says_what_runs_how_far_it_is_and_what_was_learnt(ran: Ran, place: Place) -> None:
    lines = ran.out.splitlines()
    assert (ran.status, ran.err) == (0, "")
    heading = dict(line.split(maxsplit=1) for line in lines[:6])
    assert list(heading) == ["device", "base", "start", "memory", "training", "run"]
    assert str(place.base) in heading["base"] and "llama" in heading["base"]
    assert heading["memory"] == "4 vectors for up to 32 tokens, anchored"
    assert f"8 records of {place.data}" in heading["training"] and "6 steps of 3" in heading["training"]
    assert heading["run"] == str(place.folder / "whole")
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["1/6", "2/6", "4/6", "6/6"]
    assert sum(line.startswith("held-out after step ") for line in lines) == 3
    assert lines[-1] == f"run folder: {place.folder / 'whole'}"
    asked = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert [words[0] for words in asked] == ["question", "answer", "expected"] * 2
    shown = [words[1] for words in asked if words[0] != "answer"]
    assert shown == ["Which lamp?", "20", "How does lamp 21 burn?", "red"]


def test_the_answers_shown_are_those_of_the_parameters_that_were_saved(ran: Ran, whole: Path, place: Place) -> None:
    checkpoint = load_checkpoint(whole / "checkpoints" / "step-000006")
    session = open_session(to_options(checkpoint.config), checkpoint)
    for i, record in enumerate(read_records(str(place.heldout))[:2]):
        reply = "".join(answer(session, record.docs, record.questions[i])).strip()
        assert f"answer    {reply}\n" in ran.out


def test_the_loss_is_that_of_a_loop_that_a_reader_would_write(whole: Path) -> None:
    options = to_options(json.loads((whole / "config.json").read_text()))
    session = open_session(options)
    records = read_records(options.data.data)
    train_step = make_train_step(session.base, session.config)
    params, own = session.params, options.optimizer
    optimizer = optim.AdamW(
        learning_rate(own, options.steps), [own.beta1, own.beta2], own.eps, 0.0, bias_correction=True
    )
    found = []
    for batch in training_batches(records, Feed(session.encoder, options.data), options.steps):
        loss, _, grads = train_step(params, batch.batches)
        grads, _ = optim.clip_grad_norm(grads, own.clip_norm)
        params = optimizer.apply_gradients(grads, params)
        mx.eval(params, optimizer.state)
        found.append(loss.item())
    assert found == pytest.approx(values(whole), rel=1e-6)
    last = load_checkpoint(whole / "checkpoints" / "step-000006").params
    for name, leaf in tree_flatten(params):
        wanted = np.array(dict(tree_flatten(last))[name])
        np.testing.assert_allclose(np.array(leaf), wanted, rtol=1e-4, atol=1e-6, err_msg=name)


def test_dropout_tasks_and_micro_batches_are_on_in_these_runs(whole: Path, place: Place, tmp_path: Path) -> None:
    for i, change in enumerate((["--dropout", "0"], ["--autoencode-share", "0"], ["--paraphrase-share", "0"])):
        run = tmp_path / str(i)
        assert command(*place.arguments(run, *change)).status == 0
        assert losses(run)[1:] != losses(whole)[1:], change
    options = to_options(json.loads((whole / "config.json").read_text()))
    assert options.data.accumulate > 1 and options.data.batch_size % options.data.accumulate


def test_two_runs_are_bit_for_bit_alike(whole: Path, place: Place, tmp_path: Path) -> None:
    assert command(*place.arguments(tmp_path / "again")).status == 0
    assert_same_end(tmp_path / "again", whole)


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_not_stopped(whole: Path, tmp_path: Path) -> None:
    run = copy_until(whole, tmp_path / "run", 3)
    ran = command("--resume", str(run))
    assert (ran.status, ran.err) == (0, "")
    assert_same_end(run, whole)
    assert heldout(run) == heldout(whole)


def test_ctrl_c_saves_and_the_command_it_prints_goes_on_to_the_same_end(
    whole: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.record_step

    def press(job: jobs.Job, step: Step, *more: Any) -> None:
        real(job, step, *more)
        if step.number == 4:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(train, "record_step", press)
        stopped = command(*place.arguments(tmp_path / "run"))
    assert stopped.status == 130 and stopped.err == ""
    assert "stopping after this step; press Ctrl-C again to stop at once" in stopped.out
    last = stopped.out.splitlines()[-1]
    goes_on = f"{train.COMMAND} --resume {tmp_path / 'run'}"
    assert last == f"interrupted; saved step 4. Go on with: {goes_on}"
    assert signal.getsignal(signal.SIGINT) is before
    assert command(*goes_on.removeprefix(train.COMMAND).split()).status == 0
    assert_same_end(tmp_path / "run", whole)


def test_ctrl_c_pressed_twice_stops_at_once_without_a_traceback(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(train, "record_step", press)
    stopped = command(*place.arguments(tmp_path / "run"))
    assert (stopped.status, stopped.err) == (130, "\nstopped at once; what was saved before is intact\n")
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints(tmp_path / "run" / "checkpoints") == []


def test_ctrl_c_before_the_first_step_saves_after_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "measure", lambda *_: signal.raise_signal(signal.SIGINT) or {})
    stopped = command(*place.arguments(tmp_path / "run"))
    assert stopped.status == 130 and "interrupted; saved step 1." in stopped.out
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step-000001").manifest.step == 1


def test_ctrl_c_while_the_base_is_loaded_ends_without_a_traceback(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "open_session", press)
    stopped = command(*place.arguments(tmp_path / "run"))
    assert (stopped.status, stopped.out) == (130, "") and stopped.err.startswith("\nstopped at once")
    assert not (tmp_path / "run").exists()


def environment() -> dict[str, str]:
    """Return the variables of a fresh process, which takes the renamed BLAS from the cache of the tests' own user."""
    return os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[2]), "PYTHONWARNINGS": "error::RuntimeWarning"}


def test_the_module_runs_as_a_command(whole: Path, place: Place, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "clara.shell.train", *place.arguments(tmp_path / "run")]
    ran = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"run folder: {tmp_path / 'run'}" in ran.stdout
    assert values(tmp_path / "run") == pytest.approx(values(whole), rel=1e-4)


def test_a_command_that_fails_says_so_without_a_traceback(place: Place, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "clara.shell.train", "--data", str(tmp_path / "absent.jsonl")]
    ran = subprocess.run(argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"error: {tmp_path / 'absent.jsonl'}: does not exist") and ran.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends the signal that a terminal sends")
def test_an_interrupted_process_saves_and_ends_with_130(place: Place, tmp_path: Path) -> None:
    long = ("--steps", "100000", "--save-every", "0", "--log-every", "1")
    argv = [sys.executable, "-m", "clara.shell.train", *place.arguments(tmp_path / "run", *long)]
    with subprocess.Popen(
        argv, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("step ") for line in process.stdout), "it ended before its first step"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "")
    (path,) = checkpoints(tmp_path / "run" / "checkpoints")
    step = load_checkpoint(path).manifest.step
    goes_on = f"{train.COMMAND} --resume {tmp_path / 'run'}"
    assert out.splitlines()[-1] == f"interrupted; saved step {step}. Go on with: {goes_on}"
    assert losses(tmp_path / "run")[-1][0] == step


def test_a_second_run_in_a_folder_is_refused(whole: Path, place: Place) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*"))
    ran = command(*place.arguments(whole))
    assert ran.status == 1
    assert ran.err == f"error: {whole}: holds a run already; go on with it by --resume {whole}, or give another --run\n"
    assert sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*")) == before


def test_a_run_that_never_saved_is_begun_anew_by_resuming_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(train, "save", crash)
        with pytest.raises(ZeroDivisionError):
            command(*place.arguments(tmp_path / "run", "--steps", "3"))
    ran = command(*place.arguments(tmp_path / "run", "--steps", "3"))
    assert ran.status == 1 and f"go on with it by --resume {tmp_path / 'run'}" in ran.err
    assert command("--resume", str(tmp_path / "run")).status == 0
    events = [(event["event"], event["step"]) for event in read_events(tmp_path / "run" / "metrics.jsonl")]
    assert events == [("heldout", 0), ("step", 1), ("step", 2), ("step", 3), ("heldout", 3), ("finished", 3)]


BAD_DATA = {
    "a broken line": ('{"docs": ["a"]', "data.jsonl:9: not a JSON object"),
    "two documents": ('{"id": "two", "docs": ["a", "b"], "question": "q", "answer": "a"}', "record two: 2 documents"),
    "an answer too long": (
        json.dumps({"id": "long", "docs": ["a"], "question": "q", "answer": "a" * 400}),
        "long: template, memory and answer take",
    ),
}


@pytest.mark.parametrize("which", ["data", "heldout"])
@pytest.mark.parametrize(("line", "said"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_refused_before_any_step(line: str, said: str, which: str, own: Place) -> None:
    path = own.data if which == "data" else own.heldout
    path.write_text(path.read_text() + line + "\n")
    ran = command(*own.arguments(own.folder / "run"))
    if which == "heldout":
        said = said.replace("data.jsonl:9", "heldout.jsonl:4")
    assert ran.status == 1 and ran.err.startswith("error: ") and said in ran.err and ran.err.count("\n") == 1
    assert not any(line.startswith("step ") for line in ran.out.splitlines())
    assert not (own.folder / "run").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model", "/nowhere/base"], "/nowhere/base: no such folder"),
        (["--recipe", "soup"], "--recipe soup: not one of"),
        (["--steps", "0"], "--steps 0: wanted 1 or more"),
        (["--run", "/dev/null/run"], "/dev/null/run: cannot be made"),
        (["--resume", "/nowhere/run"], "/nowhere/run: no whole checkpoint found"),
        (["--config", "/nowhere/run.toml"], "/nowhere/run.toml: cannot be read"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(more: list[str], said: str, place: Place, tmp_path: Path) -> None:
    ran = command(*place.arguments(tmp_path / "run", *more))
    assert ran.status == 1 and not any(line.startswith("step ") for line in ran.out.splitlines())
    assert ran.err.startswith("error: ") and said in ran.err and ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_saved(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*arguments: Any, **more: Any) -> Any:
        step = make_train_step(*arguments, **more)
        calls: list[int] = []

        def train_step(params: Any, batch: Any) -> Any:
            calls.append(1)
            loss, metrics, grads = step(params, batch)
            return loss, metrics | {"loss": metrics["loss"] * (float("nan") if len(calls) == 5 else 1)}, grads

        return train_step

    monkeypatch.setattr(jobs, "make_train_step", poisoned)
    ran = command(*place.arguments(tmp_path / "run"))
    assert ran.status == 1 and ran.err.startswith("error: step 5: the loss is nan; its records: r")
    last = tmp_path / "run" / "checkpoints" / "step-000003"
    assert ran.err.endswith(f"; last good checkpoint: {last}\n") and ran.err.count("\n") == 1
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000003"]
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3, 4]


def test_another_base_is_refused_on_resume(whole: Path, place: Place, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=1)
    ran = command("--resume", str(copy_until(whole, tmp_path / "run", 3)), "--model", str(other))
    assert ran.status == 1
    assert f"model: {str(place.base)!r} before, {str(other)!r} now" in ran.err


def test_a_base_that_changed_in_its_place_is_refused_on_resume(own: Place) -> None:
    assert command(*own.arguments(own.folder / "run", "--steps", "1")).status == 0
    tiny_folder(own.base, seed=1)
    ran = command("--resume", str(own.folder / "run"), "--steps", "2")
    assert ran.status == 1 and "was trained on another base (fingerprint " in ran.err


def test_other_data_is_refused_on_resume(whole: Path, place: Place, tmp_path: Path) -> None:
    other = write_records(tmp_path / "other.jsonl", range(8))
    ran = command("--resume", str(copy_until(whole, tmp_path / "run", 3)), "--data", str(other))
    assert ran.status == 1 and f"data.data: {str(place.data)!r} before, {str(other)!r} now" in ran.err


def test_data_that_changed_in_its_place_is_refused_on_resume(own: Place) -> None:
    assert command(*own.arguments(own.folder / "run", "--steps", "1")).status == 0
    write_records(own.data, range(1, 9))
    ran = command("--resume", str(own.folder / "run"), "--steps", "2")
    assert ran.status == 1 and f"{own.data}: not the data that this run was started with" in ran.err


def test_a_checkpoint_names_the_data_that_was_trained_on_not_what_became_of_the_file(
    own: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = data_fingerprint(str(own.data)), train.record_step

    def edit(*arguments: Any) -> None:
        real(*arguments)
        write_records(own.data, range(3))

    monkeypatch.setattr(train, "record_step", edit)
    assert command(*own.arguments(own.folder / "run", "--steps", "1")).status == 0
    assert load_checkpoint(own.folder / "run" / "checkpoints" / "step-000001").manifest.data == before


def test_a_finished_run_wants_more_steps_to_go_on(whole: Path) -> None:
    ran = command("--resume", str(whole))
    assert ran.status == 1 and "has done all 6 steps; give a larger --steps to go on" in ran.err


def test_a_finished_run_goes_on_with_more_steps(whole: Path, tmp_path: Path) -> None:
    run = copy_until(whole, tmp_path / "run", 6)
    assert command("--resume", str(run), "--steps", "8").status == 0
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert losses(run)[:6] == losses(whole)
    assert to_options(json.loads((run / "config.json").read_text())).steps == 8


def test_a_damaged_newest_checkpoint_is_skipped_with_a_note(whole: Path, tmp_path: Path) -> None:
    run = copy_until(whole, tmp_path / "run", 6)
    damaged = run / "checkpoints" / "step-000006" / "adapters.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    ran = command("--resume", str(run))
    assert (ran.status, ran.err) == (0, "")
    note, *_ = ran.out.splitlines()
    assert note.startswith(f"skipped a damaged checkpoint: {damaged}: ")
    assert_same_end(run, whole)


def test_without_a_run_folder_one_is_made_under_runs(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*place.arguments(Path(""), "--run", "", "--steps", "1")).status == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-pretrain") and (run / "checkpoints" / "step-000001").is_dir()


def test_held_out_data_may_be_left_out(place: Place, tmp_path: Path) -> None:
    ran = command(*place.arguments(tmp_path / "run", "--heldout", "", "--steps", "1", "--show", "2"))
    assert (ran.status, ran.err) == (0, "")
    assert "held-out" not in ran.out and "question" not in ran.out


def test_eval_records_limits_what_is_evaluated(own: Place) -> None:
    bad = {"id": "x", "docs": ["z" * 31], "question": "Which?", "answer": "none at all"}
    with own.heldout.open("a") as file:
        file.write(json.dumps(bad) + "\n")
    few, many = (own.folder / name for name in ("few", "many"))
    for run, more in ((few, ["--eval-records", "3"]), (many, [])):
        assert command(*own.arguments(run, *more, "--steps", "1")).status == 0
    first = [read_events(run / "metrics.jsonl")[0]["next_token"] for run in (few, many)]
    assert first[0] != first[1]


@pytest.mark.parametrize(
    "record",
    [
        {"docs": ["A lamp."], "data_type": "autoencode", "question": "Which?"},
        {"docs": ["A lamp."], "data_type": "paraphrase", "question": ["Which?", "Why?"], "answers": ["Light."]},
    ],
    ids=["no answer", "fewer answers"],
)
def test_held_out_questions_of_other_tasks_do_not_break_the_end(record: dict[str, Any], own: Place) -> None:
    own.heldout.write_text(json.dumps(record) + "\n" + json.dumps(record | {"id": "b"}) + "\n")
    assert command(*own.arguments(own.folder / "run", "--steps", "1", "--show", "2")).status == 0


def test_a_checkpoint_in_the_middle_can_be_gone_on_from_and_is_what_counts_then(whole: Path, tmp_path: Path) -> None:
    run = copy_until(whole, tmp_path / "run", 6)
    older = run / "checkpoints" / "step-000003"
    ran = command("--resume", str(older), "--steps", "5", "--save-every", "1", "--keep", "1")
    assert ran.status == 0
    assert (run / "checkpoints" / "step-000005").is_dir(), "what was just written is kept"
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5]


def test_the_line_on_the_blas_is_that_of_this_process(place: Place, tmp_path: Path) -> None:
    ran = command(*place.arguments(tmp_path / "run", "--steps", "1"))
    wanted = f"cpu, BLAS: {cpu.preload()}" if mx.default_device() == mx.cpu else "gpu"
    assert ran.out.splitlines()[0].split(maxsplit=1)[1] == wanted


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_losses(whole: Path, place: Place, tmp_path: Path) -> None:
    mx.enable_compile()
    assert command(*place.arguments(tmp_path / "run", "--compile", "on")).status == 0
    assert values(tmp_path / "run") == pytest.approx(values(whole), rel=1e-4)


CURRICULUM = (
    SETTINGS.replace("[loss]", "[stages.pretrain.loss]")
    .replace("steps = 6", "steps = 2")
    .replace("save_every = 3", "save_every = 0")
    .replace("eval_every = 4", "eval_every = 0")
    + """
[stages.end_to_end]
steps = 3

[stages.end_to_end.retrieval]
top_k = 2

[stages.end_to_end.data]
candidates = 4

[stages.retrieval.data]
candidates = 4
"""
)
NAMES = ("pretrain", "instruct", "end_to_end")


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return base, data and settings of a run of all stages; tests must not change them."""
    place = place_in(tmp_path_factory.mktemp("course"))
    place.settings.write_text(CURRICULUM)
    return place


@pytest.fixture(scope="module")
def taught(course: Place) -> Ran:
    """Return what an uninterrupted run of all stages printed."""
    return command(*course.arguments(course.folder / "all", "--stage", "all"))


@pytest.fixture(scope="module")
def school(course: Place, taught: Ran) -> Path:
    """Return the folder of that run; tests must not change it."""
    assert taught.status == 0, taught.err
    return course.folder / "all"


def adapters(run: Path) -> dict[str, dict[str, list[Any]]]:
    """Return the leaves of each adapter in a run's last checkpoint."""
    params = load_checkpoint(checkpoints(run / "checkpoints")[-1]).params["adapters"]
    return {name: {path: leaf.tolist() for path, leaf in tree_flatten(each)} for name, each in params.items()}


def test_all_stages_run_one_after_the_other_in_folders_of_their_own(school: Path, taught: Ran) -> None:
    assert taught.err == ""
    assert sorted(os.listdir(school)) == sorted(["config.json", "memories", *NAMES])
    assert list(json.loads((school / "config.json").read_text())["stages"]) == list(NAMES)
    for name, steps in zip(NAMES, (2, 2, 3), strict=True):
        (path,) = checkpoints(school / name / "checkpoints")
        manifest = load_checkpoint(path).manifest
        assert (manifest.step, manifest.stage) == (steps, name)
        assert read_events(school / name / "metrics.jsonl")[-1] == {"event": "finished", "step": steps}
    order = [line for line in taught.out.splitlines() if line.startswith("stage ")]
    assert order == [f"stage {i} of 3: {name}" for i, name in enumerate(NAMES, 1)]
    assert (school / "end_to_end" / "recall.svg").is_file() and not (school / "instruct" / "recall.svg").exists()


def test_each_stage_carries_on_what_the_one_before_has_learnt(school: Path) -> None:
    first, second, third = (adapters(school / name) for name in NAMES)
    assert first.keys() == second.keys() == {"compressor", "generator"} and "reasoner" in third
    assert third["compressor"] == second["compressor"] != first["compressor"]
    assert third["reasoner"] != third["compressor"], "it began as a copy and was trained"
    assert third["generator"] != second["generator"] != first["generator"]
    started = [load_checkpoint(checkpoints(school / n / "checkpoints")[-1]).manifest.started_from for n in NAMES]
    assert started == ["", str(school / "pretrain"), str(school / "instruct")]


def test_documents_are_compressed_once_for_all_stages_that_choose(school: Path, taught: Ran) -> None:
    (folder,) = (school / "memories").iterdir()
    assert f"memories  0 of 11 documents are compressed, in {folder}" in taught.out
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]


class Killed(BaseException):
    """What ends a process in a test."""


@pytest.mark.parametrize("how", ["interrupted", "killed"])
@pytest.mark.parametrize(("stage", "step"), [("instruct", 1), ("end_to_end", 2)])
def test_a_run_of_all_stages_goes_on_where_it_was_and_ends_bit_for_bit_alike(
    stage: str, step: int, how: str, course: Place, school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, run = train.record_step, tmp_path / "run"

    def stop(job: jobs.Job, done: Step, *more: Any) -> None:
        real(job, done, *more)
        if (job.options.stage, done.number) == (stage, step):
            if how == "killed":
                raise Killed
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(train, "record_step", stop)
        if how == "killed":
            with pytest.raises(Killed):
                command(*course.arguments(run, "--stage", "all"))
        else:
            stopped = command(*course.arguments(run, "--stage", "all"))
            assert stopped.status == 130 and f"Go on with: {train.COMMAND} --resume {run}\n" in stopped.out
    done = NAMES[: NAMES.index(stage)]
    before = {path: path.stat().st_mtime_ns for name in done for path in (run / name).rglob("*") if path.is_file()}
    ran = command("--resume", str(run))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.count("has done its ") == len(done)
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what is finished is left alone"
    for name, last in zip(NAMES, (2, 2, 3), strict=True):
        assert losses(run / name) == losses(school / name)
        assert saved(run / name, last) == saved(school / name, last)


def test_a_finished_run_of_all_stages_has_nothing_left_to_do(school: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (school / "end_to_end").rglob("*"))
    ran = command("--resume", str(school))
    assert ran.status == 0 and ran.out.count("has done its ") == 3
    assert sorted((path, path.stat().st_mtime_ns) for path in (school / "end_to_end").rglob("*")) == before


def test_bad_data_of_a_later_stage_is_refused_before_the_first(own: Place) -> None:
    own.settings.write_text(CURRICULUM)
    own.data.write_text(json.dumps({"id": "dull", "docs": ["a"], "data_type": "autoencode"}) + "\n")
    ran = command(*own.arguments(own.folder / "run", "--stage", "all"))
    assert ran.status == 1 and "record dull: data_type is 'autoencode'; stage instruct wants qa" in ran.err
    assert not (own.folder / "run").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rank", "2"], "was trained with rank 4, not 2"),
        (["--doc-max-tokens", "16"], "was trained with doc_max_tokens 32, not 16"),
        (["--no-anchored"], "was trained with anchored True, not False"),
        (
            ["--compression-rate", "4"],
            "compression_rate 8, not 4; leave these options out (stage pretrain takes another compression_rate)\n",
        ),
        (["--alpha", "7"], "was trained with alpha 32.0, not 7.0"),
    ],
)
def test_parameters_of_another_shape_or_scale_are_not_started_from(
    more: list[str], said: str, course: Place, school: Path, tmp_path: Path
) -> None:
    start = ("--stage", "instruct", "--start-from", str(school / "pretrain"))
    ran = command(*course.arguments(tmp_path / "run", *start, *more))
    assert ran.status == 1 and said in ran.err and "leave these options out" in ran.err
    assert not (tmp_path / "run").exists()


def test_maps_of_anchors_go_on_at_another_rate_and_are_read_by_the_stages_after_it(
    course: Place, tmp_path: Path
) -> None:
    mapped = ("--anchor-pooling", "mapped", "--anchor-map-rank", "3", "--steps", "2")
    ran = command(*course.arguments(tmp_path / "a", "--stage", "pretrain", *mapped))
    assert ran.status == 0 and "4 vectors for up to 32 tokens, anchored (mapped)\n" in ran.out
    more = ("--start-from", str(tmp_path / "a"), "--compression-rate", "4")
    assert command(*course.arguments(tmp_path / "b", "--stage", "pretrain", *mapped, *more)).status == 0
    places = [newest_checkpoint(tmp_path / run)[0].params["anchor_map_a"].shape for run in "ab"]
    assert places == [(8 + 1, 32, 3), (4 + 1, 32, 3)]
    more = ("--start-from", str(tmp_path / "b"), "--compression-rate", "4", "--stage", "retrieval,end_to_end")
    ran = command(*course.arguments(tmp_path / "c", *mapped, *more))
    assert ran.status == 0, ran.err
    checkpoints = [newest_checkpoint(run)[0] for run in (tmp_path / "b", tmp_path / "c" / "end_to_end")]
    assert mx.array_equal(*(each.params["anchor_map_b"] for each in checkpoints)).item()
    session = session_of(checkpoints[1])
    without = {**session.params, "anchor_map_b": mx.zeros_like(session.params["anchor_map_b"])}
    memories = [compress_texts(each, ["Lamp 3 burns red."]) for each in (session, session._replace(params=without))]
    assert mx.abs(memories[0] - memories[1]).max().item() > 1e-5


POOLED_BY = {"mean": set(), "learned": {"anchor_query"}, "mapped": {"anchor_query", "anchor_map_a", "anchor_map_b"}}


@pytest.mark.parametrize(("less", "more"), [("mean", "learned"), ("mean", "mapped"), ("learned", "mapped")])
def test_anchors_may_be_pooled_by_more_than_before_and_not_by_less(
    less: str, more: str, course: Place, tmp_path: Path
) -> None:
    def pooled(how: str, rank: str, run: str, stage: str = "pretrain", *start: str) -> Ran:
        options = ("--stage", stage, "--steps", "1", "--anchor-pooling", how, "--anchor-map-rank", rank)
        return command(*course.arguments(tmp_path / run, *options, *start))

    assert pooled(less, "7", "a").status == 0
    start = ("--start-from", str(tmp_path / "a"))
    ran = pooled(more, "3", "b", "pretrain", *start)
    assert ran.status == 0, ran.err
    before, after = (newest_checkpoint(tmp_path / run)[0].params for run in "ab")
    assert after.keys() - before.keys() == POOLED_BY[more] - POOLED_BY[less]
    ran = pooled(more, "3", "c", "instruct", *start)
    out = "leave these options out"
    said = f"anchor_pooling {less!r}, not {more!r}; {out} (stage pretrain takes another anchor_pooling)\n"
    assert ran.status == 1 and said in ran.err
    ran = pooled(less, "7", "c", "pretrain", "--start-from", str(tmp_path / "b"))
    rank = " anchor_map_rank 3, not 7;" if more == "mapped" else ""
    assert ran.status == 1 and f"anchor_pooling {more!r}, not {less!r};{rank} {out}\n" in ran.err


def test_another_base_is_not_started_from(course: Place, school: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=1)
    ran = command(*course.arguments(tmp_path / "run", "--start-from", str(school / "pretrain"), "--model", str(other)))
    assert ran.status == 1 and "was trained on another base" in ran.err


def test_retrieval_alone_trains_the_reasoner_and_nothing_else(course: Place, school: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start = ("--stage", "retrieval", "--start-from", str(school / "instruct"), "--learning-rate", "0.001")
    ran = command(*course.arguments(run, *start))
    assert (ran.status, ran.err) == (0, "")
    before, after = adapters(school / "instruct"), adapters(run)
    assert {name: after[name] for name in before} == before and after["reasoner"] != before["compressor"]
    (first, *_, last) = [event for event in read_events(run / "metrics.jsonl") if event["event"] == "heldout"]
    assert {"loss", "contrastive", "mrr", "recall_at_1"} <= first.keys() and last["loss"] != first["loss"]
    assert (run / "recall.svg").is_file() and (run / "memories").is_dir()


def test_all_losses_train_all_parameters_at_once(course: Place, school: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    weights = ("--train-compressor", "--alignment-weight", "0.1", "--contrastive-weight", "0.5", "--steps", "2")
    start = ("--stage", "end_to_end", "--start-from", str(school / "instruct"))
    assert command(*course.arguments(run, *start, *weights)).status == 0
    before, after = adapters(school / "instruct"), adapters(run)
    assert all(after[name] != before[name] for name in before) and after["reasoner"] != after["compressor"]
    for event in read_events(run / "metrics.jsonl"):
        if event["event"] == "step":
            parts = event["next_token"] + 0.1 * event["alignment"] + 0.5 * event["contrastive"]
            assert event["loss"] == pytest.approx(parts, rel=1e-5)
    assert not (run / "memories").exists(), "its documents are compressed anew in each step"


@pytest.mark.parametrize("stage", ["pretrain", "all"])
def test_a_second_process_in_one_folder_is_refused(stage: str, course: Place, tmp_path: Path) -> None:
    with locked(tmp_path / "run", "training"):
        ran = command(*course.arguments(tmp_path / "run", "--stage", stage))
    assert ran.status == 1 and not any(line.startswith("step ") for line in ran.out.splitlines())
    said = f"error: another process (pid {os.getpid()}) is training in {tmp_path / 'run'}; wait for it"
    assert ran.err.startswith(said) and ran.err.count("\n") == 1


@pytest.mark.parametrize(("metric", "best"), [("loss", 2), ("token_f1", 3)])
def test_the_best_checkpoint_is_kept_beside_the_newest(
    metric: str, best: int, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {0: (9.0, 0.0), 1: (5.0, 0.1), 2: (3.0, 0.1), 3: (4.0, 0.9), 4: (3.0, 0.2), 5: (6.0, 0.3)}
    monkeypatch.setattr(
        train, "measure", lambda job, state, _: dict(zip(("loss", "token_f1"), values[int(state.step)], strict=True))
    )
    every = ("--eval-every", "1", "--save-every", "0", "--steps", "5", "--keep", "1", "--keep-best", metric)
    assert command(*place.arguments(tmp_path / "run", *every)).status == 0
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints(folder)] == [f"step-{best:06d}", "step-000005"]
    mark = read_best(folder)
    assert mark is not None and (mark.step, mark.metric) == (best, metric)


def test_changed_options_are_named_with_those_that_are_free(whole: Path, tmp_path: Path) -> None:
    run = copy_until(whole, tmp_path / "run", 3)
    ran = command("--resume", str(run), "--rank", "2", "--seed", "4", "--show", "1")
    assert ran.status == 1 and ran.err.count("\n") == 1
    assert (
        "stage pretrain differ: lora.rank: 4 before, 2 now; data.seed: 0 before, 4 now. Free to change are" in ran.err
    )
    assert "show" in ran.err.split("Free to change are")[1]


@contextlib.contextmanager
def listening(heard: list[Any], *arguments: Any) -> Iterator[Any]:
    """Yield a reporter that puts into a list how it was opened and what it is told."""
    heard.append(arguments)
    yield lambda step, group, values: heard.append((step, group, dict(values)))


def test_reporters_are_told_every_step_and_evaluation_and_where_a_resumed_run_begins(
    whole: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, heard = copy_until(whole, tmp_path / "run", 3), list[Any]()
    monkeypatch.setattr(train, "open_reporters", lambda *arguments: listening(heard, *arguments))
    assert command("--resume", str(run)).status == 0
    opened, *told = heard
    assert opened[:3] == ([], run, "clara-pretrain") and opened[3]["steps"] == 6 and opened[4] == 3
    assert [(step, group) for step, group, _ in told] == [
        (4, "training"),
        (4, "held-out"),
        (5, "training"),
        (6, "training"),
        (6, "held-out"),
    ]
    events = [event for event in read_events(run / "metrics.jsonl") if event["step"] > 3 and event["event"] == "step"]
    assert [values["loss"] for _, group, values in told if group == "training"] == [e["loss"] for e in events]


WORSE = {0: 1.0, 1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5, 5: 3.2, 6: 3.1}
"""A held-out loss that is best after step 2."""


def worsening(job: jobs.Job, state: Any, _: Any) -> dict[str, float]:
    """Log an evaluation as `measure` does, of a loss that is made up, and return it."""
    step = int(state.step)
    append_event(job.folder / "metrics.jsonl", {"event": "heldout", "step": step, "loss": WORSE[step]})
    return {"loss": WORSE[step]}


PATIENT = ("--eval-every", "1", "--save-every", "0", "--keep", "1", "--keep-best", "loss", "--patience", "2")


def test_a_run_without_patience_left_ends_as_if_its_steps_were_done(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "measure", worsening)
    run = tmp_path / "run"
    ran = command(*place.arguments(run, *PATIENT))
    said = "ended after step 4: 2 held-out evaluations in a row brought no better loss; give a larger --patience, or 0"
    assert ran.status == 0 and said in ran.out and f"run folder: {run}" in ran.out
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4]
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-000002", "step-000004"]
    assert read_events(run / "metrics.jsonl")[-1] == {"event": "finished", "step": 4}
    again = command("--resume", str(run))
    assert again.status == 1 and f"{run}: {said} to go on" in again.err
    assert command("--resume", str(run), "--patience", "9").status == 0
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5, 6]
    assert "has done all 6 steps" in command("--resume", str(run)).err


def test_a_run_that_was_killed_when_its_patience_ended_ends_there_too(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "measure", worsening)
    run = tmp_path / "run"
    command(*place.arguments(run, *PATIENT))
    log = run / "metrics.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if "finished" not in line))
    ran = command("--resume", str(run))
    assert ran.status == 0 and "ended after step 4" in ran.out
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4]


def test_a_generator_is_tuned_on_text_alone(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = command(*place.arguments(run, "--reads", "text", "--alignment-weight", "0", "--show", "1"))
    assert ran.status == 0 and "text      of up to 32 tokens\n" in ran.out and "other" not in ran.out, ran.err
    assert all("other_memory" not in each for each in read_events(run / "metrics.jsonl"))
    trained = {name.split("/")[1] for name in saved(run) if name.startswith("optimizer/") and "generator" in name}
    assert trained and not [name for name in saved(run) if name.startswith("optimizer/") and "compressor" in name]
    first, last = saved(run, 3), saved(run, 6)
    changed = {name for name in first if name.startswith("adapters/") and first[name] != last[name]}
    assert changed and all("generator" in name for name in changed)


def test_a_run_on_text_goes_on_bit_for_bit(place: Place, tmp_path: Path) -> None:
    more = ("--reads", "text", "--alignment-weight", "0")
    assert command(*place.arguments(tmp_path / "whole", *more)).status == 0
    run = copy_until(tmp_path / "whole", tmp_path / "run", 3)
    assert command("--resume", str(run)).status == 0
    assert_same_end(run, tmp_path / "whole")


def test_several_files_and_further_documents_are_trained_on_and_gone_on_with(place: Place, tmp_path: Path) -> None:
    pool = write_records(tmp_path / "pool.jsonl", range(30, 50))
    more = ("--data", f"{place.data},{place.heldout}", "--autoencode-data", str(pool), "--autoencode-floor", "0.4")
    ran = command(*place.arguments(tmp_path / "whole", *more))
    assert ran.status == 0 and "on 11 records of " in ran.out, ran.err
    run = copy_until(tmp_path / "whole", tmp_path / "run", 3)
    assert command("--resume", str(run)).status == 0
    assert_same_end(run, tmp_path / "whole")


def test_a_missing_file_of_several_is_named(place: Place, tmp_path: Path) -> None:
    for more in (("--data", f"{place.data},absent.jsonl"), ("--autoencode-data", "absent.jsonl")):
        ran = command(*place.arguments(tmp_path / "run", *more))
        assert ran.status == 1 and "absent.jsonl: does not exist" in ran.err
