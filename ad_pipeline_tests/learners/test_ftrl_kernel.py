"""The kernel against Algorithm 1 written out, against Vowpal Wabbit, and against itself."""

import itertools
import math
from pathlib import Path
from statistics import NormalDist
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ftrl import ftrl_kernel
from ad_pipeline.learners.ftrl.ftrl_expert import HEADS, FTRLExpert
from ad_pipeline.settings import Configuration, LinkedLoss
from ad_pipeline_tests.learners.streams import Stream, sparse_stream

LOSSES = {loss: HEADS[loss][0] for loss in get_args(LinkedLoss)}


class Algorithm1:
    """McMahan et al. 2013, Algorithm 1, line by line over dictionaries; no code of ours."""

    def __init__(self, alpha: float, beta: float, l1: float, l2: float) -> None:
        self.alpha, self.beta, self.l1, self.l2 = alpha, beta, l1, l2
        self.z: dict[int, float] = {}
        self.n: dict[int, float] = {}

    def weight(self, i: int) -> float:
        z = self.z.get(i, 0.0)
        if abs(z) <= self.l1:
            return 0.0
        sign = 1.0 if z > 0 else -1.0
        rate = (self.beta + math.sqrt(self.n[i])) / self.alpha + self.l2
        return -(z - sign * self.l1) / rate

    def learn(self, x: dict[int, float], y: int) -> float:
        w = {i: self.weight(i) for i in x}
        logit = sum(w[i] * x[i] for i in x)
        p = 1 / (1 + math.exp(-logit))
        for i, value in x.items():
            g = (p - y) * value
            n = self.n.get(i, 0.0)
            sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / self.alpha
            self.z[i] = self.z.get(i, 0.0) + g - sigma * w[i]
            self.n[i] = n + g * g
        return logit


def of(alpha: float, beta: float, l1: float, l2: float) -> tuple[Configuration]:
    return (Configuration(alpha=alpha, beta=beta, l1=l1, l2=l2),)


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean())


@pytest.fixture(scope="module")
def stream() -> Stream:
    return sparse_stream(seed=1, rows=10_000, width=12, bits=14)


@pytest.mark.parametrize(
    ("alpha", "beta", "l1", "l2"),
    [(0.05, 1.0, 0.5, 1.0), (0.3, 1.0, 0.0, 0.0), (0.1, 0.5, 2.0, 0.1), (0.1, 0.0, 1.0, 10.0)],
)
def test_weights_and_progressive_logits_equal_algorithm_1_over_ten_thousand_events(
    stream: Stream, alpha: float, beta: float, l1: float, l2: float
) -> None:
    reference = Algorithm1(alpha, beta, l1, l2)
    expected = [
        reference.learn(dict(zip(slots, values, strict=True)), label)
        for slots, values, label in zip(
            stream.slots.tolist(), stream.values.tolist(), stream.labels.tolist(), strict=True
        )
    ]
    ours = FTRLExpert(14, of(alpha, beta, l1, l2))
    logits = ours.predict_then_learn(stream.slots, stream.labels, values=stream.values)
    weights = ours.linear_weights().weights
    of_reference = np.zeros_like(weights)
    for slot in reference.z:
        of_reference[slot] = reference.weight(slot)
    assert np.abs(logits[:, 0] - expected).max() < 1e-12
    assert np.abs(weights - of_reference).max() < 1e-12
    assert np.count_nonzero(weights) > 100


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("alpha", "beta", "l1", "l2"),
    [
        (0.05, 1.0, 0.5, 1.0),
        (0.1, 1.0, 1.0, 0.0),
        (0.2, 0.5, 0.0, 0.1),
        (0.3, 1.0, 2.0, 0.5),
        (0.1, 0.1, 0.1, 10.0),
    ],
)
def test_every_probability_and_the_log_loss_agree_with_vowpal_wabbit_to_five_digits(
    stream: Stream, tmp_path: Path, alpha: float, beta: float, l1: float, l2: float, dtype: str
) -> None:
    vowpalwabbit = pytest.importorskip("vowpalwabbit")
    lines = [
        f"{2 * label - 1} | " + " ".join(f"{s}:{v}" for s, v in zip(slots, values, strict=True))
        for slots, values, label in zip(
            stream.slots.tolist(), stream.values.tolist(), stream.labels.tolist(), strict=True
        )
    ]
    log, told = tmp_path / "stream.vw", tmp_path / "predictions"
    log.write_text("\n".join(lines) + "\n")
    workspace = vowpalwabbit.Workspace(
        f"-d {log} -p {told} --ftrl --ftrl_alpha {alpha} --ftrl_beta {beta} --l1 {l1} --l2 {l2} "
        "-b 14 --loss_function logistic --link logistic --noconstant --quiet"
    )
    theirs = workspace.get_sum_loss() / workspace.get_weighted_examples()
    workspace.finish()
    ours = FTRLExpert(14, of(alpha, beta, l1, l2), dtype)
    logits = ours.predict_then_learn(stream.slots, stream.labels, values=stream.values)[:, 0]
    apart = np.abs(1 / (1 + np.exp(-logits)) - np.loadtxt(told))
    assert log_loss(logits, stream.labels) == pytest.approx(theirs, abs=1e-5)
    assert apart.max() < 1e-5
    arrays, _ = ours.state()
    weights = ours.linear_weights().weights[arrays["slots"]]
    assert not weights[np.abs(arrays["z_sqrt_n"][:, 0, 0]) <= l1].any()
    # Negative control: the test can tell settings apart.
    other = FTRLExpert(14, of(1.1 * alpha, beta, l1, l2)).predict_then_learn(
        stream.slots, stream.labels, values=stream.values
    )[:, 0]
    assert log_loss(other, stream.labels) != pytest.approx(theirs, abs=1e-5)
    assert np.abs(1 / (1 + np.exp(-other)) - np.loadtxt(told)).max() > 1e-3


