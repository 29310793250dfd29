"""Tests of the answer and ranking scores: published cases, hand-made cases, properties, naive references."""

import math
import random
import string
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.core.scoring import (
    answer_scores,
    cover_exact_match,
    exact_match,
    keyword_match,
    mean_scores,
    normalize_answer,
    precision_at_k,
    ranking_scores,
    recall_at_k,
    reciprocal_rank,
    rouge_l,
    token_f1,
)

ANSWER_SCORES = [exact_match, cover_exact_match, token_f1]
Score = Callable[[str, list[str]], float]
RankingCase = tuple[list[int], set[int], int]
SUPER_BOWL_PLACES = [
    "Santa Clara, California",
    "Levi's Stadium",
    "Levi's Stadium in the San Francisco Bay Area at Santa Clara, California.",
]

# Few distinct words, so that overlaps, repetitions and empty normal forms are common.
WORDS = ["The", "a", "an", "cat", "Cat!", "dog", "sat", "on", "mat", "--", "U.S.", "athens", "é"]
phrases = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
texts = st.one_of(phrases, st.text(max_size=20))
gold_lists = st.lists(texts, max_size=4)


@st.composite
def rankings(draw: st.DrawFn) -> RankingCase:
    """Draws distinct ranked candidates, at least one positive (perhaps an unranked one) and a cutoff."""
    ranked = draw(st.lists(st.integers(0, 12), unique=True, max_size=10))
    positives = draw(st.sets(st.integers(0, 12), min_size=1, max_size=6))
    return ranked, positives, draw(st.integers(1, 14))


def naive_normalize(text: str) -> str:
    """Returns the normal form by scanning characters: an article is a whole run of word characters."""
    kept = [char for char in text.lower() if char not in string.punctuation]
    out: list[str] = []
    word = ""
    for char in [*kept, " "]:
        if char.isalnum():
            word += char
        else:
            out += [" " if word in {"a", "an", "the"} else word, char]
            word = ""
    return " ".join("".join(out).split())


def naive_overlap(left: Sequence[str], right: Sequence[str]) -> int:
    """Returns the size of the bag intersection by striking out matched tokens one at a time."""
    rest = list(right)
    matched = 0
    for token in left:
        if token in rest:
            rest.remove(token)
            matched += 1
    return matched


def naive_f(matched: int, predicted: int, wanted: int) -> float:
    """Returns the harmonic mean written out as precision and recall."""
    if predicted == 0 or wanted == 0:
        return float(predicted == wanted)
    precision, recall = matched / predicted, matched / wanted
    return 0.0 if matched == 0 else 2 * precision * recall / (precision + recall)


def naive_f1(prediction: str, gold: str) -> float:
    """Returns the token F1 of one pair."""
    left, right = normalize_answer(prediction).split(), normalize_answer(gold).split()
    return naive_f(naive_overlap(left, right), len(left), len(right))


