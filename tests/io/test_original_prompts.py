"""Prompts out of a model file: to the character as its code would make them; never run, and never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from folders import VOCAB_SIZE, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from clara.core.collate import ANSWER
from clara.core.config import MemoryConfig
from clara.core.prompts import Prompts, Wording
from clara.io.errors import ClaraError
from clara.io.examples import encode_prompt, encode_record, layout_for, make_encoder
from clara.io.original_prompts import read_prompts
from clara.io.records import Record

SOURCE = """
import random

SAY_AGAIN = [
    "Text: {docs} Say it again.",
    'A:\\n(1) {docs}\\n(2)',
]


class Model:
    def blend(self, query, answer=None, qa=False, again=False, stage="one"):
        memory = ''.join(self.tokenizer.mem_tokens) + self.tokenizer.sep_token
        docs = memory * self.top_k
        if stage == "one":
            if qa:
                return self.blend_pairs(docs, query, answer)
            elif again:
                return self.blend_again(docs, answer)
        elif stage == "two":
            return self.blend_answer(docs, query, answer)
        raise ValueError(stage)

    def blend_pairs(self, docs, query, answer):
        said = 'Write questions.'
        user = f"Context:\\n{docs}"
        first = [{"role": "system", "content": said}]
        second = [{"role": "user", "content": user.replace(':\\ ', ': ')}]
        lines = [f"Q: {q}\\nA: {a}" for q, a in zip(query, answer)]
        third = [{"role": "assistant", "content": "\\n".join(lines)}]
        try:
            prompt = self.tokenizer.apply_chat_template(first + second)
            response = self.tokenizer.apply_chat_template(first + second + third)
        except TemplateError as e:
            messages = [{"role": "user", "content": first[0]['content'] + '\\n' + second[0]['content']}]
            response = self.tokenizer.apply_chat_template(messages + third)
        return len(prompt), response

    def blend_again(self, docs, answer):
        user = random.choice(SAY_AGAIN).format(docs=docs)
        messages = [{"role": "system", "content": 'Say it again.'}, {"role": "user", "content": user}]
        if answer is None:
            return messages
        return messages + [{"role": "assistant", "content": answer}]

    def blend_answer(self, docs, query, answer):
        said = 'Be brief.'
        user = f"Context:\\n{docs}\\n\\nQ:{query}"
        messages = [{"role": "system", "content": said}]
        messages = messages + [{"role": "user", "content": user.replace(':\\ ', ': ')}]
        if answer is not None:
            messages = messages + [{"role": "assistant", "content": answer}]
        return messages

    def blend_selected(self, query, answer=None):
        docs = (''.join(self.tokenizer.mem_tokens) + self.tokenizer.sep_token) * self.top_k
        return [{"role": "system", "content": 'Be brief.'},
                {"role": "user", "content": f"Context:\\n{docs}\\n\\nQ:{query}"}]
"""
PROMPTS = Prompts(
    answer=Wording("Context:\n{memory}\n\nQ:{question}", "Be brief."),
    next_question="Q:{question}",
    pairs=Wording("Context:\n{memory}", "Write questions."),
    pair="Q: {question}\nA: {answer}",
    paraphrases=(
        Wording("Text: {memory} Say it again.", "Say it again."),
        Wording("A:\n(1) {memory}\n(2)", "Say it again."),
    ),
    joined=True,
)


def changed(*changes: tuple[str, str]) -> str:
    """Return the source with some text in the place of other text, which is there."""
    source = SOURCE
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    return source


def test_every_task_has_the_prompt_that_its_function_makes() -> None:
    assert read_prompts(SOURCE, "model.py") == PROMPTS


ASKS = r'f"Context:\n{docs}\n\nQ:{query}"'
BRIEF = "        said = 'Be brief.'\n"
FORMS = {
    "concatenation": (ASKS, r'"Context:\n" + docs + "\n\nQ:" + query'),
    "format by name": (ASKS, r'"Context:\n{d}\n\nQ:{q}".format(q=query, d=docs)'),
    "format by place": (ASKS, r'"Context:\n{}\n\nQ:{}".format(docs, query)'),
    "format by number": (ASKS, r'"Context:\n{1}\n\nQ:{0}".format(query, docs)'),
    "several strings": (ASKS, r"""("Context:\n" f'{docs}\n' r"" "\nQ:" f"{query}")"""),
    "a long string": (ASKS, 'f"""Context:\n{docs}\n\nQ:{query}"""'),
    "steps": (BRIEF, "        said: str = 'Be '\n        said += 'brief.'\n"),
    "an alias": (BRIEF, BRIEF + "        question = query\n        query = question\n"),
    "a constant": ("'Be brief.'", "BRIEF"),
    "a tuple of paraphrases": ("SAY_AGAIN = [", "SAY_AGAIN = (", "\n]", "\n)"),
    "brackets": ("for q, a in zip(query, answer)", "for (q, a) in zip(query, answer)"),
}


@pytest.mark.parametrize("change", FORMS.values(), ids=FORMS)
def test_the_same_prompts_written_in_other_ways_are_the_same(change: tuple[str, ...]) -> None:
    source = changed(*zip(change[::2], change[1::2], strict=True))
    assert read_prompts("BRIEF = 'Be brief.'\n" + source, "model.py") == PROMPTS


def test_one_function_that_branches_is_followed_on_each_way() -> None:
    source = """
