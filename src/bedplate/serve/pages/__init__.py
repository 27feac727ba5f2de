"""Pages of the gateway for people: a playground, models with their lineage, requests and limits, receipts, runs. Offline, from templates and a little script.

Each module reads what the gateway knows and hands it to a template; whoever may not see something is not told of it. docs/decisions/0003-pages.md says why
there is no framework.
"""
