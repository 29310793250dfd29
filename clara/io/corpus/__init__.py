"""Documents of many kinds to passages, and corpora of them on disk."""
