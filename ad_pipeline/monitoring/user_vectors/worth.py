"""The open questions about user vectors, asked of one log: figures with their intervals.

What vectors gain the batch ranker, what their age costs, who may lose by them while little is known
of him, and what similar users' ads find, each beside what must not gain: another user's vectors,
or users drawn at random. Labels are those of the log, so intervals hold their noise: of gains a
paired bootstrap over users. They do not hold the noise of training a ranker anew for each arm, so
of two arms that differ by less than the control gains or loses, neither is shown better. Where a
log comes from is no business of this module (:mod:`.worth_of_log`), nor is how figures are shown
(:mod:`.worth_plots`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.graph import build_graph
from ad_pipeline.embeddings.retrieval import Candidates, recall_shares
from ad_pipeline.monitoring.user_vectors.cold_start import (
    BUCKETS,
    SEGMENT_STRENGTH,
    STRENGTH,
    NobodyHasVectors,
    bucket_name,
    bucket_of,
)
from ad_pipeline.monitoring.user_vectors.labelled import UNKNOWN, Impressions
from ad_pipeline.monitoring.user_vectors.ranker import Gain, RankerUntrained, gain_of, mean_losses
from ad_pipeline.monitoring.user_vectors.recall import SIMILAR_USERS
from ad_pipeline.monitoring.user_vectors.study import (
    Columns,
    StudiedLog,
    activities_of,
    columns_of,
    columns_of_strangers,
    cost_of,
    engaged_after,
    known_users,
    lists_of,
    of_known_well,
    prior_of,
    probabilities_with,
    with_vectors,
)
from ad_pipeline.settings import UserVectorSettings

INTERVALS = {
    "5 min": 5 * MINUTE_US,
    "1 h": HOUR_US,
    "6 h": 6 * HOUR_US,
    "1 d": DAY_US,
    "3 d": 3 * DAY_US,
    "7 d": 7 * DAY_US,
}
"""Of refresh; each user is refreshed at a moment of his own within it."""

MAIN_US = HOUR_US
"""Interval of all other figures: everybody is refreshed at every hour."""

LIST = 10
"""Ads of a list that recall looks at."""

ELIGIBLE_US = DAY_US
"""Ads that were shown so shortly before may be listed."""

GAIN = "gain"
INTERVAL = "refresh interval"
STALENESS = "staleness price"
COLD_START = "cold start"
RECALL = "recall"
DIMENSION = "dimension"
ABLATION = "ablation"

MATCH = "match"
PUBLISHED = "published"
STRANGERS = "another user's vectors"
WHOLE_OVER = "the whole encoder over it"
AS_THEY_ARE = "as they are"
WITH_PRIOR = "with the prior"
FROM_FEWEST = "of users who did enough"
"""As published: none of who did less than ``settings.user_vectors.fewest_activities``."""

NORMALIZED_ENTROPY = "normalized_entropy_saved"
A_MINUTE = "normalized_entropy_lost_a_minute"
RECALL_AT = f"recall_at_{LIST}"

_NORMAL = 1.959964
"""Standard deviations of a two-sided 95 % interval."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Figure:
    """An answer.

    Attributes
    ----------
    goal : str
    question : str
        :data:`GAIN`, :data:`INTERVAL` and so on.
    arm : str
        What is measured: columns, an interval, a way to make lists.
    part : str
        Bucket of activities, or what is compared; "" if neither.
    metric : str
    value, low, high : float
        With a two-sided 95 % interval; NaN where there is none.
    rows, users : int
        That it is measured on.
    """

    goal: str
    question: str
    arm: str
    part: str
    metric: str
    value: float
    low: float
    high: float
    rows: int
    users: int


@dataclass(frozen=True)
class Worth:
    """The answers of a log.

    Attributes
    ----------
    figures : tuple of Figure
    left_out : dict of str to str
        By goal, or :data:`RECALL` or :data:`INTERVAL`: why nothing is said, or not all.
    """

    figures: tuple[Figure, ...]
    left_out: dict[str, str]


