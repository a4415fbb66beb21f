"""Heads that evaluations train and exports take along: as files, as modules, as outputs of a graph."""
