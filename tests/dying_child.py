"""A child process that is killed at its n-th file operation, whatever it is at."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence


def killed_at(at: int, points: Sequence[str], action: Callable[[], object]) -> bool:
    """Run it in a child that dies at its `at`-th call of one of these functions of `os`; whether it died."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        left = at

        def counting(function):
            def counted(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return counted

        for name in points:
            setattr(os, name, counting(getattr(os, name)))
        action()
    except BaseException:  # noqa: BLE001 - a child must not come back into the test
        os._exit(1)
    os._exit(0)
