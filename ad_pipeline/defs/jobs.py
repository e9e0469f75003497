"""The jobs a person or a sensor starts.

Each is a selection of assets; what they do stands with the assets, when they start by themselves
in ``automation.py`` and ``sensors.py``.
"""

import dagster as dg

from ad_pipeline.defs.lineage import ON_DEMAND

BESIDE_THE_PATH = dg.AssetSelection.tag(ON_DEMAND, "")
"""Half an hour, half a minute, a minute: nothing in the path waits for them."""

ACTIONS = dg.AssetSelection.assets(["monitoring", "actions"])
"""Every job that acts on drift keeps what it does beside its evidence."""


main = dg.define_asset_job(
    "main",
    selection=dg.AssetSelection.all() - BESIDE_THE_PATH,
    description=(
        "Run the whole path for a range of log hours: events, labels, learners, ensemble, drift, "
        "parity, bundle, promotion. Start it from the Partitions tab with any range."
    ),
)

ledger = dg.define_asset_job(
    "ledger",
    selection=dg.AssetSelection.assets(["events", "files"]),
    description="Register new log files in the ledger, each once, with its checksum.",
)

recover_online_model = dg.define_asset_job(
    "recover_online_model",
    # Retrains stand upstream and are made in one step with the batch model.
    selection=dg.AssetSelection.assets(["learners", "quarantined_hours"])
    .downstream()
    .required_multi_asset_neighbors()
    - BESIDE_THE_PATH,
    description=(
        "Take the online model back to before a suspect log hour and learn from there on without "
        "it; all that depends on the model is made anew. Choose the partitions from that hour to "
        "the newest one, and name it by goal in the configuration of the step quarantine: "
        "hours: {click: '2026-03-02-07:00'}. The sensor suspect_hours starts it when the guard "
        "trips."
    ),
)

prune = dg.define_asset_job(
    "prune",
    selection=dg.AssetSelection.assets(["learners", "kept_checkpoints"]),
    description=(
        "Remove the checkpoints of the online model that settings.checkpoints does not keep, and "
        "bundles that never served. The main job does it, too."
    ),
)

retrain = dg.define_asset_job(
    "retrain",
    # One step makes both: the table of what was asked for, and the model.
    selection=dg.AssetSelection.assets(["learners", "retrains"], ["learners", "batch_model"])
    | ACTIONS,
    description=(
        "Train LightGBM anew in one log hour and record why. The sensor drift_actions starts it; "
        "the ensemble, the bundle and its checks follow by automation."
    ),
)

refit_delays = dg.define_asset_job(
    "refit_delays",
    selection=dg.AssetSelection.assets(["learners", "delay_refits"], ["learners", "delay_models"])
    | ACTIONS,
    description=(
        "Fit the models of delay anew in one log hour, out of their schedule, and record why. The "
        "sensor drift_actions starts it when labels come earlier or later than they did."
    ),
)

raise_rate = dg.define_asset_job(
    "raise_rate",
    selection=dg.AssetSelection.assets(["learners", "rate_orders"]) | ACTIONS,
    description=(
        "Order that the online learner begins the hour after the chosen one with a raised rate, "
        "and record why. Only under settings.online.rate_control, which lets it fall again."
    ),
)

recalibrate = dg.define_asset_job(
    "recalibrate",
    selection=dg.AssetSelection.assets(["learners", "ensemble"]) | ACTIONS,
    description=(
        "Fit the mixture and the calibration anew on the newest matured rows and record why; the "
        "bundle and its checks follow by automation."
    ),
)

benchmark_delays = dg.define_asset_job(
    "benchmark_delays",
    selection=dg.AssetSelection.assets(["monitoring", "delay_benchmark"]),
    description=(
        "Replay every way of learning from late labels on a sample of the log, for up to half an "
        "hour, and compare them on matured labels. Killed, it goes on where it was."
    ),
)

report_delays = dg.define_asset_job(
    "report_delays",
    selection=dg.AssetSelection.assets(["monitoring", "delay_report"]),
    description=(
        "Say how late labels come, which loss to learn them with and what another one would cost, "
        "and check that served scores are calibrated at every age of an ad."
    ),
)

stress_serving = dg.define_asset_job(
    "stress_serving",
    selection=dg.AssetSelection.assets(["monitoring", "serving_stress"]),
    description=(
        "Replay the busiest minutes of the log through the bundle that serves, an hour's traffic "
        "in a minute: as logged, with all columns null for two minutes, with old counts, without "
        "any."
    ),
)


drill_rollback = dg.define_asset_job(
    "drill_rollback",
    selection=dg.AssetSelection.assets(["monitoring", "rollback_drill"]),
    description=(
        "Plant faults in a copy of what serves, and see them refused, undone and timed: a flipped "
        "byte, a canary that is off, a poisoned model, a torn pointer, stale rates. What serves is "
        "not touched. Name some of them in the configuration of the step "
        "rollback_drill, or drill all."
    ),
)
