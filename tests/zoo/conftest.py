"""What tests of reports, and tests of networks trained on pixels, have in common."""

from __future__ import annotations

import pytest

from tests.zoo.reports import make_embedded, make_runs
from zoo.report import write_report


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Three runs for a report, to be read only."""
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory):
    """The report of them."""
    return write_report(runs, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory):
    """Pictures, a run on their store, and their table, to be read only."""
    return make_embedded(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A cache of decoded pixels that no other test has filled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOSTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
