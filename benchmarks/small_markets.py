"""Small simulated markets that went through the whole path, as tables of scored and matured rows.

Several studies ask different questions of the same runs; the path is run once per world and seed
and what it said about every matured row is kept under ``.ad_pipeline/evidence``, out of git. The
columns:

- what the pipeline says: label, both experts' logits at serving time, and, on the test range that
  the ensemble has not seen, the ensemble's probability;
- what only a simulator knows: the true probability;
- what other models would have said on the last two days: the online expert frozen some hours ago
  (``online_<age>h``), the same learner given equally many hours of examples whatever its age
  (``equal_<age>h``), the same learner exported every so many minutes (``refreshed_<minutes>m``),
  and, on some hours, batch models of some age (``batch_<age>h``).

"Age a" is "at most a hours old": an impression of hour h is scored by the state of h + 1 - a.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import HOUR_US, MINUTE_US, hours_between
from ad_pipeline.datasets import DATA_FOLDER, Dataset, Deployment, load_dataset
from ad_pipeline.evaluation.held_out import BASE_RATE, ENSEMBLE
from ad_pipeline.evaluation.truth import read_truth
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract, category_hashes, dense, slots
from ad_pipeline.learners.batch import batch_hours
from ad_pipeline.learners.batch.batch_hours import train_after
from ad_pipeline.learners.batch.batch_model import TooFewPositives
from ad_pipeline.learners.delayed.shown_examples import shown_examples
from ad_pipeline.learners.ensemble import ensembles
from ad_pipeline.learners.ensemble.ensembles import held_out_forecasts, open_ensemble
from ad_pipeline.learners.ftrl.ftrl_expert import LinearWeights
from ad_pipeline.learners.online import online_hours
from ad_pipeline.learners.online.step import (
    Examples,
    OnlineExpert,
    new_expert,
)
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.warehouse import Warehouse, rows_of, select
from benchmarks.library_path import finish, run_hours
from benchmarks.studies import Shared

KEPT = Path(__file__).resolve().parents[1] / ".ad_pipeline" / "evidence"
VERSION = 2
"""Raise when the same settings would give other rows."""

SECONDS = 60.0
"""What one world and seed takes."""

DRIFTING, STATIONARY = "drifting", "stationary"
_SMALL = MarketplaceSpec(
    impressions_per_day=25_000, users=8_000, ads=300, click_rate=0.08, purchase_rate=0.25
)
WORLDS = {
    DRIFTING: _SMALL,
    # As many ads as campaigns: every ad runs all along, is old, and never changes.
    STATIONARY: replace(_SMALL, drift=False, ads=_SMALL.campaigns),
}
"""A denser and smaller world than the default, so that a small log has enough clicks. The first has
new ads all the time and the planted drift at the start of its last day; the second has neither."""

SEEDS = tuple(range(301, 307))
"""The defaults of the learners were tuned on seeds 1 and 7."""

AGES = (1, 3, 6, 24)
BATCH_AGES = (1, 6, 24)
REFRESH_MINUTES = (1440, 300, 60, 5)
"""Daily, every 5 hours, every hour, every 5 minutes; all begin with the evaluated days."""

EVALUATED_DAYS = 2
EQUAL_HOURS = 72
BATCH_HOURS_OF_DAY = (1, 5, 9, 13, 17, 21)
"""Hours of the last day on which batch models of every age are trained: each costs a training."""


@dataclass(frozen=True)
class MarketRows:
    """What was said about the matured rows of one goal.

    Attributes
    ----------
    rows : pyarrow.Table
        Columns as the module says; NaN where a model said nothing. In the order of maturity.
    last_day_us : int
        Start of the last day, when the drift of the drifting world begins.
    ensemble : dict
        The fitted ensemble as JSON.
    """

    rows: pa.Table
    last_day_us: int
    ensemble: dict[str, object]

    def column(self, name: str) -> np.ndarray:
        """Return a column as a NumPy array, float64 with NaN for null where it is a number."""
        found = self.rows.column(name)
        if pa.types.is_floating(found.type):
            found = found.fill_null(float("nan"))
        return found.to_numpy(zero_copy_only=False)


def settings() -> dict[str, object]:
    """Return all that the rows follow from besides world and seed."""
    return {
        "version": VERSION,
        "code_versions": {
            "batch": batch_hours.CODE_VERSION,
            "ensemble": ensembles.CODE_VERSION,
            "online": online_hours.CODE_VERSION,
        },
        "worlds": {
            name: {key: value for key, value in asdict(spec).items() if key != "seed"}
            for name, spec in WORLDS.items()
        },
        "settings": _dataset().settings.digest(),
        "ages": AGES,
        "batch_ages": BATCH_AGES,
        "refresh_minutes": REFRESH_MINUTES,
        "equal_hours": EQUAL_HOURS,
        "batch_hours_of_day": BATCH_HOURS_OF_DAY,
    }


def shared(world: str, seed: int) -> Shared:
    """Return the cost of a world and seed, for a study's budget."""
    return Shared(f"market {world} {seed}", SECONDS, _kept(world, seed).exists())


