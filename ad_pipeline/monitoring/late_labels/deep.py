"""Wide & deep as a family of the benchmark: one arm a learner, all from one checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ad_pipeline.learners.deep.wide_deep import WideDeep
from ad_pipeline.monitoring.late_labels.arms import LOG_LOSS, Arm
from ad_pipeline.monitoring.late_labels.prequential import BenchLearner
from ad_pipeline.settings import DeepSettings, Objective


@dataclass(frozen=True)
class DeepLearners:
    """Makes wide & deep learners; see :class:`.prequential.Learners`.

    Attributes
    ----------
    settings : DeepSettings
        Of all; its objective is not read.
    fields : int
        Slots of a row.
    bits : int
        Slots are below 2^bits.
    horizon_days : float
        Window and lateness of the goal.
    """

    settings: DeepSettings
    fields: int
    bits: int
    horizon_days: float
    side_by_side: int = 1
    name: str = "deep"

    def fresh(self, seed: int) -> BenchLearner:
        """Return an untrained learner with log loss; the seed draws its first weights."""
        plain = self._with(LOG_LOSS, 1.0)
        return _Deep(WideDeep(plain, self.fields, self.bits, self.horizon_days, seed))

    def continued(self, pre_trained: BenchLearner, arms: Sequence[Arm], seed: int) -> BenchLearner:
        """Return a learner of an arm's objective and rates that goes on from a state.

        Raises
        ------
        TypeError
            If the state is of another family.
        """
        if not isinstance(pre_trained, _Deep):
            raise TypeError(f"{type(pre_trained).__name__} is no deep learner")
        (arm,) = arms
        return _Deep(pre_trained.learner.continued(self._with(arm.objective, arm.rate)))

    def _with(self, objective: Objective, rate: float) -> DeepSettings:
        given = objective.model_dump(include=set(Objective.model_fields))
        given["embedding_rate"] = rate * self.settings.embedding_rate
        given["dense_rate"] = rate * self.settings.dense_rate
        return self.settings.model_copy(update=given)


@dataclass(frozen=True)
class _Deep:
    """A wide & deep learner as the only arm of a :class:`.prequential.BenchLearner`."""

    learner: WideDeep

    def learn(
        self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray, outcomes: np.ndarray
    ) -> None:
        self.learner.learn(slots, labels, weights, outcomes)

    def logits(self, slots: np.ndarray) -> np.ndarray:
        return self.learner.logits(slots)[:, None]
