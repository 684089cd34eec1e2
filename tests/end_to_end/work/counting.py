"""A loop and an app of one's own, as users bring them; small enough to kill."""

import json
import os
import time
from pathlib import Path

from llmsched.runtime import checkpoint, current, elastic, progress


def loop(config):
    found = checkpoint.latest()
    begin = found.step if found else 0
    print(f"attempt {current().attempt} of worker {current().rank}, process {os.getpid()}, begins at step {begin}")
    step = begin
    while not Path(config["until"]).exists():
        step += 1
        time.sleep(config["step_s"])  # stands for work
        checkpoint.save(step, lambda folder, step=step: (folder / "step.json").write_text(json.dumps(step)))
        progress.report(step=step, loss=1.0 / step)
        if elastic.should_stop():
            raise elastic.Stopped(step)


class Echo:
    def __init__(self, greeting):
        self.greeting = greeting

    def __call__(self, body):
        if "chunks" in body:
            return self.say(body)
        return {"said": f"{self.greeting} {body.get('name', 'nobody')}", "process": os.getpid()}

    def say(self, body):
        for number in range(body["chunks"]):
            time.sleep(body["chunk_s"])
            yield {"number": number}


class Unwell:
    """A new version that never answers."""

    def __init__(self, greeting):
        raise RuntimeError("this version cannot begin")

    def __call__(self, body):
        return {}
