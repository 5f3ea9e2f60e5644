"""Where this package and cctbx meet: cctbx's own numbers, and this package's in cctbx's place."""
