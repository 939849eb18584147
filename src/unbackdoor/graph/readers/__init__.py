"""The ways to read a network's layers: torch.fx, torch.export, a file's names."""
