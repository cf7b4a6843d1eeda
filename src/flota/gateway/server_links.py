"""Links in the server's answers: followed only to the server that was configured."""

from __future__ import annotations

from urllib.parse import urlsplit

from flota.errors import Refused
from flota.protocols.peer_text import clean_text


def own_link(server: str, href: str, *, asker: str) -> str:
    """Return `href` if it leads to `server` (a base URL); `asker` is who is to be configured anew if it does not.

    Raises `Refused` for a link to elsewhere: the device's token would go with the request.
    """
    link, base = urlsplit(href), urlsplit(server)
    if (link.scheme, link.netloc.lower()) != (base.scheme, base.netloc.lower()):
        raise Refused(
            "the server's link leads to another address",
            expected=f"{base.scheme}://{base.netloc}",
            found=clean_text(f"{link.scheme}://{link.netloc}"),
            hint=f"Give the {asker} the address that devices are given (--public-url of the server).",
        )
    return href
