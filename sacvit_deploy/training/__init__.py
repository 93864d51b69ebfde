"""The recipe: from labelled pictures to the weights of a two-stage or a dense network."""
