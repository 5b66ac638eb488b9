"""In 8 bits two classes of nearly one probability may come back in the other order: that is rounding, not damage."""

import numpy as np

from labelstore import MarginalSmoothing
from labelstore.care.verification import verify
from labelstore.testing.filled_store import filled_store


def test_near_ties_in_8_bits_are_sound(tmp_path):
    rng = np.random.default_rng(5)
    labels = rng.dirichlet(np.full(6, 0.4), (4, 40)).astype(np.float32)
    codec = MarginalSmoothing(k=3, dtype="uint8")
    with filled_store(tmp_path / "store", labels, codec, images_per_shard=4) as store:
        probs = store.label_set().sparse(0).probs
    assert (np.diff(probs, axis=-1) > 0).any()  # there are some
    assert (probs[..., 1:] <= probs[..., :1]).all()
    assert verify(tmp_path / "store", "deep").is_sound
