"""Random numbers by purpose: what every simulated world draws from.

A number is a function of a seed, of what it is for, and of which part of the world it is for, so
that a new purpose or another order of drawing moves no other number. Which purposes there are is
for the worlds to say.

References
----------
Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011 (Philox).
"""

import hashlib

import numpy as np


def random_stream(seed: int, purpose: str, part: int = -1) -> np.random.Generator:
    """Return the random numbers of one purpose in one part of a world.

    Parameters
    ----------
    seed : int
    purpose : str
    part : int
        An hour or a day, from 0; -1 for what is drawn once.

    Returns
    -------
    numpy.random.Generator
        Philox, counter-based, keyed by a BLAKE2b hash of the three.
    """
    text = f"{seed}/{purpose}/{part}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
