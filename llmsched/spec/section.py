"""What every part of a spec has in common: unknown keys refused, no silent conversion, no changing after loading."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

WRITTEN = {"written": True}  # a dump with this context has `10m`, `8GB`, `2..8` as people write them


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
        validate_by_name=False,
        validate_by_alias=True,
        defer_build=True,
    )

    def dump(self) -> dict[str, Any]:
        """JSON data with every default filled in: durations in seconds, sizes in bytes. This is what travels."""
        return self.model_dump(mode="json")

    def written(self) -> dict[str, Any]:
        """The same for people: `10m`, `8GB`, `2..8`."""
        return self.model_dump(mode="json", context=WRITTEN)


class WrongAt(ValueError):
    """A rule over several fields is broken; `path` leads from the section that checks to the field to change."""

    def __init__(self, message: str, *path: str | int) -> None:
        super().__init__(message)
        self.path = path
