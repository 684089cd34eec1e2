"""A few weights that are learnt one answer at a time: logistic regression by AdaGrad (Duchi, Hazan and Singer, JMLR 12,
2011), on features that are brought to one scale by what was seen of them so far (Welford)."""

from __future__ import annotations

import math
from collections.abc import Mapping

RATE = 0.1
FARTHEST = 8.0  # deviations: what lies beyond counts as that


class OnlineWeights:
    """`names` are the features; one that a row lacks counts as its mean. Plain floats: nothing grows."""

    def __init__(self, names: list[str]) -> None:
        self.seen, self.bias = 0, 0.0
        self._names = names
        self._weights, self._squares = dict.fromkeys(names, 0.0), dict.fromkeys(["", *names], 1e-6)
        self._counts, self._means, self._spreads = (dict.fromkeys(names, 0.0) for _ in range(3))

    @property
    def weights(self) -> dict[str, float]:
        """Of features on one scale."""
        return {name: round(weight, 4) for name, weight in self._weights.items()}

    def parts(self, features: Mapping[str, float]) -> dict[str, float]:
        """What each feature adds to the logit."""
        return {name: self._weights[name] * value for name, value in self._scaled(features).items()}

    def chance(self, features: Mapping[str, float]) -> float:
        logit = self.bias + sum(self.parts(features).values())
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))

    def learn(self, features: Mapping[str, float], liked: bool) -> None:
        error = self.chance(features) - liked
        self.bias -= self._step("", error)
        for name, value in self._scaled(features).items():
            self._weights[name] -= self._step(name, error * value)
        self.seen += 1
        for name in self._names:
            if name in features:
                self._counts[name] += 1
                before = features[name] - self._means[name]
                self._means[name] += before / self._counts[name]
                self._spreads[name] += before * (features[name] - self._means[name])

    def _step(self, name: str, gradient: float) -> float:
        self._squares[name] += gradient**2
        return RATE * gradient / math.sqrt(self._squares[name])

    def _scaled(self, features: Mapping[str, float]) -> dict[str, float]:
        found = {}
        for name in self._names:
            spread = math.sqrt(self._spreads[name] / self._counts[name]) if self._counts[name] > 1 else 0.0
            value = (features[name] - self._means[name]) / spread if spread and name in features else 0.0
            found[name] = max(-FARTHEST, min(FARTHEST, value))
        return found
