"""Which images of a cohort are learned, and what of each; their pixels are in ``pixels``.

:class:`Images` is to ``zoo finetune`` what :class:`~zoo.bags.Bags` is to ``zoo fit``: the same
images of the same table give the same digest, and so the same folds.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ImageError
from histostore.files import public_url
from zoo.labels import digest_of, named
from zoo.targets import read_targets
from zoo.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.cohort import Cohort
    from zoo.targets import Targets

__all__ = ["Images", "read_images"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Images:
    """The labelled images of a cohort, without their pixels."""

    cohort: Cohort
    """The images, in the order of their table."""
    targets: Targets
    """What is known of each."""
    task: Task
    """What is learned."""
    n_unlabelled: int = 0
    """Images of the table that were left out because they have no label."""
    failed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Images with a label that cannot be read, and why."""

    def __len__(self) -> int:
        return len(self.cohort)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Names of the images."""
        return self.cohort.image_ids

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Patients of the images."""
        return self.cohort.patient_ids

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted; ``labels`` index into it."""
        return self.targets.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index into ``classes`` per image; ``(image,)`` int64."""
        return self.targets.codes

    @property
    def truth(self) -> NDArray[Any]:
        """What the task learns: ``labels``, or of other tasks ``(image, column)`` float64."""
        return self.labels if self.targets.truth is None else self.targets.truth

    @property
    def digest(self) -> str:
        """SHA-256 over image, patient and class of every image, as :attr:`zoo.bags.Bags.digest`."""
        one = self.task.one_class
        truth = [self.classes[label] for label in self.labels] if one else self.truth.tolist()
        return digest_of(zip(self.image_ids, self.patient_ids, truth, strict=True))

    def without(self, failed: Mapping[str, str]) -> Images:
        """Leave images out that cannot be read.

        Parameters
        ----------
        failed
            Names, and the reason of each.

        Raises
        ------
        ImageError
            If none is left; ``problems`` lists the reasons.
        """
        kept = np.array([i for i, name in enumerate(self.image_ids) if name not in failed], int)
        if not failed:
            return self
        if not len(kept):
            why = [f"{name}: {reason}" for name, reason in failed.items()]
            raise ImageError(f"all of {named(self.image_ids)} cannot be read", problems=why)
        return dataclasses.replace(
            self,
            cohort=self.cohort.select(kept),
            targets=self.targets.select(kept),
            failed={**self.failed, **failed},
        )

    def to_json(self) -> dict[str, Any]:
        """Describe the cohort as a run records it."""
        told = {
            "digest": self.digest,
            "n_images": len(self),
            "n_unlabelled": self.n_unlabelled,
            "n_failed": len(self.failed),
            "url": public_url(self.cohort.url),
        }
        return {**told, "failed": dict(self.failed)} if self.failed else told


def read_images(cohort: Cohort, task: Task | None = None, levels: Sequence[str] = ()) -> Images:
    """Take the images of a cohort that have a label.

    Parameters
    ----------
    cohort
        Table of images.
    task
        What is learned; classification of ``label`` where left out.
    levels
        Of task ordinal, the lowest first; numbers in their order where left out.

    Raises
    ------
    OptionError
        If the cohort has no such column, or it holds what the task cannot learn.

    Examples
    --------
    >>> import pandas as pd
    >>> from histostore.cohort import Cohort
    >>> frame = pd.DataFrame({"image_id": list("abc"), "path": list("abc"), "label": ["x", None, "y"]})
    >>> images = read_images(Cohort.from_frame(frame, check_files=False))
    >>> images.image_ids, images.classes, images.n_unlabelled
    (('a', 'c'), ('x', 'y'), 1)
    """
    task = Task() if task is None else task
    read = read_targets(cohort, task, levels)
    labelled = np.flatnonzero(read.codes >= 0)
    return Images(
        cohort=cohort.select(labelled),
        targets=read.select(labelled),
        task=task,
        n_unlabelled=len(cohort) - len(labelled),
    )
