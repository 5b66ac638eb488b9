"""Networks: timm's by name, this package's own, anybody's by `package.module:function`; what feeds and loads them."""

from trainer.models.networks import (
    BEST,
    DIGEST_KEY,
    LAST,
    WEIGHTS,
    WEIGHTS_EMA,
    Normalise,
    autocast,
    choose_device,
    create_model,
    load_run,
    run_weights,
)

__all__ = [
    "BEST",
    "DIGEST_KEY",
    "LAST",
    "WEIGHTS",
    "WEIGHTS_EMA",
    "Normalise",
    "autocast",
    "choose_device",
    "create_model",
    "load_run",
    "run_weights",
]
