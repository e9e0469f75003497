"""Which asset checks did not pass when they were last asked, as the instance knows them.

Only Dagster knows it; what is made of it is for :mod:`ad_pipeline.monitoring.alerts`.
"""

import dagster as dg

from ad_pipeline.defs import checks
from ad_pipeline.monitoring.alerts.alert import FailedCheck


def failed_checks(instance: dg.DagsterInstance) -> list[FailedCheck]:
    """Return the checks whose newest evaluation failed, by asset and name.

    All of them, whatever the run at hand selects: else an alert would end because nobody looked. A
    check that is being evaluated, or whose run died in it, says nothing.

    Parameters
    ----------
    instance : DagsterInstance
    """
    defined = dg.load_asset_checks_from_package_module(checks)
    keys = sorted({key for each in defined for key in each.check_keys})
    newest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    evaluations = [
        record.event.asset_check_evaluation
        for record in newest.values()
        if record.event is not None and record.event.asset_check_evaluation is not None
    ]
    found = [
        FailedCheck(
            asset=each.asset_key.to_user_string(),
            check=each.check_name,
            blocks=each.severity == dg.AssetCheckSeverity.ERROR,
            found=each.description or "",
        )
        for each in evaluations
        if not each.passed
    ]
    return sorted(found, key=lambda each: (each.asset, each.check))