def test_no_weight_is_non_zero_where_z_is_within_l1_and_rivers_own_ftrl_has_such() -> None:
    """River 0.26.1 rewrites a weight only while |z| > l1, so what falls back inside stays."""
    from river import linear_model, optim

    stream = sparse_stream(seed=3, rows=5_000, width=10, bits=14)
    ours = FTRLExpert(14, of(0.1, 1.0, 1.0, 0.0))
    ours.predict_then_learn(stream.slots, stream.labels)
    arrays, _ = ours.state()
    z = arrays["z_sqrt_n"][:, 0, 0]
    weights = ours.linear_weights().weights[arrays["slots"]]
    assert ((weights == 0) == (np.abs(z) <= 1.0)).all()

    optimizer = optim.FTRLProximal(alpha=0.1, beta=1.0, l1=1.0, l2=0.0)
    theirs = linear_model.LogisticRegression(optimizer, intercept_lr=0.0)
    for slots, label in zip(stream.slots.tolist(), stream.labels.tolist(), strict=True):
        theirs.learn_one(dict.fromkeys(slots, 1.0), bool(label))
    non_zero = [slot for slot, weight in theirs.weights.items() if weight != 0]
    inside = [slot for slot in non_zero if abs(optimizer.z[slot]) <= 1.0]
    assert len(inside) > 0.05 * len(non_zero)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exported_weights_score_every_row_to_the_bit_as_the_state_does(dtype: str) -> None:
    stream = sparse_stream(seed=4, rows=3_000, width=12, bits=12)
    expert = FTRLExpert(12, dtype=dtype)
    expert.predict_then_learn(stream.slots, stream.labels)
    out = np.empty(len(stream.slots))
    exported = expert.linear_weights()
    ftrl_kernel.linear_logits(exported.weights, stream.slots, out, exported.intercept)
    assert exported.weights.dtype == dtype
    assert out.tobytes() == expert.logits(stream.slots).tobytes()
    assert len(np.unique(out)) > 100
    one = np.empty(1)
    for row in range(0, 3_000, 300):
        ftrl_kernel.linear_logits(exported.weights, stream.slots[row : row + 1], one)
        assert one.tobytes() == out[row : row + 1].tobytes()


def test_predicting_first_and_learning_then_gives_the_progressive_logits() -> None:
    stream = sparse_stream(seed=5, rows=300, width=6, bits=10)
    together, apart = FTRLExpert(10), FTRLExpert(10)
    progressive = together.predict_then_learn(stream.slots, stream.labels)
    for row in range(300):
        one = slice(row, row + 1)
        assert apart.logits(stream.slots[one]).tobytes() == progressive[one].tobytes()
        apart.learn(stream.slots[one], stream.labels[one], np.ones(1))


