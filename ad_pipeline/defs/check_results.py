"""How a check says what it found: one shape of result for the checks of all rooms."""

import dagster as dg

Shown = float | int | str | bool | dg.MetadataValue


def found(
    name: str,
    asset: list[str],
    passed: bool,
    description: str,
    *,
    warns: bool = False,
    **metadata: Shown,
) -> dg.AssetCheckResult:
    """Return one check's result.

    Parameters
    ----------
    name : str
        The check.
    asset : list of str
        Key of the asset that it judges.
    passed : bool
    description : str
        What was found, with its figures, for people.
    warns : bool
        A failure is a warning: it blocks nothing.
    **metadata
        Figures; Dagster plots numbers over time.
    """
    severity = dg.AssetCheckSeverity.WARN if warns else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=dg.AssetKey(asset),
        passed=passed,
        severity=severity,
        description=description,
        metadata=metadata,
    )
