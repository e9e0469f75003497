"""The FTRL learner as a family of the benchmark: all objectives that share rows side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.monitoring.late_labels.arms import LOG_LOSS, Arm
from ad_pipeline.monitoring.late_labels.prequential import BenchLearner
from ad_pipeline.settings import Configuration, Objective


@dataclass(frozen=True)
class LinearLearners:
    """Makes FTRL learners; see :class:`.prequential.Learners`.

    Attributes
    ----------
    configuration : Configuration
        Rates and penalties of all; its objective is not read.
    bits : int
        2^bits slots.
    horizon_days : float
        Window and lateness of the goal.
    side_by_side : int
        Objectives that one learner takes: more share a walk of memory, and take more of it.
    """

    configuration: Configuration
    bits: int
    horizon_days: float
    side_by_side: int = 8
    name: str = "linear"

    def fresh(self, seed: int) -> BenchLearner:
        """Return an untrained learner with log loss; the seed changes nothing here."""
        plain = self._with(LOG_LOSS, 1.0)
        # float64: its sums are not rounded at random, so an arm is the same beside any others.
        return FTRLExpert(self.bits, (plain,), "float64", self.horizon_days)

    def continued(self, pre_trained: BenchLearner, arms: Sequence[Arm], seed: int) -> BenchLearner:
        """Return a learner of the arms' objectives and rates that goes on from a state.

        Raises
        ------
        TypeError
            If the state is of another family.
        """
        if not isinstance(pre_trained, FTRLExpert):
            raise TypeError(f"{type(pre_trained).__name__} is no linear learner")
        return pre_trained.continued([self._with(arm.objective, arm.rate) for arm in arms])

    def _with(self, objective: Objective, rate: float) -> Configuration:
        given = objective.model_dump(include=set(Objective.model_fields))
        given["alpha"] = rate * self.configuration.alpha
        return self.configuration.model_copy(update=given)
