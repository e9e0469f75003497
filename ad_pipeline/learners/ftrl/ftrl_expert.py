"""FTRL-Proximal with its state: many configurations, a clock that forgets, arrays to save.

The arithmetic is in :mod:`.ftrl_kernel`; this module owns the arrays it works on, checks what is
handed to it, and moves the clock. It hashes nothing and knows no hours, tables or River.

**The clock.** With a half-life H, what was learnt t ago counts 2^(-t / H). Instead of shrinking the
state, the scale c = 2^(t / H) of what is learnt now grows (see the kernel). Once c reaches 2^16, a
power of two is taken out of it and of the state: exact in floating point, so neither the moment nor
the number of such rescalings shows in any weight.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numba import njit

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.learners.ftrl.slot_memory import aligned_zeros
from ad_pipeline.settings import Configuration, DelayedLoss, LinkedLoss

Arrays = dict[str, np.ndarray]
Manifest = dict[str, Any]

HEADS: Mapping[LinkedLoss | DelayedLoss, tuple[int, ...]] = {
    "logistic": (kernel.LOGISTIC,),
    "probit": (kernel.PROBIT,),
    "cloglog": (kernel.CLOGLOG,),
    "squared": (kernel.SQUARED,),
    "poisson": (kernel.POISSON,),
    "positive_unlabelled": (kernel.POSITIVE_UNLABELLED,),
    "fake_negative_weighted": (kernel.FAKE_NEGATIVE_WEIGHTED,),
    "fake_negative_weighted_rn": (kernel.FAKE_NEGATIVE_WEIGHTED_RN,),
    "fake_negative_calibrated": (kernel.FAKE_NEGATIVE_CALIBRATED,),
    "fake_negative_calibrated_rn": (kernel.FAKE_NEGATIVE_CALIBRATED_RN,),
    "es_dfm": (kernel.ES_DFM,),
    "es_dfm_rn": (kernel.ES_DFM_RN,),
    "defer": (kernel.DEFER,),
    "defuse": (kernel.DEFUSE,),
    "bi_defuse": (kernel.IN_WINDOW, kernel.OUT_OF_WINDOW),
    "fsiw": (kernel.FSIW,),
    "ulc": (kernel.ULC,),
    "hazard": (kernel.FAKE_NEGATIVE_WEIGHTED,),
    "delayed_feedback": (kernel.DELAYED_FEEDBACK, kernel.DELAYED_FEEDBACK_RATE),
}
"""The kernel's losses of each head of a loss, the one that speaks first."""

_NUMBERS = ("squared", "poisson")
"""Losses of labels that need not be 0 or 1."""

RESCALE_DOUBLINGS = 16
"""Doublings of the scale before they are taken out: far from the ends of float32."""