def test_two_features_in_one_slot_add_in_the_logit_and_visit_the_slot_twice() -> None:
    """The module docstring's rule, written out; and that it is not Algorithm 1 on the sum."""
    alpha, beta, l1, l2 = 0.5, 1.0, 0.0, 0.0
    expert = FTRLExpert(4, of(alpha, beta, l1, l2))
    slots = np.array([[3, 3]], dtype=np.uint32)
    z = n = 0.0
    for label, a, b in [(1, 1.0, 0.5), (0, 2.0, -0.25), (1, 1.0, 1.0)]:
        w = 0.0 if z == 0 else -z / ((beta + math.sqrt(n)) / alpha + l2)
        logit = expert.predict_then_learn(slots, np.array([label]), values=np.array([[a, b]]))[0, 0]
        assert logit == pytest.approx(w * a + w * b, abs=1e-15)
        slope = 1 / (1 + math.exp(-logit)) - label
        for value in (a, b):
            g = slope * value
            z += g - (math.sqrt(n + g * g) - math.sqrt(n)) / alpha * w
            n += g * g
        found = expert.state()[0]["z_sqrt_n"][0, :, 0]
        assert found == pytest.approx([z, math.sqrt(n)], abs=1e-14)
    summed = FTRLExpert(4, of(alpha, beta, l1, l2))
    summed.predict_then_learn(slots[:, :1], np.array([1]), values=np.array([[1.5]]))
    once = FTRLExpert(4, of(alpha, beta, l1, l2))
    once.predict_then_learn(slots, np.array([1]), values=np.array([[1.0, 0.5]]))
    first, second = (e.state()[0]["z_sqrt_n"][0, :, 0] for e in (summed, once))
    assert first[0] == pytest.approx(second[0])
    assert first[1] > second[1]


def test_a_weight_scales_the_gradient_and_weight_zero_only_predicts() -> None:
    stream = sparse_stream(seed=6, rows=200, width=6, bits=10)
    weights = np.where(np.arange(200) % 3 == 0, 0.0, 1.0)
    weighted, kept = FTRLExpert(10), FTRLExpert(10)
    weighted.learn(stream.slots, stream.labels, weights)
    chosen = weights == 1
    kept.learn(stream.slots[chosen], stream.labels[chosen], np.ones(int(chosen.sum())))
    # The row's place in the stream enters the rounding of float32, so only float64 is compared.
    assert weighted.state()[0]["z_sqrt_n"].tobytes() == kept.state()[0]["z_sqrt_n"].tobytes()
    half = FTRLExpert(10, (Configuration(l1=0.0),))
    half.learn(stream.slots[:1], stream.labels[:1], np.array([0.5]))
    assert np.abs(half.state()[0]["z_sqrt_n"]) == pytest.approx(0.25)


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=12), seed=st.integers(0, 5))
def test_any_split_into_micro_batches_gives_the_same_bytes(cuts: list[int], seed: int) -> None:
    stream = sparse_stream(seed=seed, rows=400, width=6, bits=10)
    whole, split = FTRLExpert(10), FTRLExpert(10)
    expected = whole.predict_then_learn(stream.slots, stream.labels)
    bounds = [0, *sorted(cuts), 400]
    parts = []
    for start, end in itertools.pairwise(bounds):
        parts.append(split.predict_then_learn(stream.slots[start:end], stream.labels[start:end]))
        split = FTRLExpert.restore(*split.state())  # every cut is a checkpoint
    assert np.concatenate(parts).tobytes() == expected.tobytes()
    assert same_state(whole, split)


def test_the_state_does_not_grow_with_rows() -> None:
    stream = sparse_stream(seed=7, rows=50_000, width=6, bits=10)
    expert = FTRLExpert(10)
    expert.predict_then_learn(stream.slots, stream.labels)
    before = sum(array.nbytes for array in expert.state()[0].values())
    expert.predict_then_learn(stream.slots, stream.labels)
    assert sum(array.nbytes for array in expert.state()[0].values()) == before
    assert before <= (1 << 10) * (4 + 16)


