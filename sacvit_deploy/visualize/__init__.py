"""What the network looked at, as a person can see it."""
