"""The prompts of the original, read out of its model file, which is parsed and never run."""

from __future__ import annotations

import ast
import itertools
import math
import re
import string
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct

from clara.core.prompts import MEMORY, QUESTION, Prompts, Wording
from clara.io.errors import ClaraError

DOCS, ASKED, REPLIED = "\ue000", "\ue001", "\ue002"
"""What stands for documents, question and answer in a text while the file is read."""
MARKS = {"docs": DOCS, "query": ASKED, "question": ASKED, "answer": REPLIED}
"""The variables of the original that hold them."""
MOST_WAYS, LONGEST = 64, 10_000
"""Ways through one function that are followed; characters of a text that is put together."""

Texts = tuple[str, ...]
"""A text, or several of which one is drawn."""


class Each(Struct, frozen=True):
    """A list of texts of one form, one for each question with its answer."""

    form: Texts


Value = Texts | list[str] | Each | None
"""What an expression stands for: a text, a list of texts, a list by one form, or something else."""


class Way(NamedTuple):
    """One way through a function: what its variables hold, and what the messages of each role say."""

    variables: dict[str, Value]
    messages: dict[str, Value]


class Task(NamedTuple):
    """What one way through a function asks of the model."""

    kind: str
    system: str
    users: Texts
    reply: str


KINDS = {
    "answer": "question about documents (a user's message of documents and a question)",
    "pairs": "list of questions (a user's message of documents, a reply of lines with a question and an answer)",
    "paraphrases": "paraphrase (a user's message of documents, the answer as the reply)",
}
"""The tasks that the original's model file holds prompts for, as errors call them."""


def read_prompts(source: str, where: str) -> Prompts:
    """Return the prompts that the original's model file builds, with their whitespace and punctuation.

    source: the text of modeling_clara.py; where: what errors call it. Functions with "blend" or "prompt" in their names
    are followed on each way through them; docs, query and answer in them stand for documents, question and answer. A
    wording for autoencoding is not among them, so this project's own stays. Raises ClaraError that names the part that
    is missing or there in several wordings, and a function with a message that is not understood.
    """
    module = _parse(source, where)
    constants = Way({}, {})
    for statement in module.body:
        _assign(statement, constants)
    functions = [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef) and re.search("blend|prompt", n.name)]
    ways = [way for function in functions for way in _ways(function, constants, where)]
    tasks = list(dict.fromkeys(task for task in map(_task, ways) if task))
    answer, pairs, paraphrases = (_only(tasks, kind, where) for kind in KINDS)
    asked = _template(answer.users[0], where)
    before, after = (part.strip() for part in asked.split(MEMORY, 1))
    return Prompts(
        answer=Wording(asked, answer.system),
        next_question=after if QUESTION in after else before,
        pairs=Wording(_template(pairs.users[0], where), pairs.system),
        pair=pairs.reply.replace("{", "{{").replace("}", "}}").replace(ASKED, QUESTION).replace(REPLIED, "{answer}"),
        paraphrases=tuple(Wording(_template(text, where), paraphrases.system) for text in paraphrases.users),
        joined=True,
    )


def _parse(source: str, where: str) -> ast.Module:
    """Return the syntax tree of a source text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the original writes a backslash that begins no escape
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ClaraError(f"{where}: not Python that can be read for its prompts ({error})") from error


def _contents(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield (role, content) of the messages that are written out in a piece of code."""
    for found in ast.walk(node):
        if isinstance(found, ast.Dict):
            entries = {_literal(key): value for key, value in zip(found.keys, found.values, strict=True)}
            role = _literal(entries.get("role"))
            if role is not None and "content" in entries:
                yield role, entries["content"]


