"""Statistics over seeds, learning curves and videos."""
