"""Going back to the last good online model, and on from there without the hour that spoilt it.

A recovery is four steps: the decision about the hour becomes a row, the pointers of that hour and
of those after it are taken away, the hours are run again, and what came of it becomes a row. The
row comes first and the newest pointer goes first, so that a recovery that is killed at any point is
ended by whoever runs the hours that have no model: they find the decision and leave the hour out.

An hour that is left out is scored like any other and none of its examples is learnt: what comes
after it is, to the bit, what would have come if it had never had any. What makes an hour suspect is
:mod:`.guard`'s to say; who serves with a model that has learnt it is for ``serving`` to see to.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ad_pipeline.checkpoints import MissingCheckpoint, is_pointed, resolve, unpoint
from ad_pipeline.clocks import HOUR_US, hour_key, hour_of, hours_between
from ad_pipeline.datasets import Deployment
from ad_pipeline.learners.deep.deep_hours import pointer as deep_pointer
from ad_pipeline.learners.online.online_checkpoints import digest_before, learnt_hours, pointer
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.online.quarantine import Decision, decide, replace_rows
from ad_pipeline.learners.tables import HOUR_GUARDS, QUARANTINED_HOURS, RECOVERIES, TABLES
from ad_pipeline.warehouse import Warehouse, one_row, rows_of, select

GUARD = "guard"
"""The cause of a decision that nobody made by hand."""


@dataclass(frozen=True)
class Suspects:
    """What the guard's verdicts ask for.

    Attributes
    ----------
    hours_us : dict of str to int
        By goal: its first hour that tripped and that nobody has decided about, microseconds.
    reasons : dict of str to str
        By goal: what the guard said of it.
    decided : dict of str to str
        By goal: what was decided about the hour, if it was not run again since.
    by_hand : dict of str to str
        By goal: why a person has to decide, for the goals where nothing is done without one.
    """

    hours_us: dict[str, int]
    reasons: dict[str, str]
    decided: dict[str, str]
    by_hand: dict[str, str]

    @property
    def automatic(self) -> dict[str, int]:
        """The hours that may be left out without a person."""
        return {
            goal: us
            for goal, us in self.hours_us.items()
            if goal not in self.by_hand and self.decided.get(goal, "left_out") == "left_out"
        }

    def described(self) -> str:
        """Return all of it for people; "" if no hour is suspect."""
        return "; ".join(
            f"{goal} in {hour_key(hour_us)}: {self.reasons[goal]}"
            + (f" ({self.by_hand[goal]})" if goal in self.by_hand else "")
            for goal, hour_us in self.hours_us.items()
        )


@dataclass(frozen=True)
class RolledBack:
    """Where a goal's model went back to.

    Attributes
    ----------
    goal : str
    hour_us : int
        Hour that was decided about, microseconds.
    digest : str or None
        Last good checkpoint; None for the log's start.
    start_us : int
        First hour to run again, microseconds.
    end_us : int
        End of the last one.
    """

    goal: str
    hour_us: int
    digest: str | None
    start_us: int
    end_us: int

    @property
    def hours(self) -> int:
        """Hours to run again."""
        return (self.end_us - self.start_us) // HOUR_US


@dataclass(frozen=True)
class Recovery:
    """One roll-back and the replay after it.

    Attributes
    ----------
    rolled_back : RolledBack
    recovered_as : str
        Newest checkpoint of the goal; "" if there is none.
    left_out_examples : int
    succeeded : bool
    outcome : str
        For people.
    seconds : float or None
        None where another run ended what this one began.
    """

    rolled_back: RolledBack
    recovered_as: str
    left_out_examples: int
    succeeded: bool
    outcome: str
    seconds: float | None


def suspects(warehouse: Warehouse, deployment: Deployment) -> Suspects:
    """Return the hours whose guard tripped and that nobody has decided about.

    Only the first of a goal: a model that has learnt it is surprised by the hours after it, too.
    An hour that was decided about and not run again since is suspect as before, whoever decided.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    """
    settings = deployment.dataset.settings.guard
    warehouse.create(TABLES)
    with warehouse.reader() as connection:
        found = rows_of(connection, select("learners.suspect_hours")).to_pylist()
        first = {row["goal"]: row for row in reversed(found)}
        by_hand: dict[str, str] = {}
        for goal, row in first.items():
            (so_far,) = one_row(
                connection,
                f"SELECT count(*) FROM {QUARANTINED_HOURS.name} WHERE goal = $goal "
                "AND cause = $cause AND state = 'left_out' "
                "AND hour_us >= $oldest_us AND hour_us < $hour_us",
                {
                    "goal": goal,
                    "cause": GUARD,
                    "oldest_us": row["hour_us"] - settings.recent_hours * HOUR_US,
                    "hour_us": row["hour_us"],
                },
            )
            if row["decision"] is None and so_far >= settings.automatic_recoveries:
                by_hand[goal] = (
                    f"{so_far} hours before it were left out already: the world may have changed; "
                    "`ad_pipeline recover` leaves it out, with --accept it is learnt"
                )
    return Suspects(
        {goal: row["hour_us"] for goal, row in first.items()},
        {goal: row["reason"] for goal, row in first.items()},
        {goal: row["decision"] for goal, row in first.items() if row["decision"] is not None},
        by_hand,
    )


def recoveries(warehouse: Warehouse, hours_us: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the rows of ``learners.recoveries`` of some goals' hours."""
    with warehouse.reader() as connection:
        rows = rows_of(connection, f"SELECT * FROM {RECOVERIES.name} ORDER BY hour_us, goal")
    return [row for row in rows.to_pylist() if hours_us.get(row["goal"]) == row["hour_us"]]


