"""BLEU and chrF of texts that are meant to say the same, from sums of counts: sacrebleu's numbers, with its defaults.

BLEU (Papineni et al. 2002): n-grams of words up to 4, words cut as NIST's mteval-v13a does, a count of 0 halved on and
on (its smoothing "exp"). chrF (Popović 2015): n-grams of letters up to 6, recall counts twice.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORDS, _LETTERS = 4, 6
COUNTS = 2 * _WORDS + 2 + 3 * _LETTERS
_ENTITIES = (("<skipped>", ""), ("-\n", ""), ("\n", " "), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_CUTS = tuple(
    (re.compile(pattern), cut)
    for pattern, cut in (
        (r"([!-&(-+/:-@\[-`{-~])", r" \1 "),  # ASCII's marks but ' , - .
        (r"([^0-9])([.,])", r"\1 \2 "),
        (r"([.,])([^0-9])", r" \1 \2"),
        (r"([0-9])(-)", r"\1 \2 "),
    )
)


def counts_of(said: str, true: str) -> list[float]:
    """[shared n-grams] * 4, [said] * 4, words said, words true, and of letters [said, true, shared] * 6."""
    mine, theirs = _words(said), _words(true)
    shared, told = [], []
    for size in range(1, _WORDS + 1):
        one, other = _grams(mine, size), _grams(theirs, size)
        shared.append(sum((one & other).values()))
        told.append(sum(one.values()))
    counts = [*shared, *told, len(mine), len(theirs)]
    mine, theirs = ([*"".join(text.split())] for text in (said, true))
    for size in range(1, _LETTERS + 1):
        one, other = _grams(mine, size), _grams(theirs, size)
        counts += [sum(one.values()) if other else 0, sum(other.values()), sum((one & other).values())]
    return [float(count) for count in counts]


def measure(counts: Sequence[float]) -> dict[str, float]:
    """Both from 0 to 100."""
    return {"bleu": _bleu(counts), "chrf": _chrf(counts[2 * _WORDS + 2 :])}


def _bleu(counts: Sequence[float]) -> float:
    shared, told = counts[:_WORDS], counts[_WORDS : 2 * _WORDS]
    mine, theirs = counts[2 * _WORDS : 2 * _WORDS + 2]
    if not any(shared) or not all(told):
        return 0.0
    logs, halved = 0.0, 1.0
    for hits, all_of_them in zip(shared, told, strict=True):
        if not hits:
            halved *= 2
        logs += math.log(100 * (hits or 1 / halved) / all_of_them)
    return math.exp(logs / _WORDS + min(0.0, 1 - theirs / mine))


def _chrf(counts: Sequence[float]) -> float:
    kept = [counts[at : at + 3] for at in range(0, len(counts), 3) if counts[at] and counts[at + 1]]
    precision = sum(shared / mine for mine, _, shared in kept) / max(1, len(kept))
    recall = sum(shared / theirs for _, theirs, shared in kept) / max(1, len(kept))
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def _words(text: str) -> list[str]:
    text = text.rstrip()
    for written, meant in _ENTITIES:
        text = text.replace(written, meant)
    text = f" {text} "
    for pattern, cut in _CUTS:
        text = pattern.sub(cut, text)
    return text.split()


def _grams(parts: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(parts[start:] for start in range(size)), strict=False))
