"""Network blocks at the public paths."""
