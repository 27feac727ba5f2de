"""What all rooms share: errors, settings, artifacts, files, runs, events, contracts, console, units. Knows no torch and no other room."""
