"""The JSON Schema of every kind, for editors and other programs: `llmsched schema`."""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import Discriminator, TypeAdapter

from llmsched.spec.cluster import ClusterSpec
from llmsched.spec.load import KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ANY_KIND: Any = Annotated[Union[tuple(KINDS.values())], Discriminator("kind")]  # noqa: UP007 (built from a table)


def schema(kind: str | None = None) -> dict[str, Any]:
    """The schema of one kind, of `cluster`, or (None) of a document of any kind. KeyError for another word."""
    if kind is None:
        adapter: TypeAdapter[Any] = TypeAdapter(ANY_KIND)
        title = "llmsched workload"
    else:
        adapter = TypeAdapter(ClusterSpec if kind == "cluster" else KINDS[kind])
        title = "llmsched cluster configuration" if kind == "cluster" else f"llmsched {kind} workload"
    return {"$schema": DIALECT, **adapter.json_schema(by_alias=True), "title": title}