def test_learning_beats_the_base_rate_and_is_calibrated() -> None:
    stream = sparse_stream(seed=8, rows=60_000, width=12, bits=12)
    bias = np.full((60_000, 1), 4095, dtype=np.uint32)
    expert = FTRLExpert(12, (Configuration(alpha=0.1, l1=0.1),))
    logits = expert.predict_then_learn(np.hstack([stream.slots, bias]), stream.labels)[:, 0]
    tail = slice(30_000, None)
    base = stream.labels[tail].mean()
    entropy = -(base * math.log(base) + (1 - base) * math.log(1 - base))
    assert log_loss(logits[tail], stream.labels[tail]) < 0.99 * entropy
    assert (1 / (1 + np.exp(-logits[tail]))).mean() == pytest.approx(base, rel=0.03)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"slots": np.array([[1024]], dtype=np.uint32)}, "does not fit"),
        ({"slots": np.array([[1]], dtype=np.int64)}, "uint32"),
        ({"labels": np.array([2])}, "zeros and ones"),
        ({"labels": np.array([0, 1])}, "labels must be"),
        ({"weights": np.array([np.nan])}, "finite"),
        ({"weights": np.array([[1.0, 1.0]])}, "weights must be"),
        ({"values": np.array([[np.inf]])}, "finite"),
        ({"values": np.array([[1.0, 1.0]])}, "finite numbers of shape"),
    ],
)
def test_what_would_corrupt_the_state_is_refused_and_leaves_it_untouched(
    spoil: dict[str, np.ndarray], message: str
) -> None:
    expert = FTRLExpert(10)
    sound = {"slots": np.array([[5]], dtype=np.uint32), "labels": np.array([1])}
    with pytest.raises(ValueError, match=message):
        expert.predict_then_learn(**(sound | spoil))
    assert expert.state()[0]["slots"].size == 0


def pulled_at(z: float, root: float, label: int, rows: int, dtype: str) -> tuple[float, float]:
    """Return how far rows of one label move z and √n of the only slot from where they are."""
    expert = FTRLExpert(1, of(0.05, 1.0, 0.0, 0.0), dtype)
    arrays = {
        "slots": np.zeros(1, dtype=np.uint32),
        "z_sqrt_n": np.array([[[z], [root]]], dtype=dtype),
    }
    expert = FTRLExpert.restore(arrays, expert.state()[1])
    expert.predict_then_learn(np.zeros((rows, 1), np.uint32), np.full(rows, label))
    found = expert.state()[0]["z_sqrt_n"][0, :, 0].astype(np.float64)
    return found[0] - z, found[1] - root


def test_float32_keeps_in_the_mean_what_rounding_to_the_nearest_would_lose() -> None:
    """A rare event's negatives: each moves z by less than half a unit in its last place."""
    z, root, rows = 1.4e5, 1e3, 40_000
    moved, grown = pulled_at(z, root, 0, rows, "float32")
    exact_z, exact_root = pulled_at(z, root, 0, rows, "float64")
    each_z, each_root = exact_z / rows, exact_root / rows
    assert np.float32(z) + np.float32(each_z) == np.float32(z)  # rounded to the nearest: lost
    assert np.float32(root) + np.float32(each_root) == np.float32(root)
    assert moved == pytest.approx(exact_z, rel=0.1)
    assert grown == pytest.approx(
        exact_root, abs=5 * float(np.spacing(np.float32(root))) * rows**0.5
    )


def test_float32_drifts_from_float64_neither_in_weights_nor_in_the_hottest_slots() -> None:
    stream = sparse_stream(seed=9, rows=200_000, width=6, bits=8)
    slots = np.hstack([stream.slots, np.full((200_000, 1), 255, np.uint32)])
    small, large = (FTRLExpert(8, dtype=dtype) for dtype in ("float32", "float64"))
    first, second = (e.predict_then_learn(slots, stream.labels)[:, 0] for e in (small, large))
    assert np.abs(first - second).max() < 2e-3
    assert log_loss(first, stream.labels) == pytest.approx(
        log_loss(second, stream.labels), abs=1e-7
    )
    hottest = np.array([255], dtype=np.uint32)
    assert small.accumulated(0, hottest) == pytest.approx(large.accumulated(0, hottest), rel=1e-4)


