"""Shows what River's ``optim.FTRLProximal`` does to weights that L1 should make exactly zero.

``python -m docs.river_ftrl_defect`` prints the tables of ``docs/river_ftrl_defect.md``, ``--write``
puts them there; a test holds the page to them. River's optimizer stands beside itself with the one
missing line, and beside our classifier, on the same streams. It is judged by its own ``z`` alone:
whatever ``z`` says, a weight is 0 while ``|z| <= l1`` (McMahan et al., KDD 2013, Algorithm 1).
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from river import linear_model, optim

from ad_pipeline.learners.ftrl.classifier import FTRLClassifier

if TYPE_CHECKING:
    from river.optim.base import DictLike

PAGE = Path(__file__).resolve().with_suffix(".md")

BEGIN = "<!-- made by docs/river_ftrl_defect.py -->"
END = "<!-- end -->"
_BETWEEN_MARKS = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)

EVENTS = 10_000
FEATURES = 20
SEEDS = (1, 2, 3)
PARAMETERS: dict[str, Any] = {"alpha": 0.1, "beta": 1.0, "l1": 1.0, "l2": 0.0}
BITS = 16


class WithReset(optim.FTRLProximal):
    """River's optimizer with the line that is missing."""

    def _step_with_dict(self, w: "DictLike", g: "DictLike") -> "DictLike":
        for i in g:
            if abs(self.z[i]) <= self.l1:
                w[i] = 0.0
        return super()._step_with_dict(w, g)


@dataclass(frozen=True)
class Learnt:
    """What a learner holds after a stream.

    Attributes
    ----------
    non_zero : int
        Weights that are not 0.
    inside : int
        Those of them whose ``|z|`` is at most ``l1``: they should be 0.
    withheld : int
        Weights that are 0 while ``|z|`` is above ``l1``: they should not be.
    loss : float
        Mean progressive log loss.
    """

    non_zero: int
    inside: int
    withheld: int
    loss: float


def stream(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw events: distinct feature numbers, uint32 (n, 20), Zipf within a field, labels (n,)."""
    generator = np.random.default_rng(seed)
    size = 2**BITS // FEATURES
    within = np.minimum(generator.zipf(1.3, (EVENTS, FEATURES)) - 1, size - 1)
    numbers = (np.arange(FEATURES) * size + within).astype(np.uint32)
    effects = generator.normal(0.0, 0.4, 2**BITS)
    logits = effects[numbers].sum(axis=1) - 1.5
    return numbers, (generator.random(EVENTS) < 1.0 / (1.0 + np.exp(-logits))).astype(np.uint8)


def learnt_by_river(
    optimizer: optim.FTRLProximal, numbers: np.ndarray, labels: np.ndarray
) -> Learnt:
    """Predict, then learn, every event with River's logistic regression."""
    model = linear_model.LogisticRegression(optimizer, intercept_lr=0.0)
    losses: list[float] = []
    for row, label in zip(numbers.tolist(), labels.tolist(), strict=True):
        x = dict.fromkeys(row, 1.0)
        losses.append(-float(np.log(model.predict_proba_one(x)[bool(label)])))
        model.learn_one(x, bool(label))
    return _held(model.weights, optimizer.z, float(np.mean(losses)))


def learnt_by_us(numbers: np.ndarray, labels: np.ndarray) -> Learnt:
    """Predict, then learn, every event with our classifier."""
    model = FTRLClassifier(bits=BITS, **PARAMETERS)
    logits = model.learn_slots(numbers, labels)
    arrays = model.state_arrays()
    z = dict(zip(arrays["slots"].tolist(), arrays["z_sqrt_n"][:, 0, 0].tolist(), strict=True))
    weights = dict(enumerate(model.exported_weights().tolist()))
    loss = np.logaddexp(0.0, np.where(labels == 1, -logits, logits)).mean()
    return _held(weights, z, float(loss))


def _held(weights: Mapping[Any, float], z: Mapping[Any, float], loss: float) -> Learnt:
    l1 = PARAMETERS["l1"]
    non_zero = [number for number, weight in weights.items() if weight != 0.0]
    inside = sum(abs(z[number]) <= l1 for number in non_zero)
    withheld = sum(
        abs(total) > l1 and weights.get(number, 0.0) == 0.0 for number, total in z.items()
    )
    return Learnt(len(non_zero), inside, withheld, loss)


LEARNERS: dict[str, Callable[[np.ndarray, np.ndarray], Learnt]] = {
    f"River {version('river')}": lambda numbers, labels: learnt_by_river(
        optim.FTRLProximal(**PARAMETERS), numbers, labels
    ),
    "River with the reset": lambda numbers, labels: learnt_by_river(
        WithReset(**PARAMETERS), numbers, labels
    ),
    "ours": learnt_by_us,
}


def weights_after_each_update(updates: int) -> list[tuple[float, float]]:
    """Learn one feature's click again and again, without L1; return River's weight and ours."""
    parameters: dict[str, Any] = {**PARAMETERS, "l1": 0.0}
    theirs = linear_model.LogisticRegression(optim.FTRLProximal(**parameters), intercept_lr=0.0)
    ours = FTRLClassifier(bits=1, **parameters)
    found: list[tuple[float, float]] = []
    for _ in range(updates):
        theirs.learn_one({0: 1.0}, True)
        ours.learn_slots(np.zeros((1, 1), np.uint32), np.ones(1))
        found.append((theirs.weights.get(0, 0.0), float(ours.exported_weights()[0])))
    return found


def tables(learnt: Mapping[str, Mapping[int, Learnt]]) -> str:
    """Return both tables in Markdown, with their marks.

    Parameters
    ----------
    learnt : mapping of str to mapping of int to Learnt
        By learner, then by seed.
    """
    lines = [
        BEGIN,
        "| learner | seed | not 0 | of them \\|z\\| ≤ λ₁ | share | 0, \\|z\\| > λ₁ | log loss |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, by_seed in learnt.items():
        for seed, found in by_seed.items():
            share = found.inside / found.non_zero
            lines.append(
                f"| {name} | {seed} | {found.non_zero:,} | {found.inside:,} | {share:.1%} | "
                f"{found.withheld:,} | {found.loss:.5f} |"
            )
    lines += ["", "| clicks learnt | River's weight | ours |", "|--:|--:|--:|"]
    for update, (theirs, ours) in enumerate(weights_after_each_update(3), 1):
        lines.append(f"| {update} | {theirs:.6f} | {ours:.6f} |")
    return "\n".join([*lines, END])


def measured() -> dict[str, dict[int, Learnt]]:
    """Return what each learner holds after each stream."""
    streams = {seed: stream(seed) for seed in SEEDS}
    return {
        name: {seed: learn(*events) for seed, events in streams.items()}
        for name, learn in LEARNERS.items()
    }


def current(text: str, made: str) -> str:
    """Return the page with its tables as they were made.

    Raises
    ------
    ValueError
        If the page has no place for them.
    """
    if not _BETWEEN_MARKS.search(text):
        raise ValueError(f"{PAGE.name} has no {BEGIN} and {END}")
    return _BETWEEN_MARKS.sub(lambda _: made, text)


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put them into the page")
    write = parser.parse_args().write
    made = tables(measured())
    if write:
        PAGE.write_text(current(PAGE.read_text(), made))
    else:
        sys.stdout.write(f"{made}\n")


if __name__ == "__main__":
    main()