def market_rows(world: str, seed: int) -> dict[str, MarketRows]:
    """Return the rows of every goal; the path is run unless they are kept already.

    Parameters
    ----------
    world : {'drifting', 'stationary'}
    seed : int

    Returns
    -------
    dict of str to MarketRows
        By goal.
    """
    folder = _kept(world, seed)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as scratch:
            draft = Path(scratch) / "rows"
            draft.mkdir()
            _run_path(replace(WORLDS[world], seed=seed), Path(scratch) / "home", draft)
            draft.rename(folder)
    return {
        goal.name: MarketRows(
            pq.read_table(folder / f"{goal.name}.parquet"),
            WORLDS[world].hour_start_us(24 * (WORLDS[world].days - 1)),
            json.loads((folder / f"{goal.name}.json").read_text()),
        )
        for goal in _dataset().goals
    }


def _dataset() -> Dataset:
    return load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")


def _kept(world: str, seed: int) -> Path:
    canonical = json.dumps(settings(), sort_keys=True).encode()
    return KEPT / hashlib.sha256(canonical).hexdigest()[:16] / f"{world}-{seed}"


def _run_path(spec: MarketplaceSpec, home: Path, target: Path) -> None:
    dataset = _dataset()
    deployment = Deployment(dataset, home)
    simulate_days(spec, deployment.logs, deployment.truth, range(spec.days))
    end_us = dataset.last_hour_end_us
    if end_us is None:
        raise ValueError(f"dataset {dataset.name} has no end")
    run_hours(deployment, dataset.start_us, end_us, with_dictionary=False, with_parity=False)
    finish(deployment, with_drift=False, with_bundle=False)
    warehouse = Warehouse(deployment.warehouse)
    held_out = {found.goal: found for found in held_out_forecasts(warehouse, deployment)}
    end_of_traffic_us = spec.hour_start_us(spec.hours)
    start_us = end_of_traffic_us - EVALUATED_DAYS * 24 * HOUR_US
    aged = _aged_logits(warehouse, deployment, start_us, end_of_traffic_us)
    for goal in dataset.goals:
        rows = _matured(warehouse, deployment, goal.name, end_us)
        truth = read_truth(deployment.truth, goal.name).select(["impression_id", "probability"])
        found = held_out[goal.name]
        tested = pa.table(
            {
                "impression_id": found.impression_ids.cast(pa.string()),
                "ensemble_probability": found.probabilities[ENSEMBLE],
                "base_rate": found.probabilities[BASE_RATE],
            }
        )
        for other in (truth.rename_columns(["impression_id", "truth"]), tested, aged[goal.name]):
            rows = rows.join(other, "impression_id", join_type="left outer")
        rows = rows.sort_by([("matured_us", "ascending"), ("impression_id", "ascending")])
        pq.write_table(rows, target / f"{goal.name}.parquet", compression="zstd")
        fitted = open_ensemble(deployment, goal.name)
        if fitted is None:
            raise ValueError(f"{goal.name}: too few matured hours for an ensemble")
        (target / f"{goal.name}.json").write_text(json.dumps(fitted.ensemble.to_json()))


def _matured(warehouse: Warehouse, deployment: Deployment, goal: str, end_us: int) -> pa.Table:
    """Read every matured row of a goal with its experts' logits and the age of its ad."""
    dataset = deployment.dataset
    parameters = {
        "goals": [goal],
        "start_us": dataset.start_us,
        "end_us": end_us,
        "horizon_us": dataset.maturity_us,
    }
    with warehouse.reader() as connection:
        rows = rows_of(connection, select("evaluation.scored_rows"), parameters)
        ages = rows_of(connection, "SELECT impression_id, ad_age_hours FROM events.impressions", {})
    return rows.join(ages, "impression_id", join_type="left outer")


