"""Readers share, a writer excludes, a kill undoes half a transaction, errors name the holder."""

import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from ad_pipeline.warehouse import (
    Column,
    Table,
    UnreadableWarehouse,
    Warehouse,
    WarehouseBusy,
    WarehouseMismatch,
    bound,
    replace_hours,
)

TABLE = Table(
    name="events.things",
    columns=(
        Column("id", "VARCHAR", "Key."),
        Column("received_us", "BIGINT", "When."),
        Column("delay_us", "BIGINT", "A span, not a moment."),
    ),
    key=("id",),
    clock="received_us",
    description="Somebody's things.",
)

HOLD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from ad_pipeline.warehouse import Warehouse
    with getattr(Warehouse(Path(sys.argv[1])), sys.argv[2])() as connection:
        if sys.argv[2] == "writer":
            connection.execute("INSERT INTO events.things VALUES ('half', 1, 1)")
        print("held", flush=True)
        time.sleep(60)
""")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    warehouse.create([TABLE])
    return warehouse.path


def held(path: Path, how: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def rows(path: Path) -> list[tuple]:
    with Warehouse(path).reader() as connection:
        return connection.execute("SELECT id FROM events.things ORDER BY id").fetchall()


def test_replacing_hours_touches_no_other_hour_and_a_second_time_changes_nothing(path: Path):
    query = "SELECT $id AS id, $us AS received_us, 0 AS delay_us"
    for _ in range(2):
        for name, us in (("a", 5), ("b", 15)):
            with Warehouse(path).writer() as connection:
                start = us - 5
                inserted = replace_hours(
                    connection, TABLE, query, {"id": name, "us": us, "unused": 1}, start, start + 10
                )
            assert inserted == 1
    assert rows(path) == [("a",), ("b",)]


def test_an_error_inside_a_writer_undoes_everything_and_frees_the_warehouse_at_once(path: Path):
    def insert_and_fail() -> None:
        with Warehouse(path).writer() as connection:
            connection.execute("INSERT INTO events.things VALUES ('a', 1, 1)")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        insert_and_fail()
    with Warehouse(path, wait_seconds=1).writer() as connection:
        connection.execute("INSERT INTO events.things VALUES ('b', 1, 1)")
    assert rows(path) == [("b",)]


def test_readers_share_the_warehouse(path: Path):
    other = held(path, "reader")
    try:
        with Warehouse(path, wait_seconds=1).reader() as connection:
            assert connection.execute("SELECT count(*) FROM events.things").fetchone() == (0,)
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("how", ["reader", "writer"])
def test_a_writer_waits_and_then_says_which_process_holds_the_warehouse(path: Path, how: str):
    other = held(path, how)
    try:
        with (
            pytest.raises(
                WarehouseBusy,
                match=rf"process {other.pid} \(-c {path} {how}\); wait for it or stop",
            ),
            Warehouse(path, wait_seconds=0.3).writer(),
        ):
            pass
    finally:
        other.kill()
        other.wait()


def test_a_killed_writer_leaves_no_half_transaction_and_no_lock(path: Path):
    other = held(path, "writer")
    other.send_signal(signal.SIGKILL)
    other.wait()
    started = time.monotonic()
    assert rows(path) == []
    assert time.monotonic() - started < 5
    with Warehouse(path, wait_seconds=1).writer() as connection:
        connection.execute("INSERT INTO events.things VALUES ('a', 1, 1)")
    assert rows(path) == [("a",)]


def test_a_kill_while_the_file_is_made_leaves_a_warehouse_that_can_be_made(tmp_path: Path):
    """DuckDB refuses a file of which it wrote only some headers."""
    path = tmp_path / "warehouse.duckdb"
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        import duckdb
        from ad_pipeline.warehouse import Warehouse
        def half_made(name, **options):
            if name != ":memory:":
                Path(name).write_bytes(bytes(4096))
                os.kill(os.getpid(), signal.SIGKILL)
            return true_connect(name, **options)
        true_connect, duckdb.connect = duckdb.connect, half_made
        with Warehouse(Path(sys.argv[1])).writer():
            pass
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [file.stat().st_size for file in tmp_path.glob(".*")] == [4096]
    Warehouse(path, wait_seconds=1).create([TABLE])
    assert rows(path) == []
    assert list(tmp_path.glob(".*")) == []


def test_a_waiting_writer_is_not_starved_by_readers_that_keep_coming(path: Path):
    """Readers that overlap without a gap would keep a writer out for ever without the turnstile."""
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from ad_pipeline.warehouse import Warehouse
        warehouse = Warehouse(Path(sys.argv[1]))
        print("held", flush=True)
        until = time.monotonic() + 8
        while time.monotonic() < until:
            with warehouse.reader():
                time.sleep(0.2)
    """)
    others = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        time.sleep(0.5)
        with Warehouse(path, wait_seconds=4).writer() as connection:
            connection.execute("INSERT INTO events.things VALUES ('a', 1, 1)")
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_another_program_with_the_file_open_is_named(path: Path):
    script = (
        "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print('held', flush=True); "
        "time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with (
            pytest.raises(WarehouseBusy, match=rf"close it there: .*python.*{other.pid}"),
            Warehouse(path).reader(),
        ):
            pass
    finally:
        other.kill()
        other.wait()


