"""Small logs in the published formats of three real ones, with a signal that can be learnt.

Only the format is that of Criteo's conversion log, Avazu's click log and iPinYou's bid log; values
are drawn here, from a seed. Each generator returns what it planted, so that a test can hold the
tables against it. How the logs are run belongs to ``runs.py``.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ad_pipeline.clocks import SECOND_US, datetime_of

IPINYOU_COLUMNS = (
    "click", "weekday", "hour", "bidid", "timestamp", "logtype", "ipinyouid", "useragent", "IP",
    "region", "city", "adexchange", "domain", "url", "urlid", "slotid", "slotwidth", "slotheight",
    "slotvisibility", "slotformat", "slotprice", "creative", "bidprice", "payprice", "keypage",
    "advertiser", "usertag",
)  # fmt: skip
"""Header of make-ipinyou-data's text files: click, weekday and hour before its schema.txt."""

AVAZU_COLUMNS = (
    "id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id",
    "app_domain", "app_category", "device_id", "device_ip", "device_model", "device_type",
    "device_conn_type", *(f"C{number}" for number in range(14, 22)),
)  # fmt: skip
"""Header of the competition's train file."""

_CHINA_US = 8 * 3600 * SECOND_US
_BROWSERS = (
    'Mozilla/5.0 (Windows NT 6.1) AppleWebKit/537.1 (KHTML, "like" Gecko) Chrome/21.0 Safari/537.1',
    "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 5.1; Trident/4.0)",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 6_1 like Mac OS X) AppleWebKit/536.26 Safari/8536.25",
    "Mozilla/5.0 (Linux; U; Android 4.0.4; zh-cn) AppleWebKit/534.30 Safari/534.30",
)


@dataclass(frozen=True)
class Planted:
    """What a generator wrote.

    Attributes
    ----------
    lines : int
        Rows in the file.
    rows : int
        Rows that are impressions: without those delivered twice.
    positives : int
        Of those, rows with an engagement inside the window.
    outside_window : int
        Of those, rows whose engagement came too late to count.
    repeated : int
        Lines delivered twice, that can be told by an id.
    """

    lines: int
    rows: int
    positives: int
    outside_window: int = 0
    repeated: int = 0


