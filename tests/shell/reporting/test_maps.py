"""Which checkpoints are mapped, and over which documents."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import msgspec
import pytest
from evaluations import write_evaluation, write_run
from folders import tiny_folder, tiny_options, write_records
from runs import text_run, tiny_run

from clara.io.errors import ClaraError
from clara.io.evaluation.evaluations import Run, read_evaluation, read_run
from clara.io.report.document import Section
from clara.shell.options import to_plain
from clara.shell.reporting.maps import map_sections, run_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run on a tiny base, with a checkpoint and the data that it was trained on."""
    folder = tmp_path_factory.mktemp("place")
    base = tiny_folder(folder / "base")
    data = write_records(folder / "data.jsonl", range(6))
    path = write_run(folder / "run", **to_plain(tiny_options(base, data={"data": str(data), "heldout": ""})))
    tiny_run(base, path)
    yield read_run(path)
    mx.enable_compile()


def titles(sections: list[Section]) -> list[str]:
    """Return the last names of checkpoint and data in each title."""
    return [" ".join(Path(part).name for part in section.title.split(": ")) for section in sections]


def test_a_run_is_mapped_over_its_data(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert titles(map_sections([], [run], 4, "")) == ["run data.jsonl"]
    assert "map       4 documents of" in capsys.readouterr().out


def test_a_checkpoint_is_mapped_once(run: Run, tmp_path: Path) -> None:
    checkpoint = str(run.path / "checkpoints" / "step-000003")
    other = write_records(tmp_path / "other.jsonl", range(3))
    how = {"checkpoint": checkpoint, "corpus": str(other), "count": 1}
    found = [read_evaluation(write_evaluation(tmp_path / name, **how)) for name in ("one", "two")]
    assert titles(map_sections(found, [run], 3, "")) == ["step-000003 other.jsonl"]


def test_other_documents_can_be_given(run: Run, tmp_path: Path) -> None:
    other = write_records(tmp_path / "other.jsonl", range(3))
    assert titles(map_sections([], [run], 9, str(other))) == ["run other.jsonl"]


def test_without_a_checkpoint_there_is_nothing_to_map(run: Run, tmp_path: Path) -> None:
    evaluation = read_evaluation(write_evaluation(tmp_path / "dev", count=1))
    with pytest.raises(ClaraError, match="--map: none of the folders names a checkpoint"):
        map_sections([evaluation], [], 3, "")
    gone = msgspec.structs.replace(evaluation.facts, checkpoint=str(tmp_path / "gone"), corpus="sample")
    with pytest.raises(ClaraError, match="gone: no whole checkpoint found"):
        map_sections([evaluation._replace(facts=gone)], [], 3, "")


def test_a_run_on_text_is_refused_before_any_map_is_made(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"data": run_data(run), "heldout": "", "reads": "text"}
    base = tmp_path.joinpath(run.config["model"])
    text = write_run(tmp_path / "text", **to_plain(tiny_options(base, data=data, loss={"alignment_weight": 0.0})))
    text_run(base, text)
    with pytest.raises(ClaraError, match=r"text/.*: was trained on text and has no memory; wanted a run of memory"):
        map_sections([], [run, read_run(text)], 4, "")
    assert capsys.readouterr().out == ""


def test_held_out_data_comes_before_training_data(run: Run) -> None:
    data = {"data": "sample", "heldout": "auto"}
    assert run_data(run._replace(config=run.config | {"data": data})) == "sample-heldout"
    assert Path(run_data(run)).name == "data.jsonl"
