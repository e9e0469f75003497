"""Each alert is told once a channel, its end too, and a channel that fails is told again."""

import json
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.monitoring.alerts.delivery import (
    MOST_MESSAGES,
    Message,
    Undelivered,
    append_to_log,
    deliver,
    post,
)


def alert(subject: str) -> dict[str, Any]:
    """Return a row of ``monitoring.alerts``."""
    return {
        "key": f"warn/drifted_columns/{subject}",
        "severity": "warn",
        "source": "drifted_columns",
        "subject": subject,
        "found": "index 0.4",
        "since_us": 0,
        "act": "look",
        "known_until_us": 1,
    }


class Endpoint(HTTPServer):
    """A real endpoint that refuses as often as it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses = 0
        self.asked = 0
        self.taken: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        endpoint = self.server
        assert isinstance(endpoint, Endpoint)
        endpoint.asked += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = endpoint.refuses > 0
        endpoint.refuses -= refused
        if not refused:
            endpoint.taken.append(json.loads(body))
        self.send_response(503 if refused else 204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_endpoint_that_refuses_first_is_told_at_the_next_tick_and_only_once(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    channels = {
        "log": partial(append_to_log, tmp_path / "alerts.jsonl"),
        "webhook": partial(post, endpoint.url, "shop", timeout=2.0),
    }
    endpoint.refuses = 1
    first = deliver([alert("publisher_id")], None, channels)
    assert first.sent == {"log": 1}
    assert "503" in first.failed["webhook"]
    second = deliver([alert("publisher_id")], first.cursor, channels)
    assert second.sent == {"webhook": 1}
    third = deliver([alert("publisher_id")], second.cursor, channels)
    assert (third.sent, third.failed, endpoint.asked) == ({}, {}, 2)
    ended = deliver([], third.cursor, channels)
    assert ended.sent == {"log": 1, "webhook": 1}
    events = [message["event"] for body in endpoint.taken for message in body["messages"]]
    assert events == ["begins", "ends"]
    keys = {message["key"] for body in endpoint.taken for message in body["messages"]}
    assert keys == {"warn/drifted_columns/publisher_id"}
    assert "publisher_id: index 0.4 → look" in endpoint.taken[0]["text"]
    lines = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["begins", "ends"]


def test_an_endpoint_that_is_not_there_or_no_web_address_is_a_failed_channel() -> None:
    message = [Message("begins", "a/b/c", "a", "c")]
    with pytest.raises(Undelivered, match="did not take it"):
        post("http://127.0.0.1:9/hook", "shop", message, timeout=0.5)
    with pytest.raises(Undelivered, match="none of http"):
        post("file:///etc/passwd", "shop", message, timeout=0.5)


def test_the_address_with_its_token_is_not_repeated() -> None:
    with pytest.raises(Undelivered) as refused:
        post("http://127.0.0.1:9/hook?token=secret", "shop", [], timeout=0.5)
    assert "secret" not in str(refused.value)


def test_an_error_of_our_own_is_not_taken_for_a_failed_channel() -> None:
    def broken(_: Sequence[Message]) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        deliver([alert("a")], None, {"log": broken})


@given(
    ticks=st.lists(
        st.tuples(st.frozensets(st.sampled_from("abcde")), st.booleans()), min_size=1, max_size=12
    )
)
def test_whatever_fails_every_beginning_is_told_before_its_end_and_nothing_is_lost(
    ticks: list[tuple[frozenset[str], bool]],
) -> None:
    """At the end, a channel that works once more knows exactly what is open."""
    known: set[str] = set()
    cursor = None

    def tell(due: Sequence[Message], *, works: bool) -> None:
        if not works:
            raise Undelivered("down")
        for message in due:
            if message.event == "begins":
                assert message.subject not in known
                known.add(message.subject)
            else:
                known.remove(message.subject)

    for subjects, works in [*ticks, (ticks[-1][0], True)]:
        rows = [alert(subject) for subject in sorted(subjects)]
        cursor = deliver(rows, cursor, {"one": partial(tell, works=works)}).cursor
    assert known == set(ticks[-1][0])


def test_more_alerts_than_anybody_reads_come_in_portions() -> None:
    rows = [alert(str(number)) for number in range(MOST_MESSAGES + 7)]
    first = deliver(rows, None, {"one": lambda _: None})
    assert first.sent == {"one": MOST_MESSAGES}
    assert deliver(rows, first.cursor, {"one": lambda _: None}).sent == {"one": 7}
