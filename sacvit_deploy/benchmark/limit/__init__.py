"""The limit of a machine for a network: its matrix products and its memory."""