GRID = (
    Configuration(),
    Configuration(alpha=0.3, l1=0.0, l2=0.0),
    Configuration(half_life_hours=3.0, schedule="decayed"),
    Configuration(half_life_hours=24.0, schedule="adam", alpha=0.02),
    Configuration(admission="count", admission_count=3, loss="cloglog"),
    Configuration(admission="poisson", loss="probit"),
    Configuration(bits=9),
    Configuration(bits=9, loss="squared", beta=5.0),
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("valued", [False, True])
def test_every_configuration_of_a_grid_is_to_the_bit_what_it_is_alone(
    dtype: str, valued: bool
) -> None:
    stream = sparse_stream(seed=10, rows=3_000, width=11, bits=11)
    slots, values = stream.slots, stream.values if valued else None
    slots[::50, 1] = slots[::50, 0]  # two features in one slot: the exact path
    grid, alone = FTRLExpert(11, GRID, dtype), [FTRLExpert(11, (each,), dtype) for each in GRID]
    found = np.empty(0)
    for start in range(0, 3_000, 250):
        part = slice(start, start + 250)
        given = None if values is None else values[part]
        found = grid.predict_then_learn(slots[part], stream.labels[part], values=given)
        for place, expert in enumerate(alone):
            one = expert.predict_then_learn(slots[part], stream.labels[part], values=given)
            assert one[:, 0].tobytes() == found[:, place].tobytes()
            expert.advance(HOUR_US)
        grid.advance(HOUR_US)
        if start == 1_500:
            grid = FTRLExpert.restore(*grid.state())
    assert len({found[:, place].tobytes() for place in range(len(GRID))}) == len(GRID)
    for place, expert in enumerate(alone):
        ours, theirs = grid.linear_weights(place).weights, expert.linear_weights().weights
        assert ours.tobytes() == theirs.tobytes()
        doubt = grid.uncertainty(slots[:50])[:, place]
        assert doubt.tobytes() == expert.uncertainty(slots[:50])[:, 0].tobytes()


def discounted(slots: np.ndarray, labels: np.ndarray, gamma: float, each: Configuration) -> float:
    """Return the last logit of Algorithm 1 whose sums are multiplied by gamma after every row."""
    z: dict[int, float] = {}
    roots: dict[int, float] = {}
    logit = 0.0
    for row, label in zip(slots.tolist(), labels.tolist(), strict=True):
        weights = {}
        for slot in row:
            size = max(abs(z.get(slot, 0.0)) - each.l1, 0.0)
            rate = (each.beta + roots.get(slot, 0.0)) / each.alpha + each.l2
            weights[slot] = -math.copysign(size, z.get(slot, 0.0)) / rate
        logit = sum(weights.values())
        g = 1 / (1 + math.exp(-logit)) - label
        for slot in row:
            before = roots.get(slot, 0.0)
            roots[slot] = math.sqrt(before**2 + g * g)
            z[slot] = z.get(slot, 0.0) + g - (roots[slot] - before) / each.alpha * weights[slot]
        z = {slot: gamma * value for slot, value in z.items()}
        roots = {slot: gamma * value for slot, value in roots.items()}
    return logit


def test_a_half_life_is_algorithm_1_with_sums_that_shrink_as_time_passes() -> None:
    stream = sparse_stream(seed=12, rows=600, width=5, bits=9)
    distinct = np.array([len(set(row)) == 5 for row in stream.slots.tolist()])
    slots, labels = stream.slots[distinct], stream.labels[distinct]
    each = Configuration(half_life_hours=4.0, l1=0.05)
    expert = FTRLExpert(9, (each,))
    logit = 0.0
    for row in range(len(slots)):  # an hour passes after each row: hundreds of half-lives in all
        logit = expert.predict_then_learn(slots[row : row + 1], labels[row : row + 1])[0, 0]
        expert.advance(HOUR_US)
    expected = discounted(slots, labels, 2.0 ** (-1 / 4), each)
    assert logit == pytest.approx(expected, abs=1e-9)
    forgetful = discounted(slots, labels, 2.0 ** (-1 / 3), each)
    assert abs(forgetful - expected) > 1e-3  # another half-life would show


def test_when_the_scale_is_taken_out_shows_in_no_weight() -> None:
    stream = sparse_stream(seed=13, rows=400, width=6, bits=10)
    each = (Configuration(half_life_hours=1.0),)
    often, late = FTRLExpert(10, each), FTRLExpert(10, each)
    often.predict_then_learn(stream.slots[:200], stream.labels[:200])
    late.predict_then_learn(stream.slots[:200], stream.labels[:200])
    for _ in range(40):
        often.advance(HOUR_US // 2)
    late.advance(20 * HOUR_US)  # 20 doublings at once
    for expert in (often, late):
        expert.predict_then_learn(stream.slots[200:], stream.labels[200:])
    assert often.linear_weights().weights.tobytes() == late.linear_weights().weights.tobytes()


def test_time_that_passes_without_a_half_life_changes_nothing() -> None:
    stream = sparse_stream(seed=14, rows=100, width=6, bits=10)
    timeless, waiting = FTRLExpert(10), FTRLExpert(10)
    for expert in (timeless, waiting):
        expert.predict_then_learn(stream.slots, stream.labels)
    waiting.advance(10**6 * HOUR_US)
    assert same_state(timeless, waiting)


def test_a_raised_rate_moves_weights_more_and_a_frozen_configuration_not_at_all() -> None:
    stream = sparse_stream(seed=15, rows=4_000, width=6, bits=8)
    plain, raised, frozen = FTRLExpert(8), FTRLExpert(8), FTRLExpert(8)
    for expert in (plain, raised, frozen):
        expert.predict_then_learn(stream.slots, stream.labels)
    before = plain.linear_weights().weights
    raised.raise_rate(0, 3)
    frozen.freeze(0, True)
    moved = {}
    for name, expert in (("plain", plain), ("raised", raised), ("frozen", frozen)):
        expert.predict_then_learn(stream.slots[:50], 1 - stream.labels[:50])
        moved[name] = np.abs(expert.linear_weights().weights - before).sum()
    assert moved["raised"] > 3 * moved["plain"] > 0
    assert moved["frozen"] == 0
    assert raised.rate(0) == 3.0
    frozen.freeze(0, False)
    frozen.predict_then_learn(stream.slots[:50], 1 - stream.labels[:50])
    assert np.abs(frozen.linear_weights().weights - before).sum() == pytest.approx(moved["plain"])


def test_counting_admission_learns_a_slot_from_its_nth_visit_as_if_it_were_the_first() -> None:
    slots = np.array([[1, 2], [1, 3], [1, 3], [1, 3]], dtype=np.uint32)
    labels = np.array([1, 0, 1, 1])
    expert = FTRLExpert(8, (Configuration(admission="count", admission_count=2, l1=0.0),))
    expert.predict_then_learn(slots[:1], labels[:1])
    assert not expert.linear_weights().weights.any()
    assert (expert.accumulated(0, np.array([1, 2], np.uint32)) == 0).all()
    expert.predict_then_learn(slots[1:], labels[1:])
    weights = expert.linear_weights().weights
    assert np.flatnonzero(weights).tolist() == [1, 3]  # 2 came once
    # What is admitted is learnt as it would be by a learner that never saw the earlier visits.
    later = FTRLExpert(8, (Configuration(l1=0.0),))
    later.predict_then_learn(slots[1:2, :1], labels[1:2])
    later.predict_then_learn(slots[2:], labels[2:])
    assert weights[[1, 3]].tobytes() == later.linear_weights().weights[[1, 3]].tobytes()


def test_poisson_admission_takes_its_share_of_slots_that_come_once() -> None:
    slots = np.arange(20_000, dtype=np.uint32).reshape(-1, 10)
    labels = np.arange(2_000) % 2
    each = Configuration(admission="poisson", admission_probability=0.3, l1=0.0)
    expert = FTRLExpert(15, (each,), "float32")
    expert.predict_then_learn(slots, labels)
    share = np.count_nonzero(expert.linear_weights().weights) / 20_000
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 20_000))


