"""The lines that control and the bridge exchange over a pipe: one JSON object a line, `{"op": name, "body": {...}}`.

To the bridge (stdin), in this order of a life:
  start             Settings                         first line; the bridge connects and answers Connected, NodeSeen...
  adopt             {"live": [{"order": LaunchOrder, "was_running": bool}], "is_last": bool}: a part of those that live
  launch, resize    LaunchOrder
  stop              StopOrder
  load_adapter      AdapterOrder
  answer            AskAnswer                        to an AskSeen
  execute           CommandOrder                     answered by CommandSaid, and last by one CommandEnded
  tell_command      CommandInput                     answered by CommandTook
  end_command       CommandOrder
  ask_dashboard     DashboardOrder                   answered in the same way
  end_ask           DashboardOrder
  route             RouteTable
  request_capacity  {"bundles": [{"resources": {}, "labels": {}, "count": n}]}
  ping              {"n": int}                       answered by pong with the same n, even while orders are carried out
  close             {"stop_everything": bool}        answered by closed, then the bridge exits with 0

From the bridge (stdout): hello {"protocol", "version"} first, then pong {"n"}, closed {}, and every observation and
answer of a command of `port` under its class name. Nothing else may reach stdout; people's words go to stderr. End of
file on stdin means that the controller died: the bridge leaves Ray as it is and exits. An `adopt` may come again at any
time.

What comes from the bridge was said by workloads and by Ray: every field of it is made valid before it is written here
(`sanitize.record`). Bodies may hold secrets (`LaunchOrder.envs`): no line is ever logged whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from llmsched import sanitize
from llmsched.errors import ClusterError
from llmsched.executors.port import (
    AdapterOrder,
    AskAnswer,
    CommandAnswer,
    CommandInput,
    CommandOrder,
    DashboardOrder,
    LaunchOrder,
    Observation,
    RouteTable,
    StopOrder,
)
from llmsched.store import codec

PROTOCOL = 4
MAX_LINE_BYTES = 32 * 1024 * 1024  # also the limit of the stream readers
ADOPTED_AT_ONCE = 50
PING_EVERY_S = 1.0
PONG_WITHIN_S = 3.5  # with the second between pings: who is stopped or asleep is noticed within 5 s
PONG_OF_BUSY_WITHIN_S = 20.0  # who computes, or waits for a CPU or a disk, is late, not hung


@dataclass(frozen=True, slots=True)
class Settings:
    """What a bridge must know to begin. RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH are in its environment already."""

    address: str  # GCS "host:port"; never "auto"
    epoch: int  # orders of a lower epoch are ignored
    storage: str  # root of the cluster's storage
    namespace: str = "llmsched"
    endpoint_host: str = "127.0.0.1"
    protocol: int = PROTOCOL


class Live(NamedTuple):
    order: LaunchOrder
    was_running: bool


@dataclass(frozen=True, slots=True)
class CapacityBundle:
    resources: dict[str, float]
    labels: dict[str, str]
    count: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Some of those that are to live, and whether these are the last."""

    live: tuple[Live, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    bundles: tuple[CapacityBundle, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    n: int


@dataclass(frozen=True, slots=True)
class Close:
    stop_everything: bool = False


@dataclass(frozen=True, slots=True)
class Hello:
    version: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Pong:
    n: int


@dataclass(frozen=True, slots=True)
class Closed:
    pass


Order = (
    Settings
    | Adopt
    | LaunchOrder
    | StopOrder
    | AdapterOrder
    | AskAnswer
    | CommandOrder
    | CommandInput
    | DashboardOrder
    | RouteTable
    | Capacity
    | Ping
    | Close
)
Answer = Hello | Pong | Closed | CommandAnswer | Observation

ORDERS: dict[str, type] = {
    "start": Settings,
    "adopt": Adopt,
    "launch": LaunchOrder,
    "resize": LaunchOrder,
    "stop": StopOrder,
    "load_adapter": AdapterOrder,
    "answer": AskAnswer,
    "execute": CommandOrder,
    "tell_command": CommandInput,
    "end_command": CommandOrder,
    "ask_dashboard": DashboardOrder,
    "end_ask": DashboardOrder,
    "route": RouteTable,
    "request_capacity": Capacity,
    "ping": Ping,
    "close": Close,
}
ANSWERS: dict[str, type] = {"hello": Hello, "pong": Pong, "closed": Closed} | {
    cls.__name__: cls for cls in (*get_args(CommandAnswer), *get_args(Observation))
}


def encode_order(op: str, body: Order) -> bytes:
    """One line, newline included."""
    return _line(op, ORDERS[op], body)


def decode_order(line: bytes) -> tuple[str, Any]:
    """(op, record). Raises ClusterError on a line that is not one."""
    return _parse(line, ORDERS)


def encode_answer(body: Answer) -> bytes:
    name = type(body).__name__
    return _line(name if name in ANSWERS else name.lower(), type(body), sanitize.record(body))


def decode_answer(line: bytes) -> Any:
    """The observation, or Hello, Pong, Closed."""
    return _parse(line, ANSWERS)[1]


def adopts_of(live: Sequence[tuple[LaunchOrder, bool]]) -> Iterator[Adopt]:
    """One after the other, and one if nobody lives."""
    every = [Live(order, was_running) for order, was_running in live]
    for start in range(0, max(len(every), 1), ADOPTED_AT_ONCE):
        yield Adopt(tuple(every[start : start + ADOPTED_AT_ONCE]), start + ADOPTED_AT_ONCE >= len(every))


def capacity_of(bundles: Sequence[tuple[dict[str, float], dict[str, str], int]]) -> Capacity:
    return Capacity(tuple(CapacityBundle(*bundle) for bundle in bundles))


def _line(op: str, cls: type, body: Any) -> bytes:
    text = json.dumps({"op": op, "body": codec.to_data(cls, body)}, separators=(",", ":"))
    line = text.encode() + b"\n"  # ASCII: no stray line separator can split a line
    if len(line) > MAX_LINE_BYTES:
        raise ClusterError(f"a {op} line of {len(line)} bytes is over the {MAX_LINE_BYTES} the bridge takes")
    return line


def _parse(line: bytes, known: dict[str, type]) -> tuple[str, Any]:
    try:
        data = sanitize.loads(line)
        op, body = data["op"], data["body"]
        return op, codec.from_data(known[op], body)
    except (ValueError, KeyError, TypeError, codec.CodecError) as error:
        # The line itself stays out of the message: it may carry secrets.
        raise ClusterError(f"the pipe brought a line that is no message: {type(error).__name__}") from None
