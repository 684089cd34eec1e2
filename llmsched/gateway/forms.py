"""A request that is a form with files in it (multipart/form-data, RFC 7578), as the audio routes of OpenAI's API take.

Cut where its boundary stands, so that a file of megabytes takes no time of the gateway's loop.
"""

from __future__ import annotations

from email.message import Message
from typing import Any

from llmsched.gateway.refusals import Refused

KIND = "multipart/form-data"
_MOST_FIELDS = 64
_MOST_HEAD = 4096  # bytes of what stands before a value


def fields(content_type: str, body: bytes) -> dict[str, Any]:
    """{name: text, or the bytes of a file}; of a name with [] behind it a list of texts. Raises Refused."""
    said = Message()
    said["content-type"] = content_type
    boundary = said.get_param("boundary")
    if said.get_content_type() != KIND or not isinstance(boundary, str) or not boundary:
        raise Refused(400, f"The body must be a form: {KIND} with a boundary.", code="invalid_form")
    mark = b"--" + boundary.encode("latin-1", "replace")
    first, *parts = (b"\r\n" + body).split(b"\r\n" + mark, _MOST_FIELDS + 2)
    if len(parts) > _MOST_FIELDS or not parts or not parts[-1].startswith(b"--"):
        raise Refused(400, f"The form has no end, or more than {_MOST_FIELDS} fields.", code="invalid_form")
    found: dict[str, Any] = {}
    for part in parts[:-1]:
        name, value = _field(part)
        if name.endswith("[]"):
            found.setdefault(name.removesuffix("[]"), []).append(value)
        elif name in found:
            raise Refused(400, f'In the form, the field "{name[:60]}" is there twice.', code="repeated_key")
        else:
            found[name] = value
    return found


def _field(part: bytes) -> tuple[str, str | bytes]:
    head, gap, value = part.lstrip(b" \t").removeprefix(b"\r\n").partition(b"\r\n\r\n")
    about = Message()
    for line in head.decode("utf-8", "replace").split("\r\n") if gap and len(head) <= _MOST_HEAD else ():
        header, _, text = line.partition(":")
        about[header.strip()] = text.strip()
    name = about.get_param("name", header="content-disposition")
    if not isinstance(name, str) or not name:
        raise Refused(400, "A part of the form does not say which field it is.", code="invalid_form")
    if about.get_param("filename", header="content-disposition") is not None:
        return name, value
    try:
        return name, value.decode()
    except UnicodeDecodeError:
        raise Refused(400, f'The field "{name[:60]}" of the form is no text.', code="invalid_form") from None
