"""Checks of the URLs of stores and sources: no secrets, because URLs are written into identities, records, logs and errors.

Error messages of this file never repeat a URL that holds a secret. Credentials come from the environment, as every client library reads
them.
"""

import os
import re
from pathlib import Path

from .errors import BadInput

_NAME_PREFIXES = ("hf:", "hub:", "timm:")  # prefixes of names of teachers and weights, which are neither paths nor URLs
_BROKEN_URL = re.compile(r"(?!hf:|hub:|timm:)[a-z][a-z0-9+]+:/[^/]")
_SCHEME_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\[\]]+):\d*")
_ADVICE = "credentials come from the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, ~/.netrc and so on)"


def is_url(location: Path | str) -> bool:
    """Return whether a location is a URL rather than a path; raise `BadInput` for `s3:/bucket`, a URL that `pathlib` has collapsed."""
    if _BROKEN_URL.match(location := str(location)):
        raise BadInput(f"{location!r} is neither a folder nor a URL; did you mean {location.replace(':/', '://', 1)!r}?")
    return "://" in location


def absolute(location: str) -> str:
    """Return a path made absolute, with `~` expanded; return a URL, a name such as hub:OWNER/NAME and "" unchanged.

    Every path is made absolute where it enters, because Ray starts workers in other folders and a run may be resumed from another one.
    A relative path, also one in a recipe file, is relative to the folder in which the command runs. A path with `..` is written without,
    so that one place has one spelling: with its links as they are where that is the same place, else without them. A path without `..`
    keeps its links, because they may lead elsewhere tomorrow.
    """
    if not location or location.startswith(_NAME_PREFIXES) or is_url(location):
        return location
    path = Path(location).expanduser().absolute()
    if ".." not in path.parts:
        return str(path)
    without, real = os.path.normpath(path), os.path.realpath(path)
    return without if os.path.realpath(without) == real else real  # `link/..` is not the folder that the link lies in


def normalize_scheme(url: str) -> str:
    """Return a URL with its scheme in lower case and as fsspec knows it (`s3a://` and `s3n://` become `s3://`); a path unchanged."""
    scheme, separator, rest = url.partition("://")
    return f"{_SCHEME_ALIASES.get(scheme.lower(), scheme.lower())}://{rest}" if separator else url


def refuse_endpoint(what: str, url: str) -> None:
    """Raise `BadInput` for an S3 URL with a server (host:port) in place of the bucket."""
    for part in url.split("::"):
        scheme, _, rest = part.partition("://")
        server, _, path = rest.partition("/")
        if scheme.lower() in ("s3", "s3a", "s3n") and _HOST_AND_PORT.fullmatch(server):
            raise BadInput(
                f"the {what}'s URL {part} names the server {server} where the bucket belongs: "
                f"export AWS_ENDPOINT_URL=http://{server} (or https://), and give s3://{path or 'BUCKET/FOLDER'}"
            )


def refuse_secrets(what: str, url: str) -> None:
    """Raise `BadInput` for a URL with a user, a password, a query or a fragment; each part of a chained URL (`a://x::b://y`) is checked.

    A signed URL carries its signature in the query; it expires while the record that holds it stays.
    """
    for part in url.split("::"):
        scheme, separator, rest = part.partition("://")
        if separator and "@" in rest.partition("/")[0]:
            raise BadInput(f"the {what}'s URL holds credentials; leave them out: {_ADVICE}")
        if separator and scheme != "file" and ("?" in rest or "#" in rest):
            raise BadInput(f"the {what}'s URL has a query or a fragment; give the address alone: {_ADVICE}")


def require_utf8(option: str, path: str, why: str) -> None:
    """Raise `BadInput` for a path whose bytes are not UTF-8; `why` names the library that cannot take it."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{option} {path!a} has bytes that are not UTF-8, and {why} takes no such name; give another folder") from error
