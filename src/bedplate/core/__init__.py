"""What every room shares: errors, settings, artifacts, files, runs, events, contracts, console, units. Knows no torch and nothing of ours."""
