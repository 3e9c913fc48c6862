"""Gaussian noise on pictures, as in the TCIFAR-100 of Knowledge Representing (Liu et al., 2019).

"Each image in training and test set is distorted by the artifacts, from a gaussian distribution (sigma = 1)".
So noise is a property of the data: every split is made noisy once, when it is prepared, and teachers,
students and evaluation see the same noisy pictures.

*Our reading*: the paper names no unit. Here sigma is in grey levels of 0 to 255, and a noisy pixel is rounded
and clipped.
"""

import hashlib

import numpy as np


def noisy(image: np.ndarray, sigma: float, seed: int, key: str) -> np.ndarray:
    """The uint8 picture with noise, which depends on `seed` and the picture's own `key` alone."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    noise = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32)).normal(0, sigma, image.shape)
    return np.rint(image + noise).clip(0, 255).astype(np.uint8)
