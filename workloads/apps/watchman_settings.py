"""What watch.yaml says to a watchman, refused by name where it could only fail later."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llmsched.errors import RequestError

DEFAULTS = {"every_s": 5.0, "rounds": 2, "wrong": 0.5, "slow_s": None, "calm": 2, "timeout_s": 60.0}
KEYS = {"of", "says", "chat", "adapter", "post", "field"}


class Settings(NamedTuple):
    canaries: list[dict[str, Any]]
    every_s: float
    rounds: int
    wrong: float  # 0 to 1
    slow_s: float | None
    calm: int  # rounds
    timeout_s: float


def read(file: str) -> Any:
    """Raises RequestError for what is no YAML, OSError for what cannot be read."""
    try:
        return yaml.safe_load(Path(file).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"watch.yaml: {file} is no YAML: {error}") from None


def checked(given: Any) -> Settings:
    """Raises RequestError."""
    canaries = given.get("canaries") if isinstance(given, dict) else None
    if not isinstance(canaries, list) or not canaries or set(given) - {"canaries", *DEFAULTS}:
        raise RequestError(f"watch.yaml: expected canaries, and of {', '.join(DEFAULTS)} those that differ.")
    for place, one in enumerate(canaries):
        _check_canary(f"watch.yaml: canary {place}", one)
    rules: dict[str, Any] = {**DEFAULTS, **given}
    for name in ("every_s", "timeout_s"):
        _check(name, rules[name], "a number of seconds above 0", _is_number(rules[name]) and rules[name] > 0)
    slow = rules["slow_s"]
    _check("slow_s", slow, "a number of seconds above 0", slow is None or (_is_number(slow) and slow > 0))
    wrong = rules["wrong"]
    _check("wrong", wrong, "a share above 0, up to 1", _is_number(wrong) and 0 < wrong <= 1)
    for name, least in (("rounds", 1), ("calm", 0)):
        _check(name, rules[name], f"a whole number from {least}", type(rules[name]) is int and rules[name] >= least)
    return Settings(**rules)


def _check_canary(where: str, one: Any) -> None:
    is_right = isinstance(one, dict) and not set(one) - KEYS and {"of", "says"} <= set(one)
    if not is_right or ("chat" in one) == ("post" in one):
        raise RequestError(f"{where}: expected of, says, and one of chat and post.")
    for name in sorted({"of", "says", "chat", "adapter", "field"} & set(one)):
        if not isinstance(one[name], str):
            raise RequestError(f"{where}: {name} is a text, not {one[name]!r}.")
    try:
        re.compile(one["says"], re.S)
    except re.error as error:
        raise RequestError(f"{where}: says is no regular expression: {error}.") from None


def _check(name: str, value: Any, expected: str, is_right: bool) -> None:
    if not is_right:
        raise RequestError(f"watch.yaml: {name} is {expected}, not {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
