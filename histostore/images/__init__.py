"""Images in: readers, tissue, patches."""
