"""What two minutes of nulls cost, with and without feature dropout and the fallback ladder.

A feature server that answers nothing for two minutes under peak traffic was one of the two causes
that Pinterest found for models that were better offline and worse online. Two learners are made of
the same four days of a small market: one as the settings are, one that learns without some of the
columns of a few impressions (``settings.feature_dropout``). Their bundles score the fifth day four
ways: as it is; with all columns null; with each column null by the toss of a coin; without counts.
Each way is scored twice by the same bundle: by the mixture, whatever is missing, and under the
bundle's fallback ladder, whose defaults come from the two days before. The share of columns below
which its simple rates answer was chosen on seeds 701-703, the ladder's other parts on 701 and 702.
Every two minutes of the day are such a burst in turn, so a burst's mean cost is that of all rows.
Scores are held against the *true* probabilities: expected log loss, without the noise of labels.

    python -m benchmarks.evidence.null_burst [--seeds N] [--fresh] [--budget]
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import DAY_US, HOUR_US, hours_between
from ad_pipeline.datasets import DATA_FOLDER, Dataset, Deployment, load_dataset
from ad_pipeline.evaluation.truth import read_truth
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.features.as_served import matured_impressions, newest_requests
from ad_pipeline.features.dictionary import tokens_of_slots
from ad_pipeline.features.rates import advance_hours, pointer, snapshot_hour
from ad_pipeline.hashing import uniform
from ad_pipeline.learners.batch import batch_hours
from ad_pipeline.learners.ensemble import ensembles
from ad_pipeline.learners.online import online_hours
from ad_pipeline.learners.online.grid_hours import chosen_configurations
from ad_pipeline.serving.bundle import Bundle
from ad_pipeline.serving.candidate import build_candidate
from ad_pipeline.serving.scorer import PublishedSnapshot, Scorer
from ad_pipeline.settings import FeatureDropoutSettings
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.warehouse import Warehouse, rows_of
from benchmarks.claims import Claim, Section, percent, percent_range, seed_text, table_lines
from benchmarks.library_path import finish, run_hours
from benchmarks.seed_intervals import Estimate, mean_over_seeds
from benchmarks.studies import Result, Study, Values, command_line, values_of

PLAIN, DROPOUT = "plain", "dropout"
ARMS: dict[str, FeatureDropoutSettings | None] = {
    PLAIN: None,
    DROPOUT: FeatureDropoutSettings(),
}
SPEC = MarketplaceSpec(
    impressions_per_day=25_000, users=8_000, ads=300, click_rate=0.08, purchase_rate=0.25
)
LEARNT_DAYS = 4
SEEDS = tuple(range(901, 906))
GOALS = ("click", "purchase")
HEALTHY, NULLS, HALF, UNCOUNTED = "healthy", "nulls", "half", "uncounted"
BURSTS = {
    NULLS: "all columns null",
    HALF: "each column null by a coin",
    UNCOUNTED: "no counts",
}
TOLERATED = 0.002
"""Relative log loss that dropout may cost on a healthy day."""
LADDER = "ladder"
"""Ending of the names of what was scored under it; the others are the mixture's."""
FITTED_BY = ("hours", "maximum_rows", "least_share")
"""Settings of the ladder that what is scored here follows from."""
VERSION = 2


def run(arm: str, seed: int) -> Values:
    """Learn four days and score the fifth in every way.

    Parameters
    ----------
    arm : {'plain', 'dropout'}
    seed : int

    Returns
    -------
    dict of str to float
        Normalized entropy by goal and way, without and with the ladder: expected log loss over the
        entropy of the day's true mean.
    """
    with tempfile.TemporaryDirectory() as scratch:
        deployment = Deployment(_dataset(ARMS[arm]), Path(scratch))
        simulate_days(
            replace(SPEC, seed=seed), deployment.logs, deployment.truth, range(LEARNT_DAYS + 1)
        )
        served_us = deployment.dataset.start_us + LEARNT_DAYS * DAY_US
        bundle = _learnt(deployment, served_us)
        rows, snapshots = _next_day(deployment, bundle, served_us)
        mixture = replace(bundle, goals=tuple(replace(g, ladder=None) for g in bundle.goals))
        scores = {
            f"{way}{ending}": _scored(scoring, rows, snapshots, way)
            for way in (HEALTHY, *BURSTS)
            for scoring, ending in ((mixture, ""), (bundle, f"/{LADDER}"))
        }
        values: Values = {}
        for goal in GOALS:
            truth = read_truth(deployment.truth, goal).select(["impression_id", "probability"])
            ids = rows.select(["impression_id"]).append_column("row", pa.array(range(len(rows))))
            known = ids.join(truth, "impression_id", join_type="inner").sort_by("row")
            places = known.column("row").to_numpy()
            p = known.column("probability").to_numpy()
            base = expected_loss(p, np.full(len(p), p.mean()))
            values[f"{goal}/rows"] = float(len(p))
            for way, found in scores.items():
                values[f"{goal}/{way}"] = expected_loss(p, found[goal][places]) / base
        return values


