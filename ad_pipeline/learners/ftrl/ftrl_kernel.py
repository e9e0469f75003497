"""FTRL-Proximal over hashed slots, compiled, for many configurations in one walk of memory.

The arithmetic of the online learner and nothing else: no hashing, no River protocol, no files. It
imports only NumPy and Numba, so that a scorer can use :func:`linear_logits` without the training
stack. How memory is moved is :mod:`.slot_memory`.

State is one array of shape ``(2**bits, 2, K)``, float32 or float64: z and √n of a slot under each
of K configurations. The weight is derived, never stored, so it cannot fall out of step with z.
Nothing mixes two configurations and no order depends on K, so each is what it would be alone, to
the bit; neither ``fastmath`` nor threads are used: the same rows give the same bytes.

**Float32 without drift.** Arithmetic is of the state's dtype; logits and slopes are float64. In
float32 a gradient much smaller than z, or its square than n, would be lost by rounding, every time;
here sums are rounded at random in proportion (:func:`.slot_memory.unbiased_sum`), by a hash of the
row's position in the stream and the feature's in the row, so that the mean is exact and a re-run
gives the same bytes.

**Forgetting.** The state is held multiplied by a scale c >= 1 that grows as time passes, instead of
being shrunk everywhere: with gradients, l1, l2 and beta multiplied by c, every formula keeps its
form, and c costs nothing per feature. :mod:`.ftrl_expert` moves c and takes powers of two out.

**Admission.** A slot that is not admitted yet has z = 0 and, in place of √n, minus the number of
its visits: a counting filter with one hash function, whose cells are the slots themselves.

**Labels that come late.** Their losses weigh the events of a row's stream, by the formulas of
:mod:`ad_pipeline.learners.delayed.losses`. Some need two heads, which are two lanes side by side:
the scores of both are known before either slope is.

**Two features of a row in one slot.** Their values add in the logit, as the hashing trick says.
In the update each is a visit of its own, and all visits see the weight that made the prediction:
z receives the same gradient sum as Algorithm 1 on the added value, n receives the sum of the
squared gradients (Algorithm 1 on the added value would take the square of the sum). Finding such
pairs beforehand would cost a comparison of every pair of features of every row, to change the step
of slots that are already in collision.

References
----------
McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, Algorithm 1 and sections
3.2 (memory), 4.5 (many models), 7 (confidence). Tieleman and Hinton, RMSProp, 2012. Kingma and Ba,
Adam, ICLR 2015.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from ad_pipeline.learners.delayed import losses as late
from ad_pipeline.learners.ftrl.slot_memory import (
    WIDTH,
    gather,
    prefetch,
    repeat,
    scatter,
    sum_lanes,
    unbiased_sum,
    whole_slots,
)

FloatArray = np.ndarray
"""Arrays of float32 or float64; each docstring says which."""

NO_VALUES: np.ndarray = np.empty((0, 0), dtype=np.float64)
"""Pass as ``values`` when every feature has the value 1."""

NO_OUTCOMES: np.ndarray = np.empty((0, 0), dtype=np.float64)
"""Pass as ``outcomes`` when no loss is for labels that come late."""

# Columns of `outcomes`: what a row of the stream tells beside its label.
LATE = 0  # 1: positive by an arrival after the first emission
CONFIRMED = 1  # 1: at maturity
LATENESS = 2  # P(arrives after the window | y = 1, x), by the model in force
REAL_NEGATIVE = 3  # P(y = 0 | not positive by the window, x), the same
WAITED = 4  # days: the observation window
DELAY = 5  # days from the anchor to the arrival; 0 without one
N_OUTCOMES = 6

ROWS_AHEAD = 3
"""Rows between the one whose slots are fetched into the cache and the one that is learnt."""

_ROWS_HELD = 4
"""More than :data:`ROWS_AHEAD`."""

# Columns of `parameters`, one row a configuration. Those marked c are multiplied by the scale.
ALPHA = 0
BETA = 1  # c: beta + alpha l2
L1 = 2  # c
SCALE = 3  # c itself
FORGETTING = 4  # share of n that is forgotten at a visit
MOMENTUM = 5  # share of the last step's direction that goes on
ADMISSION_COUNT = 6  # visits up to and with the one that admits
ADMISSION_SHARE = 7  # probability with which one more visit admits
LOSS = 8
LEARNING = 9  # 0 freezes the configuration, else 1
PARTNER = 10  # lane of the other head; its own if there is one head
HORIZON = 11  # days: window + lateness, of a head that tells of delays
N_PARAMETERS = 12

# Losses with their links.
LOGISTIC = 0
PROBIT = 1
CLOGLOG = 2
SQUARED = 3
POISSON = 4

# Losses of labels that come late; all have the logistic link but where `log_odds_of_heads` says so.
POSITIVE_UNLABELLED = 5
FAKE_NEGATIVE_WEIGHTED = 6
FAKE_NEGATIVE_WEIGHTED_RN = 7
FAKE_NEGATIVE_CALIBRATED = 8
FAKE_NEGATIVE_CALIBRATED_RN = 9
ES_DFM = 10
ES_DFM_RN = 11
DEFER = 12
DEFUSE = 13
FSIW = 14
ULC = 15
IN_WINDOW = 16
OUT_OF_WINDOW = 17
DELAYED_FEEDBACK = 18
DELAYED_FEEDBACK_RATE = 19

_ROOT_HALF = math.sqrt(0.5)
_ROOT_TWO_OVER_PI = math.sqrt(2.0 / math.pi)
_FAR = 35.0
"""Beyond it erfc underflows, and its asymptote is exact to the last digit that matters here."""
_EDGE = 1e-9
"""Predictions of the squared loss are taken for probabilities from here to one less this."""


@njit(cache=True, nogil=True, error_model="numpy")
def _hazard(score: float) -> float:
    """Return phi(s) / Phi(s), the slope of log Phi."""
    if score < -_FAR:
        return -score - 1.0 / score
    return _ROOT_TWO_OVER_PI * math.exp(-0.5 * score * score) / math.erfc(-score * _ROOT_HALF)


@njit(cache=True, nogil=True, error_model="numpy")
def _log_cdf(score: float) -> float:
    """Return log Phi(s)."""
    if score < -_FAR:
        return -0.5 * score * score - math.log(-score) - 0.5 * math.log(2.0 * math.pi)
    return math.log(0.5 * math.erfc(-score * _ROOT_HALF))


@njit(cache=True, nogil=True, error_model="numpy")
def slope(loss: int, score: float, label: float) -> float:
    """Return the derivative of a row's loss by its score.

    Parameters
    ----------
    loss : int
        Of this module's codes.
    score : float
        Sum of weights and values.
    label : float
        0 or 1; any number for the squared loss, any of at least 0 for Poisson.
    """
    if loss == LOGISTIC:
        return 1.0 / (1.0 + math.exp(-score)) - label
    if loss == PROBIT:
        return (1.0 - label) * _hazard(-score) - label * _hazard(score)
    if loss == SQUARED:
        return score - label
    rate = math.exp(min(score, 30.0))
    if loss == POISSON:
        return rate - label
    # As the rate goes to 0, so does rate / (exp(rate) - 1) to 1.
    arrived = rate / math.expm1(rate) if rate > 0.0 else 1.0
    return (1.0 - label) * rate - label * arrived


@njit(cache=True, nogil=True, error_model="numpy")
def log_odds(loss: int, score: float) -> float:
    """Return the log odds of at least one event that a score stands for under its link."""
    if loss == LOGISTIC:
        return score
    if loss == PROBIT:
        return _log_cdf(score) - _log_cdf(-score)
    if loss == SQUARED:
        p = min(max(score, _EDGE), 1.0 - _EDGE)
        return math.log(p / (1.0 - p))
    if score < -30.0:
        return score
    rate = math.exp(min(score, 30.0))
    return rate if rate > 30.0 else math.log(math.expm1(rate))


@njit(cache=True, nogil=True, error_model="numpy")
def _coefficients(loss: int, event: late.Event) -> tuple[float, float]:
    """Return a and b of an event under a loss with one head, or of one head of Bi-DEFUSE."""
    if loss == POSITIVE_UNLABELLED:
        return late.positive_unlabelled(event)
    if loss == FAKE_NEGATIVE_WEIGHTED:
        return late.fake_negative_weighted(event)
    if loss == FAKE_NEGATIVE_WEIGHTED_RN:
        return late.fake_negative_weighted_rn(event)
    if loss == ES_DFM:
        return late.es_dfm(event)
    if loss == ES_DFM_RN:
        return late.es_dfm_rn(event)
    if loss == DEFER:
        return late.defer(event)
    if loss == DEFUSE:
        return late.defuse(event)
    if loss == FSIW:
        return late.fsiw(event)
    if loss == ULC:
        return late.ulc(event)
    if loss == IN_WINDOW:
        return late.in_window(event)
    if loss == OUT_OF_WINDOW:
        return late.out_of_window(event)
    return late.log_loss(event)


@njit(cache=True, nogil=True, error_model="numpy")
def rate_per_day(score: float) -> float:
    """Return the hazard that a score stands for, within its bounds."""
    low, high = late.RATES_PER_DAY
    return min(max(math.exp(min(score, 30.0)), low), high)


@njit(cache=True, nogil=True, error_model="numpy")
def late_slope(
    loss: int,
    score: float,
    partner: float,
    label: float,
    outcome: FloatArray,
    horizon: float,
    account: FloatArray,
    lane: int,
) -> float:
    """Return the slope of an event's loss by its score, for labels that come late.

    Parameters
    ----------
    loss : int
        Of this module's codes, from :data:`POSITIVE_UNLABELLED` on.
    score, partner : float
        Of the head, and of the other one.
    label : float
        0 or 1.
    outcome : ndarray of shape (N_OUTCOMES,), float64
    horizon : float
        Days.
    account : ndarray of shape (K,), float64
        What negatives have given and positives may take back, nats, by lane; negative without a
        clip, else updated in place.
    lane : int
    """
    f = 1.0 / (1.0 + math.exp(-score))
    q = 1.0 / (1.0 + math.exp(score))
    if loss in (DELAYED_FEEDBACK, DELAYED_FEEDBACK_RATE):
        rate = rate_per_day(partner if loss == DELAYED_FEEDBACK else score)
        if loss == DELAYED_FEEDBACK_RATE:
            f, q = 1.0 / (1.0 + math.exp(-partner)), 1.0 / (1.0 + math.exp(partner))
        told = late.Censored(
            label, outcome[LATE], outcome[CONFIRMED], outcome[WAITED], outcome[DELAY], horizon
        )
        by_score, by_log_rate = late.delayed_feedback_slopes(
            f, q, rate, told, math.exp(-rate * outcome[WAITED]), math.exp(-rate * horizon)
        )
        return by_score if loss == DELAYED_FEEDBACK else by_log_rate
    event = late.Event(f, q, label, outcome[LATE], outcome[LATENESS], outcome[REAL_NEGATIVE])
    a, b = _coefficients(loss, event)
    if loss == POSITIVE_UNLABELLED and account[lane] >= 0.0:
        given = max(score, 0.0) + math.log1p(math.exp(-abs(score)))  # -log(1 - f)
        account[lane] *= 1.0 - 1.0 / late.ACCOUNT_EVENTS
        if label == 0.0:
            account[lane] += given
        elif given <= account[lane]:
            account[lane] -= given
        else:
            b = 0.0
    return late.slope_of(a, b, f, q)


@njit(cache=True, nogil=True, error_model="numpy")
def log_odds_of_heads(loss: int, score: float, partner: float, horizon: float) -> float:
    """Return the log odds of the label under any loss; ``partner`` is the other head's score."""
    if loss < FAKE_NEGATIVE_CALIBRATED:
        return score if loss > POISSON else log_odds(loss, score)
    if loss == FAKE_NEGATIVE_CALIBRATED:  # p = f / (1 - f)
        return late.calibrated_log_odds(score)
    if loss == FAKE_NEGATIVE_CALIBRATED_RN:  # p = 2 f
        softplus = max(-score, 0.0) + math.log1p(math.exp(-abs(score)))
        return late.calibrated_log_odds(math.log(2.0) - softplus)
    if loss == IN_WINDOW:  # p = F_in + F_late
        both = 1.0 / (1.0 + math.exp(-score)) + 1.0 / (1.0 + math.exp(-partner))
        return late.calibrated_log_odds(math.log(both))
    if loss == DELAYED_FEEDBACK:  # p = f (1 - e^{-λH})
        softplus = max(-score, 0.0) + math.log1p(math.exp(-abs(score)))
        arrived = -math.expm1(-rate_per_day(partner) * horizon)
        return late.calibrated_log_odds(math.log(arrived) - softplus)
    return score