@dataclass(frozen=True)
class LinearWeights:
    """A linear expert as the scorer needs it.

    Attributes
    ----------
    weights : ndarray of shape (2**bits,), float32 or float64
    intercept : float
    loss : str
        What it was trained for, with its link: the score is a log odds only under ``logistic``.
    partner : LinearWeights or None
        The second head of a loss that has two.
    horizon_days : float
        Window and lateness of the goal, for a loss whose link reads them.
    """

    weights: np.ndarray
    intercept: float
    loss: LinkedLoss | DelayedLoss = "logistic"
    partner: "LinearWeights | None" = None
    horizon_days: float = 0.0

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return the log odds of rows of slots, uint32 (n, F) below 2**bits; float64 (n,)."""
        out = np.empty(len(slots))
        kernel.linear_logits(self.weights, slots, out, self.intercept)
        partner = None if self.partner is None else self.partner.logits(slots)
        link(self.loss, out, partner, self.horizon_days)
        return out


def link(
    loss: LinkedLoss | DelayedLoss,
    scores: np.ndarray,
    partner: np.ndarray | None = None,
    horizon_days: float = 0.0,
) -> None:
    """Replace the scores of a loss's first head, float64 (n,), by the log odds of the label.

    Parameters
    ----------
    loss : str
    scores : ndarray of shape (n,), float64
    partner : ndarray of shape (n,), float64, optional
        Scores of the second head, for a loss that has two.
    horizon_days : float
        Window and lateness, for a loss whose link reads them.
    """
    if loss != "logistic":
        others = np.empty(0) if partner is None else partner
        kernel.to_log_odds(HEADS[loss][0], scores, others, horizon_days)


class _Table:
    """The state of the configurations that share a number of slots.

    ``places`` names the configuration of each lane; one with two heads has two lanes side by side,
    and ``first`` are the lanes that speak.
    """

    def __init__(self, bits: int, places: Sequence[int], remembers: bool, dtype: str) -> None:
        self.bits = bits
        self.places = list(places)
        self.first = [at for at, place in enumerate(places) if place not in self.places[:at]]
        count = len(places)
        self.lanes = (0.0,) * count
        self.state = aligned_zeros((1 << bits, 2, count), dtype)
        self.momenta = np.zeros((1 << bits if remembers else 0, count), dtype=dtype)
        self.parameters: np.ndarray | None = None


class FTRLExpert:
    """FTRL-Proximal over hashed slots (McMahan et al., KDD 2013, Algorithm 1).

    Parameters
    ----------
    bits : int
        2^bits slots. A configuration with fewer has the highest bits of the same slots.
    configurations : sequence of Configuration
        Learnt side by side from the same rows; each as if it were alone, to the bit.
    dtype : str
        Of the state: ``"float64"``, or ``"float32"`` for half the memory, rounded without bias.
    horizon_days : float
        Window and lateness of the goal, for losses of delays.

    Raises
    ------
    ValueError
        If a configuration cannot be learnt with so many slots.
    """

    kind = "ftrl"

    def __init__(
        self,
        bits: int = 20,
        configurations: Sequence[Configuration] = (Configuration(),),
        dtype: str = "float64",
        horizon_days: float = 0.0,
    ) -> None:
        if not 1 <= bits <= 30:
            raise ValueError(f"bits is {bits}; write a whole number from 1 to 30")
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {dtype!r}; write 'float32' or 'float64'")
        if not configurations:
            raise ValueError("there is no configuration to learn")
        self.bits = bits
        self.configurations = tuple(configurations)
        self.dtype = dtype
        self.horizon_days = horizon_days
        self.rows = 0
        count = len(self.configurations)
        self._elapsed_us = [0] * count
        self._doublings = [0] * count
        self._taken_out = [0] * count
        self._frozen = [False] * count
        widths = [bits if each.bits is None else each.bits for each in self.configurations]
        if max(widths) > bits:
            raise ValueError(f"a configuration has {max(widths)} bits; there are only {bits}")
        self._tables: list[_Table] = []
        for width in sorted(set(widths), reverse=True):
            places = [
                place
                for place in range(count)
                if widths[place] == width
                for _ in HEADS[self.configurations[place].loss]
            ]
            remembers = any(self.configurations[place].schedule == "adam" for place in places)
            self._tables.append(_Table(width, places, remembers, dtype))
        self._accounts = [
            np.array([0.0 if self.configurations[at].non_negative else -1.0 for at in table.places])
            for table in self._tables
        ]
        self._come_late = any(each.comes_late for each in self.configurations)

    @property
    def width(self) -> int:
        """Configurations, K."""
        return len(self.configurations)

    def learn(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        outcomes: np.ndarray | None = None,
    ) -> np.ndarray:
        """Learn rows in order; see :meth:`predict_then_learn`."""
        return self.predict_then_learn(slots, labels, weights, outcomes=outcomes)

    def predict_then_learn(
        self,
        slots: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        values: np.ndarray | None = None,
        outcomes: np.ndarray | None = None,
    ) -> np.ndarray:
        """Learn rows in order and return each one's log odds from before its own update.

        Parameters
        ----------
        slots : ndarray of shape (n, F), uint32
        labels : ndarray of shape (n,), 0 or 1
            Any number under the squared loss, any of at least 0 under Poisson.
        weights : ndarray of shape (n,) or (n, K), optional
            Factor on the gradient, for all configurations or for each. All 1 if left out; a row of
            weight 0 is predicted only.
        values : ndarray of shape (n, F), optional
            All 1 if left out.
        outcomes : ndarray of shape (n, N_OUTCOMES), float64, optional
            What losses of labels that come late ask for beside the label: the kernel's columns. If
            left out, positives are never late and every negative is real.

        Returns
        -------
        ndarray of shape (n, K), float64

        Raises
        ------
        ValueError
            If shapes disagree, a slot is out of range, a label is not one of the loss, or a weight
            or a value is not finite (one NaN would spread to every slot it meets).
        """
        slots = kernel.checked_slots(slots, 1 << self.bits)
        rows = len(slots)
        targets = self._checked_labels(labels, rows)
        factors = self._checked_weights(weights, rows)
        given = _checked_values(values, slots)
        told = self._checked_outcomes(outcomes, rows)
        out = np.empty((rows, len(self.configurations)))
        for table, account in zip(self._tables, self._accounts, strict=True):
            whole = table.places == [*range(len(self.configurations))]
            found = out if whole else np.empty((rows, len(table.places)))
            kernel.learn(
                table.state,
                table.momenta,
                self._slots_of(table, slots),
                given,
                targets,
                factors if whole or factors.shape[1] == 1 else factors[:, table.places].copy(),
                told,
                self._parameters(table),
                account,
                self.rows,
                table.lanes,
                found,
            )
            if not whole:
                self._spread(table, found, out)
        self.rows += rows
        return out

    def logits(self, slots: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return log odds, float64 (n, K), changing nothing; see :meth:`predict_then_learn`."""
        return self._predicted(slots, values, uncertain=False)[0]

    def row_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return state, momenta and parameters for the kernel's functions of one row.

        For a caller who takes rows one at a time under the only configuration, makes their slots
        himself, checks their labels and weights, and counts them in :attr:`rows`.
        """
        (table,) = self._tables
        parameters = table.parameters
        return (
            table.state,
            table.momenta,
            self._parameters(table) if parameters is None else parameters,
        )

    def uncertainty(self, slots: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return how far one more observation could move each score, float64 (n, K).

        ``u(x) = sum_i |x_i| / ((beta + √n_i) / alpha + l2)``: large where slots are young.

        References
        ----------
        McMahan et al., KDD 2013, section 7.
        """
        return self._predicted(slots, values, uncertain=True)[1]

    def _predicted(
        self, slots: np.ndarray, values: np.ndarray | None, *, uncertain: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        slots = kernel.checked_slots(slots, 1 << self.bits)
        given = _checked_values(values, slots)
        rows, count = len(slots), len(self.configurations)
        logits, widths = np.empty((rows, count)), np.empty((rows if uncertain else 0, count))
        for table in self._tables:
            whole = table.places == [*range(count)]
            found = logits if whole else np.empty((rows, len(table.places)))
            doubt = widths if whole else np.empty((len(widths), len(table.places)))
            kernel.predict(
                table.state,
                self._slots_of(table, slots),
                given,
                self._parameters(table),
                table.lanes,
                found,
                doubt,
            )
            if not whole:
                self._spread(table, found, logits)
                if uncertain:
                    self._spread(table, doubt, widths)
        return logits, widths

    @staticmethod
    def _spread(table: _Table, found: np.ndarray, out: np.ndarray) -> None:
        """Write what the lanes that speak say, (n, lanes), into the columns of (n, K)."""
        out[:, [table.places[lane] for lane in table.first]] = found[:, table.first]

    def advance(self, elapsed_us: int | Sequence[int]) -> None:
        """Let time pass: what was learnt so far counts for less, by each half-life.

        Parameters
        ----------
        elapsed_us : int, or a sequence of K
            Microseconds of log time since the last call; for all configurations, or for each.
        """
        each = [elapsed_us] * len(self._elapsed_us) if isinstance(elapsed_us, int) else elapsed_us
        if len(each) != len(self._elapsed_us) or min(each) < 0:
            raise ValueError(f"time passes forwards, for all or for each: {elapsed_us}")
        for place, microseconds in enumerate(each):
            if self.configurations[place].half_life_hours is not None:
                self._elapsed_us[place] += microseconds
        self._take_out_doublings()

    def raise_rate(self, configuration: int, doublings: int) -> None:
        """Let what was learnt so far count 2^-doublings, so that new rows move weights more."""
        if doublings < 0:
            raise ValueError(f"{doublings} doublings; a rate falls by itself")
        self._doublings[configuration] += doublings
        self._take_out_doublings()

    def freeze(self, configuration: int, frozen: bool) -> None:
        """Predict without learning under one configuration, until it is thawed."""
        self._frozen[configuration] = frozen
        self._forget_parameters()

    def rate(self, configuration: int) -> float:
        """Return by how many doublings the clock has raised the rate, as a float."""
        whole, part = self._growth(configuration)
        return whole + self._taken_out[configuration] + part

    def linear_weights(self, configuration: int = 0) -> LinearWeights:
        """Return the dense weights of a configuration, exactly 0 where ``|z| <= l1``.

        One with fewer bits is spread over all the slots that share one of its own.
        """
        table, place = self._table_of(configuration)
        loss = self.configurations[configuration].loss
        first, *others = (
            np.repeat(
                kernel.weights(table.state, self._parameters(table), place + head),
                1 << (self.bits - table.bits),
            )
            for head in range(len(HEADS[loss]))
        )
        partner = LinearWeights(others[0], 0.0) if others else None
        return LinearWeights(first, 0.0, loss, partner, self.horizon_days)

    def accumulated(self, configuration: int, slots: np.ndarray) -> np.ndarray:
        """Return n of some slots, the squared gradients they have met, float64; 0 if not admitted.

        Parameters
        ----------
        configuration : int
        slots : ndarray of shape (m,), uint32
        """
        table, place = self._table_of(configuration)
        root = table.state[slots >> np.uint32(self.bits - table.bits), 1, place].astype(np.float64)
        scale = self._parameters(table)[place, kernel.SCALE]
        return np.square(np.maximum(root, 0.0) / scale)

    def state(self) -> tuple[Arrays, Manifest]:
        """Return the touched slots with their state, and everything else as JSON.

        An untouched slot is all zeros and is not stored: a checkpoint is as large as what was
        learnt, not as the table.
        """
        arrays: Arrays = {}
        for table in self._tables:
            touched = _touched(table.state)
            name = _suffix(table.bits, self.bits)
            arrays[f"slots{name}"] = touched
            arrays[f"z_sqrt_n{name}"] = table.state[touched]
            if len(table.momenta):
                arrays[f"momenta{name}"] = table.momenta[touched]
        manifest = {
            "expert": self.kind,
            "bits": self.bits,
            "dtype": self.dtype,
            "rows": self.rows,
            "configurations": [each.model_dump(mode="json") for each in self.configurations],
            "elapsed_us": list(self._elapsed_us),
            "doublings": list(self._doublings),
            "taken_out": list(self._taken_out),
            "frozen": list(self._frozen),
            "horizon_days": self.horizon_days,
            "accounts": [account.tolist() for account in self._accounts],
        }
        return arrays, manifest

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], manifest: Manifest) -> Self:
        """Return the expert of a :meth:`state`."""
        configurations = [Configuration(**each) for each in manifest["configurations"]]
        expert = cls(manifest["bits"], configurations, manifest["dtype"], manifest["horizon_days"])
        expert.rows = manifest["rows"]
        expert._elapsed_us = list(manifest["elapsed_us"])
        expert._doublings = list(manifest["doublings"])
        expert._taken_out = list(manifest["taken_out"])
        expert._frozen = list(manifest["frozen"])
        expert._accounts = [np.array(account) for account in manifest["accounts"]]
        for table in expert._tables:
            name = _suffix(table.bits, expert.bits)
            touched = arrays[f"slots{name}"]
            table.state[touched] = arrays[f"z_sqrt_n{name}"]
            if len(table.momenta):
                table.momenta[touched] = arrays[f"momenta{name}"]
        return expert

    def continued(self, configurations: Sequence[Configuration]) -> Self:
        """Return a learner of other configurations, each beginning where the only one stands.

        What it weighs is what this one weighs, also at other rates or penalties. A second head
        begins untrained: what the first has learnt is no start for it.

        Parameters
        ----------
        configurations : sequence of Configuration
            With as many bits as this learner.

        Raises
        ------
        ValueError
            If there are several configurations to begin with, or some have fewer bits.
        """
        if len(self.configurations) != 1 or any(each.bits for each in configurations):
            raise ValueError("one configuration of all bits can be continued, by others of them")
        other = type(self)(self.bits, configurations, self.dtype, self.horizon_days)
        other.rows = self.rows
        (own,), (table,) = self._tables, other._tables
        before, after = self._parameters(own)[0].copy(), other._parameters(table)
        scale = before[kernel.SCALE]
        before[[kernel.BETA, kernel.L1, kernel.SCALE]] /= scale
        held = own.state[:, :, 0] / scale
        for lane in table.first:
            table.state[:, :, lane] = _restated(held, before, after[lane])
        return other

    def _table_of(self, configuration: int) -> tuple[_Table, int]:
        for table in self._tables:
            if configuration in table.places:
                return table, table.places.index(configuration)
        raise IndexError(f"no configuration {configuration}; there are {len(self.configurations)}")

    def _slots_of(self, table: _Table, slots: np.ndarray) -> np.ndarray:
        # A slot is the highest bits of a hash, so fewer bits are the highest of those.
        return slots if table.bits == self.bits else slots >> np.uint32(self.bits - table.bits)

    def _growth(self, configuration: int) -> tuple[int, float]:
        """Return the doublings in the scale, whole ones and a part of one."""
        whole, part = self._doublings[configuration] - self._taken_out[configuration], 0.0
        hours = self.configurations[configuration].half_life_hours
        if hours is not None:
            half_life_us = max(round(hours * HOUR_US), 1)
            passed, rest = divmod(self._elapsed_us[configuration], half_life_us)
            whole, part = whole + passed, rest / half_life_us
        return whole, part

    def _take_out_doublings(self) -> None:
        self._forget_parameters()
        for table in self._tables:
            for column, place in enumerate(table.places):
                spare = self._growth(place)[0] // RESCALE_DOUBLINGS * RESCALE_DOUBLINGS
                if spare > 0 and column in table.first:
                    factor = math.ldexp(1.0, -spare)
                    for head in range(len(HEADS[self.configurations[place].loss])):
                        kernel.rescale(table.state, table.momenta, column + head, factor)
                    self._taken_out[place] += spare

    def _parameters(self, table: _Table) -> np.ndarray:
        """Return the kernel's parameters of a table's configurations, scaled by their clocks.

        They are made once and kept until a clock moves or a configuration is frozen.
        """
        if table.parameters is not None:
            return table.parameters
        found = np.zeros((len(table.places), kernel.N_PARAMETERS))
        for lane, (row, place) in enumerate(zip(found, table.places, strict=True)):
            each = self.configurations[place]
            first = table.places.index(place)
            heads = HEADS[each.loss]
            whole, part = self._growth(place)
            scale = math.ldexp(2.0**part, whole)
            row[kernel.ALPHA] = each.alpha
            row[kernel.BETA] = scale * (each.beta + each.alpha * each.l2)
            row[kernel.L1] = scale * each.l1
            row[kernel.SCALE] = scale
            row[kernel.FORGETTING] = 0.0 if each.schedule == "adagrad" else each.forgetting
            row[kernel.MOMENTUM] = each.momentum if each.schedule == "adam" else 0.0
            row[kernel.ADMISSION_COUNT] = each.admission_count if each.admission == "count" else 1
            row[kernel.ADMISSION_SHARE] = (
                each.admission_probability if each.admission == "poisson" else 1.0
            )
            row[kernel.LOSS] = heads[lane - first]
            row[kernel.PARTNER] = first + (lane - first + 1) % len(heads)
            row[kernel.HORIZON] = self.horizon_days
            row[kernel.LEARNING] = 0.0 if self._frozen[place] else 1.0
        table.parameters = found
        return found

    def _forget_parameters(self) -> None:
        for table in self._tables:
            table.parameters = None

    def _checked_labels(self, labels: np.ndarray, rows: int) -> np.ndarray:
        targets = np.ascontiguousarray(labels, dtype=np.float64)
        if targets.shape != (rows,):
            raise ValueError(f"labels must be {rows} numbers, shape ({rows},)")
        losses = {each.loss for each in self.configurations}
        if not losses <= set(_NUMBERS) and not ((targets == 0.0) | (targets == 1.0)).all():
            raise ValueError(f"labels must be {rows} zeros and ones, shape ({rows},)")
        if not np.isfinite(targets).all() or ("poisson" in losses and (targets < 0).any()):
            raise ValueError("labels must be finite, and counts at least 0")
        return targets

    def _checked_outcomes(self, outcomes: np.ndarray | None, rows: int) -> np.ndarray:
        if not self._come_late:
            return kernel.NO_OUTCOMES
        if outcomes is None or not outcomes.size:
            told = np.zeros((rows, kernel.N_OUTCOMES))
            told[:, kernel.REAL_NEGATIVE] = 1.0
            return told
        told = np.ascontiguousarray(outcomes, dtype=np.float64)
        if told.shape != (rows, kernel.N_OUTCOMES) or not np.isfinite(told).all():
            raise ValueError(
                f"outcomes must be finite numbers of shape {(rows, kernel.N_OUTCOMES)}, not "
                f"{told.shape}"
            )
        return told

    def _checked_weights(self, weights: np.ndarray | None, rows: int) -> np.ndarray:
        if weights is None:
            return np.ones((rows, 1))
        factors = np.ascontiguousarray(weights, np.float64)
        factors = factors[:, np.newaxis] if factors.ndim == 1 else factors
        if factors.shape not in ((rows, 1), (rows, len(self.configurations))):
            raise ValueError(
                f"weights must be {rows} numbers, or {len(self.configurations)} for each row"
            )
        if not np.isfinite(factors).all() or (factors < 0).any():
            raise ValueError(f"weights must be {rows} finite numbers of at least 0")
        return factors