def replay_range(
    warehouse: Warehouse, deployment: Deployment, hours_us: Mapping[str, int]
) -> tuple[int, int]:
    """Return the hours ``[start_us, end_us)`` that a recovery runs again, microseconds.

    They begin after the last good models, which are those of the hour before unless retention has
    removed them, and end with the newest hour that was ever learnt.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    hours_us : mapping of str to int
        Goal to the hour to decide about.

    Raises
    ------
    MissingCheckpoint
        If one of them has not been learnt.
    """
    with warehouse.reader() as connection:
        judged = dict(
            connection.execute(
                f"SELECT goal, list(hour_us ORDER BY hour_us) FROM {HOUR_GUARDS.name} GROUP BY goal"
            ).fetchall()
        )
    for goal, hour_us in hours_us.items():
        if hour_us not in judged.get(goal, []):
            raise MissingCheckpoint(
                f"no online model of {goal} has learnt {hour_key(hour_us)}; there is nothing to go "
                "back from"
            )
    first_us = min(hours_us.values())
    starts = [hour_of(deployment.dataset.start_us)]
    for before_us in learnt_hours(deployment, deployment.dataset.goals[0].name):
        name_of = [pointer(goal, before_us) for goal in deployment.dataset.goal_names]
        if before_us < first_us and all(is_pointed(deployment.checkpoints, n) for n in name_of):
            starts.append(before_us + HOUR_US)
    return max(starts), max(max(hours) for hours in judged.values()) + HOUR_US


def recover(
    warehouse: Warehouse,
    deployment: Deployment,
    hours_us: Mapping[str, int],
    cause: str,
    evidence: Mapping[str, Any],
    state: Decision = "left_out",
) -> list[Recovery]:
    """Decide about hours, go back to the last good models, and learn from there on again.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    hours_us : mapping of str to int
        Goal to hour, microseconds.
    cause : str
    evidence : mapping
        JSON-serialisable.
    state : {"left_out", "accepted"}

    Raises
    ------
    MissingCheckpoint
        If an hour has not been learnt.
    """
    started = time.monotonic()
    begun = begin(warehouse, deployment, hours_us, cause, evidence, state)
    for _ in learn_hours(warehouse, deployment, begun[0].start_us, begun[0].end_us):
        pass
    return finish(warehouse, deployment, time.monotonic() - started)


