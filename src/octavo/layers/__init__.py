"""The parts of a transformer, as modules that call ops and know their shard of the weights."""
