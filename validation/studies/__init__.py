"""One question each: a script, its numbers and its figure."""
