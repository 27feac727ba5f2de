"""All routes of the pages."""

from __future__ import annotations

from bedplate.serve.pages import files, models, playground, receipts, requests, runs

ROUTES = (*playground.ROUTES, *models.ROUTES, *requests.ROUTES, *receipts.ROUTES, *runs.ROUTES, *files.ROUTES)
