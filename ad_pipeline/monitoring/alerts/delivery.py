"""Telling people what began and what ended, each once a channel, and nothing lost on the way.

What a channel was told stands in the caller's cursor, not here. A channel that fails keeps its old
place in it, so the same messages are sent again at the next call: at least once, with a stable key
by which a receiver knows a repeated one. A channel never waits for another.
"""

import json
import os
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

from ad_pipeline.clocks import timestamp
from ad_pipeline.datasets import Deployment

LOG = "alerts.jsonl"

MOST_MESSAGES = 500
"""Of one call; the rest waits for the next. A page of thousands of lines is read by nobody."""


class Undelivered(Exception):
    """A channel could not be told; says why."""


@dataclass(frozen=True)
class Message:
    """What a channel is told of one alert.

    Attributes
    ----------
    event : {"begins", "ends"}
    key : str
        Stable: the end has that of the beginning.
    severity, subject, found, since, act : str
        Of the alert; all but the first two are empty at its end.
    """

    event: Literal["begins", "ends"]
    key: str
    severity: str
    subject: str
    found: str = ""
    since: str = ""
    act: str = ""


Channel = Callable[[Sequence[Message]], None]
"""Tells somebody, or raises :class:`Undelivered`."""


@dataclass(frozen=True)
class Delivery:
    """What a call did.

    Attributes
    ----------
    cursor : str
        For the next call.
    sent : dict of str to int
        Messages by channel.
    failed : dict of str to str
        Why, by channel that could not be told.
    """

    cursor: str
    sent: dict[str, int]
    failed: dict[str, str]

    @property
    def in_words(self) -> str:
        """Return what was done, for people."""
        told = [f"{count} messages to the {channel}" for channel, count in self.sent.items()]
        lost = [
            f"{channel} not told, next tick again: {why}" for channel, why in self.failed.items()
        ]
        return "; ".join([*told, *lost])


def messages(alerts: Sequence[Mapping[str, Any]], told: Sequence[str]) -> list[Message]:
    """Return what a channel has not been told: what ended first, then what began.

    Parameters
    ----------
    alerts : sequence of mapping
        Rows of ``monitoring.alerts``.
    told : sequence of str
        Keys that the channel was told of and whose end it was not told.
    """
    open_keys = {row["key"] for row in alerts}
    ended = [key for key in told if key not in open_keys]
    severity_and_subject = {key: (key.split("/")[0], key.split("/", 2)[2]) for key in ended}
    return [Message("ends", key, *severity_and_subject[key]) for key in ended] + [
        Message(
            "begins",
            row["key"],
            row["severity"],
            row["subject"],
            row["found"],
            timestamp(row["since_us"]),
            row["act"],
        )
        for row in alerts
        if row["key"] not in set(told)
    ]


def deliver(
    alerts: Sequence[Mapping[str, Any]], cursor: str | None, channels: Mapping[str, Channel]
) -> Delivery:
    """Tell every channel what it has not been told.

    Parameters
    ----------
    alerts : sequence of mapping
        Rows of ``monitoring.alerts``, in the order in which they are told.
    cursor : str or None
        Of the last delivery; None before the first.
    channels : mapping of str to callable
        A channel that is not among them any more is forgotten.
    """
    before: dict[str, list[str]] = json.loads(cursor) if cursor else {}
    after: dict[str, list[str]] = {}
    sent: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name, tell in channels.items():
        told = before.get(name, [])
        due = messages(alerts, told)[:MOST_MESSAGES]
        after[name] = told
        if not due:
            continue
        try:
            tell(due)
        except Undelivered as error:
            failed[name] = str(error)
            continue
        sent[name] = len(due)
        ended = {message.key for message in due if message.event == "ends"}
        began = [message.key for message in due if message.event == "begins"]
        after[name] = [key for key in told if key not in ended] + began
    return Delivery(json.dumps(after), sent, failed)


def channels_of(deployment: Deployment) -> dict[str, Channel]:
    """Return the deployment's channels: a log, and a webhook if its variable is set."""
    settings = deployment.dataset.settings.alerts
    found: dict[str, Channel] = {"log": partial(append_to_log, deployment.reports / LOG)}
    if url := os.environ.get(settings.webhook):
        found["webhook"] = partial(
            post, url, deployment.dataset.name, timeout=settings.webhook_seconds
        )
    return found


def append_to_log(path: Path, due: Sequence[Message]) -> None:
    """Append messages to a file of JSON lines, durably.

    Parameters
    ----------
    path : Path
    due : sequence of Message

    Raises
    ------
    Undelivered
        If the file cannot be written.
    """
    lines = "".join(json.dumps(asdict(message), sort_keys=True) + "\n" for message in due)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Undelivered(f"{path} cannot be written ({error}); make room") from error


def post(url: str, dataset: str, due: Sequence[Message], *, timeout: float) -> None:
    """Post messages as one JSON document: ``{"dataset": …, "text": …, "messages": […]}``.

    ``text`` is what chat services show.

    Parameters
    ----------
    url : str
    dataset : str
    due : sequence of Message
    timeout : float
        Seconds.

    Raises
    ------
    Undelivered
        If the endpoint does not answer in time, or not with a status of 200 to 299.
    """
    if not url.startswith(("https://", "http://")):
        raise Undelivered("the webhook's URL is none of http or https; set it anew")
    lines = [
        f"{message.severity}: {message.subject}: {message.found} → {message.act}"
        if message.event == "begins"
        else f"ended: {message.subject}"
        for message in due
    ]
    document = {
        "dataset": dataset,
        "text": "\n".join(lines),
        "messages": [asdict(message) for message in due],
    }
    request = urllib.request.Request(  # noqa: S310 (the scheme is looked at above)
        url, json.dumps(document).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout):  # noqa: S310
            pass
    except (OSError, HTTPException) as error:
        # What an HTTPException says may hold the address, and that a token.
        said = error if isinstance(error, OSError) else type(error).__name__
        raise Undelivered(f"the webhook did not take it ({said})") from error
