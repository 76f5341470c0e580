"""A run that is refused before its first step leaves nothing behind.

hydra makes the folder, .hydra and a log --> the run writes files --refused--> all go, and folders that are empty then
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cyto_dl.errors import CytoDLError

_SWEEP_FILE = "multirun.yaml"  # hydra's, beside the folders of a multirun's jobs


@contextmanager
def removed_if_refused(folder: Path, *, has_begun: Callable[[], bool]) -> Iterator[None]:
    """Remove from `folder` what was written inside, if it ends with a CytoDLError before anything was achieved.

    Args:
        folder: The run's folder. What lay in it before stays.
        has_begun: Whether there is something to keep, e.g. a first step.
    """
    was_there, before = folder.is_dir(), set(folder.glob("*"))
    try:
        yield
    except CytoDLError:
        if not has_begun():
            for path in set(folder.glob("*")) - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not was_there and folder.is_dir():
                folder.rmdir()
        raise


def remove_if_empty(folder: Path, log_dir: str | Path | None) -> None:
    """Remove a run's folder that holds hydra's own files only, and the folders around it that are empty then.

    Args:
        folder: The run's folder, as hydra made it; that of the process itself stays.
        log_dir: No folder outside of it is removed beside the run's.
    """
    logs = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    own = {folder / ".hydra", *(Path(handler.baseFilename) for handler in logs)}
    if not folder.is_dir() or set(folder.iterdir()) - own or folder.resolve() == Path.cwd():
        return
    for handler in logs:
        handler.close()
        logging.getLogger().removeHandler(handler)
    shutil.rmtree(folder)
    inside = Path(log_dir).resolve() if log_dir else folder
    for parent in folder.resolve().parents:
        if not parent.is_relative_to(inside) or {path.name for path in parent.iterdir()} - {_SWEEP_FILE}:
            break
        shutil.rmtree(parent)
