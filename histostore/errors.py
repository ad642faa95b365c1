"""What can go wrong, as one tree.

Every leaf also has a built-in parent, so that callers who know nothing of this package
catch it too. A message says what was seen and what to do next, in one line; where several
things are wrong at once, ``problems`` holds them all and the message counts them::

    HistostoreError
    ├── CohortError (ValueError)       the table of images is wrong; .problems
    ├── ImageError (ValueError)        one image cannot be read; the build records it and goes on
    ├── OptionError (ValueError)       an option's value makes no sense
    ├── EncoderError (ValueError)      unknown encoder, or weights that do not fit it
    ├── FormatError (ValueError)       a stored document is not what the format says; .problems
    │   ├── VersionError               written by a newer format; names both versions
    │   └── CorruptError               stored bytes fail their checksum; names array and chunk
    ├── NotFound (KeyError)            no such feature set, image or augmentation; lists what is there
    ├── Ambiguous (LookupError)        several would do; lists them
    ├── StorageError (OSError)         the storage refused; keeps the URL and the driver's reason
    └── MissingExtra (ImportError)     an optional library is absent; gives the pip command
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Ambiguous",
    "CohortError",
    "CorruptError",
    "EncoderError",
    "FormatError",
    "HistostoreError",
    "ImageError",
    "MissingExtra",
    "NotFound",
    "OptionError",
    "StorageError",
    "VersionError",
    "refusal",
    "summarise",
]


class HistostoreError(Exception):
    """Base of all errors that this project raises on purpose.

    Parameters
    ----------
    message
        One line: what was seen, and what to do.
    problems
        All findings, one line each, where there are several.
    """

    def __init__(self, message: str, *, problems: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.problems)


def _rebuild(kind: type[HistostoreError], message: str, problems: tuple[str, ...]) -> object:
    return kind(message, problems=problems)


def summarise(subject: str, problems: list[str]) -> str:
    """Say in one line what is wrong with ``subject``.

    Examples
    --------
    >>> summarise("cohort.csv", ["row 2: image_id is empty"])
    'cohort.csv: row 2: image_id is empty'
    >>> summarise("cohort.csv", ["row 2: …", "row 3: …"])
    'cohort.csv has 2 problems'
    """
    if len(problems) == 1:
        return f"{subject}: {problems[0]}"
    return f"{subject} has {len(problems)} problems"


class CohortError(HistostoreError, ValueError):
    """The table of images is wrong; ``problems`` lists everything found."""


class ImageError(HistostoreError, ValueError):
    """One image cannot be read; a build records the reason and goes on."""


class OptionError(HistostoreError, ValueError):
    """An option's value makes no sense, alone or with the others."""


class EncoderError(HistostoreError, ValueError):
    """The encoder is unknown, or its weights do not fit it."""


class FormatError(HistostoreError, ValueError):
    """A stored document is not what the format says."""


class VersionError(FormatError):
    """The store was written by a newer format than this version reads."""


class CorruptError(FormatError):
    """Stored bytes fail their checksum or digest."""


class NotFound(HistostoreError, KeyError):
    """No such feature set, image or augmentation."""


class Ambiguous(HistostoreError, LookupError):
    """Several things would do; one must be named."""


class StorageError(HistostoreError, OSError):
    """The storage refused; the message keeps the URL and the driver's reason."""


class MissingExtra(HistostoreError, ImportError):
    """An optional library is absent.

    Examples
    --------
    >>> raise MissingExtra.named("timm", extra="torch")
    Traceback (most recent call last):
    histostore.errors.MissingExtra: timm is not installed; run: pip install 'histostore[torch]'
    """

    @classmethod
    def named(cls, library: str, *, extra: str) -> MissingExtra:
        """Build the error for ``library``, which the extra ``extra`` installs."""
        return cls(f"{library} is not installed; run: pip install 'histostore[{extra}]'")


def refusal(error: Exception) -> str:
    """Say in one line what the operating system refused, and of which file.

    Examples
    --------
    >>> refusal(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'a.csv: No such file or directory'
    >>> refusal(MemoryError())
    'MemoryError'
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
