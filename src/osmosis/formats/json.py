"""A view as JSON, in plain ASCII: what other tools draw from.

Keys: ``schema`` "osmosis-graph/1", ``title``, ``exact``, ``subject`` (a node's number),
``nodes`` (``id``, ``kind``, ``type``, ``title``, ``lines``, ``members``, ``pages``, ``role``)
and ``edges`` (``source``, ``target``: numbers of nodes; ``kind``, ``permission``,
``possible``, ``label``, ``count``, ``certain``), ``notes``.
"""

import json
from typing import Any

from osmosis.formats.view import View

__all__ = ["to_dict", "to_json"]

SCHEMA = "osmosis-graph/1"


def to_dict(view: View) -> dict[str, Any]:
    """Return *view* as JSON values."""
    return {
        "schema": SCHEMA,
        "title": view.title,
        "exact": view.exact,
        "subject": view.subject,
        "nodes": [
            {
                "id": node.id,
                "kind": node.kind,
                "type": node.type,
                "title": node.title,
                "lines": list(node.lines),
                "members": list(node.members),
                "pages": node.pages,
                "role": node.role,
            }
            for node in view.nodes
        ],
        "edges": [
            {
                "source": link.source,
                "target": link.target,
                "kind": link.kind,
                "permission": link.permission,
                "possible": link.possible,
                "label": link.label,
                "count": link.count,
                "certain": link.certain,
            }
            for link in view.links
        ],
        "notes": list(view.notes),
    }


def to_json(view: View) -> str:
    """Return *view* as JSON text; names that are no Unicode text come as lone surrogates."""
    return json.dumps(to_dict(view), indent=1) + "\n"
