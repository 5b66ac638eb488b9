"""From photographs and a teacher to a label set: plan, label, commit, resume, share the work."""

from labelstore.generation.generate import GenerationReport, generate
from labelstore.generation.label_images import label_images
from labelstore.generation.teachers import Teacher, load_teacher

__all__ = ["GenerationReport", "Teacher", "generate", "label_images", "load_teacher"]
