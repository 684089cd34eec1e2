"""How many replicas a load wants."""
