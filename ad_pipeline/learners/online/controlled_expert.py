"""An online expert whose rates follow the stream: the learner and its rate control as one.

It is an expert like any other to the online step. After each micro-batch it asks
:mod:`.rate_control` what to do, does it, and writes it down; what is remembered travels in its
state, so that a resumed learner makes the same moves.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np

from ad_pipeline.learners.ftrl.ftrl_expert import Arrays, FTRLExpert, LinearWeights, Manifest
from ad_pipeline.learners.online.rate_control import Move, RateControl
from ad_pipeline.settings import RateControlSettings


@dataclass(frozen=True)
class MadeMove:
    """A move and when it was made.

    Attributes
    ----------
    micro_batch : int
        Slice of the hour after which it was made, from 0.
    move : Move
    """

    micro_batch: int
    move: Move


class ControlledExpert:
    """FTRL under rate control.

    Parameters
    ----------
    expert : FTRLExpert
    settings : RateControlSettings
    """

    kind = "controlled ftrl"

    def __init__(self, expert: FTRLExpert, settings: RateControlSettings) -> None:
        self.expert = expert
        self._settings = settings
        self._control = RateControl(settings, expert.width)
        self._made: list[MadeMove] = []
        self._micro_batch = 0

    @property
    def width(self) -> int:
        """Configurations, K."""
        return self.expert.width

    def learn(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        outcomes: np.ndarray | None = None,
    ) -> np.ndarray:
        """Learn rows in order, then move the rates; returns log odds from before, (n, K)."""
        logits = self.expert.learn(slots, labels, weights, outcomes)
        _, moves = self._control.observe(logits, labels, weights)
        for move in moves:
            if move.kind == "raise":
                self.expert.raise_rate(move.configuration, move.doublings)
            elif move.kind in ("freeze", "thaw"):
                self.expert.freeze(move.configuration, move.kind == "freeze")
            self._made.append(MadeMove(self._micro_batch, move))
        return logits

    def raise_rates(self, doublings: int) -> None:
        """Raise the rate of every configuration because somebody outside ordered it."""
        for place in range(self.width):
            self.expert.raise_rate(place, doublings)
            move = Move(place, "order", doublings, {"doublings": doublings})
            self._made.append(MadeMove(self._micro_batch, move))

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return log odds, float64 (n, K), changing nothing."""
        return self.expert.logits(slots)

    def advance(self, elapsed_us: int) -> None:
        """Let time pass: all of it, or half of it for a configuration in calm."""
        self._micro_batch += 1
        self.expert.advance(self._control.elapsed_us(elapsed_us))

    def linear_weights(self, configuration: int = 0) -> LinearWeights:
        """Return the dense weights of a configuration."""
        return self.expert.linear_weights(configuration)

    def accumulated(self, configuration: int, slots: np.ndarray) -> np.ndarray:
        """Return n of some slots; see :meth:`.ftrl_expert.FTRLExpert.accumulated`."""
        return self.expert.accumulated(configuration, slots)

    def rates(self) -> list[float]:
        """Return by how many doublings each configuration's rate has been raised in all."""
        return [self.expert.rate(place) for place in range(self.width)]

    def take_moves(self) -> list[MadeMove]:
        """Return the moves since the last call, and begin to count micro-batches anew."""
        made, self._made, self._micro_batch = self._made, [], 0
        return made

    def state(self) -> tuple[Arrays, Manifest]:
        """Return what a later :meth:`restore` needs."""
        arrays, manifest = self.expert.state()
        return arrays, {
            "expert": self.kind,
            "learner": manifest,
            "settings": self._settings.model_dump(mode="json"),
            "control": self._control.to_json(),
            "micro_batch": self._micro_batch,
            "made": [asdict(one) for one in self._made],
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], manifest: Manifest) -> Self:
        """Return the expert of a :meth:`state`."""
        settings = RateControlSettings(**manifest["settings"])
        expert = cls(FTRLExpert.restore(arrays, manifest["learner"]), settings)
        expert._control = RateControl.from_json(settings, manifest["control"])
        expert._micro_batch = manifest["micro_batch"]
        expert._made = [
            MadeMove(one["micro_batch"], Move(**one["move"])) for one in manifest["made"]
        ]
        return expert
