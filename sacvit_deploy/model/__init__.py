"""The networks in torch: the reference that every exported graph is compared with."""
