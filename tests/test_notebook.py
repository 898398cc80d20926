"""The notebook of the examples runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "digits.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's own machinery
def test_the_notebook_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    counts, doubts = notebook.cells[-1]["outputs"][-1]["text"].splitlines()
    assert int(counts.split()[2]) > 0.9 * int(counts.split()[4])
    assert doubts.startswith("median doubt")
