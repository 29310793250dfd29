"""Scores of answers against gold answers, and of ranked candidates against the relevant ones."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import fmean
from string import punctuation

from clara.core.select import RECALL_AT

_DROP_PUNCTUATION = str.maketrans("", "", punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Returns the text in lower case without ASCII punctuation and English articles, single-spaced.

    text: str; punctuation goes first and leaves no space: "U.S." gives "us", "well-known" gives "wellknown".
    Range: str, possibly empty ("The!" normalises to "").
    Source: SQuAD v1.1 evaluation (Rajpurkar et al. 2016, section 6.1).
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Collection[str]) -> float:
    """Returns 1.0 if the normalised prediction equals a normalised gold answer, else 0.0.

    prediction: str; golds: collection of str. No golds: 0.0. Both empty after normalising: 1.0.
    Range: {0.0, 1.0}.
    Source: SQuAD v1.1 evaluation (Rajpurkar et al. 2016, section 6.1).
    """
    return _best_over_golds(_same_tokens, prediction, golds)


def cover_exact_match(prediction: str, golds: Collection[str]) -> float:
    """Returns 1.0 if every token of some normalised gold answer is a token of the prediction, else 0.0.

    prediction: str; golds: collection of str. Order and repetition do not count: sets of tokens are compared.
    No golds: 0.0. A gold without tokens: 0.0 (the reference gives 1.0, which rewards any answer at all).
    Range: {0.0, 1.0}.
    Source: cover-EM of the CLaRa evaluation; its rewriting of "True" and "False" as yes and no is left out.
    """
    return _best_over_golds(_covers, prediction, golds)


def token_f1(prediction: str, golds: Collection[str]) -> float:
    """Returns the harmonic mean of token precision and recall, tokens as bags, best over the gold answers.

    prediction: str; golds: collection of str. No golds: 0.0. Exactly one side without tokens: 0.0; both: 1.0.
    Range: [0.0, 1.0].
    Source: SQuAD v1.1 evaluation (Rajpurkar et al. 2016, section 6.1); two empty sides as in v2.0 (v1.1: 0).
    """
    return _best_over_golds(_bag_f1, prediction, golds)


def rouge_l(prediction: str, reference: str) -> float:
    """Returns the F-measure (precision and recall weigh alike) of the longest common subsequence of tokens.

    prediction, reference: str; normalised as for the other scores, so without articles and stemming.
    Exactly one side without tokens: 0.0; both: 1.0. Takes O(n · m) time and O(min(n, m)) memory.
    Range: [0.0, 1.0].
    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1, with beta = 1.
    """
    predicted, wanted = _tokens(prediction), _tokens(reference)
    return _f_measure(_lcs_length(predicted, wanted), len(predicted), len(wanted))


def keyword_match(prediction: str, keywords: Collection[str]) -> float:
    """Returns the share of the keywords that occur in the prediction.

    prediction: str; keywords: collection of str, of one or more words each. Both are normalised as for the other
    scores; a keyword occurs where its tokens stand in the prediction one after another. One without tokens never does.
    Raises ValueError without keywords (callers skip such questions).
    Range: [0.0, 1.0].
    Source: this project; cover-EM for answers of several parts.
    """
    if len(keywords) == 0:
        raise ValueError("keywords: found none, wanted at least one; skip questions that have no keywords")
    said = f" {normalize_answer(prediction)} "
    wanted = [normalize_answer(keyword) for keyword in _checked_texts("keywords", keywords)]
    return sum(bool(keyword) and f" {keyword} " in said for keyword in wanted) / len(wanted)


def answer_scores(prediction: str, golds: Sequence[str], keywords: Sequence[str] = ()) -> dict[str, float]:
    """Returns exact_match, cover_exact_match and token_f1 of an answer, and keyword_match where there are keywords.

    prediction: str; golds: sequence of str. Each of the three is the best over the golds; the same name with `_first`
    behind it is against the first gold alone, as in the CLaRa evaluation.
    Range: [0.0, 1.0] each.
    Source: the functions of these names.
    """
    scores = {"exact_match": exact_match, "cover_exact_match": cover_exact_match, "token_f1": token_f1}
    found = {name: score(prediction, golds) for name, score in scores.items()}
    found |= {f"{name}_first": score(prediction, golds[:1]) for name, score in scores.items()}
    return found | ({"keyword_match": keyword_match(prediction, keywords)} if keywords else {})


def ranking_scores(ranked: Sequence[int], positives: Collection[int], k: int) -> dict[str, float]:
    """Returns recall_at_1, recall_at_3, recall_at_5, precision_at_k (named by its k) and mrr of one question.

    ranked: sequence of distinct int, best first; positives: collection of int, the relevant ones; k: int ≥ 1.
    Range: [0.0, 1.0] each.
    Source: the functions of these names.
    """
    recalls = {f"recall_at_{at}": recall_at_k(ranked, positives, at) for at in RECALL_AT}
    precision = {f"precision_at_{k}": precision_at_k(ranked, positives, k)}
    return recalls | precision | {"mrr": reciprocal_rank(ranked, positives)}


def recall_at_k(ranked: Sequence[int], positives: Collection[int], k: int) -> float:
    """Returns the share of the positives that are among the first k ranked candidates.

    ranked: sequence of distinct int, best first; positives: collection of int, the relevant ones; k: int ≥ 1.
    Positives that were never ranked count as missed.
    Raises ValueError without positives (callers skip such questions), for a repeated candidate and for k < 1.
    Range: [0.0, 1.0].
    Source: Manning et al. 2008, "Introduction to Information Retrieval", sections 8.3 and 8.4.
    """
    wanted = _checked_positives(ranked, positives)
    return _hits(ranked, wanted, k) / len(wanted)


def precision_at_k(ranked: Sequence[int], positives: Collection[int], k: int) -> float:
    """Returns the share of the first k places that hold a positive.

    ranked: sequence of distinct int, best first; positives: collection of int, the relevant ones; k: int ≥ 1.
    Divides by k also where fewer are ranked.
    Raises ValueError without positives (callers skip such questions), for a repeated candidate and for k < 1.
    Range: [0.0, 1.0].
    Source: Manning et al. 2008, "Introduction to Information Retrieval", section 8.4.
    """
    return _hits(ranked, _checked_positives(ranked, positives), k) / k


def reciprocal_rank(ranked: Sequence[int], positives: Collection[int]) -> float:
    """Returns 1 / rank of the best-ranked positive, ranks from 1, or 0.0 where no positive is ranked.

    ranked: sequence of distinct int, best first; positives: collection of int, the relevant ones.
    Its mean over questions is the MRR.
    Raises ValueError without positives (callers skip such questions) and for a repeated candidate.
    Range: [0.0, 1.0].
    Source: Voorhees 1999, "The TREC-8 Question Answering Track Report".
    """
    wanted = _checked_positives(ranked, positives)
    return next((1 / rank for rank, candidate in enumerate(ranked, 1) if candidate in wanted), 0.0)


def mean_scores(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each score over the rows that have it, names in order of first appearance.

    rows: iterable of mappings, score name → float; a row may lack a score that does not apply to it.
    No rows: {}.
    Range: of each score, that of its values; sums are rounded once, so the order of the rows does not count.
    Source: arithmetic mean over questions ("macro average") as in SQuAD and TREC.
    """
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in columns.items()}


