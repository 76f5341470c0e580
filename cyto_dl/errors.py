"""The errors that a user of CytoDL can meet, and the exit code of each.

    CytoDLError
    ├── ConfigError     the experiment is wrong               exit code 2
    ├── ManifestError   the table is wrong                    exit code 2
    ├── ImageError      one image is wrong                    exit code 2; HTTP 400; a failed row in a batch
    ├── BundleError     the exported model is wrong           exit code 2; the server does not become ready
    ├── StorageError    a bucket or MLflow is unreachable     exit code 3, after retries
    └── TrainingError   the training diverged                 exit code 4, naming the batch's files

A message says what is wrong, where (file, row, column, config key) and what to do.
"""

from collections.abc import Sequence


class CytoDLError(Exception):
    """Base of every error that is explained to the user without a traceback."""

    exit_code = 1


class ConfigError(CytoDLError):
    """The experiment is wrong: a missing key, an unknown class, a value that does not fit the data."""

    exit_code = 2


class ManifestError(CytoDLError):
    """The table of images is wrong: a missing column, an unknown split, files that do not exist."""

    exit_code = 2


class ImageError(CytoDLError):
    """One image is wrong: unreadable, of another size, without the channel that was asked for."""

    exit_code = 2


class BundleError(CytoDLError):
    """The exported model is wrong: damaged, of a newer format, or asking for code that is not allowed."""

    exit_code = 2


class StorageError(CytoDLError):
    """A bucket or the MLflow server cannot be reached, after retries."""

    exit_code = 3


class TrainingError(CytoDLError):
    """The training diverged: a loss that is not finite."""

    exit_code = 4


def list_problems(*kinds: Sequence[str], limit: int = 20) -> str:
    """Problems as an indented list, one a line; of each kind, what is over `limit` is counted.

    A mistake that all images share thus hides no other.

    Args:
        kinds: Problems that are alike, in one list.
        limit: How many of a kind are shown.
    """
    lines = []
    for problems in kinds:
        lines += [f"  - {problem}" for problem in problems[:limit]]
        if len(problems) > limit:
            lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)
