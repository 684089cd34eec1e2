"""Which of a replica's GPUs each deployment of an application sees, where several ask for some of their own.

    num_gpus: 2     the next two, alone          num_gpus: 0.5     a part of one, with others that ask for parts

The first that asks stays in the replica's process, and so do those that see exactly the same; each of the others has a
process of its own (`llmsched/runtime/serve_apart.py`). With less than two GPUs, or one deployment that asks, all see
what the replica has. Start at `environments`.
"""

from __future__ import annotations

from collections.abc import Mapping

# Ray sets them in the replica, by the kind of its accelerators; programs read them when they first ask for a GPU.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_ALMOST = 1e-9  # three thirds are one


def told(asked: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in asked.items())


def places(asked: Mapping[str, float], has: int) -> dict[str, tuple[int, ...]]:
    """The GPUs of each, by their place among those that the replica has; {} where nothing is to be divided. Raises
    ValueError when they do not fit."""
    if len(asked) < 2 or has < 2:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    room: dict[int, float] = {}  # in those that are shared
    taken = 0
    for name, amount in asked.items():
        if amount > 1 and amount != int(amount):
            raise ValueError(f"deployment {name} asks for {amount:g} GPUs: write a whole number, or less than one.")
        shared = next((place for place, left in room.items() if amount < 1 and amount <= left + _ALMOST), None)
        if shared is None:
            count = max(1, int(amount))
            found[name] = tuple(range(taken, taken + count))
            taken += count
            if amount < 1:
                room[found[name][0]] = 1 - amount
        else:
            found[name] = (shared,)
            room[shared] -= amount
    if taken > has:
        raise ValueError(
            f"its deployments ({told(asked)}) fill {taken} GPUs, since a part is of one GPU, and the replica has "
            f'{has}: write resources: {{accelerators: "TYPE:{taken}"}} in the spec, or parts that fit together.'
        )
    return found


def environments(
    asked: Mapping[str, float], has: int, environment: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """(the variables of the replica's own process, those of each deployment that has one of its own). `environment` is
    the replica's. Raises ValueError."""
    seen = places(asked, has)
    mine = next(iter(seen.values()), ())
    apart = {name: _visible(each, environment) for name, each in seen.items() if each != mine}
    return (_visible(mine, environment) if apart else {}), apart


def seen(has: float, environment: Mapping[str, str]) -> float:
    """How many of the replica's GPUs a process of it sees."""
    return min([has, *(len(environment[name].split(",")) for name in _VISIBLE if environment.get(name))])


def _visible(places: tuple[int, ...], environment: Mapping[str, str]) -> dict[str, str]:
    names = [name for name in _VISIBLE if environment.get(name)] or list(_VISIBLE[:1])
    found = {}
    for name in names:
        devices = [one for one in environment.get(name, "").split(",") if one]
        found[name] = ",".join(devices[place] if place < len(devices) else str(place) for place in places)
    return found
