"""Where each setting of a recipe is printed: a table of a paper, or a file and line of a release.

A release is read at one commit (`RELEASES`), so that a line number stays what it is. Where paper and release differ,
the one that is taken is `Said.value`, and `Said.other` names the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RELEASES: Mapping[str, str] = {
    "FKD": "https://github.com/szq0214/FKD at afd5294, folder FKD; train_ViT_FKD.py lies in FKD_ViT, SLG is FKD_SLG",
    "ReLabel": "https://github.com/naver-ai/relabel_imagenet at 3d4824f; yaml is configs/relabel_train_resnet50.yaml, "
    "yaml (cutmix) the one beside it, as base.yaml; .py files but train.py lie in utils",
    "big_vision": "https://github.com/google-research/big_vision at 0127fb6, folder big_vision; bit_i1k.py lies in "
    "configs/proj/distill",
    "MEAL V2": "https://github.com/szq0214/MEAL-V2 at 59e6bca",
    "S2-BNN": "https://github.com/szq0214/S2-BNN at 6eeda81; .py files lie in Distillation_only/step1, kd_loss.py in "
    "its extensions",
    "SRe2L": "https://github.com/VILA-Lab/SRe2L at 8d00cba, folder SRe2L/validate",
    "HALD": "https://github.com/Jiacheng8/HALD at ffbca04; .py files, hyper.yaml lie in validate, relabel_slc.py in "
    "relabel, train.sh in validate/scripts/imagenet1k",
    "LPLD": "https://github.com/he-y/soft-label-pruning-for-dataset-distillation at 63eee18, folder "
    "relabel_and_validate; .yaml lies in cfg/reproduce",
}
"""First words of a source -> repository and commit. Where a table, section or appendix follows, it is the paper's."""

OURS = "ours"
"""First word of the source of a setting that nothing published prints; the reason follows."""


@dataclass(frozen=True)
class Said:
    """One setting, who says so, and what another source says."""

    value: object
    source: str
    other: object = None
    other_source: str = ""
    """Empty where no other source differs."""

    @property
    def is_ours(self) -> bool:
        """Whether nothing published prints this setting."""
        return self.source.startswith(OURS)


Settings = Mapping[str, Said]
"""Settings by name, each with its source."""


def said(source: str, /, **values: object) -> dict[str, Said]:
    """Settings that one source prints.

    >>> said("FKD Table 12", epochs=300)
    {'epochs': Said(value=300, source='FKD Table 12', other=None, other_source='')}
    """
    return {name: Said(value, source) for name, value in values.items()}


def ours(reason: str, /, **values: object) -> dict[str, Said]:
    """Settings that nothing published prints, and why they are as they are."""
    return said(f"{OURS}: {reason}", **values)
