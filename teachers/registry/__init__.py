"""Teachers by name: the table, their licences, their identity, their canaries."""
