"""The store: put embeddings in once, get them out whole."""

from __future__ import annotations

from histostore.store.features import Bag, FeatureSet
from histostore.store.fragment import Fragment
from histostore.store.layout import Encoding
from histostore.store.loading import Loaded
from histostore.store.reader import Store, open_store

__all__ = ["Bag", "Encoding", "FeatureSet", "Fragment", "Loaded", "Store", "open_store"]
