"""Feature sets: layout, codecs, statistics, reading."""
