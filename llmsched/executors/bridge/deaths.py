"""What Ray knows of a process that has ended: of what, where, with which exit code."""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray.util.state import list_actors

from llmsched.runtime import deaths

ANSWERS_WITHIN_S = 5


def how_it_died(actor: str) -> str:
    """One sentence about the actor of that name, or "" when Ray does not say."""
    try:
        address = ray.get_runtime_context().gcs_address  # without it, it would ask whatever Ray it finds
        named = [("name", "=", actor)]
        found = list_actors(address, filters=named, detail=True, timeout=ANSWERS_WITHIN_S, limit=1)
    except Exception as error:  # the dashboard, which answers this, may be away or slow
        print(f"Ray does not say how {actor} died: {error}", file=sys.stderr)
        return ""
    return sentence(found[0]) if found else ""


def sentence(found: Any) -> str:
    """`found` is what Ray's state API has of one actor."""
    causes = ((name, one) for name, one in (found.death_cause or {}).items() if isinstance(one, dict))
    words = next((f"{name} {one.get('reason', '')}: {said}" for name, one in causes if (said := _words(one))), "")
    known = deaths.Known(_name_of(found.node_id), found.pid)
    return deaths.explain("replica", words, known).message if words else ""


def _words(cause: dict[str, Any]) -> str:
    said = cause.get("error_message") or cause.get("formatted_exception_string") or ""
    return str(said) or str(cause.get("reason", "UNSPECIFIED")).replace("UNSPECIFIED", "")


def _name_of(node: str) -> str:
    for one in ray.nodes():
        if one["NodeID"] == node:
            return str(one.get("Labels", {}).get("llmsched.io/name") or one.get("NodeManagerHostname") or node)
    return node
