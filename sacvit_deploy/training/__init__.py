"""The recipe: from labelled pictures to the weights of a SAC-ViT, a CF-ViT or a dense DeiT."""
