"""Find and repair backdoored neural networks, with no data."""