def loss_of(loss: str, score: float, label: float) -> float:
    """Return the loss of a score, written out with the standard library."""
    if loss == "squared":
        return 0.5 * (score - label) ** 2
    if loss == "poisson":
        return math.exp(score) - label * score
    p = {
        "logistic": lambda: 1 / (1 + math.exp(-score)),
        "probit": lambda: NormalDist().cdf(score),
        "cloglog": lambda: -math.expm1(-math.exp(score)),
    }[loss]()
    return -(label * math.log(p) + (1 - label) * math.log1p(-p))


@given(
    loss=st.sampled_from(sorted(LOSSES)), score=st.floats(-2.5, 1.2), label=st.sampled_from([0, 1])
)
def test_the_slope_of_every_loss_is_the_derivative_of_the_loss(
    loss: str, score: float, label: int
) -> None:
    step = 1e-5
    expected = (loss_of(loss, score + step, label) - loss_of(loss, score - step, label)) / (
        2 * step
    )
    assert ftrl_kernel.slope(LOSSES[loss], score, label) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("score", [-700.0, -40.0, -36.0, 36.0, 40.0, 700.0])
def test_slopes_and_log_odds_stay_finite_far_out_and_log_odds_rise(loss: str, score: float) -> None:
    for label in (0.0, 1.0):
        assert math.isfinite(ftrl_kernel.slope(LOSSES[loss], score, label))
    odds = [ftrl_kernel.log_odds(LOSSES[loss], at) for at in (score - 0.5, score, score + 0.5)]
    assert all(map(math.isfinite, odds))
    assert odds == sorted(odds)


