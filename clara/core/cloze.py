"""Questions made of a document alone: a sentence with one salient span left out, which is the answer.

Salient span masking, REALM (arXiv 2002.08909, section 3.4), with rules in the place of a tagger.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from clara.core.breaks import SENTENCE, places
from clara.core.draws import numbers

BLANK = "___"
"""What stands where the span was."""

LONGEST = 300
"""Longest question, in characters: of a longer sentence, what is around the blank."""

FEWEST_WORDS = 4
"""Words that are left of a sentence at least."""

MOST_WORDS, MOST_CHARACTERS = 6, 60
"""Longest span."""

_WORDS = re.compile(r"\w+")
_FUNCTION = frozenset(
    _WORDS.findall(
        "a about above according across after again against ago all almost along already also although always am "
        "among an and another any are around as at away back be became because become been before being below "
        "between beyond both but by came can could despite did do does done down due during each either else enough "
        "especially even ever every few finally first following for from further had has have having he hence her "
        "here hers herself him himself his how however i if in including indeed instead into is it its itself just "
        "known last later least less like made mainly make many may me might mine more moreover most much must my "
        "near nearly neither never nevertheless next no none nor not now of off often on once one only onto or "
        "other others otherwise our ours out over own per perhaps quite rather same several shall she should since "
        "so some sometimes soon still such than that the their theirs them themselves then there therefore these "
        "they this those though through throughout thus to today together too toward towards under unlike until up "
        "upon us use used using very via was we well were what when where whereas whether which while who whom "
        "whose why will with within without would yet you your yours"
    )
)
_ENDED = re.compile(r"[.!?…][\"'”’»)\]*_]*\Z")
_OPENING = re.compile(r"(?:\A|[.:;!?…—–-]\s|[\"“«(\[])[\"'“‘«(\[]*\Z")
_LOWER = re.compile(r"(?<![\w'’-])[^\W\d_]{5,}(?![\w'’]|-\w)")

_MONTH = (
    "(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.)"
)
_DIGITS = r"\d+(?:[.,:/]\d+)*(?:[–-]\d+(?:[.,]\d+)*)?"
_NUMERAL = (
    "(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
    "|eighteen|nineteen|(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:-[a-z]+)?|half|dozens?)"
)
_SCALE = "(?:hundred|thousand|million|billion|trillion)s?"
_UNIT = (
    "(?:percent|per cent|kilomet(?:er|re)s?|met(?:er|re)s?|centimet(?:er|re)s?|millimet(?:er|re)s?|miles?|feet|foot"
    "|inch(?:es)?|yards?|acres?|hectares?|kilograms?|grams?|pounds?|tons?|tonnes?|ounces?|lit(?:er|re)s?|gallons?"
    "|square (?:miles|kilomet(?:er|re)s|feet|met(?:er|re)s)|degrees?(?: (?:Celsius|Fahrenheit))?|watts?|volts?|hertz"
    "|seconds?|minutes?|hours?|days?|weeks?|months?|years?|decades?|centur(?:y|ies)|dollars?|euros?|cents?"
    "|BC|BCE|AD|CE|am|pm|a\\.m\\.|p\\.m\\.|km2?|km²|cm|mm|kg|mi|ft|lb|mph|km/h|[kMG]?Hz|[kMG]?W|[KMGT]B|°[CF]?|m|g)"
)
_CAPITAL = r"[^\W\d_a-zß-ÿ]"
_TITLE = r"(?:St|Mt|Ft|Mr|Mrs|Ms|Dr|Prof|Gen|Col|Sgt)\.(?= [A-Z])"
_NAME_WORD = rf"(?:{_TITLE}|(?:{_CAPITAL}\.)+|{_CAPITAL}[\w&]*(?:[-'’]{_CAPITAL}[\w&]*)*)"
_JOINT = r"(?: (?:of|of the|of a|a|for|for the|de|de la|del|della|di|du|la|le|van|van der|von|bin|al|&) | )"
_NUMBERS = re.compile(
    r"(?<![\w.,/+%-])(?:"
    rf"(?:\d{{1,2}}(?:st|nd|rd|th)? )?{_MONTH}(?: \d{{1,2}}(?:st|nd|rd|th)?)?(?:,? \d{{4}})?(?!\w)"
    rf"|\d+(?:st|nd|rd|th)(?: centur(?:y|ies))?(?: BCE?)?(?!\w)|\d{{3,4}}s(?!\w)"
    rf"|(?:US|AU|CA)?[$€£¥]{_DIGITS}(?: {_SCALE})?(?!\w)"
    rf"|{_DIGITS}(?: {_SCALE})?(?: ?%(?!\w)| ?{_UNIT}(?!\w)|(?![\w%])))"
    rf"|(?<![\w-]){_NUMERAL}(?: {_SCALE})?(?: {_UNIT})?(?![\w-])"
)
_NAMES = re.compile(rf"(?<![\w'’-]){_NAME_WORD}(?:{_JOINT}{_NAME_WORD})*(?![\w$-]|\.\d)")
_QUOTED = re.compile(r"(?<![^\s(\[])(?:\"|“)([^\s\"“”][^\"“”]{0,58}?)[.,;:!?]?[\"”](?!\w)")


class Span(NamedTuple):
    """A piece of a sentence."""

    start: int
    end: int


def cloze_pairs(text: str, seed: int, most: int) -> list[tuple[str, str]]:
    """Return up to `most` (question, answer) pairs of a text, each of another sentence, in an order that seed draws.

    The question is the sentence with `BLANK` for the answer, white space made single spaces, and does not hold the
    answer, nor do the pairs before it. An answer is a name, a number with its unit, a date or quoted words; of a
    sentence without any, a word of five letters or more. Which one is drawn by seed, any integer. Every draw of a text
    is empty or none is.
    """
    draws = numbers(seed)
    pairs: list[tuple[str, str]] = []
    said = ""
    for sentence in sorted(sentences(text), key=lambda _: next(draws)):
        if len(pairs) == most:
            break
        choices = [pair for pair in _choices(sentence, text) if pair[1].casefold() not in said]
        if choices:
            pairs.append(choices[next(draws) % len(choices)])
            said += " ".join(pairs[-1]).casefold() + "\n"
    return pairs


def sentences(text: str) -> list[str]:
    """Return the whole sentences of a text, with single spaces; none is a heading, a row of a table or cut off."""
    cuts = [p for p in places(text, 0, len(text)) if p.rank >= SENTENCE or text.count("\n", p.end, p.start) > 1]
    starts, ends = [0, *(place.start for place in cuts)], [*(place.end for place in cuts), len(text)]
    found = [" ".join(text[start:end].split()) for start, end in zip(starts, ends, strict=True)]
    return [sentence for sentence in found if _is_prose(sentence)]


def _is_prose(sentence: str) -> bool:
    """Return whether a sentence has its beginning and its end, and is no row of a table."""
    return bool(_ENDED.search(sentence)) and not sentence[0].islower() and "|" not in sentence and BLANK not in sentence


def salient_spans(sentence: str, text: str) -> list[Span]:
    """Return the names, numbers, dates and quoted words of a sentence of a text, in order; of overlapping ones the
    longest."""
    found = [Span(*match.span(1)) for match in _QUOTED.finditer(sentence)]
    found += [Span(*match.span()) for match in _NUMBERS.finditer(sentence)]
    found += [span for match in _NAMES.finditer(sentence) if (span := _name(Span(*match.span()), sentence, text))]
    kept: list[Span] = []
    for span in sorted(found, key=lambda span: (span.start - span.end, span.start)):
        short = len(sentence[span.start : span.end].split()) <= MOST_WORDS and span.end - span.start <= MOST_CHARACTERS
        if short and all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)


def _name(span: Span, sentence: str, text: str) -> Span | None:
    """Return a run of capitalised words without those that only open a sentence; None where nothing is left."""
    start, end = span
    if sentence[start:end].endswith(".") and end == len(sentence) and sentence[end - 3 : end - 2] != ".":
        end -= 1
    opens = bool(_OPENING.search(sentence[max(start - 4, 0) : start]))
    while start < end:
        word = re.split(r"[ '’-]", sentence[start:end], maxsplit=1)[0]
        alone = start + len(word) == end
        plain = word.casefold() in _FUNCTION and (opens or alone)
        if not plain and not (opens and _is_common(word, alone, text)):
            return Span(start, end)
        rest = re.match(f"{_JOINT}|[-'’]", sentence[start + len(word) : end])
        start += len(word) + (rest.end() if rest else 0)
    return None


def _is_common(word: str, alone: bool, text: str) -> bool:
    """Return whether a capitalised word that opens a sentence of a text is no name, as far as the text tells.

    It is none where the text has it in lower case; alone, also where no place inside a sentence has its capital.
    """
    inside = rf"(?<=[\w,'’] ){re.escape(word)}(?!\w)"
    return bool(re.search(rf"\b{re.escape(word.lower())}\b", text)) or (alone and not re.search(inside, text))


def _words(sentence: str) -> list[Span]:
    """Return the words of a sentence that tell something and have five letters or more, none of them capitalised."""
    found = (match for match in _LOWER.finditer(sentence) if match[0].islower() and not match[0].endswith("ly"))
    return [Span(*match.span()) for match in found if match[0] not in _FUNCTION]


def _choices(sentence: str, text: str) -> list[tuple[str, str]]:
    """Return the pairs that a sentence of a text allows, by its salient spans or else by its words."""
    for spans in (salient_spans(sentence, text), _words(sentence)):
        pairs = [(_blanked(sentence, span), sentence[span.start : span.end]) for span in spans]
        if allowed := [pair for pair in pairs if _asks(*pair)]:
            return allowed
    return []


def _asks(question: str, answer: str) -> bool:
    """Return whether a question has words enough and does not hold its answer."""
    return len(_WORDS.findall(question.replace(BLANK, " "))) >= FEWEST_WORDS and (
        answer.casefold() not in question.casefold()
    )


def _blanked(sentence: str, span: Span) -> str:
    """Return a sentence with a span left out, cut at words around it to `LONGEST` characters."""
    before, after = sentence[: span.start], sentence[span.end :]
    room = LONGEST - len(BLANK)
    left = min(len(before), max(room // 2, room - len(after)))
    if left < len(before):
        before = before[len(before) - left :].partition(" ")[2]
    if len(after) > room - left:
        after = after[: room - left].rpartition(" ")[0]
    return f"{before}{BLANK}{after}"