def test_reading_before_anything_was_written_says_what_to_materialize(tmp_path: Path):
    with (
        pytest.raises(FileNotFoundError, match="materialize the events first"),
        Warehouse(tmp_path / "none.duckdb").reader(),
    ):
        pass


def test_a_table_with_other_columns_is_an_error_that_names_the_table(path: Path):
    with pytest.raises(WarehouseMismatch, match=r"events\.things"):
        Warehouse(path).create([TABLE.with_columns(Column("more", "VARCHAR", "New."))])


def test_a_readable_view_shows_moments_with_their_zone_and_spans_as_numbers(path: Path):
    with Warehouse(path).writer() as connection:
        connection.execute("INSERT INTO events.things VALUES ('a', 3600000000, 60)")
    with Warehouse(path).reader() as connection:
        seen = connection.execute("SELECT * FROM events.things_readable").fetchone()
    assert seen is not None
    assert seen[1].isoformat() == "1970-01-01T01:00:00+00:00"
    assert seen[2] == 60


def test_only_named_parameters_are_bound():
    query = "SELECT $a + $b_us"
    assert bound(query, {"a": 1, "b_us": 2, "b": 3}) == {"a": 1, "b_us": 2}
    assert duckdb.execute(query, bound(query, {"a": 1, "b_us": 2, "b": 3})).fetchone() == (3,)


def look(path: Path, how: str) -> None:
    with getattr(Warehouse(path, wait_seconds=1), how)() as connection:
        connection.execute("SELECT count(*), max(id) FROM events.things").fetchall()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no byte left": lambda _: b"",
    "half of it left": lambda content: content[: len(content) // 2],
    "another file's bytes": lambda content: b"PAR1 no warehouse" * (len(content) // 17),
    "a header of zeros": lambda content: bytes(4096) + content[4096:],
}


@pytest.mark.parametrize("how", ["reader", "writer"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_warehouse_is_named_and_a_copy_put_back_is_read(
    path: Path, damage: str, how: str
):
    sound = path.read_bytes()
    path.write_bytes(DAMAGES[damage](sound))
    with pytest.raises(UnreadableWarehouse, match="put a copy of it back") as caught:
        look(path, how)
    assert str(caught.value).startswith(f"{path} cannot be read as a warehouse (")
    path.write_bytes(sound)
    look(path, how)


def test_a_flipped_bit_anywhere_in_a_warehouse_is_found_when_it_is_read(path: Path):
    """Blocks are read when a query needs them, so the error comes from inside the reader."""
    with Warehouse(path).writer() as connection:
        connection.execute("INSERT INTO events.things SELECT 'x' || i, i, i FROM range(30000) r(i)")
    sound = path.read_bytes()
    draw = random.Random(1)  # noqa: S311 - a test, not a secret
    for _ in range(20):
        damaged = bytearray(sound)
        damaged[draw.randrange(len(sound))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(UnreadableWarehouse, match=r"does not match|checksum|cannot be read"):
            look_at_everything(path)
    path.write_bytes(sound)
    look_at_everything(path)


def look_at_everything(path: Path) -> None:
    with Warehouse(path).reader() as connection:
        connection.execute("SELECT max(hash(COLUMNS(*))) FROM events.things").fetchall()


def test_a_warehouse_that_may_not_be_read_is_named():
    """Root may read anything, so the look is taken as nobody if it has to."""
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from ad_pipeline.warehouse import UnreadableWarehouse, Warehouse
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            with Warehouse(Path(sys.argv[1]), wait_seconds=1).reader():
                pass
        except UnreadableWarehouse as error:
            print(error)
    """)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "warehouse.duckdb"
        Warehouse(path).create([TABLE])
        for open_to_all in (Path(folder), *Path(folder).iterdir()):
            open_to_all.chmod(0o777)
        path.chmod(0)
        ran = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
        )
        assert ran.stdout.startswith(f"{path} cannot be read as a warehouse (")
        assert "Permission denied" in ran.stdout
        assert "see to its permissions" in ran.stdout
        path.chmod(0o600)
        assert rows(path) == []


def test_an_error_of_a_query_is_not_taken_for_a_damaged_warehouse(path: Path):
    with pytest.raises(duckdb.CatalogException), Warehouse(path).reader() as connection:
        connection.execute("SELECT * FROM events.nothing")
