"""Two ways of running a network, compared."""
