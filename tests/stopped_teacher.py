"""Ctrl-C while a teacher is at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from labelstore.teachers.labeller import Labeller


@contextmanager
def teacher_stops(after_crops: int) -> Iterator[None]:
    """What the block calls is interrupted as soon as the teacher is asked for more than so many crops."""
    real, labelled = Labeller.__call__, []

    def stops(self, pixels):
        if sum(labelled) >= after_crops:
            raise KeyboardInterrupt
        labelled.append(len(pixels))
        return real(self, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeller, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            yield
