"""What a step prints, and how it ends."""

import atexit
import gc
import logging
import os


def quiet_libraries() -> None:
    """A step's launcher shows every library's INFO; these fill screens, the first already when it is imported.

    And what they hold is not searched for cycles as the process ends: after torch and MONAI that takes 1.4 s.
    """
    atexit.register(gc.freeze)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a log is no terminal
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the run is named where it begins
    names = ("alembic", "botocore", "lightning.pytorch.utilities.rank_zero", "mlflow.pyfunc", "mlflow.store.db.utils")
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