def write_criteo(path: Path, *, rows: int, hours: int, window_hours: int, seed: int = 1) -> Planted:
    """Write a conversion log: seconds of click and conversion, integers, hashed categories.

    Rows are in no order, a tenth of the integers and some categories are empty, 1 % of the rows
    stand there twice (and are two clicks), 5 % of the conversions come after the window.

    Parameters
    ----------
    path : Path
    rows : int
        Clicks, equal ones included.
    hours : int
        Length of the log.
    window_hours : int
        Attribution window of the dataset file that will read it.
    seed : int
    """
    draw = np.random.default_rng(seed)
    clicked = np.sort(draw.integers(0, hours * 3600, rows))
    clicked[-1] = hours * 3600 - 1  # so the log is seen to reach its end
    categories = np.stack(
        [_skewed(draw, rows, size) for size in (5, 40, 12, 200, 8, 30, 400, 20, 60)]
    )
    integers = np.floor(draw.lognormal(1.5, 1.2, (8, rows))).astype(np.int64)
    logit = -1.6 + _effects(draw, categories[[1, 2, 7, 8]], 0.9) + 0.5 * np.log1p(integers[0]) - 0.9
    converts = draw.random(rows) < _probability(logit)
    # Delays as Chapelle fits them: exponential, here with a mean of a sixth of the window.
    window_s = window_hours * 3600
    delay = np.minimum(draw.exponential(window_s / 6, rows), window_s - 1).astype(np.int64)
    late = converts & (draw.random(rows) < 0.05)
    # Still received within window + lateness + one hour: counted as outside, not as unknown.
    delay[late] = window_s + draw.integers(1, 1800, int(late.sum()))
    equal = draw.choice(rows - 1, rows // 100, replace=False)
    equal = equal[equal + 1 < rows - 1]
    for column in (clicked, converts, late, delay):
        column[equal + 1] = column[equal]
    categories[:, equal + 1] = categories[:, equal]
    integers[:, equal + 1] = integers[:, equal]
    empty = draw.random((8, rows)) < 0.1
    empty[:, equal + 1] = empty[:, equal]
    texts = [
        clicked.astype(str),
        np.where(converts, (clicked + delay).astype(str), ""),
        *np.where(empty, "", integers.astype(str)),
        *(_hashed(codes, column) for column, codes in enumerate(categories)),
    ]
    texts[-2] = np.where(categories[7] == 19, "", texts[-2])
    _write_lines(path, "\t", None, texts, draw.permutation(rows))
    return Planted(
        lines=rows,
        rows=rows,
        positives=int((converts & ~late).sum()),
        outside_window=int((converts & late).sum()),
    )


def write_avazu(path: Path, *, rows: int, start_us: int, hours: int, seed: int = 2) -> Planted:
    """Write a display log: only an hour, hashed categories, the click on the row; gzipped.

    Parameters
    ----------
    path : Path
        Ends in ``.gz``.
    rows : int
        Impressions; 20 of them are delivered twice.
    start_us : int
        Start of the log, microseconds.
    hours : int
        Length of the log.
    seed : int
    """
    draw = np.random.default_rng(seed)
    hour = np.sort(draw.integers(0, hours, rows))
    hour[-1] = hours - 1
    stamps = np.array(
        [datetime_of(start_us + h * 3600 * SECOND_US).strftime("%y%m%d%H") for h in range(hours)]
    )
    sizes = (7, 7, 60, 40, 10, 50, 30, 8, 300, 900, 200, 4, 4, 150, 8, 9, 60, 4, 30, 100, 20)
    codes = np.stack([_skewed(draw, rows, size) for size in sizes])
    logit = -2.2 + _effects(draw, codes[[2, 5, 13, 16]], 0.9)
    clicks = draw.random(rows) < _probability(logit)
    identity = draw.permutation(rows).astype(np.uint64) * np.uint64(1_000_003) + np.uint64(10**18)
    numbers = {
        0: 1001,
        1: 0,
        11: 0,
        12: 0,
        13: 375,
        14: 300,
        15: 50,
        16: 1722,
        17: 0,
        18: 35,
        19: 0,
    }
    columns = [
        (codes[place] + numbers[place]).astype(str)
        if place in numbers
        else _hashed(codes[place], place)
        for place in range(len(sizes))
    ]
    columns[8] = np.where(codes[8] < 150, "a99f214a", columns[8])
    columns[19] = np.where(codes[19] < 40, "-1", columns[19])
    texts = [identity.astype(str), clicks.astype(int).astype(str), stamps[hour], *columns]
    repeated = draw.choice(rows, 20, replace=False)
    order = np.sort(np.concatenate([np.arange(rows), repeated]))
    _write_lines(path, ",", AVAZU_COLUMNS, texts, order)
    return Planted(lines=rows + 20, rows=rows, positives=int(clicks.sum()), repeated=20)


def write_ipinyou(path: Path, *, rows: int, start_us: int, hours: int, seed: int = 3) -> Planted:
    """Write a bid log: bid, price paid, click, time of China to the millisecond, lists of tags.

    Parameters
    ----------
    path : Path
    rows : int
        Impressions; 15 of them are delivered twice.
    start_us : int
        Start of the log, microseconds.
    hours : int
        Length of the log.
    seed : int
    """
    draw = np.random.default_rng(seed)
    at_ms = np.sort(draw.integers(0, hours * 3_600_000, rows))
    at_ms[-1] = hours * 3_600_000 - 1
    local = [datetime_of(start_us + int(ms) * 1000 + _CHINA_US) for ms in at_ms]
    domain, slot, creative, city = (_skewed(draw, rows, size) for size in (50, 90, 9, 60))
    browser = _skewed(draw, rows, len(_BROWSERS))
    tags = np.array(["10006", "10024", "10031", "10063", "10111", "13042", "13866", "16706"])
    has_tag = draw.random((rows, len(tags))) < 0.2
    # Chosen for a rate of a few percent: real ones are below a thousandth, too few for a small log.
    logit = -3.6 + _effects(draw, np.stack([domain, creative, city]), 0.8) + 1.5 * has_tag[:, 3]
    clicks = draw.random(rows) < _probability(logit)
    floor = draw.choice([0, 5, 20, 50], rows)
    bid = draw.choice([227, 238, 277, 294, 300], rows)
    paid = np.minimum(bid, floor + np.floor(draw.lognormal(3.8, 0.7, rows)).astype(np.int64))
    creatives = np.array([f"{value:032x}" for value in draw.integers(1, 2**62, 9)])
    size = np.array([("300", "250"), ("728", "90"), ("1000", "90")])[creative % 3]
    texts = [
        clicks.astype(int).astype(str),
        np.array([moment.strftime("%w") for moment in local]),
        np.array([moment.strftime("%H") for moment in local]),
        np.array([f"{value:032x}" for value in draw.permutation(rows) + 2**40]),
        np.array([f"{m:%Y%m%d%H%M%S}{m.microsecond // 1000:03d}" for m in local]),
        np.full(rows, "1"),
        np.where(draw.random(rows) < 0.1, "null", _hashed(_skewed(draw, rows, 900), 70)),
        np.array(_BROWSERS)[browser],
        np.char.add(np.char.add("115.45.", (city % 200).astype(str)), ".*"),
        (city // 4 * 8).astype(str),
        city.astype(str),
        (domain % 4 + 1).astype(str),
        _hashed(domain, 71),
        _hashed(_skewed(draw, rows, 2000), 72),
        np.full(rows, "null"),
        np.char.add("mm_", _hashed(slot, 73)),
        size[:, 0],
        size[:, 1],
        np.array(["0", "1", "2", "FirstView", "Na"])[slot % 5],
        np.array(["0", "1", "Fixed", "Pop", "Na"])[slot % 5],
        floor.astype(str),
        creatives[creative],
        bid.astype(str),
        paid.astype(str),
        np.where(creative % 2 == 0, "null", "bebefa5efe83beee17a3d245e7c5085b"),
        np.full(rows, "1458"),
        np.array([",".join(tags[row]) or "null" for row in has_tag]),
    ]
    repeated = draw.choice(rows, 15, replace=False)
    order = np.concatenate([np.arange(rows), repeated])  # delivered again at the end of the file
    _write_lines(path, "\t", IPINYOU_COLUMNS, texts, order)
    return Planted(lines=rows + 15, rows=rows, positives=int(clicks.sum()), repeated=15)


def _skewed(draw: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """Return codes in ``[0, size)``, int64, the first ones frequent: ranks of Zipf's law."""
    weights = 1.0 / np.arange(1, size + 1)
    return draw.choice(size, rows, p=weights / weights.sum())


def _effects(draw: np.random.Generator, codes: np.ndarray, spread: float) -> np.ndarray:
    """Return the sum of one random effect a value and column, float64, shape ``(rows,)``."""
    return sum(
        (draw.normal(0.0, spread, int(column.max()) + 1)[column] for column in codes),
        start=np.zeros(codes.shape[1]),
    )


def _probability(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logit))


def _hashed(codes: np.ndarray, column: int) -> np.ndarray:
    """Return each code as eight hexadecimal digits that differ by column."""
    mixed = (codes.astype(np.uint64) + np.uint64(column * 1_000_000 + 1)) * np.uint64(2654435761)
    table, place = np.unique(mixed & np.uint64(0xFFFFFFFF), return_inverse=True)
    return np.array([f"{value:08x}" for value in table])[place]


def _write_lines(
    path: Path,
    delimiter: str,
    header: Sequence[str] | None,
    columns: Sequence[np.ndarray],
    order: np.ndarray,
) -> None:
    lines = [delimiter.join(row) for row in zip(*(c[order].tolist() for c in columns), strict=True)]
    if header is not None:
        lines.insert(0, delimiter.join(header))
    content = ("\n".join(lines) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    # mtime 0: the same seed gives the same bytes.
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
