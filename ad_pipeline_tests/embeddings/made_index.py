"""A candidate index of four users and three ads, small enough to be summed by hand."""

import numpy as np

from ad_pipeline.embeddings.candidate_index import CandidateIndex
from ad_pipeline.embeddings.published import ad_hashes, user_hashes
from ad_pipeline.embeddings.retrieval import engaged_until

HOUR_US = 3_600_000_000
USERS = ("ann", "bob", "cy", "dee")
ADS = ("shoes", "hats", "tea")


def made_index(
    version: str = "encoder-a",
    as_of_us: int = HOUR_US,
    ads: tuple[str, ...] = ADS,
    cy_is_like_ann: float = 0.5,
    popularity_strength: float = 1e-9,
) -> CandidateIndex:
    """Return Ann near Bob and near Cy, who clicked; nobody is near Dee.

    Ann clicked the first ad, Bob the first and, an hour later, the second, Cy the second and the
    third. Weights halve in an hour.
    """
    users, hashed = user_hashes(USERS), ad_hashes(ads)
    order = np.argsort(users)
    who, what = [0, 1, 1, 2, 2], [0, 0, 1, 1, 2]
    received_us = as_of_us - HOUR_US + np.array([0, 0, HOUR_US, 0, 0])
    engaged = engaged_until(users[who], hashed[what], received_us, as_of_us)
    by_hash = dict(zip(hashed.tolist(), ads, strict=True))
    place = {USERS[row]: at for at, row in enumerate(order)}
    neighbours, similarities = np.full((4, 2), -1, np.int32), np.full((4, 2), -np.inf, np.float32)
    neighbours[place["ann"]] = place["bob"], place["cy"]
    similarities[place["ann"]] = 0.9, cy_is_like_ann
    neighbours[place["bob"], 0], similarities[place["bob"], 0] = place["ann"], 0.9
    return CandidateIndex(
        version,
        engaged,
        tuple(by_hash[ad] for ad in engaged.ad_ids.tolist()),
        users[order],
        neighbours,
        similarities,
        HOUR_US,
        popularity_strength,
    )
