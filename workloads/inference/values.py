"""What an app returns, as JSON: numbers of numpy and torch as numbers, dates as ISO 8601, records as objects.

A value that JSON has no word for is refused by name. Its text in the place of it would be an answer that looks right.
Knows numpy, torch, pandas and pydantic only where the app has loaded them.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import sys
import uuid
from typing import Any


class Unsayable(ValueError):
    """JSON has no word for it; the message says for what."""


def encoded(value: Any) -> bytes:
    """Compact JSON. Raises Unsayable, for NaN and infinity too."""
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
        return text.encode()
    except Unsayable:
        raise
    except ValueError as error:
        cause = "NaN or infinity" if "JSON compliant" in str(error) else str(error)
        raise Unsayable(f"The app's answer holds what JSON has no word for: {cause}. {_INSTEAD}") from None
    except (TypeError, RecursionError) as error:
        raise Unsayable(f"The app's answer cannot be written as JSON: {error}. {_INSTEAD}") from None


_INSTEAD = "Return numbers, text, lists and objects, or a Response of Starlette."


def _plain(value: Any) -> Any:
    """For what the encoder of the standard library does not know."""
    for module, plain in _LIBRARIES.items():
        if module in sys.modules and (found := plain(sys.modules[module], value)) is not None:
            return found[0]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, uuid.UUID | pathlib.PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    raise Unsayable(f"The app's answer holds {_a(value)}, which JSON has no word for. {_INSTEAD}")


def _a(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _of_numpy(numpy: Any, value: Any) -> tuple[Any] | None:
    if isinstance(value, numpy.ndarray):
        return (value.tolist(),)
    return (value.item(),) if isinstance(value, numpy.generic) and not isinstance(value.item(), numpy.generic) else None


def _of_torch(torch: Any, value: Any) -> tuple[Any] | None:
    return (value.detach().cpu().tolist(),) if isinstance(value, torch.Tensor) else None


def _of_pandas(pandas: Any, value: Any) -> tuple[Any] | None:
    if isinstance(value, pandas.DataFrame):
        return (value.to_dict(orient="records"),)
    return (value.tolist(),) if isinstance(value, pandas.Series | pandas.Index) else None


def _of_pydantic(pydantic: Any, value: Any) -> tuple[Any] | None:
    return (value.model_dump(),) if isinstance(value, pydantic.BaseModel) else None


_LIBRARIES = {"numpy": _of_numpy, "torch": _of_torch, "pandas": _of_pandas, "pydantic": _of_pydantic}
