"""A node as the scheduler sees it: an amount of resources, a flavor, and the domains it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from llmsched.core.resources import Resources

COMES_WITHIN_S = 900.0  # a node that was asked for; else its type has no capacity just now
SHUNNED_S = 1800.0  # how long other types are then tried first


@dataclass(frozen=True, slots=True)
class Node:
    """`labels` are Ray's node labels. Domains: level "node" is the id, any other level is the label of that key;
    "rack" and "zone" also read `llmsched.io/rack`, `llmsched.io/zone` and `topology.kubernetes.io/zone`."""

    id: str
    total: Resources
    flavor: str | None = None  # accelerator type, such as "A100"; None without one
    labels: tuple[tuple[str, str], ...] = ()
    name: str = ""  # what people read; empty: the id
    node_type: str | None = None  # of the configuration, when the provisioner made it

    @property
    def shown(self) -> str:
        """What people read and write."""
        return self.name or self.id

    def label(self, key: str) -> str | None:
        for name, value in self.labels:
            if name == key:
                return value
        return None

    def domain(self, level: str) -> str | None:
        if level == "node":
            return self.id
        found = self.label(level)
        if found is None and level in ("rack", "zone", "region"):
            found = self.label(f"llmsched.io/{level}") or self.label(f"topology.kubernetes.io/{level}")
        return found
