"""What follows from a crystal and its Miller indices, or a grid: made once, passed on."""
