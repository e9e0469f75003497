"""What people read on a page: labels in words, short digests, tables that hold."""

import base64

import pytest

from ad_pipeline.defs import shown


def test_a_label_is_in_words_and_says_what_it_is_of():
    assert shown.label("log_loss", "click", "online") == "click, online: log loss"
    assert shown.label("train_rows", "click") == "click: train rows"
    assert shown.label("highest_index") == "highest index"


def test_a_digest_is_short_in_a_table_and_whole_beside_it():
    digest = "0123456789abcdef" * 4
    assert shown.short(digest) == "0123456789ab"
    assert shown.short(None) == "none yet"
    text = shown.whole({"click": digest, "purchase": None}).value
    assert text is not None
    assert f"| click | `{digest}` |" in text
    assert "| purchase | `none yet` |" in text


@pytest.mark.parametrize(
    ("value", "read"),
    [(0.0343952990602911, 0.0343953), (123456.789, 123457.0), (1e-9, 1e-9), (float("inf"),) * 2],
)
def test_a_number_is_rounded_to_what_can_be_read(value: float, read: float):
    assert shown.rounded(value) == read


def test_a_bar_or_a_line_break_in_a_cell_does_not_break_the_table():
    table = shown.table(("value", "rows"), [("a|b", 1), ("c\nd", 2)]).value
    assert table is not None
    assert len(table) >= 1_000, "shorter Markdown is shown in place"
    assert table.rstrip().splitlines() == [
        "| value | rows |",
        "| --- | --- |",
        "| a\\|b | 1 |",
        "| c d | 2 |",
    ]


def test_a_picture_travels_in_the_text():
    text = shown.picture(b"\x89PNG").value
    assert text is not None
    assert base64.b64decode(text.removeprefix("![](data:image/png;base64,")[:-1]) == b"\x89PNG"
