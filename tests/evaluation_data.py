"""One entry of each format of evaluation data, in the shape in which it is distributed."""

from __future__ import annotations

from typing import Any

HOTPOT: dict[str, Any] = {
    "_id": "5a8b",
    "answer": "Chief of Protocol",
    "question": "What position did she hold?",
    "supporting_facts": [["Kiss and Tell", 0], ["Shirley Temple", 1], ["Shirley Temple", 0]],
    "context": [
        ["Meet Corliss", ["A series.", " It ran."]],
        ["Kiss and Tell", ["A film."]],
        ["Shirley Temple", ["She acted. ", "She was Chief of Protocol."]],
    ],
    "type": "bridge",
    "level": "hard",
}
MUSIQUE: dict[str, Any] = {
    "id": "2hop__1_2",
    "paragraphs": [
        {"idx": 0, "title": "Green", "paragraph_text": "Steve Hillage made it.", "is_supporting": True},
        {"idx": 1, "title": "Blue", "paragraph_text": "A colour.", "is_supporting": False},
    ],
    "question": "Who is the spouse?",
    "question_decomposition": [{"id": 1, "question": "q", "answer": "a", "paragraph_support_idx": 0}],
    "answer": "Miquette Giraudy",
    "answer_aliases": ["Giraudy"],
    "answerable": True,
}
SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Super_Bowl_50",
            "paragraphs": [
                {
                    "context": "Denver won.",
                    "qas": [
                        {
                            "id": "56be",
                            "question": "Who won?",
                            "answers": [{"answer_start": 0, "text": "Denver"}, {"answer_start": 0, "text": "Denver"}],
                            "is_impossible": False,
                        },
                        {"id": "5ad3", "question": "Who wept?", "answers": [], "is_impossible": True},
                    ],
                },
                {
                    "context": "In 2016.",
                    "qas": [{"id": "56bf", "question": "When?", "answers": [{"answer_start": 3, "text": "2016"}]}],
                },
            ],
        }
    ],
}
ORIGINAL: dict[str, Any] = {"question": "q", "docs": ["a", "b"], "pos_index": [1], "golden_answers": ["x", "y"]}
RECORD: dict[str, Any] = {"id": "r", "docs": ["Lamp: red."], "question": ["Which?", "How?"], "answers": ["red", "dim"]}
