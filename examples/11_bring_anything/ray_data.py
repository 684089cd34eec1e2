"""A Ray Data pipeline as its author has it: rows are made, changed in batches, and added up, on all of its Ray."""

import time

import ray

BATCHES = 120


def squares(batch: dict) -> dict:
    time.sleep(0.2)  # stands for work
    return {"square": batch["id"] ** 2}


if __name__ == "__main__":
    ray.init()
    rows = ray.data.range(BATCHES * 100, override_num_blocks=BATCHES)
    print("sum", int(rows.map_batches(squares, batch_size=100).sum("square")))
