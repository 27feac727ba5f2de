"""Measuring models: tasks, scorers, intervals and paired tests. Empty until the evaluation issue."""
