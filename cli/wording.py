"""The one place that turns what the library calls a parameter or a function into what the command line calls it.

The library speaks Python: `` `skip_bad` ``, `` `num_crops=4` ``, `` `labelstore.verify('in1k.labels')` ``. In a message
of a command a parameter that is an option of it is shown as its flag, a function as its command:

    `num_crops=0`: store at least one crop per image   -->   --num-crops 0: store at least one crop per image
    run `labelstore.verify('in1k.labels')`             -->   run `labelstore verify in1k.labels`

What else stands between backticks stays as it is. `import_facts` puts what an import learnt from its files into words.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

LIBRARY_NAMES = {
    "architecture": "teacher_model",
    "augmentation": "color_jitter",
    "autocast": "amp",
    "compile_teacher": "compile",
    "max_seconds": "max_time",
    "method": "mix",
    "mixing": "mix",
    "num_images": "val_images",
    "plan": "plan_name",
    "plan_of": "plan_from",
}
"""A parameter of the library -> the option that carries it, where that has another name."""

SPELLED = {"stored_crops=False": ("crops", "--crops seeded")}
"""A parameter with its value -> the option that says it, and how."""

COMMANDS = {
    "labelstore.generate": "labelstore create",
    "labelstore.generate()": "labelstore add-teacher",  # called with a store: one that has its crops
    "labelstore.derive": "labelstore variants",
    "labelstore.import_labels": "labelstore import",
    "labelstore.export_labels": "labelstore export",
    "labelstore.calibration.update": "labelstore calibrate --update",
    "labelstore.labelling.stating.state_classes": "labelstore classes",
    "trainer.TrainConfig": "trainer run",
}
"""A function of the library -> the command that calls it, where that has another name."""

_QUOTED = re.compile("`([^`]+)`")
_PARAMETER = re.compile(r"([a-z][a-z0-9_]*)(?:=(.*))?", re.DOTALL)
_FUNCTION = re.compile(r"((?:labelstore|trainer)(?:\.[a-zA-Z_]+)+)(\(.*\))?", re.DOTALL)

_flags: dict[str, str] = {}
"""Flags of the command that runs, by the names that they are known by."""


def speak_of(parameters: Iterable[Any]) -> None:
    """From now on messages are those of a command with these parameters (click's)."""
    _flags.clear()
    _flags.update(flags_of(parameters))


def flags_of(parameters: Iterable[Any]) -> dict[str, str]:
    """The flags of a command's options, by their parameters and by each of their own names."""
    found: dict[str, str] = {}
    for parameter in parameters:
        flags = [flag for flag in parameter.opts if flag.startswith("--")]
        if flags and parameter.param_type_name == "option":
            names = (parameter.name.rstrip("_"), *(flag[2:].replace("-", "_") for flag in flags))
            found |= dict.fromkeys(names, flags[0])
    return found


def spoken(message: str) -> str:
    """A message of the library as the command that runs says it."""
    return in_flags(message, _flags)


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """The message with the names in `flags` as these flags, and functions as commands.

    >>> in_flags("`skip_bad` or `k=5`, not `dtype`", {"skip_bad": "--skip-bad", "k": "--k"})
    '--skip-bad or --k 5, not `dtype`'
    >>> in_flags("`labelstore.calibration.update(labelstore.open('a b'), name='m')`", {})
    "`labelstore calibrate 'a b' --update --name m`"
    >>> in_flags("`labelstore.create(plan=PlanOptions(images_per_shard=N))`", {})
    '`labelstore create --images-per-shard N`'
    >>> in_flags("`trainer.TrainConfig(allow_incomplete=True)`", {})
    '`trainer run --allow-incomplete`'
    """
    return _QUOTED.sub(lambda match: _shown(match[1], flags) or match[0], message)


def _shown(text: str, flags: Mapping[str, str]) -> str | None:
    """The flag or command for the text between two backticks; None leaves it."""
    if text in SPELLED and SPELLED[text][0] in flags:
        return SPELLED[text][1]
    if parameter := _PARAMETER.fullmatch(text):
        name, value = parameter.groups()
        flag = flags.get(name) or flags.get(LIBRARY_NAMES.get(name, ""))
        if flag is None:
            return None
        return flag if value in (None, "True") else f"{flag} {value}"
    if function := _FUNCTION.fullmatch(text):
        return _command(*function.groups())
    return None


def _command(name: str, call: str | None) -> str | None:
    """The command line of a call such as `labelstore.verify('in1k.labels', deep=True)`."""
    # what is left to fill in may also follow keywords, which Python does not take
    inside = (call or "()")[1:-1]
    more = inside.endswith("...")
    try:
        parsed = ast.parse(f"f({inside.removesuffix('...').rstrip(', ')})", mode="eval").body
    except SyntaxError:
        return None
    assert isinstance(parsed, ast.Call)
    program, command, *flags = (
        COMMANDS.get(f"{name}()" if parsed.args else name)
        or COMMANDS.get(name)
        or name.replace(".", " ").replace("_", "-")
    ).split(" ")
    words = [program, command, *map(_word, parsed.args), *flags]
    for keyword in _keywords(parsed):
        option = LIBRARY_NAMES.get(str(keyword.arg), str(keyword.arg)).replace("_", "-")
        is_switch = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        words += [f"--{option}"] if is_switch else [f"--{option}", _word(keyword.value)]
    return f"`{' '.join(words + ['...'] * more)}`"


def _keywords(call: ast.Call) -> Iterator[ast.keyword]:
    """The keywords of a call, and those of the option dataclasses among their values."""
    for keyword in call.keywords:
        if isinstance(keyword.value, ast.Call) and keyword.value.keywords:
            yield from keyword.value.keywords
        else:
            yield keyword


def _word(node: ast.expr) -> str:
    """An argument as a shell reads it; a name in Python stands for something to fill in."""
    if isinstance(node, ast.Call) and node.args:
        return _word(node.args[0])  # a store that is opened: its path
    if isinstance(node, ast.Constant):
        return quoted(str(node.value))
    return ast.unparse(node).upper()


def quoted(word: str) -> str:
    """A word as a shell reads it, and a command takes it for no option.

    >>> print(quoted("-x"), quoted("a b"), quoted("a\\nb"))
    ./-x 'a b' $'a\\x0ab'
    """
    word = f"./{word}" if word.startswith("-") else word
    if word.isprintable():
        return shlex.quote(word)
    plain = (c if c.isprintable() and c not in "\\'" else f"\\x{ord(c):02x}" for c in word)
    return f"$'{''.join(plain)}'"


def import_facts(facts: Mapping[str, Any]) -> list[str]:
    """Lines about the order of the images and the rows that were left out, of the facts of `labelstore.exchange`."""
    lines = []
    if "order" in facts:
        lines.append(f"order of the images: {facts['order']}, {_why_this_order(facts)}")
    if "teacher_values" in facts:
        values = facts["teacher_values"]
        lines.append(
            f"values of {len(values)} teachers behind each other: {' + '.join(map(str, values))}"
        )
    if "images_of_this_sha256" in facts:
        same, compared = facts["images_of_this_sha256"]
        lines.append(f"{same} of {compared} images have the SHA-256 that the labels name")
    rows, left_out = facts.get("rows"), facts.get("rows_left_out")
    if rows and left_out:
        line = f"left out: {left_out:,} of {rows:,} rows"
        fewest, most = facts.get("crops_of_an_image", (0, 0))
        if fewest != most:
            best = facts["num_crops_that_keeps_most"]
            line += f"; images have {fewest} to {most} crops each, num_crops {best} keeps most rows"
        lines.append(line)
    return lines


def _why_this_order(facts: Mapping[str, Any]) -> str:
    if facts.get("order_is") == "only":
        return "the only one that these files can have"
    proof = facts.get("proof")
    if proof is None:
        return str(facts.get("order_is"))
    return (
        f"{facts.get('order_is')} ({proof['kind']} of {proof['rows']} rows: {proof['found']:.3g} where chance gives "
        f"{proof['expected']:.3g}, z = {proof['z']:.1f}, p = {proof['p']:.1g})"
    )