def recursive_lcs(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    """Returns the length of the longest common subsequence from its textbook recursion."""

    @cache
    def length(i: int, j: int) -> int:
        if i == len(left) or j == len(right):
            return 0
        if left[i] == right[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def enumerated_lcs(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    """Returns the same length by trying every subsequence of both sides."""
    for size in range(min(len(left), len(right)), 0, -1):
        if set(combinations(left, size)) & set(combinations(right, size)):
            return size
    return 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("a an the", ""),
        ("", ""),
        ("  An   apple\ta\nday ", "apple day"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("snake_case", "snakecase"),
        ("$5,000.50", "500050"),
        ("it's", "its"),
        ("A.", ""),
        ("th.e", ""),
        ("The-end", "theend"),
        ("another theatre, Athena", "another theatre athena"),
        ("vitamin a", "vitamin"),
        ("1\u2013the\u20132", "1\u2013 \u20132"),
        ("“The Who”", "“ who”"),
        ("Beyoncé", "beyoncé"),
        ("non\u00a0breaking", "non breaking"),
    ],
)
def test_normalize_answer_on_known_cases(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@given(texts)
def test_normalize_answer_equals_a_character_scan(text: str) -> None:
    assert normalize_answer(text) == naive_normalize(text)


@given(texts)
def test_normalize_answer_is_idempotent(text: str) -> None:
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@given(phrases, st.sampled_from(["the ", "A ", "...", "  ", "\n", "An! "]))
def test_articles_punctuation_and_space_in_front_do_not_count(text: str, noise: str) -> None:
    assert normalize_answer(noise + text) == normalize_answer(text)


@pytest.mark.parametrize(
    ("prediction", "golds", "em", "f1"),
    [
        # The three examples of the published metric card of SQuAD.
        ("1976", ["1976"], 1.0, 1.0),
        ("Beyonce", ["Beyoncé and Bruno Mars"], 0.0, 0.0),
        ("climate change", ["climate change"], 1.0, 1.0),
        # Two questions of the SQuAD v1.1 development set, each with its three gold answers.
        ("the Denver Broncos", ["Denver Broncos", "Denver Broncos", "Denver Broncos"], 1.0, 1.0),
        ("Broncos", ["Denver Broncos", "Denver Broncos", "Denver Broncos"], 0.0, 2 / 3),
        ("Santa Clara", SUPER_BOWL_PLACES, 0.0, 0.8),
        ("Levis stadium.", SUPER_BOWL_PLACES, 1.0, 1.0),
        # Bags of tokens: a repeated token matches as often as both sides have it.
        ("dog dog", ["dog"], 0.0, 2 / 3),
        ("dog dog cat", ["dog dog bird"], 0.0, 2 / 3),
        ("mat on sat", ["sat on mat"], 0.0, 1.0),
    ],
)
def test_exact_match_and_f1_on_known_cases(prediction: str, golds: list[str], em: float, f1: float) -> None:
    assert exact_match(prediction, golds) == em
    assert token_f1(prediction, golds) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("He was born on January 13, 1956 in Ohio.", ["January 13, 1956"], 1.0),
        ("1956, 13 of January", ["January 13, 1956"], 1.0),
        ("January 1956", ["January 13, 1956"], 0.0),
        ("dog", ["dog dog"], 1.0),
        ("concatenate", ["cat"], 0.0),
        ("a dog", ["cat", "the dog"], 1.0),
        ("a dog", ["the"], 0.0),
        ("", [""], 0.0),
        ("anything", ["", "!"], 0.0),
        ("", ["cat"], 0.0),
    ],
)
def test_cover_exact_match_on_known_cases(prediction: str, golds: list[str], expected: float) -> None:
    assert cover_exact_match(prediction, golds) == expected


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("", [""], 1.0),
        ("the", ["!"], 1.0),
        ("", ["cat"], 0.0),
        ("cat", [""], 0.0),
        ("", [], 0.0),
        ("cat", [], 0.0),
    ],
)
@pytest.mark.parametrize("score", [exact_match, token_f1])
def test_empty_sides_follow_the_documented_convention(
    score: Score, prediction: str, golds: list[str], expected: float
) -> None:
    assert score(prediction, golds) == expected


@pytest.mark.parametrize("score", ANSWER_SCORES)
def test_a_bare_string_of_golds_is_refused(score: Callable[[str, str], float]) -> None:
    with pytest.raises(TypeError, match=r"golds: found the string 'Paris'.*write \['Paris'\]"):
        score("Paris", "Paris")


@pytest.mark.parametrize("score", ANSWER_SCORES)
@given(prediction=texts, golds=gold_lists)
def test_answer_scores_are_bounded(score: Score, prediction: str, golds: list[str]) -> None:
    assert 0.0 <= score(prediction, golds) <= 1.0


@pytest.mark.parametrize("score", ANSWER_SCORES)
@given(prediction=texts, golds=gold_lists)
def test_answer_scores_are_the_best_over_single_golds(score: Score, prediction: str, golds: list[str]) -> None:
    assert score(prediction, golds) == max([score(prediction, [gold]) for gold in golds], default=0.0)


