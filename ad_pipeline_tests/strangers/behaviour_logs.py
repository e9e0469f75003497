"""Small logs of what users did in the formats of MovieLens, Taobao and Criteo, with faults in them.

Only the formats are real; values are drawn here, from a seed. What must come of a file is for
``test_behaviour_logs.py`` to say, which reads it with an oracle.
"""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ad_pipeline.clocks import SECOND_US

HOURS = 30
"""Length of every log here: longer than a day, so that ids of a day change within it."""

CRITEO_COLUMNS = (
    "timestamp", "uid", "campaign", "conversion", "conversion_timestamp", "conversion_id",
    "attribution", "click", "click_pos", "click_nb", "cost", "cpo", "time_since_last_click",
    *(f"cat{number}" for number in range(1, 10)),
)  # fmt: skip
"""Header of Criteo's attribution log."""


def write_movielens(path: Path, *, start_us: int, seed: int = 4) -> None:
    """Write ratings as in ``ratings.csv``, or as in ml-1m where the path ends in ``.dat``.

    By user and movie, so in no order of time, with CRLF at the ends of lines.
    """
    draw = np.random.default_rng(seed)
    mark = "::" if path.name.endswith(".dat") else ","
    start_s, last_s = start_us // SECOND_US, start_us // SECOND_US + HOURS * 3600 - 1
    lines: list[str] = []
    for user in range(1, 41):
        movies = np.sort(draw.choice(80, int(draw.integers(5, 40)), replace=False)) + 1
        for movie in movies:
            rating = int(draw.integers(1, 11)) / 2
            early = bool(draw.random() < 0.2)
            rated_s = draw.integers(1_000_000_000, start_s) if early else None
            at_s = int(draw.integers(start_s, last_s) if rated_s is None else rated_s)
            lines.append(mark.join((str(user), str(movie), str(rating), str(at_s))))
    lines += [mark.join(("77", str(place), "", str(start_s + 60))) for place in (1, 2)]
    lines += [mark.join(("78", str(place), "5.0", "yesterday")) for place in (1, 2)]
    lines += [mark.join(("79", "1", "4.0", str(last_s)))]  # so the log is seen to reach its end
    lines.insert(200, f"12{mark}34")
    for place in (10, 20, 30):
        lines.insert(place, lines[place])
    header = [] if path.name.endswith(".dat") else ["userId,movieId,rating,timestamp"]
    _write(path, header + lines, end="\r\n")


def write_taobao_behaviour(path: Path, *, start_us: int, seed: int = 5) -> None:
    """Write views, carts, favourites and purchases as in ``UserBehavior.csv``, by user.

    Most purchases follow a view of the item on the same day; some have none, some come before it.
    """
    draw = np.random.default_rng(seed)
    start_s, last_s = start_us // SECOND_US, start_us // SECOND_US + HOURS * 3600 - 1
    lines: list[str] = []
    for user in range(1, 61):
        of_user: list[tuple[int, str]] = []
        for _ in range(int(draw.integers(10, 40))):
            item = int(draw.integers(1, 400))
            at_s = int(draw.integers(start_s, last_s))
            # The time between views of one item is minutes, so some lie on both sides of midnight.
            seen = [at_s, min(at_s + int(draw.integers(0, 1800)), last_s)]
            seen = seen[: 1 + int(draw.random() < 0.15)]
            of_user += [(second, f"{user},{item},{item % 7},pv,{second}") for second in seen]
            if draw.random() < 0.3:
                behaviour = draw.choice(["cart", "fav", "buy"])
                second = min(max(at_s + int(draw.integers(-150, 9000)), start_s), last_s)
                of_user.append((second, f"{user},{item},{item % 7},{behaviour},{second}"))
        if user % 2:
            of_user.sort()  # users of odd numbers are in order, the others are not
        lines += [line for _, line in of_user]
    lines += ["901,5,5,pv,-1501372800", "901,6,6,buy,-2134949234"]
    lines += [f"902,5,5,pv,{second}" for second in (start_s - 1, 1_442_361_600, 44, start_s - 9)]
    lines += [f"903,5,5,pv,{second}" for second in (last_s + 1, 2_122_867_355, last_s + 90_000)]
    lines += [f"904,5,5,share,{start_s + 100}", f"905,5,5,pv,{last_s}"]
    lines += [f"906,,5,pv,{start_s + 50}", f"906,,5,buy,{start_s + 60}"]
    lines.insert(300, "17,4,")
    for place in (3, 33, 133, 233, 433):
        lines.insert(place, lines[place])
    _write(path, lines)


