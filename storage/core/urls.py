"""What a URL of a store or of a source may be: no secrets in it, because URLs stand in identities, records, logs and errors.

Errors of this file never repeat a URL that holds one. Credentials come through the environment, as every client library reads them.
"""

import re
from pathlib import Path

from .errors import BadInput

NAMED = ("hf:", "hub:", "timm:")  # begins of names of teachers and of weights, which are neither paths nor URLs
_HALF = re.compile(r"(?!hf:|hub:|timm:)[a-z][a-z0-9+]+:/[^/]")
SAME_SCHEMES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_SERVER = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]+):\d*")
_ADVICE = "credentials come from the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, ~/.netrc and so on)"


def is_url(place: Path | str) -> bool:
    """Whether this is a URL, and not a path; raises `BadInput` for what is left of a URL that went through a path."""
    if _HALF.match(place := str(place)):
        raise BadInput(f"{place!r} is neither a folder nor a URL; did you mean {place.replace(':/', '://', 1)!r}?")
    return "://" in place


def absolute(place: str) -> str:
    """A path as an absolute one, with ~ as the home folder; a URL, a name such as hub:OWNER/NAME and "" as they are.

    Every path that is given is made absolute where it enters: Ray starts workers in other folders, and a run is gone on with from others.
    A relative one means the same everywhere, also in a recipe's file: it starts at the folder in which the command runs.
    """
    if not place or place.startswith(NAMED) or is_url(place):
        return place
    return str(Path(place).expanduser().absolute())


def one_spelling(url: str) -> str:
    """A URL with the scheme that its client knows, in small letters: Hadoop's `s3a://` and `s3n://` are `s3://`; a path as it is."""
    scheme, separator, rest = url.partition("://")
    return f"{SAME_SCHEMES.get(scheme.lower(), scheme.lower())}://{rest}" if separator else url


def refuse_endpoint(what: str, url: str) -> None:
    """Raise `BadInput` for an S3 URL that names a server where the bucket belongs."""
    for part in url.split("::"):
        scheme, _, rest = part.partition("://")
        server, _, path = rest.partition("/")
        if scheme.lower() in ("s3", "s3a", "s3n") and _SERVER.fullmatch(server):
            raise BadInput(
                f"the {what}'s URL {part} names the server {server} where the bucket belongs: "
                f"export AWS_ENDPOINT_URL=http://{server} (or https://), and give s3://{path or 'BUCKET/FOLDER'}"
            )


def refuse_secrets(what: str, url: str) -> None:
    """Raise `BadInput` for a URL with a user or a password, a query or a fragment; chained URLs (`a://x::b://y`) part by part.

    A signed URL's signature is in its query, and it runs out while what was recorded stays.
    """
    for part in url.split("::"):
        scheme, separator, rest = part.partition("://")
        if separator and "@" in rest.partition("/")[0]:
            raise BadInput(f"the {what}'s URL holds credentials; leave them out: {_ADVICE}")
        if separator and scheme != "file" and ("?" in rest or "#" in rest):
            raise BadInput(f"the {what}'s URL has a query or a fragment; give the address alone: {_ADVICE}")


def require_utf8(option: str, path: str, why: str) -> None:
    """Raise `BadInput` for a path whose bytes are not UTF-8, where `why` (a library) takes no such path."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{option} {path!a} has bytes that are not UTF-8, and {why} takes no such name; give another folder") from error
