"""Predicting loss, time, energy and cost before anything is spent. Empty until the planning issue."""
