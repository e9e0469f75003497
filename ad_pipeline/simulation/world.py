"""Who and what is in the exchange, and what makes a user click and buy.

Users with tastes, campaigns whose ads are born and die, publishers with audiences, and the true
log-odds of a click and of a purchase. The effects are additive, pairwise (publisher x category,
device x placement, user x category, country x category) and curved (fatigue by ad age), so that a
linear model with crosses, a linear model without, and a tree model each capture another part.

All arrays are drawn once from the seed; the drift is a second view of the same arrays, so a
world with the drift switched off is the same world.
"""

from dataclasses import dataclass

import numpy as np

from ad_pipeline.simulation.identifiers import name_matrix
from ad_pipeline.simulation.spec import MarketplaceSpec

CATEGORIES = (
    "auto", "beauty", "books", "electronics", "fashion", "finance",
    "food", "games", "home", "sports", "toys", "travel",
)  # fmt: skip
PLACEMENTS = ("banner", "feed", "interstitial", "native", "sidebar", "video")
DEVICES = ("desktop", "mobile", "tablet", "tv")
COUNTRIES = ("AT", "BE", "BR", "CA", "CH", "DE", "ES", "FR", "GB", "IT", "NL", "PL", "SE", "US")
SIZES = ("160x600", "300x250", "320x50", "336x280", "640x360", "728x90", "970x250", "1x1")
LONGEST_LIFE = 240.0
"""Hours that an ad runs at most."""

CONTENT_PER_CATEGORY = 100

# Sizes that a placement can hold, and how often it asks for each.
_SIZE_SHARES = np.array(
    [
        # 160x600 300x250 320x50 336x280 640x360 728x90 970x250 1x1
        [0, 0.3, 0.3, 0, 0, 0.3, 0.1, 0],  # banner
        [0, 0.4, 0, 0.2, 0, 0, 0, 0.4],  # feed
        [0, 0.2, 0.5, 0.1, 0.2, 0, 0, 0],  # interstitial
        [0, 0.2, 0, 0.1, 0, 0, 0, 0.7],  # native
        [0.6, 0.3, 0, 0.1, 0, 0, 0, 0],  # sidebar
        [0, 0, 0, 0, 1.0, 0, 0, 0],  # video
    ]
)
_DEVICE_SHARES = np.array([0.3, 0.56, 0.09, 0.05])
_COUNTRY_SHARES = np.array([2, 2, 8, 6, 2, 14, 7, 9, 12, 7, 4, 4, 3, 20]) / 100.0
# Median seconds to a quick click: people answer an interstitial sooner than a sidebar.
CLICK_MEDIAN_SECONDS = np.array([14.0, 22.0, 6.0, 30.0, 45.0, 18.0])
USER_SLOTS = 1 << 19
AD_SLOTS = 4096
PUBLISHER_SLOTS = 1024


