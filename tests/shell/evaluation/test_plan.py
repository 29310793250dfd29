"""What stops an evaluation is said before anything is computed, and what its folder must agree in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluations import plan, refusal
from folders import tiny_folder, write_choices, write_records
from runs import built_in, text_run, tiny_run

from clara.io.corpus.passages import Passage, encode_record, passage_record
from clara.io.errors import ClaraError
from clara.io.evaluation.formats import Question
from clara.io.evaluation.labels import heading
from clara.io.evaluation.systems import SYSTEMS
from clara.shell.evaluation.plan import (
    EvaluateOptions,
    drawn,
    plan_of,
    require_same,
    systems_of,
    write_config,
)

ALL = [name for name in SYSTEMS if name != "tuned_text"]
"""What is asked where there is no generator that was tuned on text."""


def test_a_plan_holds_all_that_is_to_be_done(run: Path, data: Path) -> None:
    found = plan(run, data)
    assert found.systems == ALL and len(found.questions) == 5
    assert len(found.bench.corpus) == 7 and found.bench.top_k == 3 and found.bench.compressed is None
    assert found.out == run / "evaluations" / "choices-step-000003" and not found.out.exists()
    config = found.config
    assert (config["step"], config["stage"], config["compression_rate"], config["num_memory_tokens"]) == (
        *(3, "end_to_end"),
        *(8, 4),
    )
    assert config["questions"] == 5 and config["format"] == "records" and config["systems"] == ALL
    assert json.loads(json.dumps(config)) == config
    assert any("5 questions in format records" in line for line in heading(config))


def test_without_a_checkpoint_the_built_in_one_is_measured_outside_of_its_folder(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built_in(base, tmp_path / "built-in", monkeypatch)
    monkeypatch.chdir(tmp_path)
    found = plan_of(EvaluateOptions(data=str(data)))
    assert capsys.readouterr().out.startswith("note      no --checkpoint: small is taken")
    assert found.out == Path("runs/evaluations/small-choices-step-000003")
    assert found.config["checkpoint"] == "small" and not (tmp_path / "runs").exists()
    for named in ("small", str(folder)):
        assert plan(Path(named), data).config == found.config, "a name or a folder, it is the same"
        assert "small is taken" not in capsys.readouterr().out


def test_options_change_what_they_say(run: Path, data: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(b"".join(encode_record(passage_record(Passage(text=f"Passage {i}."))) for i in range(3)))
    found = plan(
        run, data, top_k=2, limit=3, systems="text, memory,text", out=str(tmp_path / "out"), corpus=str(corpus)
    )
    assert (found.bench.top_k, len(found.questions), found.systems) == (2, 3, ["text", "memory"])
    assert found.out == tmp_path / "out" and list(found.bench.corpus) == ["Passage 0.", "Passage 1.", "Passage 2."]
    assert found.bench.words is None, "no system searches by words"


def test_a_model_that_reads_one_document_is_given_one(base: Path, data: Path) -> None:
    pretrained = tiny_run(base, base.parent / "pretrained")
    assert plan(pretrained, data).bench.top_k == 1


def test_documents_of_all_questions_are_searched_whatever_the_limit(run: Path, data: Path) -> None:
    assert plan(run, data, limit=2, systems="text_bm25").bench.corpus == plan(run, data).bench.corpus


BAD = {
    "an unknown system": ({"systems": "memory,telepathy"}, "--systems telepathy: not one of memory, memory_retrieved"),
    "both": ({"paper": "paper.pdf"}, "wanted either --data FILE or --paper PDF"),
    "neither": ({"data": ""}, "wanted either --data FILE or --paper PDF"),
    "no file": ({"data": "absent.jsonl"}, "absent.jsonl: does not exist"),
    "an unknown format": ({"format": "trivia"}, "--format trivia: not one of auto, records"),
    "another format": ({"format": "squad"}, "choices.jsonl:1: Object missing required field `data`"),
    "no paper": ({"data": "", "paper": "absent.pdf"}, "absent.pdf: "),
    "no corpus": ({"corpus": "absent.jsonl"}, "absent.jsonl: does not exist"),
    "no others": ({"limit": 1, "systems": "memory_shuffled"}, "no other question has documents that are not also its"),
    "no checkpoint": ({"checkpoint": "absent"}, "absent: no whole checkpoint found"),
}


@pytest.mark.parametrize(("options", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_evaluated_is_refused(options: dict[str, Any], said: str, run: Path, data: Path) -> None:
    assert said in refusal(run, data, **options)
    assert not (run / "evaluations").exists()


def test_what_the_data_cannot_serve_is_refused(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "open.jsonl"
    data.write_text('{"question": "Where?", "answer": ["here"]}\n')
    message = refusal(run, data, systems="memory,text_tfidf,closed_book")
    assert message.startswith("--systems memory, text_tfidf: the questions have no documents to read, and there is no")
    assert message.endswith("of use here are tuned_closed_book, closed_book")
    assert plan(run, data).systems == ["tuned_closed_book", "closed_book"]


def test_a_checkpoint_of_another_base_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=1)
    assert "was trained on another base" in refusal(run, data, model=str(other))
    assert not (run / "evaluations").exists()


def test_documents_that_memory_cuts_are_counted(run: Path, data: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    texts = ("A lamp.", "x" * 32, "x" * 33)
    corpus.write_bytes(b"".join(encode_record(passage_record(Passage(text=text))) for text in texts))
    found = plan(run, data, corpus=str(corpus))
    documents = {text for question in found.questions for text in question.documents} | set(texts)
    assert (found.config["documents"], found.config["documents_cut"]) == (len(documents), 1)
    assert f"1 of {len(documents)} documents were cut to 32 tokens for memory, not for text" in heading(found.config)
    assert not any("were cut" in line for line in heading(plan(run, data).config))


def test_that_no_reasoner_was_trained_is_said(run: Path, base: Path, data: Path) -> None:
    pretrained = tiny_run(base, base.parent / "without")
    for source, systems, said in ((run, "all", False), (pretrained, "memory", False), (pretrained, "all", True)):
        config = plan(source, data, systems=systems).config
        assert config["reasoner"] is (source is run)
        assert any("no reasoner was trained" in line for line in heading(config)) is said


def test_a_folder_must_agree_in_prompts_and_reasoner(run: Path, data: Path, tmp_path: Path) -> None:
    found = plan(run, data, out=str(tmp_path / "out"), systems="text")
    found.out.mkdir()
    for name, other in (("prompts", "others"), ("reasoner", False)):
        write_config(found._replace(config={**found.config, name: other}))
        with pytest.raises(ClaraError, match=f"holds an evaluation with {name} {other!r}, not"):
            require_same(found)


def test_a_folder_of_another_evaluation_is_refused_by_its_fields(run: Path, data: Path, tmp_path: Path) -> None:
    first = plan(run, data, out=str(tmp_path / "out"), systems="text")
    first.out.mkdir()
    write_config(first)
    message = refusal(run, data, out=str(tmp_path / "out"), seed=1, top_k=2)
    assert "holds an evaluation with top_k 3, not 2; seed 0, not 1; give another --out" in message
    moved = data.rename(tmp_path / "moved.jsonl")
    more = plan(run, moved, out=str(tmp_path / "out"), systems="closed_book,memory")
    moved.rename(data)
    assert more.systems == ["closed_book", "memory"] and more.config["systems"] == ["memory", "text", "closed_book"]
    changed = write_choices(tmp_path / "changed.jsonl", range(1, 6))
    assert "data_fingerprint" in refusal(run, changed, out=str(tmp_path / "out"))


def test_a_limit_draws_by_the_seed_and_keeps_the_order() -> None:
    questions = [Question(str(i), "q", ("a",)) for i in range(40)]
    assert drawn(questions, 0, 0) == drawn(questions, 40, 0) == questions
    some = [drawn(questions, 9, seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert all(sorted(each, key=questions.index) == each and len(set(each)) == 9 for each in some)


def test_all_systems_leave_out_the_one_that_wants_other_documents(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_records(tmp_path / "one.jsonl", range(1))
    assert plan(run, data).systems == [name for name in ALL if name != "memory_shuffled"]
    assert "note      without memory_shuffled: question r0" in capsys.readouterr().out
    assert systems_of("memory", plan(run, data).questions, []) == ["memory"]
    # Two questions that share a document, each with another one that holds the answer.
    records = [{"docs": ["A.", "B."], "question": "q", "answer": "red", "pos_index": [i]} for i in (0, 1)]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert plan(run, data).systems == [name for name in ALL if name != "memory_shuffled"]
    assert "note      without memory_shuffled: question one.jsonl:1" in capsys.readouterr().out
    assert "leave it out of --systems" in refusal(run, data, systems="memory_shuffled")


def test_documents_say_otherwise_where_that_is_wanted(run: Path, data: Path, tmp_path: Path) -> None:
    data = tmp_path / "facts.jsonl"
    records = [
        {"id": f"f{i}", "docs": [f"The lamp was lit in {1900 + i}."], "question": "When?", "answer": str(1900 + i)}
        for i in range(4)
    ]
    records.append({"id": "no", "docs": ["A lamp."], "question": "Is it lit?", "answer": "no"})
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = plan(run, data, counterfactual=True)
    assert [each.id for each in found.questions] == [f"f{i}#counterfactual" for i in range(4)]
    for i, each in enumerate(found.questions):
        assert each.documents == (f"The lamp was lit in {each.golds[0]}.",) and each.golds != (str(1900 + i),)
    assert set(found.bench.corpus) == {text for each in found.questions for text in each.documents}
    assert (found.config["counterfactual"], found.config["not_rewritten"], found.config["questions"]) == (True, 1, 4)
    assert found.out.name == "facts-counterfactual-step-000003"
    assert any(line.startswith("counterfactual: ") and "1 questions where" in line for line in heading(found.config))
    assert plan(run, data, counterfactual=True, seed=1).questions != found.questions
    assert len(plan(run, data, counterfactual=True, limit=2).questions) == 2
    found.out.mkdir(parents=True)
    write_config(found)
    assert "counterfactual True, not False" in refusal(run, data, out=str(found.out))
    write_config(found._replace(config={n: v for n, v in found.config.items() if n != "counterfactual"}))
    assert "counterfactual False, not True" in refusal(run, data, out=str(found.out), counterfactual=True)


def test_as_many_beams_as_the_run_says_unless_told_otherwise(run: Path, base: Path, data: Path, tmp_path: Path) -> None:
    searching = tiny_run(base, tmp_path / "searching", beams=3)
    found = [plan(run, data), plan(run, data, beams=2), plan(searching, data), plan(searching, data, beams=1)]
    assert [each.bench.session.beams for each in found] == [each.config["beams"] for each in found] == [1, 2, 3, 1]
    assert [any(line.endswith(" beams") for line in heading(each.config)) for each in found] == [
        False,
        True,
        True,
        False,
    ]
    text = text_run(base, tmp_path / "text")
    beside = plan(searching, data, text_checkpoint=str(text)).bench.text_session
    assert beside is not None and beside.beams == 3
    found[1].out.mkdir(parents=True)
    write_config(found[0])
    assert "beams 1, not 2" in refusal(run, data, beams=2)
    write_config(found[0]._replace(config={n: v for n, v in found[0].config.items() if n != "beams"}))
    assert plan(run, data).config["beams"] == 1


def test_documents_that_cannot_say_otherwise_are_refused(run: Path, data: Path) -> None:
    assert "--counterfactual: none of the 5 questions has an answer that stands" in refusal(
        run, data, counterfactual=True
    )
    assert "--counterfactual beside --corpus" in refusal(run, data, counterfactual=True, corpus=str(data))


def test_a_generator_that_was_tuned_on_text_is_asked_where_it_is_given(
    run: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    text = text_run(base, tmp_path / "text")
    out = str(tmp_path / "out")
    found = plan(run, data, text_checkpoint=str(text), out=out)
    assert found.systems == list(SYSTEMS) and found.bench.text_session is not None
    assert found.bench.text_session.base.module is found.bench.session.base.module, "the base is held once"
    assert found.config["text_step"] == 3 and found.config["text_doc_max_tokens"] == 32
    assert any(line.startswith(f"text checkpoint {text}") for line in heading(found.config))
    assert "--systems tuned_text: wanted --text-checkpoint RUN" in refusal(run, data, systems="tuned_text")


def test_a_generator_tuned_on_text_may_come_later_but_not_change(
    run: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    before = plan(run, data, out=out, systems="memory")
    before.out.mkdir()
    write_config(before)
    text, other = (text_run(base, tmp_path / name, generator=scale) for name, scale in (("text", 1.0), ("other", 2.0)))
    later = plan(run, data, out=out, systems="tuned_text", text_checkpoint=str(text))
    assert later.config["systems"] == ["memory", "tuned_text"]
    write_config(later)
    more = plan(run, data, out=out, systems="text")
    assert more.config["systems"] == ["memory", "text", "tuned_text"]
    assert more.config["text_parameters"] == later.config["text_parameters"]
    assert "text_parameters" in refusal(run, data, out=out, systems="tuned_text", text_checkpoint=str(other))
