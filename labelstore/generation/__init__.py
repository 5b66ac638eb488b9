"""From photographs and a teacher to a label set: plan, label, commit, resume, share the work."""

from labelstore.generation.auditing import AuditedCrop, AuditReport, audit
from labelstore.generation.generate import generate
from labelstore.generation.grow import Growth, grow, plan_growth
from labelstore.generation.label_images import label_images
from labelstore.generation.new_images import NewImages, add_images, plan_new_images
from labelstore.generation.repairing import RepairReport, repair
from labelstore.generation.teacher_check import TeacherCheck, TeacherEvaluation
from labelstore.generation.teachers import Teacher, load_teacher
from labelstore.generation.worker import GenerationReport

__all__ = [
    "AuditReport",
    "AuditedCrop",
    "GenerationReport",
    "Growth",
    "NewImages",
    "RepairReport",
    "Teacher",
    "TeacherCheck",
    "TeacherEvaluation",
    "add_images",
    "audit",
    "generate",
    "grow",
    "label_images",
    "load_teacher",
    "plan_growth",
    "plan_new_images",
    "repair",
]
