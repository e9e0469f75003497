"""When assets refresh without being asked: the hourly schedule and the named conditions.

Reactions to the outside world (new files, a drift verdict) are sensors, in ``sensors.py``.
"""

import dagster as dg

from ad_pipeline.defs.jobs import main, report_delays


def refresh_after_upstream() -> dg.AutomationCondition:
    """Refresh an unpartitioned asset when something upstream changed in another run.

    ``AutomationCondition.eager`` would never fire here: it waits until no upstream partition is
    missing, and an open log always has hours to come. It would also run ahead of a failed blocking
    check, since across runs Dagster does not hold downstream assets back by itself.
    """
    return (
        dg.AutomationCondition.any_deps_updated().since_last_handled()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label("refresh_after_upstream")


def refresh_to_tell() -> dg.AutomationCondition:
    """Refresh an unpartitioned asset after anything upstream, also behind a failed blocking check.

    What tells people that something is wrong must not be held back by it.
    """
    return (
        dg.AutomationCondition.any_deps_updated().since_last_handled()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label("refresh_to_tell")


hourly = dg.build_schedule_from_partitioned_job(
    main,
    name="hourly",
    minute_of_hour=10,
    description="Run the main job for the log hour that closed ten minutes ago.",
)

daily_delay_report = dg.ScheduleDefinition(
    name="daily_delay_report",
    job=report_delays,
    cron_schedule="40 3 * * *",
    description="Make the delay report anew, at night: delays change in days, not in hours.",
)

automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Evaluates the assets' automation conditions; on by default.",
)