MORE = ("{docs} again", "again {docs}")
def blend(self, query, answer, stage):
    docs = self.mem_tokens * self.top_k
    question = query
    if stage == "a":
        system, user, reply = None, None, None
        system = "S"
        user = f"{docs} and {question}"
        reply = answer
    elif stage == "b":
        system = "T"
        user = f"{docs}"
        reply = "\\n".join([f"{x} {y}" for x, y in zip(question, answer)])
    elif stage == "c":
        system = "U"
        user = random.choice(MORE).format(docs=docs)
        reply = answer
    else:
        raise ValueError
    with lock:
        messages = [dict(a=1), {"role": "system", "content": system}, {"role": "user", "content": user}]
    return messages + [{"role": "assistant", "content": reply}]
"""
    assert read_prompts(source, "model.py") == Prompts(
        answer=Wording("{memory} and {question}", "S"),
        next_question="and {question}",
        pairs=Wording("{memory}", "T"),
        pair="{question} {answer}",
        paraphrases=(Wording("{memory} again", "U"), Wording("again {memory}", "U")),
        joined=True,
    )


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ue000\ue001\ue002"), max_size=12)


@given(st.lists(text, min_size=12, max_size=12))
def test_whatever_the_prompts_say_they_are_kept_to_the_character(parts: list[str]) -> None:
    a, b, c, d, e, f, g, h, i, j, k, m = parts
    doubled = [part.replace("{", "{{").replace("}", "}}") for part in (e, f)]
    source = f"""
AGAIN = [{doubled[0]!r} + "{{docs}}" + {doubled[1]!r}, "{{docs}}."]
def blend_one(docs, query, answer):
    return [{{"role": "system", "content": {a!r}}}, {{"role": "user", "content": {b!r} + docs + {c!r} + query + {d!r}}}]
def blend_two(docs, query, answer):
    again = random.choice(AGAIN).format(docs=docs)
    return [{{"role": "user", "content": again}}, {{"role": "assistant", "content": answer}}]
def blend_three(docs, query, answer):
    lines = [{g!r} + q + {h!r} + a + {i!r} for q, a in zip(query, answer)]
    user = {j!r} + docs + {k!r}
    return [{{"role": "system", "content": {m!r}}}, {{"role": "user", "content": user}},
            {{"role": "assistant", "content": "\\n".join(lines)}}]
