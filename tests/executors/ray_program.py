"""A Ray program that knows nothing of llmsched: what it finds, and whom it sees join and leave."""

import os
import sys
import time

import ray

WORD = "imported"


@ray.remote(num_gpus=1, num_cpus=1, accelerator_type="A100")
def look():
    import ray_program  # from the workdir, on whatever machine

    return ray_program.WORD, os.environ["MODE"], os.environ.get("CUDA_VISIBLE_DEVICES")


def main(counts):
    ray.init()
    print("first line", flush=True)
    print("has", *(f"{name} {ray.cluster_resources()[name]:g}" for name in ("CPU", "GPU")), flush=True)
    print("sees", len(ray.util.list_named_actors(all_namespaces=True)), "named actors", flush=True)
    print("task", *ray.get(look.remote()), flush=True)
    for count in counts:
        while sum(one["Alive"] for one in ray.nodes()) != count:
            time.sleep(0.1)
        print("nodes", count, flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
