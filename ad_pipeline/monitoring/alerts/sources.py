"""Where things go wrong: a registry of small sources, one a finding.

To add one: a SELECT ``dbt_like_sql/monitoring/alerts_of_<name>.sql`` with the columns severity,
subject, found, since_us and act, and its line in :data:`SOURCES`; or a function where what is wrong
stands in files. A source reads findings and judges nothing that its room could judge. One whose
tables were never made says nothing.
"""

import re
from collections.abc import Iterator, Mapping

from ad_pipeline.checkpoints import MissingCheckpoint, is_pointed, resolve
from ad_pipeline.clocks import HOUR_US, MINUTE_US, about, hour_key, timestamp
from ad_pipeline.learners.online.online_checkpoints import pointer
from ad_pipeline.monitoring.alerts.alert import Alert, Seen, Source
from ad_pipeline.monitoring.delay_calibration import judged_models
from ad_pipeline.serving.bundle import CorruptBundle, open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.heartbeat import heartbeats
from ad_pipeline.serving.pointers import SNAPSHOT, read_pointer
from ad_pipeline.serving.production import lagging
from ad_pipeline.serving.promotion import history
from ad_pipeline.warehouse import rows_of, select

_READ = re.compile(r"\b(?:FROM|JOIN)\s+(\w+\.\w+)")


def selected(name: str) -> Source:
    """Return the source that is the SELECT ``monitoring.alerts_of_<name>``.

    It may name ``$from_us`` (start of the hours that count as now), ``$known_until_us``, and the
    fields of ``settings.alerts``.
    """

    def source(seen: Seen) -> Iterator[Alert]:
        query = select(f"monitoring.alerts_of_{name}")
        if not _tables_read(query) <= seen.tables:
            return
        settings = seen.deployment.dataset.settings.alerts
        given = settings.model_dump() | {
            "from_us": seen.known_until_us - settings.lookback_hours * HOUR_US,
            "known_until_us": seen.known_until_us,
        }
        for row in rows_of(seen.connection, query, given).to_pylist():
            yield Alert(source=name, **row)

    return source


def suspect_hours(seen: Seen) -> Iterator[Alert]:
    """Tell of hours whose guard tripped and that nobody decided about."""
    query = select("learners.suspect_hours")
    if not _tables_read(query) <= seen.tables:
        return
    for row in rows_of(seen.connection, query).to_pylist():
        hour = hour_key(row["hour_us"])
        yield Alert(
            "suspect_hours",
            "page",
            f"{row['goal']}, {hour}",
            row["reason"],
            row["hour_us"],
            f"ad_pipeline recover --goal {row['goal']} --hour {hour}",
        )


def models_missing(seen: Seen) -> Iterator[Alert]:
    """Tell of goals without an online model of the last sealed hour."""
    hour_us = seen.known_until_us - HOUR_US
    for goal in seen.deployment.dataset.goal_names:
        if not is_pointed(seen.deployment.checkpoints, pointer(goal, hour_us)):
            yield Alert(
                "models_missing",
                "page",
                goal,
                f"no online model of {goal} has learnt {hour_key(hour_us)}, which is sealed",
                hour_us,
                f"start the job main for {hour_key(hour_us)}; `ad_pipeline run` does, too",
            )


def served_bundle(seen: Seen) -> Iterator[Alert]:
    """Tell of a bundle that serves and is not intact, or lacks an expert."""
    paths = seen.deployment
    moves = history(paths.serving)
    if not moves:
        return
    last = moves[-1]
    subject = f"bundle {last.digest[:12]}"
    try:
        bundle = open_bundle(paths.bundles, last.digest)
    except (CorruptBundle, MissingCheckpoint) as error:
        yield Alert(
            "served_bundle",
            "page",
            subject,
            f"what serves cannot be opened again: {error}",
            last.watermark_us,
            "ad_pipeline rollback",
        )
        return
    for lacking in bundle.missing():
        yield Alert(
            "served_bundle",
            "warn",
            f"{subject}: {lacking}",
            f"{lacking}, as decisions say in their fallbacks",
            last.watermark_us,
            "look at learners/batch_model and learners/ensemble; enough labels mend it by itself",
        )


