"""Take a shard over from another group that holds the same rows of the same images: its objects under a second key, its record anew.

Every byte is compared with the other group's record first, and nothing is linked before all of the shard is known to be whole: an object
that is damaged there must not become part of this group. The record, created last, makes the shard exist; after a kill the next run finds
the objects and goes on.
"""

from dataclasses import replace

from ..core.checksums import xxh3_128
from ..core.errors import CacheDamaged
from .commit import Record, record_key
from .shards import ShardedGroup


def take_shard(ours: ShardedGroup, theirs: ShardedGroup, their_record: Record, fresh: Record) -> str:
    """Commit `fresh`, our record without objects, over the objects of their shard; return "", or why the shard cannot be taken."""
    contents: dict[str, bytes] = {}
    for name, entry in their_record.objects.items():
        try:
            contents[name] = theirs.objects.read(f"{theirs.prefix}/{entry.key}")
        except (FileNotFoundError, CacheDamaged) as error:
            return f"{theirs.prefix}/{entry.key} cannot be read ({error})"
        if xxh3_128([contents[name]]) != entry.xxh3_128:
            return f"{theirs.prefix}/{entry.key} is damaged: xxh3 differs from its record"
    for name, entry in their_record.objects.items():
        where = f"{ours.prefix}/{entry.key}"
        try:
            made = ours.objects.duplicate(f"{theirs.prefix}/{entry.key}", where, contents[name])
        except FileNotFoundError:  # pruned a moment ago
            made = ours.objects.create(where, [contents[name]])
        if not made and xxh3_128([ours.objects.read(where)]) != entry.xxh3_128:
            return f"{where} is there already, with other content"
    ours.objects.create(f"{ours.prefix}/{record_key(fresh.shard)}", [replace(fresh, objects=their_record.objects).to_bytes()])
    return ""
