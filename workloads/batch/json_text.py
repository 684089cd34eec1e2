"""Values of rows as JSON that any reader takes: arrays as lists, and words for what JSON has none for."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any) -> str:
    """Arrays of numpy and the like as lists; what JSON has no word for as text (a date, bytes), or null (NaN)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_listed)
    except ValueError:  # a number that is none: strict readers would stop at its word
        return json.dumps(_finite(json.loads(json.dumps(value, default=_listed))), ensure_ascii=False)


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
