"""The delay report of a deployment: its log read as known at a moment, measured, kept and drawn.

Reading and writing only. What the delays are is :mod:`.report`, what other losses would have done
:mod:`.what_if`, what follows :mod:`.recommendation`, how it looks :mod:`.delay_page`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.clocks import HOUR_US, hour_of
from ad_pipeline.datasets import Dataset, Deployment, Goal
from ad_pipeline.evaluation.metrics import probabilities_of
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.monitoring.delay_report.delay_page import delay_page
from ad_pipeline.monitoring.delay_report.delay_plots import delay_picture
from ad_pipeline.monitoring.delay_report.log_model import model_of
from ad_pipeline.monitoring.delay_report.recommendation import GoalReport, recommended
from ad_pipeline.monitoring.delay_report.report import (
    NONE,
    AgeBucket,
    DelayFacts,
    KnownAnchors,
    SeenAds,
    by_ad_age,
    delay_facts,
)
from ad_pipeline.monitoring.delay_report.report_rows import report_rows
from ad_pipeline.monitoring.delay_report.value import value_function
from ad_pipeline.monitoring.delay_report.what_if import objective_of, what_if
from ad_pipeline.monitoring.tables import DELAY_REPORT
from ad_pipeline.warehouse import Warehouse, arrow_rows, rows_of, select

PAGE = "delay_report.html"
"""In the folder of reports; beside it a picture a goal, ``delay_report_<goal>.png``."""


@dataclass(frozen=True)
class WrittenReport:
    """What a report holds.

    Attributes
    ----------
    goals : tuple of GoalReport
        One of every goal that has anchors.
    pictures : dict of str to bytes
        By goal, a PNG.
    rows : pyarrow.Table
        Of ``monitoring.delay_report``.
    """

    goals: tuple[GoalReport, ...]
    pictures: dict[str, bytes]
    rows: pa.Table


def write_delay_report(
    warehouse: Warehouse, deployment: Deployment, goal: str | None = None
) -> WrittenReport:
    """Replace the rows of ``monitoring.delay_report``, the page and its pictures.

    Parameters
    ----------
    warehouse : Warehouse
        With labels and predictions of all sealed hours.
    deployment : Deployment
    goal : str, optional
        Only this one; the rows of the others stay, the page is of it alone.

    Raises
    ------
    LookupError
        If the dataset has no such goal.
    """
    dataset = deployment.dataset
    known = [each.name for each in dataset.goals]
    if goal is not None and goal not in known:
        raise LookupError(f"{dataset.name} has no goal {goal!r}; it has {', '.join(known)}")
    chosen = [each for each in dataset.goals if goal in (None, each.name)]
    warehouse.create((DELAY_REPORT,))
    reports = tuple(_reports(warehouse, dataset, chosen))
    rows = arrow_rows(
        DELAY_REPORT,
        [row for each in reports for row in report_rows(each, dataset.settings.delay_report)],
    )
    with warehouse.writer() as connection:
        connection.register("measured", rows)
        for each in chosen:
            connection.execute(
                f"DELETE FROM {DELAY_REPORT.name} WHERE goal = $goal", {"goal": each.name}
            )
        connection.execute(f"INSERT INTO {DELAY_REPORT.name} BY NAME SELECT * FROM measured")
    pictures = {
        each.facts.goal.name: delay_picture(each, title=f"{dataset.name}: {each.facts.goal.name}")
        for each in reports
    }
    deployment.reports.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (deployment.reports / f"delay_report_{name}.png").write_bytes(picture)
    page = delay_page(dataset.name, reports, pictures, dataset.settings.delay_report)
    (deployment.reports / PAGE).write_text(page)
    return WrittenReport(reports, pictures, rows)


def _reports(warehouse: Warehouse, dataset: Dataset, goals: Sequence[Goal]) -> Iterator[GoalReport]:
    settings = dataset.settings
    worth = value_function(settings.delay_report.value_function)
    for goal in goals:
        with warehouse.reader() as connection:
            now_us = sealed_until(connection)
            start_us = max(
                now_us - settings.delay_report.lookback_hours * HOUR_US, hour_of(dataset.start_us)
            )
            ad_names, ads = seen_ads(connection, now_us)
            anchors = known_anchors(connection, dataset, goal, ad_names, start_us, now_us)
            if not len(anchors.anchor_us):
                continue
            facts = delay_facts(
                anchors, ads, settings.delay_report, start_us, settings.evaluation.level
            )
            served = served_by_ad_age(connection, dataset, facts, ad_names, ads)
        model, online = model_of(facts), settings.online.of_goal(goal.name)
        if model is None:
            yield GoalReport(facts, served, None, None)
            continue
        replayed = what_if(model, settings, online, worth)
        found = recommended(replayed, objective_of(online), settings.delay_report)
        yield GoalReport(facts, served, replayed, found)


def seen_ads(connection: duckdb.DuckDBPyConnection, now_us: int) -> tuple[pa.Array, SeenAds | None]:
    """Return the names of the ads of a log, and how they lived; None if it names none."""
    rows = rows_of(connection, select("monitoring.ad_lives"), {"now_us": now_us})
    names = rows.column("ad_id").combine_chunks()
    if not len(names):
        return names, None
    first_us, last_us = rows.column("first_us").to_numpy(), rows.column("last_us").to_numpy()
    return names, SeenAds(
        first_us=first_us,
        last_us=last_us,
        impressions=rows.column("impressions").to_numpy(),
        log_start_us=int(first_us.min()),
        traffic_end_us=hour_of(int(last_us.max())) + HOUR_US,
    )


def known_anchors(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    goal: Goal,
    ad_names: pa.Array,
    start_us: int,
    now_us: int,
) -> KnownAnchors:
    """Return the anchors of a goal served in ``[start_us, now_us)``, as known at ``now_us``.

    Parameters
    ----------
    connection : DuckDBPyConnection
    dataset : Dataset
    goal : Goal
    ad_names : pyarrow.Array of str
        Of :func:`seen_ads`.
    start_us, now_us : int
    """
    rows = rows_of(
        connection,
        select("monitoring.label_arrivals"),
        {
            "goal": goal.name,
            "start_us": start_us,
            "now_us": now_us,
            "window_us": goal.window_us,
            "lateness_us": goal.lateness_us,
            "without_goal": goal.without or "",
            "one_in": 1,
            "delay_group": dataset.settings.delays.group_by,
        },
    )
    groups = rows.column("delay_group").cast(pa.string())
    group_names = groups.drop_null().unique().sort()
    return KnownAnchors(
        goal=goal,
        now_us=now_us,
        anchor_us=rows.column("anchor_us").to_numpy(),
        serving_us=rows.column("serving_us").to_numpy(),
        arrived_us=rows.column("arrived_us").fill_null(NONE).to_numpy(),
        matured=rows.column("matured").to_numpy(),
        groups=_places(groups, group_names),
        group_names=tuple(group_names.to_pylist()),
        ads=_places(rows.column("ad_id"), ad_names),
    )


def served_by_ad_age(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    facts: DelayFacts,
    ad_names: pa.Array,
    ads: SeenAds | None,
) -> dict[str, list[AgeBucket]]:
    """Return how each expert's serving-time scores fit the final labels, by the age of the ad.

    Parameters
    ----------
    connection : DuckDBPyConnection
    dataset : Dataset
    facts : DelayFacts
        Whose moment, range and buckets are taken.
    ad_names : pyarrow.Array of str
    ads : SeenAds or None

    Returns
    -------
    dict of str to list of AgeBucket
        By expert; empty if the log names no ads.
    """
    if ads is None:
        return {}
    rows = rows_of(
        connection,
        select("monitoring.scored_anchors"),
        {"goal": facts.goal.name, "start_us": facts.start_us, "now_us": facts.now_us},
    )
    serving_us = rows.column("serving_us").to_numpy()
    retired_after_us = dataset.settings.delay_report.retired_after_hours * HOUR_US
    ages_us = ads.ages_us(_places(rows.column("ad_id"), ad_names), serving_us, retired_after_us)
    labels = rows.column("label").to_numpy()
    probabilities = probabilities_of(rows.column("logit").to_numpy())
    experts = rows.column("expert").to_numpy(zero_copy_only=False)
    found: dict[str, list[AgeBucket]] = {}
    for expert in sorted(set(experts.tolist())):
        own = experts == expert
        found[expert] = by_ad_age(
            labels[own],
            probabilities[own],
            ages_us[own],
            serving_us[own],
            facts.edges_us,
            dataset.settings.evaluation.level,
        )
    return found


def _places(values: pa.ChunkedArray, among: pa.Array) -> np.ndarray:
    """Return the place of each value, int64 (n,); -1 of a null and of what is not there."""
    if not len(among):
        return np.full(len(values), NONE, dtype=np.int64)
    options = pc.SetLookupOptions(value_set=among, skip_nulls=True)
    found = pc.call_function("index_in", [values], options)
    return found.fill_null(NONE).cast(pa.int64()).to_numpy()
