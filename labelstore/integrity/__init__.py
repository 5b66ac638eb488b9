"""Is everything still there, what can go, and how does it stay so: verify, gc, freeze (`repair` needs a teacher)."""

from labelstore.integrity.freezing import Frozen, freeze
from labelstore.integrity.leftovers import Collected, Leftover, gc
from labelstore.integrity.report import Level, Problem, VerifyReport
from labelstore.integrity.verification import verify

__all__ = [
    "Collected",
    "Frozen",
    "Leftover",
    "Level",
    "Problem",
    "VerifyReport",
    "freeze",
    "gc",
    "verify",
]
