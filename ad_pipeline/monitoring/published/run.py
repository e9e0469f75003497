"""One run of a published protocol from log files to a printed table, as the command line asks.

What it will take is said before it starts, and runs are kept one by one, so that a run that was
killed goes on. The protocol is :mod:`.protocols`; what a table holds, :mod:`.figures`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ad_pipeline.clocks import DAY_US, timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.monitoring.late_labels.prequential import judged_anchors
from ad_pipeline.monitoring.late_labels.runs import Say
from ad_pipeline.monitoring.published.figures import (
    PUBLISHED,
    Figures,
    figures_of,
    table_lines,
)
from ad_pipeline.monitoring.published.log import read_clicks
from ad_pipeline.monitoring.published.protocols import (
    Defect,
    Reproduction,
    UnknownChoice,
    emitted_ahead,
    end_of_tests_us,
    goal_of,
    protocol_arms,
    protocol_of,
    published_learners,
    published_replay,
    published_stream,
    window_us,
)

CLICKS_A_SECOND = 15_000
"""That the label join and the models of delay take. A million took 30 to 110 s on two cores, alone
and beside other work; it is said beforehand and nothing depends on it."""

FOLDER = "published_protocol"
"""Of kept runs, under a deployment's home."""

KEPT_SHARE = 0.9
"""Of the clicks that each of several seeds learns: linear learners draw nothing else."""


NET = (
    "net labels: no arm unlearns a conversion that is taken back after it was shown, so streams "
    "teach gross conversions; compare ranks (AUC) and not log losses"
)


@dataclass(frozen=True)
class Asked:
    """What a person asks of a protocol.

    Attributes
    ----------
    arms : tuple of str
        Empty for all of the protocol.
    seeds : int
        How many. One learns every click; several leave out another tenth each.
    family : {'linear', 'deep'}
    share : float
        Of the clicks.
    window : str or None
        Hours that methods wait; None: as published.
    net : bool
        Whether a conversion that is taken back counts as none.
    defects : frozenset of Defect
    bits : int
        2^bits slots.
    """

    arms: tuple[str, ...] = ()
    seeds: int = 1
    family: Literal["linear", "deep"] = "linear"
    share: float = 1.0
    window: str | None = None
    net: bool = False
    defects: frozenset[Defect] = frozenset()
    bits: int = 18


def run_published(deployment: Deployment, asked: Asked, say: Say) -> dict[str, Figures]:
    """Run a protocol and print its table.

    Parameters
    ----------
    deployment : Deployment
        Runs are kept in its home; nothing else of it is touched.
    asked : Asked
    say : callable
        Gets each line.

    Returns
    -------
    dict of str to Figures
        By arm.

    Raises
    ------
    UnknownChoice
        If what is asked for is not there.
    FileNotFoundError
        If the log's files are not.
    LookupError
        If no protocol was published on the dataset, or the log is too short to test anything.
    """
    dataset = deployment.dataset
    protocol = protocol_of(dataset)
    if asked.seeds < 1 or not 0 < asked.share <= 1:
        raise UnknownChoice("take at least one seed, and a share of the clicks in (0, 1]")
    observation_us = None if asked.window is None else window_us(asked.window, asked.defects)
    goal = goal_of(protocol, dataset, net=asked.net, observation_us=observation_us)
    arms = protocol_arms(protocol, goal, asked.arms, asked.defects)
    clicks = read_clicks(deployment, goal, asked.share)
    say(
        f"{protocol.name}: {len(clicks):,} clicks, {int((clicks.arrived_us >= 0).sum()):,} "
        f"conversions; {clicks.refused:,} rows refused; recorded until "
        f"{timestamp(clicks.recorded_us)}"
    )
    for defect in sorted(asked.defects):
        say(f"with defect {defect}")
    if asked.net:
        say(NET)
    minutes = len(clicks) / CLICKS_A_SECOND / 60
    say(f"joining labels and fitting models of delay takes about {minutes:.1f} min")
    stream = published_stream(
        clicks, dataset, protocol, goal, arms, asked.bits, net=asked.net, defects=asked.defects
    )
    reproduction = Reproduction(
        protocol=protocol,
        stream=stream,
        replay=published_replay(
            protocol, dataset, stream, 1.0 if asked.seeds == 1 else KEPT_SHARE, asked.defects
        ),
        learners=published_learners(asked.family, stream, asked.defects),
        folder=deployment.home / FOLDER,
        tested_until_us=end_of_tests_us(protocol, dataset),
        defects=asked.defects,
    )
    _say_what_is_tested(reproduction, say)
    seeds = range(asked.seeds)
    left = reproduction.bench.missing(arms, seeds)
    if left:
        say(
            f"{len(reproduction.outcomes):,} rows were emitted"
        )  # by now models of delay are fitted
    minutes = reproduction.bench.seconds(arms, seeds) / 60
    say(
        f"{len(arms) * len(seeds) - len(left)} runs are kept, {len(left)} are left; they take "
        f"about {minutes:.1f} min, and go on where they were if stopped"
    )
    reproduction.run(arms, seeds, say)
    found = figures_of(reproduction, arms, seeds)
    task = f"{protocol.name}, net" if asked.net else protocol.name
    for line in table_lines(found, PUBLISHED.get(task, PUBLISHED[protocol.name])):
        say(line)
    return found


def _say_what_is_tested(reproduction: Reproduction, say: Say) -> None:
    stream, replay = reproduction.stream, reproduction.replay
    judged = judged_anchors(stream, replay)
    tested = judged[reproduction.tested(judged)]
    if not len(tested):
        raise LookupError(
            "no click of the tested part has a final label: the log was recorded for less than "
            f"{stream.horizon_us / DAY_US:g} days after the split at {timestamp(replay.split_us)}"
        )
    in_part = int(reproduction.tested(np.arange(len(stream))).sum())
    say(
        f"split at {timestamp(replay.split_us)}; {len(tested):,} of {in_part:,} clicks of the "
        "tested part have a final label and are judged"
    )
    ahead = emitted_ahead(stream)
    if ahead:
        say(f"LEAK: {ahead:,} emitted positives come before their conversion does")
