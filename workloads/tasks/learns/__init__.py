"""What is learnt, a module each: labels of a row, the sum of losses of a batch, and what its metrics count."""