def write_taobao_ads(folder: Path, *, start_us: int, seed: int = 6) -> None:
    """Write ``raw_sample.csv`` and ``behavior_log.csv``: behaviours begin 20 hours before ads."""
    draw = np.random.default_rng(seed)
    start_s = start_us // SECOND_US
    first_s, last_s = start_s + 20 * 3600, start_s + HOURS * 3600 - 1
    shown = ["user,time_stamp,adgroup_id,pid,nonclk,clk"]
    for _ in range(900):
        clicked = int(draw.random() < 0.1)
        shown.append(
            f"{draw.integers(1, 50)},{draw.integers(first_s, last_s)},{draw.integers(1, 99)},"
            f"{draw.choice(['430548_1007', '430539_1007'])},{1 - clicked},{clicked}"
        )
    shown += [f"7,{last_s},5,430548_1007,1,0", "7,soon,5,430548_1007,1,0"]
    shown += [shown[11], shown[111]]
    did = ["user,time_stamp,btag,cate,brand"]
    for _ in range(1_500):
        behaviour = draw.choice(["pv", "cart", "fav", "buy"], p=[0.9, 0.05, 0.03, 0.02])
        did.append(
            f"{draw.integers(1, 50)},{draw.integers(start_s, last_s)},{behaviour},"
            f"{draw.integers(1, 40)},{draw.integers(1, 200)}"
        )
    did += [f"3,{start_s + 5},pv,8,", f"3,{start_s + 6},buy,8,NULL", f",{start_s + 7},pv,8,9"]
    did += ["5,1493", did[22]]
    _write(folder / "raw_sample.csv", shown)
    _write(folder / "behavior_log.csv", did)


def write_criteo_attribution(path: Path, *, seed: int = 7) -> None:
    """Write impressions with clicks and late conversions, tab separated and gzipped, by time.

    A conversion stands on each impression of its user and campaign before it, up to 12 hours back;
    of one in twenty the time is beyond that.
    """
    draw = np.random.default_rng(seed)
    at_s = np.sort(draw.integers(0, HOURS * 3600, 1_200))
    at_s[-1] = HOURS * 3600 - 1
    rows: list[list[str]] = []
    bought: dict[tuple[int, int], int] = {}
    for second in at_s.tolist():
        user, campaign = int(draw.integers(1, 80)), int(draw.integers(1, 9))
        key = (user, campaign)
        if bought.get(key, -1) <= second:
            delay = int(draw.exponential(7_200)) + 1
            late = 43_200 + int(draw.integers(1, 900))
            bought[key] = second + (late if draw.random() < 0.05 else min(delay, 43_200))
        converts = draw.random() < 0.25
        clicked = int(draw.random() < 0.4)
        conversion = str(bought[key]) if converts else "-1"
        name = f"{user * 100_000 + bought[key]}" if converts else "-1"
        rows.append(
            [str(second), str(user), str(campaign), str(int(converts)), conversion, name,
             str(int(converts and clicked)), str(clicked), "-1", "-1", "0.0001", "0.2",
             str(int(draw.integers(-1, 90_000))),
             *(str(draw.integers(1, 20)) for _ in range(9))]
        )  # fmt: skip
    lines = ["\t".join(CRITEO_COLUMNS), *("\t".join(row) for row in rows)]
    # At the end: a line that cannot be taken apart has no number, one that can has.
    lines += ["17\t4", "\t".join(["late", *rows[0][1:]])]
    _write(path, lines)


def _write(path: Path, lines: Sequence[str], end: str = "\n") -> None:
    content = (end.join(lines) + end).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    # mtime 0: the same seed gives the same bytes.
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
