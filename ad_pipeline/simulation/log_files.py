"""Log files of the exchange: one Parquet file per table and day of `received_us`.

Codes become text here, and files appear under their names only once they are whole. Which rows
exist is none of this module's business.
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.simulation.identifiers import (
    coded_column,
    fixed_width_column,
    flag_column,
    hex_column,
    number_column,
    text_column,
)
from ad_pipeline.simulation.outcomes import GOALS, REASONS
from ad_pipeline.simulation.rows import Rows
from ad_pipeline.simulation.world import (
    CATEGORIES,
    COUNTRIES,
    DEVICES,
    PLACEMENTS,
    SIZES,
    World,
)

ARMS = ("policy", "explore")
MODALITIES = ("ad_click", "ad_view", "content_view")
TABLES = ("impressions", "engagements", "retractions", "user_activities", "auctions")
TAIL = "tail"
_CLOCKS = ("occurred_us", "received_us")


def day_name(day: int | None) -> str:
    """File name of a day, or of the tail (None)."""
    return f"{TAIL}.parquet" if day is None else f"day={day}.parquet"


class LogText:
    """Turns rows of codes into Arrow tables with the columns of the log.

    Parameters
    ----------
    world : World
    """

    def __init__(self, world: World) -> None:
        ads, campaigns = world.ads, world.campaigns
        self._users = world.names["user_id"]
        self._contents = np.concatenate([world.names["ad_id"], world.names["content_id"]])
        self._user_country = world.users.country
        self._ad_campaign = ads.campaign
        self._ad_advertiser = campaigns.advertiser[ads.campaign]
        self._ad_category = ads.category
        numbered = {
            "ad_id": [bytes(name).decode() for name in world.names["ad_id"]],
            "campaign_id": [f"cmp-{code:03d}" for code in range(len(campaigns.advertiser))],
            "advertiser_id": [
                f"adv-{code:02d}" for code in range(int(campaigns.advertiser.max()) + 1)
            ],
            "publisher_id": [
                f"pub-{code:03d}" for code in range(len(world.publishers.click_effect))
            ],
            "hour_of_day": [f"{hour:02d}" for hour in range(24)],
        }
        fixed = {
            "placement": PLACEMENTS,
            "device": DEVICES,
            "country": COUNTRIES,
            "category": CATEGORIES,
            "creative_size": SIZES,
            "arm": ARMS,
            "goal": GOALS,
            "reason": REASONS,
            "modality": MODALITIES,
        }
        self._names = {name: text_column(values) for name, values in {**numbered, **fixed}.items()}
        self._makers: dict[str, Callable[[Rows], pa.Table]] = {
            "impressions": self.impressions,
            "engagements": self.engagements,
            "retractions": self.retractions,
            "user_activities": self.user_activities,
            "auctions": self.auctions,
        }

    def table(self, name: str, rows: Rows) -> pa.Table:
        """Rows of one of `TABLES` as its Arrow table."""
        return self._makers[name](rows)

    def impressions(self, rows: Rows) -> pa.Table:
        """`events.impressions` of this exchange."""
        ad = rows["ad"]
        return pa.table(
            {
                "impression_id": hex_column("i", rows["impression"]),
                "request_id": hex_column("r", rows["request"]),
                "user_id": fixed_width_column(self._users[rows["user"]]),
                "ad_id": self._coded("ad_id", ad),
                "campaign_id": self._coded("campaign_id", self._ad_campaign[ad]),
                "advertiser_id": self._coded("advertiser_id", self._ad_advertiser[ad]),
                "publisher_id": self._coded("publisher_id", rows["publisher"]),
                "placement": self._coded("placement", rows["placement"]),
                "device": self._coded("device", rows["device"]),
                "country": self._coded("country", self._user_country[rows["user"]]),
                "category": self._coded("category", self._ad_category[ad]),
                "creative_size": self._coded("creative_size", rows["size"]),
                "hour_of_day": self._coded("hour_of_day", rows["occurred_us"] // HOUR_US % 24),
                "ad_age_hours": number_column(rows["ad_age_hours"]),
                "floor_price": number_column(rows["floor_price"]),
                "session_depth": number_column(rows["session_depth"]),
                "arm": self._coded("arm", rows["explored"]),
                "propensity": number_column(rows["propensity"]),
                "bid_price": number_column(rows["bid_price"]),
                "paid_price": number_column(rows["paid_price"]),
                **_clocks(rows),
            }
        )

    def engagements(self, rows: Rows) -> pa.Table:
        """`events.engagements`."""
        return pa.table(
            {
                "event_id": hex_column("e", rows["event"]),
                "impression_id": hex_column("i", rows["impression"]),
                "goal": self._coded("goal", rows["goal"]),
                "value": number_column(rows["value"]),
                **_clocks(rows),
            }
        )

    def retractions(self, rows: Rows) -> pa.Table:
        """`events.retractions`."""
        return pa.table(
            {
                "event_id": hex_column("x", rows["event"]),
                "engagement_event_id": hex_column("e", rows["engagement"]),
                "reason": self._coded("reason", rows["reason"]),
                **_clocks(rows),
            }
        )

    def user_activities(self, rows: Rows) -> pa.Table:
        """`events.user_activities`; ads and organic content share one column of contents."""
        return pa.table(
            {
                "event_id": hex_column("a", rows["event"]),
                "user_id": fixed_width_column(self._users[rows["user"]]),
                "modality": self._coded("modality", rows["modality"]),
                "content_id": fixed_width_column(self._contents[rows["content"]]),
                **_clocks(rows),
            }
        )

    def auctions(self, rows: Rows) -> pa.Table:
        """`events.auctions`; the clearing price of a lost auction is unknown."""
        won = rows["won"]
        return pa.table(
            {
                "request_id": hex_column("r", rows["request"]),
                "bid_price": number_column(rows["bid_price"]),
                "won": flag_column(won),
                "clearing_price": number_column(rows["clearing_price"], ~won),
                **_clocks(rows),
            }
        )

    def _coded(self, name: str, codes: np.ndarray) -> pa.DictionaryArray:
        return coded_column(codes, self._names[name])


class WholeFile:
    """A Parquet file that appears under its name only when it is complete.

    A context manager; on an error, or without a row, nothing appears under the name.

    Parameters
    ----------
    path : Path
        Its folder is made if needed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # Not "*.parquet": whoever lists the folder meanwhile must not pick it up.
        self._part = path.with_name(f".{path.name}.part")
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Append a table as one row group; the first one decides the schema."""
        writer = self._writer
        if writer is None:
            coded = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
            clocks = [name for name in table.column_names if name in _CLOCKS]
            # Both take names of columns; pyarrow declares them as flags.
            writer = self._writer = pq.ParquetWriter(
                self._part,
                table.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=coded,  # pyright: ignore[reportArgumentType]
                column_encoding=dict.fromkeys(clocks, "DELTA_BINARY_PACKED"),
                write_statistics=clocks,  # pyright: ignore[reportArgumentType]
                # Dictionaries are a way of writing, not a type that readers should see.
                store_schema=False,
            )
        writer.write_table(table)
        self.rows += table.num_rows

    def __enter__(self) -> "WholeFile":
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the file its name, or remove what there is of it after an error."""
        if self._writer is None:
            return
        self._writer.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink()


def _clocks(rows: Rows) -> dict[str, pa.Array]:
    return {name: number_column(rows[name]) for name in _CLOCKS}
