"""Who goes first among those waiting in one queue."""
