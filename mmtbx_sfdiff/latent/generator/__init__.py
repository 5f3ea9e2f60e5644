"""Priors of structures: force fields, dynamics, coordinates, flows and their training."""