def _aged_logits(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> dict[str, pa.Table]:
    """Score the impressions of some hours by models of every age; one table a goal."""
    contract = FeatureContract.from_dataset(deployment.dataset)
    served = _received(warehouse, start_us, end_us)
    read, counts = read_as_served(deployment, contract, served)
    served_us = served.column("received_us").to_numpy()
    seen = _Seen(
        served_us=served_us,
        tokens=slots(contract, read, counts),
        matrix=dense(contract, read, counts),
        categories=category_hashes(contract, read),
        rows={
            hour_us: slice(*np.searchsorted(served_us, [hour_us, hour_us + HOUR_US]).tolist())
            for hour_us in hours_between(start_us, end_us)
        },
    )
    found: dict[str, pa.Table] = {}
    for goal in deployment.dataset.goals:
        columns = {
            **_online_by_age(deployment, goal.name, seen),
            **_equal_by_age(warehouse, deployment, contract, goal.name, seen),
            **_by_refresh(warehouse, deployment, contract, goal.name, seen),
            **_batch_by_age(warehouse, deployment, contract, goal.name, seen, served, end_us),
        }
        found[goal.name] = pa.table({"impression_id": served.column("impression_id"), **columns})
    return found


@dataclass(frozen=True)
class _Seen:
    """The impressions of the evaluated hours as every model sees them; n rows in log order.

    Attributes
    ----------
    served_us : ndarray of shape (n,), int64
        Rising.
    tokens, matrix, categories : ndarray
        Slots, dense features and category hashes, n rows each.
    rows : dict of int to slice
        Rows of each hour.
    """

    served_us: np.ndarray
    tokens: np.ndarray
    matrix: np.ndarray
    categories: np.ndarray
    rows: dict[int, slice]

    def scored_by(self, frozen_us: int, ages: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
        """Yield (age, rows) of the hours that a state of this moment scores at some age."""
        for age in ages:
            hour_us = frozen_us + (age - 1) * HOUR_US
            if hour_us in self.rows:
                yield age, self.rows[hour_us]

    def empty(self, name: str, ages: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return a column of NaN for each age, float64 of shape (n,)."""
        return {f"{name}_{age}h": np.full(len(self.tokens), np.nan) for age in ages}

    def frozen_at(self, ages: tuple[int, ...]) -> list[int]:
        """Return every moment of which a state is needed, rising."""
        return sorted({hour_us + (1 - age) * HOUR_US for hour_us in self.rows for age in ages})


def _online_by_age(deployment: Deployment, goal: str, seen: _Seen) -> dict[str, np.ndarray]:
    columns = seen.empty("online", AGES)
    for frozen_us in seen.frozen_at(AGES):
        pointer = online_hours.pointer(goal, frozen_us - HOUR_US)
        digest = resolve(deployment.checkpoints, pointer)
        expert = online_hours.open_expert(deployment.checkpoints, digest)
        for age, rows in seen.scored_by(frozen_us, AGES):
            columns[f"online_{age}h"][rows] = expert.logits(seen.tokens[rows])[:, 0]
    return columns


def _shown(
    deployment: Deployment, contract: FeatureContract, goal: str, rows: pa.Table
) -> Examples:
    """Return what the online learner is shown of emitted rows."""
    dataset = deployment.dataset
    settings = dataset.settings.online
    shown = shown_examples(rows, dataset.goal(goal), [settings], settings.kind_weights)
    rows = rows.take(pa.array(shown.places))
    return Examples(
        slots=slots(contract, *read_as_served(deployment, contract, rows)),
        labels=shown.labels,
        weights=shown.weights,
        emit_us=rows.column("emit_us").to_numpy(),
    )


def _equal_by_age(
    warehouse: Warehouse, deployment: Deployment, contract: FeatureContract, goal: str, seen: _Seen
) -> dict[str, np.ndarray]:
    """Train the online learner anew on the last hours before each moment, equally many for all."""
    settings = deployment.dataset.settings.online
    frozen = seen.frozen_at(AGES)
    span = {"start_us": frozen[0] - EQUAL_HOURS * HOUR_US, "end_us": frozen[-1]}
    with warehouse.reader() as connection:
        rows = rows_of(connection, select("learners.emitted_examples"), span | {"goal": goal})
    examples = _shown(deployment, contract, goal, rows)
    emit_us = examples.emit_us
    columns = seen.empty("equal", AGES)
    for frozen_us in frozen:
        first, last = np.searchsorted(emit_us, [frozen_us - EQUAL_HOURS * HOUR_US, frozen_us])
        expert = new_expert(settings)
        learnt = examples.taken(slice(int(first), int(last)))
        expert.learn(learnt.slots, learnt.labels, learnt.weights)
        for age, of_hour in seen.scored_by(frozen_us, AGES):
            columns[f"equal_{age}h"][of_hour] = expert.logits(seen.tokens[of_hour])[:, 0]
    return columns


def _by_refresh(
    warehouse: Warehouse, deployment: Deployment, contract: FeatureContract, goal: str, seen: _Seen
) -> dict[str, np.ndarray]:
    """Score by copies of one learner that never stops, each refreshed at its own pace."""
    settings = deployment.dataset.settings.online
    start_us, end_us = min(seen.rows), max(seen.rows) + HOUR_US
    span = {"start_us": deployment.dataset.start_us, "end_us": end_us}
    with warehouse.reader() as connection:
        rows = rows_of(connection, select("learners.emitted_examples"), span | {"goal": goal})
    examples = _shown(deployment, contract, goal, rows)
    return refreshed_logits(
        new_expert(settings), examples, seen.tokens, seen.served_us, start_us, end_us
    )


def refreshed_logits(
    expert: OnlineExpert,
    examples: Examples,
    tokens: np.ndarray,
    served_us: np.ndarray,
    start_us: int,
    end_us: int,
) -> dict[str, np.ndarray]:
    """Learn examples as they are emitted, and score by exports that are refreshed at some paces.

    Parameters
    ----------
    expert : OnlineExpert
        Untrained, and linear.
    examples : Examples
        From the start of the log.
    tokens : ndarray of shape (n, F), uint32
        Slots of the impressions.
    served_us : ndarray of shape (n,), int64
        Rising, in ``[start_us, end_us)``.
    start_us, end_us : int
        Every pace begins with an export at the start.

    Returns
    -------
    dict of str to ndarray of shape (n,), float64
        ``refreshed_<minutes>m``: the logit of the newest export at serving; it has learnt what was
        emitted before the moment of the export.

    Raises
    ------
    ValueError
        If the expert is not linear.
    """
    columns = {f"refreshed_{m}m": np.empty(len(tokens)) for m in REFRESH_MINUTES}
    served_by: dict[int, LinearWeights] = {}
    learnt = 0
    step_us = min(REFRESH_MINUTES) * MINUTE_US
    for moment_us in range(start_us, end_us, step_us):
        emitted = int(np.searchsorted(examples.emit_us, moment_us))
        new = slice(learnt, emitted)
        expert.learn(examples.slots[new], examples.labels[new], examples.weights[new])
        learnt = emitted
        exported = expert.linear_weights()
        if exported is None:
            raise ValueError("the online expert is not linear")
        first, last = np.searchsorted(served_us, [moment_us, moment_us + step_us])
        for minutes in REFRESH_MINUTES:
            if (moment_us - start_us) % (minutes * MINUTE_US) == 0:
                served_by[minutes] = exported
            logits = served_by[minutes].logits(tokens[first:last])
            columns[f"refreshed_{minutes}m"][first:last] = logits
    return columns


def _batch_by_age(
    warehouse: Warehouse,
    deployment: Deployment,
    contract: FeatureContract,
    goal: str,
    seen: _Seen,
    served: pa.Table,
    end_us: int,
) -> dict[str, np.ndarray]:
    """Train batch models for some hours of the last day; their online logit is the served one."""
    with warehouse.reader() as connection:
        told = rows_of(
            connection,
            "SELECT impression_id, logit FROM learners.online_predictions WHERE goal = $goal "
            "AND serving_us >= $start_us ORDER BY serving_us, impression_id",
            {"goal": goal, "start_us": min(seen.rows)},
        )
    known = told.slice(0, served.num_rows)
    if not known.column("impression_id").equals(served.column("impression_id")):
        raise ValueError(f"{goal}: the online predictions are not those of the impressions")
    online = known.column("logit").to_numpy()
    chosen = [end_us - 24 * HOUR_US + hour * HOUR_US for hour in BATCH_HOURS_OF_DAY]
    columns = seen.empty("batch", BATCH_AGES)
    for hour_us in chosen:
        rows = seen.rows[hour_us]
        for age in BATCH_AGES:
            model = train_after(
                warehouse,
                deployment,
                contract,
                deployment.dataset.goal(goal),
                hour_us - age * HOUR_US,
            )
            if isinstance(model, TooFewPositives):
                raise ValueError(f"{goal}: {model}; take a larger world")
            columns[f"batch_{age}h"][rows] = model.predict_logits(
                seen.matrix[rows], seen.categories[rows], online[rows]
            )
    return columns


def _received(warehouse: Warehouse, start_us: int, end_us: int) -> pa.Table:
    query = select("features.impressions_received")
    with warehouse.reader() as connection:
        return rows_of(connection, query, {"start_us": start_us, "end_us": end_us})
