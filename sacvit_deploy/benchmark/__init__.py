"""Speed of a bundle on this machine, and the limit of the machine beside it.

Nothing here imports torch or onnx, so that it runs where the bundle will run.
"""
