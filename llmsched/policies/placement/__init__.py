"""Which of the nodes that fit."""
