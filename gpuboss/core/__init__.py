"""What the log means: a pure function of its entries, with no I/O, no clock and no randomness."""
