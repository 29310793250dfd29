"""What a paraphrase keeps of its document: wording, and the numbers and names in it."""

from __future__ import annotations

import re
from collections.abc import Collection

from clara.core.scoring import rouge_l

_TOKEN = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]+")
_WITHIN_NAME = re.compile(r"[\s'’-]")
_OPENER = re.compile(
    r"an?|the|th(?:is|at|[eo]se)|its?|his|s?he|her|their|they|our|we|[io]n|at|by|of|to|from|for|with|without|as|and|but"
    r"|or|when|while|after|before|during|since|until|if|al?though|because|however",
    re.I,
)


def facts(text: str) -> set[tuple[str, ...]]:
    """Return the numbers and the names of a text, each as its words in lower case.

    A number is a run of digits, points and commas between digits included, and commas dropped: "1,234.5" is 1234.5. A
    name is two or more words in a row that each begin with a capital letter, with one space, hyphen or apostrophe
    between; words that open a sentence and are no part of a name ("The", "In", "When") are left out at its beginning.
    """
    found = set[tuple[str, ...]]()
    name: list[str] = []
    end = 0
    for token in _TOKEN.finditer(text):
        word = token[0]
        if not (name and word[0].isupper() and _WITHIN_NAME.fullmatch(text, end, token.start())):
            found |= _named(name)
            name = []
        if word[0].isdigit():
            found.add((word.replace(",", ""),))
        elif word[0].isupper() and (name or not _OPENER.fullmatch(word)):
            name.append(word.lower())
        end = token.end()
    return found | _named(name)


def preserved_facts(document: str, paraphrase: str) -> float | None:
    """Return the share of the document's `facts` that are in the paraphrase; None where the document has none.

    A fact is there if its words stand in the paraphrase one after another, in whatever case. Range: [0.0, 1.0].
    Source: the entity preservation of the CLaRa evaluation, by a rule in the place of a tagger.
    """
    wanted = facts(document)
    if not wanted:
        return None
    said = f" {' '.join(token.lower().replace(',', '') for token in _TOKEN.findall(paraphrase))} "
    return sum(f" {' '.join(fact)} " in said for fact in wanted) / len(wanted)


def paraphrase_scores(prediction: str, golds: Collection[str], document: str) -> dict[str, float]:
    """Return rouge_l, best over the gold paraphrases, and entities: the share of the document's facts that are kept.

    A document without facts has no score for them.
    """
    kept = preserved_facts(document, prediction)
    scores = {"rouge_l": max((rouge_l(prediction, gold) for gold in golds), default=0.0)}
    return scores if kept is None else scores | {"entities": kept}


def _named(name: list[str]) -> set[tuple[str, ...]]:
    """Return a name of two or more words."""
    return {tuple(name)} if len(name) > 1 else set()
