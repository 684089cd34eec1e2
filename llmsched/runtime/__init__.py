"""What code that runs inside Ray may import from llmsched: a train loop, a batch step, an app.

    from llmsched.runtime import checkpoint, current, data, elastic, progress

    found = checkpoint.latest()                        # None, or the newest good checkpoint of an earlier attempt
    for step, epoch, rows in data.batches(len(texts), 64, start=found.step if found else 0, steps=1000):
        ...                                            # rows: this worker's share of the step
        progress.report(step=step, total_steps=1000, loss=loss)
        if elastic.should_stop():                      # the same answer on every worker
            checkpoint.save(step, write)
            raise elastic.Stopped(step)

Importing it needs neither torch nor ray: a loop can be read, tested and run by hand without a cluster. It knows nothing
of the controller; it talks to its own supervisor actor and to the storage, nobody else.
"""

from llmsched.runtime import artifact, checkpoint, context, data, elastic, progress, storage
from llmsched.runtime.context import Context, current, enter

__all__ = [
    "Context",
    "artifact",
    "checkpoint",
    "context",
    "current",
    "data",
    "elastic",
    "enter",
    "progress",
    "storage",
]
