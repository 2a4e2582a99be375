"""ministack, whose Kinesis takes CBOR, but whose authorization looks for the stream in JSON alone.

Under AUTH=true version 1.5.33 therefore ends a call in CBOR with an error of its own. Here it finds the
stream there as well; the signature, the policies and the write are judged as ever, by ministack.
"""

from __future__ import annotations

import sys
from typing import Any

import cbor2
from ministack.app import main
from ministack.core import iam_actions

in_json = iam_actions._safe_json_field


def field(body: bytes, name: str) -> Any:
    """A member of a body, or an empty text."""
    # In CBOR a map begins with a byte of this kind, with which no JSON begins.
    if body and body[0] >> 5 == 5:
        return cbor2.loads(body).get(name, "") or ""
    return in_json(body, name)


iam_actions._safe_json_field = field
sys.exit(main())
