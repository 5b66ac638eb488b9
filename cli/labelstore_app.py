"""The program `labelstore`: makes, reads and keeps stores of soft labels."""

from __future__ import annotations

import typer

from cli.errors import main
from cli.lazy_group import lazy_group
from cli.shared_options import Cache, Version, use_cache

COMMANDS = {
    "create": "Label every crop of an image folder with a teacher; resumes or joins a store that exists.",
    "info": "Show what a store holds: images, crop plans, teachers, label sets, masks, progress.",
    "stats": "Show how sure the teacher is of its crops (FerKD Table 1) and what the labels weigh.",
    "crops": "Print a table with one row per crop: box, flip, probabilities, entropy, the teacher's class.",
    "sql": "Answer one SELECT over the catalogue's tables and the crops, which are read as the query needs them.",
    "quality": "Show the cross-entropy between label sets, and to the ground truth, over equal crops (FKD Fig. 3).",
    "noise": "List images whose ground truth the teacher contradicts with confidence, the worst first.",
    "classes": "Show the classes of the images, their names and outputs in a label set; record them where nothing says "
    "it.",
    "show": "Show an image's hardest and easiest crops with what the teacher says of them (FerKD Fig. 3 and 9).",
    "plot": "Draw a label set: how sure the teacher is, where the crops lie, what a mask does (FerKD Fig. 1 and 2).",
    "report": "Write one HTML file with what a store holds, how sure the teacher is and what a calibration would do.",
    "advise": "Show what many choices of thresholds and quantiles would discard, calibrate and keep, overall and "
    "by class.",
    "mask": "Make a mask by conditions over the columns of a crop (`labelstore crops STORE --columns help` lists "
    "them).",
    "calibrate": "Make a mask: which crops a student skips and which get the ground truth (FerKD Eq. 4).",
    "variants": "Derive a cheaper label set from a richer one without the teacher, and print the KL it costs.",
    "add-teacher": "Label the same crops with a further teacher, or the same one in another form.",
    "import": "Import labels that another project wrote; nothing that their files name is ever run.",
    "export": "Write labels for other code: FKD, ReLabel, ml-dr, plain tables, HDF5, WebDataset.",
    "grow": "Add crops to every image of a store, or images to the store, and label them; nothing is rewritten.",
    "merge": "Make one store of stores that were made on different machines for parts of the same data set.",
    "drop": "Remove a label set, a mask or a crop plan, and free its space.",
    "verify": "Compare every committed shard, the metadata and the catalogue with their digests.",
    "audit": "Run the teacher again on stored crops and compare its probabilities with the stored ones.",
    "repair": "Make damaged shards again, and only them: labels from images, boxes from the plan.",
    "leases": "List the image blocks that workers hold, until when; --break frees those of a worker that will not come "
    "back.",
    "gc": "Remove temporary files and orphans that killed workers left behind an hour ago or more.",
    "freeze": "Make a store read-only for good, with a manifest by which every copy can be checked.",
    "push": "Share a frozen store on the Hugging Face Hub, with a card; images never travel.",
    "pull": "Fetch a shared store from the Hugging Face Hub and check every file of it.",
    "migrate": "Bring a store of an older version up to date; one that is up to date stays as it is.",
    "demo-images": "Write a small image folder to try things on: digits set into photographs.",
}

HOMES = {
    "creating": ("create", "add-teacher", "grow", "demo-images"),
    "listing": ("crops", "sql", "quality", "noise", "classes"),
    "drawing": ("show", "plot", "report"),
    "masks": ("calibrate", "mask"),
    "checking": ("verify", "audit", "repair"),
    "upkeep": ("gc", "leases", "drop", "freeze", "migrate"),
    "stores": ("push", "pull", "merge"),
}
"""Module of `cli.commands` -> its commands; every other command has a module of its own name."""

commands = typer.Typer(cls=lazy_group(COMMANDS, HOMES), name="labelstore", rich_markup_mode=None)


@commands.callback()
def labelstore(version: Version = False, cache: Cache = None) -> None:
    """The place where soft labels for vision models live."""
    use_cache(cache)


def app() -> None:
    """Entry point of the installed program."""
    main(commands, "labelstore")


if __name__ == "__main__":
    app()