def expected_loss(truth: np.ndarray, said: np.ndarray) -> float:
    """Return the expected log loss of probabilities (n,) under the true ones, nats a row."""
    return float(-(truth * np.log(said) + (1 - truth) * np.log1p(-said)).mean())


def _dataset(dropout: FeatureDropoutSettings | None) -> Dataset:
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    settings = dataset.settings.model_copy(update={"feature_dropout": dropout})
    return dataset.model_copy(update={"settings": settings})


def _learnt(deployment: Deployment, end_us: int) -> Bundle:
    warehouse = Warehouse(deployment.warehouse)
    run_hours(deployment, deployment.dataset.start_us, end_us, with_parity=False)
    finish(deployment, with_drift=False, with_bundle=False)
    hour_us, requests = newest_requests(warehouse)
    return build_candidate(
        deployment,
        hour_us,
        requests,
        read_tokens=partial(tokens_of_slots, warehouse, hour_us + HOUR_US),
        read_matured=partial(
            matured_impressions, warehouse, deployment.dataset.settings, hour_us + HOUR_US
        ),
        configurations=chosen_configurations(warehouse, deployment, hour_us + HOUR_US),
    )


def _next_day(
    deployment: Deployment, bundle: Bundle, start_us: int
) -> tuple[pa.Table, dict[int, PublishedSnapshot]]:
    """Read the next day's impressions, and open the snapshot that each of its hours is served with.

    Returns
    -------
    rows : pa.Table
        In order of occurrence.
    snapshots : dict of int to PublishedSnapshot
        By hour of occurrence, microseconds.
    """
    dataset, warehouse, end_us = (
        deployment.dataset,
        Warehouse(deployment.warehouse),
        start_us + DAY_US,
    )
    ingest_hours(warehouse, deployment, start_us, end_us)
    root = deployment.snapshots
    for _ in advance_hours(warehouse, root, bundle.contract, dataset, start_us, end_us):
        pass
    query = (
        "SELECT * FROM events.impressions WHERE occurred_us >= $start_us AND occurred_us < $end_us "
        "ORDER BY occurred_us, impression_id"
    )
    with warehouse.reader() as connection:
        rows = rows_of(connection, query, {"start_us": start_us, "end_us": end_us})
    return rows, {
        hour_us: PublishedSnapshot.read(
            root, resolve(root, pointer(snapshot_hour(bundle.contract, hour_us)))
        )
        for hour_us in hours_between(start_us, end_us)
    }


def _scored(
    bundle: Bundle, rows: pa.Table, snapshots: Mapping[int, PublishedSnapshot], way: str
) -> dict[str, np.ndarray]:
    """Return every row's probability by goal, with its columns or counts taken away."""
    occurred_us = rows.column("occurred_us").to_numpy()
    parts = []
    for hour_us, snapshot in snapshots.items():
        place, end = np.searchsorted(occurred_us, [hour_us, hour_us + HOUR_US]).tolist()
        requests = rows.slice(place, end - place).select(["occurred_us", *bundle.contract.columns])
        for name in bundle.contract.columns:
            requests = requests.set_column(
                requests.column_names.index(name), name, _lost(rows, requests, name, way, place)
            )
        used = None if way == UNCOUNTED else snapshot
        parts.append(Scorer(bundle, used).score_many(requests).probabilities)
    return {goal: np.concatenate([part[goal] for part in parts]) for goal in GOALS}


def _lost(
    rows: pa.Table, requests: pa.Table, name: str, way: str, place: int
) -> pa.Array | pa.ChunkedArray:
    column = requests.column(name)
    if way == NULLS:
        return pa.nulls(len(column), column.type)
    if way == HALF:
        ids = rows.column("impression_id").slice(place, len(column))
        kept = uniform(0, ids, f"null burst {name}") < 0.5
        return pa.array(
            [
                value if there else None
                for value, there in zip(column.to_pylist(), kept, strict=True)
            ],
            column.type,
        )
    return column


STUDY = Study(
    name="null_burst",
    settings={
        "spec": {key: value for key, value in asdict(SPEC).items() if key != "seed"},
        "settings": {arm: _dataset(dropout).settings.digest() for arm, dropout in ARMS.items()},
        "code_versions": {
            "batch": batch_hours.CODE_VERSION,
            "ensemble": ensembles.CODE_VERSION,
            "online": online_hours.CODE_VERSION,
        },
        # Not its stale_hours: here every snapshot is the one due.
        "fallbacks": _dataset(None).settings.model_dump(include={"fallbacks": set(FITTED_BY)})[
            "fallbacks"
        ],
        "learnt_days": LEARNT_DAYS,
        "version": VERSION,
    },
    seeds=dict.fromkeys(ARMS, SEEDS),
    run=run,
    seconds=40.0,
)


def loss_of_burst(results: Sequence[Result], arm: str, goal: str, burst: str) -> list[float]:
    """Return what a burst adds to an arm's normalized entropy, by seed; ``burst/ladder`` under it.

    A healthy day costs the same with the ladder as without.
    """
    burst_, healthy = (values_of(results, arm, f"{goal}/{way}") for way in (burst, HEALTHY))
    return [during - before for during, before in zip(burst_, healthy, strict=True)]


