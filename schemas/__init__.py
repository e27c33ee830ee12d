"""The wire contract: what travels between producers, workers and operators' tools."""
