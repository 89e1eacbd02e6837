"""Numbers that PPO carries from rollout to rollout: the price of divergence and the scale of scores."""

import math
from dataclasses import dataclass
from typing import Any


HORIZON = 10_000  # answers over which the price can move by its full range, as Ziegler et al. (2019) have it
LIMIT = 0.2
ROUNDING = 1e-6  # of a float32, as a share of the number


@dataclass
class KlController:
    """Makes divergence dearer while it is above the target, and cheaper below (Ziegler et al. 2019, section 2.2)."""

    coef: float
    target: float

    def update(self, kl: float, num_answers: int) -> None:
        """Take in the mean divergence of whole answers, in nats."""
        error = min(max(kl / self.target - 1, -LIMIT), LIMIT)
        self.coef *= 1 + error * num_answers / HORIZON


@dataclass
class RunningMoments:
    """Mean and variance of all numbers so far, added up batch by batch (Chan, Golub and LeVeque 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def add(self, count: float, total: float, squares: float) -> None:
        """Take in a batch by its count, sum and sum of squares."""
        if count <= 0:
            return
        mean = total / count
        within = max(squares - total * mean, 0.0)
        shift, both = mean - self.mean, self.count + count
        self.squares += within + shift * shift * self.count * count / both
        self.mean += shift * count / both
        self.count = both

    @property
    def std(self) -> float:
        """1 until there are two numbers that differ by more than rounding."""
        variance = self.squares / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(variance) if variance > (ROUNDING * self.mean) ** 2 else 1.0

    def state(self) -> dict[str, Any]:
        """Return the numbers."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}
