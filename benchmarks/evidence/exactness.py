"""What is claimed as exact is exact: re-runs, replay, parity, and no row that knows the future.

A tiny exchange of two days lives its whole life: a day is learnt and promoted, a driver serves the
second day through the bundle, that day is learnt too. Then everything is held against itself: the
same log in a fresh home and the same range once more in the old one, the candidate in a fresh
process against the batch path, every served decision against the bundle that it names, and every
row that was written before some hour against a run whose log ends at that hour. Counts of what
differs must be 0; each has a planted fault that it must find.

    python -m benchmarks.evidence.exactness [--seeds N] [--fresh] [--budget]
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ad_pipeline.checkpoints import point, resolve
from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.datasets import DATA_FOLDER, Dataset, Deployment, load_dataset
from ad_pipeline.features.as_served import newest_requests
from ad_pipeline.learners.ftrl.exported_weights import ExportedWeights
from ad_pipeline.monitoring.parity.recheck import recheck_decisions
from ad_pipeline.monitoring.replay import Replayed, replay_candidate
from ad_pipeline.serving.bundle import export_bundle, open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.settings import BatchSettings, OnlineSettings, PromotionSettings
from ad_pipeline.simulation.driver import drive_day
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.warehouse import Warehouse, one_row, rows_of, select
from benchmarks.claims import Claim, Section, seed_text
from benchmarks.library_path import finish, run_hours
from benchmarks.studies import Result, Study, Values, command_line, values_of

SPEC = MarketplaceSpec(
    days=2,
    impressions_per_day=8_000,
    users=300,
    advertisers=4,
    campaigns=8,
    ads=40,
    publishers=8,
    segments=3,
    click_rate=0.3,
    purchase_rate=0.4,
    purchase_window_us=6 * HOUR_US,
)
"""Rates far above real ones, so that two days hold enough labels for every branch."""

SEEDS = (401, 402, 403)
MARKET = "market"
VERSION = 2
"""Raise when the same settings would give other counts."""

CUT_US = 30 * HOUR_US
"""The shorter log ends this long after the start."""

BEFORE_THE_CUT = {
    "examples.training_examples": "emit_us",
    "examples.labelled_impressions": "matured_us",
    "learners.online_predictions": "serving_us",
}


def run(arm: str, seed: int) -> Values:
    """Let one tiny market live and count what differs.

    Parameters
    ----------
    arm : {'market'}
    seed : int

    Returns
    -------
    dict of str to float
        Counts: what was compared, what differed, and what differed once a fault was planted.
    """
    if arm != MARKET:
        raise ValueError(f"no arm {arm!r}")
    spec = replace(SPEC, seed=seed)
    with tempfile.TemporaryDirectory(prefix="exactness-") as scratch:
        folder = Path(scratch)
        lived = Deployment(_dataset(), folder / "lived")
        first_day = _live(lived, spec)
        last = Warehouse(lived.warehouse)
        values = _replayed(last, lived) | _served(last, lived)
        values |= _repeated(lived, first_day, folder)
        # Plants its fault in the warehouse: the last to look at it.
        return values | _cut(last, lived, folder / "cut")


def _dataset() -> Dataset:
    """Return the marketplace's dataset for two days and a short purchase window."""
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    window_us = SPEC.purchase_window_us
    settings = dataset.settings.model_copy(
        update={
            "online": OnlineSettings(bits=14, micro_batch_minutes=20),
            "batch": BatchSettings(
                retrain_every_hours=12, minimum_positives=30, rounds=20, minimum_leaf_rows=20
            ),
            "promotion": PromotionSettings(margin=0.5),
        }
    )
    goals = tuple(
        goal.model_copy(update={"window_us": window_us, "observation_us": window_us - HOUR_US})
        if goal.name == "purchase"
        else goal
        for goal in dataset.goals
    )
    end_us = dataset.start_us + SPEC.days * DAY_US
    return dataset.model_copy(update={"end_us": end_us, "settings": settings, "goals": goals})