def candidate_refused(seen: Seen) -> Iterator[Alert]:
    """Tell of a candidate that does not serve."""
    paths = seen.deployment
    if not is_pointed(paths.bundles, CANDIDATE):
        return
    digest = resolve(paths.bundles, CANDIDATE)
    moves = history(paths.serving)
    if moves and moves[-1].digest == digest:
        return
    by_hand = bool(moves) and moves[-1].action == "rollback"
    yield Alert(
        "candidate_refused",
        "warn",
        "candidate",
        f"candidate {digest[:12]} does not serve; "
        + (f"{moves[-1].digest[:12]} does" if moves else "nothing does")
        + (", after a rollback" if by_hand else ""),
        moves[-1].watermark_us if moves else seen.known_until_us,
        "the page of serving/current says why; materialize it again once that is mended",
    )


def snapshot_stale(seen: Seen) -> Iterator[Alert]:
    """Tell of published rates that are older than those due for the next hour."""
    paths = seen.deployment
    published = read_pointer(paths.serving, SNAPSHOT)
    lag_us = paths.dataset.settings.rates.publication_lag_hours * HOUR_US
    due_us = seen.known_until_us - lag_us
    if published is None or published.position >= due_us:
        return
    yield Alert(
        "snapshot_stale",
        "page",
        "rates",
        f"serving/snapshot counts up to {timestamp(published.position)}, due is "
        f"{timestamp(due_us)}: scores use rates that are {about(due_us - published.position)} old",
        published.position,
        f"materialize features/rates for {hour_key(published.position)} and later",
    )


def scorer_behind(seen: Seen) -> Iterator[Alert]:
    """Tell of scorers that report another bundle than the pointer names."""
    paths = seen.deployment
    moves = history(paths.serving)
    grace_us = paths.dataset.settings.alerts.scorer_grace_minutes * MINUTE_US
    for each in lagging(heartbeats(paths.serving), moves, grace_us):
        yield Alert(
            "scorer_behind",
            "page",
            each.scorer,
            f"{each.scorer} serves {each.bundle_hash[:12]} at {timestamp(each.at_us)}, but the "
            f"pointer names {moves[-1].digest[:12]}",
            moves[-1].watermark_us,
            "let it call Scorer.refresh(), or start it again; its own log says why it could not",
        )


def delays_miscalibrated(seen: Seen) -> Iterator[Alert]:
    """Tell of models of delay that are off by more than their settings tolerate."""
    if "monitoring.delay_calibration" not in seen.tables:
        return
    settings = seen.deployment.dataset.settings.delays
    hours = rows_of(
        seen.connection,
        "SELECT * FROM monitoring.delay_calibration WHERE hour_us >= $from_us ORDER BY hour_us",
        {"from_us": seen.known_until_us - settings.calibration_hours * HOUR_US},
    ).to_pylist()
    for model in judged_models(hours):
        if model.beyond(settings.calibrated_factor):
            yield Alert(
                "delays_miscalibrated",
                "warn",
                model.name,
                f"{model.ratio:.2f} events for each that {model.name} predicted "
                f"({model.low:.2f} to {model.high:.2f}) in {model.hours} hours",
                min(h["hour_us"] for h in hours if h["goal"] == model.goal),
                "ad_pipeline delay-report; the next fit is at the next settings.delays."
                "refit_every_hours",
            )


def checks_failed(seen: Seen) -> Iterator[Alert]:
    """Tell of asset checks that did not pass when they were last asked."""
    for each in seen.failed_checks:
        yield Alert(
            "checks_failed",
            "page" if each.blocks else "warn",
            f"{each.asset}: {each.check}",
            each.found or "it said nothing",
            # A check's own clock is the wall's.
            seen.known_until_us,
            f"look at the checks of {each.asset}; materialize it again once that is mended",
        )


def _tables_read(query: str) -> set[str]:
    return set(_READ.findall(query))


SOURCES: Mapping[str, Source] = {
    "suspect_hours": suspect_hours,
    "failed_recoveries": selected("failed_recoveries"),
    "hours_left_out": selected("hours_left_out"),
    "models_missing": models_missing,
    "suspect_labels": selected("suspect_labels"),
    "drifted_columns": selected("drifted_columns"),
    "drift_verdicts": selected("drift_verdicts"),
    "withdrawn_estimates": selected("withdrawn_estimates"),
    "parity_findings": selected("parity_findings"),
    "served_bundle": served_bundle,
    "candidate_refused": candidate_refused,
    "snapshot_stale": snapshot_stale,
    "scorer_behind": scorer_behind,
    "rows_quarantined": selected("rows_quarantined"),
    "rows_late": selected("rows_late"),
    "delays_miscalibrated": delays_miscalibrated,
    "checks_failed": checks_failed,
}
"""By name, which is the alert's ``source``."""
