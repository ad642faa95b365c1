"""What a notebook is given to show: whole, escaped, one line where a line is asked for."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

import histostore
from histostore.showing import MOST_ROWS, html_card, html_table
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of

VOID = {"br", "hr", "img", "input", "link", "meta"}


class Reader(HTMLParser):
    """Checks that every element ends, and collects what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.tags = [], [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert not any(name.startswith("on") for name, _ in attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.seen.append(data)


HOSTILE = '"><script>alert(1)</script><img src=x onerror=y>&'


def test_everything_is_escaped_and_nothing_is_loaded():
    page = html_card(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, [html_table([{HOSTILE: HOSTILE}])])
    read = Reader(page)
    assert read.seen.count(HOSTILE) == 6
    assert read.tags <= {"style", "div", "b", "span", "dl", "dt", "dd"} | {
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert "http" not in page
    assert "prefers-color-scheme:dark" in page


@pytest.mark.parametrize("n", [0, 1, MOST_ROWS, MOST_ROWS + 3])
def test_a_long_table_is_cut_and_the_rest_counted(n):
    page = html_table([{"name": f"row {k}", "n": k} for k in range(n)])
    seen = Reader(page).seen
    assert sum(text.startswith("row ") for text in seen) == min(n, MOST_ROWS)
    assert ("… and 3 more" in seen) == (n > MOST_ROWS)


def test_a_store_and_its_feature_sets_show_what_they_hold():
    store = open_store("memory://showing", mode="a")
    assert "0" in Reader(store._repr_html_()).seen
    features = store.create_feature_set(spec_of())
    features.commit(fragment_of(["<i>", "b"], counts=[2, 1234]), {})
    for shown in (features, store):
        read = Reader(shown._repr_html_())
        assert {"2", "1,236", "test"} <= {text.strip() for text in read.seen}
        assert repr(shown).count("\n") == 0
    assert features.name in repr(features)
    assert features.name in repr(histostore.open("memory://showing"))


def test_a_feature_set_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    store = open_store(str(tmp_path / "store"), mode="a")
    names = [
        store.create_feature_set(spec_of(dtype=dtype)).name for dtype in ("float32", "float16")
    ]
    (tmp_path / "store" / names[0] / "zarr.json").write_text("{}")
    page = Reader(histostore.open(str(tmp_path / "store"))._repr_html_())
    assert set(names) <= set(page.seen)
    assert any("specification" in text or "zarr.json" in text for text in page.seen)
