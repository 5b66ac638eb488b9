"""A part that is frozen in a bucket is merged like one on a disk."""

import labelstore
from labelstore.care.freezing import freeze
from labelstore.care.verification import verify
from tests.machines.test_object_storage import environment, s3, server
from tests.merging.parts import ALL, EVEN, ODD, by_key, part

__all__ = ["environment", "s3", "server"]


def test_a_part_in_a_bucket(s3, tmp_path):
    for name, images in (("even", EVEN), ("odd", ODD), ("whole", ALL)):
        with part(tmp_path / name, images) as store:
            freeze(store, tmp_path / f"{name}.frozen")
    s3.create_bucket(Bucket="parts")
    frozen = tmp_path / "odd.frozen"
    for file in (path for path in frozen.rglob("*") if path.is_file()):
        s3.upload_file(str(file), "parts", f"odd/{file.relative_to(frozen).as_posix()}")
    report = labelstore.merge(tmp_path / "out", [tmp_path / "even", "s3://parts/odd"])
    assert report.is_complete
    assert report.stores[1] == "s3://parts/odd"
    with labelstore.open(tmp_path / "out") as out, labelstore.open(tmp_path / "whole") as whole:
        assert by_key(out, "teacher") == by_key(whole, "teacher")
    assert verify(tmp_path / "out", "deep").is_sound
