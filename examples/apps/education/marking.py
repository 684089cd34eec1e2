"""A mark for an answer in words, as an app: does what is claimed follow from the key, contradict it, or neither?

    serve: {app: "marking:Marker", args: {model: "run://marks-model"}}

`{"answers": [{"key": "payment: a sum of money paid", "answer": "This is cost."}, ...]}` -> `{"marks": [{"label",
"score", "scores", "reason"}, ...]}`. A key is a word and its definition. What the marker sees of both is `seen`: a few
columns that one can read, of words and letters alone; which of them speak for what is learnt.
"""

from __future__ import annotations

import os
import re
from difflib import SequenceMatcher
from typing import Any

from starlette.exceptions import HTTPException

from workloads.apps.scorer import ROWS_AT_MOST, Scorer

CLAIM = re.compile(r"This is (.+)\.")
NEGATIONS = re.compile(r"(non|un|in|im|il|ir|dis|anti|de|mis|counter|ab|a|dys|hypo|hyper|under|over|mal)-?")
ENDINGS = ("ness", "tion", "ment", "ity", "ing", "ion", "ed", "es", "al", "ly", "er", "s", "y", "e")
LONGEST = 1_000  # characters of a key or an answer


def seen(key: str, answer: str) -> dict[str, float]:
    """`said` and `in_word`: shares of the claim's words that the definition, and the word itself, have; `place`: of the
    claim's last word in the definition, 1 for none; `letters` and `ending`: how alike word and claim are, 0 to 1;
    `negates`: one is the other with un-, non- and so on before it."""
    word, _, definition = key.lower().partition(": ")
    found = CLAIM.fullmatch(answer)
    claim = (found[1] if found else answer).lower()
    claims, own, defined = stems(claim), stems(word), stems(definition)
    common = SequenceMatcher(None, word, claim).find_longest_match().size
    ending = len(os.path.commonprefix([word[::-1], claim[::-1]]))
    negation = longer.removesuffix(shorter) if (longer := max(word, claim, key=len)).endswith(
        shorter := min(word, claim, key=len)
    ) else ""  # fmt: skip
    return {
        "said": round(share(claims, defined), 3),
        "in_word": round(share(claims, own), 3),
        "place": round(defined.index(claims[-1]) / len(defined), 3) if claims and claims[-1] in defined else 1.0,
        "letters": round(common / max(len(word), len(claim), 1), 3),
        "ending": round(ending / max(min(len(word), len(claim)), 1), 3),
        "negates": float(NEGATIONS.fullmatch(negation) is not None),
    }


def stems(text: str) -> list[str]:
    """Words without what English puts behind them: crude, and the same for both sides."""
    found = re.findall(r"[a-z]+", text)
    ends = [next((end for end in ENDINGS if word.endswith(end) and len(word) > len(end) + 2), "") for word in found]
    return [word.removesuffix(end) for word, end in zip(found, ends, strict=True)]


def share(some: list[str], there: list[str]) -> float:
    return sum(each in there for each in some) / max(len(some), 1)


class Marker:
    """`model`: what the tabular loop has learnt of the columns of `seen`."""

    def __init__(self, *, model: str) -> None:
        self._scorer = Scorer(model=model)

    def __call__(self, body: Any) -> dict[str, Any]:
        answers = body.get("answers") if isinstance(body, dict) and set(body) == {"answers"} else None
        if not isinstance(answers, list) or not 1 <= len(answers) <= ROWS_AT_MOST or not all(map(_is_one, answers)):
            shape = '{"answers": [{"key": "WORD: DEFINITION", "answer": a text}, ...]}'
            raise HTTPException(422, f"expected {shape}, up to {ROWS_AT_MOST:,} of at most {LONGEST:,} characters")
        rows = [seen(each["key"], each["answer"]) for each in answers]
        said = self._scorer({"rows": rows, "explain": True})["said"]
        return {"marks": [{name: one[name] for name in ("label", "score", "scores", "reason")} for one in said]}


def _is_one(answer: Any) -> bool:
    """Of a key with a definition and an answer."""
    return (
        isinstance(answer, dict)
        and set(answer) == {"key", "answer"}
        and all(isinstance(text, str) and 0 < len(text.strip()) <= LONGEST for text in answer.values())
        and ": " in answer["key"]
    )
