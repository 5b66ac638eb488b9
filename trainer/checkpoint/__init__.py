"""Files that a run leaves on disk: checkpoints that survive a kill at any moment, and a folder like timm's."""

from trainer.checkpoint.files import (
    Checkpoint,
    epoch_of,
    read_checkpoint,
    save_checkpoint,
    weights_file,
)
from trainer.checkpoint.run_folder import RunFolder

__all__ = [
    "Checkpoint",
    "RunFolder",
    "epoch_of",
    "read_checkpoint",
    "save_checkpoint",
    "weights_file",
]