def _literal(node: ast.expr | None) -> str | None:
    """Return a text that is written out, None for any other expression."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _ways(function: ast.FunctionDef, constants: Way, where: str) -> list[Way]:
    """Return every way through a function that ends in a return, or at its end."""
    own = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    known = {name: value for name, value in constants.variables.items() if name not in own}
    going, ended = _follow(function.body, [Way(known, {})], f"{where}: {function.name}")
    for role, value in (item for way in going + ended for item in way.messages.items()):
        if not isinstance(value, tuple):
            raise ClaraError(f"{where}: {function.name}: its message of the role {role} is not understood")
    return going + ended


def _follow(body: Sequence[ast.stmt], going: list[Way], where: str) -> tuple[list[Way], list[Way]]:
    """Return the ways that go on after some statements and those that ended in them; handlers of errors are skipped."""
    ended: list[Way] = []
    for statement in body:
        branches: list[list[ast.stmt]] = []
        if isinstance(statement, ast.If):
            branches = [statement.body, statement.orelse]
        elif isinstance(statement, ast.Try):
            branches = [[*statement.body, *statement.orelse, *statement.finalbody]]
        elif isinstance(statement, ast.With | ast.For | ast.While):
            branches = [statement.body]
        else:
            for way in going:
                _note(statement, way)
        if branches:
            copies = [[Way(dict(way.variables), dict(way.messages)) for way in going] for _ in branches]
            results = [_follow(branch, ways, where) for branch, ways in zip(branches, copies, strict=True)]
            going = [way for stay, _ in results for way in stay]
            ended += [way for _, left in results for way in left]
        if isinstance(statement, ast.Return):
            return [], ended + going
        if isinstance(statement, ast.Raise):
            return [], ended
        if len(going) + len(ended) > MOST_WAYS:
            raise ClaraError(f"{where}: more than {MOST_WAYS} ways through it; its prompts are not read")
    return going, ended


def _note(statement: ast.stmt, way: Way) -> None:
    """Write a statement's messages and what it assigns into a way through a function."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return
    for role, content in _contents(statement):
        way.messages[role] = _value(content, way.variables)
    _assign(statement, way)


def _assign(statement: ast.stmt, way: Way) -> None:
    """Write what a statement assigns to variables into a way through a function."""
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        sum_ = ast.BinOp(ast.Name(statement.target.id, ast.Load()), statement.op, statement.value)
        way.variables[statement.target.id] = _value(sum_, way.variables)
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            for name in (node.id for node in ast.walk(target) if isinstance(node, ast.Name)):
                known = isinstance(target, ast.Name)
                way.variables[name] = _value(statement.value, way.variables) if known else None
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        way.variables[statement.target.id] = _value(statement.value, way.variables)


def _value(node: ast.expr, variables: dict[str, Value]) -> Value:
    """Return what an expression stands for."""
    match node:
        case ast.Constant(value=str(text)):
            return (text,)
        case ast.Name(id=name):
            return variables[name] if name in variables else (MARKS[name],) if name in MARKS else None
        case ast.JoinedStr(values=parts):
            return _glued([_value(part, variables) for part in parts])
        case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
            return _value(inner, variables)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _glued([_value(left, variables), _value(right, variables)])
        case ast.BinOp(left=left, op=ast.Mult()) if "mem_tokens" in ast.unparse(left):
            return (DOCS,)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            texts = [value for value in (_value(item, variables) for item in items) if isinstance(value, tuple)]
            alone = len(texts) == len(items) and all(len(text) == 1 for text in texts)
            return [text for (text,) in texts] if alone else None
        case ast.ListComp(elt=form, generators=[ast.comprehension(ifs=[]) as loop]):
            value = _value(form, variables | _loop_marks(loop, variables))
            return Each(value) if isinstance(value, tuple) else None
        case ast.Call(func=ast.Attribute(value=owner, attr=method), args=args, keywords=keywords):
            named = {keyword.arg or "": _value(keyword.value, variables) for keyword in keywords}
            return _called(method, _value(owner, variables), [_value(arg, variables) for arg in args], named)
    return None


def _glued(parts: Sequence[Value]) -> Texts | None:
    """Return texts one after the other; of parts with several texts, each combination."""
    texts = [part for part in parts if isinstance(part, tuple)]
    size = sum(len(text) for part in texts for text in part)
    if len(texts) < len(parts) or max(size, math.prod(map(len, texts))) > LONGEST:
        return None
    return tuple("".join(chosen) for chosen in itertools.product(*texts))