@pytest.mark.parametrize("score", ANSWER_SCORES)
@given(prediction=texts, golds=gold_lists, extra=texts)
def test_one_more_gold_never_lowers_a_score(score: Score, prediction: str, golds: list[str], extra: str) -> None:
    assert score(prediction, [*golds, extra]) >= score(prediction, golds)


@pytest.mark.parametrize("score", ANSWER_SCORES)
@given(data=st.data(), prediction=texts, golds=gold_lists)
def test_the_order_of_golds_does_not_count(
    score: Score, data: st.DataObject, prediction: str, golds: list[str]
) -> None:
    assert score(prediction, data.draw(st.permutations(golds))) == score(prediction, golds)


@pytest.mark.parametrize("score", ANSWER_SCORES)
@given(prediction=texts, golds=gold_lists)
def test_answer_scores_see_only_normal_forms(score: Score, prediction: str, golds: list[str]) -> None:
    normal = [normalize_answer(gold) for gold in golds]
    assert score(prediction, golds) == score(normalize_answer(prediction), normal)


@given(texts)
def test_an_answer_matches_itself(text: str) -> None:
    assert exact_match(text, [text]) == token_f1(text, [text]) == rouge_l(text, text) == 1.0
    assert cover_exact_match(text, [text]) == float(normalize_answer(text) != "")


@given(texts, texts)
def test_f1_and_rouge_are_symmetric(left: str, right: str) -> None:
    assert token_f1(left, [right]) == token_f1(right, [left])
    assert rouge_l(left, right) == rouge_l(right, left)


@given(data=st.data(), left=phrases, right=phrases)
def test_f1_and_cover_ignore_the_order_of_tokens(data: st.DataObject, left: str, right: str) -> None:
    shuffled = " ".join(data.draw(st.permutations(left.split())))
    assert token_f1(shuffled, [right]) == token_f1(left, [right])
    assert cover_exact_match(shuffled, [right]) == cover_exact_match(left, [right])


@given(texts, texts)
def test_exact_match_implies_full_f1_and_cover(prediction: str, gold: str) -> None:
    if exact_match(prediction, [gold]) == 1.0:
        assert token_f1(prediction, [gold]) == 1.0
        assert cover_exact_match(prediction, [gold]) == float(normalize_answer(gold) != "")


@given(texts, texts, texts)
def test_a_longer_prediction_never_uncovers(prediction: str, gold: str, more: str) -> None:
    assert cover_exact_match(f"{prediction} {more}", [gold]) >= cover_exact_match(prediction, [gold])


@given(phrases, phrases)
def test_f1_equals_a_strike_out_count(prediction: str, gold: str) -> None:
    assert token_f1(prediction, [gold]) == pytest.approx(naive_f1(prediction, gold), abs=1e-12)


@given(phrases, phrases)
def test_cover_equals_a_token_by_token_search(prediction: str, gold: str) -> None:
    wanted = normalize_answer(gold).split()
    found = [token for token in wanted if f" {token} " in f" {normalize_answer(prediction)} "]
    assert cover_exact_match(prediction, [gold]) == float(wanted != [] and found == wanted)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # Lin 2004, section 3.1: there 3/4 and 2/4; without the article, 2 and 1 of 3 tokens.
        ("police kill the gunman", "police killed the gunman", 2 / 3),
        ("the gunman kill police", "police killed the gunman", 1 / 3),
        # The textbook pair ABCBDAB and BDCABA, with letters other than the article: 4 common in order.
        ("x b c b d x b", "b d c x b x", 8 / 13),
        ("cat", "dog", 0.0),
        ("cat sat", "cat quickly sat down", 2 / 3),
        ("", "", 1.0),
        ("the", "!", 1.0),
        ("", "cat", 0.0),
        ("cat", "", 0.0),
    ],
)
def test_rouge_l_on_known_cases(prediction: str, reference: str, expected: float) -> None:
    assert rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("reference_lcs", [recursive_lcs, enumerated_lcs])
