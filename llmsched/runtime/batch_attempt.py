"""An attempt of a batch gang: one placement group of its members, pinned to their nodes, and a driver inside it.

The driver runs Ray Data on that group and nothing beside it (`batch.py`). It is no member: it takes no GPU and none of
the CPUs, and ends with the group. Another size is another try, which goes on with the parts that are left. Start
reading at `run`.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llmsched.runtime import deaths
from llmsched.runtime.attempt import CLOSE_WITHIN_S, NAMESPACE, PLACED_WITHIN_S, Life, Outcome, resources_of
from llmsched.runtime.batch import Driver

_LOOK_EVERY_S = 0.2
_AT_ONCE = 32  # calls that the driver answers side by side: it runs, and its workers enlist


class BatchAttempt:
    def __init__(self, life: Life) -> None:
        self._life = life
        self._left = life.left  # of this try: the next one has another
        self._group: PlacementGroup | None = None
        self._driver: Any = None

    def run(self) -> None:
        life = self._life
        bundles = [resources_of(member) for member in life.order["members"]]
        self._group = self._placed(bundles)
        name = f"{life.name}/driver" + (f".{life.resizes}" if life.resizes else "")
        self._driver = (
            ray.remote(max_restarts=0, max_concurrency=_AT_ONCE)(Driver)
            .options(
                name=name,
                namespace=NAMESPACE,
                num_cpus=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, 0),
            )
            .remote(json.dumps(life.order), self._group, name)
        )
        life.begin()
        try:
            over = ray.get(self._driver.run.remote())
        except ray.exceptions.RayError as error:
            raise Outcome("failed", *deaths.explain("the driver", deaths.words_of(error), deaths.Known())) from error
        own = life.ranks.own_failures()  # of a process that ended itself, and said why first
        if own and over.message:
            raise Outcome("failed", own[0].message, own[0].event)
        if over.death and (rank := life.ranks.of_death(deaths.pid_in(over.death))) is not None:
            raise Outcome("failed", *life.of_death(rank, over.death))
        if over.message:
            raise Outcome("failed", over.message, over.event)
        if over.left:
            raise Outcome("released", "left as asked", step=over.step)

    def ask_to_leave(self, grace_s: float) -> None:
        """The members ask by themselves before each part, and have the grace to end the one that they are at."""

    def end(self) -> None:
        if self._driver is not None:
            with suppress(Exception):
                ray.kill(self._driver)
        self._left.wait(CLOSE_WITHIN_S)

    def let_go(self) -> bool:
        """With the group goes all that runs in it."""
        with suppress(Exception):
            if self._driver is not None:
                ray.kill(self._driver)
        if self._group is None:
            return True
        until = time.monotonic() + CLOSE_WITHIN_S
        while time.monotonic() < until:
            with suppress(Exception):
                ray.util.remove_placement_group(self._group)
                if placement_group_table(self._group)["state"] == "REMOVED":
                    return True
            time.sleep(_LOOK_EVERY_S)
        return False

    def can_become(self, members: list[dict[str, Any]]) -> bool:
        """A placement group gives back no bundle, and takes none."""
        return False

    def become(self, members: list[dict[str, Any]], grace_s: float) -> bool:
        return False

    def controlled_by(self, controller: Any) -> None:
        """Ray Data runs in the driver."""

    def _placed(self, bundles: list[dict[str, float]]) -> PlacementGroup:
        life = self._life
        nodes = [{"ray.io/node-id": member["node"]} for member in life.order["members"]]
        group = placement_group(bundles, bundle_label_selector=nodes)
        self._group = group  # from here on it is let go of
        until = time.monotonic() + PLACED_WITHIN_S
        while not group.wait(0.5):
            if life.is_leaving:
                raise Outcome("released", "stopped before it began")
            if time.monotonic() > until:
                raise Outcome("failed", f"Ray did not place all workers in {PLACED_WITHIN_S:.0f} s", "no-capacity")
        return group
