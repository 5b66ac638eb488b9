"""Pages that the site has beside those of docs/; mkdocs calls the functions named `on_...`.

- the README is the first page, and files of the repository that pages link to are pages or files too;
- a page per program, of the help that its commands print;
- the public names of each package, for mkdocstrings;
- notebooks, with the outputs that they were saved with.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from typer.main import get_command

from cli import labelstore_app, trainer_app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PROGRAMS = {"labelstore": labelstore_app.commands, "trainer": trainer_app.commands}
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "labelstore/FORMAT.md": "reference/format.md",
}
"""Path in the repository -> path in the site, of pages that have a place in the nav."""
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def place(target: Path) -> str:
    """Path in the site of a file of the repository."""
    if target.suffix == ".ipynb":
        target = target.with_suffix(".md")
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    path = target.relative_to(ROOT).as_posix()
    return PAGES.get(path, path)


def relinked(text: str, source: Path) -> str:
    """A page's Markdown with links as the site has them; those to folders of code become plain text."""

    def link(found: re.Match[str]) -> str:
        said, target = found[1], Path(os.path.normpath(source.parent / found[2]))
        if target.is_dir():
            return said
        path = os.path.relpath(place(target), Path(place(source)).parent)
        return f"[{said}]({path}{found[3] or ''})"

    return outside_of_code(text, lambda part: LINK.sub(link, part))


def outside_of_code(text: str, change: Any) -> str:  # noqa: ANN401 - any callable on text
    """The text with everything but its fenced blocks changed."""
    parts = FENCE.split(text)
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def linked_files(pages: list[Path]) -> set[Path]:
    """Files outside docs/ that pages link to, and those that these link to."""
    found, todo = set(), list(pages)
    while todo:
        page = todo.pop()
        for _, target, _ in LINK.findall(FENCE.sub("", page.read_text())):
            path = Path(os.path.normpath(page.parent / target))
            if path.is_file() and not path.is_relative_to(DOCS) and path not in found:
                found.add(path)
                todo += [path] if path.suffix == ".md" else []
    return found


def help_page(program: str) -> str:
    """Every command of a program with its help, as it is printed at 100 columns."""
    group = get_command(PROGRAMS[program])
    sections = [f"# Commands of {program}\n\nWhat `{program} COMMAND --help` prints."]
    for name in group.commands:
        command = group.load(name)
        context = command.make_context(
            f"{program} {name}",
            [],
            resilient_parsing=True,
            max_content_width=100,
            terminal_width=100,
        )
        sections.append(f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```")
    return "\n\n".join(sections) + "\n"


def api_page(package: str) -> str:
    """The public names of a package, functions after classes."""
    names = importlib.import_module(package).__all__
    listed = "".join(f"      - {name}\n" for name in names)
    return (
        f"# Python: {package}\n\n::: {package}\n    options:\n      show_root_heading: false\n"
        f"      show_root_toc_entry: false\n      members:\n{listed}"
    )


def notebook_page(path: Path) -> str:
    """A notebook's text, code and saved outputs (text and PNG) as Markdown."""
    return "\n\n".join(
        part for cell in json.loads(path.read_text())["cells"] for part in cell_parts(cell)
    )


def cell_parts(cell: dict[str, Any]) -> Iterator[str]:
    """Markdown of a cell and of each of its outputs."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            image = "".join(data["image/png"]).replace("\n", "")
            yield f'<img alt="figure" src="data:image/png;base64,{image}">'
        elif "text/html" in data:
            yield f'<div markdown="0">{"".join(data["text/html"])}</div>'
        elif "text/plain" in data:
            yield f"```text\n{''.join(data['text/plain']).rstrip()}\n```"


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 - mkdocs's config
    """Adds the pages and files that do not lie in docs/."""
    made = {f"reference/{name}-commands.md": help_page(name) for name in PROGRAMS}
    made |= {f"reference/{name}-api.md": api_page(name) for name in PROGRAMS}
    for notebook in sorted((DOCS / "notebooks").glob("*.ipynb")):
        made[f"notebooks/{notebook.stem}.md"] = notebook_page(notebook)
    kept = [ROOT / path for path in PAGES]
    for path in sorted(linked_files([*kept, *DOCS.rglob("*.md")]) | set(kept)):
        if path.suffix == ".md":
            made[place(path)] = relinked(path.read_text(), path)
        else:
            files.append(File.generated(config, place(path), abs_src_path=str(path)))
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401 - mkdocs's page
    """Links of a page in docs/ to files outside."""
    source = DOCS / page.file.src_uri
    return relinked(markdown, source) if source.is_file() else markdown