def _loop_marks(loop: ast.comprehension, variables: dict[str, Value]) -> dict[str, Value]:
    """Return what the variables of a loop stand for: a mark each, where it runs over questions or answers."""
    sources, targets = [loop.iter], [loop.target]
    match loop:
        case ast.comprehension(target=ast.Tuple(elts=names), iter=ast.Call(func=ast.Name(id="zip"), args=lists)):
            sources, targets = lists, names
    values = [_value(source, variables) for source in sources]
    return {
        target.id: value if value in ((ASKED,), (REPLIED,)) else None
        for target, value in zip(targets, values, strict=False)
        if isinstance(target, ast.Name)
    }


def _called(method: str, owner: Value, args: list[Value], named: dict[str, Value]) -> Value:
    """Return what a method returns that texts are made with: format, replace, join, and choice among a list."""
    if method == "choice" and len(args) == 1 and isinstance(args[0], list):
        return tuple(args[0])
    if not isinstance(owner, tuple):
        return None
    if method == "replace" and not named:
        match args:
            case [(old,), (new,)]:
                texts = tuple(text.replace(old, new) for text in owner)
                return texts if sum(map(len, texts)) <= LONGEST else None
    if method == "join" and owner == ("\n",):
        match args:
            case [Each(form=form)]:
                return form
    if method == "format":
        filled = [_formatted(text, args, named) for text in owner]
        return tuple(text for texts in filled for text in texts) if all(filled) else None
    return None


def _formatted(template: str, args: list[Value], named: dict[str, Value]) -> Texts:
    """Return a template with its fields filled in, as `str.format` does with plain fields; nothing for others."""
    counter = itertools.count()
    parts: list[Value] = []
    try:
        for literal, field, spec, conversion in string.Formatter().parse(template):
            parts.append((literal,))
            if spec or conversion:
                return ()
            if field is not None:
                place = next(counter) if field == "" else int(field) if field.isdecimal() else None
                parts.append(named.get(field) if place is None else args[place])
    except (ValueError, IndexError):
        return ()
    return _glued(parts) or ()


def _task(way: Way) -> Task | None:
    """Return what a way through a function asks, if that is a task; a way without a reply can only ask a question."""
    match [way.messages.get(role, ("",)) for role in ("system", "user", "assistant")]:
        case [tuple(systems), tuple(users), tuple(replies)] if len(systems) == len(replies) == 1:
            (system,), (reply,) = systems, replies
            if any(user.count(DOCS) != 1 for user in users):
                return None
            asks = {user.count(ASKED) for user in users}
            if asks == {1} and reply in ("", REPLIED):
                return Task("answer", system, users, "")
            if asks == {0} and (reply.count(ASKED), reply.count(REPLIED)) == (1, 1):
                return Task("pairs", system, users, reply)
            if asks == {0} and reply == REPLIED:
                return Task("paraphrases", system, users, "")
    return None


def _only(tasks: list[Task], kind: str, where: str) -> Task:
    """Return the one task of a kind; only paraphrases may be asked for in several ways."""
    found = [task for task in tasks if task.kind == kind]
    if not found:
        raise ClaraError(f"{where}: no prompt found for a {KINDS[kind]}")
    count = len(found) if kind == "paraphrases" else sum(len(task.users) for task in found)
    if count > 1:
        raise ClaraError(f"{where}: {count} different prompts for a {KINDS[kind]}; wanted one")
    return found[0]


def _template(text: str, where: str) -> str:
    """Return a text with this project's placeholders for its marks."""
    if MEMORY in text or QUESTION in text:
        raise ClaraError(f"{where}: a prompt says {MEMORY} or {QUESTION} itself, which are placeholders here: {text!r}")
    return text.replace(DOCS, MEMORY).replace(ASKED, QUESTION)
