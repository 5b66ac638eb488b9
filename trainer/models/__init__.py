"""Networks: timm's by name, this package's own, anybody's by `package.module:function`; what feeds and loads them."""

from trainer.models.named import load_named
from trainer.models.networks import (
    BEST,
    DIGEST_KEY,
    LAST,
    WEIGHTS,
    WEIGHTS_EMA,
    Normalise,
    autocast,
    chosen_amp,
    create_model,
    load_run,
    names_foreign_code,
    read_run_config,
    weight_file,
)

__all__ = [
    "BEST",
    "DIGEST_KEY",
    "LAST",
    "WEIGHTS",
    "WEIGHTS_EMA",
    "Normalise",
    "autocast",
    "chosen_amp",
    "create_model",
    "load_named",
    "load_run",
    "names_foreign_code",
    "read_run_config",
    "weight_file",
]