"""
    read = read_prompts(source, "model.py")
    assert read.answer == Wording(f"{b}{{memory}}{c}{{question}}{d}", a)
    assert read.paraphrases == (Wording(f"{e}{{memory}}{f}"), Wording("{memory}."))
    assert read.pairs == Wording(f"{j}{{memory}}{k}", m)
    assert read.pair.format(question="Q", answer="A") == f"{g}Q{h}A{i}"
    assert read.next_question == f"{c}{{question}}{d}".strip()


def test_a_question_before_the_documents_is_asked_again_in_the_same_words() -> None:
    source = changed((r'f"Context:\n{docs}\n\nQ:{query}"', r'f"Q: {query}\nContext: {docs}\n"'))
    assert read_prompts(source, "model.py").next_question == "Q: {question}\nContext:"


def test_a_backslash_that_the_original_replaces_is_replaced() -> None:
    source = changed((r'f"Context:\n{docs}"', r'f"Context:\\ {docs}"'))
    assert read_prompts(source, "model.py").pairs.user == "Context: {memory}"


def test_nothing_of_the_file_is_run(tmp_path: Path) -> None:
    line = f"open({str(tmp_path / 'caught')!r}, 'w').close()\n"
    source = line + changed(("        said = 'Be brief.'\n", f"        {line}        said = 'Be brief.'\n"))
    assert read_prompts(source, "model.py") == PROMPTS
    assert not (tmp_path / "caught").exists()


QUESTION = "no prompt found for a question about documents"
PAIRS = "no prompt found for a list of questions"
AGAIN = "no prompt found for a paraphrase"
LINES = r'"\n".join(lines)'
REFUSED: dict[str, tuple[str, str]] = {
    "empty": ("", QUESTION),
    "no Python": ("def f(:", "not Python that can be read for its prompts"),
    "null byte": ("a = '\0'", "not Python that can be read for its prompts"),
    "functions of other names": (changed(("def blend", "def other")), QUESTION),
    "no question": (changed(("{query}", "text")), QUESTION),
    "unknown documents": (changed(("{docs}", "{other}")), "blend_pairs: .* role user is not understood"),
    "a question that is changed": (
        changed((BRIEF, BRIEF + "        query = query.strip()\n")),
        "blend_answer: .* user",
    ),
    "a question in quotes": (changed((ASKS, ASKS.replace("query", "query!r"))), "blend_answer: .* role user"),
    "an unpacked question": (changed((BRIEF, BRIEF + "        query, x = query\n")), "blend_answer: .* role user"),
    "another system": (changed((BRIEF, "        said = self.said\n")), "blend_answer: .* role system"),
    "another reply": (changed(('"content": answer}]\n\n', '"content": answer[0]}]\n\n')), "blend_again: .* assistant"),
    "documents twice": (changed((r'f"Context:\n{docs}"', r'f"{docs}{docs}"')), PAIRS),
    "pairs as Python has them": (changed((LINES, "str(lines)")), "blend_pairs: .* role assistant"),
    "pairs on one line": (changed((LINES, '" ".join(lines)')), "blend_pairs: .* role assistant"),
    "some of the pairs": (changed(("zip(query, answer)]", "zip(query, answer) if q]")), "blend_pairs: .* assistant"),
    "answers alone": (changed((r"Q: {q}\nA: {a}", "A: {a}")), PAIRS),
    "unknown paraphrases": (changed(("random.choice(SAY_AGAIN)", "pick(SAY_AGAIN)")), "blend_again: .* role user"),
    "more paraphrases": (changed(("\n\nclass", "\nSAY_AGAIN += ['{docs}']\n\nclass")), "blend_again: .* role user"),
    "one without documents": (changed(("Text: {docs}", "Text:")), AGAIN),
    "other fields": (changed(("Text: {docs}", "Text: {docs} {more}")), "blend_again: .* role user"),
    "a width": (changed(("Text: {docs}", "Text: {docs:>99999999999}")), "blend_again: .* role user"),
    "a lonely brace": (changed(("Text: {docs}", "Text: {docs} {")), "blend_again: .* role user"),
    "two prompts": (
        changed((ASKS + "}]", ASKS.replace("Q:", "Q: ") + "}]")),
        "2 different prompts for a question about documents .*wanted one",
    ),
    "a placeholder": (
        changed(("Text: {docs}", "Text {{memory}}: {docs}")),
        r"a prompt says \{memory\} or \{question\}",
    ),
    "many branches": (changed((BRIEF, "        if a: b = c\n" * 40 + BRIEF)), "blend_answer: more than 64 ways"),
    "a text that grows": (
        changed((BRIEF, BRIEF + "        said = said + said\n" * 90)),
        "blend_answer: .* role system",
    ),
}


@pytest.mark.parametrize(("source", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_missing_or_not_understood_is_named(source: str, message: str) -> None:
    with pytest.raises(ClaraError, match=f"^model.py: .*{message}"):
        read_prompts(source, "model.py")


def test_examples_have_the_tokens_of_the_conversation_as_one_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    layout = layout_for(tokenizer, VOCAB_SIZE, MemoryConfig(doc_max_tokens=32, compression_rate=8))
    encoder = make_encoder(tokenizer, layout, 32, 2048, read_prompts(SOURCE, "model.py"))
    slots = "".join(f"<{i}>" for i in range(4)) + "<sep>"
    record = Record(docs=["d"], question=["w?", "x?"], answers=["y", "z"], paraphrase="p")
    hf: Any = tokenizer.hf

    def expected(system: str, user: str, reply: str) -> list[int]:
        messages = [("system", system), ("user", user.replace("{memory}", slots)), ("assistant", reply)]
        whole = hf.apply_chat_template([{"role": r, "content": t} for r, t in messages], tokenize=False)
        pieces = whole.removesuffix("\n").split(slots)
        first, second = (hf.encode(piece, add_special_tokens=False) for piece in pieces)
        return [*first, *range(layout.first_slot, layout.first_slot + 4), layout.sep_id, *second]

    cases = {
        "answer": (encode_record(encoder, record, "qa", form="one"), PROMPTS.answer, "w?", "y"),
        "pairs": (encode_record(encoder, record, "qa", form="pairs"), PROMPTS.pairs, "", "Q: w?\nA: y\nQ: x?\nA: z"),
        "paraphrase": (encode_record(encoder, record, "paraphrase", 1), PROMPTS.paraphrases[1], "", "p"),
    }
    for name, (example, wording, question, reply) in cases.items():
        row = expected(wording.system, wording.user.replace("{question}", question), reply)
        assert list(example.tokens)[: len(row)] == row, name
    asked = encode_prompt(encoder, ["d"], "w?")
    trained = cases["answer"][0]
    assert asked.tokens == trained.tokens[: trained.roles.index(ANSWER)]