def worth_of(
    log: StudiedLog,
    encoder: Encoder,
    settings: UserVectorSettings,
    seed: int,
    say: Say = lambda _: None,
    dimensions: Mapping[int, Encoder] | None = None,
    ablated: Mapping[str, Encoder] | None = None,
) -> Worth:
    """Ask a log all questions.

    Parameters
    ----------
    log : StudiedLog
    encoder : Encoder
        That learnt nothing from the moment on at which the ranker begins to learn.
    settings : UserVectorSettings
        Of the graph, and who has a vector.
    seed : int
    say : callable, optional
        Gets a line a question.
    dimensions : mapping of int to Encoder, optional
        Encoders of other dimensions that were taught the same; without any, nothing is said of
        the dimension.
    ablated : mapping of str to Encoder, optional
        Encoders that lack a part or modalities, by what they lack, and were taught the same.
    """
    figures: list[Figure] = []
    left_out: dict[str, str] = {}
    lists = _lists(log, encoder, settings, seed)
    if lists is None:
        left_out[RECALL] = "there are no two users with a vector when what is tested begins"
    short = [name for name in INTERVALS if name not in intervals_of(log)]
    if short:
        left_out[INTERVAL] = f"{', '.join(short)}: the log is not so much older than what is learnt"
    asked: list[_OfGoal] = []
    for goal in log.goals:
        try:
            of_goal = _OfGoal.of(log, goal, encoder)
            figures += _gains(of_goal, encoder, seed)
            figures += _by_interval(of_goal, encoder)
            figures += _by_activity(of_goal, encoder, settings.fewest_activities)
        except RankerUntrained as error:
            left_out[goal] = str(error)
            say(f"{goal} is left out: {error}")
            continue
        asked.append(of_goal)
        say(f"{goal}: {len(of_goal.tested.labels):,} rows tested")
        if lists is not None:
            figures += [_recall(log, goal, way, of_way) for way, of_way in lists.items()]
    if dimensions:
        every = {encoder.settings.dimension: encoder, **dimensions}
        for dimension in sorted(every):
            figures += _of_dimension(asked, log, every[dimension], settings, seed)
            say(f"dimension {dimension} is measured")
    for name, other in (ablated or {}).items():
        for of_goal in asked:
            figures += _of_ablated(of_goal, log, name, other)
        say(f"{name} is measured")
    return Worth(tuple(figures), left_out)


@dataclass(frozen=True)
class _OfGoal:
    """The tested rows of a goal, and what rankers without and with vectors say of them."""

    log: StudiedLog
    goal: str
    tested: Impressions
    without: np.ndarray
    own: Columns
    matched: np.ndarray

    @classmethod
    def of(cls, log: StudiedLog, goal: str, encoder: Encoder) -> "_OfGoal":
        shown = log.goals[goal]
        tested = shown.taken(log.split.tested(shown))
        if not len(tested.labels):
            raise RankerUntrained(
                "no label of what was shown after the ranker had learnt has matured yet; take more "
                "hours, or a later one"
            )
        # Who is unknown has no number: each of his rows is resampled by itself.
        alone = -1 - np.arange(len(tested.user))
        tested = replace(tested, user=np.where(tested.user == UNKNOWN, alone, tested.user))
        without = probabilities_with(log, goal, None)
        own = columns_of(encoder, log, goal, MAIN_US)
        return cls(log, goal, tested, without, own, probabilities_with(log, goal, own.matched))

    def says(self, columns: np.ndarray) -> np.ndarray:
        """Return the probabilities of the ranker with some more columns."""
        return probabilities_with(self.log, self.goal, columns)

    def gain(
        self,
        said: np.ndarray,
        over: np.ndarray | None = None,
        rows: np.ndarray | slice = slice(None),
    ) -> Gain:
        """Compare probabilities with others, those without vectors by default."""
        labels, other = self.tested.labels[rows], self.without if over is None else over
        losses, of_other = (mean_losses(labels, each[:, rows]) for each in (said, other))
        return gain_of(losses, of_other, self.tested.user[rows])

    def figure(self, question: str, arm: str, gain: Gain, part: str = "") -> Figure:
        return Figure(
            self.goal,
            question,
            arm,
            part,
            NORMALIZED_ENTROPY,
            gain.value,
            gain.low,
            gain.high,
            gain.rows,
            gain.users,
        )


def _gains(of_goal: _OfGoal, encoder: Encoder, seed: int) -> Iterator[Figure]:
    strangers = columns_of_strangers(encoder, of_goal.log, of_goal.goal, MAIN_US, seed)
    said = {
        MATCH: of_goal.matched,
        PUBLISHED: of_goal.says(of_goal.own.published),
        STRANGERS: of_goal.says(strangers.matched),
    }
    for arm, each in said.items():
        yield of_goal.figure(GAIN, arm, of_goal.gain(each))