def _live(deployment: Deployment, spec: MarketplaceSpec) -> dict[str, str]:
    """Learn a day, serve the next by it, learn that; return the pointers after the first day."""
    simulate_days(spec, deployment.logs, deployment.truth, range(1))
    _learn(deployment, range(1))
    first_day = pointers(deployment)
    drive_day(spec, 1, deployment.serving, deployment.logs, deployment.truth)
    _learn(deployment, range(1, spec.days))
    return first_day


def _learn(deployment: Deployment, days: range) -> None:
    """Run the path for some days, the last one with its tail, and what comes once behind it."""
    start_us, last_us = deployment.dataset.start_us, deployment.dataset.last_hour_end_us
    end_us = start_us + days.stop * DAY_US
    if days.stop == SPEC.days and last_us is not None:
        end_us = last_us
    run_hours(deployment, start_us + days.start * DAY_US, end_us)
    finish(deployment, with_drift=False)


def pointers(deployment: Deployment) -> dict[str, str]:
    """Return every pointer to a model, a snapshot or a bundle, by name.

    What they name is content-addressed: equal pointers are equal bytes.
    """
    found: dict[str, str] = {}
    for root in (deployment.checkpoints, deployment.snapshots, deployment.bundles):
        for path in sorted((root / "pointers").rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                found[str(path.relative_to(deployment.home))] = path.read_text()
    return found


def _unlike(one: dict[str, str], other: dict[str, str]) -> float:
    return float(sum(one.get(name) != other.get(name) for name in one.keys() | other.keys()))


def _repeated(lived: Deployment, first_day: dict[str, str], folder: Path) -> Values:
    """Run the log in a fresh home, the last range again in the old one, and a changed log."""
    expected = pointers(lived)
    fresh = Deployment(lived.dataset, folder / "fresh")
    changed = Deployment(lived.dataset, folder / "changed")
    for day in range(SPEC.days):
        for home in (fresh, changed):
            _copy_logs(lived, home, [f"day={day}.parquet"])
        if day == SPEC.days - 1:
            _copy_logs(lived, fresh, ["tail.parquet"])
        _learn(fresh, range(day, day + 1))
        if day == 0:
            clicks = changed.logs / "engagements" / "day=0.parquet"
            pq.write_table(pq.read_table(clicks).slice(1), clicks)
            _learn(changed, range(1))
    _learn(lived, range(1, SPEC.days))
    return {
        "pointers": float(len(expected)),
        "fresh_home": _unlike(expected, pointers(fresh)),
        "run_again": _unlike(expected, pointers(lived)),
        "planted/changed_log": _unlike(first_day, pointers(changed)),
    }


def _copy_logs(source: Deployment, target: Deployment, names: Sequence[str]) -> None:
    for path in sorted(source.logs.rglob("*.parquet")):
        if path.name in names:
            copy = target.logs / path.relative_to(source.logs)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def _replayed(warehouse: Warehouse, lived: Deployment) -> Values:
    """Replay the candidate, then one whose weights are not those of the checkpoint it names."""
    honest = replay_candidate(warehouse, lived)
    digest = resolve(lived.bundles, CANDIDATE)
    _flip_a_weight(warehouse, lived)
    flipped = replay_candidate(warehouse, lived)
    point(lived.bundles, CANDIDATE, digest)
    return {
        "replay/scores": float(honest.scores.logged_rows),
        "replay/features": float(honest.features.logged_rows),
        "replay/differ": _differing(honest),
        "planted/flipped_weight": _differing(flipped),
    }


def _differing(replayed: Replayed) -> float:
    return float(
        sum(
            rate.mismatches + rate.missing + rate.extra
            for parity in (replayed.scores, replayed.features)
            for rate in parity.rates
        )
    )


def _flip_a_weight(warehouse: Warehouse, deployment: Deployment) -> None:
    """Make a candidate in which one weight of the clicks is one bit off."""
    bundle = open_bundle(deployment.bundles, resolve(deployment.bundles, CANDIDATE))
    _, requests = newest_requests(warehouse)
    goals = []
    for models in bundle.goals:
        linear = models.online.dense()
        weights = np.array(linear.weights)
        # The largest weight is one of a frequent value: some request meets it.
        place = int(np.argmax(np.abs(weights)))
        weights[place] = np.nextafter(weights[place], np.inf)
        online = ExportedWeights.exact(replace(linear, weights=weights))
        goals.append(replace(models, online=online) if models.goal == "click" else models)
    exported = export_bundle(
        deployment.bundles,
        contract=bundle.contract,
        goals=goals,
        dataset=bundle.dataset,
        label_watermark_us=bundle.label_watermark_us,
        canaries=requests,
    )
    point(deployment.bundles, CANDIDATE, exported.digest)


def _served(warehouse: Warehouse, lived: Deployment) -> Values:
    """Re-check every served decision, then once more with one logged score a bit off."""
    start_us = lived.dataset.start_us + DAY_US
    span = (start_us, start_us + DAY_US)

    def rechecked() -> tuple[float, float]:
        hours = list(recheck_decisions(warehouse, lived, *span))
        wrong = [
            rate.mismatches + rate.missing + rate.extra
            for hour in hours
            for parity in (hour.scores, hour.features)
            for rate in parity.rates
        ]
        return float(sum(hour.decisions for hour in hours)), float(sum(wrong))

    decisions, differ = rechecked()
    with warehouse.writer() as connection:
        request, logged = one_row(
            connection,
            "SELECT request_id, scores FROM events.decisions ORDER BY request_id LIMIT 1",
        )
        altered = _one_bit_off(json.loads(logged))
        bound = {"scores": json.dumps(altered), "request": request}
        update = "UPDATE events.decisions SET scores = $scores WHERE request_id = $request"
        connection.execute(update, bound)
    _, planted = rechecked()
    with warehouse.writer() as connection:
        connection.execute(update, bound | {"scores": logged})
    return {
        "parity/decisions": decisions,
        "parity/differ": differ,
        "planted/altered_score": planted,
    }


def _one_bit_off(scores: dict[str, Any]) -> dict[str, Any]:
    """Return logged scores with the first number, however deep, one bit higher."""
    name = next(iter(scores))
    first = scores[name]
    moved = _one_bit_off(first) if isinstance(first, dict) else float(np.nextafter(first, 1.0))
    return {**scores, name: moved}


def _cut(warehouse: Warehouse, lived: Deployment, home: Path) -> Values:
    """Compare what was written before an hour with a run whose log ends at that hour."""
    shorter = Deployment(lived.dataset, home)
    cut_us = lived.dataset.start_us + CUT_US
    _copy_logs(lived, shorter, ["day=0.parquet", "day=1.parquet"])
    for path in sorted(shorter.logs.rglob("day=1.parquet")):
        rows = pq.read_table(path)
        pq.write_table(rows.filter(pc.field("received_us") < cut_us), path)
    run_hours(shorter, lived.dataset.start_us, cut_us, with_dictionary=False, with_parity=False)
    cut = Warehouse(shorter.warehouse)
    compared, differ = _rows_unlike(warehouse, cut, cut_us)
    with warehouse.writer() as connection:
        connection.execute(
            "UPDATE examples.training_examples SET emit_us = anchor_us "
            "WHERE emit_us >= $cut_us AND anchor_us < $cut_us",
            {"cut_us": cut_us},
        )
    _, planted = _rows_unlike(warehouse, cut, cut_us)
    with warehouse.reader() as connection:
        (ahead,) = one_row(connection, select("examples.emissions_ahead_of_time"))
    return {
        "cut/rows": compared,
        "cut/differ": differ,
        "planted/leak": planted,
        "planted/leak_seen_by_check": float(ahead),
    }


def _rows_unlike(one: Warehouse, other: Warehouse, before_us: int) -> tuple[float, float]:
    """Return how many rows two warehouses have before a moment, and how many only one has."""
    compared = differ = 0
    for table, clock in BEFORE_THE_CUT.items():
        query = f"SELECT * FROM {table} WHERE {clock} < $before_us"
        sides = []
        for warehouse in (one, other):
            with warehouse.reader() as connection:
                sides.append(_texts(rows_of(connection, query, {"before_us": before_us})))
        compared += max(map(len, sides))
        differ += len(sides[0] ^ sides[1])
    return float(compared), float(differ)


def _texts(rows: pa.Table) -> set[str]:
    """Return rows as texts; every table compared has a key, so that no row is there twice."""
    return {repr(row) for row in rows.to_pylist()}


STUDY = Study(
    name="exactness",
    settings={
        "spec": {name: value for name, value in asdict(SPEC).items() if name != "seed"},
        "settings": _dataset().settings.digest(),
        "cut_us": CUT_US,
        "version": VERSION,
    },
    seeds={MARKET: SEEDS},
    run=run,
    seconds=60.0,
)


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what must be equal to the bit, each beside its planted fault."""

    def total(name: str) -> float:
        return sum(values_of(results, MARKET, name))

    def found_everywhere(*names: str) -> bool:
        return all(value > 0 for name in names for value in values_of(results, MARKET, name))

    def claim(key: str, says: str, figure: str, differ: float, control: str, met: bool) -> Claim:
        return Claim(
            key=f"exactness.{key}",
            says=says,
            figure=figure,
            interval="exact",
            seeds=seed_text(SEEDS),
            met=differ == 0,
            control=control,
            control_met=met,
        )

    again = total("fresh_home") + total("run_again")
    return [
        claim(
            "rerun",
            "The same log gives the same models, snapshots and bundle, byte for byte: in a fresh "
            "home, and when a range is run again.",
            f"{again:,.0f} of {2 * total('pointers'):,.0f} pointers differ",
            again,
            "a log without its first engagement gives other models: "
            f"{total('planted/changed_log'):,.0f} pointers differ",
            found_everywhere("planted/changed_log"),
        ),
        claim(
            "replay",
            "A candidate bundle scores the last day in a fresh process as the batch path does, to "
            "the bit.",
            f"{total('replay/differ'):,.0f} of {total('replay/scores'):,.0f} scores and "
            f"{total('replay/features'):,.0f} rows of features differ",
            total("replay/differ"),
            f"one weight one bit off is found: {total('planted/flipped_weight'):,.0f} scores "
            "differ",
            found_everywhere("planted/flipped_weight"),
        ),
        claim(
            "parity",
            "Every served decision is re-computed to the bit from the bundle and snapshot that it "
            "names.",
            f"{total('parity/differ'):,.0f} values differ in {total('parity/decisions'):,.0f} "
            "decisions",
            total("parity/differ"),
            f"one logged score one bit off is found: {total('planted/altered_score'):,.0f} values "
            "differ",
            found_everywhere("planted/altered_score"),
        ),
        claim(
            "no_future",
            "No training example, label or serving-time score depends on what the log learnt "
            "later: a log that ends earlier gives the same rows up to its end.",
            f"{total('cut/differ'):,.0f} of {total('cut/rows'):,.0f} rows differ",
            total("cut/differ"),
            "examples emitted at their anchor are found: "
            f"{total('planted/leak'):,.0f} rows differ, and the asset check counts "
            f"{total('planted/leak_seen_by_check'):,.0f}",
            found_everywhere("planted/leak", "planted/leak_seen_by_check"),
        ),
    ]


SECTION = Section(
    study=STUDY,
    title="Exactness",
    method=(
        "Three tiny markets of two days live their whole life, with a driver that serves the "
        "second day; then each is held against itself. These are counts, not estimates: the "
        "control of each is a planted fault that the same comparison must find in every market. "
        "In a first run the leak planted delayed positives only and one market had none around "
        "the cut, so nothing was planted there; now every example around the cut is moved."
    ),
    claims=claims,
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