@pytest.mark.parametrize("loss", ["logistic", "probit", "cloglog", "poisson"])
def test_a_constant_is_learnt_to_the_base_rate_under_every_link(loss: str) -> None:
    """The fixed point: with one feature that is always there, the prediction is the mean."""
    labels = (np.arange(60_000) % 10 == 0).astype(np.float64)
    expert = FTRLExpert(1, (Configuration(loss=loss, l1=0.0, l2=0.0, alpha=0.3),))  # pyright: ignore[reportArgumentType]
    logits = expert.predict_then_learn(np.zeros((60_000, 1), np.uint32), labels)[-5_000:, 0]
    p = float((1 / (1 + np.exp(-logits))).mean())
    expected = 1 - math.exp(-0.1) if loss == "poisson" else 0.1  # at least one of a mean of 0.1
    assert p == pytest.approx(expected, rel=0.02)


def test_a_weight_for_each_configuration_teaches_each_its_own_rows() -> None:
    stream = sparse_stream(seed=16, rows=500, width=6, bits=10)
    weights = np.random.default_rng(1).poisson(1.0, (500, 2)).astype(np.float64)
    both = FTRLExpert(10, (Configuration(), Configuration()))
    both.predict_then_learn(stream.slots, stream.labels, weights)
    for place in range(2):
        one = FTRLExpert(10)
        one.predict_then_learn(stream.slots, stream.labels, weights[:, place])
        ours, theirs = both.linear_weights(place).weights, one.linear_weights().weights
        assert ours.tobytes() == theirs.tobytes()


def test_uncertainty_is_the_sum_of_the_rates_and_falls_as_slots_are_learnt() -> None:
    stream = sparse_stream(seed=17, rows=2_000, width=6, bits=10)
    each = Configuration(alpha=0.2, beta=0.5, l2=3.0)
    expert = FTRLExpert(10, (each,))
    expert.predict_then_learn(
        stream.slots[:1_000], stream.labels[:1_000], values=stream.values[:1_000]
    )
    rows, values = stream.slots[:20], stream.values[:20]
    roots = np.sqrt(np.array([expert.accumulated(0, row) for row in rows]))
    expected = (np.abs(values) / ((0.5 + roots) / 0.2 + 3.0)).sum(axis=1)
    found = expert.uncertainty(rows, values)[:, 0]
    assert found == pytest.approx(expected, rel=1e-12)
    expert.predict_then_learn(stream.slots, stream.labels)
    assert (expert.uncertainty(rows, values)[:, 0] < found).all()


def same_state(a: FTRLExpert, b: FTRLExpert) -> bool:
    (arrays_a, manifest_a), (arrays_b, manifest_b) = a.state(), b.state()
    return manifest_a == manifest_b and all(
        arrays_a[name].tobytes() == arrays_b[name].tobytes() for name in arrays_a
    )


def test_a_continued_learner_keeps_its_weights_at_another_rate_and_goes_on_otherwise() -> None:
    generator = np.random.default_rng(8)
    slots = generator.integers(0, 1 << 10, (600, 4)).astype(np.uint32)
    labels = (generator.random(600) < 0.3).astype(np.uint8)
    begun = FTRLExpert(10, [Configuration(alpha=0.3, l1=0.05, l2=0.1)])
    begun.predict_then_learn(slots, labels)
    faster = begun.continued([Configuration(alpha=0.9, l1=0.05, l2=0.1)])
    before = begun.logits(slots)
    assert np.ptp(before) > 0.1
    np.testing.assert_allclose(faster.logits(slots), before, rtol=0, atol=1e-5)
    begun.predict_then_learn(slots, labels)
    faster.predict_then_learn(slots, labels)
    assert np.abs(faster.logits(slots) - begun.logits(slots)).max() > 1e-3
    with pytest.raises(ValueError, match="one configuration"):
        FTRLExpert(10, [Configuration(), Configuration(alpha=0.2)]).continued([Configuration()])
