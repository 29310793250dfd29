"""Reporters: each is told everything once, in its own words; a failure of one is never the run's."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from clara.io.errors import ClaraError
from clara.shell.reporters import PACKAGES, REPORTERS, check_reporters, open_reporters, run_id

CONFIG = {"steps": 10, "memory": {"anchored": True}}
Calls = list[tuple[Any, ...]]


class Fake:
    """Packages that note what is called, and fail where they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...] = ()) -> None:
        self.calls: Calls = []
        self.failing: dict[str, Exception] = {}
        for package in PACKAGES.values():
            monkeypatch.setitem(sys.modules, package, None if package in absent else self.module(package))

    def module(self, package: str) -> ModuleType:
        module: Any = ModuleType(package)
        module.__spec__ = ModuleSpec(package, None)
        if package == "tensorboardX":
            module.SummaryWriter = self.writer
        else:
            module.init = lambda **how: self.opened(package, how)
        return module

    def note(self, call: str, *given: Any) -> None:
        self.calls.append((call, *given))
        if call in self.failing:
            raise self.failing[call]

    def writer(self, folder: str, **how: Any) -> Any:
        self.note("tensorboard open", folder, how)
        return SimpleNamespace(
            add_scalar=lambda *given: self.note("tensorboard scalar", *given),
            add_text=lambda *given: self.note("tensorboard text", *given),
            close=lambda: self.note("tensorboard close"),
        )

    def opened(self, package: str, how: dict[str, Any]) -> Any:
        self.note(f"{package} open", how)
        return SimpleNamespace(
            log=lambda values, step: self.note(f"{package} log", step, values),
            finish=lambda **how: self.note(f"{package} close", how),
        )

    def of(self, call: str) -> Calls:
        """Return what was given with the calls of one kind."""
        return [rest for name, *rest in self.calls if name == call]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return packages that stand for all of those that reporters need."""
    return Fake(monkeypatch)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("", []),
        (" , ", []),
        ("wandb", ["wandb"]),
        ("swanlab, wandb", ["swanlab", "wandb"]),
        ("TensorBoard,wandb,tensorboard,", ["tensorboard", "wandb"]),
    ],
)
def test_a_list_of_names_is_read_in_order_each_once(names: str, wanted: list[str], fake: Fake) -> None:
    assert check_reporters(names) == wanted


def test_an_unknown_name_is_refused_with_those_that_there_are(fake: Fake) -> None:
    said = "^wandv: no such reporter; wanted one or more of tensorboard, wandb, swanlab$"
    with pytest.raises(ClaraError, match=said):
        check_reporters("tensorboard,wandv")


@pytest.mark.parametrize("name", REPORTERS)
def test_a_package_that_is_not_installed_is_named_with_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(monkeypatch, absent=(PACKAGES[name],))
    assert check_reporters(",".join(set(REPORTERS) - {name}))
    with pytest.raises(ClaraError) as caught:
        check_reporters(name)
    assert str(caught.value) == f'{name}: {PACKAGES[name]} is not installed; run: pip install "clara-mlx[{name}]"'


def test_importing_and_checking_imports_none_of_the_packages() -> None:
    code = (
        "import sys; from clara.shell.reporters import PACKAGES, check_reporters, ClaraError\n"
        "for name in PACKAGES:\n"
        "    try: check_reporters(name)\n"
        "    except ClaraError: pass\n"
        "print([name for name in PACKAGES.values() if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_without_names_nothing_is_reported_or_written(fake: Fake, tmp_path: Path) -> None:
    with open_reporters([], tmp_path, "clara", CONFIG) as report:
        report(1, "training", {"loss": 1.0})
    assert fake.calls == [] and list(tmp_path.iterdir()) == []


def test_all_are_told_every_value_in_groups(fake: Fake, tmp_path: Path) -> None:
    with open_reporters(REPORTERS, tmp_path, "clara", CONFIG) as report:
        report(1, "training", {"loss": 2, "alignment": 0.5})
        report(1, "held-out", {"next_token": math.inf})
    assert fake.of("tensorboard scalar") == [
        ["training/loss", 2.0, 1],
        ["training/alignment", 0.5, 1],
        ["held-out/next_token", math.inf, 1],
    ]
    wanted = [[1, {"training/loss": 2.0, "training/alignment": 0.5}], [1, {"held-out/next_token": math.inf}]]
    assert fake.of("wandb log") == fake.of("swanlab log") == wanted


def test_they_are_opened_for_the_run_in_its_folder(fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    with open_reporters(REPORTERS, folder, "clara", CONFIG):
        pass
    assert [each[0] for each in fake.of("tensorboard open")] == [str(folder / "tensorboard")]
    assert '"anchored": true' in fake.of("tensorboard text")[0][1]
    ((wandb,),), ((swanlab,),) = fake.of("wandb open"), fake.of("swanlab open")
    same = {"project": "clara", "id": run_id(folder), "resume": "allow", "config": CONFIG}
    assert wandb == same | {"name": "one", "dir": str(folder), "allow_val_change": True}
    assert swanlab == same | {"experiment_name": "one", "logdir": str(folder / "swanlog")}


def test_a_run_that_is_resumed_goes_on_in_the_same_place(fake: Fake, tmp_path: Path) -> None:
    for start in (0, 5):
        with open_reporters(REPORTERS, tmp_path, "clara", CONFIG, start):
            pass
    (first,), (second,) = fake.of("wandb open")
    assert first["id"] == second["id"]
    before, after = (how for _, how in fake.of("tensorboard open"))
    assert (before["purge_step"], after["purge_step"]) == (None, 6)
    assert before["filename_suffix"] != after["filename_suffix"]


def test_an_id_belongs_to_the_folder_not_to_its_name(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    for folder in (one, other):
        folder.mkdir(parents=True)
    drawn = run_id(one)
    assert len(drawn) == 21 and int(drawn, 16) >= 0
    assert run_id(other) != drawn
    assert run_id(one.rename(tmp_path / "moved")) == drawn


@pytest.mark.parametrize("error", [None, RuntimeError("no"), KeyboardInterrupt()])
def test_all_are_closed_at_the_end_whatever_ends_it(error: BaseException | None, fake: Fake, tmp_path: Path) -> None:
    try:
        with open_reporters(REPORTERS, tmp_path, "clara", CONFIG):
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt) as caught:
        assert caught is error
    closed = [("swanlab close", {}), ("wandb close", {"exit_code": 1 if error else 0}), ("tensorboard close",)]
    assert fake.calls[-3:] == closed


@pytest.mark.parametrize("name", REPORTERS)
def test_one_that_fails_is_named_once_and_nothing_stops(
    name: str, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in ("scalar", "log", "close"):
        fake.failing[f"{name} {call}"] = ConnectionError("the network is down")
    with open_reporters(REPORTERS, tmp_path, "clara", CONFIG) as report:
        for step in (1, 2, 3):
            report(step, "training", {"loss": 1.0})
    assert capsys.readouterr().err == f"warning: {name} failed (the network is down); the run goes on\n"
    for call in ("tensorboard scalar", "wandb log", "swanlab log"):
        assert len(fake.of(call)) == 3
    for other in REPORTERS:
        assert len(fake.of(f"{other} close")) == 1


def test_an_error_without_words_is_named_by_its_kind(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failing["wandb log"] = TimeoutError()
    with open_reporters(["wandb"], tmp_path, "clara", CONFIG) as report:
        report(1, "training", {"loss": 1.0})
    assert "wandb failed (TimeoutError)" in capsys.readouterr().err


def test_an_interruption_while_reporting_is_passed_on(fake: Fake, tmp_path: Path) -> None:
    fake.failing["wandb log"] = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt), open_reporters(["wandb"], tmp_path, "clara", CONFIG) as report:
        report(1, "training", {"loss": 1.0})
    assert fake.of("wandb close") == [[{"exit_code": 1}]]


def test_one_that_cannot_be_opened_is_named_before_any_step_and_the_others_are_closed(
    fake: Fake, tmp_path: Path
) -> None:
    fake.failing["wandb open"] = RuntimeError("no API key")
    with (
        pytest.raises(ClaraError, match=r"^wandb: cannot be opened \(no API key\); "),
        open_reporters(["tensorboard", "wandb", "swanlab"], tmp_path, "clara", CONFIG),
    ):
        pytest.fail("the run began")
    assert [call[0] for call in fake.calls] == [
        "tensorboard open",
        "tensorboard text",
        "wandb open",
        "tensorboard close",
    ]


def test_a_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Fake(monkeypatch, absent=("swanlab",))
    with (
        pytest.raises(ClaraError, match=r"^swanlab: cannot be opened \(.*swanlab"),
        open_reporters(["swanlab"], tmp_path, "clara", CONFIG),
    ):
        pytest.fail("the run began")