@given(prediction=phrases, reference=phrases)
def test_rouge_l_equals_naive_subsequences(
    reference_lcs: Callable[[tuple[str, ...], tuple[str, ...]], int], prediction: str, reference: str
) -> None:
    left, right = tuple(normalize_answer(prediction).split()), tuple(normalize_answer(reference).split())
    expected = naive_f(reference_lcs(left, right), len(left), len(right))
    assert rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-12)


@given(texts, texts)
def test_rouge_l_is_bounded_by_token_f1(prediction: str, reference: str) -> None:
    assert 0.0 <= rouge_l(prediction, reference) <= token_f1(prediction, [reference])


@given(data=st.data(), words=st.lists(st.sampled_from("bcdefg"), min_size=1, max_size=12))
def test_rouge_l_of_a_subsequence_counts_all_of_it(data: st.DataObject, words: list[str]) -> None:
    kept = [word for word in words if data.draw(st.booleans())]
    expected = 2 * len(kept) / (len(kept) + len(words))
    assert rouge_l(" ".join(kept), " ".join(words)) == pytest.approx(expected, abs=1e-12)


def test_rouge_l_of_long_texts_equals_the_full_table() -> None:
    draw = random.Random(0)
    left, right = (tuple(draw.choices("bcdefghij", k=size)) for size in (300, 220))
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, token in enumerate(left):
        for j, other in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if token == other else max(table[i][j + 1], table[i + 1][j])
    assert rouge_l(" ".join(left), " ".join(right)) == pytest.approx(2 * table[-1][-1] / 520, abs=1e-12)


@pytest.mark.parametrize(
    ("ranked", "positives", "k", "recall", "precision", "reciprocal"),
    [
        ([3, 1, 2, 0], {1}, 1, 0.0, 0.0, 1 / 2),
        ([3, 1, 2, 0], {1}, 2, 1.0, 1 / 2, 1 / 2),
        ([3, 1, 2, 0], {0, 3}, 1, 1 / 2, 1.0, 1.0),
        ([3, 1, 2, 0], {0, 3}, 4, 1.0, 1 / 2, 1.0),
        ([3, 1, 2, 0], {0, 9}, 4, 1 / 2, 1 / 4, 1 / 4),
        ([3, 1, 2, 0], {9}, 4, 0.0, 0.0, 0.0),
        ([3, 1], {1, 3}, 5, 1.0, 2 / 5, 1.0),
        ([], {1}, 3, 0.0, 0.0, 0.0),
    ],
)
def test_ranking_scores_on_known_cases(
    ranked: list[int], positives: set[int], k: int, recall: float, precision: float, reciprocal: float
) -> None:
    assert recall_at_k(ranked, positives, k) == recall
    assert precision_at_k(ranked, positives, k) == precision
    assert reciprocal_rank(ranked, positives) == reciprocal


def test_repeated_positives_count_once() -> None:
    assert recall_at_k([0, 1], [1, 1, 2], 2) == 0.5


@pytest.mark.parametrize(
    "score",
    [partial(recall_at_k, k=1), partial(precision_at_k, k=1), reciprocal_rank],
    ids=["recall", "precision", "rr"],
)
def test_ranking_scores_refuse_bad_questions(score: Callable[[list[int], list[int]], float]) -> None:
    with pytest.raises(ValueError, match=r"positives: found none.*skip questions"):
        score([0, 1], [])
    with pytest.raises(ValueError, match=r"ranked: found candidates \[4\] more than once"):
        score([4, 1, 4], [1])


@pytest.mark.parametrize("score", [recall_at_k, precision_at_k])
@pytest.mark.parametrize("k", [0, -1])
def test_a_cutoff_below_one_is_refused(score: Callable[[list[int], list[int], int], float], k: int) -> None:
    with pytest.raises(ValueError, match=f"k: found {k}, wanted at least 1"):
        score([0, 1], [1], k)


