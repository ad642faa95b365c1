"""What a build has to do, decided without reading a pixel."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import Any

    from histostore.files import Source

__all__ = ["UNIT_IMAGES", "BuildPlan", "Unit", "plan_build"]

UNIT_IMAGES = 64
"""Images per work unit: the most that one fragment holds, and one Dask task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A batch of images that lack the same views: one task, one fragment as a rule."""

    rows: tuple[int, ...]
    """Rows of the cohort."""

    views: tuple[str, ...]
    """Views that all of them lack."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """Cohort minus committed."""

    units: tuple[Unit, ...]
    """The work, in the order of the cohort."""

    n_images: int
    """Images in the cohort."""

    changed: tuple[str, ...]
    """Committed images whose source is no longer what was read: reported, not re-read."""

    stuck: tuple[int, ...] = ()
    """Rows of these that lack a view: beside views of other pixels it would be out of place."""

    @property
    def n_todo(self) -> int:
        """How many images lack a view."""
        return sum(len(unit.rows) for unit in self.units)

    @property
    def n_done(self) -> int:
        """How many images lack nothing."""
        return self.n_images - self.n_todo - len(self.stuck)


def plan_build(
    image_ids: Sequence[str],
    committed: Mapping[str, Collection[str]],
    views: tuple[str, ...],
    *,
    sources: Mapping[str, Source | None] | None = None,
    recorded: Mapping[str, Mapping[str, Any]] | None = None,
    renewed: bool = False,
    unit_images: int = UNIT_IMAGES,
) -> BuildPlan:
    """Subtract what is committed from what is wanted.

    Parameters
    ----------
    image_ids
        The cohort, one id a row.
    committed
        View to the images that the feature set holds of it, in a set or what is as quick to ask.
    views
        Views wanted of every image.
    sources, recorded
        Sources by image id, as they are now, and as :meth:`~histostore.files.Source.to_json`
        gave them when they were embedded; an image whose two differ is listed in
        :attr:`BuildPlan.changed`.
    renewed
        Whether the views that a changed image has are embedded again, too.
    unit_images
        The most images in one unit.

    Examples
    --------
    >>> plan = plan_build(["a", "b", "c"], {"identity": {"b"}}, ("identity",))
    >>> [unit.rows for unit in plan.units], plan.n_done
    ([(0, 2)], 1)
    """
    lacks: dict[int, tuple[str, ...]] = defaultdict(tuple)
    for view in views:
        held = committed.get(view, ())
        for row in (row for row, image_id in enumerate(image_ids) if image_id not in held):
            lacks[row] += (view,)
    changed = _changed(image_ids, sources or {}, recorded or {})
    stuck = () if renewed else _rows_among(lacks, image_ids, changed)
    for row in stuck:
        del lacks[row]
    rows_by_lack: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, lacking in sorted(lacks.items()):
        rows_by_lack[lacking].append(row)
    units = [
        Unit(rows=tuple(rows[start : start + unit_images]), views=lacking)
        for lacking, rows in rows_by_lack.items()
        for start in range(0, len(rows), unit_images)
    ]
    return BuildPlan(
        units=tuple(sorted(units, key=lambda unit: unit.rows)),
        n_images=len(image_ids),
        changed=changed,
        stuck=stuck,
    )


def _rows_among(
    rows: Iterable[int], image_ids: Sequence[str], chosen: Iterable[str]
) -> tuple[int, ...]:
    """Give those of some rows whose images are chosen."""
    names = set(chosen)
    return tuple(row for row in sorted(rows) if image_ids[row] in names) if names else ()


def _changed(
    image_ids: Sequence[str],
    sources: Mapping[str, Source | None],
    recorded: Mapping[str, Mapping[str, Any]],
) -> tuple[str, ...]:
    """Ids whose source differs from the recorded one."""
    return tuple(
        image_id
        for image_id in image_ids
        if (now := sources.get(image_id)) and (then := recorded.get(image_id))
        if now.differs(then)
    )
