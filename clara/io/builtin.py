"""The trained checkpoint that comes with the package, and the name that options take for it in the place of a run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

BUILTIN = "small"
"""Its name: that of the recipe it was trained by."""


def builtin_folder() -> Path:
    """Return the folder of the checkpoint that comes with the package. Nothing may be written into it."""
    return Path(str(files("clara.io") / "data" / BUILTIN))


def run_path(source: str) -> Path:
    """Return the folder of the run or checkpoint that an option names.

    As with a base, a folder that has the built-in one's name comes before it.
    """
    path = Path(source).expanduser()
    return builtin_folder() if source == BUILTIN and not path.is_dir() else path


def run_or_builtin(source: str) -> Path:
    """Return the folder of the run or checkpoint that an option names; of the built-in one where it names none."""
    return run_path(source) if source else builtin_folder()


def is_builtin(path: Path) -> bool:
    """Return whether a checkpoint's folder is the one that comes with the package."""
    return path.resolve() == builtin_folder().resolve()


def run_name(path: Path) -> str:
    """Return what a checkpoint is called where it is written down: its folder, or the built-in one's name."""
    return BUILTIN if is_builtin(path) else str(path)
