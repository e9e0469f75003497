"""The kernel against Algorithm 1 written out, against Vowpal Wabbit, and against itself."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.learners import ftrl_kernel
from ad_pipeline.learners.online import FTRLExpert
from ad_pipeline_tests.learners.streams import Stream, sparse_stream


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
    ours = FTRLExpert(14, alpha, beta, l1, l2)
    logits = ours.predict_then_learn(stream.slots, stream.labels, values=stream.values)
    weights = ours.linear_weights().weights
    of_reference = np.zeros_like(weights)
    for slot in reference.z:
        of_reference[slot] = reference.weight(slot)
    assert np.abs(logits - expected).max() < 1e-12
    assert np.abs(weights - of_reference).max() < 1e-12
    assert np.count_nonzero(weights) > 100


@pytest.mark.parametrize(
    ("alpha", "beta", "l1", "l2"), [(0.05, 1.0, 0.5, 1.0), (0.2, 0.5, 0.0, 0.1)]
)
def test_progressive_log_loss_agrees_with_vowpal_wabbit_to_five_digits(
    stream: Stream, tmp_path: Path, alpha: float, beta: float, l1: float, l2: float
) -> None:
    vowpalwabbit = pytest.importorskip("vowpalwabbit")
    lines = [
        f"{2 * label - 1} | " + " ".join(f"{s}:{v}" for s, v in zip(slots, values, strict=True))
        for slots, values, label in zip(
            stream.slots.tolist(), stream.values.tolist(), stream.labels.tolist(), strict=True
        )
    ]
    log = tmp_path / "stream.vw"
    log.write_text("\n".join(lines) + "\n")
    workspace = vowpalwabbit.Workspace(
        f"-d {log} --ftrl --ftrl_alpha {alpha} --ftrl_beta {beta} --l1 {l1} --l2 {l2} -b 14 "
        "--loss_function logistic --noconstant --quiet"
    )
    theirs = workspace.get_sum_loss() / workspace.get_weighted_examples()
    workspace.finish()
    logits = FTRLExpert(14, alpha, beta, l1, l2).predict_then_learn(
        stream.slots, stream.labels, values=stream.values
    )
    assert log_loss(logits, stream.labels) == pytest.approx(theirs, abs=1e-5)
    # Negative control: the test can tell settings apart.
    other = FTRLExpert(14, 1.1 * alpha, beta, l1, l2).predict_then_learn(
        stream.slots, stream.labels, values=stream.values
    )
    assert log_loss(other, stream.labels) != pytest.approx(theirs, abs=1e-5)


def test_no_weight_is_non_zero_where_z_is_within_l1_and_rivers_own_ftrl_has_such() -> None:
    """River 0.26.1 rewrites a weight only while |z| > l1, so what falls back inside stays."""
    from river import linear_model, optim

    stream = sparse_stream(seed=3, rows=5_000, width=10, bits=14)
    ours = FTRLExpert(14, 0.1, 1.0, 1.0, 0.0)
    ours.predict_then_learn(stream.slots, stream.labels)
    arrays, _ = ours.state()
    z = arrays["z_sqrt_n"][:, 0]
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
    expert = FTRLExpert(4, alpha, beta, l1, l2)
    slots = np.array([[3, 3]], dtype=np.uint32)
    z = n = 0.0
    for label, a, b in [(1, 1.0, 0.5), (0, 2.0, -0.25), (1, 1.0, 1.0)]:
        w = 0.0 if z == 0 else -z / ((beta + math.sqrt(n)) / alpha + l2)
        logit = expert.predict_then_learn(slots, np.array([label]), values=np.array([[a, b]]))[0]
        assert logit == pytest.approx(w * a + w * b, abs=1e-15)
        slope = 1 / (1 + math.exp(-logit)) - label
        for value in (a, b):
            g = slope * value
            z += g - (math.sqrt(n + g * g) - math.sqrt(n)) / alpha * w
            n += g * g
        found = expert.state()[0]["z_sqrt_n"][0]
        assert found == pytest.approx([z, math.sqrt(n)], abs=1e-14)
    summed = FTRLExpert(4, alpha, beta, l1, l2)
    summed.predict_then_learn(slots[:, :1], np.array([1]), values=np.array([[1.5]]))
    once = FTRLExpert(4, alpha, beta, l1, l2)
    once.predict_then_learn(slots, np.array([1]), values=np.array([[1.0, 0.5]]))
    first, second = summed.state()[0]["z_sqrt_n"][0], once.state()[0]["z_sqrt_n"][0]
    assert first[0] == pytest.approx(second[0])
    assert first[1] > second[1]


def test_a_weight_scales_the_gradient_and_weight_zero_only_predicts() -> None:
    stream = sparse_stream(seed=6, rows=200, width=6, bits=10)
    weights = np.where(np.arange(200) % 3 == 0, 0.0, 1.0)
    weighted, kept = FTRLExpert(10), FTRLExpert(10)
    weighted.learn(stream.slots, stream.labels, weights)
    chosen = weights == 1
    kept.learn(stream.slots[chosen], stream.labels[chosen], np.ones(int(chosen.sum())))
    assert same_state(weighted, kept)
    half = FTRLExpert(10, l1=0.0)
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
    expert = FTRLExpert(12, alpha=0.1, l1=0.1)
    logits = expert.predict_then_learn(np.hstack([stream.slots, bias]), stream.labels)
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
        ({"labels": np.array([0, 1])}, "zeros and ones"),
        ({"weights": np.array([np.nan])}, "finite"),
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


def test_float32_state_loses_a_rare_events_negatives_which_float64_keeps() -> None:
    """The reason for the default dtype: one slot, z far out, and ten thousand tiny gradients."""
    slots = np.zeros((10_000, 1), dtype=np.uint32)
    shifts = {}
    for dtype in ("float32", "float64"):
        manifest = {"bits": 1, "alpha": 0.05, "beta": 1.0, "l1": 0.0, "l2": 0.0, "dtype": dtype}
        state = np.array([[1.4e5, 1e3]], dtype=dtype)
        expert = FTRLExpert.restore(
            {"slots": np.zeros(1, dtype=np.uint32), "z_sqrt_n": state}, manifest
        )
        expert.predict_then_learn(slots, np.zeros(10_000))
        shifts[dtype] = float(expert.state()[0]["z_sqrt_n"][0, 0]) - 1.4e5
    assert shifts["float32"] == 0.0
    assert shifts["float64"] > 5.0


def same_state(a: FTRLExpert, b: FTRLExpert) -> bool:
    (arrays_a, manifest_a), (arrays_b, manifest_b) = a.state(), b.state()
    return manifest_a == manifest_b and all(
        arrays_a[name].tobytes() == arrays_b[name].tobytes() for name in arrays_a
    )
