"""Export of trained students, and import of published ones."""