def claims(results: Sequence[Result]) -> list[Claim]:
    """Return what ladder and dropout save in each burst, and dropout costs on a healthy day."""
    made: list[Claim] = []
    for goal in GOALS:
        for burst in BURSTS:
            made.append(_saved(results, goal, burst, DROPOUT))
            made.append(_saved(results, goal, burst, PLAIN))
        made.append(_cost(results, goal))
    return made


def _saved(results: Sequence[Result], goal: str, burst: str, arm: str) -> Claim:
    plain = loss_of_burst(results, PLAIN, goal, burst)
    with_ladder = loss_of_burst(results, arm, goal, f"{burst}/{LADDER}")
    ratio = mean_over_seeds([kept / p for kept, p in zip(with_ladder, plain, strict=True)])
    control = mean_over_seeds(plain)
    key, means, without = {
        DROPOUT: ("", "feature dropout and the fallback ladder", "without either"),
        PLAIN: (f".{LADDER}", "the fallback ladder alone", "without it"),
    }[arm]
    return Claim(
        key=f"null_burst.{goal}.{burst}{key}",
        says=(
            f"Two minutes of {BURSTS[burst]} cost {goal}s at most half as much normalized entropy "
            f"with {means} as {without}."
        ),
        figure=f"{ratio.value:.2f} of it",
        interval=f"{ratio.low:.2f} to {ratio.high:.2f}",
        seeds=seed_text(SEEDS),
        met=ratio.high <= 0.5,
        control=f"without either the burst costs {control.value:+.4f} ({control.low:+.4f} to "
        f"{control.high:+.4f})",
        control_met=control.low > 0,
    )


def _cost(results: Sequence[Result], goal: str) -> Claim:
    healthy = {arm: values_of(results, arm, f"{goal}/{HEALTHY}") for arm in ARMS}
    cost = mean_over_seeds(
        [d / p - 1 for d, p in zip(healthy[DROPOUT], healthy[PLAIN], strict=True)]
    )
    control = mean_over_seeds([1 - each for each in healthy[PLAIN]])
    return Claim(
        key=f"null_burst.{goal}.cost",
        says=(
            f"On a healthy day feature dropout costs {goal}s less than {percent(TOLERATED, 1)} of "
            "log loss."
        ),
        figure=percent(cost.value),
        interval=percent_range(cost),
        seeds=seed_text(SEEDS),
        met=cost.high < TOLERATED,
        control=f"what is learnt at all takes {percent(control.value, 1)} off the base rate's "
        f"({percent_range(control, 1)})",
        control_met=control.low > 0,
    )


SCORED = (
    (PLAIN, "", "neither"),
    (DROPOUT, "", "dropout"),
    (PLAIN, f"/{LADDER}", "ladder"),
    (DROPOUT, f"/{LADDER}", "dropout and ladder"),
)
"""Arms, scored without and with the ladder, and the words for it."""


def details(results: Sequence[Result]) -> list[str]:
    """Return normalized entropy of every arm and way, without and with the ladder."""
    rows = []
    for goal in GOALS:
        for arm, ending, words in SCORED:
            cells = [
                _cell(mean_over_seeds(values_of(results, arm, f"{goal}/{way}{ending}")))
                for way in (HEALTHY, *BURSTS)
            ]
            rows.append([goal, words, *cells])
    return [
        "Normalized entropy under the true probabilities, mean over the seeds with its interval; 1 "
        "is what the base rate gives, and what answering it instead of a score would give.",
        "",
        *table_lines(["goal", "with", HEALTHY, *BURSTS.values()], rows),
    ]


def _cell(found: Estimate) -> str:
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def picture(results: Sequence[Result]) -> bytes:
    """Draw normalized entropy of both learners in every burst, per goal, and under the ladder."""
    from benchmarks.pictures import new_figure, png

    figure, axes = new_figure(columns=2)
    ways = (HEALTHY, *BURSTS)
    for panel, goal in zip(axes, GOALS, strict=True):
        for shift, (arm, ending, words) in enumerate(SCORED):
            found = [
                mean_over_seeds(values_of(results, arm, f"{goal}/{way}{ending}")) for way in ways
            ]
            panel.errorbar(
                np.arange(len(ways)) + 0.15 * (shift - 1.5),
                [each.value for each in found],
                yerr=[
                    [each.value - each.low for each in found],
                    [each.high - each.value for each in found],
                ],
                fmt="s" if ending else "o",
                color={PLAIN: "tab:red", DROPOUT: "tab:blue"}[arm],
                label=words,
            )
        panel.axhline(1.0, color="gray", linestyle=":", label="base rate")
        panel.set_xticks(range(len(ways)), ["healthy", "all null", "half null", "no counts"])
        panel.set_ylabel("normalized entropy")
        panel.set_title(f"{goal}s")
    axes[0].legend()
    return png(figure)


SECTION = Section(
    study=STUDY,
    title="Nulls for two minutes",
    method=(__doc__ or "").split("\n\n")[1].replace("\n", " "),
    claims=claims,
    details=details,
    pictures={"null_burst": picture},
)

if __name__ == "__main__":
    command_line([STUDY], __doc__)