def _tokens(text: str) -> list[str]:
    return normalize_answer(text).split()


def _best_over_golds(score: Callable[[list[str], list[str]], float], prediction: str, golds: Collection[str]) -> float:
    predicted = _tokens(prediction)
    return max((score(predicted, _tokens(gold)) for gold in _checked_texts("golds", golds)), default=0.0)


def _checked_texts(name: str, texts: Collection[str]) -> Collection[str]:
    if isinstance(texts, str):
        # A string is a collection of its letters: it would score without complaint, and wrongly.
        raise TypeError(f"{name}: found the string {texts!r}, wanted a list of answers; write [{texts!r}]")
    return texts


def _same_tokens(predicted: list[str], gold: list[str]) -> float:
    return float(predicted == gold)


def _covers(predicted: list[str], gold: list[str]) -> float:
    return float(bool(gold) and set(gold) <= set(predicted))


def _bag_f1(predicted: list[str], gold: list[str]) -> float:
    return _f_measure((Counter(predicted) & Counter(gold)).total(), len(predicted), len(gold))


def _f_measure(matched: int, predicted: int, wanted: int) -> float:
    if predicted == 0 and wanted == 0:
        return 1.0
    # 2PR / (P + R) with P = matched / predicted and R = matched / wanted, in one exact division.
    return 2 * matched / (predicted + wanted)


def _lcs_length(left: list[str], right: list[str]) -> int:
    long, short = (left, right) if len(left) >= len(right) else (right, left)
    row = [0] * (len(short) + 1)
    for token in long:
        diagonal = 0
        for column, other in enumerate(short, 1):
            above = row[column]
            row[column] = diagonal + 1 if token == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _checked_positives(ranked: Sequence[int], positives: Collection[int]) -> frozenset[int]:
    if len(positives) == 0:
        raise ValueError("positives: found none, wanted at least one; skip questions that have no positive")
    if len(set(ranked)) != len(ranked):
        repeated = sorted(candidate for candidate, times in Counter(ranked).items() if times > 1)
        raise ValueError(f"ranked: found candidates {repeated} more than once, wanted distinct indices")
    return frozenset(positives)


def _hits(ranked: Sequence[int], wanted: frozenset[int], k: int) -> int:
    if k < 1:
        raise ValueError(f"k: found {k}, wanted at least 1")
    return len(wanted.intersection(ranked[:k]))
