"""Writing checkpoints: the formats that others read, whole or not at all, with the error of each tensor."""