@njit(cache=True, nogil=True, error_model="numpy")
def _draw(position: int) -> Any:
    """Return 32 random bits of a row."""
    mixed = np.uint64(position) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.uint32(mixed >> np.uint64(32))


@njit(cache=True, nogil=True, error_model="numpy")
def _scrambled(row: Any, tag: Any) -> Any:
    """Return 32 random bits of a feature of a row."""
    # Numba widens a product of two uint32 to 64 bits, which would halve the vectors.
    bits = np.uint32(np.uint32(row ^ tag) * np.uint32(0x85EBCA6B))
    return np.uint32(bits ^ np.uint32(bits >> np.uint32(15)))


_ZERO = np.float32(0)
"""Constants of float32 leave float32 what it is, and are widened beside float64."""
_ONE = np.float32(1)
_TINY = np.float32(1e-30)
_NEVER = np.float32(2.0**30)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _weight(z, s, alpha, beta, l1):
    """Return the weight that a slot's z and √n stand for."""
    size = max(abs(z) - l1, _ZERO)
    return -math.copysign(size, z) * alpha / (beta + max(s, _ZERO))


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _visited(z, s, weight, g, direction, per_alpha, forgotten, count, bits):
    """Return z and √n of a slot after a visit with gradient ``g``.

    Both outcomes are computed and one is taken: the compiler makes vectors of that.
    """
    root = max(s, _ZERO)
    squared = g * g
    after = np.sqrt(root * root * (_ONE - forgotten) + squared)
    # As a quotient, since the difference of the roots would lose what it is about.
    step = (squared - root * root * forgotten) / max(after + root, _TINY)
    moved = direction - step * per_alpha * weight
    next_s = unbiased_sum(root, step, np.uint32(bits * np.uint32(0xC2B2AE35)))
    next_z = unbiased_sum(z, moved, np.uint32(bits * np.uint32(0x27D4EB2F)))
    admitted = (s > _ZERO) | (_ONE - s >= count)
    next_s = next_s if admitted else s - _ONE
    next_z = next_z if admitted else z
    visits = g != _ZERO
    return next_z if visits else z, next_s if visits else s


