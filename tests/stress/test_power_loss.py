"""R4: whatever a power loss leaves of what was not synced, no committed crop is lost and none is wrong."""

import json
import random
import shutil

import pytest

from labelstore.care.verification import verify
from labelstore.store import open_store
from tests.stress.conftest import told
from tests.stress.power_loss import OPTIONS, Disk, materialise, record
from tests.stress.strace import needs_strace, traced
from tests.stress.workers import GROUP, SECOND, soft_labels

pytestmark = needs_strace

STATES = 21


@pytest.fixture(params=["write", "alter"])
def recording(request, empty, nursery, tmp_path):
    """A worker's calls, and the folder as it was before them."""
    path, before = empty(), tmp_path / "before"
    shutil.copytree(path, before)
    result, log = tmp_path / "result", tmp_path / "log"
    assert traced(nursery, request.param, result, path, log, *OPTIONS) == 0
    assert told(result)[-1]["code"] == 0, told(result)
    return before, record(log, path, result)


def check(path, said) -> None:
    """Everything that was said to be committed is there; whatever the ledger names is right."""
    report = verify(path, "digests", workers=1)
    assert report.is_sound, [str(problem) for problem in report.problems]
    committed = {record["committed"] for record in said if "committed" in record}
    second = {record["second"] for record in said if "second" in record}
    with open_store(path) as store:
        expected = soft_labels(store.num_rows, store.num_crops).argmax(-1)
        assert committed <= set(store.group(GROUP).blocks)
        names = [GROUP, SECOND] if SECOND in store.group_names() else [GROUP]
        if any("dropping" in record for record in said):
            second = set()
        if any("dropped" in record for record in said):
            assert SECOND not in store.group_names()
        assert second <= (set(store.group(SECOND).blocks) if SECOND in names else set())
        for name in names:
            if not store.group(name).blocks:
                continue
            labels = store.label_set(name.partition("/")[2])
            for block in labels.blocks:
                rows = labels.block_rows(block)
                found = labels.dense(block).argmax(-1)
                assert (found == expected[rows.start : rows.stop]).all()
                boxes, _ = labels.crops(block)
                assert (boxes[..., 2:] > 0).all()


@pytest.mark.sample(1)
def test_no_state_after_a_power_loss_loses_a_committed_crop(
    recording, nursery, scale, matrix, tmp_path
):
    before, recorded = recording
    rng = random.Random(9)
    whole = Disk(before, recorded)
    moments = sum(1 for _ in whole.run())
    assert len(whole.said) > 2
    wanted = round(STATES * scale)
    each = max(1, round(wanted / moments))
    chosen = set(rng.sample(range(moments), min(moments, wanted)))
    disk, states, finished = Disk(before, recorded), 0, 0
    different = set()
    for moment, _ in enumerate(disk.run()):
        if moment not in chosen:
            continue
        said = [json.loads(line) for part in disk.said for line in part.splitlines()]
        # one extreme or the other, or anything between, when there is time for one only
        drawn = list(disk.states(rng, max(each, 4)))
        for state in drawn if each >= 4 else rng.sample(drawn, each):
            path = materialise(state, tmp_path / "lost")
            states += 1
            different.add(hash(tuple(sorted(state.items(), key=str))))
            check(path, said)
            if states % (20 if scale > 1 else 5) == 0:
                # and the work goes on from there
                result = tmp_path / f"again{states}"
                assert nursery.wait(nursery.start("write", result, path)) == 0
                assert told(result)[-1]["code"] == 0, told(result)
                check(path, [*said, *told(result)])
                finished += 1
            shutil.rmtree(path)
    assert states >= min(wanted, moments)
    matrix.record(
        "R4", states=states, different=len(different), resumed=finished, lost=0, undetected=0
    )


@pytest.mark.sample(1)
def test_the_model_notices_a_writer_that_does_not_sync(empty, nursery, tmp_path):
    """The same calls without their fsyncs lose crops: the model can fail."""
    path, before = empty(), tmp_path / "before"
    shutil.copytree(path, before)
    result, log = tmp_path / "result", tmp_path / "log"
    assert traced(nursery, "write", result, path, log, *OPTIONS) == 0
    recorded = record(log, path, result)
    recorded.calls[:] = [call for call in recorded.calls if call.name not in ("fsync", "fdatasync")]
    rng, disk = random.Random(2), Disk(before, recorded)
    moments = [number for number, _ in enumerate(Disk(before, recorded).run())]
    noticed = 0
    for moment, _ in enumerate(disk.run()):
        if moment != moments[-1]:
            continue
        said = [json.loads(line) for part in disk.said for line in part.splitlines()]
        for n, state in enumerate(disk.states(rng, 4)):
            try:
                check(materialise(state, tmp_path / f"lost{n}"), said)
            except Exception:  # noqa: BLE001 - however it shows
                noticed += 1
    assert noticed >= 2
