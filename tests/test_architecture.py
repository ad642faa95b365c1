"""Taste that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*ROOT.glob("histostore/**/*.py"), *ROOT.glob("zoo/**/*.py")])
HEAVY = ("torch", "tensorflow", "sklearn", "lightgbm", "dask", "distributed", "matplotlib", "numba")


@pytest.mark.parametrize(
    "path", [*SOURCES, ROOT / "cli.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= (1000 if path.name == "cli.py" else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_imports_the_command_line_and_nothing_prints(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert "cli" not in [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module != "cli"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"


@pytest.mark.parametrize("statement", ["import histostore", "import zoo", "import cli"])
def test_importing_loads_nothing_heavy(statement):
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["histostore", "zoo"])
def test_every_public_name_is_there(package):
    module = __import__(package)
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", ["histostore", "zoo"])
def test_no_module_hides_a_public_name(package):
    """Importing a submodule binds its name on the package, over a function of that name."""
    module = __import__(package)
    modules = {path.stem for path in (ROOT / package).iterdir()}
    assert not modules & set(module.__all__)
