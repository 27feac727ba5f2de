"""Securing the foundation: scan, sign, bill of materials, guards, red team. Empty until the security issue."""
