"""Whether answers can keep to a JSON schema: llguidance says so, where it is installed. No model is needed for that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

WRITTEN: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as json.dumps does


def flaw(args: Mapping[str, Any]) -> str:
    """What is wrong with the schema in `response_format`, if there is one, in a sentence; "" also where nobody here can
    say."""
    inner = (args.get("response_format") or {}).get("json_schema")
    if not inner:
        return ""
    try:
        from llguidance import LLMatcher
    except ImportError:
        return ""
    try:
        wrong = LLMatcher.validate_grammar(
            LLMatcher.grammar_from_json_schema(json.dumps(inner["schema"]), overrides=WRITTEN)
        )
    except ValueError as error:
        wrong = str(error)
    return unusable(wrong) if wrong else ""


def unusable(why: str) -> str:
    """`why`: llguidance's words. Of a regular expression several lines say what is wrong, the last one why; else the
    first is the reason, and the others its state."""
    lines = [line.strip() for line in why.strip().splitlines()] or [""]
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    return f"The schema cannot be used: {lines[0].rstrip(':')}" + (
        f": {lines[1]}: {said}" if said and len(lines) > 1 else ""
    )
