"""What ops and links cost: pure functions of shapes, and descriptions kept as data."""
