"""Times of steps, windows, prefills and selections, when they are known well enough, and what the hardware gave."""
