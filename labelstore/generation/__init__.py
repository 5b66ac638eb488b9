"""From photographs and a teacher to a label set: plan, label, commit, resume, share the work."""

from labelstore.generation.generate import GenerationReport, generate
from labelstore.generation.grow import Growth, grow, plan_growth
from labelstore.generation.label_images import label_images
from labelstore.generation.repairing import RepairReport, repair
from labelstore.generation.teachers import Teacher, load_teacher

__all__ = [
    "GenerationReport",
    "Growth",
    "RepairReport",
    "Teacher",
    "generate",
    "grow",
    "label_images",
    "load_teacher",
    "plan_growth",
    "repair",
]
