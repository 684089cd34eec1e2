"""A bridge process for tests whose cluster is a folder: each running attempt is a file, so it outlives the process.

Speaks `executors.wire` on its pipes as the real one does. A file `hang` stops it answering, a file `refuse` makes it
say that there is no cluster, a file `open` that the cluster is not secure; `starts` counts its lives.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from llmsched.executors import wire
from llmsched.executors.port import Connected, Disconnected, Ended, LaunchOrder, NodeSeen, Started, Vanished

world = Path(sys.argv[1])


def say(answer):
    sys.stdout.buffer.write(wire.encode_answer(answer))
    sys.stdout.buffer.flush()


def attempt_file(order):
    return world / order.name.replace("/", "+")


def launch(order: LaunchOrder):
    if not attempt_file(order).exists():
        attempt_file(order).write_text(json.dumps({"envs": order.envs, "epoch": order.epoch}))
        with (world / "launches").open("a") as log:
            log.write(order.name + "\n")
    say(Started(order.gang, order.attempt))


def adopt(live):
    for order, was_running in live:
        if was_running and not attempt_file(order).exists():
            say(Vanished(order.gang, order.attempt))
        else:
            launch(order)


def main():
    with (world / "starts").open("a") as log:
        log.write(f"{os.getpid()} {os.environ.get('RAY_ADDRESS')}\n")
    say(wire.Hello("test"))
    for line in sys.stdin.buffer:
        while (world / "hang").exists():
            time.sleep(0.01)
        op, body = wire.decode_order(line)
        if op == "start":
            if (world / "open").exists():
                say(Disconnected("it lets in whoever asks", is_insecure=True))
                return 1
            if (world / "refuse").exists():
                say(Disconnected("no cluster at that address"))
                return 1
            say(Connected("folder", {"dashboard": "http://127.0.0.1:1"}, ("n1",)))
            say(NodeSeen("n1", 4.0, 64.0, 1 << 38, {"ray.io/accelerator-type": "A100"}, {}, "n1"))
        elif op == "ping":
            say(wire.Pong(body.n))
        elif op == "adopt":
            adopt(body.live)
        elif op == "launch":
            launch(body)
        elif op == "stop":
            attempt_file(body).unlink(missing_ok=True)
            say(Ended(body.gang, body.attempt, "released"))
        elif op == "close":
            say(wire.Closed())
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