def slot_table(weights: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn weights into a table in which a uniform slot holds a weighted choice.

    Parameters
    ----------
    weights : float64 array of shape (groups, choices)
        Not negative; each row has a positive sum.
    slots : int
        Slots of a group; shares are rounded to 1 / slots.

    Returns
    -------
    table : int32 array of shape (groups, slots)
        Choices.
    shares : float64 array of shape (groups, choices)
        The exact share of slots that each choice got.
    """
    groups, choices = weights.shape
    edges = np.rint(np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True) * slots)
    counts = np.diff(edges.astype(np.int64), axis=1, prepend=0)
    named = np.tile(np.arange(choices, dtype=np.int32), groups)
    return np.repeat(named, counts.ravel()).reshape(groups, slots), counts / slots


@dataclass(frozen=True)
class Users:
    """Arrays of shape (users,), and tables.

    Attributes
    ----------
    segment, country, device : int16
    taste : float32 array of shape (users, categories)
        Log-odds, segment and individual part together.
    slots : int32 array of shape (USER_SLOTS,)
        Zipf activity (exponent 0.8) as a table of user codes.
    """

    segment: np.ndarray
    country: np.ndarray
    device: np.ndarray
    taste: np.ndarray
    slots: np.ndarray


@dataclass(frozen=True)
class Campaigns:
    """Arrays of shape (campaigns,) unless said otherwise.

    Attributes
    ----------
    advertiser, category : int16
    click_effect, purchase_effect : float64
        Log-odds.
    purchase_median_us : float64
        Median delay from click to purchase, microseconds.
    refund_rate : float64
    basket_micro : float64
        Median value of a purchase, micro-currency.
    cost_per_click_micro : float64
    fatigue : float64
        Log-odds that an old ad loses.
    fatigue_hours : float64
        Age scale of that loss.
    weight : float64 array of shape (segments, campaigns)
        Budget times targeting.
    """

    advertiser: np.ndarray
    category: np.ndarray
    click_effect: np.ndarray
    purchase_effect: np.ndarray
    purchase_median_us: np.ndarray
    refund_rate: np.ndarray
    basket_micro: np.ndarray
    cost_per_click_micro: np.ndarray
    fatigue: np.ndarray
    fatigue_hours: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Ads:
    """Arrays of shape (ads,); hours count from the start of the world, negative before it.

    Attributes
    ----------
    campaign, category : int16
    birth_hour, death_hour : int64
        Shown in [birth, death).
    click_effect, purchase_effect : float64
    weight : float64
    """

    campaign: np.ndarray
    category: np.ndarray
    birth_hour: np.ndarray
    death_hour: np.ndarray
    click_effect: np.ndarray
    purchase_effect: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Publishers:
    """Arrays of shape (publishers + new publishers,) unless said otherwise.

    Attributes
    ----------
    click_effect : float64
    category_effect : float64 array of shape (publishers, categories)
    fraud_rate : float64
    floor : float64
        Usual floor price, currency per thousand impressions.
    slots : int32 array of shape (2, segments, PUBLISHER_SLOTS)
        Where a segment's requests come from: before the drift, after it.
    placement_slots : int32 array of shape (publishers, 64)
    """

    click_effect: np.ndarray
    category_effect: np.ndarray
    fraud_rate: np.ndarray
    floor: np.ndarray
    slots: np.ndarray
    placement_slots: np.ndarray


@dataclass(frozen=True)
class World:
    """Everything that does not change from hour to hour.

    Attributes
    ----------
    users, campaigns, ads, publishers : Users, Campaigns, Ads, Publishers
    category_effect : float64 array of shape (2, categories)
        Appeal of a category: before the drift, after it.
    category_order : int64 array of shape (2, categories)
        Whose taste a category meets: itself, and after the drift the swapped one.
    placement_effect, size_effect : float64
    device_effect : float64 array of shape (devices, placements)
    hour_effect : float64 array of shape (devices, 24)
    country_purchase_effect : float64 array of shape (countries, categories)
    size_slots : int32 array of shape (placements, 64)
    content_slots : int32 array of shape (2, segments, 256)
        Category of organic content that a segment looks at.
    names : dict of str to uint8 matrix
        Text of the codes: user_id, ad_id, content_id.
    """

    users: Users
    campaigns: Campaigns
    ads: Ads
    publishers: Publishers
    category_effect: np.ndarray
    category_order: np.ndarray
    placement_effect: np.ndarray
    size_effect: np.ndarray
    device_effect: np.ndarray
    hour_effect: np.ndarray
    country_purchase_effect: np.ndarray
    size_slots: np.ndarray
    content_slots: np.ndarray
    names: dict[str, np.ndarray]

    def active_ads(self, hour: int) -> np.ndarray:
        """Codes of the ads that live in hour `hour`, int64 of shape (k,)."""
        return np.flatnonzero((self.ads.birth_hour <= hour) & (self.ads.death_hour > hour))


def build_world(spec: MarketplaceSpec) -> World:
    """Draw the world of a spec.

    Parameters
    ----------
    spec : MarketplaceSpec
        `drift` is not read: both views are drawn in any case.

    Returns
    -------
    World
    """
    swap = np.arange(len(CATEGORIES))
    appeal = spec.stream("category appeal").normal(0.0, 0.4, len(CATEGORIES))
    swap[[appeal.argmin(), appeal.argmax()]] = appeal.argmax(), appeal.argmin()
    category_order = np.stack([np.arange(len(CATEGORIES)), swap])

    segment_taste = spec.stream("segment taste").normal(0.0, 0.45, (spec.segments, len(CATEGORIES)))
    users = _users(spec, segment_taste)
    campaigns = _campaigns(spec)
    context = spec.stream("context")
    hours = np.arange(24)
    wave = np.array([0.15, 0.3, 0.25, 0.4])[:, None] * np.sin(
        2 * np.pi * (hours[None, :] - np.array([8.0, 14.0, 15.0, 16.0])[:, None]) / 24
    )
    interest = np.exp(1.5 * segment_taste)
    contents = [
        f"{name[:3]}-{item:03d}" for name in CATEGORIES for item in range(CONTENT_PER_CATEGORY)
    ]
    return World(
        users=users,
        campaigns=campaigns,
        ads=_ads(spec, campaigns),
        publishers=_publishers(spec),
        category_effect=appeal[category_order],
        category_order=category_order,
        placement_effect=np.array([-0.3, 0.25, 0.45, 0.1, -0.55, 0.2]),
        size_effect=context.normal(0.0, 0.15, len(SIZES)),
        device_effect=context.normal(0.0, 0.3, (len(DEVICES), len(PLACEMENTS))),
        hour_effect=wave,
        country_purchase_effect=context.normal(0.0, 0.35, (len(COUNTRIES), len(CATEGORIES))),
        size_slots=slot_table(_SIZE_SHARES, 64)[0],
        content_slots=np.stack(
            [slot_table(interest[:, order], 256)[0] for order in category_order]
        ),
        names={
            "user_id": name_matrix([f"u{user:06d}" for user in range(spec.users)]),
            "ad_id": name_matrix([f"ad-{ad:04d}" for ad in range(spec.ads)]),
            "content_id": name_matrix(contents),
        },
    )


def _users(spec: MarketplaceSpec, segment_taste: np.ndarray) -> Users:
    rng = spec.stream("users")
    segment = rng.integers(0, spec.segments, spec.users).astype(np.int16)
    # A segment leans towards some countries and devices, which then tell of its taste.
    country_weight = _COUNTRY_SHARES * np.exp(rng.normal(0.0, 0.5, (spec.segments, len(COUNTRIES))))
    device_weight = _DEVICE_SHARES * np.exp(rng.normal(0.0, 0.3, (spec.segments, len(DEVICES))))
    country_slots = slot_table(country_weight, 1024)[0]
    device_slots = slot_table(device_weight, 1024)[0]
    individual = rng.normal(0.0, 0.3, (spec.users, len(CATEGORIES)))
    activity = rng.permutation(np.arange(1, spec.users + 1) ** -0.8)
    return Users(
        segment=segment,
        country=country_slots[segment, rng.integers(0, 1024, spec.users)].astype(np.int16),
        device=device_slots[segment, rng.integers(0, 1024, spec.users)].astype(np.int16),
        taste=(segment_taste[segment] + individual).astype(np.float32),
        slots=slot_table(activity[None, :], USER_SLOTS)[0][0],
    )


def _campaigns(spec: MarketplaceSpec) -> Campaigns:
    rng = spec.stream("campaigns")
    count = spec.campaigns
    advertiser = np.arange(count) % spec.advertisers
    home_category = rng.permutation(np.arange(spec.advertisers) % len(CATEGORIES))
    strays = rng.random(count) < 0.25
    elsewhere = rng.integers(0, len(CATEGORIES), count)
    hour_us = 3.6e9
    budget = rng.gamma(2.0, 1.0, count) + 0.2
    return Campaigns(
        advertiser=advertiser.astype(np.int16),
        category=np.where(strays, elsewhere, home_category[advertiser]).astype(np.int16),
        click_effect=rng.normal(0.0, 0.3, count),
        purchase_effect=rng.normal(0.0, 0.55, count),
        purchase_median_us=np.exp(rng.uniform(np.log(0.5), np.log(4.6), count)) * hour_us,
        refund_rate=spec.refund_rate * rng.uniform(0.4, 1.6, count),
        basket_micro=np.exp(rng.normal(np.log(40.0), 0.6, count)) * 1e6,
        cost_per_click_micro=np.exp(rng.normal(np.log(0.25), 0.3, count)) * 1e6,
        fatigue=rng.uniform(0.2, 1.0, count),
        fatigue_hours=np.exp(rng.uniform(np.log(8.0), np.log(60.0), count)),
        weight=budget * np.exp(rng.normal(0.0, 0.5, (spec.segments, count))),
    )


def _ads(spec: MarketplaceSpec, campaigns: Campaigns) -> Ads:
    rng = spec.stream("ads")
    count = spec.ads
    campaign = (np.arange(count) % spec.campaigns).astype(np.int16)
    # Births begin the longest life before the log does, so that ages are the same mix every day.
    birth = np.floor(rng.uniform(-LONGEST_LIFE, 24.0 * spec.days, count)).astype(np.int64)
    life = np.exp(rng.normal(np.log(40.0), 0.6, count))
    life = np.clip(life, 6.0, LONGEST_LIFE).astype(np.int64)
    # Each campaign's first ad runs all along, so that no hour is without ads; it is old already.
    evergreen = np.arange(count) < spec.campaigns
    old = np.floor(rng.uniform(-10.0 * LONGEST_LIFE, -LONGEST_LIFE, count)).astype(np.int64)
    return Ads(
        campaign=campaign,
        category=campaigns.category[campaign],
        birth_hour=np.where(evergreen, old, birth),
        death_hour=np.where(evergreen, 24 * spec.days + 1, birth + life),
        click_effect=rng.normal(0.0, 0.3, count),
        purchase_effect=rng.normal(0.0, 0.3, count),
        weight=np.exp(rng.normal(0.0, 0.5, count)),
    )


def _publishers(spec: MarketplaceSpec) -> Publishers:
    rng = spec.stream("publishers")
    count = spec.publishers + spec.new_publishers
    new = np.arange(count) >= spec.publishers
    size = rng.permutation(np.arange(1, count + 1) ** -0.9)
    audience = np.exp(rng.normal(0.0, 0.7, (spec.segments, count)))
    # With the drift the new ones take about a quarter of the traffic and the rest is reshuffled.
    shift = np.exp(rng.normal(0.0, 0.5, count))
    shifted = np.where(new, 0.0, size * shift)
    shifted[new] = size[: spec.publishers].sum() * 0.3 / max(spec.new_publishers, 1)
    before = np.where(new, 0.0, size)
    slots = [slot_table(weight * audience, PUBLISHER_SLOTS)[0] for weight in (before, shifted)]
    fraudulent = rng.random(count) < 0.1
    placements = rng.gamma(0.5, 1.0, (count, len(PLACEMENTS))) + 0.02
    return Publishers(
        click_effect=rng.normal(0.0, 0.35, count),
        category_effect=rng.normal(0.0, 0.4, (count, len(CATEGORIES))),
        fraud_rate=spec.fraud_rate * np.where(fraudulent, 4.0, 0.67),
        floor=np.exp(rng.normal(np.log(1.2), 0.4, count)),
        slots=np.stack(slots),
        placement_slots=slot_table(placements, 64)[0],
    )
