"""Guesses pi on every node of whatever Ray it finds: `python pi.py` by hand does the same."""

import random
import sys

import ray


@ray.remote
def inside(samples: int, seed: int) -> int:
    chance = random.Random(seed)
    return sum(chance.random() ** 2 + chance.random() ** 2 < 1 for _ in range(samples))


def main() -> None:
    ray.init()
    nodes = [one for one in ray.nodes() if one["Alive"]]
    print(f"{len(nodes)} nodes, {ray.cluster_resources().get('GPU', 0):g} GPUs", flush=True)
    samples, pieces = 200_000, int(sys.argv[1]) if len(sys.argv) > 1 else 12
    found = ray.get([inside.remote(samples, seed) for seed in range(pieces)])
    print(f"pi is about {4 * sum(found) / samples / pieces:.3f}", flush=True)


if __name__ == "__main__":
    main()
