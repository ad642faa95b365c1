"""Building: plan, then read, encode and commit."""
