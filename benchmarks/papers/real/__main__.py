"""The papers' claims with a real ImageNet teacher: train what is missing, write benchmarks/reports/papers_real.*.

    python -m benchmarks.papers.real --folder papers/real
    python -m benchmarks.papers.real --only real --minutes 30

Pictures need three packages of Debian (`stamps`), the teacher three of Python (`benchmarks/real_teacher.py`). Finished runs are
kept in results/, one file each, so that an interrupted call goes on where it was and work of several days adds up. All in all
about 2 hours of one core: labels 30 minutes, 19 arms times 8 seeds of about 40 seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.papers import report
from benchmarks.papers.__main__ import command_line, run
from benchmarks.papers.real.primary_claims import PRIMARY
from benchmarks.papers.real.real_setting import REAL_SMOKE, RealSetting
from benchmarks.papers.real.real_stage import RealStage
from benchmarks.papers.real.stamps import stamp_classes
from benchmarks.papers.real.tables_real import TABLES

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the command line."""
    arguments = command_line("benchmarks.papers.real", __doc__.splitlines()[0], TABLES, seeds=8)
    if arguments.smoke:
        folder = arguments.folder / "smoke"
        stage = RealStage(REAL_SMOKE, folder, folder / "results")
    else:
        stage = RealStage(RealSetting(), arguments.folder, RESULTS)
    run(stage, TABLES, page(RealSetting()), arguments)


def page(setting: RealSetting) -> report.Page:
    """What the report says of the experiment."""
    count = len(stamp_classes())
    images = {name: per_class * count for name, per_class in setting.images.items()}
    return report.Page(
        name="papers_real",
        title="The papers' claims with a real ImageNet teacher",
        command="python -m benchmarks.papers.real",
        setting=(
            f"{images['train']:,} train pictures of {count} ImageNet classes (photographed objects on photographed places, about 400 px JPEG;",
            f"benchmarks/papers/real/stamps.py) and {setting.num_crops} crops of each, labelled by tf_efficientnet_lite0 with all 1,000 classes.",
            f"Every student (ResNet of {setting.network()['channels']} channels at {setting.input_size} px) starts from the same weights, trained on the",
            f"ground truth for {images['train'] * setting.base_epochs:,} crops, and sees {images['train'] * setting.epochs:,} crops; measured on {images['val']:,} val pictures with other",
            "places, and other objects where a class has two. KL is KL(teacher || student) over 1,000 classes. No one figure names a winner:",
            "top-1, agreement and KL each pick another.",
        ),
        method=(
            f"Holm's method over the {len(PRIMARY)} primary claims, named before the run (benchmarks/papers/real/primary_claims.py), and "
            "Benjamini and Hochberg's over the others"
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