def _restated(held: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return z and √n, (n_slots, 2), that weigh under other parameters what these weigh now.

    The weight is derived from z with alpha, beta and l1: at others the same z would be another
    model.
    """
    given = [kernel.ALPHA, kernel.BETA, kernel.L1]
    if np.array_equal(before[given], after[given]):
        return held
    (alpha, beta, l1), (to_alpha, to_beta, to_l1) = before[given], after[given]
    z, root = held[:, 0], held[:, 1]
    beyond = np.abs(z) - l1
    kept = to_l1 + beyond * (alpha * (to_beta + root)) / (to_alpha * (beta + root))
    inside = np.abs(z) * (to_l1 / l1 if l1 > 0 else 0.0)
    admitted = root > 0
    restated = held.copy()
    restated[admitted, 0] = (np.sign(z) * np.where(beyond > 0, kept, inside))[admitted]
    return restated


def _suffix(bits: int, most: int) -> str:
    return "" if bits == most else f"_{bits}_bits"


def _checked_values(values: np.ndarray | None, slots: np.ndarray) -> np.ndarray:
    if values is None or not len(slots):
        return kernel.NO_VALUES
    checked = np.ascontiguousarray(values, dtype=np.float64)
    if checked.shape != slots.shape or not np.isfinite(checked).all():
        raise ValueError(
            f"values must be finite numbers of shape {slots.shape}, not {checked.shape}; write a "
            "missing value as 0"
        )
    return checked


@njit(cache=True, nogil=True)
def _touched(state: np.ndarray) -> np.ndarray:
    """Return the slots whose state is not all zeros, ascending, uint32."""
    found = np.empty(state.shape[0], dtype=np.uint32)
    count = 0
    for slot in range(state.shape[0]):
        for k in range(state.shape[2]):
            if state[slot, 0, k] != 0 or state[slot, 1, k] != 0:
                found[count] = slot
                count += 1
                break
    return found[:count].copy()
