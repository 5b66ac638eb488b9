"""The notebooks run from their first cell to their last, in an empty folder, without an error in a cell or a command.

The site shows the outputs that they were saved with. To save them again, after `make tour`:

    python -c 'from tests.docs.test_notebooks import save; save()'
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs/notebooks").glob("*.ipynb"))


def executed(path: Path, folder: Path):
    """The notebook with the outputs of a run in `folder`."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return notebook


def save() -> None:
    """Run each notebook where it lies and keep what it printed and drew, not when or in which kernel."""
    import nbformat

    for path in NOTEBOOKS:
        notebook = executed(path, path.parent)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
                for output in cell.outputs:
                    if (
                        "text" in output
                    ):  # of a command: in colour, its lines ended as on a terminal
                        output["text"] = re.sub(r"\x1b\[[\d;]*m|\r", "", output["text"])
        notebook.metadata = {**notebook.metadata, "language_info": {"name": "python"}}
        path.write_text(nbformat.writes(notebook) + "\n")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_as_it_ran(path):
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not re.search(r"/(?:home|root|work|Users|tmp)/\w", str(outputs))
    assert path.stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    inside = tmp_path / "docs" / "notebooks"
    inside.mkdir(parents=True)
    notebook = executed(path, inside)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    for cell in code:
        said = "".join(output.get("text", "") for output in cell.outputs)
        assert "labelstore: " not in said, said  # how the programs begin an error
        assert "trainer: " not in said, said
