"""Security operations: ingest, rules, anomaly, triage, summaries. Empty until the operations issue."""
