"""What is answered about nodes: what is free on them, who holds the rest, and which are to be empty."""

from __future__ import annotations

from llmsched.spec.http_models import Amounts, Reply


class ExcessView(Reply):
    """What a gang has taken through Ray on a node beyond what it was given."""

    gang: str
    amounts: Amounts


class NodeView(Reply):
    id: str
    name: str
    flavor: str | None = None
    node_type: str | None = None  # of the cluster file
    labels: dict[str, str] = {}
    total: Amounts
    used: Amounts
    foreign: Amounts  # work on the same Ray cluster that is nobody's here
    excess: list[ExcessView] = []
    free: Amounts
    draining: bool = False  # nothing new goes there, and what is there leaves
    leaves_at: float | None = None  # by when, where that is known
    drained_by: str = ""  # the operator who said so; "": the cluster did, or one that the reader may not know
    gangs: list[str] = []


class NodeTypeView(Reply):
    """A kind of node that the cluster may have more or fewer of. `asked` counts those that are there."""

    name: str
    flavor: str | None = None
    gpus: int = 0
    min: int = 0
    max: int = 0
    here: int = 0
    asked: int = 0
    price_per_hour: float = 0.0


class NodeList(Reply):
    """`drained_away`: names that an operator drains and no node has now; who joins under such a name is drained."""

    nodes: list[NodeView]
    types: list[NodeTypeView] = []
    drained_away: list[str] = []
