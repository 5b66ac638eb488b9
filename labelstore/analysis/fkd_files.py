"""What the same labels take in FKD's own files, one torch zip per image (`torch.save`), and in FKD Table 2.

A file holds [coordinates (M, 4), flip (M,), labels] as NumPy arrays in one pickle of protocol 2, which writes
the arrays' bytes as a text: a byte of 128 and more becomes two. So

    file(M) = 1600 + M x (payload + high)

with `payload` the bytes of one crop's numbers, `high` how many of them are 128 or more, and 1,600 bytes of
zip records, names and padding (1,569 to 1,632 with torch 2.15). A random fraction has 1.5 high bytes as
float32 and 0.5 as float16; a class id 0.7 as float32 and 0.5 as float16 or int64. For MS-5 in float32:
payload 16 + 1 + 40 = 57, high 4 x 1.5 + 5 x (1.5 + 0.7) = 17. Measured files of a real teacher: 89.7, 81.6
and 78.2 bytes per crop at M = 100, 200, 500; the formula gives 90.0, 82.0 and 77.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from labelstore.errors import UsageError

Kind = Literal["full", "hard", "smoothing", "mr", "ms"]

FILE_OVERHEAD = 1600
"""Bytes of a file that holds no crop."""
FKD_TABLE_2: dict[tuple[Kind, int | None], str] = {
    ("full", None): "~0.9 TB",
    ("hard", None): "5.3 GB",
    ("smoothing", None): "6.2 GB",
    ("mr", 5): "13.3 GB",
    ("ms", 5): "13.3 GB",
    ("ms", 10): "22.2 GB",
}
"""FKD Table 2, "Real Cons. on Disk", as printed: 4 bytes x dimensions in units of 2^30 and 2^40 bytes."""

_HIGH_FRACTION = {4: 1.5, 2: 0.5}
_HIGH_ID = {4: 0.7, 2: 0.5}


@dataclass(frozen=True, kw_only=True)
class FkdKind:
    """One column of FKD Table 2 for given N, M, C."""

    kind: Kind
    k: int | None
    num_images: int
    num_crops: int
    dimensions: int
    """Numbers per crop, coordinates and flip included: C + 5, 6, 7 or 2 K + 5."""
    table_bytes: int
    """The paper's calculation: 4 bytes per number, flips too."""
    payload_per_crop: int
    """Bytes of one crop's numbers in FKD's file."""
    file_bytes: int
    """One file of M crops, by the formula above."""
    disk_bytes: int
    """N such files."""
    paper: str | None
    """What Table 2 prints for 1.2 M images x 200 crops x 1000 classes."""

    @property
    def file_bytes_per_crop(self) -> float:
        """Bytes per crop on disk."""
        return self.file_bytes / self.num_crops

    @property
    def title(self) -> str:
        """The kind as the paper writes it: "MS-5"."""
        return f"{self.kind}-{self.k}" if self.k is not None else self.kind


def fkd_file_bytes(
    num_crops: int,
    *,
    kind: Kind = "ms",
    k: int | None = 5,
    num_classes: int = 1000,
    half: bool = False,
) -> int:
    """Expected bytes of one FKD file with M crops; `half` is the generator's `--use_fp16`."""
    payload, high = _crop_bytes(kind, k, num_classes, half)
    return round(FILE_OVERHEAD + num_crops * (payload + high))


def fkd_kinds(
    num_images: int,
    num_crops: int,
    *,
    num_classes: int = 1000,
    kinds: tuple[tuple[Kind, int | None], ...] = tuple(FKD_TABLE_2),
) -> tuple[FkdKind, ...]:
    """FKD Table 2 for N images of M crops and C classes. Kinds with K > C are left out."""
    if num_images < 1 or num_crops < 1:
        raise UsageError(f"{num_images} images x {num_crops} crops: at least 1 of each")
    rows = []
    for kind, k in kinds:
        if k is not None and k > num_classes:
            continue
        dimensions = _dimensions(kind, k, num_classes)
        file_bytes = fkd_file_bytes(num_crops, kind=kind, k=k, num_classes=num_classes)
        rows.append(
            FkdKind(
                kind=kind,
                k=k,
                num_images=num_images,
                num_crops=num_crops,
                dimensions=dimensions,
                table_bytes=4 * dimensions * num_images * num_crops,
                payload_per_crop=_crop_bytes(kind, k, num_classes, False)[0],
                file_bytes=file_bytes,
                disk_bytes=file_bytes * num_images,
                paper=FKD_TABLE_2.get((kind, k)) if num_classes == 1000 else None,
            )
        )
    return tuple(rows)


def _dimensions(kind: Kind, k: int | None, num_classes: int) -> int:
    coordinates_and_flip = 5
    match kind:
        case "full":
            return num_classes + coordinates_and_flip
        case "hard":
            return 1 + coordinates_and_flip
        case "smoothing":
            return 2 + coordinates_and_flip
    return 2 * _k(kind, k) + coordinates_and_flip


def _crop_bytes(kind: Kind, k: int | None, num_classes: int, half: bool) -> tuple[int, float]:
    """Payload of one crop, and how many of its bytes are 128 or more."""
    size = 2 if half else 4
    match kind:
        case "full":
            ids, fractions = 0, num_classes
        case "hard":
            return 4 * size + 1 + 8, 4 * _HIGH_FRACTION[size] + 0.5
        case "smoothing":
            ids, fractions = 1, 1
        case _:
            ids = fractions = _k(kind, k)
    payload = size * (4 + ids + fractions) + 1
    return payload, (4 + fractions) * _HIGH_FRACTION[size] + ids * _HIGH_ID[size]


def _k(kind: Kind, k: int | None) -> int:
    if k is None or k < 1:
        raise UsageError(f"K={k} for {kind}: ms and mr keep at least one class")
    return k
