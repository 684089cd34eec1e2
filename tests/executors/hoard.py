"""Work that takes and leaves what it can, on its node and in Ray, beyond what its gang was given."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import ray

from llmsched.runtime import elastic

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # what a command makes has no such module


def quarter(node):
    """Of a GPU, on a node where no gang was given anything."""
    return {"num_gpus": 0.25, "num_cpus": 0, "label_selector": {"ray.io/node-id": node}}


SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


class Nested:
    def ping(self):
        return "pong"


def nested(node, **options):
    made = ray.remote(Nested).options(**quarter(node), **options).remote()
    ray.get(made.ping.remote())
    return made


def daemon():
    """A child that lost its parent, its session and its environment; its pid."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        child = subprocess.Popen(SLEEP, start_new_session=True, env={})
        os.write(writing, str(child.pid).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reading, 20))


def tell(folder, name, **facts):
    draft = Path(folder) / f".{name}"
    draft.write_text(json.dumps(facts))
    draft.rename(Path(folder) / name)


def command(address, folder):
    """A Ray driver of a user's own, which is to find what its gang was given; what it makes is to outlive it."""
    children = [daemon(), os.getpid()]
    ray.init("auto", log_to_driver=False)  # whatever other Rays there are on this machine
    assert ray.get_runtime_context().gcs_address != address
    made = ray.remote(Nested).options(name="hoarded", lifetime="detached").remote()
    ray.get(made.ping.remote())
    made = [ray.remote(Nested).options(num_cpus=amount).remote() for amount in (0.5, 0.5, 0.5)]
    for fits in made[:-1]:
        ray.get(fits.ping.remote())
    too_many = made[-1].ping.remote()
    waits = ray.wait([too_many], timeout=1)[0] == []
    has = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
    rays = [each.pid for each in psutil.process_iter() if each.name() in ("raylet", "gcs_server") and is_mine(each)]
    tell(folder, "task", children=[*children, *rays], worker=os.getppid(), has=has, waits=waits)
    time.sleep(600)


def is_mine(process):
    return any(str(each.pid) == str(os.getppid()) for each in process.parents())


def wait():
    time.sleep(600)


def loop(config):
    children, mine = [daemon()], [nested(config["node"]), ray.remote(**quarter(config["node"]))(wait).remote()]
    tell(config["folder"], "train", children=children, worker=os.getpid())
    while not elastic.should_stop():
        time.sleep(0.1)
    assert mine
    raise elastic.Stopped(0)


class App:
    def __init__(self, folder, node):
        self._children = [daemon()]
        threading.Thread(target=self._deploy, args=(folder, node)).start()

    def _deploy(self, folder, node):
        from ray import serve

        serve.run(serve.deployment(Nested).bind(), name="hoarded", route_prefix=None)  # made in this replica
        nested(node, name="hoarded by an app", lifetime="detached")
        tell(folder, "serve", children=self._children, worker=os.getpid())

    def __call__(self, body):
        return body


if __name__ == "__main__":
    command(*sys.argv[1:])
