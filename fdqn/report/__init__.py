"""Statistics over seeds, and what people look at: curves, recordings."""
