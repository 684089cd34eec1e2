"""What is known of users and items from what was liked: how often, and which texts. Bounded: who was not heard of for
longest is forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

import numpy as np

USERS_AT_MOST, ITEMS_AT_MOST = 20_000, 50_000
PRIOR = 5.0  # answers that everybody is taken to have given, with the mean of all

Kept = TypeVar("Kept")


class Recent(OrderedDict[str, Kept], Generic[Kept]):
    """The `most` that were used last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def use(self, key: str, fresh: Kept) -> Kept:
        """What is kept by `key`, or `fresh` from now on."""
        kept = self.setdefault(key, fresh)
        self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)
        return kept


class Tastes:
    def __init__(self) -> None:
        self._users: Recent[list[float]] = Recent(USERS_AT_MOST)  # [answers, of these liked]
        self._items: Recent[list[float]] = Recent(ITEMS_AT_MOST)
        self._profiles: Recent[np.ndarray] = Recent(USERS_AT_MOST)  # the sum of what was liked less what was not
        self._all = [0.0, 0.0]

    def features(self, user: str, item: str, vector: np.ndarray | None) -> dict[str, float]:
        """`user` and `item`: how often they like and are liked, drawn towards the mean of all while little is known.
        `match`: the cosine of a text with what the user liked; absent where there is none."""
        found = {"user": self._rate(self._users.get(user)), "item": self._rate(self._items.get(item))}
        profile = self._profiles.get(user)
        if vector is not None and profile is not None:
            size = float(np.linalg.norm(profile) * np.linalg.norm(vector))
            found["match"] = float(profile @ vector) / size if size else 0.0
        return found

    def learn(self, user: str, item: str, vector: np.ndarray | None, liked: bool) -> None:
        away = liked - self._rate(self._users.get(user))  # of somebody who likes everything, a like says little
        for one in (self._all, self._users.use(user, [0.0, 0.0]), self._items.use(item, [0.0, 0.0])):
            one[0] += 1
            one[1] += liked
        if vector is not None:
            profile = self._profiles.use(user, np.zeros_like(vector))
            profile += away * vector / max(float(np.linalg.norm(vector)), 1e-12)

    def _rate(self, answers: list[float] | None) -> float:
        mean = (self._all[1] + 1) / (self._all[0] + 2)
        many, liked = answers or (0.0, 0.0)
        return (liked + PRIOR * mean) / (many + PRIOR)