@given(rankings())
def test_recall_and_precision_equal_a_loop_over_places(case: RankingCase) -> None:
    ranked, positives, k = case
    hits = sum(1 for place in range(min(k, len(ranked))) if ranked[place] in positives)
    assert recall_at_k(ranked, positives, k) == hits / len(positives)
    assert precision_at_k(ranked, positives, k) == hits / k


@given(rankings())
def test_reciprocal_rank_is_set_by_the_first_cutoff_that_hits(case: RankingCase) -> None:
    ranked, positives, _ = case
    cutoffs = [k for k in range(1, len(ranked) + 1) if recall_at_k(ranked, positives, k) > 0]
    assert reciprocal_rank(ranked, positives) == (1 / cutoffs[0] if cutoffs else 0.0)


@given(rankings())
def test_ranking_scores_are_bounded(case: RankingCase) -> None:
    ranked, positives, k = case
    assert 0.0 <= recall_at_k(ranked, positives, k) <= 1.0
    assert 0.0 <= precision_at_k(ranked, positives, k) <= 1.0
    assert 0.0 <= reciprocal_rank(ranked, positives) <= 1.0


@given(rankings())
def test_recall_never_falls_as_k_grows(case: RankingCase) -> None:
    ranked, positives, k = case
    assert recall_at_k(ranked, positives, k) <= recall_at_k(ranked, positives, k + 1)


@given(rankings())
def test_recall_and_precision_count_the_same_hits(case: RankingCase) -> None:
    ranked, positives, k = case
    hits = recall_at_k(ranked, positives, k) * len(positives)
    assert precision_at_k(ranked, positives, k) * k == pytest.approx(hits, abs=1e-9)


@given(st.data(), rankings())
def test_ranking_scores_do_not_see_names(data: st.DataObject, case: RankingCase) -> None:
    ranked, positives, k = case
    names = data.draw(st.permutations(range(13)))
    renamed, wanted = [names[i] for i in ranked], {names[i] for i in positives}
    assert recall_at_k(renamed, wanted, k) == recall_at_k(ranked, positives, k)
    assert precision_at_k(renamed, wanted, k) == precision_at_k(ranked, positives, k)
    assert reciprocal_rank(renamed, wanted) == reciprocal_rank(ranked, positives)


@given(st.data(), rankings())
def test_recall_ignores_order_within_the_first_k(data: st.DataObject, case: RankingCase) -> None:
    ranked, positives, k = case
    shuffled = [*data.draw(st.permutations(ranked[:k])), *ranked[k:]]
    assert recall_at_k(shuffled, positives, k) == recall_at_k(ranked, positives, k)


@given(rankings())
def test_positives_first_is_a_perfect_ranking(case: RankingCase) -> None:
    ranked, positives, _ = case
    ideal = [*sorted(positives), *(i for i in ranked if i not in positives)]
    assert recall_at_k(ideal, positives, len(positives)) == 1.0
    assert precision_at_k(ideal, positives, len(positives)) == 1.0
    assert reciprocal_rank(ideal, positives) == 1.0


def test_mean_scores_averages_each_score_over_the_rows_that_have_it() -> None:
    rows = [{"f1": 1.0, "mrr": 0.5}, {"f1": 0.0}, {"f1": 0.5, "em": 1.0}]
    means = mean_scores(rows)
    assert means == {"f1": 0.5, "mrr": 0.5, "em": 1.0}
    assert list(means) == ["f1", "mrr", "em"]


def test_mean_scores_of_nothing_is_empty() -> None:
    assert mean_scores([]) == {}
    assert mean_scores([{}, {}]) == {}


def test_mean_scores_reads_its_rows_once() -> None:
    assert mean_scores({"em": float(i % 2)} for i in range(4)) == {"em": 0.5}


score_rows = st.lists(st.dictionaries(st.sampled_from(["em", "f1", "mrr"]), st.floats(0, 1)), max_size=8)


@given(score_rows)
def test_mean_scores_lie_between_smallest_and_largest(rows: list[dict[str, float]]) -> None:
    for name, mean in mean_scores(rows).items():
        values = [row[name] for row in rows if name in row]
        assert min(values) - 1e-12 <= mean <= max(values) + 1e-12
        assert math.isclose(mean, sum(values) / len(values), abs_tol=1e-12)


