"""The store: feature sets, fragments, views of them."""
