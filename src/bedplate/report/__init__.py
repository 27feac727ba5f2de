"""Shows what runs did: figures, one-file HTML reports, live watch, comparison, diagnosis. Reads events only."""
