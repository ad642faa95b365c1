"""Which images of a store are learned from, for what, and in which folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore.cohort import Cohort
from histostore.store import open_store
from zoo.bags import Bags
from zoo.doubts import doubts
from zoo.fit import make_split
from zoo.manyviews import with_views
from zoo.split import VALIDATION_SHARE
from zoo.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.store import FeatureSet
    from zoo.split import Split

__all__ = ["Study", "Terms"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """In which views and folds images are learned, whatever the store and the task."""

    levels: tuple[str, ...] = ()
    """Of task ordinal, the lowest first; numbers in their order where empty."""
    augmentation: str = "identity"
    """Stored view to learn from and to predict."""
    train_views: str = ""
    """Draw each patch from these views instead (:func:`zoo.manyviews.with_views`)."""
    test_views: str = ""
    """Average the predictions of these instead."""

    folds: int | str = 5
    """This and what follows: as of :func:`zoo.fit.make_split`."""
    split_column: str | None = None
    repeats: int = 1
    split_seed: int = 0
    validation_share: float = VALIDATION_SHARE

    def bags_of(
        self, features: FeatureSet, images: Cohort, task: Task, *, say: Callable[[str], None]
    ) -> Bags:
        """Read the images that have a truth and embeddings; say how many are left out, and why.

        Raises
        ------
        HistostoreError
            If cohort or views cannot be read.
        """
        bags = Bags(features, images, augmentation=self.augmentation, task=task, levels=self.levels)
        left_out = (
            (bags.n_unlabelled, f"without {','.join(task.targets)!r}"),
            (bags.n_failed, "that failed in the build; histostore info says why"),
        )
        for n, why in left_out:
            if n:
                say(f"left out {n:,} image{'s'[: n > 1]} {why}")
        if self.train_views or self.test_views:
            return with_views(bags, features, train=self.train_views, test=self.test_views)
        return bags

    def split_of(self, bags: Bags, images: Cohort) -> Split:
        """Deal the folds, as :func:`zoo.fit.make_split` does."""
        return make_split(
            bags,
            images,
            folds=self.folds,
            split_column=self.split_column,
            repeats=self.repeats,
            split_seed=self.split_seed,
            validation_share=self.validation_share,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Study(Terms):
    """What ``zoo fit`` and ``zoo tune`` are told beside head and recipe, in the same words."""

    store: str
    """Where the embeddings are."""
    cohort: str
    """Where the table of images is."""
    feature_set: str | None = None
    """Which one, where the store holds several."""

    target: str = "label"
    """Column with what is learned; several, with commas between, of some tasks."""
    task: str = "auto"
    """One of :data:`zoo.tasks.KINDS`; auto is classification."""
    loss: str | None = None
    """One of :data:`zoo.tasks.LOSSES` of the task; its first where left out."""
    intervals: int = 4
    """Intervals of time, for ``hazards``."""

    storage_options: Mapping[str, Any] | None = None
    """For the storage of store and cohort."""

    @property
    def learned(self) -> Task:
        """What is learned.

        Raises
        ------
        OptionError
            If there is no such task.
        """
        return Task.of(self.task, self.target, loss=self.loss, intervals=self.intervals)

    def read(self, *, say: Callable[[str], None] = lambda _: None) -> tuple[Bags, Split]:
        """Read the images that have a label and embeddings, and deal the folds.

        Parameters
        ----------
        say
            Told how many images are left out and why, and what is odd in the cohort, a line each.

        Raises
        ------
        HistostoreError
            If store, cohort or views cannot be read, or cannot be split.
        """
        features = open_store(self.store, self.storage_options).feature_set(self.feature_set)
        images = Cohort.read(self.cohort, storage_options=self.storage_options, check_files=False)
        bags = self.bags_of(features, images, self.learned, say=say)
        for doubt in doubts(images, bags.task, bags.classes, bags.truth):
            say(doubt)
        return bags, self.split_of(bags, images)