@given(st.data(), score_rows)
def test_mean_scores_do_not_depend_on_row_order(data: st.DataObject, rows: list[dict[str, float]]) -> None:
    assert mean_scores(data.draw(st.permutations(rows))) == mean_scores(rows)


@pytest.mark.parametrize(
    ("prediction", "keywords", "expected"),
    [
        ("A mean squared error, in the last layer.", ["Mean Squared Error", "last layer"], 1.0),
        ("the error squared", ["mean squared error", "error"], 1 / 2),
        ("documents", ["document"], 0.0),
        ("39.86 against 37.67", ["39.86", "37.67", "7"], 2 / 3),
        ("top-k", ["top-k", "top k"], 1 / 2),
        ("anything", ["the", "!"], 0.0),
        ("", ["cat"], 0.0),
    ],
)
def test_keyword_match_on_known_cases(prediction: str, keywords: list[str], expected: float) -> None:
    assert keyword_match(prediction, keywords) == expected


def test_keyword_match_refuses_what_has_no_keywords() -> None:
    with pytest.raises(ValueError, match="keywords: found none"):
        keyword_match("cat", [])
    with pytest.raises(TypeError, match=r"keywords: found the string 'cat'.*write \['cat'\]"):
        keyword_match("cat", "cat")


@given(st.data(), texts, st.lists(texts, min_size=1, max_size=4))
def test_keyword_match_is_bounded_and_does_not_see_the_order(
    data: st.DataObject, prediction: str, keywords: list[str]
) -> None:
    score = keyword_match(prediction, keywords)
    assert 0.0 <= score <= 1.0
    assert keyword_match(prediction, data.draw(st.permutations(keywords))) == score


@given(texts, st.lists(texts, min_size=1, max_size=4), texts)
def test_a_longer_prediction_never_matches_fewer_keywords(prediction: str, keywords: list[str], more: str) -> None:
    assert keyword_match(f"{prediction} {more}", keywords) >= keyword_match(prediction, keywords)


@given(texts, gold_lists)
def test_answer_scores_are_those_of_the_functions(prediction: str, golds: list[str]) -> None:
    scores = answer_scores(prediction, golds)
    functions = {"exact_match": exact_match, "cover_exact_match": cover_exact_match, "token_f1": token_f1}
    assert scores == {name: score(prediction, golds) for name, score in functions.items()} | {
        f"{name}_first": score(prediction, golds[:1]) for name, score in functions.items()
    }
    assert all(scores[f"{name}_first"] <= scores[name] for name in functions)


@given(st.lists(texts.filter(normalize_answer), min_size=1, max_size=4))
def test_an_oracle_scores_1_and_an_empty_answer_0_in_every_metric(golds: list[str]) -> None:
    keywords = [golds[0]]
    assert set(answer_scores(golds[0], golds, keywords).values()) == {1.0}
    assert set(answer_scores("", golds, keywords).values()) == {0.0}
    assert len(answer_scores("", golds, keywords)) == 7
    assert rouge_l(golds[0], golds[0]) == 1.0 and rouge_l("", golds[0]) == 0.0


@given(rankings())
def test_ranking_scores_are_those_of_the_functions(case: RankingCase) -> None:
    ranked, positives, k = case
    recalls = {f"recall_at_{at}": recall_at_k(ranked, positives, at) for at in (1, 3, 5)}
    rest = {f"precision_at_{k}": precision_at_k(ranked, positives, k), "mrr": reciprocal_rank(ranked, positives)}
    assert ranking_scores(ranked, positives, k) == recalls | rest


def test_an_oracle_ranking_scores_1_and_one_without_positives_0() -> None:
    assert set(ranking_scores([4, 1, 2], {4}, 1).values()) == {1.0}
    assert set(ranking_scores([1, 2], {4}, 1).values()) == {0.0}
