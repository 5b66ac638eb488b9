"""The model's arithmetic by hand, and the sleeping cluster at toy size on a real server."""

import pytest

from benchmarks.many_gpus import Constants, Job, capacities, predicted
from benchmarks.sleeping_cluster import Cluster, run
from labelstore.errors import UsageError

COSTS = Constants(decode_us=2000, crop_us=990, label_bytes=17, block_ms=100, beat_ms=10)


def job(**changes):
    return Job(**{"gpus": 4, "teacher_rate": 1000.0, "images": 1_000_000, **changes})


def test_what_each_part_can_do():
    can = capacities(job(), COSTS)
    assert can["teacher"] == 4000
    # 990 us per crop, and 10 of a decoding for 200 of them: 1,000 crops/s and core
    assert can["CPU (decode, crop, encode)"] == pytest.approx(4 * 16 * 1000)
    # 4 beats of 10 ms in 20 s leave 99.8 % of the catalogue, for 10 blocks/s
    assert can["catalogue"] == pytest.approx(0.998 * 10 * 204_800)


def test_the_bottleneck_is_what_is_busy_all_the_time():
    few, many = predicted(job(), COSTS), predicted(job(gpus=1000, teacher_rate=8000.0), COSTS)
    assert (few["bottleneck"], many["bottleneck"]) == ("teacher", "catalogue")
    for found in (few, many):
        assert max(found["busy"].values()) == found["busy"][found["bottleneck"]] == 1
    assert few["hours"] == pytest.approx(1_000_000 * 200 / 4000 / 3600, rel=0.01)
    # beats take half of the catalogue from a thousand workers
    assert many["blocks_per_s"] == pytest.approx(5)


@pytest.mark.slow
def test_a_cluster_loses_nothing():
    pytest.importorskip("psycopg")
    try:
        found = run(Cluster(workers=3, processes=1, blocks=7, before=20, seconds=0.05))
    except UsageError as reason:
        pytest.skip(str(reason))
    assert (found.lost, found.twice, found.leases_lost) == (0, 0, 0)
    assert found.commits_per_s > 0
    assert found.lease_cpu_ms > 0
