"""Mending a store: what is damaged, and only that, is computed again from the images.

A fragment never changes, so a damaged one is replaced: a new fragment holds the rows that are
sound, copied, and those that are not, embedded again; its commit record says that the damaged
one does not count any more. One put does both. What cannot be mended stays as it was.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore.build.mending import CannotMend, Mended, Mender
from histostore.build.options import EncoderOptions
from histostore.errors import EncoderError, FormatError, VersionError
from histostore.store.backend import open_backend
from histostore.store.layout import fragment_folder
from histostore.store.reader import check_store, parse_feature_set
from histostore.store.survey import survey
from histostore.store.unflip import unflip
from histostore.store.verify import verify
from histostore.store.writer import put_feature_set, put_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.cohort import Cohort
    from histostore.store.protocol import Backend
    from histostore.store.survey import Problem
    from histostore.store.verify import VerifyReport

__all__ = ["Mended", "RepairReport", "repair"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairReport:
    """What was damaged, and what became of it."""

    before: VerifyReport
    """What was found."""

    outcomes: tuple[Mended, ...]
    """One per damaged fragment or document."""

    @property
    def mended(self) -> tuple[Mended, ...]:
        """What is sound again."""
        return tuple(each for each in self.outcomes if not each.kept)

    @property
    def kept(self) -> tuple[Mended, ...]:
        """What is damaged still, and why."""
        return tuple(each for each in self.outcomes if each.kept)

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        return {
            "before": self.before.to_json(),
            "n_mended": len(self.mended),
            "n_kept": len(self.kept),
            "outcomes": [
                {name: getattr(each, name) for name in Mended.__slots__} for each in self.outcomes
            ],
        }

    def to_text(self) -> str:
        """Say in a few lines what was done."""
        lines = [self.before.to_text()]
        lines += [
            f"  mended {each.path}"
            + (
                f": {len(each.embedded)} images embedded again, {each.n_copied} copied"
                if each.replacement
                else ""
            )
            for each in self.mended
        ]
        lines += [f"  not mended {each.path}: {each.kept}" for each in self.kept]
        return "\n".join(lines)


def repair(
    url: str,
    encoder: EncoderOptions | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    feature_set: str | None = None,
    cohort: Cohort | None = None,
    accept_changed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Verify a store and mend what is damaged.

    Parameters
    ----------
    url
        Where the store lies.
    encoder
        How to run the encoder, and where its weights are; name and precision are those of
        the feature set. Loaded only if something must be embedded again.
    storage_options
        For the storage driver, of the images and of the store.
    feature_set
        Look at this one alone.
    cohort
        Where the images are now, and their scale where the files do not say it; without it,
        images are looked for where they were.
    accept_changed
        Embed images again although their files have changed since.
    progress
        As of :func:`~histostore.store.verify.verify`.

    Returns
    -------
    report
        What was damaged, and what became of it.

    Raises
    ------
    NotFound, FormatError
        If no store is there.
    StorageError
        If the storage refuses.
    """
    storage = dict(storage_options or {})
    before = verify(url, storage, feature_set=feature_set, progress=progress)
    if before.ok:
        return RepairReport(before=before, outcomes=())
    backend = open_backend(url, storage)
    specs = survey(backend, feature_set=feature_set).specs
    outcomes = [
        _mend_document(backend, problem) for problem in before.problems if not problem.fragment
    ]
    by_fragment: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in before.problems:
        if problem.fragment and problem.feature_set:
            by_fragment[problem.feature_set, problem.fragment].append(problem)
    for (name, fragment_id), problems in by_fragment.items():
        mender = Mender(
            backend=backend,
            spec=specs[name],
            encoder=encoder or EncoderOptions(),
            storage=storage,
            cohort=cohort,
            accept_changed=accept_changed,
        )
        try:
            outcomes.append(mender.mend(fragment_id, problems))
        except (CannotMend, EncoderError, FormatError) as reason:
            folder = fragment_folder(name, fragment_id)
            outcomes.append(Mended(path=folder, kept=str(reason)))
    return RepairReport(before=before, outcomes=tuple(outcomes))


def _mend_document(backend: Backend, problem: Problem) -> Mended:
    """Mend what lies beside the fragments, as far as it can be known what it was."""
    if problem.unreadable:
        return Mended(path=problem.path, kept=problem.what)
    content = backend.read(problem.path) or b""
    if problem.kind == "build":
        restored = unflip(content)
        if restored is not None:
            backend.put(problem.path, restored)
        else:
            # A log that nothing depends on, and that must not lie.
            backend.remove(problem.path)
        return Mended(path=problem.path)
    if problem.kind == "store":
        try:
            check_store(content, problem.path)
        except VersionError as error:
            return Mended(path=problem.path, kept=error.message)
        except FormatError:
            pass
        put_store(backend)
        return Mended(path=problem.path)
    name = problem.feature_set or ""
    restored = unflip(content, lambda candidate: _is_feature_set(candidate, name))
    if restored is None:
        return Mended(
            path=problem.path,
            kept="delete it and run histostore build with the same options: it is written anew, "
            "and the fragments are kept",
        )
    put_feature_set(backend, parse_feature_set(restored, name))
    return Mended(path=problem.path)


def _is_feature_set(content: bytes, name: str) -> bool:
    try:
        parse_feature_set(content, name)
    except FormatError:
        return False
    return True
