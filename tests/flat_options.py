"""The library's calls with the fields of their option dataclasses as plain keyword arguments.

Tests keep settings in dictionaries that several calls share, and change one of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any


def label_images(path: Any, **values: Any) -> Any:
    """As `labelstore.label_images`; `plan_name` is the plan's, `name` the label set's."""
    import labelstore

    if "plan_name" in values:
        values["plan"] = {"name": values.pop("plan_name")}
    groups = {"generation": labelstore.GenerationOptions, "plan": labelstore.PlanOptions}
    return _call(labelstore.label_images, (path,), values, groups)


def generate(store: Any, **values: Any) -> Any:
    """As `labelstore.generate`."""
    import labelstore

    groups = {"generation": labelstore.GenerationOptions}
    return _call(labelstore.generate, (store,), values, groups)


def grow(store: Any, **values: Any) -> Any:
    """As `labelstore.grow`."""
    import labelstore

    return _call(labelstore.grow, (store,), values, {"generation": labelstore.GenerationOptions})


def import_labels(path: Any, **values: Any) -> Any:
    """As `labelstore.import_labels`."""
    import labelstore

    return _call(labelstore.import_labels, (path,), values, {"options": labelstore.ImportOptions})


def plan_import(path: Any, **values: Any) -> Any:
    """As `labelstore.exchange.plan_import`."""
    from labelstore.exchange import ImportOptions, plan_import

    return _call(plan_import, (path,), values, {"options": ImportOptions})


def StoredPasses(labels: Any, **values: Any) -> Any:
    """As `trainer.loader.StoredPasses`."""
    from trainer import loader

    groups = {"draw": loader.DrawOptions, "supervision": loader.Supervision}
    return _call(loader.StoredPasses, (labels,), values, groups)


def CropDataset(*args: Any, **values: Any) -> Any:
    """As `trainer.loader.CropDataset`."""
    from trainer import loader

    return _call(loader.CropDataset, args, values, {"draw": loader.DrawOptions})


def CropLoader(*args: Any, **values: Any) -> Any:
    """As `trainer.loader.CropLoader`."""
    from trainer import loader

    return _call(loader.CropLoader, args, values, {"options": loader.LoaderOptions})


def _call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    values: dict[str, Any],
    groups: dict[str, type],
) -> Any:
    """Call with each value in the first group that has a field of its name; the others as they are."""
    for parameter, kind in groups.items():
        names = {field.name for field in fields(kind) if field.init} & values.keys()
        own = {name: values.pop(name) for name in names}
        values[parameter] = kind(**own, **values.pop(parameter, {}))
    return function(*args, **values)
