"""The roles of a token. What each is worth is authorization.py's to know; this the command line reads, too."""

from __future__ import annotations

VIEWER, SUBMITTER, AUDITOR, OPERATOR = ROLES = ("viewer", "submitter", "auditor", "operator")
CALLER = "caller"  # of a key for endpoints alone: no route of the API lets it in
ASKS_ENDPOINTS = (SUBMITTER, OPERATOR, CALLER)  # whose tokens have keys that count