def begin(
    warehouse: Warehouse,
    deployment: Deployment,
    hours_us: Mapping[str, int],
    cause: str,
    evidence: Mapping[str, Any],
    state: Decision = "left_out",
    run_us: tuple[int, int] | None = None,
) -> list[RolledBack]:
    """Do the first half of :func:`recover`: decide and roll back. The hours are to be run next.

    Parameters
    ----------
    warehouse, deployment, hours_us, cause, evidence, state
        As of :func:`recover`.
    run_us : tuple of int, optional
        The hours that will be run, microseconds; those of :func:`replay_range` if left out.

    Returns
    -------
    list of RolledBack
        One a goal of ``hours_us``.

    Raises
    ------
    MissingCheckpoint
        If an hour has not been learnt.
    ValueError
        If the hours that will be run are too few.
    """
    warehouse.create(TABLES)
    root = deployment.checkpoints
    start_us, end_us = replay_range(warehouse, deployment, hours_us)
    if run_us is not None:
        if run_us[0] > start_us or run_us[1] < end_us:
            raise ValueError(
                f"hours {hour_key(start_us)}...{hour_key(end_us - HOUR_US)} are to be run again, "
                f"not only {hour_key(run_us[0])}...{hour_key(run_us[1] - HOUR_US)}; choose those "
                "partitions"
            )
        start_us, end_us = run_us
    begun = [
        RolledBack(goal, hour_us, digest_before(deployment, goal, start_us), start_us, end_us)
        for goal, hour_us in hours_us.items()
    ]
    with warehouse.writer() as connection:
        decide(connection, hours_us, state, cause, evidence)
        replace_rows(
            connection,
            RECOVERIES,
            pa.table(
                {
                    "goal": [one.goal for one in begun],
                    "hour_us": [one.hour_us for one in begun],
                    "cause": [cause] * len(begun),
                    "rolled_back_to": [one.digest or "" for one in begun],
                    "start_us": [start_us] * len(begun),
                    "end_us": [end_us] * len(begun),
                }
            ),
        )
    # Of all goals: a run of hours learns them all, and finds where to begin by any. Wide & deep
    # leaves out the same hours, and goes on from the newest model that it finds. The newest first:
    # at no time is there an hour without a model before one that has one.
    for hour_us in range(end_us - HOUR_US, start_us - HOUR_US, -HOUR_US):
        for goal in deployment.dataset.goal_names:
            unpoint(root, pointer(goal, hour_us))
            unpoint(root, deep_pointer(goal, hour_us))
    return begun


def finish(
    warehouse: Warehouse, deployment: Deployment, seconds: float | None = None
) -> list[Recovery]:
    """Do the last part of :func:`recover`: say of each recovery that was begun what came of it.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
        Its hours have been run again.
    seconds : float, optional
        What it took; not known where another run ended what this one began.

    Returns
    -------
    list of Recovery
        Those that were open.
    """
    warehouse.create(TABLES)
    still = suspects(warehouse, deployment)
    with warehouse.reader() as connection:
        opened = rows_of(connection, select("learners.open_recoveries")).to_pylist()
    done: list[Recovery] = []
    for row in opened:
        goal, start_us, end_us = row["goal"], row["start_us"], row["end_us"]
        missing = set(hours_between(start_us, end_us)) - set(learnt_hours(deployment, goal))
        if missing:
            outcome = f"{len(missing)} hours have no model, the first is {hour_key(min(missing))}"
        elif row["state"] != row["decision"]:
            outcome = f"{hour_key(row['hour_us'])} was not run again"
        elif goal in still.hours_us:
            outcome = f"the guard trips in {hour_key(still.hours_us[goal])}: {still.reasons[goal]}"
        else:
            outcome = f"every hour up to {hour_key(end_us - HOUR_US)} is there, no guard trips"
        newest = pointer(goal, end_us - HOUR_US)
        done.append(
            Recovery(
                RolledBack(goal, row["hour_us"], row["rolled_back_to"] or None, start_us, end_us),
                resolve(deployment.checkpoints, newest) if not missing else "",
                row["examples"] if row["decision"] == "left_out" else 0,
                not missing and row["state"] == row["decision"] and goal not in still.hours_us,
                outcome,
                seconds,
            )
        )
    with warehouse.writer() as connection:
        for one in done:
            connection.execute(
                f"UPDATE {RECOVERIES.name} SET recovered_as = $recovered_as, "
                "replayed_hours = (end_us - start_us) // 3600000000, "
                "left_out_examples = $left_out_examples, succeeded = $succeeded, "
                "outcome = $outcome, seconds = $seconds "
                "WHERE goal = $goal AND hour_us = $hour_us",
                {
                    "goal": one.rolled_back.goal,
                    "hour_us": one.rolled_back.hour_us,
                    "recovered_as": one.recovered_as,
                    "left_out_examples": one.left_out_examples,
                    "succeeded": one.succeeded,
                    "outcome": one.outcome,
                    "seconds": one.seconds,
                },
            )
    return done