def _by_interval(of_goal: _OfGoal, encoder: Encoder) -> Iterator[Figure]:
    """Measure each interval, what it saves over the next longer one, and the price of a minute."""
    names = intervals_of(of_goal.log)
    said = {
        name: of_goal.says(
            columns_of(encoder, of_goal.log, of_goal.goal, INTERVALS[name], spread=True).matched
        )
        for name in names
    }
    for place, name in enumerate(names):
        yield of_goal.figure(INTERVAL, name, of_goal.gain(said[name]))
        for longer in names[place + 1 : place + 2]:
            step = of_goal.gain(said[name], said[longer])
            yield of_goal.figure(INTERVAL, name, step, f"over {longer}")
    if len(names) < 2:
        return
    whole = of_goal.gain(said[names[0]], said[names[-1]])
    # A vector is half an interval old on average.
    minutes = (INTERVALS[names[-1]] - INTERVALS[names[0]]) / 2 / MINUTE_US
    price = replace(
        whole, value=whole.value / minutes, low=whole.low / minutes, high=whole.high / minutes
    )
    made = of_goal.figure(STALENESS, f"{names[0]} over {names[-1]}", price)
    yield replace(made, metric=A_MINUTE)


def intervals_of(log: StudiedLog) -> list[str]:
    """Return the intervals that a log is long enough for.

    A longer one would have users read vectors of before the log, when nobody had any: what that
    costs is no price of age.
    """
    before_us = log.split.learn_from_us - log.first_us
    return [name for name, interval_us in INTERVALS.items() if interval_us <= before_us]


def _by_activity(of_goal: _OfGoal, encoder: Encoder, fewest: int) -> Iterator[Figure]:
    """Measure each bucket of activities, with all vectors, as published, and with the prior."""
    log, goal = of_goal.log, of_goal.goal
    shown = log.ranked(goal)
    activities = activities_of(log, goal, MAIN_US)
    published = of_known_well(of_goal.own.matched, activities, fewest)
    said = {AS_THEY_ARE: of_goal.matched, FROM_FEWEST: of_goal.says(published)}
    try:
        prior = prior_of(log, encoder, SEGMENT_STRENGTH)
    except NobodyHasVectors:
        prior = None
    if prior is not None:
        segment = log.segments[goal][log.ranked_rows(goal)]
        shrunk = prior.read(of_goal.own.vectors, activities, segment, STRENGTH)
        said[WITH_PRIOR] = of_goal.says(with_vectors(encoder, log, goal, shrunk).matched)
    bucket = bucket_of(activities[log.split.tested(shown)])
    for arm, each in said.items():
        for place in range(len(BUCKETS)):
            inside = bucket == place
            if inside.any():
                found = of_goal.gain(each, rows=inside)
                yield of_goal.figure(COLD_START, arm, found, bucket_name(place))


def _lists(
    log: StudiedLog, encoder: Encoder, settings: UserVectorSettings, seed: int
) -> dict[str, Candidates] | None:
    """Return every way's lists; None if there are no two users to be similar."""
    users = known_users(encoder, log)
    if len(users.ids) < 2:
        return None
    graph = build_graph(users, settings, seed)
    return lists_of(log, users, graph, settings, ELIGIBLE_US, LIST, seed)


def _recall(log: StudiedLog, goal: str, way: str, of_way: Candidates) -> Figure:
    users, ads = engaged_after(log, goal)
    shares = recall_shares(of_way, users, ads, LIST)
    count = len(shares)
    mean = float(shares.mean()) if count else float("nan")
    reach = _NORMAL * float(shares.std(ddof=1)) / count**0.5 if count > 1 else float("nan")
    return Figure(
        goal, RECALL, way, "", RECALL_AT, mean, mean - reach, mean + reach, len(ads), count
    )


def _of_dimension(
    asked: Sequence[_OfGoal],
    log: StudiedLog,
    encoder: Encoder,
    settings: UserVectorSettings,
    seed: int,
) -> Iterator[Figure]:
    """Measure an encoder's match columns, the recall of its similar users, and what it costs."""
    arm, none = str(encoder.settings.dimension), float("nan")
    lists = _lists(log, encoder, settings, seed)
    cost = cost_of(encoder, log)
    for of_goal in asked:
        goal = of_goal.goal
        own = columns_of(encoder, log, goal, MAIN_US)
        yield of_goal.figure(DIMENSION, arm, of_goal.gain(of_goal.says(own.matched)))
        if lists is not None:
            recall = _recall(log, goal, SIMILAR_USERS, lists[SIMILAR_USERS])
            yield replace(recall, question=DIMENSION, arm=arm)
        for metric, value in asdict(cost).items():
            yield Figure(goal, DIMENSION, arm, "", metric, value, none, none, 0, 0)


def _of_ablated(of_goal: _OfGoal, log: StudiedLog, name: str, encoder: Encoder) -> Iterator[Figure]:
    """Measure an encoder that lacks something, and what the whole one saves over it."""
    matched = of_goal.says(columns_of(encoder, log, of_goal.goal, MAIN_US).matched)
    yield of_goal.figure(ABLATION, name, of_goal.gain(matched))
    yield of_goal.figure(ABLATION, name, of_goal.gain(of_goal.matched, matched), WHOLE_OVER)
