"""R16: any sequence of what one does with a store, kills among it, beside a model of sets and dictionaries."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import labelstore
from labelstore import MarginalSmoothing, RegionThresholds
from labelstore.care.dropping import drop
from labelstore.care.freezing import freeze
from labelstore.care.leftovers import gc
from labelstore.care.repairing import repair
from labelstore.care.verification import verify
from labelstore.commit.staging import BlockArrays, ImageFacts, write_block
from labelstore.store import open_store
from labelstore.testing.filled_store import IMAGE_SIZE, add_label_set, filled_store
from tests.dying_child import killed_at
from tests.stress.workers import NUM_CLASSES, soft_labels

EXAMPLES, STEPS = 5, 16
# the full size, in parts that can be stopped between and run side by side
PARTS, FULL_EXAMPLES, FULL_STEPS = 50, 1000, 50
NUM_IMAGES, CROPS, MOST_CROPS, BLOCKS = 6, 2, 6, 3
NAMES = ("teacher", "second")
THRESHOLDS = RegionThresholds(low=0.2, middle=0.4, top=0.9)
LABELS = soft_labels(NUM_IMAGES, MOST_CROPS)
# file operations of Python after which a kill comes; SQLite's own are the matter of R2
POINTS = ("write", "fsync", "replace", "mkdir", "unlink", "rename", "open")


def commit(store, name: str, block: int) -> None:
    """Commit what a block has no labels for yet."""
    group = f"labels/{name}"
    layout = store.group_specs(group)[1]
    lease = store.catalogue.leases.acquire(
        group, [block], f"{os.getpid()}", 600.0, layout.num_crop_shards
    )
    if lease is None:
        return
    there = store.catalogue.ledger.committed(group).get(block, ())
    rows = layout.rows(block)
    codec = store.label_set(name).codec
    keys = [store.image_columns["key"][row] for row in rows]
    shards = []
    for shard in (s for s in range(layout.num_crop_shards) if s not in there):
        part = range(shard * layout.crops_per_shard, (shard + 1) * layout.crops_per_shard)
        dense = LABELS[rows.start : rows.stop, part.start : part.stop]
        arrays = codec.encode(labelstore.codecs.top_k(dense, 3), NUM_CLASSES)
        shards.append(BlockArrays(group=group, crop_shard=shard, arrays=arrays))
        numbers = np.broadcast_to(np.array(part), (len(rows), len(part)))
        sizes = np.broadcast_to(np.array(IMAGE_SIZE), (len(rows), 2))
        boxes, flips = store.crop_plan().crops_of_images(keys, sizes, numbers)
        crops = {"box": boxes, "flip": flips.astype(np.uint8)}
        shards.append(BlockArrays(group="crops/plan", crop_shard=shard, arrays=crops))
    facts = ImageFacts(decoded=[(row, *IMAGE_SIZE[::-1], bytes(16)) for row in rows])
    write_block(store, lease, shards, facts=facts, num_images=len(rows))
    store.catalogue.leases.release(lease)


def add(store, name: str) -> None:
    add_label_set(store, MarginalSmoothing(k=3), NUM_CLASSES, name=name)


def remove(store, name: str) -> None:
    drop(store, "label-set", name)


def calibrate(store, name: str) -> None:
    labelstore.calibrate(store.label_set(name), THRESHOLDS, name=f"of-{name}")


def stored(store):
    """(label set -> committed (block, crop shard), masks), as the store says."""
    committed = {
        name: {
            (block, shard)
            for block, shards in store.catalogue.ledger.committed(f"labels/{name}").items()
            for shard in shards
        }
        for name in store.label_sets
    }
    return committed, {mask.removeprefix("of-") for mask in store.masks}


class StoreMachine(RuleBasedStateMachine):
    """`self.labels`: label set -> committed (block, crop shard); `self.masks`: masks there are.

    All is done by one handle, `self.held`, and in copies of it that a fork made, until `reopen`.
    """

    empty: ClassVar[dict[str, Path]] = {}
    counts = {"sequences": 0, "steps": 0, "kills": 0}  # noqa: RUF012

    @initialize(backend=st.sampled_from(["zarr", "hdf5"]))
    def make(self, backend):
        self.folder = Path(tempfile.mkdtemp(prefix="stateful"))
        self.path = self.folder / "store"
        shutil.copytree(self.empty[backend], self.path)
        self.crops, self.labels, self.masks = CROPS, {"teacher": set()}, set()
        self.frozen = None
        self.held = open_store(self.path)
        self.counts["sequences"] += 1

    def teardown(self):
        if not hasattr(self, "held"):
            return
        report = verify(self.path, "deep", workers=1)
        assert report.is_sound, [str(problem) for problem in report.problems]
        self.held.close()
        shutil.rmtree(self.folder)

    def outcome(self, action, kill, after) -> None:
        """Do it, or be killed on the way: then it was done or not, and nothing between; the store says which."""
        self.counts["steps"] += 1
        before = (self.labels, self.masks)
        if kill is not None and killed_at(kill, POINTS, action):
            self.counts["kills"] += 1
            with open_store(self.path) as store:
                found = stored(store)
            assert found in (before, after)
            self.labels, self.masks = found
            return
        if kill is None:
            action()
        self.labels, self.masks = after

    # None is not to be killed; an operation makes some ten changes of files
    kills = st.integers(-4, 12).map(lambda n: None if n < 0 else n)

    @rule(data=st.data(), block=st.integers(0, BLOCKS - 1), kill=kills)
    def commit(self, data, block, kill):
        name = data.draw(st.sampled_from(sorted(self.labels)))
        new = {(block, shard) for shard in range(self.crops // 2)}
        after = {**self.labels, name: self.labels[name] | new}
        self.wait_for_leases()
        self.outcome(lambda: commit(self.held, name, block), kill, (after, self.masks))

    def wait_for_leases(self):
        """Leases of killed owners, as if they had run out."""
        for lease in self.held.catalogue.leases.live():
            self.held.catalogue.leases.release(lease)

    @precondition(lambda self: len(getattr(self, "labels", NAMES)) < len(NAMES))
    @rule(kill=kills)
    def add(self, kill):
        name = next(name for name in NAMES if name not in self.labels)
        self.outcome(lambda: add(self.held, name), kill, ({**self.labels, name: set()}, self.masks))

    @precondition(lambda self: len(getattr(self, "labels", ())) > 1 and self.unmasked())
    @rule(data=st.data(), kill=kills)
    def drop(self, data, kill):
        name = data.draw(st.sampled_from(self.unmasked()))
        self.wait_for_leases()
        after = {other: found for other, found in self.labels.items() if other != name}
        self.outcome(lambda: remove(self.held, name), kill, (after, self.masks))

    def unmasked(self):
        return sorted(set(self.labels) - self.masks)

    def to_calibrate(self):
        """Label sets with labels that have no mask, while no crops were added."""
        if getattr(self, "crops", MOST_CROPS) > CROPS:
            return []
        return [name for name in self.unmasked() if self.labels[name]]

    @precondition(lambda self: self.to_calibrate())
    @rule(data=st.data())
    def calibrate(self, data):
        name = data.draw(st.sampled_from(self.to_calibrate()))
        self.outcome(lambda: calibrate(self.held, name), None, (self.labels, {*self.masks, name}))

    @precondition(lambda self: getattr(self, "crops", MOST_CROPS) < MOST_CROPS)
    @rule()
    def grow(self):
        self.crops += 2
        store = self.held
        with store.catalogue.transaction() as connection:
            store.catalogue.plans.change(connection, "plan", num_crops=self.crops)
        store.refresh()
        store.write_metadata()
        self.counts["steps"] += 1

    @rule()
    def reopen(self):
        self.held.close()
        self.held = open_store(self.path)
        self.counts["steps"] += 1

    @rule()
    def gc(self):
        gc(self.held, min_age_seconds=0)
        self.counts["steps"] += 1

    @rule(data=st.data())
    def repair(self, data):
        """Boxes and metadata that were damaged come back; labels would need the teacher."""
        store = self.held
        files = [
            store.arrays.root / file.key
            for row in store.catalogue.ledger.shards("crops/plan")
            for file in row.files
        ]
        files += [store.arrays.root / key for key in store.catalogue.metadata.digests()]
        path = data.draw(st.sampled_from(sorted(files)))
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2])
        with open_store(self.path, checked=False) as store:
            report = repair(store)
        assert report.remaining == ()
        assert path.read_bytes() == good
        self.counts["steps"] += 1

    def held_now(self):
        return self.crops, {name: set(found) for name, found in self.labels.items()}, self.masks

    # a second copy of the same state would only take time
    @precondition(lambda self: not hasattr(self, "held") or self.frozen != self.held_now())
    @rule()
    def freeze(self):
        self.frozen = self.held_now()
        self.wait_for_leases()
        freeze(self.held, self.folder / "frozen", allow_incomplete=True)
        report = verify(self.folder / "frozen", workers=1)
        assert report.is_sound, [str(problem) for problem in report.problems]
        shutil.rmtree(self.folder / "frozen")
        self.counts["steps"] += 1

    @invariant()
    def the_store_holds_what_the_model_holds(self):
        if not hasattr(self, "held"):
            return
        # one transaction for all reads: each of its own would take longer than what it reads
        with self.held.catalogue.reading():
            self.held.refresh(images=False)
            assert stored(self.held) == (self.labels, self.masks)
            for name, shards in self.labels.items():
                parts = {(b, s) for b in range(BLOCKS) for s in range(self.crops // 2)}
                missing = {block for block, _ in parts - shards}
                whole = [block for block in range(BLOCKS) if block not in missing]
                labels = self.held.label_set(name)
                assert labels.blocks == tuple(whole)
                for block in whole:
                    found = labels.dense(block).argmax(-1)
                    right = LABELS[2 * block : 2 * block + 2, : self.crops].argmax(-1)
                    assert (found == right).all()


@pytest.mark.sample(1)
@pytest.mark.parametrize("part", range(PARTS))
def test_any_sequence_of_operations(part, scale, matrix, tmp_path):
    full = scale >= 20
    if part > 0 and not full:
        pytest.skip("a part of `make stress`")
    for backend in ("zarr", "hdf5"):
        StoreMachine.empty[backend] = tmp_path / backend
        filled_store(
            tmp_path / backend,
            LABELS[:, :CROPS],
            MarginalSmoothing(k=3),
            images_per_shard=2,
            crops_per_shard=2,
            backend=backend,
            blocks=[],
        ).close()
    examples = FULL_EXAMPLES // PARTS if full else max(3, round(EXAMPLES * scale))
    StoreMachine.counts = {"sequences": 0, "steps": 0, "kills": 0}
    run_state_machine_as_test(
        seed(part)(StoreMachine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=FULL_STEPS if full else STEPS,
            database=None,
            deadline=None,
            # the steps that failed are shown; to look for fewer would take hours
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert StoreMachine.counts["sequences"] >= examples
    matrix.record("R16", **StoreMachine.counts, violations=0)