@njit(cache=True, nogil=True, error_model="numpy")
def _laid_out(parameters, column, padded, like):
    """Return a column of the parameters, once for every feature, in the dtype of ``like``."""
    count = parameters.shape[0]
    laid = np.empty(padded * count, dtype=like.dtype)
    for lane in range(padded * count):
        laid[lane] = parameters[lane % count, column]
    return laid


@njit(cache=True, nogil=True, error_model="numpy")
def _first_rows(slots, padded):
    """Return the slots of the first rows, padded, in a ring that later rows are copied into.

    They are copied when they are fetched, long before they are gathered: a wide read of what was
    written in pieces just before would wait for the pieces.
    """
    coming = np.zeros(_ROWS_HELD * padded, dtype=np.uint32)
    for row in range(min(ROWS_AHEAD, slots.shape[0])):
        for feature in range(slots.shape[1]):
            coming[row * padded + feature] = slots[row, feature]
    return coming


@njit(cache=True, nogil=True, error_model="numpy")
def learn(
    state: FloatArray,
    momenta: FloatArray,
    slots: np.ndarray,
    values: FloatArray,
    labels: np.ndarray,
    weights: FloatArray,
    outcomes: FloatArray,
    parameters: FloatArray,
    account: FloatArray,
    position: int,
    lanes: tuple[float, ...],
    out: FloatArray,
) -> None:
    """Predict, then learn, row by row in the given order.

    Parameters
    ----------
    state : ndarray of shape (2**bits, 2, K), float32 or float64
        z and √n by slot and configuration; updated in place.
    momenta : ndarray of shape (2**bits, K), of the state's dtype, or (0, K)
        The direction of each slot's last step; empty unless a configuration has momentum.
    slots : ndarray of shape (n, F), uint32
        Must be below ``2**bits``: nothing is checked here.
    values : ndarray of shape (n, F), or (0, 0) when every value is 1
    labels : ndarray of shape (n,), float64
    weights : ndarray of shape (n, 1) or (n, K), float64
        Factors on the gradient; 0 predicts the row without learning it.
    outcomes : ndarray of shape (n, N_OUTCOMES), float64, or (0, 0)
        What losses of labels that come late ask for; see the columns above.
    parameters : ndarray of shape (K, N_PARAMETERS), float64
        See the columns above.
    account : ndarray of shape (K,), float64
        See :func:`late_slope`; updated in place.
    position : int
        Rows of the stream before these: it enters the draws.
    lanes : tuple of K floats
        Only its length counts.
    out : ndarray of shape (n, K), float64
        Receives each row's log odds from before its own update.
    """
    n_rows, width = slots.shape
    count = len(lanes)
    padded = (width + WIDTH - 1) // WIDTH * WIDTH
    size = padded * count
    flat = state.reshape(-1)
    whole = whole_slots(flat, lanes)
    valued = values.shape[0] > 0
    remembered = momenta.shape[0] > 0
    come_late = outcomes.shape[0] > 0
    alpha = _laid_out(parameters, ALPHA, padded, flat)
    beta = _laid_out(parameters, BETA, padded, flat)
    l1 = _laid_out(parameters, L1, padded, flat)
    l1[width * count :] = np.inf  # the padding weighs nothing
    forgotten = _laid_out(parameters, FORGETTING, padded, flat)
    admitting = _laid_out(parameters, ADMISSION_COUNT, padded, flat)
    momentum = _laid_out(parameters, MOMENTUM, padded, flat)
    per_alpha = _ONE / alpha
    sampled = (parameters[:, ADMISSION_SHARE] < 1.0).any()
    tags = np.empty(size, dtype=np.uint32)
    for lane in range(size):
        tags[lane] = np.uint32(lane // count) * np.uint32(0x9E3779B9)
    coming = _first_rows(slots, padded)
    met_again = np.empty(padded, dtype=np.int64)
    gathered, computed = np.empty(padded, dtype=np.uint64), np.empty(padded, dtype=np.uint64)
    z, s = np.zeros_like(alpha), np.zeros_like(alpha)
    next_z, next_s = np.zeros_like(alpha), np.zeros_like(alpha)
    slot_weights, gradients = np.zeros_like(alpha), np.zeros_like(alpha)
    directions = np.zeros_like(alpha) if remembered else gradients
    terms = np.zeros(size)
    scores = np.empty(count)
    slopes = np.empty(count, dtype=flat.dtype)
    for row in range(n_rows):
        ahead = row + ROWS_AHEAD
        if ahead < n_rows:
            for feature in range(width):
                prefetch(flat, slots[ahead, feature], lanes)
                coming[ahead % _ROWS_HELD * padded + feature] = slots[ahead, feature]
        here = row % _ROWS_HELD * padded
        gather(flat, coming, here, padded, z, s, lanes)
        for lane in range(size):
            slot_weights[lane] = _weight(z[lane], s[lane], alpha[lane], beta[lane], l1[lane])
        if valued:
            for feature in range(width):
                for k in range(count):
                    lane = feature * count + k
                    terms[lane] = np.float64(slot_weights[lane]) * values[row, feature]
            sum_lanes(terms, padded, scores, lanes)
        else:
            sum_lanes(slot_weights, padded, scores, lanes)
        learns = False
        for k in range(count):
            loss = int(parameters[k, LOSS])
            score = scores[k]
            factor = weights[row, k if weights.shape[1] > 1 else 0]
            factor *= parameters[k, SCALE] * parameters[k, LEARNING]
            if come_late and loss > POISSON:
                partner = scores[int(parameters[k, PARTNER])]
                horizon = parameters[k, HORIZON]
                out[row, k] = log_odds_of_heads(loss, score, partner, horizon)
                slopes[k] = 0.0
                if factor != 0.0:
                    slopes[k] = factor * late_slope(
                        loss, score, partner, labels[row], outcomes[row], horizon, account, k
                    )
            else:
                out[row, k] = log_odds(loss, score)
                slopes[k] = factor * slope(loss, score, labels[row]) if factor != 0.0 else 0.0
            learns |= slopes[k] != _ZERO
        if not learns:
            continue
        repeat(slopes, padded, gradients, lanes)
        if valued:
            for feature in range(width):
                for k in range(count):
                    gradients[feature * count + k] *= values[row, feature]
        bits = _draw(position + row)
        if sampled:
            for lane in range(width * count):
                share = parameters[lane % count, ADMISSION_SHARE]
                if share < 1.0:
                    drawn = np.uint32(_scrambled(bits, tags[lane]) * np.uint32(0x165667B1))
                    admitting[lane] = _ONE if drawn * 2.0**-32 < share else _NEVER
        if remembered:
            for lane in range(width * count):
                slot, k = coming[here + lane // count], lane % count
                kept = momentum[lane] * momenta[slot, k]
                directions[lane] = kept + (_ONE - momentum[lane]) * gradients[lane]
                if gradients[lane] != _ZERO:  # else no visit, as of a feature of value 0
                    momenta[slot, k] = directions[lane]
        for lane in range(size):
            next_z[lane], next_s[lane] = _visited(
                z[lane], s[lane], slot_weights[lane], gradients[lane], directions[lane],
                per_alpha[lane], forgotten[lane], admitting[lane], _scrambled(bits, tags[lane]),
            )  # fmt: skip
        left_out = scatter(
            whole, coming, here, width, z, s, next_z, next_s, gathered, computed, met_again, lanes
        )
        for place in range(left_out):
            feature = met_again[place]
            slot = coming[here + feature]
            for k in range(count):
                lane = feature * count + k
                state[slot, 0, k], state[slot, 1, k] = _visited(
                    state[slot, 0, k], state[slot, 1, k], slot_weights[lane], gradients[lane],
                    directions[lane], per_alpha[lane], forgotten[lane], admitting[lane],
                    _scrambled(bits, tags[lane]),
                )  # fmt: skip


@njit(cache=True, nogil=True, error_model="numpy")
def predict(
    state: FloatArray,
    slots: np.ndarray,
    values: FloatArray,
    parameters: FloatArray,
    lanes: tuple[float, ...],
    out: FloatArray,
    out_uncertainty: FloatArray,
) -> None:
    """Write the log odds of every row, and its uncertainty if asked; see :func:`learn`.

    Parameters
    ----------
    out_uncertainty : ndarray of shape (n, K) or (0, K), float64
        Receives the sum of ``|value| * rate`` over the features, with the learning rate that each
        slot would have now, l2 included: 1 / ((beta + √n) / alpha + l2). Times the largest
        gradient, it bounds by how much one more observation could move the score (section 7).
    """
    n_rows, width = slots.shape
    count = len(lanes)
    padded = (width + WIDTH - 1) // WIDTH * WIDTH
    size = padded * count
    flat = state.reshape(-1)
    valued = values.shape[0] > 0
    uncertain = out_uncertainty.shape[0] > 0
    alpha = _laid_out(parameters, ALPHA, padded, flat)
    beta = _laid_out(parameters, BETA, padded, flat)
    l1 = _laid_out(parameters, L1, padded, flat)
    l1[width * count :] = np.inf
    rate_scale = _laid_out(parameters, ALPHA, padded, flat)
    for lane in range(size):
        rate_scale[lane] *= parameters[lane % count, SCALE] if lane < width * count else 0.0
    coming = _first_rows(slots, padded)
    z, s = np.zeros_like(alpha), np.zeros_like(alpha)
    slot_weights, rates = np.zeros_like(alpha), np.zeros_like(alpha)
    terms = np.zeros(size)
    scores = np.empty(count)
    for row in range(n_rows):
        ahead = row + ROWS_AHEAD
        if ahead < n_rows:
            for feature in range(width):
                prefetch(flat, slots[ahead, feature], lanes)
                coming[ahead % _ROWS_HELD * padded + feature] = slots[ahead, feature]
        here = row % _ROWS_HELD * padded
        gather(flat, coming, here, padded, z, s, lanes)
        for lane in range(size):
            slot_weights[lane] = _weight(z[lane], s[lane], alpha[lane], beta[lane], l1[lane])
        if valued:
            for lane in range(width * count):
                terms[lane] = np.float64(slot_weights[lane]) * values[row, lane // count]
            sum_lanes(terms, padded, scores, lanes)
        else:
            sum_lanes(slot_weights, padded, scores, lanes)
        for k in range(count):
            partner = scores[int(parameters[k, PARTNER])]
            out[row, k] = log_odds_of_heads(
                int(parameters[k, LOSS]), scores[k], partner, parameters[k, HORIZON]
            )
        if uncertain:
            for lane in range(size):
                rates[lane] = rate_scale[lane] / (beta[lane] + max(s[lane], _ZERO))
            if valued:
                for lane in range(width * count):
                    terms[lane] = np.float64(rates[lane]) * abs(values[row, lane // count])
                sum_lanes(terms, padded, scores, lanes)
            else:
                sum_lanes(rates, padded, scores, lanes)
            for k in range(count):
                out_uncertainty[row, k] = scores[k]


@njit(cache=True, nogil=True, error_model="numpy")
def _row_score(state, slots, values, parameters, row_weights):
    """Return a row's score under the only configuration, and write the weights of its slots."""
    given = np.empty(3, dtype=state.dtype)
    given[0], given[1], given[2] = parameters[0, ALPHA], parameters[0, BETA], parameters[0, L1]
    sums = np.zeros(WIDTH)
    for feature in range(slots.shape[1]):
        slot = slots[0, feature]
        weight = _weight(state[slot, 0, 0], state[slot, 1, 0], given[0], given[1], given[2])
        row_weights[feature] = weight
        sums[feature % WIDTH] += np.float64(weight) * values[0, feature]
    # In the order of sum_lanes.
    even = (sums[0] + sums[4]) + (sums[2] + sums[6])
    return even + ((sums[1] + sums[5]) + (sums[3] + sums[7]))


@njit(cache=True, nogil=True, error_model="numpy")
def predict_row(
    state: FloatArray, slots: np.ndarray, values: FloatArray, parameters: FloatArray
) -> float:
    """Return what :func:`predict` writes for one row under one configuration.

    Nothing is laid out for a walk: for a single row that costs more than the row.
    """
    row_weights = np.empty(slots.shape[1], dtype=state.dtype)
    score = _row_score(state, slots, values, parameters, row_weights)
    return log_odds(int(parameters[0, LOSS]), score)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_row(
    state: FloatArray,
    momenta: FloatArray,
    slots: np.ndarray,
    values: FloatArray,
    label: float,
    weight: float,
    parameters: FloatArray,
    position: int,
) -> float:
    """Do what :func:`learn` does for one row under one configuration, to the bit; return its odds.

    Visits follow each other, so two features in one slot are nothing special.

    Parameters
    ----------
    slots, values : ndarrays of shape (1, F)
    label, weight : float
        See :func:`learn` for these and all others.
    """
    row_weights = np.empty(slots.shape[1], dtype=state.dtype)
    score = _row_score(state, slots, values, parameters, row_weights)
    given = np.empty(N_PARAMETERS, dtype=state.dtype)
    for column in range(N_PARAMETERS):
        given[column] = parameters[0, column]
    loss = int(parameters[0, LOSS])
    factor = weight * (parameters[0, SCALE] * parameters[0, LEARNING])
    row_slope = row_weights[:1].copy() if slots.shape[1] > 0 else given[:1].copy()
    row_slope[0] = factor * slope(loss, score, label) if factor != 0.0 else 0.0
    if row_slope[0] == _ZERO:
        return log_odds(loss, score)
    share = parameters[0, ADMISSION_SHARE]
    remembered = momenta.shape[0] > 0
    bits = _draw(position)
    moved = np.empty(2, dtype=state.dtype)
    per_alpha = _ONE / given[ALPHA]
    for feature in range(slots.shape[1]):
        slot = slots[0, feature]
        drawn_bits = _scrambled(bits, np.uint32(feature) * np.uint32(0x9E3779B9))
        admitting = given[ADMISSION_COUNT]
        if share < 1.0:
            drawn = np.uint32(drawn_bits * np.uint32(0x165667B1))
            admitting = _ONE if drawn * 2.0**-32 < share else _NEVER
        moved[0] = np.float64(row_slope[0]) * values[0, feature]  # in the state's dtype
        moved[1] = moved[0]
        if remembered:
            kept = given[MOMENTUM] * momenta[slot, 0]
            moved[1] = kept + (_ONE - given[MOMENTUM]) * moved[0]
            if moved[0] != _ZERO:
                momenta[slot, 0] = moved[1]
        state[slot, 0, 0], state[slot, 1, 0] = _visited(
            state[slot, 0, 0], state[slot, 1, 0], row_weights[feature], moved[0], moved[1],
            per_alpha, given[FORGETTING], admitting, drawn_bits,
        )  # fmt: skip
    return log_odds(loss, score)


@njit(cache=True, nogil=True, error_model="numpy")
def weights(state: FloatArray, parameters: FloatArray, configuration: int) -> FloatArray:
    """Return the weight of every slot under one configuration; exactly 0 where ``|z| <= l1``.

    Returns
    -------
    ndarray of shape (2**bits,), of the state's dtype
    """
    dense = np.empty(state.shape[0], dtype=state.dtype)
    alpha = _laid_out(parameters, ALPHA, 1, dense)[configuration]
    beta = _laid_out(parameters, BETA, 1, dense)[configuration]
    l1 = _laid_out(parameters, L1, 1, dense)[configuration]
    for slot in range(state.shape[0]):
        # A sum of 0 and -0 is 0: no exported weight has a sign that means nothing.
        dense[slot] = _ZERO + _weight(
            state[slot, 0, configuration], state[slot, 1, configuration], alpha, beta, l1
        )
    return dense


@njit(cache=True, nogil=True, error_model="numpy")
def rescale(state: FloatArray, momenta: FloatArray, configuration: int, factor: float) -> None:
    """Multiply one configuration's state by a power of two: exact, and visits stay what they are.

    Parameters
    ----------
    factor : float
        A power of two below 1: the scale's growth, taken out.
    """
    for slot in range(state.shape[0]):
        state[slot, 0, configuration] *= factor
        if state[slot, 1, configuration] > _ZERO:
            state[slot, 1, configuration] *= factor
    for slot in range(momenta.shape[0]):
        momenta[slot, configuration] *= factor


@njit(cache=True, nogil=True, error_model="numpy")
def linear_logits(
    weights: FloatArray, slots: np.ndarray, out: FloatArray, intercept: float = 0.0
) -> None:
    """Write ``intercept`` plus the sum of each row's weights, in the order of the kernel.

    Parameters
    ----------
    weights : ndarray of shape (2**bits,), float32 or float64
    slots : ndarray of shape (n, F), uint32
        Must be below ``2**bits``: nothing is checked here.
    out : ndarray of shape (n,), float64
    intercept : float
        0 for FTRL; River's GLMs have one.
    """
    n_rows, width = slots.shape
    padded = (width + WIDTH - 1) // WIDTH * WIDTH
    terms = np.zeros(padded, dtype=weights.dtype)
    score = np.empty(1)
    for row in range(n_rows):
        for feature in range(width):
            terms[feature] = weights[slots[row, feature]]
        sum_lanes(terms, padded, score, (0.0,))
        out[row] = intercept + score[0]


@njit(cache=True, nogil=True, error_model="numpy")
def to_log_odds(loss: int, scores: FloatArray, partners: FloatArray, horizon: float) -> None:
    """Replace scores, float64 (n,), by the log odds that they stand for under a loss's link.

    Parameters
    ----------
    partners : ndarray of shape (n,) or (0,), float64
        Scores of the other head; empty without one.
    horizon : float
        Days.
    """
    for row in range(scores.size):
        partner = partners[row] if partners.size else 0.0
        scores[row] = log_odds_of_heads(loss, scores[row], partner, horizon)


def checked_slots(slots: np.ndarray, n_slots: int) -> np.ndarray:
    """Return slots as the kernels need them, since an out-of-range slot would corrupt memory.

    Parameters
    ----------
    slots : ndarray of shape (n, F), any unsigned integer dtype up to uint32
    n_slots : int
        Length of the state.

    Raises
    ------
    ValueError
        If the array is not two-dimensional, is not of unsigned integers, or holds a slot that is
        not below ``n_slots``.
    """
    if slots.ndim != 2 or slots.dtype.kind != "u":
        raise ValueError(
            f"slots must be a (rows, features) array of uint32, not {slots.dtype} of shape "
            f"{slots.shape}"
        )
    if slots.size and int(slots.max()) >= n_slots:
        raise ValueError(
            f"slot {int(slots.max())} does not fit into {n_slots} slots; hash with the same number "
            "of bits as the learner"
        )
    return np.ascontiguousarray(slots, dtype=np.uint32)
